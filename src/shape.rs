//! Shapes: which matrices a parameter consists of, where they lie in memory, and which axis is fan-out.

use std::fmt;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::memory;

/// Which axis of a matrix parameter counts the outputs.
///
/// The update scale depends on it, the memory order does not: data are row-major either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[fan_out, fan_in]`, as PyTorch's and candle's `Linear` store it (default).
    #[default]
    OutIn,
    /// `[fan_in, fan_out]`, as burn and JAX store it.
    InOut,
}

/// Rows and columns of one matrix as it lies in memory, both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixShape {
    /// Number of rows in memory.
    pub rows: usize,
    /// Number of columns in memory.
    pub cols: usize,
}

/// Which side is the short one: Gram matrices live there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Orientation {
    /// `cols >= rows`: the Gram matrix is `X·Xᵀ` and products go from the left.
    Wide,
    /// `rows > cols`: the Gram matrix is `Xᵀ·X` and products go from the right.
    Tall,
}

impl MatrixShape {
    /// Number of elements; the largest number there is where that is more. No parameter has so many.
    #[must_use]
    pub fn len(self) -> usize {
        self.rows.saturating_mul(self.cols)
    }

    /// Whether a side is zero.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The smaller side.
    #[must_use]
    pub fn short(self) -> usize {
        self.rows.min(self.cols)
    }

    /// The larger side.
    #[must_use]
    pub fn long(self) -> usize {
        self.rows.max(self.cols)
    }

    /// See [`Orientation`].
    #[must_use]
    pub fn orientation(self) -> Orientation {
        if self.cols >= self.rows { Orientation::Wide } else { Orientation::Tall }
    }
}

impl fmt::Display for MatrixShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.rows, self.cols)
    }
}

/// How a parameter divides into the matrices that are orthogonalized one by one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// The parameter is one matrix (default).
    #[default]
    Whole,
    /// Parts of the fan-out axis with these sizes, such as fused query, key and value with unequal parts.
    FanOut(Vec<usize>),
    /// That many equal parts of the fan-out axis, one per attention head.
    Heads(NonZeroUsize),
}

/// One matrix of a parameter: a strided view into its row-major memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Index of the first element in the parameter.
    pub offset: usize,
    /// Rows and columns of the matrix.
    pub shape: MatrixShape,
    /// Elements from one row to the next; at least `shape.cols`.
    pub row_stride: usize,
}

impl Block {
    /// Whether the matrix is one gapless range of memory.
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.shape.cols || self.shape.rows == 1
    }

    /// The element range of row `i` in the parameter.
    #[must_use]
    pub fn row(&self, i: usize) -> std::ops::Range<usize> {
        let start = self.offset + i * self.row_stride;
        start..start + self.shape.cols
    }
}

/// The matrices of a parameter of that shape.
///
/// # Shapes
/// * `[rows, cols]`: one matrix, or several along the fan-out axis by `split`.
/// * `[experts, rows, cols]`: one matrix (or one split) per expert.
/// * `[out, in, kh, kw]` (convolution): the matrix `[out, in·kh·kw]`; [`Layout::OutIn`] only.
/// * With a zero dimension: no matrix.
///
/// # Errors
/// Fewer than 2 or more than 4 dimensions, an element count that overflows, split sizes
/// that do not add up to fan-out, or a convolution stored input-first.
pub(crate) fn blocks(shape: &[usize], layout: Layout, split: &Split) -> Result<Vec<Block>> {
    let count = element_count(shape)?;
    let (experts, rows, cols) = match *shape {
        [rows, cols] => (1, rows, cols),
        [experts, rows, cols] => (experts, rows, cols),
        // Of no elements when it saturates.
        [out, input, kh, kw] if layout == Layout::OutIn => {
            (1, out, input.saturating_mul(kh).saturating_mul(kw))
        }
        [_, _, _, _] => {
            return Err(Error::invalid_config(
                "a convolution is flattened to `[out, in*kh*kw]` and needs layout `OutIn`, found `InOut`",
            ));
        }
        _ => {
            return Err(Error::shape_mismatch(
                "shape of a Muon parameter",
                "2 dimensions (matrix), 3 (experts) or 4 (convolution); vectors belong under the AdamW rule",
                format!("{shape:?}"),
            ));
        }
    };
    let fan_out = if layout == Layout::OutIn { rows } else { cols };
    let sizes = match split {
        Split::Whole => vec![fan_out],
        Split::FanOut(sizes) => sizes.clone(),
        Split::Heads(heads) => {
            if !fan_out.is_multiple_of(heads.get()) {
                return Err(Error::shape_mismatch(
                    "heads of a Muon parameter",
                    format!("a number that divides fan-out {fan_out}"),
                    heads,
                ));
            }
            if count == 0 {
                return Ok(Vec::new());
            }
            check_matrices(heads.get())?;
            vec![fan_out / heads.get(); heads.get()]
        }
    };
    let total = sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b));
    if (fan_out > 0 && sizes.contains(&0)) || total != Some(fan_out) {
        return Err(Error::shape_mismatch(
            "split of a Muon parameter",
            format!("positive sizes that add up to fan-out {fan_out}"),
            format!("{sizes:?}"),
        ));
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let matrices = experts.saturating_mul(sizes.len());
    check_matrices(matrices)?;
    let mut out = memory::with_room(matrices, "a record of each matrix")?;
    for expert in 0..experts {
        let mut start = 0;
        for &size in &sizes {
            let base = expert * rows * cols;
            out.push(match layout {
                Layout::OutIn => Block {
                    offset: base + start * cols,
                    shape: MatrixShape { rows: size, cols },
                    row_stride: cols,
                },
                Layout::InOut => Block {
                    offset: base + start,
                    shape: MatrixShape { rows, cols: size },
                    row_stride: cols,
                },
            });
            start += size;
        }
    }
    Ok(out)
}

