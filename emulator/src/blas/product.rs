//! A matrix product as it waits in the queue: D = alpha · op(A) · op(B) + beta · C.

use super::arithmetic::{Dtype, InputRounding};
use crate::runtime::Span;

/// A matrix in memory, by strides in elements; one of the strides is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) dtype: Dtype,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    pub(crate) row_stride: u64,
    pub(crate) col_stride: u64,
}

impl View {
    /// A column-major matrix with leading dimension `ld`.
    pub(crate) fn column_major(dtype: Dtype, rows: u64, cols: u64, ld: u64) -> Self {
        View { dtype, rows, cols, row_stride: 1, col_stride: ld }
    }

    /// The same memory, read with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Bytes from the first to the last element.
    pub(crate) fn extent(self) -> u64 {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        ((self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1)
            * self.dtype.size()
    }

    /// The bytes the matrix occupies: contiguous runs, in address order.
    pub(crate) fn spans(self, address: u64) -> Vec<Span> {
        let view = if self.row_stride == 1 { self } else { self.transposed() };
        if view.rows == 0 || view.cols == 0 {
            return Vec::new();
        }
        let size = view.dtype.size();
        if view.col_stride == view.rows || view.cols == 1 {
            return vec![Span::new(address, view.rows * view.cols * size)];
        }
        (0..view.cols)
            .map(|col| Span::new(address + col * view.col_stride * size, view.rows * size))
            .collect()
    }
}

/// A factor: its value at the call, or the device address it is read from when the product runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scalar {
    Value(f64),
    Device { address: u64, dtype: Dtype },
}

/// The addresses of one product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) d: u64,
}

/// The addresses of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Items {
    /// Known at the call.
    Known(Vec<Item>),
    /// In device arrays of pointers, read when the product runs; C is D.
    Arrays { a: u64, b: u64, c: u64, count: u64 },
}

/// Products of one shape. `a` is m × k, `b` k × n, `c` and `d` m × n.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) a: View,
    pub(crate) b: View,
    pub(crate) c: View,
    pub(crate) d: View,
    pub(crate) alpha: Scalar,
    pub(crate) beta: Scalar,
    pub(crate) rounding: InputRounding,
    /// Whether the inner dimension is split in two and the parts are kept in D's type.
    pub(crate) parts_in_output: bool,
    pub(crate) items: Items,
}

/// One cuBLAS call.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) groups: Vec<Group>,
    /// Scratch memory the caller gave: nobody else may touch it meanwhile.
    pub(crate) workspace: Option<Span>,
}

impl Group {
    /// What one product reads and writes, C included unless beta is known to be 0.
    pub(crate) fn item_footprint(&self, item: &Item, reads_c: bool) -> (Vec<Span>, Vec<Span>) {
        let mut reads = self.a.spans(item.a);
        reads.extend(self.b.spans(item.b));
        if reads_c {
            reads.extend(self.c.spans(item.c));
        }
        (reads, self.d.spans(item.d))
    }

    pub(crate) fn may_read_c(&self) -> bool {
        !matches!(self.beta, Scalar::Value(beta) if beta == 0.0)
    }
}

impl Product {
    /// What is known before the product runs; batches in device arrays are not.
    pub(crate) fn footprint(&self) -> (Vec<Span>, Vec<Span>) {
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        writes.extend(self.workspace);
        for group in &self.groups {
            for scalar in [group.alpha, group.beta] {
                if let Scalar::Device { address, dtype } = scalar {
                    reads.push(Span::new(address, dtype.size()));
                }
            }
            match &group.items {
                Items::Known(items) => {
                    for item in items {
                        let (r, w) = group.item_footprint(item, group.may_read_c());
                        reads.extend(r);
                        writes.extend(w);
                    }
                }
                Items::Arrays { a, b, c, count } => {
                    reads.extend([*a, *b, *c].map(|array| Span::new(array, 8 * count)));
                }
            }
        }
        (reads, writes)
    }
}
