//! The error of an orthogonalization under rounding, predicted from singular values alone.
//!
//! To first order a rounding error travels through a recipe entry by entry of the singular basis: with
//! `A` and `B` diagonal there, `δ(AB)ᵢⱼ = δAᵢⱼ·bⱼ + aᵢ·δBᵢⱼ`. So each store is a source of independent
//! noise, and its effect on the result is a number for each pair of singular values, had by running the
//! recipe's operations backwards. A prediction costs a fraction of a millisecond where the emulation with
//! matrices costs seconds, for any size.

use crate::coefficients::{CoefficientSchedule, Normalization, Tail};
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::recipe::{Iterate, Method, Op, Recipe};
use crate::spectrum::Spectrum;

/// Root mean square of a rounding error over its bound `u`: uniform in `±u·2^e` for values spread evenly
/// in the logarithm over `[2^e, 2^(e+1))`, `√(3/(8·ln 2)/3)`.
const ROUNDING_RMS: f64 = 0.425;

/// Octaves below 1, levels for each of them: degree 9 changes its slope within an octave of large singular
/// values (two levels there give 2.4 times the emulated error, six 1.01 times); schedules treat small ones
/// alike. Below the last octave there is one level.
const LEVELS: [(f64, f64); 3] = [(6.0, 6.0), (12.0, 2.0), (20.0, 1.0)];

/// What becomes of a matrix with that spectrum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Relative Frobenius distance to the exact composition of the rounded input.
    pub to_composition: f64,
    /// Relative Frobenius distance to the polar factor of the input.
    pub to_polar: f64,
    /// `⟨O, UVᵀ⟩/(‖O‖·‖UVᵀ‖)`.
    pub cosine: f64,
}

/// A spectrum prepared for predictions.
#[derive(Debug, Clone)]
pub struct Predictor {
    short: f64,
    long: f64,
    values: Vec<f64>,
    rank: f64,
    /// Representative value and number of singular values of each level.
    levels: Vec<(f64, f64)>,
}

impl Predictor {
    /// Prepares a spectrum.
    #[must_use]
    pub fn new(spectrum: &Spectrum) -> Self {
        let mut levels: Vec<(f64, f64)> = Vec::new();
        let mut current = f64::NAN;
        for &x in spectrum.values() {
            let level = level(x);
            if level != current || levels.is_empty() {
                current = level;
                levels.push((0.0, 0.0));
            }
            if let Some(last) = levels.last_mut() {
                last.0 += x * x;
                last.1 += 1.0;
            }
        }
        levels.iter_mut().for_each(|l| l.0 = (l.0 / l.1).sqrt());
        Self {
            short: spectrum.shape().short() as f64,
            long: spectrum.shape().long() as f64,
            values: spectrum.values().to_vec(),
            rank: spectrum.rank() as f64,
            levels,
        }
    }

    /// Predicts the errors of a schedule evaluated by a recipe of it; `None` is f64.
    ///
    /// # Numerics
    /// First order: exact composition of the singular values, noise of each store spread evenly over the
    /// matrix. 1.0 to 1.2 times what the emulation finds for matrices in random bases (0.5 to 1.7 in tf32). It sees no divergence:
    /// where [`rounded_image`] leaves `(0, 1.5)`, or a Gram group is too long for the size, the error may be
    /// any number. Bases aligned with the rows average less.
    ///
    /// # Cost
    /// `L²/2` times the operations of the recipe, for `L` levels (about 40) of the spectrum.
    ///
    /// # Errors
    /// Almost-orthogonal-layer scaling, whose effect on singular values depends on the bases.
    pub fn predict(
        &self,
        schedule: &CoefficientSchedule,
        recipe: &Recipe,
        precision: Option<Precision>,
    ) -> Result<Prediction> {
        let safety = frobenius_safety(schedule)?;
        let tape = Tape::new(self, recipe, safety, Rounding::of(precision).times(ROUNDING_RMS))?;
        let (noise, input) = tape.noise(self);
        Ok(self.sums(schedule, safety).prediction(noise, input, self.rank))
    }

    /// The errors without any rounding.
    ///
    /// # Errors
    /// As [`Predictor::predict`].
    pub fn exact(&self, schedule: &CoefficientSchedule) -> Result<Prediction> {
        let safety = frobenius_safety(schedule)?;
        Ok(self.sums(schedule, safety).prediction(0.0, 0.0, self.rank))
    }

