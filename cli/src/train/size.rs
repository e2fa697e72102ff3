//! How much memory a run needs at least, found out before any of it is asked for.

use anyhow::Result;

use super::config::Task;
use super::data::{CLASSES, FEATURES, SAMPLES};
use super::transformer;
use super::workload::EVALUATED_TOGETHER;
use crate::exit::usage;

/// Most bytes that a run may need: what a desktop has. The models of this trainer are there to compare optimizers, and
/// one that large takes minutes a step.
const MOST_BYTES: u128 = 16 << 30;
/// Most hidden layers of the perceptron: deeper ones without normalisation do not train.
const MOST_HIDDEN: usize = 64;
/// Numbers that are kept for one number of the model: itself and its gradient, here and on the optimizer's device, two
/// of state, and the work space of its orthogonalization.
const FOR_EACH_PARAM: u128 = 9;

/// Refuses a run that would need too much.
///
/// # Errors
/// Says what it would need.
pub(crate) fn check(task: &Task, batch_size: usize) -> Result<()> {
    let wide = |n: usize| n as u128;
    let (params, work) = match task {
        Task::Digits { hidden } => {
            if hidden.len() > MOST_HIDDEN {
                return Err(usage(format!(
                    "--hidden: expected at most {MOST_HIDDEN} layers, found {}",
                    hidden.len()
                )));
            }
            let widths = || [&[FEATURES][..], hidden, &[CLASSES]].concat().into_iter().map(wide);
            let params = widths()
                .zip(widths().skip(1))
                .fold(0u128, |n, (a, b)| n.saturating_add((a + 1).saturating_mul(b)));
            // Outputs and their gradients, of all samples at once in an evaluation.
            (params, 2 * wide(SAMPLES) * widths().skip(1).sum::<u128>())
        }
        Task::Text { model, .. } => {
            let windows = wide(batch_size.max(EVALUATED_TOGETHER));
            let numbers = transformer::numbers(*model);
            (numbers.params, windows.saturating_mul(numbers.work_of_a_window))
        }
    };
    let bytes = params.saturating_mul(FOR_EACH_PARAM).saturating_add(work).saturating_mul(4);
    if bytes <= MOST_BYTES {
        return Ok(());
    }
    let gib = |bytes: u128| bytes as f64 / f64::from(1 << 30);
    Err(usage(format!(
        "a run of this model and batch needs about {:.0} GiB of memory; `muon train` takes up to {:.0} GiB, which is \
         plenty for comparing optimizers: expected a smaller {}",
        gib(bytes),
        gib(MOST_BYTES),
        match task {
            Task::Digits { .. } => "--hidden",
            Task::Text { .. } => "--width, --layers, --context or --batch-size",
        }
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::text::TextId;
    use crate::train::transformer::TransformerShape;

    fn digits(hidden: &[usize]) -> Result<()> {
        check(&Task::Digits { hidden: hidden.to_vec() }, 128)
    }

    fn text(width: usize, layers: usize, context: usize, batch_size: usize) -> Result<()> {
        let text = TextId { file: None, bytes: 1, fingerprint: String::new() };
        let model = TransformerShape { width, layers, heads: 1, context };
        check(&Task::Text { text, model }, batch_size)
    }

    #[test]
    fn what_fits_is_taken_and_the_rest_is_refused_at_any_size() {
        assert!(digits(&[128, 128]).is_ok() && digits(&[4096; 3]).is_ok());
        assert!(digits(&[1; 64]).is_ok() && digits(&[1; 65]).is_err());
        for width in [1 << 20, 1_000_000_000, usize::MAX] {
            let said = digits(&[width, width]).unwrap_err().to_string();
            assert!(said.contains("GiB of memory") && said.contains("--hidden"), "{said}");
        }
        assert!(text(64, 2, 64, 16).is_ok() && text(512, 8, 256, 16).is_ok());
        let most = usize::MAX;
        for (width, layers, context, batch) in [
            (most, 2, 64, 16),
            (64, most, 64, 16),
            (64, 2, most, 16),
            (64, 2, 64, most),
            (most, most, most, most),
        ] {
            assert!(
                text(width, layers, context, batch).is_err(),
                "{width} {layers} {context} {batch}"
            );
        }
    }
}
