//! Symmetric products at less than full cost where a library forms rectangles only, as cublasLt does: rows are cut into
//! strips, each strip is formed up to the end of its diagonal block, and the rest is mirrored.
//!
//! `p` strips of equal height are `(p + 1)/(2p)` of the FLOPs in `p` calls. Cutting in halves recursively would need
//! `2^(l+1) − 1` calls for what `2^l` strips need. Every element that is formed is the sum that it was in the full product.

use serde::{Deserialize, Serialize};

use crate::precision::Precision;
use crate::recipe::{Op, Recipe};
use crate::shape::MatrixShape;

/// How the CUDA device forms symmetric products. The CPU device forms one triangle whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SymmetricProducts {
    /// As many strips as a model of shape, number of matrices and precision says, often one (default).
    #[default]
    Auto,
    /// In full: one call each, twice the least FLOPs.
    Full,
    /// So many strips, at least 1; fewer where a matrix has fewer rows.
    Strips(usize),
}

/// Strips of the symmetric products of a bucket, 1 for a product in full, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SymmetricStrips {
    /// Of Gram matrices of the iterate; more than one make a mirror necessary.
    pub gram: usize,
    /// Of squares of symmetric matrices; more than one make a mirror necessary.
    pub square: usize,
    /// Of products that are mirrored in any case: of two different matrices, or with two addends.
    pub product: usize,
    /// In words.
    pub reason: String,
}

/// A symmetric product by what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gram,
    Square,
    Product,
}

impl Kind {
    fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Gram { .. } => Some(Self::Gram),
            Op::Symmetric { a, b, gamma, .. } if a == b && *gamma == 0.0 => Some(Self::Square),
            Op::Symmetric { .. } => Some(Self::Product),
            Op::AolScale { .. } | Op::Apply { .. } => None,
        }
    }

    fn inner(self, shape: MatrixShape) -> usize {
        if self == Self::Gram { shape.long() } else { shape.short() }
    }

    fn is_mirrored_anyway(self) -> bool {
        self == Self::Product
    }
}

/// Heights of strips are multiples of the largest of these that leaves a strip to each: whole tiles of the products,
/// then whole accesses.
const STEPS: [usize; 6] = [TILE, 64, 32, 16, 8, 1];

/// First row and end of each of so many strips of `n` rows.
pub(crate) fn strips(n: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = count.clamp(1, n.max(1));
    let step = STEPS.into_iter().find(|step| n / step >= count).unwrap_or(1);
    let start =
        move |i: usize| if i == count { n } else { (i * n / count + step / 2) / step * step };
    (0..count).map(move |i| (start(i), start(i + 1)))
}

/// Elements that strips form of an `n × n` result.
fn formed(n: usize, count: usize) -> u64 {
    strips(n, count)
        .map(|(start, end)| ((end - start) as u64).saturating_mul(end as u64))
        .fold(0, u64::saturating_add)
}

impl SymmetricStrips {
    /// Every product in one piece.
    pub(crate) fn full(reason: &str) -> Self {
        Self { gram: 1, square: 1, product: 1, reason: reason.into() }
    }

    /// How a bucket's products are formed whose workspace holds `batch` matrices.
    pub(crate) fn choose(
        choice: SymmetricProducts,
        recipe: &Recipe,
        shape: MatrixShape,
        batch: usize,
        precision: Precision,
    ) -> Self {
        match choice {
            SymmetricProducts::Full | SymmetricProducts::Strips(0 | 1) => {
                Self::full("symmetric products in full, as configured")
            }
            SymmetricProducts::Strips(n) => Self {
                gram: n,
                square: n,
                product: n,
                reason: format!("symmetric products in {n} strips of rows, as configured"),
            },
            SymmetricProducts::Auto => Self::modelled(recipe, shape, batch, precision),
        }
    }

    fn modelled(recipe: &Recipe, shape: MatrixShape, batch: usize, precision: Precision) -> Self {
        let mut found = Self::full("");
        let mut reasons = Vec::new();
        for (kind, name) in
            [(Kind::Gram, "X·Xᵀ"), (Kind::Square, "squares"), (Kind::Product, "other products")]
        {
            if !recipe.ops().iter().any(|op| Kind::of(op) == Some(kind)) {
                continue;
            }
            let time = |strips| time(kind, strips, shape, batch, precision);
            let full = time(1);
            let most = shape.short().div_ceil(TILE).min(MOST_STRIPS);
            let best = (2..=most).map(|p| (p, time(p))).min_by(|a, b| a.1.total_cmp(&b.1));
            let (strips, seconds) = match best {
                Some((p, t)) if t <= full * (1.0 - LEAST_SAVING) => (p, t),
                Some((_, t)) => (1, t),
                None => (1, full),
            };
            let us = |seconds: f64| 1e6 * seconds;
            reasons.push(match strips {
                1 if most == 1 => format!("{name} in full, which is one tile"),
                1 => format!(
                    "{name} in full: the best cut into strips is modelled at {:.0} us against {:.0}",
                    us(seconds),
                    us(full)
                ),
                _ => format!(
                    "{name} in {strips} strips: modelled at {:.0} us against {:.0} in full",
                    us(seconds),
                    us(full)
                ),
            });
            match kind {
                Kind::Gram => found.gram = strips,
                Kind::Square => found.square = strips,
                Kind::Product => found.product = strips,
            }
        }
        found.reason = reasons.join("; ");
        found
    }

