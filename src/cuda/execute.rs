//! Executes a recipe on the first slots of a bucket: products by cublasLt, the rest by kernels.

use super::gemm::{Gemm, Op as Transpose, Product};
use super::launch::{Launcher, Mode, SymmetricBatch};
use super::table;
use super::workspace::Slots;
use crate::error::Result;
use crate::recipe::{Op, Recipe};
use crate::shape::{MatrixShape, Orientation};
use crate::symmetric::{SymmetricStrips, strips};

/// Runs every operation of a recipe on `batch` matrices.
///
/// # Errors
/// A product that cublasLt does not support; a failed device.
pub(super) fn execute(
    recipe: &Recipe,
    symmetric: &SymmetricStrips,
    shape: MatrixShape,
    slots: &Slots,
    batch: usize,
    launcher: &Launcher,
    gemm: &mut Gemm,
) -> Result<()> {
    if launcher.mode == Mode::TablesOnly {
        return Ok(());
    }
    let n = shape.short();
    let MatrixShape { rows, cols } = shape;
    let wide = shape.orientation() == Orientation::Wide;
    let (input, output, compute) = (slots.dtype, slots.dtype, slots.compute);
    let (x_stride, r_stride) = (slots.iterate_stride, slots.small_stride);
    let matrices = SymmetricBatch { n, stride: r_stride, batch, dtype: slots.dtype };
    // Column-major, a wide row-major X is cols × rows with leading dimension cols, a tall one alike.
    let gram = Product {
        op_a: if wide { Transpose::T } else { Transpose::N },
        op_b: if wide { Transpose::N } else { Transpose::T },
        m: n,
        n,
        k: shape.long(),
        ld: [cols, cols, n],
        stride: [x_stride, x_stride, r_stride],
        batch,
        input,
        output,
        compute,
    };
    // (A·B)ᵀ = Bᵀ·Aᵀ: the operands change places.
    let square = Product {
        op_a: Transpose::N,
        op_b: Transpose::N,
        m: n,
        n,
        k: n,
        ld: [n, n, n],
        stride: [r_stride, r_stride, r_stride],
        batch,
        input,
        output,
        compute,
    };
    // Wide: (Q·X)ᵀ = Xᵀ·Q; tall: (X·Q)ᵀ = Q·Xᵀ, with Q symmetric.
    let apply = Product {
        op_a: Transpose::N,
        op_b: Transpose::N,
        m: cols,
        n: rows,
        k: n,
        ld: [cols, n, cols],
        stride: if wide { [x_stride, r_stride, x_stride] } else { [r_stride, x_stride, x_stride] },
        batch,
        input,
        output,
        compute,
    };
    let apply = if wide { apply } else { Product { ld: [n, cols, cols], ..apply } };
    // Elements from one row of the result to the next in B: rows of X or of A, columns of a tall X.
    let row_of_x = if wide { cols } else { 1 };
    for op in recipe.ops() {
        let cut = Cut { rows: n, strips: symmetric.of(op) };
        match *op {
            Op::Gram { x, out } => {
                let (x, out) = (slots.iterate(x), slots.small(out));
                cut.run(gemm, &gram, row_of_x, [1.0, 0.0], [x, x, out, out])?;
                if cut.is_partial() {
                    launcher.symmetric_mirror(matrices, out)?;
                }
            }
            Op::AolScale { x, r } => {
                let (x, r) = (slots.iterate(x), slots.small(r));
                launcher.aol_factors(matrices, r, slots.factors)?;
                let dtype = slots.dtype;
                launcher.aol_scale(r, slots.factors, (n, n), n, r_stride, batch, 3, dtype)?;
                let by = if wide { 1 } else { 2 };
                launcher.aol_scale(
                    x,
                    slots.factors,
                    (rows, cols),
                    n,
                    x_stride,
                    batch,
                    by,
                    dtype,
                )?;
            }
            Op::Symmetric { out, alpha, a, b, beta, c, gamma, d } => {
                let commute = a == b;
                let [out, a, b, c, d] = [out, a, b, c, d].map(|s| slots.small(s));
                if gamma == 0.0 {
                    let c = if beta == 0.0 { out } else { c };
                    cut.run(gemm, &square, n, [alpha, beta], [b, a, c, out])?;
                    // The square of a symmetric matrix is symmetric as it stands; another product is not.
                    if !commute || cut.is_partial() {
                        launcher.symmetric_mirror(matrices, out)?;
                    }
                } else {
                    let product = Product { output: table::F32, ..square };
                    cut.run(gemm, &product, n, [alpha, 0.0], [b, a, slots.product, slots.product])?;
                    launcher.symmetric_complete(
                        matrices,
                        slots.product,
                        r_stride,
                        c,
                        d,
                        out,
                        beta,
                        gamma,
                    )?;
                }
            }
            Op::Apply { out, alpha, q, x, beta } => {
                let (out, q, x) = (slots.iterate(out), slots.small(q), slots.iterate(x));
                let (a, b) = if wide { (x, q) } else { (q, x) };
                gemm.run(&apply, alpha, a, b, beta, x, out)?;
            }
        }
    }
    Ok(())
}

/// How a symmetric result is formed.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    strips: usize,
}

impl Cut {
    fn is_partial(self) -> bool {
        strips(self.rows, self.strips).count() > 1
    }

    /// Enqueues the product of A, B, C, D strip by strip of the result's rows, which are columns of the column-major D: of
    /// rows `start..end` the columns before `end`. `row_of_b` is the distance in elements of what B contributes to one row
    /// of the result and to the next.
    ///
    /// # Errors
    /// A product that cublasLt does not support; a failed device.
    fn run(
        self,
        gemm: &mut Gemm,
        product: &Product,
        row_of_b: usize,
        [alpha, beta]: [f32; 2],
        [a, b, c, d]: [u64; 4],
    ) -> Result<()> {
        let [_, _, ld] = product.ld;
        let at = |address: u64, elements: usize, dtype: u32| {
            address + elements as u64 * table::element_bytes(dtype)
        };
        for (start, end) in strips(self.rows, self.strips) {
            let strip = Product { m: end, n: end - start, ..*product };
            let b = at(b, start * row_of_b, product.input);
            let [c, d] = [c, d].map(|address| at(address, start * ld, product.output));
            gemm.run(&strip, alpha, a, b, beta, c, d)?;
        }
        Ok(())
    }
}