    fn sums(&self, schedule: &CoefficientSchedule, safety: f64) -> Sums {
        let mut sums = Sums { energy: 0.0, overlap: 0.0, distance: 0.0 };
        for &x in &self.values {
            let y = schedule.eval(x / safety);
            let polar = if x > 0.0 { 1.0 } else { 0.0 };
            sums.energy += y * y;
            sums.overlap += y * polar;
            sums.distance += (y - polar) * (y - polar);
        }
        sums
    }
}

/// Over the exactly composed singular values: their squares, their sum, and the squared distances from 1.
struct Sums {
    energy: f64,
    overlap: f64,
    distance: f64,
}

impl Sums {
    fn prediction(&self, noise: f64, input: f64, rank: f64) -> Prediction {
        Prediction {
            to_composition: (noise / self.energy).sqrt(),
            to_polar: ((self.distance + noise + input) / rank).sqrt(),
            cosine: self.overlap / ((self.energy + noise + input) * rank).sqrt(),
        }
    }
}

fn frobenius_safety(schedule: &CoefficientSchedule) -> Result<f64> {
    match schedule.normalization() {
        Normalization::Frobenius { safety } => Ok(safety),
        Normalization::Aol => Err(Error::unsupported(format!(
            "schedule `{}`: errors are predicted for the Frobenius norm only; almost-orthogonal-layer scaling \
             changes singular values by more than they tell",
            schedule.name()
        ))),
    }
}

/// Points on which an interval is followed; the polynomials of a schedule turn a few times in it.
const GRID: u32 = 512;

/// Smallest and largest singular value a schedule can give in a precision, for inputs its normalisation
/// allows and matrices that do not average rounding errors away.
///
/// A matrix with one dominant row, or of one row, is rounded like a scalar: an iteration with slope 15
/// subtracts 14 from it in one rounded number. The interval of singular values is followed group by group
/// (each iteration of the standard form is one), and widened after each by the errors of its stores, every
/// one at its bound `u`, added as independent. Minimax polynomials diverge right above the interval they
/// are made for, so a schedule without room between its iterations leaves `(0, 1.5)` here.
///
/// # Errors
/// A method that does not fit the schedule; almost-orthogonal-layer scaling.
pub fn rounded_image(
    schedule: &CoefficientSchedule,
    method: &Method,
    precision: Precision,
) -> Result<(f64, f64)> {
    Recipe::new(schedule, method)?;
    let ones;
    let groups: &[usize] = match method {
        Method::Standard => {
            ones = vec![1; schedule.polynomials().len()];
            &ones
        }
        Method::Gram { groups } => groups,
    };
    let u = precision.unit_roundoff();
    let mut bounds = Rounding::of(Some(precision));
    // Some tensor cores cut the bits off instead of rounding, which errs twice as much.
    bounds.read = bounds.read.map(|u| 2.0 * u);
    let mut largest = match schedule.normalization() {
        Normalization::Frobenius { safety } => (1.0 + u) * (1.0 + u) / safety,
        Normalization::Aol => (1.0 + u) * (1.0 + u),
    };
    let (mut smallest, mut next) = (0.0f64, 0);
    for &size in groups {
        let polynomials = schedule.polynomials()[next..next + size].to_vec();
        next += size;
        let unit = Normalization::Frobenius { safety: 1.0 };
        let part = CoefficientSchedule::new("part", polynomials, unit, Tail::Exact, "")?;
        let recipe = Recipe::new(&part, &Method::Gram { groups: vec![size] })?;
        let grid = Predictor {
            short: 1.0,
            long: 1.0,
            values: Vec::new(),
            rank: 1.0,
            levels: (1..=GRID).map(|i| (largest * f64::from(i) / f64::from(GRID), 1.0)).collect(),
        };
        let mut tape = Tape::new(&grid, &recipe, 1.0, bounds.times(0.0))?;
        let mut weights = vec![Adjoint::default(); tape.nodes.len()];
        let mut image = (f64::INFINITY, f64::NEG_INFINITY);
        for g in 0..grid.levels.len() {
            for node in &mut tape.nodes {
                node.variance = (bounds.of_node(node) * node.values[g]).powi(2);
            }
            weights.iter_mut().for_each(|w| *w = Adjoint::default());
            weights[tape.result].ij = 1.0;
            // A scalar has no second entry beside its diagonal: single variances.
            let error = tape.variance(&mut weights, g, g, Entry::Scalar).sqrt();
            let value = tape.nodes[tape.result].values[g];
            image = (image.0.min(value - error), image.1.max(value + error));
        }
        smallest = smallest.min(image.0);
        largest = image.1;
        if !(largest.is_finite() && largest < 1e6) {
            return Ok((smallest, f64::INFINITY));
        }
    }
    Ok((smallest, largest))
}

