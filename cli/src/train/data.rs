//! The handwritten digits that are embedded in the binary, and their split into training and held-out samples.

use anyhow::{Result, ensure};

use super::rng::{Rng, Stream};

/// Pixels of an 8×8 image.
pub(crate) const FEATURES: usize = 64;
/// Digits 0 to 9.
pub(crate) const CLASSES: usize = 10;
/// Images that are embedded.
pub(crate) const SAMPLES: usize = 1797;

/// Samples with their labels.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Samples {
    /// Row-major `[len, FEATURES]`.
    pub(crate) pixels: Vec<f32>,
    /// `0..CLASSES`.
    pub(crate) labels: Vec<u8>,
}

impl Samples {
    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Pixels of one sample.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.pixels[i * FEATURES..(i + 1) * FEATURES]
    }

    fn select(&self, indices: &[usize]) -> Self {
        Self {
            pixels: indices.iter().flat_map(|&i| self.row(i)).copied().collect(),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
        }
    }
}

/// Samples to train on and samples to test on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Split {
    /// Four fifths of every class.
    pub(crate) train: Samples,
    /// The other fifth.
    pub(crate) held_out: Samples,
}

/// The 1797 digits of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
/// CC BY 4.0), pixels scaled from 0…16 to 0…1.
///
/// # Errors
/// The embedded data are not what they should be.
pub(crate) fn digits() -> Result<Samples> {
    let set = smartcore::dataset::digits::load_dataset();
    ensure!(
        set.num_features == FEATURES && set.data.len() == set.target.len() * FEATURES,
        "embedded digits: expected {FEATURES} pixels a sample, found {} numbers for {} samples",
        set.data.len(),
        set.target.len()
    );
    let labels = set.target.iter().map(|t| label(*t)).collect::<Result<_>>()?;
    Ok(Samples { pixels: set.data.iter().map(|p| p / 16.0).collect(), labels })
}

fn label(target: f32) -> Result<u8> {
    (0..10u8)
        .find(|l| f32::from(*l) == target)
        .ok_or_else(|| anyhow::anyhow!("embedded digits: `{target}` is not a digit"))
}

/// Splits every class 80 to 20 at random, so both parts have the class frequencies of the whole.
pub(crate) fn split(all: &Samples, seed: u64) -> Split {
    let mut rng = Rng::new(seed, Stream::Split);
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for class in 0..10u8 {
        let mut members: Vec<usize> = (0..all.len()).filter(|&i| all.labels[i] == class).collect();
        rng.shuffle(&mut members);
        // Rounded to the nearest sample.
        let held = (members.len() + 2) / 5;
        held_out.extend_from_slice(&members[..held]);
        train.extend_from_slice(&members[held..]);
    }
    train.sort_unstable();
    held_out.sort_unstable();
    Split { train: all.select(&train), held_out: all.select(&held_out) }
}

/// Which samples make up each step's batch: epoch after epoch in a new order, the last, short batch of an
/// epoch dropped. A function of seed and step, so resuming needs no state.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    seed: u64,
    samples: usize,
    batch_size: usize,
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl Batches {
    /// Batches of that many samples out of `samples`.
    pub(crate) fn new(seed: u64, samples: usize, batch_size: usize) -> Self {
        Self { seed, samples, batch_size: batch_size.min(samples), epoch: None, order: Vec::new() }
    }

    /// The samples of a step, counted from 0.
    pub(crate) fn of_step(&mut self, step: usize) -> &[usize] {
        let per_epoch = self.samples / self.batch_size;
        let epoch = (step / per_epoch) as u64;
        if self.epoch != Some(epoch) {
            self.order = (0..self.samples).collect();
            Rng::new(self.seed, Stream::Epoch(epoch)).shuffle(&mut self.order);
            self.epoch = Some(epoch);
        }
        let start = (step % per_epoch) * self.batch_size;
        &self.order[start..start + self.batch_size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_is_stratified_disjoint_complete_and_seeded() {
        let all = digits().unwrap();
        assert_eq!(all.len(), SAMPLES);
        let s = split(&all, 3);
        assert_eq!(s.train.len() + s.held_out.len(), 1797);
        for class in 0..10u8 {
            let count = |s: &Samples| s.labels.iter().filter(|l| **l == class).count();
            let (total, held) = (count(&all), count(&s.held_out));
            assert!(
                (held as f64 - 0.2 * total as f64).abs() <= 0.5,
                "class {class}: {held} of {total}"
            );
        }
        // The multiset of images is that of the whole: nothing lost, nothing twice.
        let images = |s: &Samples| -> Vec<Vec<u32>> {
            (0..s.len()).map(|i| s.row(i).iter().map(|p| p.to_bits()).collect()).collect()
        };
        let mut parts = images(&s.train);
        parts.extend(images(&s.held_out));
        parts.sort();
        let mut whole = images(&all);
        whole.sort();
        assert_eq!(parts, whole);
        assert_eq!(split(&all, 3), s);
        assert_ne!(split(&all, 4).held_out, s.held_out);
    }

    #[test]
    fn an_epoch_visits_every_sample_at_most_once_and_any_step_can_be_asked_for() {
        let mut b = Batches::new(1, 103, 10);
        let epoch: Vec<usize> = (0..10).flat_map(|s| b.of_step(s).to_vec()).collect();
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 100);
        let later = b.of_step(57).to_vec();
        assert_eq!(Batches::new(1, 103, 10).of_step(57), later);
        assert_ne!(b.of_step(10), &epoch[..10]);
        // A batch larger than the set is the set.
        assert_eq!(Batches::new(1, 5, 10).of_step(3).len(), 5);
    }
}
