//! Rounding error of a recipe at a precision, emulated in plain scalar arithmetic on small fixed matrices.
//!
//! Methods are chosen by these numbers, so they must be the same bits on every machine: products and sums
//! are separate IEEE operations in a fixed order, random numbers are integers, and neither a transcendental
//! function nor a fast matrix product is used.

use std::ops::{Add, Mul};

use crate::coefficients::{CoefficientSchedule, Normalization};
use crate::precision::Precision;
use crate::recipe::{Iterate, Op, Recipe};

/// Sides of the emulated matrices. Noise in a Gram matrix falls with its size, as its entries do, so a verdict
/// holds for larger matrices and not for smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Size {
    short: usize,
    long: usize,
    /// `10^(-3/(short - 1))`: `short` values over three decades; its powers span five and nine.
    ratios: [u64; 3],
}

impl Size {
    /// What a plan's construction can afford for every grouping.
    pub(crate) const SMALL: Self = Self::new(48, 96, RATIOS_48);
    /// For short sides from 128 on.
    pub(crate) const LARGE: Self = Self::new(128, 256, RATIOS_128);

    const fn new(short: usize, long: usize, ratios: [f64; 3]) -> Self {
        Self {
            short,
            long,
            ratios: [ratios[0].to_bits(), ratios[1].to_bits(), ratios[2].to_bits()],
        }
    }

    /// The short side.
    pub(crate) fn short(self) -> usize {
        self.short
    }
}

/// `10^(-d/47)` and `10^(-d/127)` for d = 3, 5 and 9: 48 and 128 values over that many decades.
const RATIOS_48: [f64; 3] =
    [0.863_316_840_701_158_3, 0.782_739_086_833_749_3, 0.643_443_826_332_899_3];
const RATIOS_128: [f64; 3] = [0.9470610000772238, 0.9133346228248623, 0.8494422498263797];

/// Singular values the emulation runs on, the hardest first; the number is a position among the ratios.
const SPECTRA: [Spectrum; 8] = [
    Spectrum::Geometric { ratio: 1 },
    Spectrum::HalfRank,
    Spectrum::Geometric { ratio: 2 },
    Spectrum::Geometric { ratio: 0 },
    Spectrum::Harmonic,
    Spectrum::Linear,
    Spectrum::Outlier,
    Spectrum::Gaussian,
];

#[derive(Debug, Clone, Copy)]
enum Spectrum {
    /// A matrix of independent normal numbers.
    Gaussian,
    /// `σₖ = ratioᵏ`.
    Geometric { ratio: usize },
    /// `σₖ = 1 − k/n`.
    Linear,
    /// Half of the singular values 1, the others 0.
    HalfRank,
    /// One 1, the others 0.003.
    Outlier,
    /// `σₖ = 1/(k + 1)`.
    Harmonic,
}

/// For each of eight spectra the relative Frobenius distance between the recipe with every store rounded and the
/// same recipe in f64 from the same rounded input; `None` as soon as one exceeds its limit or is not finite.
pub(crate) fn rounding_errors(
    schedule: &CoefficientSchedule,
    recipe: &Recipe,
    precision: Precision,
    size: Size,
    limits: &[f64; 8],
) -> Option<[f64; 8]> {
    let mut errors = [0.0; 8];
    for ((spectrum, error), limit) in SPECTRA.into_iter().zip(&mut errors).zip(limits) {
        let x: Vec<f32> = normalised(raw(spectrum, size), safety(schedule))
            .into_iter()
            .map(|x| precision.round(narrow(x)))
            .collect();
        let exact = run(recipe, size, x.iter().map(|&x| f64::from(x)).collect(), |x| x, |x| x);
        let rounded = run(recipe, size, x, |x| precision.round(x), |x| precision.round_operand(x));
        let (mut distance, mut norm) = (0.0, 0.0);
        for (&e, &r) in exact.iter().zip(&rounded) {
            let d = f64::from(r) - e;
            distance += d * d;
            norm += e * e;
        }
        *error = (distance / norm).sqrt();
        // A NaN compares false: it must end the search, not pass it.
        if !(error.is_finite() && *error <= *limit) {
            return None;
        }
    }
    Some(errors)
}

