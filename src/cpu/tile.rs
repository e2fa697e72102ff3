//! Matrix products in tiles: which tiles a result is cut into, and what happens to a tile while it is in cache.
//!
//! The cut depends on the shape alone and a tile is one sequential product over the whole inner dimension,
//! so results are the same bits for every number of threads.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};

use crate::precision::Precision;

/// Largest side of a diagonal tile of a symmetric result. Large tiles use the cache better, small ones
/// waste less on packing and divide the work more finely: 192 to 256 are within 3% of each other at
/// 768 × 3072 on two cores of an AMD EPYC (Zen 3).
const TRIANGLE: usize = 256;

/// Largest height and width of a tile of a general result. Its operands are packed once a tile, so it
/// should be large in both directions: 128 × 384 runs at 70 GFLOP/s a core where 384 × 384 has 83.
const RECTANGLE: usize = 384;

/// `factor · matrix`, added to a product before it is rounded; `matrix` is row-major.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub(super) factor: f32,
    pub(super) matrix: &'a [f32],
    pub(super) cols: usize,
}

impl Term<'_> {
    pub(super) const NONE: Self = Self { factor: 0.0, matrix: &[], cols: 0 };
}

/// What is done to the elements of a product before they are stored for good.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    pub(super) precision: Precision,
    pub(super) terms: [Term<'a>; 2],
}

impl Epilogue<'_> {
    /// On the tile whose first element is (`row`, `col`) of the result.
    fn run(&self, tile: MatMut<'_, f32>, row: usize, col: usize) {
        if self.precision == Precision::F32 && self.terms.iter().all(|t| t.factor == 0.0) {
            return;
        }
        for (i, tile) in tile.row_iter_mut().enumerate() {
            let Some(tile) = tile.try_as_row_major_mut() else { continue };
            let tile = tile.as_slice_mut();
            for term in self.terms.iter().filter(|t| t.factor != 0.0) {
                let start = (row + i) * term.cols + col;
                let addend = &term.matrix[start..start + tile.len()];
                tile.iter_mut().zip(addend).for_each(|(x, c)| *x += term.factor * c);
            }
            round(self.precision, tile);
        }
    }
}

/// Rounds every element, with the format decided outside the loop so that it vectorises.
pub(super) fn round(precision: Precision, x: &mut [f32]) {
    match precision {
        Precision::F32 => {}
        Precision::Bf16 => x.iter_mut().for_each(|x| *x = Precision::Bf16.round(*x)),
        Precision::Fp16 => x.iter_mut().for_each(|x| *x = Precision::Fp16.round(*x)),
    }
}

/// Lower triangle of `alpha·left·right` and its epilogue; what lies above the diagonal is not touched, or
/// holds nothing of use.
pub(super) fn lower_triangle(
    out: MatMut<'_, f32>,
    alpha: f32,
    left: MatRef<'_, f32>,
    right: MatRef<'_, f32>,
    epilogue: Epilogue<'_>,
    parallel: bool,
) {
    Product { alpha, left, right, epilogue, parallel }.triangle(out, 0);
}

/// `alpha·left·right` and its epilogue.
pub(super) fn product(
    out: MatMut<'_, f32>,
    alpha: f32,
    left: MatRef<'_, f32>,
    right: MatRef<'_, f32>,
    epilogue: Epilogue<'_>,
    parallel: bool,
) {
    Product { alpha, left, right, epilogue, parallel }.rectangle(out, 0, 0, RECTANGLE);
}

/// A product whose result is cut in halves until the pieces are tiles.
struct Product<'a> {
    alpha: f32,
    left: MatRef<'a, f32>,
    right: MatRef<'a, f32>,
    epilogue: Epilogue<'a>,
    parallel: bool,
}

impl Product<'_> {
    /// The diagonal block that starts at (`first`, `first`).
    fn triangle(&self, mut out: MatMut<'_, f32>, first: usize) {
        let n = out.nrows();
        if n > TRIANGLE {
            let half = half(n);
            let (top, _, corner, bottom) = out.split_at_mut(half, half);
            self.both(
                || self.rectangle(corner, first + half, first, TRIANGLE),
                || {
                    self.both(|| self.triangle(top, first), || self.triangle(bottom, first + half));
                },
            );
            return;
        }
        triangular::matmul(
            out.rb_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            self.left.subrows(first, n),
            BlockStructure::Rectangular,
            self.right.subcols(first, n),
            BlockStructure::Rectangular,
            self.alpha,
            Par::Seq,
        );
        self.epilogue.run(out, first, first);
    }

    /// The block that starts at (`row`, `col`), in tiles of at most `largest` rows and columns.
    fn rectangle(&self, mut out: MatMut<'_, f32>, row: usize, col: usize, largest: usize) {
        let (rows, cols) = (out.nrows(), out.ncols());
        if rows.max(cols) > largest {
            if rows >= cols {
                let half = half(rows);
                let (top, bottom) = out.split_at_row_mut(half);
                self.both(
                    || self.rectangle(top, row, col, largest),
                    || self.rectangle(bottom, row + half, col, largest),
                );
            } else {
                let half = half(cols);
                let (left, right) = out.split_at_col_mut(half);
                self.both(
                    || self.rectangle(left, row, col, largest),
                    || self.rectangle(right, row, col + half, largest),
                );
            }
            return;
        }
        matmul(
            out.rb_mut(),
            Accum::Replace,
            self.left.subrows(row, rows),
            self.right.subcols(col, cols),
            self.alpha,
            Par::Seq,
        );
        self.epilogue.run(out, row, col);
    }

    fn both(&self, a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
        if self.parallel {
            rayon::join(a, b);
        } else {
            a();
            b();
        }
    }
}

/// About half of `n`, whole cache lines and whole micro-tiles (24 × 4) of the product.
fn half(n: usize) -> usize {
    (n / 2).next_multiple_of(if n > 96 { 48 } else { 16 }).min(n - 1).max(1)
}
