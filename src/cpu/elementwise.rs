//! The arithmetic of passes A and B and of AdamW on slices: f32, every product and sum rounded once, no
//! contraction into fused multiply-adds, so that a GPU kernel can produce the same bits.

use half::{bf16, f16};

use crate::config::{MomentumMode, Nesterov, WeightDecayMode};
use crate::device::MuonScalars;
use crate::precision::Precision;

/// A number as it is stored.
pub(super) trait Element: Copy + Send + Sync {
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// What L2 decay adds to the gradients of a range.
pub(super) trait Decay: Copy + Send + Sync {
    /// For the range that starts so many elements later.
    fn skip(self, elements: usize) -> Self;
    /// What momentum takes up, from the scaled gradient of the element at `index` of the range.
    fn gradient(self, g: f32, index: usize) -> f32;
}

/// Nothing: every other mode.
impl Decay for () {
    #[inline(always)]
    fn skip(self, _: usize) -> Self {}
    #[inline(always)]
    fn gradient(self, g: f32, _: usize) -> f32 {
        g
    }
}

/// That multiple of these parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct L2<'a, P>(pub f32, pub &'a [P]);

impl<P: Element> Decay for L2<'_, P> {
    #[inline(always)]
    fn skip(self, elements: usize) -> Self {
        Self(self.0, &self.1[elements..])
    }
    #[inline(always)]
    fn gradient(self, g: f32, index: usize) -> f32 {
        g + self.0 * self.1[index].to_f32()
    }
}

/// The new momentum for one element, as it will be stored.
#[inline(always)]
fn blend<M: Element>(g: f32, m: M, s: &MuonScalars) -> M {
    let kept = s.momentum * m.to_f32();
    M::from_f32(match s.momentum_mode {
        MomentumMode::Ema => kept + s.one_minus_momentum * g,
        MomentumMode::Sum => kept + g,
    })
}

/// The direction for one element, from the momentum as it will be stored.
#[inline(always)]
fn direction<M: Element>(g: f32, m: M, s: &MuonScalars) -> f32 {
    let m = blend(g, m, s).to_f32();
    match (s.nesterov, s.momentum_mode) {
        (Nesterov::Off, _) => m,
        (Nesterov::On, MomentumMode::Ema) => s.one_minus_momentum * g + s.momentum * m,
        (Nesterov::On, MomentumMode::Sum) => g + s.momentum * m,
    }
}

/// Writes the direction to `x`, in f32 whatever the precision: it is rounded once, when it is normalised. Returns
/// the sum of its squares.
///
/// Eight f64 partial sums: exact up to rounding far below f32's, no overflow for any f32, and a NaN or an
/// infinity anywhere makes the sum not finite.
pub(super) fn write_direction<G: Element, M: Element>(
    grad: &[G],
    momentum: &[M],
    decay: impl Decay,
    x: &mut [f32],
    grad_scale: f32,
    s: &MuonScalars,
) -> f64 {
    let mut sums = [0.0f64; 8];
    for (k, ((g, m), x)) in grad.chunks(8).zip(momentum.chunks(8)).zip(x.chunks_mut(8)).enumerate()
    {
        for (i, (((g, m), x), sum)) in g.iter().zip(m).zip(x).zip(&mut sums).enumerate() {
            let d = direction(decay.gradient(g.to_f32() * grad_scale, 8 * k + i), *m, s);
            *sum += f64::from(d) * f64::from(d);
            *x = d;
        }
    }
    sums.iter().sum()
}

/// Commits the momentum of one range.
pub(super) fn commit_momentum<G: Element, M: Element>(
    grad: &[G],
    momentum: &mut [M],
    decay: impl Decay,
    grad_scale: f32,
    s: &MuonScalars,
) {
    for (i, (g, m)) in grad.iter().zip(momentum).enumerate() {
        *m = blend(decay.gradient(g.to_f32() * grad_scale, i), *m, s);
    }
}

/// Decay and update of one element.
#[inline(always)]
fn updated(p: f32, u: f32, s: &MuonScalars) -> f32 {
    // Signs are compared, not the sign of a product, which would underflow to 0 for small factors.
    let opposed = (p > 0.0 && u < 0.0) || (p < 0.0 && u > 0.0);
    let keep =
        if s.weight_decay_mode == WeightDecayMode::Cautious && opposed { 1.0 } else { s.keep };
    // Where nothing is kept, what the memory held must not matter, NaN included.
    let kept = if keep == 0.0 { 0.0 } else { p * keep };
    kept - s.step * u
}

/// Pass B on f32 numbers: parameters or master copies.
pub(super) fn update_f32(param: &mut [f32], update: &[f32], s: &MuonScalars) {
    for (p, u) in param.iter_mut().zip(update) {
        *p = updated(*p, *u, s);
    }
}