    /// Whether any product is formed in more than one piece.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.gram > 1 || self.square > 1 || self.product > 1
    }

    /// Strips that an operation's result is cut into; 1 for an operation that forms no symmetric product.
    #[must_use]
    pub fn of(&self, op: &Op) -> usize {
        match Kind::of(op) {
            Some(Kind::Gram) => self.gram,
            Some(Kind::Square) => self.square,
            Some(Kind::Product) => self.product,
            None => 1,
        }
    }
}

/// Side of a tile of a product, and processors that each form one at a time.
const TILE: usize = 128;
const PROCESSORS: usize = 132;
/// Bytes per second of memory.
pub(crate) const BANDWIDTH: f64 = 3.0e12;
/// Seconds that a launch costs in a stream of launches; assumed.
const LAUNCH: f64 = 2e-6;
/// What a cut must save at least, as part of the time in full.
const LEAST_SAVING: f64 = 0.05;
/// More strips save little: eight are 9/16 of the FLOPs.
const MOST_STRIPS: usize = 8;

/// FLOP per second of products.
pub(crate) fn rate(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 67e12,
        Precision::Tf32 => 494.7e12,
        Precision::Bf16 | Precision::Fp16 => 798e12,
    }
}

/// Seconds that a symmetric product of a batch takes in so many strips, by a model: whole rounds of tiles over the
/// processors, or memory if that takes longer, launches, and the mirror's traffic.
///
/// The constants are an H100's and stay so on every device: a plan is the same everywhere, so that its bits are.
fn time(kind: Kind, count: usize, shape: MatrixShape, batch: usize, precision: Precision) -> f64 {
    let (n, k) = (shape.short(), kind.inner(shape));
    let bytes = |elements: usize| (batch * elements * precision.bytes()) as f64 / BANDWIDTH;
    let tile_time = (2 * TILE * TILE) as f64 * k as f64 / (rate(precision) / PROCESSORS as f64);
    let products: f64 = strips(n, count)
        .map(|(start, end)| {
            let tiles = batch * (end - start).div_ceil(TILE) * end.div_ceil(TILE);
            let compute = tiles.div_ceil(PROCESSORS) as f64 * tile_time;
            let other = if kind.is_mirrored_anyway() { (end - start) * k } else { 0 };
            compute.max(bytes(end * k + other + (end - start) * end)) + LAUNCH
        })
        .sum();
    // Half is read, half is written.
    let mirror = if count == 1 || kind.is_mirrored_anyway() { 0.0 } else { LAUNCH + bytes(n * n) };
    products + mirror
}

impl Recipe {
    /// Matrix products as the CUDA device calls them for one bucket.
    #[must_use]
    pub fn calls(&self, shape: MatrixShape, symmetric: &SymmetricStrips) -> u64 {
        let calls = |op: &Op| match op {
            Op::Gram { .. } | Op::Symmetric { .. } => {
                strips(shape.short(), symmetric.of(op)).count() as u64
            }
            Op::Apply { .. } => 1,
            Op::AolScale { .. } => 0,
        };
        self.ops().iter().map(calls).sum()
    }

    /// GEMM FLOPs that the CUDA device executes for one matrix; `u64::MAX` where there are more. No
    /// [plan](crate::Plan) has so many.
    #[must_use]
    pub fn executed_flops(&self, shape: MatrixShape, symmetric: &SymmetricStrips) -> u64 {
        let (n, m) = (shape.short() as u64, shape.long() as u64);
        let product = |a: u64, b: u64| a.saturating_mul(b).saturating_mul(2);
        let flops = |op: &Op| match Kind::of(op) {
            Some(kind) => {
                product(kind.inner(shape) as u64, formed(shape.short(), symmetric.of(op)))
            }
            None if matches!(op, Op::Apply { .. }) => product(n.saturating_mul(n), m),
            None => 0,
        };
        self.ops().iter().map(flops).fold(0, u64::saturating_add)
    }

