//! How orthogonal a result is, and how far from the exact polar factor of what it came from; all in f64.

use anyhow::{Result, anyhow};
use faer::{Mat, MatRef};
use muon_cuda::reference::Matrix;
use serde::Serialize;

/// Errors of one matrix, or the largest ones of several. With `X` the result, n its short side and `XXᵀ` the
/// Gram matrix of that side:
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Errors {
    /// `‖XXᵀ − I‖_F / √n`.
    pub(crate) gram: f64,
    /// Largest `|(XXᵀ)ᵢᵢ − 1|`.
    pub(crate) gram_diagonal: f64,
    /// Largest `|(XXᵀ)ᵢⱼ|`, i ≠ j.
    pub(crate) gram_off_diagonal: f64,
    /// `‖X − Q‖_F / ‖Q‖_F`, Q the exact polar factor; absent where it was not asked for.
    pub(crate) polar: Option<f64>,
}

impl Errors {
    /// The larger of each.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            gram: self.gram.max(other.gram),
            gram_diagonal: self.gram_diagonal.max(other.gram_diagonal),
            gram_off_diagonal: self.gram_off_diagonal.max(other.gram_off_diagonal),
            polar: match (self.polar, other.polar) {
                (Some(a), Some(b)) => Some(a.max(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

/// Whether the exact polar factor is worth its singular value decomposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exact {
    /// Compare with it.
    Compare,
    /// Leave it out.
    Skip,
}

/// Errors of a result `[rows, cols]` for its input.
///
/// # Errors
/// A singular value decomposition that does not converge.
pub(crate) fn errors(
    input: &[f64],
    result: &[f64],
    rows: usize,
    cols: usize,
    exact: Exact,
) -> Result<Errors> {
    let x = MatRef::from_row_major_slice(result, rows, cols);
    let x = if rows <= cols { x } else { x.transpose() };
    let gram: Mat<f64> = x * x.transpose();
    let n = gram.nrows();
    let mut errors = Errors::default();
    let mut sum = 0.0;
    for i in 0..n {
        for j in 0..n {
            let identity = if i == j { 1.0 } else { 0.0 };
            let error = (gram[(i, j)] - identity).abs();
            sum += error * error;
            let worst =
                if i == j { &mut errors.gram_diagonal } else { &mut errors.gram_off_diagonal };
            *worst = worst.max(error);
        }
    }
    errors.gram = (sum / n as f64).sqrt();
    if exact == Exact::Compare {
        // The factor does not depend on the scale, and squares of elements do.
        let (input, _) = Matrix::new(rows, cols, input.to_vec())?.leveled();
        let a = MatRef::from_row_major_slice(input.data(), rows, cols);
        let q = polar_factor(if rows <= cols { a } else { a.transpose() })?;
        let norm = q.norm_l2();
        errors.polar = Some(if norm > 0.0 { (x - q).norm_l2() / norm } else { x.norm_l2() });
    }
    Ok(errors)
}

/// `UVᵀ` over the singular values that are not zero to rounding.
fn polar_factor(a: MatRef<'_, f64>) -> Result<Mat<f64>> {
    let svd = a
        .thin_svd()
        .map_err(|e| anyhow!("singular value decomposition did not converge: {e:?}"))?;
    let sigma = svd.S().column_vector();
    let floor = sigma[0] * a.nrows().max(a.ncols()) as f64 * f64::EPSILON;
    let rank = (0..sigma.nrows()).take_while(|&i| sigma[i] > floor).count();
    Ok(svd.U().get(.., ..rank) * svd.V().get(.., ..rank).transpose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orthogonal_matrix_has_no_error_and_a_stretched_one_the_right_one() {
        let (c, s) = (0.6, 0.8);
        let q = [c, s, 0.0, -s, c, 0.0];
        let e = errors(&q, &q, 2, 3, Exact::Compare).unwrap();
        assert!(e.gram < 1e-15 && e.polar.unwrap() < 1e-15, "{e:?}");
        // 2Q has Gram matrix 4I and lies ‖Q‖ away from Q; tall and wide agree.
        let twice = q.map(|x| 2.0 * x);
        let e = errors(&q, &twice, 2, 3, Exact::Compare).unwrap();
        assert!((e.gram - 3.0).abs() < 1e-14 && (e.polar.unwrap() - 1.0).abs() < 1e-14, "{e:?}");
        let tall = [c, -s, s, c, 0.0, 0.0].map(|x| 2.0 * x);
        let t = errors(&tall, &tall, 3, 2, Exact::Compare).unwrap();
        assert!((t.gram - e.gram).abs() < 1e-14 && t.gram_off_diagonal < 1e-14, "{t:?}");
        // A zero matrix has the polar factor zero.
        let z = errors(&[0.0; 6], &[0.0; 6], 2, 3, Exact::Compare).unwrap();
        assert_eq!((z.polar, z.gram_diagonal), (Some(0.0), 1.0));
        assert_eq!(errors(&q, &q, 2, 3, Exact::Skip).unwrap().polar, None);
    }
}
