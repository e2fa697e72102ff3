//! Singular values of the matrices that Muon orthogonalizes: analytic families, measured ones, and
//! recordings of them during training.
//!
//! Coefficient schedules are compared on spectra. A [`Spectrum`] holds the singular values of one
//! matrix after normalisation by the Frobenius norm, which is all a schedule sees of it.

mod family;
mod quantiles;
mod record;
mod source;

pub use family::SpectrumFamily;
pub use record::{BINS_PER_OCTAVE, LOWEST_OCTAVE, Recording, SpectrumRecord, read_records};
pub use source::load;

use crate::cpu::narrow;
use crate::error::{Error, Result};
use crate::shape::MatrixShape;

/// The singular values of one matrix, scaled to unit Frobenius norm.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    name: String,
    shape: MatrixShape,
    /// Descending, one for each row of the short side, zeros included; their squares sum to 1.
    values: Vec<f64>,
}

impl Spectrum {
    /// A spectrum from singular values in any order and scale.
    ///
    /// # Shapes
    /// One value for each row of the short side of `shape`, zeros included.
    ///
    /// # Errors
    /// No value, another number of them than the short side, one that is negative or not finite, all
    /// of them zero.
    pub fn new(
        name: impl Into<String>,
        shape: MatrixShape,
        mut singular_values: Vec<f64>,
    ) -> Result<Self> {
        let name = name.into();
        if singular_values.is_empty() {
            return Err(Error::invalid_config(format!("spectrum `{name}` has no singular value")));
        }
        if singular_values.len() != shape.short() {
            return Err(Error::shape_mismatch(
                format!("singular values of spectrum `{name}` ({shape})"),
                shape.short(),
                singular_values.len(),
            ));
        }
        if let Some(x) = singular_values.iter().find(|x| !x.is_finite()) {
            return Err(Error::non_finite(format!(
                "spectrum `{name}`: singular values must be finite, found `{x}`"
            )));
        }
        if let Some(x) = singular_values.iter().find(|x| **x < 0.0) {
            return Err(Error::invalid_config(format!(
                "spectrum `{name}`: singular values are not negative, found `{x}`"
            )));
        }
        singular_values.sort_by(|a, b| b.total_cmp(a));
        let largest = singular_values[0];
        if largest == 0.0 {
            return Err(Error::invalid_config(format!(
                "spectrum `{name}` is that of a zero matrix, which has no direction to orthogonalize"
            )));
        }
        // Scaled by the largest first: squares of tiny or huge values leave the range of f64.
        let norm = singular_values.iter().map(|x| (x / largest).powi(2)).sum::<f64>().sqrt();
        singular_values.iter_mut().for_each(|x| *x = *x / largest / norm);
        Ok(Self { name, shape, values: singular_values })
    }

    /// The spectrum of a row-major matrix, by a singular value decomposition in f64.
    ///
    /// # Errors
    /// A length that is not `rows · cols`, a NaN or an infinity, a zero matrix, a decomposition that
    /// does not converge.
    ///
    /// # Cost
    /// About `4·short²·long` f64 FLOPs.
    pub fn of_matrix(name: impl Into<String>, shape: MatrixShape, matrix: &[f64]) -> Result<Self> {
        let name = name.into();
        let (_, values) = singular_values(&name, shape, matrix)?;
        Self::new(name, shape, values)
    }

    /// What it is called in tables and records.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same spectrum under another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The shape of the matrix.
    #[must_use]
    pub fn shape(&self) -> MatrixShape {
        self.shape
    }

    /// Singular values over the Frobenius norm: descending, squares sum to 1.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// How many singular values are not zero.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.values.iter().filter(|x| **x > 0.0).count()
    }

    /// A row-major matrix of unit Frobenius norm with this spectrum in random bases.
    ///
    /// The bases are those of Gaussian matrices (QR in f64), so a seed gives the same matrix on one
    /// machine, and up to rounding on all.
    #[must_use]
    pub fn matrix(&self, seed: u64) -> Vec<f32> {
        self.sample(seed).matrix
    }

    /// [`Spectrum::matrix`] with its polar factor, which the bases give without a decomposition.
    #[must_use]
    pub fn sample(&self, seed: u64) -> Sample {
        let (n, m) = (self.shape.short(), self.shape.long());
        let mut random = Normal::new(seed);
        let u = orthonormal(&mut random, n, n);
        let v = orthonormal(&mut random, m, n);
        let assemble = |value: &dyn Fn(f64) -> f64| {
            let mut right = v.clone();
            for (j, sigma) in self.values.iter().enumerate() {
                right.col_mut(j).iter_mut().for_each(|x| *x *= value(*sigma));
            }
            let x = if self.shape.rows <= self.shape.cols {
                &u * right.transpose()
            } else {
                right * u.transpose()
            };
            let cols = self.shape.cols;
            (0..self.shape.len()).map(|k| narrow(x[(k / cols, k % cols)])).collect()
        };
        Sample {
            matrix: assemble(&|sigma| sigma),
            polar_factor: assemble(&|sigma| if sigma > 0.0 { 1.0 } else { 0.0 }),
        }
    }
}

