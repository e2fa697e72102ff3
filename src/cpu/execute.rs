//! Executes a recipe on one matrix: products in fixed tiles, symmetric results from one triangle.
//!
//! The partition of a product depends on its shape alone and no sum is split across threads, so results
//! are the same bits for every number of threads, batched or one by one.

use faer::{MatMut, MatRef};

use super::tile::{self, Epilogue, Term};
use crate::error::{Error, Result};
use crate::memory;
use crate::precision::Precision;
use crate::recipe::{Iterate, Op, Recipe, Small};
use crate::shape::{MatrixShape, Orientation};

/// Workspace of one matrix: two iterates, and the `short × short` buffers of its recipe.
#[derive(Debug)]
pub(super) struct MatrixBuffers {
    pub(super) x: [Vec<f32>; 2],
    small: Vec<Vec<f32>>,
    /// What a product reads where that is not what is stored; empty elsewhere.
    operands: [Vec<f32>; 2],
}

impl MatrixBuffers {
    /// # Errors
    /// No memory.
    pub(super) fn new(recipe: &Recipe, shape: MatrixShape, precision: Precision) -> Result<Self> {
        let n = shape.short();
        let operands = if precision == Precision::Tf32 { [shape.len(), n * n] } else { [0, 0] };
        Ok(Self {
            x: [workspace(shape.len(), shape)?, workspace(shape.len(), shape)?],
            // One by one: a cloned buffer is written here, page by page, instead of where it is first used.
            small: (0..recipe.small_buffers())
                .map(|_| workspace(n * n, shape))
                .collect::<Result<_>>()?,
            operands: [workspace(operands[0], shape)?, workspace(operands[1], shape)?],
        })
    }

    #[cfg(test)]
    pub(super) fn small(&self) -> &[Vec<f32>] {
        &self.small
    }

    /// For orthogonalizers that work in place.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn direction_only(shape: MatrixShape) -> Result<Self> {
        Ok(Self {
            x: [workspace(shape.len(), shape)?, Vec::new()],
            small: Vec::new(),
            operands: [Vec::new(), Vec::new()],
        })
    }
}

fn workspace(elements: usize, shape: MatrixShape) -> Result<Vec<f32>> {
    memory::zeros(elements, format_args!("the workspace of a {shape} matrix"))
}

/// Runs every operation of a recipe; the iterate starts in `x[0]` and ends in [`Recipe::result`].
///
/// Call it inside a rayon pool if `parallel`; otherwise it stays on this thread.
pub(super) fn execute(
    recipe: &Recipe,
    shape: MatrixShape,
    precision: Precision,
    buffers: &mut MatrixBuffers,
    parallel: bool,
) {
    let run = Run { shape, precision, parallel };
    for op in recipe.ops() {
        match *op {
            Op::Gram { x, out } => {
                let mut result = std::mem::take(&mut buffers.small[out.0]);
                let x = operand(precision, &buffers.x[index(x)], &mut buffers.operands[0]);
                run.gram(x, &mut result);
                buffers.small[out.0] = result;
            }
            Op::AolScale { x, r } => {
                let [x0, x1] = &mut buffers.x;
                // The other iterate is free until the first product with the iterate.
                let (x, spare) = if x == Iterate::X0 { (x0, x1) } else { (x1, x0) };
                let scale = &mut spare[..shape.short()];
                run.aol_scale(x, &mut buffers.small[r.0], scale);
            }
            Op::Symmetric { out, alpha, a, b, beta, c, gamma, d } => {
                let mut result = std::mem::take(&mut buffers.small[out.0]);
                let small = |s: Small| buffers.small[s.0].as_slice();
                let terms = [run.term(beta, small(c)), run.term(gamma, small(d))];
                let [first, second] = &mut buffers.operands;
                let left = operand(precision, small(a), first);
                let right = if a == b { left } else { operand(precision, small(b), second) };
                run.symmetric(alpha, left, right, terms, &mut result);
                buffers.small[out.0] = result;
            }
            Op::Apply { out, alpha, q, x, beta } => {
                let mut result = std::mem::take(&mut buffers.x[index(out)]);
                let x = &buffers.x[index(x)];
                let [first, second] = &mut buffers.operands;
                let read = operand(precision, x, first);
                let q = operand(precision, &buffers.small[q.0], second);
                run.apply(alpha, q, read, run.addend(beta, x), &mut result);
                buffers.x[index(out)] = result;
            }
        }
    }
}

fn index(x: Iterate) -> usize {
    match x {
        Iterate::X0 => 0,
        Iterate::X1 => 1,
    }
}

/// What a product reads of a stored matrix: itself, or its rounding, which goes to `rounded`.
fn operand<'a>(precision: Precision, stored: &'a [f32], rounded: &'a mut [f32]) -> &'a [f32] {
    if precision != Precision::Tf32 {
        return stored;
    }
    let rounded = &mut rounded[..stored.len()];
    rounded.iter_mut().zip(stored).for_each(|(r, &x)| *r = precision.round_operand(x));
    rounded
}