/// Most matrices of a plan. It keeps a record of each, some 60 bytes; the largest models that are trained have 10⁵.
pub(crate) const MOST_MATRICES: usize = 1 << 22;

/// # Errors
/// More matrices than a plan takes.
pub(crate) fn check_matrices(matrices: usize) -> Result<()> {
    if matrices <= MOST_MATRICES {
        return Ok(());
    }
    Err(Error::shape_mismatch(
        "matrices under Muon",
        format!("at most {MOST_MATRICES}, of each of which a plan keeps a record"),
        matrices,
    ))
}

/// Product of the dimensions.
///
/// # Errors
/// The product does not fit `isize` (no allocation can be that large).
pub(crate) fn element_count(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |a, &b| a.checked_mul(b))
        .filter(|&n| isize::try_from(n).is_ok_and(|n| n <= isize::MAX / 8))
        .ok_or_else(|| {
            Error::shape_mismatch(
                "shape",
                "an element count that fits memory",
                format!("{shape:?}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_every_element_exactly_once() {
        let heads = Split::Heads(NonZeroUsize::new(3).unwrap());
        for (shape, layout, split) in [
            (vec![6, 4], Layout::OutIn, Split::Whole),
            (vec![6, 4], Layout::OutIn, Split::FanOut(vec![3, 1, 2])),
            (vec![4, 6], Layout::InOut, Split::FanOut(vec![3, 1, 2])),
            (vec![2, 6, 4], Layout::OutIn, heads.clone()),
            (vec![2, 4, 6], Layout::InOut, heads),
            (vec![5, 3, 2, 2], Layout::OutIn, Split::Whole),
        ] {
            let blocks = blocks(&shape, layout, &split).unwrap();
            let mut seen = vec![0u8; shape.iter().product()];
            for b in &blocks {
                for i in 0..b.shape.rows {
                    seen[b.row(i)].iter_mut().for_each(|s| *s += 1);
                }
            }
            assert!(seen.iter().all(|&s| s == 1), "{shape:?} {layout:?} {split:?}");
        }
    }

    #[test]
    fn fused_qkv_with_unequal_parts_is_three_row_blocks() {
        let b = blocks(&[12, 8], Layout::OutIn, &Split::FanOut(vec![8, 2, 2])).unwrap();
        let found: Vec<_> = b.iter().map(|b| (b.offset, b.shape.rows, b.shape.cols)).collect();
        assert_eq!(found, [(0, 8, 8), (64, 2, 8), (80, 2, 8)]);
    }

    #[test]
    fn a_zero_dimension_has_no_matrix_and_its_split_must_add_up_all_the_same() {
        let heads = |n| Split::Heads(NonZeroUsize::new(n).unwrap());
        for (shape, layout, split) in [
            (vec![0, 3], Layout::OutIn, Split::Whole),
            (vec![3, 0], Layout::OutIn, Split::Whole),
            (vec![0, 3, 4], Layout::OutIn, Split::Whole),
            (vec![2, 0, 4], Layout::InOut, heads(2)),
            (vec![4, 0], Layout::OutIn, heads(2)),
            (vec![4, 0], Layout::OutIn, Split::FanOut(vec![3, 1])),
            (vec![0, 4], Layout::OutIn, Split::FanOut(vec![0, 0])),
            (vec![4, 0, 3, 3], Layout::OutIn, Split::Whole),
            (vec![0, usize::MAX, 3, 3], Layout::OutIn, Split::Whole),
            (vec![0, usize::MAX, 4], Layout::OutIn, heads(usize::MAX)),
        ] {
            let found = blocks(&shape, layout, &split).unwrap();
            assert!(found.is_empty(), "{shape:?} {layout:?} {split:?}: {found:?}");
        }
        assert!(blocks(&[4, 0], Layout::OutIn, &Split::FanOut(vec![3, 2])).is_err());
        assert!(blocks(&[5, 0], Layout::OutIn, &heads(2)).is_err());
        // An empty part of what is not empty is a mistake.
        assert!(blocks(&[4, 3], Layout::OutIn, &Split::FanOut(vec![4, 0])).is_err());
    }

    #[test]
    fn refuses_what_is_not_a_matrix() {
        for shape in [vec![], vec![7], vec![0], vec![1, 2, 3, 4, 5], vec![0; 5]] {
            let e = blocks(&shape, Layout::OutIn, &Split::Whole).unwrap_err();
            assert!(e.is_shape_mismatch(), "{shape:?}: {e}");
        }
        assert!(blocks(&[4, 4], Layout::OutIn, &Split::FanOut(vec![3, 2])).is_err());
        assert!(blocks(&[4, 4], Layout::OutIn, &Split::FanOut(vec![4, 0])).is_err());
        assert!(blocks(&[4, 4], Layout::OutIn, &Split::FanOut(vec![usize::MAX, 5])).is_err());
        assert!(blocks(&[usize::MAX, 3], Layout::OutIn, &Split::Whole).is_err());
        assert!(blocks(&[4, 2, 3, 3], Layout::InOut, &Split::Whole).is_err());
    }
}