/// The number of the level a singular value belongs to.
fn level(x: f64) -> f64 {
    let octave = -x.log2();
    let (mut number, mut from) = (0.0, 0.0);
    for (end, each) in LEVELS {
        number += (octave.clamp(from, end) - from) * each;
        from = end;
    }
    number.floor()
}

/// One store: the values of its result in the singular basis, and the variance of its rounding error in
/// each entry.
struct Node {
    values: Vec<f64>,
    variance: f64,
    made_by: Step,
}

/// Relative size of the rounding of stores and, where products read something else than what is stored, of
/// their operands.
#[derive(Debug, Clone, Copy)]
struct Rounding {
    store: f64,
    read: Option<f64>,
}

impl Rounding {
    /// Bounds of one rounding; `None` is f64.
    fn of(precision: Option<Precision>) -> Self {
        match precision {
            None => Self { store: f64::EPSILON / 2.0, read: None },
            Some(p @ Precision::Tf32) => {
                Self { store: p.stored().unit_roundoff(), read: Some(p.unit_roundoff()) }
            }
            Some(p) => Self { store: p.unit_roundoff(), read: None },
        }
    }

    fn times(self, factor: f64) -> Self {
        Self { store: factor * self.store, read: self.read.map(|u| factor * u) }
    }

    fn of_node(&self, node: &Node) -> f64 {
        match node.made_by {
            Step::ReadSmall { .. } | Step::ReadIterate { .. } => self.read.unwrap_or(0.0),
            _ => self.store,
        }
    }
}

/// An operation on earlier nodes.
#[derive(Clone, Copy)]
enum Step {
    Input,
    /// What products read of a symmetric matrix, where that is another node.
    ReadSmall {
        of: usize,
    },
    /// What products read of an iterate, where that is another node.
    ReadIterate {
        of: usize,
    },
    Gram {
        x: usize,
    },
    Symmetric {
        alpha: f64,
        a: usize,
        b: usize,
        beta: f64,
        c: usize,
        gamma: f64,
        d: usize,
    },
    Apply {
        alpha: f64,
        q: usize,
        x: usize,
        beta: f64,
        addend: usize,
    },
}

/// A recipe unrolled: every store once.
struct Tape {
    nodes: Vec<Node>,
    result: usize,
}