/// Pass B on a bf16 parameter by way of its master copy.
pub(super) fn update_master(
    param: &mut [bf16],
    master: &mut [f32],
    update: &[f32],
    s: &MuonScalars,
) {
    for ((p, w), u) in param.iter_mut().zip(master).zip(update) {
        *w = updated(*w, *u, s);
        *p = bf16::from_f32(*w);
    }
}

/// Pass B on a bf16 parameter, rounded to nearest.
pub(super) fn update_nearest(param: &mut [bf16], update: &[f32], s: &MuonScalars) {
    for (p, u) in param.iter_mut().zip(update) {
        *p = bf16::from_f32(updated(p.to_f32(), *u, s));
    }
}

/// Pass B on a bf16 parameter, rounded at random; `index` is that of the first element in the parameter.
pub(super) fn update_stochastic(
    param: &mut [bf16],
    update: &[f32],
    s: &MuonScalars,
    random: StochasticBits,
    index: usize,
) {
    for (i, (p, u)) in param.iter_mut().zip(update).enumerate() {
        *p = random.round(updated(p.to_f32(), *u, s), index + i);
    }
}

/// The random bits of stochastic rounding: a function of seed, step and element index, so that no order of
/// execution, thread count or device changes them.
#[derive(Debug, Clone, Copy)]
pub(super) struct StochasticBits {
    key: u64,
}

impl StochasticBits {
    pub(super) fn new(seed: u64, salt: u64, step: u64) -> Self {
        Self { key: mix(mix(seed ^ salt).wrapping_add(step)) }
    }

    /// Adds 16 random bits below the bf16 significand and truncates: the probability of rounding up is the
    /// fraction of the spacing that is cut off.
    fn round(self, x: f32, index: usize) -> bf16 {
        if !x.is_finite() {
            return bf16::from_f32(x);
        }
        let bits = mix(self.key.wrapping_add(index as u64)) & 0xffff;
        let rounded = u64::from(x.to_bits()) + bits;
        bf16::from_bits(u16::try_from((rounded >> 16) & 0xffff).unwrap_or(u16::MAX))
    }
}

/// Finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose every output bit depends on every input bit.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `1 / (safety · max(norm, floor))` as a power of two and a factor in `[1, 2)`: the first product is exact, so
/// the iterate is rounded once, and scaling the gradients by `2^k` changes the power alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct InverseNorm {
    power: f32,
    factor: f32,
}

impl InverseNorm {
    pub(super) fn new(sum_of_squares: f64, safety: f64, norm_floor: f64) -> Self {
        let inverse = 1.0 / (safety * sum_of_squares.sqrt().max(norm_floor));
        let power = f64::from_bits(inverse.to_bits() & 0x7ff0_0000_0000_0000);
        Self { power: narrow(power), factor: narrow(inverse / power) }
    }

