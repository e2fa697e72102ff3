//! The oracle: one whole step in f64, short and plain, sharing no arithmetic with the devices.
//!
//! It answers what a step should have been. Both ends of the argument for Muon are here: gradient descent
//! ([`Orthogonalizer::Identity`], [`Orthogonalizer::Frobenius`]) and the exact polar factor
//! ([`polar_factor`]); polynomials lie between. Everything is O(n·m·min) loops over `Vec<f64>`; use it to
//! check a device, not to train.

use crate::coefficients::{CoefficientSchedule, Normalization};
use crate::config::{AdamWRule, MomentumMode, MuonRule, Nesterov, Orthogonalizer, WeightDecayMode};
use crate::error::{Error, Result};
use crate::shape::{Layout, MatrixShape};

/// A dense row-major f64 matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    /// A matrix from its rows, one after the other.
    ///
    /// # Errors
    /// `data` does not have `rows · cols` elements.
    pub fn new(rows: usize, cols: usize, data: Vec<f64>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::shape_mismatch(
                format!("elements of a {rows}x{cols} matrix"),
                format!("{rows} * {cols}"),
                data.len(),
            ));
        }
        Ok(Self { rows, cols, data })
    }

    /// A matrix from f32 elements.
    ///
    /// # Errors
    /// `data` does not have `rows · cols` elements.
    pub fn from_f32(rows: usize, cols: usize, data: &[f32]) -> Result<Self> {
        Self::new(rows, cols, data.iter().map(|&x| f64::from(x)).collect())
    }

    /// The matrix of zeros.
    #[must_use]
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements, row by row.
    #[must_use]
    pub fn data(&self) -> &[f64] {
        &self.data
    }

    /// The elements, row by row.
    pub fn data_mut(&mut self) -> &mut [f64] {
        &mut self.data
    }

    /// `Aᵀ`.
    #[must_use]
    pub fn transpose(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        for i in 0..self.rows {
            for j in 0..self.cols {
                out.data[j * self.rows + i] = self.data[i * self.cols + j];
            }
        }
        out
    }

    /// `A·B`; the inner dimensions are the caller's to match.
    fn times(&self, b: &Self) -> Self {
        let mut out = Self::zeros(self.rows, b.cols);
        for i in 0..self.rows {
            let row = &mut out.data[i * b.cols..(i + 1) * b.cols];
            for (k, a) in self.data[i * self.cols..(i + 1) * self.cols].iter().enumerate() {
                for (o, b) in row.iter_mut().zip(&b.data[k * b.cols..(k + 1) * b.cols]) {
                    *o += a * b;
                }
            }
        }
        out
    }

    /// `alpha·A + beta·B` for matrices of one shape.
    fn combine(&self, alpha: f64, b: &Self, beta: f64) -> Self {
        let data = self.data.iter().zip(&b.data).map(|(a, b)| alpha * a + beta * b).collect();
        Self { data, ..*self }
    }

    /// `alpha·A`.
    fn scaled(&self, alpha: f64) -> Self {
        Self { data: self.data.iter().map(|a| alpha * a).collect(), ..*self }
    }

    /// `‖A‖_F`; infinite where it is beyond f64, although squares of the elements may be beyond it.
    #[must_use]
    pub fn frobenius_norm(&self) -> f64 {
        let (a, exponent) = self.leveled();
        times_power_of_two(a.norm_of_level(), exponent)
    }

    /// The norm of a matrix whose squares neither overflow nor vanish.
    fn norm_of_level(&self) -> f64 {
        self.data.iter().map(|a| a * a).sum::<f64>().sqrt()
    }

    /// `A·2^−e` with its largest element in [1, 2), and `e`; a zero matrix, or one that is not finite, as it is. Nothing
    /// is rounded but elements 2⁻¹⁰²² times the largest. What does not depend on the scale of a matrix is the same of
    /// both, and the squares of this one neither overflow nor vanish.
    #[must_use]
    pub fn leveled(&self) -> (Self, i32) {
        let largest = self.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let exponent = exponent_of(largest);
        let data = self.data.iter().map(|a| times_power_of_two(*a, -exponent)).collect();
        (Self { data, ..*self }, exponent)
    }

    /// `A / (safety · max(‖A‖_F, norm_floor))`.
    fn normalized(&self, norm_floor: f64, safety: f64) -> Self {
        let (a, exponent) = self.leveled();
        let floor = times_power_of_two(norm_floor, -exponent);
        a.scaled(1.0 / (safety * a.norm_of_level().max(floor)))
    }
}

