//! Seeded random numbers whose bits never change: the split, the initialisation and the order of the
//! batches are part of a run's identity, so they must not depend on the version of a crate.

/// xoshiro256++ (Blackman and Vigna 2019, public domain), seeded by SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Rng([u64; 4]);

/// What a stream of random numbers is for; streams of one seed are independent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    /// Which samples are held out.
    Split,
    /// Initial parameters.
    Init,
    /// Order of the samples in that epoch.
    Epoch(u64),
    /// Where the windows of that step's batch start.
    Windows(u64),
}

impl Rng {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64, stream: Stream) -> Self {
        let tag = match stream {
            Stream::Split => 1,
            Stream::Init => 2,
            Stream::Epoch(n) => 3 + n,
            Stream::Windows(n) => (1 << 63) + n,
        };
        let mut x = split_mix(seed).wrapping_add(split_mix(!tag));
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            split_mix(x)
        });
        Self(state)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `[0, bound)`, without bias (Lemire's multiplication with rejection).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            let [high, low] = halves(product);
            if low >= bound.wrapping_neg() % bound {
                return usize::try_from(high).unwrap_or(usize::MAX);
            }
        }
    }

    /// Uniform in `[-limit, limit)`, on a grid of 2⁻²³ of it.
    pub(crate) fn symmetric(&mut self, limit: f32) -> f32 {
        // 24 bits are exact in f32.
        let unit = u32::try_from(self.bits() >> 40).unwrap_or(0) as f32 / 8_388_608.0;
        (unit - 1.0) * limit
    }

    /// Fisher–Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn split_mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn halves(x: u128) -> [u64; 2] {
    let bytes = x.to_be_bytes();
    let half = |at: usize| bytes[at..at + 8].iter().fold(0u64, |acc, b| (acc << 8) | u64::from(*b));
    [half(0), half(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_of_a_seed_are_fixed() {
        // Recorded when the generator was written: a change here changes every recorded run.
        let mut rng = Rng(std::array::from_fn(|i| i as u64 + 1));
        // First outputs of the authors' C code from the state 1, 2, 3, 4.
        assert_eq!(
            [rng.bits(), rng.bits(), rng.bits()],
            [41_943_041, 58_720_359, 3_588_806_011_781_223]
        );
    }

    #[test]
    fn streams_differ_and_ranges_hold() {
        let first = |seed, stream| Rng::new(seed, stream).bits();
        let all = [
            first(0, Stream::Split),
            first(0, Stream::Init),
            first(0, Stream::Epoch(0)),
            first(0, Stream::Epoch(1)),
            first(1, Stream::Split),
            first(1, Stream::Epoch(0)),
            first(0, Stream::Windows(0)),
            first(0, Stream::Windows(1)),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{all:?}");
        }
        let mut rng = Rng::new(7, Stream::Init);
        let mut counts = [0usize; 10];
        let mut sum = 0.0;
        for _ in 0..10_000 {
            counts[rng.below(10)] += 1;
            let x = rng.symmetric(0.5);
            assert!((-0.5..0.5).contains(&x));
            sum += f64::from(x);
        }
        // Five standard deviations: 10⁴ draws of variance 10⁻¹·9·10⁻¹, and of 1/12.
        assert!(counts.iter().all(|&c| c.abs_diff(1000) < 150), "{counts:?}");
        assert!(sum.abs() < 5.0 * (10_000.0f64 / 12.0).sqrt(), "{sum}");
    }
}