impl Tape {
    fn new(of: &Predictor, recipe: &Recipe, safety: f64, rms: Rounding) -> Result<Self> {
        let levels = &of.levels;
        let power = |v: &[f64]| -> f64 { v.iter().zip(levels).map(|(x, l)| l.1 * x * x).sum() };
        let iterate_variance = |rms: f64, v: &[f64]| rms * rms * power(v) / (of.short * of.long);
        let small_variance = |rms: f64, v: &[f64]| rms * rms * power(v) / (of.short * of.short);
        let input: Vec<f64> = levels.iter().map(|l| l.0 / safety).collect();
        let variance = iterate_variance(rms.store, &input);
        let mut tape =
            Self { nodes: vec![Node { values: input, variance, made_by: Step::Input }], result: 0 };
        let mut iterates = [0usize; 2];
        let mut small = vec![0usize; recipe.small_buffers()];
        let index = |x: Iterate| usize::from(x == Iterate::X1);
        for op in recipe.ops() {
            // A stored matrix that several products read is rounded in the same way each time.
            let mut read = |of: usize, is_small: bool| -> usize {
                let Some(rms) = rms.read else { return of };
                let same = |n: &Node| match n.made_by {
                    Step::ReadSmall { of: other } | Step::ReadIterate { of: other } => other == of,
                    _ => false,
                };
                if let Some(known) = tape.nodes.iter().position(same) {
                    return known;
                }
                let values = tape.nodes[of].values.clone();
                let (variance, made_by) = if is_small {
                    (small_variance(rms, &values), Step::ReadSmall { of })
                } else {
                    (iterate_variance(rms, &values), Step::ReadIterate { of })
                };
                tape.nodes.push(Node { values, variance, made_by });
                tape.nodes.len() - 1
            };
            let made_by = match *op {
                Op::Gram { x, .. } => Step::Gram { x: read(iterates[index(x)], false) },
                Op::Symmetric { alpha, a, b, beta, c, gamma, d, .. } => {
                    let [c, d] = [c, d].map(|s| small[s.0]);
                    let [a, b] = [a, b].map(|s| read(small[s.0], true));
                    let [alpha, beta, gamma] = [alpha, beta, gamma].map(f64::from);
                    Step::Symmetric { alpha, a, b, beta, c, gamma, d }
                }
                Op::Apply { alpha, q, x, beta, .. } => {
                    let addend = iterates[index(x)];
                    let (q, x) = (read(small[q.0], true), read(addend, false));
                    let [alpha, beta] = [alpha, beta].map(f64::from);
                    Step::Apply { alpha, q, x, beta, addend }
                }
                Op::AolScale { .. } => {
                    return Err(Error::unsupported(
                        "errors are not predicted for almost-orthogonal-layer scaling",
                    ));
                }
            };
            let values = |node: usize| tape.nodes[node].values.iter();
            let result: Vec<f64> = match made_by {
                Step::Gram { x } => values(x).map(|x| x * x).collect(),
                Step::Symmetric { alpha, a, b, beta, c, gamma, d } => {
                    let sums = values(a).zip(values(b)).zip(values(c).zip(values(d)));
                    sums.map(|((a, b), (c, d))| alpha * a * b + beta * c + gamma * d).collect()
                }
                Step::Apply { alpha, q, x, beta, .. } => {
                    values(q).zip(values(x)).map(|(q, x)| (alpha * q + beta) * x).collect()
                }
                Step::Input | Step::ReadSmall { .. } | Step::ReadIterate { .. } => continue,
            };
            let variance = match made_by {
                Step::Apply { .. } => iterate_variance(rms.store, &result),
                _ => small_variance(rms.store, &result) + tape.mirrored(of, made_by),
            };
            let node = tape.nodes.len();
            tape.nodes.push(Node { values: result, variance, made_by });
            match *op {
                Op::Gram { out, .. } | Op::Symmetric { out, .. } => {
                    small[out.0] = node;
                }
                Op::Apply { out, .. } => iterates[index(out)] = node,
                Op::AolScale { .. } => {}
            }
        }
        tape.result = iterates[index(recipe.result())];
        Ok(tape)
    }

    /// Variance that mirroring adds to each entry of a product of two different matrices: rounded, they do
    /// not commute, and the antisymmetric part of their product comes back as a symmetric matrix that
    /// knows nothing of the singular basis.
    fn mirrored(&self, of: &Predictor, step: Step) -> f64 {
        let Step::Symmetric { alpha, a, b, .. } = step else { return 0.0 };
        if a == b {
            return 0.0;
        }
        let mut sum = 0.0;
        let mut weights = vec![Adjoint::default(); self.nodes.len()];
        for (g, h, count) in pairs(&of.levels) {
            if g == h {
                continue;
            }
            let (va, vb) = (&self.nodes[a].values, &self.nodes[b].values);
            weights.iter_mut().for_each(|w| *w = Adjoint::default());
            weights[a].small += 0.5 * alpha * (vb[h] - vb[g]);
            weights[b].small += 0.5 * alpha * (va[g] - va[h]);
            sum += 2.0 * count * self.variance(&mut weights, g, h, Entry::Pair);
        }
        sum / (of.short * of.short)
    }

    /// Expected squares of the Frobenius norms of what the stores after the input do to the result, and of
    /// what one rounding of the input does.
    fn noise(&self, of: &Predictor) -> (f64, f64) {
        let mut weights = vec![Adjoint::default(); self.nodes.len()];
        let (mut stores, mut input) = (0.0, 0.0);
        let mut entry = |g: usize, h: usize, count: f64, entry: Entry| {
            weights.iter_mut().for_each(|w| *w = Adjoint::default());
            weights[self.result].ij = 1.0;
            stores += count * self.variance(&mut weights, g, h, entry);
            let w = weights[0];
            input += count
                * self.nodes[0].variance
                * match entry {
                    Entry::Pair => w.ij * w.ij + w.ji * w.ji,
                    Entry::Diagonal | Entry::Scalar => (w.ij + w.ji).powi(2),
                };
        };
        for (g, h, count) in pairs(&of.levels) {
            if g == h {
                entry(g, h, 2.0 * count, Entry::Pair);
            } else {
                entry(g, h, count, Entry::Pair);
                entry(h, g, count, Entry::Pair);
            }
        }
        for (g, level) in of.levels.iter().enumerate() {
            entry(g, g, level.1, Entry::Diagonal);
        }
        // Entries in the columns that the input has nothing in.
        for (g, level) in of.levels.iter().enumerate() {
            let count = (of.long - of.short) * level.1;
            let (after, first) = self.outer(g);
            stores += count * after;
            input += count * first;
        }
        (stores, input)
    }