/// `e` with `2^e <= x < 2^(e + 1)`; 0 for zero and for what is not finite.
fn exponent_of(x: f64) -> i32 {
    if x == 0.0 || !x.is_finite() {
        return 0;
    }
    let (x, shift) = if x < f64::MIN_POSITIVE { (x * 2f64.powi(64), -64) } else { (x, 0) };
    let biased = (x.to_bits() >> 52) & 0x7ff;
    i32::try_from(biased).map_or(0, |biased| biased - 1023 + shift)
}

/// `x·2^e` in two factors: a power of two for every `e` there is may be beyond f64.
fn times_power_of_two(x: f64, e: i32) -> f64 {
    let half = e / 2;
    x * 2f64.powi(half) * 2f64.powi(e - half)
}

/// What an [`Orthogonalizer`] makes of a direction, in f64.
#[must_use]
pub fn orthogonalize(
    orthogonalizer: &Orthogonalizer,
    direction: &Matrix,
    norm_floor: f64,
) -> Matrix {
    match orthogonalizer {
        Orthogonalizer::Identity => direction.clone(),
        Orthogonalizer::Frobenius => direction.normalized(norm_floor, 1.0),
        Orthogonalizer::ExactSvd => polar_factor(direction),
        Orthogonalizer::Polynomial { schedule, iterations } => {
            let schedule = match iterations.map(|n| schedule.with_iterations(n)) {
                Some(Ok(resized)) => resized,
                // A rule with an impossible number of iterations does not validate.
                Some(Err(_)) | None => schedule.clone(),
            };
            newton_schulz(&schedule, direction, norm_floor)
        }
    }
}

/// Newton–Schulz iterations: normalise, then `X ← p(X)` for each polynomial in turn.
///
/// Odd powers of `X` are formed with the Gram matrix of the short side: `p(X) = (c1 + c3·A + c5·A² + …)·X`,
/// `A = XXᵀ`.
#[must_use]
pub fn newton_schulz(
    schedule: &CoefficientSchedule,
    direction: &Matrix,
    norm_floor: f64,
) -> Matrix {
    if direction.rows > direction.cols {
        return newton_schulz(schedule, &direction.transpose(), norm_floor).transpose();
    }
    let safety = match schedule.normalization() {
        Normalization::Frobenius { safety } => safety,
        Normalization::Aol => 1.0,
    };
    let mut x = direction.normalized(norm_floor, safety);
    if schedule.normalization() == Normalization::Aol {
        let a = x.times(&x.transpose());
        for i in 0..x.rows {
            let sum: f64 = a.data[i * a.cols..(i + 1) * a.cols].iter().map(|a| a.abs()).sum();
            let scale = 1.0 / sum.max(f64::from(f32::MIN_POSITIVE)).sqrt();
            for x in &mut x.data[i * x.cols..(i + 1) * x.cols] {
                *x *= scale;
            }
        }
    }
    for p in schedule.polynomials() {
        let a = x.times(&x.transpose());
        // Horner's rule on matrices: start with the highest coefficient times A and add the next to the diagonal.
        let mut factor = Matrix::zeros(x.rows, x.rows);
        for (i, c) in p.coefficients().iter().rev().enumerate() {
            if i > 0 {
                factor = factor.times(&a);
            }
            for k in 0..factor.rows {
                factor.data[k * factor.cols + k] += c;
            }
        }
        x = factor.times(&x);
    }
    x
}

/// The exact polar factor `UVᵀ` of `A = UΣVᵀ`, by one-sided Jacobi rotations.
///
/// Columns of the tall orientation are rotated against each other until all are orthogonal; then
/// `A·V·Σ⁻¹·Vᵀ` is the factor. Singular values below `max(rows, cols) · 2⁻⁵² · σ₁` count as zero and their
/// directions are left out, so a matrix of rank r gives a factor with r unit singular values.
#[must_use]
pub fn polar_factor(a: &Matrix) -> Matrix {
    if a.rows < a.cols {
        return polar_factor(&a.transpose()).transpose();
    }
    let (a, _) = a.leveled();
    let (sigma, u, v) = jacobi(&a);
    let floor = sigma.iter().fold(0.0f64, |m, s| m.max(*s)) * a.rows as f64 * f64::EPSILON;
    let mut out = Matrix::zeros(a.rows, a.cols);
    for (k, s) in sigma.iter().enumerate() {
        if *s > floor {
            for i in 0..a.rows {
                let left = u.data[i * u.cols + k] / s;
                for j in 0..a.cols {
                    out.data[i * a.cols + j] += left * v.data[j * v.cols + k];
                }
            }
        }
    }
    out
}