/// A matrix with a given spectrum, row-major, and what Muon would make of it without any error.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Of unit Frobenius norm.
    pub matrix: Vec<f32>,
    /// Its polar factor; directions of zero singular values are left out.
    pub polar_factor: Vec<f32>,
}

/// The Frobenius norm and the singular values of a matrix, divided by its largest element.
fn singular_values(name: &str, shape: MatrixShape, matrix: &[f64]) -> Result<(f64, Vec<f64>)> {
    if matrix.len() != shape.len() {
        return Err(Error::shape_mismatch(
            format!("elements of matrix `{name}` ({shape})"),
            shape.len(),
            matrix.len(),
        ));
    }
    if let Some(i) = matrix.iter().position(|x| !x.is_finite()) {
        return Err(Error::non_finite(format!(
            "matrix `{name}` ({shape}): element {i} is `{}`; spectra are those of finite matrices",
            matrix[i]
        )));
    }
    let largest = matrix.iter().fold(0.0f64, |a, x| a.max(x.abs()));
    if largest == 0.0 {
        return Ok((0.0, vec![0.0; shape.short()]));
    }
    let scaled = faer::Mat::<f64>::from_fn(shape.rows, shape.cols, |i, j| {
        matrix[i * shape.cols + j] / largest
    });
    let values = scaled.singular_values().map_err(|e| {
        Error::device(format!("singular value decomposition of matrix `{name}` ({shape}): {e:?}"))
    })?;
    // Values below the rounding of the decomposition are what zeros look like.
    let floor = values[0] * shape.long() as f64 * f64::EPSILON;
    let norm = largest * scaled.norm_l2();
    Ok((norm, values.into_iter().map(|x| if x > floor { x } else { 0.0 }).collect()))
}

/// `rows × cols` with orthonormal columns, of a Gaussian matrix.
fn orthonormal(random: &mut Normal, rows: usize, cols: usize) -> faer::Mat<f64> {
    let a = faer::Mat::<f64>::from_fn(rows, cols, |_, _| random.next());
    a.qr().compute_thin_Q()
}

/// Normal numbers from SplitMix64, two at a time (Box and Muller).
struct Normal {
    state: u64,
    spare: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: MatrixShape = MatrixShape { rows: 3, cols: 5 };

    #[test]
    fn values_are_sorted_and_of_unit_norm_at_any_scale() {
        for scale in [1.0, 1e-200, 1e200] {
            let s = Spectrum::new("x", WIDE, vec![0.0, 4.0 * scale, 3.0 * scale]).unwrap();
            assert_eq!((s.values(), s.rank()), (&[0.8, 0.6, 0.0][..], 2));
        }
    }

    #[test]
    fn nonsense_is_refused_by_kind() {
        let refused = |values: Vec<f64>| Spectrum::new("x", WIDE, values).unwrap_err();
        assert!(refused(vec![]).is_invalid_config());
        assert!(refused(vec![1.0]).is_shape_mismatch());
        assert!(refused(vec![1.0, f64::NAN, 1.0]).is_non_finite());
        assert!(refused(vec![1.0, f64::INFINITY, 1.0]).is_non_finite());
        assert!(refused(vec![1.0, -1.0, 1.0]).is_invalid_config());
        assert!(refused(vec![0.0; 3]).to_string().contains("zero matrix"));
        let e = Spectrum::of_matrix("w", WIDE, &[0.0; 14]).unwrap_err();
        assert!(e.is_shape_mismatch(), "{e}");
        let mut bad = [1.0; 15];
        bad[7] = f64::NAN;
        let e = Spectrum::of_matrix("w", WIDE, &bad).unwrap_err();
        assert!(e.is_non_finite() && e.to_string().contains("element 7"), "{e}");
    }

    #[test]
    fn a_matrix_made_from_a_spectrum_has_it() {
        for shape in [MatrixShape { rows: 6, cols: 11 }, MatrixShape { rows: 11, cols: 6 }] {
            let s = Spectrum::new("x", shape, vec![1.0, 0.5, 0.25, 1e-2, 1e-3, 0.0]).unwrap();
            let matrix: Vec<f64> = s.matrix(7).into_iter().map(f64::from).collect();
            let again = Spectrum::of_matrix("y", shape, &matrix).unwrap();
            // The matrix is rounded to f32: an absolute error of u·‖X‖_F = 6e-8 in every value.
            for (a, b) in s.values().iter().zip(again.values()) {
                assert!((a - b).abs() < 6e-8, "{shape} {a} {b}");
            }
            assert_eq!(s.matrix(7), s.matrix(7));
            assert_ne!(s.matrix(7), s.matrix(8));
            let sample = s.sample(7);
            let polar: Vec<f64> = sample.polar_factor.iter().map(|x| f64::from(*x)).collect();
            // tr(XᵀQ) is the sum of the singular values, and Q has five of 1.
            let overlap: f64 = matrix.iter().zip(&polar).map(|(a, b)| a * b).sum();
            assert!((overlap - s.values().iter().sum::<f64>()).abs() < 1e-6);
            let again = Spectrum::of_matrix("q", shape, &polar).unwrap();
            assert!((again.values()[4] - 0.2f64.sqrt()).abs() < 1e-6 && again.values()[5] < 1e-6);
        }
    }
}