    /// Kernels that the CUDA device launches besides the [products](Recipe::calls), for any number of matrices up to
    /// 65535 (more are split).
    #[must_use]
    pub fn kernel_launches(&self, shape: MatrixShape, symmetric: &SymmetricStrips) -> u64 {
        let launches = |op: &Op| match Kind::of(op) {
            // A second addend is added by the kernel that completes the product; a product of two matrices is mirrored.
            Some(Kind::Product) => 1,
            // Symmetric as they stand, unless only a part was formed.
            Some(Kind::Gram | Kind::Square) => {
                u64::from(strips(shape.short(), symmetric.of(op)).count() > 1)
            }
            // Factors, then both operands scaled.
            None if matches!(op, Op::AolScale { .. }) => 3,
            None => 0,
        };
        self.ops().iter().map(launches).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::presets::preset;
    use crate::recipe::Method;

    fn jordan() -> Recipe {
        Recipe::new(&preset("jordan").unwrap(), &Method::Standard).unwrap()
    }

    fn auto(rows: usize, cols: usize, batch: usize, precision: Precision) -> SymmetricStrips {
        let shape = MatrixShape { rows, cols };
        SymmetricStrips::choose(SymmetricProducts::Auto, &jordan(), shape, batch, precision)
    }

    #[test]
    fn strips_cover_every_row_once_and_are_about_equal() {
        for n in 1..300 {
            for count in 1..12 {
                let all: Vec<_> = strips(n, count).collect();
                assert_eq!(all.len(), count.min(n), "{n} {count}");
                assert_eq!((all[0].0, all[all.len() - 1].1), (0, n));
                assert!(all.windows(2).all(|w| w[0].1 == w[1].0) && all.iter().all(|s| s.0 < s.1));
            }
        }
        assert_eq!(strips(768, 3).collect::<Vec<_>>(), [(0, 256), (256, 512), (512, 768)]);
        assert_eq!(strips(127, 2).collect::<Vec<_>>(), [(0, 64), (64, 127)]);
        assert_eq!(strips(5, 2).collect::<Vec<_>>(), [(0, 2), (2, 5)]);
        // (p + 1)/(2p) of n².
        assert_eq!(formed(768, 1), 768 * 768);
        assert_eq!(formed(768, 2), 768 * 768 * 3 / 4);
        assert_eq!(formed(1024, 4), 1024 * 1024 * 5 / 8);
    }

    #[test]
    fn flops_calls_and_launches_by_hand() {
        let shape = MatrixShape { rows: 1024, cols: 2048 };
        let strips = SymmetricStrips { gram: 2, square: 4, product: 8, reason: String::new() };
        let n3 = 1024u64.pow(3);
        // An iteration: X·Xᵀ in 2 strips, a square in 4, and a product with X.
        let recipe = jordan();
        assert_eq!(recipe.executed_flops(shape, &strips), 5 * n3 * (3 + 4) + 5 * n3 / 4 * 5);
        assert_eq!(recipe.calls(shape, &strips), 5 * (2 + 4 + 1));
        assert_eq!(recipe.kernel_launches(shape, &strips), 5 * 2);
        let full = SymmetricStrips::full("");
        assert_eq!(recipe.executed_flops(shape, &full), recipe.flops(shape).full);
        assert_eq!(recipe.calls(shape, &full), recipe.gemms() as u64);
        assert_eq!(recipe.kernel_launches(shape, &full), 0);
        // Never below one triangle, and near it.
        for count in 2..9 {
            let strips = SymmetricStrips {
                gram: count,
                square: count,
                product: count,
                reason: String::new(),
            };
            let executed = recipe.executed_flops(shape, &strips);
            let flops = recipe.flops(shape);
            assert!(flops.symmetric < executed && executed < flops.full, "{count}");
        }
    }

    #[test]
    fn strips_pay_for_large_matrices_and_long_sums() {
        // A square of 768 is as much traffic for the mirror as it saves in products.
        let small = auto(768, 768, 48, Precision::Bf16);
        assert_eq!((small.gram, small.square), (1, 1), "{}", small.reason);
        // With four times the sum its X·Xᵀ is worth it, its squares are not.
        let long = auto(768, 3072, 48, Precision::Bf16);
        assert!(long.gram > 1 && long.square == 1, "{}", long.reason);
        assert!(long.is_cut() && !small.is_cut());
        let large = auto(4096, 4096, 4, Precision::Bf16);
        assert!(large.gram >= 4 && large.square >= 4, "{}", large.reason);
        // Where products are slow, smaller ones are worth cutting.
        let slow = auto(768, 768, 48, Precision::F32);
        assert!(slow.gram > 1 && slow.square > 1, "{}", slow.reason);
        // One tile cannot be cut, and one matrix does not fill the device.
        assert_eq!(auto(128, 4096, 64, Precision::F32).gram, 1);
        assert_eq!(auto(768, 768, 1, Precision::Bf16).gram, 1);
        // Orientation is no part of it.
        assert_eq!(auto(3072, 768, 48, Precision::Bf16), long);
    }

    #[test]
    fn products_that_are_mirrored_anyway_are_cut_first() {
        let recipe = Recipe::new(&preset("tuned_bf16").unwrap(), &Method::Standard).unwrap();
        let shape = MatrixShape { rows: 1024, cols: 1024 };
        let found =
            SymmetricStrips::choose(SymmetricProducts::Auto, &recipe, shape, 48, Precision::Bf16);
        assert!(found.product > 1 && found.square == 1, "{}", found.reason);
    }
}