/// The singular values, largest first.
#[must_use]
pub fn singular_values(a: &Matrix) -> Vec<f64> {
    let tall = if a.rows < a.cols { a.transpose() } else { a.clone() };
    let (mut sigma, _, _) = jacobi(&tall);
    sigma.sort_by(|a, b| b.total_cmp(a));
    sigma
}

/// One-sided Jacobi on a tall matrix: singular values, `A·V` (columns of length σ), `V`.
fn jacobi(a: &Matrix) -> (Vec<f64>, Matrix, Matrix) {
    let n = a.cols;
    // Columns are worked on, so they are stored as rows. A power of two brings the largest element near 1:
    // squares then neither overflow nor vanish.
    let largest = a.data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let scale =
        if largest > 0.0 && largest.is_finite() { 2f64.powf(-largest.log2().floor()) } else { 1.0 };
    let mut columns = a.scaled(scale).transpose();
    let mut v = Matrix::zeros(n, n);
    for i in 0..n {
        v.data[i * n + i] = 1.0;
    }
    let dot = |m: &Matrix, i: usize, j: usize| -> f64 {
        let (x, y) = (&m.data[i * m.cols..(i + 1) * m.cols], &m.data[j * m.cols..(j + 1) * m.cols]);
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    };
    let rotate = |m: &mut Matrix, i: usize, j: usize, c: f64, s: f64| {
        let (head, tail) = m.data.split_at_mut(j * m.cols);
        let (x, y) = (&mut head[i * m.cols..(i + 1) * m.cols], &mut tail[..m.cols]);
        for (x, y) in x.iter_mut().zip(y) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    };
    // Quadratic convergence: a dozen sweeps suffice; 60 bound a matrix with NaN.
    for _ in 0..60 {
        let mut rotated = false;
        for i in 0..n {
            for j in i + 1..n {
                let (alpha, beta, gamma) =
                    (dot(&columns, i, i), dot(&columns, j, j), dot(&columns, i, j));
                if gamma.abs() <= f64::EPSILON * (alpha * beta).sqrt() || gamma == 0.0 {
                    continue;
                }
                rotated = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(&mut columns, i, j, c, c * t);
                rotate(&mut v, i, j, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    let sigma = (0..n).map(|i| dot(&columns, i, i).sqrt() / scale).collect();
    (sigma, columns.transpose().scaled(1.0 / scale), v.transpose())
}

/// One step of one matrix under the Muon rule; `lr` already holds the schedule's factor.
///
/// ```text
/// m ← βm + (1−β)g            (EMA)      m ← βm + g       (sum)
/// d ← (1−β)g + βm, g + βm, or m          (Nesterov on, on, off)
/// W ← W·(1 − lr·λ) − lr·scale·orthogonalize(d)
/// ```
/// With L2 the first line takes `g + λW` for `g`, and the last keeps `W` whole.
pub fn muon_step(
    rule: &MuonRule,
    layout: Layout,
    lr: f64,
    param: &mut Matrix,
    momentum_buffer: &mut Matrix,
    grad: &Matrix,
) {
    let beta = rule.momentum;
    let fresh = match rule.momentum_mode {
        MomentumMode::Ema => 1.0 - beta,
        MomentumMode::Sum => 1.0,
    };
    let decayed;
    let grad = match rule.weight_decay_mode {
        WeightDecayMode::L2 => {
            decayed = grad.combine(1.0, param, rule.weight_decay);
            &decayed
        }
        _ => grad,
    };
    *momentum_buffer = momentum_buffer.combine(beta, grad, fresh);
    let direction = match rule.nesterov {
        Nesterov::On => grad.combine(fresh, momentum_buffer, beta),
        Nesterov::Off => momentum_buffer.clone(),
    };
    let update = orthogonalize(&rule.orthogonalizer, &direction, rule.norm_floor);
    let shape = MatrixShape { rows: param.rows, cols: param.cols };
    let step = lr * rule.update_scale.factor(shape, layout);
    for (p, u) in param.data.iter_mut().zip(&update.data) {
        let opposed = (*p > 0.0 && *u < 0.0) || (*p < 0.0 && *u > 0.0);
        let keep = match rule.weight_decay_mode {
            WeightDecayMode::Decoupled => 1.0 - lr * rule.weight_decay,
            WeightDecayMode::Cautious if opposed => 1.0,
            WeightDecayMode::Cautious => 1.0 - lr * rule.weight_decay,
            WeightDecayMode::Independent => 1.0 - rule.weight_decay,
            WeightDecayMode::Palm => 1.0 - lr * lr * rule.weight_decay,
            WeightDecayMode::L2 => 1.0,
        };
        *p = *p * keep - step * u;
    }
}

/// The nearest bf16 number, ties to even, rounded once: what [`Bf16Params::Nearest`](crate::Bf16Params::Nearest) makes of a
/// parameter after each step.
#[must_use]
pub fn round_to_bf16(x: f64) -> f64 {
    // 7 bits of mantissa behind the leading one; below the smallest normal number the spacing stays.
    let (smallest_normal, spacing) = (2f64.powi(-126), 2f64.powi(-133));
    if x.abs() < smallest_normal || !x.is_finite() {
        return if x.is_finite() { (x / spacing).round_ties_even() * spacing } else { x };
    }
    let bits = x.to_bits();
    let dropped = 52 - 7;
    let up = (1 << (dropped - 1)) - 1 + (bits >> dropped & 1);
    let rounded = f64::from_bits((bits + up) >> dropped << dropped);
    if rounded.abs() >= 2f64.powi(128) { f64::INFINITY.copysign(x) } else { rounded }
}

/// One step of one tensor under the AdamW rule; `step` counts from 1.
pub fn adamw_step(
    rule: &AdamWRule,
    lr: f64,
    step: u64,
    param: &mut [f64],
    exp_avg: &mut [f64],
    exp_avg_sq: &mut [f64],
    grad: &[f64],
) {
    let t = step as f64;
    let (bias1, bias2) = (1.0 - rule.beta1.powf(t), 1.0 - rule.beta2.powf(t));
    for (((p, m), v), g) in param.iter_mut().zip(exp_avg).zip(exp_avg_sq).zip(grad) {
        *m = rule.beta1 * *m + (1.0 - rule.beta1) * g;
        *v = rule.beta2 * *v + (1.0 - rule.beta2) * g * g;
        let denominator = (*v / bias2).sqrt() + rule.eps;
        *p = *p * (1.0 - lr * rule.weight_decay) - lr / bias1 * *m / denominator;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::presets;

    /// A fixed pseudo-random matrix (xorshift), uniform in (−1, 1).
    fn sample(rows: usize, cols: usize, mut seed: u64) -> Matrix {
        let data = (0..rows * cols)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed >> 11) as f64 / f64::powi(2.0, 52) - 1.0
            })
            .collect();
        Matrix::new(rows, cols, data).unwrap()
    }

    fn distance(a: &Matrix, b: &Matrix) -> f64 {
        a.combine(1.0, b, -1.0).frobenius_norm()
    }

    #[test]
    fn polar_factor_is_orthogonal_and_its_cofactor_symmetric_positive() {
        for (rows, cols) in [(1, 1), (1, 7), (7, 1), (5, 5), (9, 4), (4, 9), (33, 20)] {
            let a = sample(rows, cols, 42 + rows as u64);
            let q = polar_factor(&a);
            let (wide_q, wide_a) =
                if rows <= cols { (q, a) } else { (q.transpose(), a.transpose()) };
            let gram = wide_q.times(&wide_q.transpose());
            for i in 0..gram.rows {
                for j in 0..gram.cols {
                    let expected = f64::from(u8::from(i == j));
                    // Jacobi is accurate to a few ulp times the dimension.
                    assert!((gram.data[i * gram.cols + j] - expected).abs() < 1e-13);
                }
            }
            // A·Qᵀ must be symmetric with a positive diagonal: a rotated factor would be orthogonal but wrong.
            let h = wide_a.times(&wide_q.transpose());
            assert!(distance(&h, &h.transpose()) < 1e-12 * h.frobenius_norm());
            assert!((0..h.rows).all(|i| h.data[i * h.cols + i] > 0.0));
        }
    }

    #[test]
    fn diagonal_singular_values_go_through_the_polynomials() {
        let sigma = [1.0, 0.5, 0.1, 0.003, 0.0];
        let mut a = Matrix::zeros(5, 8);
        for (i, s) in sigma.iter().enumerate() {
            a.data[i * 8 + i] = *s;
        }
        for name in presets::names() {
            let schedule = presets::preset(name).unwrap();
            let Normalization::Frobenius { safety } = schedule.normalization() else { continue };
            let x = newton_schulz(&schedule, &a, 1e-30);
            let norm = safety * a.frobenius_norm();
            for (i, s) in sigma.iter().enumerate() {
                let expected = schedule.eval(s / norm);
                let found = x.data[i * 8 + i];
                // Coefficients reach 6e2 at degree 9; terms cancel to 1.
                assert!((found - expected).abs() < 1e-11, "{name} {s}: {found} {expected}");
            }
        }
    }

    #[test]
    fn rank_deficient_and_zero_matrices_have_a_factor_on_their_range() {
        let u = sample(6, 2, 3);
        let v = sample(2, 9, 4);
        let a = u.times(&v);
        let s = singular_values(&polar_factor(&a));
        assert!((s[0] - 1.0).abs() < 1e-13 && (s[1] - 1.0).abs() < 1e-13 && s[2] < 1e-13, "{s:?}");
        assert_eq!(polar_factor(&Matrix::zeros(3, 4)), Matrix::zeros(3, 4));
        let schedule = presets::preset("jordan").unwrap();
        assert_eq!(newton_schulz(&schedule, &Matrix::zeros(3, 4), 1e-7), Matrix::zeros(3, 4));
    }

    #[test]
    fn bf16_rounds_once_to_nearest_with_ties_to_even() {
        use half::bf16;
        for bits in [0u16, 1, 2, 0x7f, 0x80, 0x81, 0x3f80, 0x3f81, 0x7f7e] {
            let (a, b) = (bf16::from_bits(bits).to_f64(), bf16::from_bits(bits + 1).to_f64());
            let middle = a + (b - a) / 2.0;
            let even = if bits % 2 == 0 { a } else { b };
            for sign in [1.0, -1.0] {
                assert_eq!(round_to_bf16(sign * a), sign * a);
                assert_eq!(round_to_bf16(sign * middle), sign * even, "{bits:#x}");
                // Beyond f32's reach of the middle: rounding by way of f32 would lose it.
                let (below, above) = (middle.next_down(), middle.next_up());
                assert_eq!(round_to_bf16(sign * below), sign * a, "{bits:#x}");
                assert_eq!(round_to_bf16(sign * above), sign * b, "{bits:#x}");
            }
        }
        assert_eq!(round_to_bf16(3.4e38), f64::INFINITY);
        assert!(round_to_bf16(f64::NAN).is_nan());
    }

    #[test]
    fn extreme_scales_do_not_change_the_polar_factor() {
        let a = sample(4, 6, 9);
        let q = polar_factor(&a);
        let schedule = presets::preset("jordan").unwrap();
        let x = newton_schulz(&schedule, &a, f64::MIN_POSITIVE);
        let unit = orthogonalize(&Orthogonalizer::Frobenius, &a, f64::MIN_POSITIVE);
        for k in [-960, -900, -600, -100, 100, 600, 900, 1023] {
            let far = a.scaled(f64::powi(2.0, k));
            assert_eq!(polar_factor(&far), q, "2^{k}: scaling by a power of two is exact");
            assert_eq!(newton_schulz(&schedule, &far, f64::MIN_POSITIVE), x, "2^{k}");
            let found = orthogonalize(&Orthogonalizer::Frobenius, &far, f64::MIN_POSITIVE);
            assert_eq!(found, unit, "2^{k}");
            if k < 1023 {
                assert_eq!(far.frobenius_norm(), f64::powi(2.0, k) * a.frobenius_norm(), "2^{k}");
            }
        }
        // The last subnormals have one bit: the factor is that of the rounded matrix, and unit.
        let least = Matrix::new(2, 3, vec![5e-324, 0.0, 0.0, 0.0, -5e-324, 0.0]).unwrap();
        assert_eq!(polar_factor(&least).data, [1.0, 0.0, 0.0, 0.0, -1.0, 0.0]);
        let most = Matrix::new(1, 4, vec![f64::MAX; 4]).unwrap();
        assert!(polar_factor(&most).data.iter().all(|x| (x - 0.5).abs() < 1e-15));
        assert_eq!(most.frobenius_norm(), f64::INFINITY);
        // A floor above the norm clamps, however small both are.
        let clamped = orthogonalize(&Orthogonalizer::Frobenius, &a.scaled(1e-300), 1e-290);
        assert!((clamped.frobenius_norm() / (1e-10 * a.frobenius_norm()) - 1.0).abs() < 1e-12);
    }
}
