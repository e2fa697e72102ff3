//! The update scale: the factor on the learning rate that depends on a matrix's shape.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::shape::{Layout, MatrixShape};

/// How the step length of a matrix depends on its shape; multiplies the learning rate.
///
/// An orthogonalized direction has singular values near 1, so its entries shrink as the matrix grows;
/// the rule decides what is held constant across shapes instead.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateScale {
    /// `√max(1, fan_out / fan_in)`: Jordan's rule, PyTorch's `original` (default).
    ///
    /// The fan_in of a convolution is all that a filter reads, `in · height · width`. KellerJordan/Muon (`muon.py`) divides the last two
    /// sizes of the gradient instead, which are the kernel's height and width: 1 for square kernels, where this rule
    /// gives `√(64/27) = 1.54` for `[64, 3, 3, 3]`. The updates there differ by 0.54 of his; [`UpdateScale::None`] steps as he does.
    #[default]
    Original,
    /// `0.2 · √max(fan_out, fan_in)`: the RMS of an AdamW update, so that AdamW's learning rate and decay
    /// carry over (Moonlight; PyTorch's `match_rms_adamw`).
    #[serde(rename = "match_rms_adamw")]
    MatchRmsAdamW,
    /// `r · √max(fan_out, fan_in)` with this positive `r`: the RMS that [`UpdateScale::MatchRmsAdamW`] sets to 0.2.
    MatchRms(f64),
    /// `√(fan_out / fan_in)`: unit RMS-to-RMS operator norm (PyTorch's `spectral_unclamped`, dion's `spectral_norm`, Scion).
    Spectral,
    /// 1 for every shape.
    None,
    /// The same positive factor for every shape.
    Custom(f64),
}

impl UpdateScale {
    /// The factor for one matrix; dimensionless.
    ///
    /// ```
    /// use muon_cuda::{Layout, MatrixShape, UpdateScale};
    /// let shape = MatrixShape { rows: 1024, cols: 256 };
    /// assert_eq!(UpdateScale::Original.factor(shape, Layout::OutIn), 2.0);
    /// assert_eq!(UpdateScale::Original.factor(shape, Layout::InOut), 1.0);
    /// assert_eq!(UpdateScale::MatchRmsAdamW.factor(shape, Layout::OutIn), 6.4);
    ///
    /// let conv = MatrixShape { rows: 64, cols: 3 * 3 * 3 };    // [64, 3, 3, 3]
    /// assert!((UpdateScale::Original.factor(conv, Layout::OutIn) - 1.54).abs() < 0.001);
    /// ```
    #[must_use]
    pub fn factor(self, shape: MatrixShape, layout: Layout) -> f64 {
        let (fan_out, fan_in) = match layout {
            Layout::OutIn => (shape.rows as f64, shape.cols as f64),
            Layout::InOut => (shape.cols as f64, shape.rows as f64),
        };
        match self {
            Self::Original => (fan_out / fan_in).max(1.0).sqrt(),
            Self::MatchRmsAdamW => 0.2 * fan_out.max(fan_in).sqrt(),
            Self::MatchRms(rms) => rms * fan_out.max(fan_in).sqrt(),
            Self::Spectral => (fan_out / fan_in).sqrt(),
            Self::None => 1.0,
            Self::Custom(factor) => factor,
        }
    }

    pub(crate) fn validate(self) -> Result<()> {
        match self {
            Self::Custom(f) | Self::MatchRms(f) if !(f.is_finite() && f > 0.0) => {
                Err(Error::invalid_config(format!(
                    "update scale: expected a positive finite factor, found `{f}`"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_to_its_formula() {
        let wide = MatrixShape { rows: 64, cols: 160 };
        let tall = MatrixShape { rows: 160, cols: 64 };
        let out_in = Layout::OutIn;
        assert_eq!(UpdateScale::Original.factor(wide, out_in), 1.0);
        assert_eq!(UpdateScale::Original.factor(tall, out_in), 2.5f64.sqrt());
        assert_eq!(UpdateScale::Spectral.factor(wide, out_in), 0.4f64.sqrt());
        assert_eq!(UpdateScale::Spectral.factor(wide, Layout::InOut), 2.5f64.sqrt());
        assert_eq!(UpdateScale::MatchRmsAdamW.factor(wide, out_in), 0.2 * 160f64.sqrt());
        assert_eq!(UpdateScale::MatchRms(0.3).factor(tall, out_in), 0.3 * 160f64.sqrt());
        assert_eq!(UpdateScale::None.factor(tall, out_in), 1.0);
        assert_eq!(UpdateScale::Custom(3.5).factor(tall, out_in), 3.5);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(UpdateScale::Custom(bad).validate().unwrap_err().is_invalid_config());
            assert!(UpdateScale::MatchRms(bad).validate().unwrap_err().is_invalid_config());
        }
    }
}