/// For each of the eight spectra the relative Frobenius distance from what the recipe makes of it in f64 to the
/// polar factor. Singular values of zero have no part in either.
///
/// The polar factor comes from the singular vectors that the matrix is made of, or, for the Gaussian one, from
/// [`CUBICS`] cubic iterations.
pub(crate) fn polar_distances(
    schedule: &CoefficientSchedule,
    recipe: &Recipe,
    size: Size,
) -> [f64; 8] {
    SPECTRA.map(|spectrum| {
        let x = normalised(raw(spectrum, size), safety(schedule));
        let (polar, rank) = match values(spectrum, size) {
            Some(values) => {
                let ones: Vec<f64> = values.iter().map(|v| f64::from(u8::from(*v > 0.0))).collect();
                let rank = ones.iter().sum::<f64>();
                (in_random_bases(&ones, size), rank)
            }
            None => (cubic_polar(&x, size), size.short as f64),
        };
        let found = run(recipe, size, x, |x| x, |x| x);
        let distance: f64 = found.iter().zip(&polar).map(|(f, p)| (f - p) * (f - p)).sum();
        (distance / rank).sqrt()
    })
}

/// Iterations `X ← (3X − XXᵀX)/2` that bring the Gaussian matrix to its polar factor: its smallest singular value
/// is 0.04 of the norm, so about eight of them lift it, and five more square the distance to the last bit.
const CUBICS: usize = 24;

fn cubic_polar(x: &[f64], size: Size) -> Vec<f64> {
    let Size { short, long, .. } = size;
    let mut x = x.to_vec();
    for _ in 0..CUBICS {
        let gram = product(&x, &transposed(&x, size), short, short);
        let cube = product(&gram, &x, short, long);
        x.iter_mut().zip(cube).for_each(|(x, c)| *x = 1.5 * *x - 0.5 * c);
    }
    x
}

fn safety(schedule: &CoefficientSchedule) -> f64 {
    match schedule.normalization() {
        Normalization::Frobenius { safety } => safety,
        Normalization::Aol => 1.0,
    }
}

/// A wide matrix of that size with that spectrum in random bases.
fn raw(spectrum: Spectrum, size: Size) -> Vec<f64> {
    match values(spectrum, size) {
        Some(values) => in_random_bases(&values, size),
        None => Random::new().normals(size.short * size.long),
    }
}

/// Divided by its norm and the safety.
fn normalised(mut x: Vec<f64>, safety: f64) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.iter_mut().for_each(|x| *x /= safety * norm);
    x
}

/// The singular values of a spectrum, `None` for those of a Gaussian matrix.
fn values(spectrum: Spectrum, size: Size) -> Option<Vec<f64>> {
    let Size { short, ratios, .. } = size;
    let mut power = 1.0;
    (0..short)
        .map(|k| {
            let position = k as f64;
            Some(match spectrum {
                Spectrum::Gaussian => return None,
                Spectrum::Geometric { ratio } => {
                    let sigma = power;
                    power *= f64::from_bits(ratios[ratio]);
                    sigma
                }
                Spectrum::Linear => 1.0 - position / short as f64,
                Spectrum::HalfRank => f64::from(u8::from(k < short / 2)),
                Spectrum::Outlier => {
                    if k == 0 {
                        1.0
                    } else {
                        0.003
                    }
                }
                Spectrum::Harmonic => 1.0 / (position + 1.0),
            })
        })
        .collect()
}

/// A wide matrix of that size with these singular values; the bases are always the same.
fn in_random_bases(values: &[f64], size: Size) -> Vec<f64> {
    let Size { short, long, .. } = size;
    let mut random = Random::new();
    let u = orthonormal_rows(&mut random, short, short);
    let v = orthonormal_rows(&mut random, short, long);
    let mut x = vec![0.0; short * long];
    for (k, sigma) in values.iter().enumerate() {
        let row = &v[k * long..(k + 1) * long];
        for (i, x) in x.chunks_mut(long).enumerate() {
            let factor = sigma * u[k * short + i];
            for (x, v) in x.iter_mut().zip(row) {
                *x += factor * v;
            }
        }
    }
    x
}

