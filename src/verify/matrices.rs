//! The matrices of a recorded parameter, gathered where the library has no view of them.

use std::num::NonZeroUsize;

use super::recording::{Case, Interleaved, Parts};
use crate::error::{Error, Result};
use crate::shape::{Block, Layout, Split, blocks, element_count};

/// A recorded parameter in the order in which it is registered.
#[derive(Debug)]
pub(super) struct Matrices {
    /// The registered shape.
    pub shape: Vec<usize>,
    pub layout: Layout,
    pub split: Split,
    /// Where its matrices lie.
    pub blocks: Vec<Block>,
    /// For each registered element its place in the recording; `None` where they are in the same order.
    order: Option<Vec<usize>>,
}

impl Matrices {
    /// The matrices of a case under Muon; its tensors must have been read, so that their number bounds the work.
    ///
    /// # Errors
    /// A shape that is no matrix, parts that do not fill its fan-out axis.
    pub(super) fn new(case: &Case) -> Result<Self> {
        let mut shape = case.shape.clone();
        if case.is_conv {
            let [out, rest @ ..] = &case.shape[..] else { return Err(no_conv(&case.shape)) };
            if rest.len() < 2 || case.layout != Layout::OutIn {
                return Err(no_conv(&case.shape));
            }
            shape = vec![*out, element_count(rest)?];
        }
        let (split, order) = match &case.parts {
            Parts::Whole => (Split::Whole, None),
            Parts::Split(sizes) => (Split::FanOut(sizes.clone()), None),
            Parts::Heads(heads) => {
                let heads = NonZeroUsize::new(*heads).ok_or_else(|| {
                    Error::shape_mismatch("field `heads`", "a positive number", heads)
                })?;
                (Split::Heads(heads), None)
            }
            Parts::Interleaved(interleaved) => {
                let sizes = interleaved.rows.iter().map(|r| r.saturating_mul(interleaved.groups));
                (Split::FanOut(sizes.collect()), Some(gathered(interleaved, &shape, case.layout)?))
            }
        };
        let blocks = blocks(&shape, case.layout, &split)?;
        Ok(Self { shape, layout: case.layout, split, blocks, order })
    }

    /// A recorded tensor in the registered order.
    pub(super) fn gather<T: Copy>(&self, recorded: Vec<T>) -> Vec<T> {
        match &self.order {
            None => recorded,
            Some(order) => order.iter().map(|&from| recorded[from]).collect(),
        }
    }

    /// A registered tensor in the order of the recording.
    pub(super) fn scatter(&self, registered: Vec<f64>) -> Vec<f64> {
        let Some(order) = &self.order else { return registered };
        let mut recorded = vec![0.0; registered.len()];
        for (x, &to) in registered.into_iter().zip(order) {
            recorded[to] = x;
        }
        recorded
    }
}

fn no_conv(shape: &[usize]) -> Error {
    Error::shape_mismatch(
        "shape of a case with `view` \"conv\"",
        "[out, in, kernel…], at least 3 dimensions, `layout` \"out_in\"",
        format!("{shape:?}"),
    )
}

/// For each element, with the rows j of every group one after the other, its place in the recording.
fn gathered(parts: &Interleaved, shape: &[usize], layout: Layout) -> Result<Vec<usize>> {
    let (experts, rows, cols) = match *shape {
        [rows, cols] => (1, rows, cols),
        [experts, rows, cols] => (experts, rows, cols),
        _ => {
            return Err(Error::shape_mismatch(
                "shape of a case with `split_interleaved`",
                "2 dimensions, or 3 for experts (with `view` \"conv\" more)",
                format!("{shape:?}"),
            ));
        }
    };
    let fan_out = if layout == Layout::OutIn { rows } else { cols };
    let group = parts.rows.iter().try_fold(0usize, |sum, r| sum.checked_add(*r));
    let total = group.and_then(|g| g.checked_mul(parts.groups));
    if total != Some(fan_out) || parts.groups == 0 {
        return Err(Error::shape_mismatch(
            "field `split_interleaved`",
            format!("groups · (sum of rows) = {fan_out}, the fan-out"),
            format!("{} · {:?}", parts.groups, parts.rows),
        ));
    }
    let group = group.unwrap_or(0);
    let mut from = Vec::with_capacity(fan_out);
    let mut first = 0;
    for &rows in &parts.rows {
        for g in 0..parts.groups {
            let start = g * group + first;
            from.extend(start..start + rows);
        }
        first += rows;
    }
    let mut order = Vec::with_capacity(experts * rows * cols);
    for expert in 0..experts {
        let base = expert * rows * cols;
        match layout {
            Layout::OutIn => {
                for &row in &from {
                    order.extend((0..cols).map(|col| base + row * cols + col));
                }
            }
            Layout::InOut => {
                for row in 0..rows {
                    order.extend(from.iter().map(|col| base + row * cols + col));
                }
            }
        }
    }
    Ok(order)
}
