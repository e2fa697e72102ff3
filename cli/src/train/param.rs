//! A parameter of a model, and the sum of cross-entropies that every model ends in.

use anyhow::{Context as _, Result};

/// One parameter by name: a weight `[fan_out, fan_in]`, row-major, or a vector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Param {
    /// Such as `hidden1.weight`; decides with the shape which optimizer gets it.
    pub(crate) name: String,
    /// Two dimensions, or one for a vector.
    pub(crate) shape: Vec<usize>,
    /// The numbers.
    pub(crate) data: Vec<f32>,
    /// Their gradient after a backward pass.
    pub(crate) grad: Vec<f32>,
}

impl Param {
    /// A parameter without a gradient yet, its numbers one by one from `number`.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn new(
        name: impl Into<String>,
        shape: Vec<usize>,
        number: impl FnMut() -> f32,
    ) -> Result<Self> {
        let name = name.into();
        let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let list = || room(len).with_context(|| format!("`{name}` {shape:?}"));
        let (mut data, mut grad) = (list()?, list()?);
        let len = len.unwrap_or_default();
        grad.resize(len, 0.0);
        data.extend(std::iter::repeat_with(number).take(len));
        Ok(Self { name, shape, data, grad })
    }
}

/// An empty list with room for that many numbers; `None` are more than can be counted.
///
/// # Errors
/// The system has no memory for them.
pub(crate) fn room(numbers: Option<usize>) -> Result<Vec<f32>> {
    let mut list = Vec::new();
    make_room(&mut list, numbers)?;
    Ok(list)
}

/// Makes room for that many numbers in all, so that filling the list cannot fail.
///
/// # Errors
/// As [`room`].
pub(crate) fn make_room(list: &mut Vec<f32>, numbers: Option<usize>) -> Result<()> {
    let numbers = numbers.context("more numbers than this machine can count")?;
    list.try_reserve_exact(numbers.saturating_sub(list.len()))
        .with_context(|| format!("no memory for {numbers} numbers; train a smaller model"))
}

/// Cross-entropy of rows of logits against the right classes, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Score {
    /// Sum over rows.
    pub(crate) loss: f64,
    /// Rows whose largest logit is the right one; a tie, or a NaN, is no answer.
    pub(crate) right: usize,
    /// Number of rows.
    pub(crate) rows: usize,
}

impl Score {
    /// Adds one row.
    pub(crate) fn add(&mut self, logits: &[f32], label: usize) {
        let (max, sum) = softmax_terms(logits);
        self.loss += f64::from(sum.ln()) - f64::from(logits[label] - max);
        self.right +=
            usize::from(logits.iter().enumerate().all(|(c, x)| c == label || *x < logits[label]));
        self.rows += 1;
    }

    /// Adds the rows of another one.
    pub(crate) fn extend(&mut self, other: Self) {
        self.loss += other.loss;
        self.right += other.right;
        self.rows += other.rows;
    }

    /// Mean cross-entropy, and the fraction of right answers.
    pub(crate) fn mean(self) -> (f64, f64) {
        let n = self.rows as f64;
        (self.loss / n, self.right as f64 / n)
    }
}

/// Mean cross-entropy of a batch; `delta` becomes its gradient with respect to the logits.
pub(crate) fn cross_entropy(
    logits: &[f32],
    classes: usize,
    labels: impl ExactSizeIterator<Item = usize>,
    delta: &mut Vec<f32>,
) -> f64 {
    let batch = labels.len();
    let mut loss = 0.0;
    delta.clear();
    for (row, label) in logits.chunks_exact(classes).zip(labels) {
        let (max, sum) = softmax_terms(row);
        loss += f64::from(sum.ln()) - f64::from(row[label] - max);
        for (class, logit) in row.iter().enumerate() {
            let p = (logit - max).exp() / sum;
            let target = f32::from(u8::from(class == label));
            delta.push((p - target) / batch as f32);
        }
    }
    loss / batch as f64
}

/// Largest logit, and the sum of exponentials relative to it.
fn softmax_terms(row: &[f32]) -> (f32, f32) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, row.iter().map(|x| (x - max).exp()).sum())
}