/// What the operations of one matrix share.
struct Run {
    shape: MatrixShape,
    precision: Precision,
    parallel: bool,
}

impl Run {
    fn square<'a>(&self, a: &'a [f32]) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice(a, self.shape.short(), self.shape.short())
    }

    fn iterate<'a>(&self, x: &'a [f32]) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice(x, self.shape.rows, self.shape.cols)
    }

    fn term<'a>(&self, factor: f32, c: &'a [f32]) -> Term<'a> {
        Term { factor, matrix: c, cols: self.shape.short() }
    }

    /// The iterate as an addend.
    fn addend<'a>(&self, factor: f32, x: &'a [f32]) -> Term<'a> {
        Term { factor, matrix: x, cols: self.shape.cols }
    }

    fn epilogue<'a>(&self, terms: [Term<'a>; 2]) -> Epilogue<'a> {
        Epilogue { precision: self.precision.stored(), terms }
    }

    fn gram(&self, x: &[f32], out: &mut [f32]) {
        let n = self.shape.short();
        let x = self.iterate(x);
        let (left, right) = match self.shape.orientation() {
            Orientation::Wide => (x, x.transpose()),
            Orientation::Tall => (x.transpose(), x),
        };
        let epilogue = self.epilogue([Term::NONE; 2]);
        let view = MatMut::from_row_major_slice_mut(out, n, n);
        tile::symmetric_product(view, 1.0, left, right, epilogue, self.parallel);
    }

    fn symmetric(&self, alpha: f32, a: &[f32], b: &[f32], terms: [Term<'_>; 2], out: &mut [f32]) {
        let n = self.shape.short();
        // b is symmetric: its rows are its columns, and rows are contiguous.
        let (left, right) = (self.square(a), self.square(b).transpose());
        let view = MatMut::from_row_major_slice_mut(out, n, n);
        tile::symmetric_product(view, alpha, left, right, self.epilogue(terms), self.parallel);
    }

    fn apply(&self, alpha: f32, q: &[f32], x: &[f32], addend: Term<'_>, out: &mut [f32]) {
        let MatrixShape { rows, cols } = self.shape;
        let (left, right) = match self.shape.orientation() {
            Orientation::Wide => (self.square(q), self.iterate(x)),
            Orientation::Tall => (self.iterate(x), self.square(q)),
        };
        let epilogue = self.epilogue([addend, Term::NONE]);
        let view = MatMut::from_row_major_slice_mut(out, rows, cols);
        tile::product(view, alpha, left, right, epilogue, self.parallel);
    }

    fn aol_scale(&self, x: &mut [f32], r: &mut [f32], scale: &mut [f32]) {
        let n = self.shape.short();
        let cols = self.shape.cols;
        for (d, row) in scale.iter_mut().zip(r.chunks(n)) {
            let sum: f32 = row.iter().map(|r| r.abs()).sum();
            *d = 1.0 / sum.max(f32::MIN_POSITIVE).sqrt();
        }
        for (i, row) in r.chunks_mut(n).enumerate() {
            for (r, dj) in row.iter_mut().zip(&*scale) {
                *r = self.precision.round(*r * (scale[i] * dj));
            }
        }
        for (i, row) in x.chunks_mut(cols).enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                let d = match self.shape.orientation() {
                    Orientation::Wide => scale[i],
                    Orientation::Tall => scale[j],
                };
                *x = self.precision.round(*x * d);
            }
        }
    }
}

/// Replaces a matrix by its exact polar factor `UVᵀ`, by a singular value decomposition in f64.
///
/// Singular values below `max(rows, cols) · 2⁻⁵² · σ₁` count as zero: their directions are left out, and a
/// zero matrix stays zero.
///
/// # Errors
/// The decomposition does not converge.
pub(crate) fn polar_factor_svd(shape: MatrixShape, x: &mut [f32]) -> Result<()> {
    let MatrixShape { rows, cols } = shape;
    // A power of two brings the largest element near 1: scaling a gradient by 2^k changes no bit of the result.
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return Ok(());
    }
    let scale = f64::from_bits(
        (1023u64 << 52).wrapping_mul(2).wrapping_sub(f64::from(largest).to_bits()) & (0x7ff << 52),
    );
    let a = faer::Mat::<f64>::from_fn(rows, cols, |i, j| f64::from(x[i * cols + j]) * scale);
    let svd = a.thin_svd().map_err(|e| {
        Error::device(format!("singular value decomposition of a {shape} matrix: {e:?}"))
    })?;
    let sigma = svd.S().column_vector();
    let floor = sigma[0] * shape.long() as f64 * f64::EPSILON;
    let rank = (0..sigma.nrows()).take_while(|&i| sigma[i] > floor).count();
    let (u, v) = (svd.U().get(.., ..rank), svd.V().get(.., ..rank));
    let polar = u * v.transpose();
    for (i, row) in x.chunks_mut(cols).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            *x = super::narrow(polar[(i, j)]);
        }
    }
    Ok(())
}