#[expect(clippy::cast_possible_truncation, reason = "rounds to f32 on purpose")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// That many orthonormal rows of length `len`, by Gram–Schmidt twice over.
fn orthonormal_rows(random: &mut Random, rows: usize, len: usize) -> Vec<f64> {
    let mut a = random.normals(rows * len);
    for i in 0..rows {
        let (done, rest) = a.split_at_mut(i * len);
        let row = &mut rest[..len];
        for _ in 0..2 {
            for other in done.chunks(len) {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    a
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// Sums of twelve uniform numbers less their mean: normal enough, without logarithm or cosine.
    fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n)
            .map(|_| {
                let sum: u64 = (0..12).map(|_| self.bits() >> 32).sum();
                sum as f64 / f64::from(u32::MAX) - 6.0
            })
            .collect()
    }

    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// What the interpreter needs of a number.
trait Real: Copy + Default + PartialOrd + Add<Output = Self> + Mul<Output = Self> + From<f32> {
    fn abs(self) -> Self;
    fn inverse_sqrt(self) -> Self;
}

impl Real for f32 {
    fn abs(self) -> Self {
        f32::abs(self)
    }
    fn inverse_sqrt(self) -> Self {
        1.0 / self.sqrt()
    }
}

impl Real for f64 {
    fn abs(self) -> Self {
        f64::abs(self)
    }
    fn inverse_sqrt(self) -> Self {
        1.0 / self.sqrt()
    }
}

/// The result of a recipe on a wide iterate of that size; `store` rounds what an operation writes, `read` what a
/// product reads.
fn run<T: Real>(
    recipe: &Recipe,
    size: Size,
    x: Vec<T>,
    store: impl Fn(T) -> T,
    read: impl Fn(T) -> T,
) -> Vec<T> {
    let Size { short, long, .. } = size;
    let operand = |matrix: &[T]| -> Vec<T> { matrix.iter().map(|&x| read(x)).collect() };
    let mut iterates = [x, vec![T::default(); short * long]];
    let mut small = vec![vec![T::default(); short * short]; recipe.small_buffers()];
    let index = |x: Iterate| usize::from(x == Iterate::X1);
    for op in recipe.ops() {
        match *op {
            Op::Gram { x, out } => {
                let x = operand(&iterates[index(x)]);
                small[out.0] = product(&x, &transposed(&x, size), short, short);
                small[out.0].iter_mut().for_each(|x| *x = store(*x));
            }
            Op::AolScale { x, r } => {
                let d: Vec<T> = small[r.0]
                    .chunks(short)
                    .map(|row| {
                        let sum = row.iter().fold(T::default(), |a, x| a + x.abs());
                        let floor = T::from(f32::MIN_POSITIVE);
                        (if sum < floor { floor } else { sum }).inverse_sqrt()
                    })
                    .collect();
                for (i, row) in small[r.0].chunks_mut(short).enumerate() {
                    row.iter_mut().zip(&d).for_each(|(x, &dj)| *x = store(*x * (d[i] * dj)));
                }
                for (row, &d) in iterates[index(x)].chunks_mut(long).zip(&d) {
                    row.iter_mut().for_each(|x| *x = store(*x * d));
                }
            }
            Op::Symmetric { out, alpha, a, b, beta, c, gamma, d } => {
                let mut p = product(&operand(&small[a.0]), &operand(&small[b.0]), short, short);
                for (p, (&c, &d)) in p.iter_mut().zip(small[c.0].iter().zip(&small[d.0])) {
                    let sum = T::from(alpha) * *p + T::from(beta) * c;
                    *p = store(sum + T::from(gamma) * d);
                }
                // A device forms the lower triangle and mirrors it.
                for i in 0..short {
                    for j in 0..i {
                        p[j * short + i] = p[i * short + j];
                    }
                }
                small[out.0] = p;
            }
            Op::Apply { out, alpha, q, x, beta } => {
                let read = operand(&iterates[index(x)]);
                let mut p = product(&operand(&small[q.0]), &read, short, long);
                for (p, &x) in p.iter_mut().zip(&iterates[index(x)]) {
                    *p = store(T::from(alpha) * *p + T::from(beta) * x);
                }
                iterates[index(out)] = p;
            }
        }
    }
    let [x0, x1] = iterates;
    if recipe.result() == Iterate::X0 { x0 } else { x1 }
}

/// The transpose of a wide matrix of that size.
fn transposed<T: Real>(x: &[T], size: Size) -> Vec<T> {
    let Size { short, long, .. } = size;
    (0..long * short).map(|i| x[(i % short) * long + i / short]).collect()
}

/// `a·b` with that many rows of `a` and columns of `b`; every sum in the order of `k`.
fn product<T: Real>(a: &[T], b: &[T], rows: usize, cols: usize) -> Vec<T> {
    let inner = a.len() / rows;
    let mut out = vec![T::default(); rows * cols];
    for (out, a) in out.chunks_mut(cols).zip(a.chunks(inner)) {
        for (&a, b) in a.iter().zip(b.chunks(cols)) {
            for (out, &b) in out.iter_mut().zip(b) {
                *out = *out + a * b;
            }
        }
    }
    out
}