    pub(super) fn apply(self, x: &mut [f32], precision: Precision) {
        for x in x {
            *x = precision.round((*x * self.power) * self.factor);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the one place where f64 scalars become f32")]
pub(crate) fn narrow(x: f64) -> f32 {
    x as f32
}

/// The scalars of one tensor's AdamW step, bias corrections included.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdamWScalars {
    pub beta1: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    /// `lr / (1 − β₁ᵗ)`.
    pub step: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    pub root_correction: f32,
    pub eps: f32,
    pub keep: f32,
}

/// AdamW on one range, the parameter as f32.
#[inline(always)]
fn adamw_element(p: f32, g: f32, m: &mut f32, v: &mut f32, s: &AdamWScalars) -> f32 {
    *m = s.beta1 * *m + s.one_minus_beta1 * g;
    *v = s.beta2 * *v + s.one_minus_beta2 * (g * g);
    let denominator = v.sqrt() * s.root_correction + s.eps;
    p * s.keep - s.step * (*m / denominator)
}

/// How an AdamW parameter is stored.
pub(super) enum AdamWParam<'a> {
    F32(&'a mut [f32]),
    Master(&'a mut [bf16], &'a mut [f32]),
    Stochastic(&'a mut [bf16], StochasticBits),
    Nearest(&'a mut [bf16]),
}

/// AdamW on one tensor.
pub(super) fn adamw<G: Element>(
    param: AdamWParam<'_>,
    grad: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    grad_scale: f32,
    s: &AdamWScalars,
) {
    let moments = exp_avg.iter_mut().zip(exp_avg_sq);
    let elements = grad.iter().map(|g| g.to_f32() * grad_scale).zip(moments);
    match param {
        AdamWParam::F32(param) => {
            for (p, (g, (m, v))) in param.iter_mut().zip(elements) {
                *p = adamw_element(*p, g, m, v, s);
            }
        }
        AdamWParam::Master(param, master) => {
            for ((p, w), (g, (m, v))) in param.iter_mut().zip(master).zip(elements) {
                *w = adamw_element(*w, g, m, v, s);
                *p = bf16::from_f32(*w);
            }
        }
        AdamWParam::Stochastic(param, random) => {
            for (i, (p, (g, (m, v)))) in param.iter_mut().zip(elements).enumerate() {
                *p = random.round(adamw_element(p.to_f32(), g, m, v, s), i);
            }
        }
        AdamWParam::Nearest(param) => {
            for (p, (g, (m, v))) in param.iter_mut().zip(elements) {
                *p = bf16::from_f32(adamw_element(p.to_f32(), g, m, v, s));
            }
        }
    }
}

/// Whether every element is finite and of that magnitude at most. On integers, which are in the order of the magnitudes
/// and whose maximum may be taken in any order and so vectorises.
pub(super) fn all_within(x: &[f32], largest: f32) -> bool {
    let magnitude = |x: &f32| x.to_bits() & !(1 << 31);
    let most = x.iter().map(magnitude).fold(0, u32::max);
    most < f32::INFINITY.to_bits() && f32::from_bits(most) <= largest
}

/// Sum of squares in f64, each element times a factor in f32; not finite if one of these is not.
pub(super) fn sum_of_squares<G: Element>(grad: &[G], scale: f32) -> f64 {
    let mut sums = [0.0f64; 8];
    for g in grad.chunks(8) {
        for (g, sum) in g.iter().zip(&mut sums) {
            let g = f64::from(g.to_f32() * scale);
            *sum += g * g;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stochastic_rounding_has_the_right_mean_and_neighbours() {
        let (low, high) = (1.0f32, 1.0078125f32);
        let x = 1.002f32; // 0.256 of the spacing above 1
        let n = 100_000;
        let mut ups = 0;
        for i in 0..n {
            let y = StochasticBits::new(7, 1, 3).round(x, i).to_f32();
            assert!(y == low || y == high);
            ups += usize::from(y == high);
        }
        // Binomial: standard deviation 0.00138 of the frequency; five of them.
        let frequency = ups as f64 / n as f64;
        assert!((frequency - 0.256).abs() < 5.0 * 0.00138, "{frequency}");
        // Exact values stay, negative values round away and toward zero alike, specials pass.
        let r = StochasticBits::new(1, 2, 3);
        for i in 0..1000 {
            assert_eq!(r.round(-1.5, i).to_f32(), -1.5);
            let y = r.round(-x, i).to_f32();
            assert!(y == -low || y == -high);
        }
        assert!(r.round(f32::NAN, 0).is_nan());
        assert_eq!(r.round(f32::INFINITY, 0), bf16::INFINITY);
    }

    #[test]
    fn random_bits_depend_on_seed_salt_step_and_index() {
        let draw = |seed, salt, step, index: usize| {
            (0..64)
                .map(|i| StochasticBits::new(seed, salt, step).round(1.003, index + i).to_bits())
                .collect::<Vec<_>>()
        };
        let base = draw(1, 2, 3, 4);
        assert_eq!(base, draw(1, 2, 3, 4));
        for other in [draw(2, 2, 3, 4), draw(1, 3, 3, 4), draw(1, 2, 4, 4), draw(1, 2, 3, 5)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn inverse_norm_scales_exactly_and_survives_both_ends() {
        for (sum, floor) in [(3.7f64, 1e-38), (1e-70, 1e-38), (1e70, 1e-38), (0.0, 1.2e-38)] {
            let n = InverseNorm::new(sum, 1.02, floor);
            assert!((1.0..2.0).contains(&n.factor) && n.power.is_normal(), "{sum} {n:?}");
            let expected = 1.0 / (1.02 * sum.sqrt().max(floor));
            let found = f64::from(n.power) * f64::from(n.factor);
            assert!((found / expected - 1.0).abs() < 1e-7, "{sum}: {found} {expected}");
        }
        let a = InverseNorm::new(3.7, 1.0, 1e-38);
        for k in [-100, -60, -1, 1, 60, 100] {
            let b = InverseNorm::new(3.7 * 4f64.powi(k), 1.0, 1e-38);
            assert_eq!(a.factor, b.factor, "2^{k}");
            assert_eq!(a.power, b.power * 2f32.powi(k), "2^{k}");
        }
    }

    #[test]
    fn what_is_not_finite_is_found_wherever_it_stands() {
        let finite: Vec<f32> =
            (0..67).map(|i| if i % 2 == 0 { f32::MAX } else { -f32::MIN_POSITIVE }).collect();
        let all_finite = |x: &[f32]| all_within(x, f32::INFINITY);
        assert!(all_finite(&finite) && all_finite(&[]) && all_finite(&[-0.0]));
        assert!(all_within(&[1.0, -2.0], 2.0) && !all_within(&[1.0, -2.0], 1.999));
        for i in 0..finite.len() {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = finite.clone();
                x[i] = bad;
                assert!(!all_finite(&x), "{bad} at {i}");
            }
        }
    }
}
