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
/// waste less on packing and divide the work more finely.
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
        Precision::F32 | Precision::Tf32 => {}
        Precision::Bf16 => x.iter_mut().for_each(|x| *x = Precision::Bf16.round(*x)),
        Precision::Fp16 => x.iter_mut().for_each(|x| *x = Precision::Fp16.round(*x)),
    }
}

/// Lower triangle of `alpha·left·right` and its epilogue, copied to the upper one: symmetric to the bit.
pub(super) fn symmetric_product(
    out: MatMut<'_, f32>,
    alpha: f32,
    left: MatRef<'_, f32>,
    right: MatRef<'_, f32>,
    epilogue: Epilogue<'_>,
    parallel: bool,
) {
    let tile = tile_side(out.nrows(), out.ncols(), TRIANGLE);
    Product { alpha, left, right, epilogue, tile, parallel }.triangle(out, 0);
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
    let tile = tile_side(out.nrows(), out.ncols(), RECTANGLE);
    Product { alpha, left, right, epilogue, tile, parallel }.rectangle(out, None, (0, 0));
}

/// A product whose result is cut in halves until the pieces are tiles.
struct Product<'a> {
    alpha: f32,
    left: MatRef<'a, f32>,
    right: MatRef<'a, f32>,
    epilogue: Epilogue<'a>,
    /// Largest side of a tile.
    tile: usize,
    parallel: bool,
}

/// `largest`, or less where the result would be fewer than about four tiles: two threads want one each, and
/// one to even out. Depends on the shape alone.
fn tile_side(rows: usize, cols: usize, largest: usize) -> usize {
    (rows * cols / 4).isqrt().next_multiple_of(48).clamp(48, largest)
}

impl Product<'_> {
    /// The diagonal block that starts at (`first`, `first`), mirrored.
    fn triangle(&self, mut out: MatMut<'_, f32>, first: usize) {
        let n = out.nrows();
        if n > self.tile {
            let half = half(n);
            let (top, upper, corner, bottom) = out.split_at_mut(half, half);
            let upper = Some(upper.transpose_mut());
            self.both(
                || self.rectangle(corner, upper, (first + half, first)),
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
        self.epilogue.run(out.rb_mut(), first, first);
        mirror(out);
    }

    /// The block that starts at `at`, in tiles; each is copied to the same place of `mirrored`, the transposed
    /// view of the block on the other side of the diagonal.
    fn rectangle(
        &self,
        mut out: MatMut<'_, f32>,
        mirrored: Option<MatMut<'_, f32>>,
        at: (usize, usize),
    ) {
        let ((row, col), rows, cols) = (at, out.nrows(), out.ncols());
        if rows.max(cols) > self.tile {
            let down = rows >= cols;
            let half = half(rows.max(cols));
            let (first, second) = split_in_two(out, half, down);
            let (first_mirrored, second_mirrored) =
                match mirrored.map(|m| split_in_two(m, half, down)) {
                    Some((a, b)) => (Some(a), Some(b)),
                    None => (None, None),
                };
            let next = if down { (row + half, col) } else { (row, col + half) };
            self.both(
                || self.rectangle(first, first_mirrored, at),
                || self.rectangle(second, second_mirrored, next),
            );
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
        self.epilogue.run(out.rb_mut(), row, col);
        if let Some(mirrored) = mirrored {
            copy_transposed(out.as_ref(), mirrored.transpose_mut());
        }
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

fn split_in_two(m: MatMut<'_, f32>, half: usize, down: bool) -> (MatMut<'_, f32>, MatMut<'_, f32>) {
    if down { m.split_at_row_mut(half) } else { m.split_at_col_mut(half) }
}

/// Side of the blocks in which matrices are transposed: source and target lines stay in the first-level cache.
const BLOCK: usize = 16;

/// Copies the lower triangle of a square block to the upper one.
fn mirror(mut a: MatMut<'_, f32>) {
    let n = a.nrows();
    if n <= BLOCK {
        for i in 0..n {
            for j in 0..i {
                a[(j, i)] = a[(i, j)];
            }
        }
        return;
    }
    let half = (n / 2).next_multiple_of(BLOCK);
    let (top, upper, corner, bottom) = a.split_at_mut(half, half);
    copy_transposed(corner.as_ref(), upper);
    mirror(top);
    mirror(bottom);
}

/// `to ← fromᵀ`, both row-major, block by block through a buffer, so that lines are read and written whole.
fn copy_transposed(from: MatRef<'_, f32>, mut to: MatMut<'_, f32>) {
    let mut buffer = [0.0f32; BLOCK * BLOCK];
    let (rows, cols) = (from.nrows(), from.ncols());
    for i in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - i);
        for j in (0..cols).step_by(BLOCK) {
            let width = BLOCK.min(cols - j);
            for (k, row) in from.submatrix(i, j, height, width).row_iter().enumerate() {
                let Some(row) = row.try_as_row_major() else { continue };
                for (line, &x) in buffer.chunks_mut(BLOCK).zip(row.as_slice()) {
                    line[k] = x;
                }
            }
            let target = to.rb_mut().submatrix_mut(j, i, width, height);
            for (row, line) in target.row_iter_mut().zip(buffer.chunks(BLOCK)) {
                let Some(row) = row.try_as_row_major_mut() else { continue };
                row.as_slice_mut().copy_from_slice(&line[..height]);
            }
        }
    }
}