    /// Runs the operations backwards from the weights given, for the entries (g, h) and (h, g); the sum over
    /// all stores but the input of variance times squared weight.
    fn variance(&self, weights: &mut [Adjoint], g: usize, h: usize, entry: Entry) -> f64 {
        let mut sum = 0.0;
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let w = weights[i];
            if w.small == 0.0 && w.ij == 0.0 && w.ji == 0.0 {
                continue;
            }
            let at = |node: usize| (self.nodes[node].values[g], self.nodes[node].values[h]);
            match node.made_by {
                Step::Input => {}
                Step::ReadSmall { of } => weights[of].small += w.small,
                Step::ReadIterate { of } => {
                    weights[of].ij += w.ij;
                    weights[of].ji += w.ji;
                }
                Step::Gram { x } => {
                    let (xg, xh) = at(x);
                    weights[x].ij += xh * w.small;
                    weights[x].ji += xg * w.small;
                }
                Step::Symmetric { alpha, a, b, beta, c, gamma, d } => {
                    let ((ag, ah), (bg, bh)) = (at(a), at(b));
                    weights[a].small += 0.5 * alpha * (bg + bh) * w.small;
                    weights[b].small += 0.5 * alpha * (ag + ah) * w.small;
                    weights[c].small += beta * w.small;
                    weights[d].small += gamma * w.small;
                }
                Step::Apply { alpha, q, x, beta, addend } => {
                    let ((qg, qh), (xg, xh)) = (at(q), at(x));
                    weights[q].small += alpha * (w.ij * xh + w.ji * xg);
                    if x == addend {
                        weights[x].ij += (alpha * qg + beta) * w.ij;
                        weights[x].ji += (alpha * qh + beta) * w.ji;
                    } else {
                        weights[x].ij += alpha * qg * w.ij;
                        weights[x].ji += alpha * qh * w.ji;
                        weights[addend].ij += beta * w.ij;
                        weights[addend].ji += beta * w.ji;
                    }
                }
            }
            sum += node.variance
                * match (node.made_by, entry) {
                    (Step::Input, _) => 0.0,
                    (Step::Apply { .. } | Step::ReadIterate { .. }, Entry::Pair) => {
                        w.ij * w.ij + w.ji * w.ji
                    }
                    (Step::Apply { .. } | Step::ReadIterate { .. }, _) => (w.ij + w.ji).powi(2),
                    // A symmetric matrix of noise has twice the variance on its diagonal.
                    (_, Entry::Diagonal) => 2.0 * w.small * w.small,
                    _ => w.small * w.small,
                };
        }
        sum
    }

    /// Variances of an entry of the result in row `g` outside the columns of the input's row space: by the
    /// stores after the input, and by the input.
    fn outer(&self, g: usize) -> (f64, f64) {
        let (mut node, mut factor, mut sum) = (self.result, 1.0, 0.0);
        while let Step::Apply { alpha, q, x, beta, addend } = self.nodes[node].made_by {
            sum += self.nodes[node].variance * factor * factor;
            let through = alpha * self.nodes[q].values[g];
            if x != addend {
                sum += self.nodes[x].variance * (factor * through).powi(2);
            }
            factor *= through + beta;
            node = addend;
        }
        (sum, self.nodes[node].variance * factor * factor)
    }
}

/// Derivative of one quantity by an entry of a node: of a symmetric one, or of the two entries of an
/// iterate.
#[derive(Clone, Copy, Default)]
struct Adjoint {
    small: f64,
    ij: f64,
    ji: f64,
}

/// Which entries of the matrices a weight stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// (i, j) and (j, i).
    Pair,
    /// (i, i) of a matrix.
    Diagonal,
    /// The one of a 1 × 1 matrix.
    Scalar,
}

/// Pairs of levels with the number of unordered pairs of different singular values in them.
fn pairs(levels: &[(f64, f64)]) -> impl Iterator<Item = (usize, usize, f64)> {
    levels.iter().enumerate().flat_map(move |(g, a)| {
        levels[g..].iter().enumerate().filter_map(move |(k, b)| {
            let count = if k == 0 { a.1 * (a.1 - 1.0) / 2.0 } else { a.1 * b.1 };
            (count > 0.0).then_some((g, g + k, count))
        })
    })
}

#[cfg(test)]
#[path = "prediction_tests.rs"]
mod tests;
