//! An orthogonalization as a list of matrix operations: what every device executes, and what FLOPs,
//! bytes and store points are counted from.
//!
//! The result of each operation is rounded once, to the iterate's precision, when it is stored; sums
//! inside an operation are f32. A device adds nothing and leaves nothing out, so an emulated bf16 run on
//! the CPU rounds exactly where the GPU does.

use crate::coefficients::{CoefficientSchedule, Normalization, OddPolynomial};
use crate::error::{Error, Result};
use crate::shape::MatrixShape;

/// One of the two buffers of the iterate's shape; products go from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Iterate {
    /// Holds the normalised direction at the start.
    X0,
    /// The other one.
    X1,
}

impl Iterate {
    fn other(self) -> Self {
        match self {
            Self::X0 => Self::X1,
            Self::X1 => Self::X0,
        }
    }
}

/// A buffer of `short × short` elements, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Small(pub usize);

/// One matrix operation; `short`-side square matrices are symmetric and commute up to rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// `out ← X·Xᵀ` (wide) or `Xᵀ·X` (tall).
    Gram {
        /// The iterate.
        x: Iterate,
        /// Written.
        out: Small,
    },
    /// Scales the short-side rows of `x` by `dᵢ = 1/√max(Σⱼ|rᵢⱼ|, smallest normal)` and `r` by `dᵢ·dⱼ`, in place.
    AolScale {
        /// Read and written.
        x: Iterate,
        /// Read and written.
        r: Small,
    },
    /// `out ← alpha·a·b + beta·c + gamma·d`, symmetric, rounded once; `out` is none of the others.
    ///
    /// The lower triangle is formed and mirrored.
    Symmetric {
        /// Written.
        out: Small,
        /// Factor of the product.
        alpha: f32,
        /// Left operand.
        a: Small,
        /// Right operand.
        b: Small,
        /// Factor of `c`.
        beta: f32,
        /// Addend; may be `a` or `b`.
        c: Small,
        /// Factor of `d`; zero if there is no second addend.
        gamma: f32,
        /// Second addend.
        d: Small,
    },
    /// `out ← alpha·Q·X + beta·X` (wide) or `alpha·X·Q + beta·X` (tall).
    Apply {
        /// Written; not `x`.
        out: Iterate,
        /// Factor of the product.
        alpha: f32,
        /// The symmetric factor.
        q: Small,
        /// The iterate.
        x: Iterate,
        /// Factor of the iterate itself.
        beta: f32,
    },
}

/// How the polynomials of a schedule are evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Method {
    /// Every iteration multiplies the iterate: `3α + 1` n³ FLOPs each at degree 5, α = long/short.
    Standard,
    /// Iterations of a group work on the Gram matrix alone and multiply the iterate once, at the end of
    /// the group. Cheaper for α > 1; groups are kept short because rounding noise in the Gram matrix
    /// grows with the product of slopes within a group.
    Gram {
        /// Iterations in each group, in order; they add up to the schedule's length.
        groups: Vec<usize>,
    },
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Standard => f.write_str("standard"),
            Self::Gram { groups } => {
                f.write_str("gram(")?;
                for (i, g) in groups.iter().enumerate() {
                    if i > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{g}")?;
                }
                f.write_str(")")
            }
        }
    }
}

/// The operations of one orthogonalization, from the normalised direction in [`Iterate::X0`] to `result`.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    ops: Vec<Op>,
    small_buffers: usize,
    result: Iterate,
}

/// FLOPs of a recipe on one matrix, counting a multiply-add as two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flops {
    /// With symmetric products formed in full.
    pub full: u64,
    /// With only one triangle of symmetric products formed: the least this recipe can cost.
    pub symmetric: u64,
}

/// A step polynomial `r(R) = alpha·S + g·I` with `p(x) = x·r(x²)`, `S` in a small buffer.
struct StepFactor {
    alpha: f64,
    s: Small,
    g: f64,
}

struct Builder {
    ops: Vec<Op>,
    /// Buffers in use.
    taken: Vec<bool>,
}

#[expect(clippy::cast_possible_truncation, reason = "coefficients are f32 on every device")]
fn f32(x: f64) -> f32 {
    x as f32
}

impl Builder {
    fn take(&mut self) -> Small {
        let free = self.taken.iter().position(|t| !t).unwrap_or_else(|| {
            self.taken.push(false);
            self.taken.len() - 1
        });
        self.taken[free] = true;
        Small(free)
    }

    fn release(&mut self, s: Small) {
        self.taken[s.0] = false;
    }

    fn symmetric(&mut self, alpha: f64, a: Small, b: Small, beta: f64, c: Small) -> Small {
        self.symmetric_sum(alpha, a, b, (beta, c), (0.0, c))
    }

    fn symmetric_sum(
        &mut self,
        alpha: f64,
        a: Small,
        b: Small,
        (beta, c): (f64, Small),
        (gamma, d): (f64, Small),
    ) -> Small {
        let out = self.take();
        let (alpha, beta, gamma) = (f32(alpha), f32(beta), f32(gamma));
        self.ops.push(Op::Symmetric { out, alpha, a, b, beta, c, gamma, d });
        out
    }

    /// `r(R)` of one polynomial; the caller releases `s` unless it is `r`.
    fn step_factor(&mut self, p: &OddPolynomial, r: Small) -> StepFactor {
        match *p.coefficients() {
            [a, b] => StepFactor { alpha: b, s: r, g: a },
            [a, b, c] => StepFactor { alpha: 1.0, s: self.symmetric(c, r, r, b, r), g: a },
            [a, b, c, d, e] => {
                // The square is completed: with Z = √|e|·(R² + d/(2e)·R), e·R⁴ + d·R³ + c·R² + b·R is
                // ±Z² + beta·Z + gamma·R. Minimax steps nearly touch zero twice, so gamma is small, and
                // Z², unlike a product of two different rounded matrices, is symmetric before it is
                // mirrored: mirroring moves the error of large eigenvalues onto small ones. In bf16 the
                // product of two quadratics, its addends rounded first, erred by 43 at 32 × 64 where this
                // form errs by 0.11 at 48 × 96 (nonic3_band12, worst of eight spectra; NUMERICS.md). Adding
                // beta·Z + gamma·R rounded, so that one addend were left, makes it 0.14, and 3.7 times worse
                // at 192 × 384.
                let (root, half) = (e.abs().sqrt(), d / (2.0 * e));
                let beta = (c - e * half * half) / root;
                let gamma = b - beta * root * half;
                let z = self.symmetric(root, r, r, root * half, r);
                let s = self.symmetric_sum(e.signum(), z, z, (beta, z), (gamma, r));
                self.release(z);
                StepFactor { alpha: 1.0, s, g: a }
            }
            _ => StepFactor { alpha: 0.0, s: r, g: p.slope() },
        }
    }
}

impl Recipe {
    /// The operations for that schedule and method.
    ///
    /// # Errors
    /// Gram groups that are zero or do not add up to the number of iterations, or a polynomial of degree 9
    /// whose leading coefficient is zero.
    pub fn new(schedule: &CoefficientSchedule, method: &Method) -> Result<Self> {
        let polynomials = schedule.polynomials();
        let ones;
        let groups: &[usize] = match method {
            Method::Standard => {
                ones = vec![1; polynomials.len()];
                &ones
            }
            Method::Gram { groups } => groups,
        };
        let total = groups.iter().try_fold(0usize, |a, &b| a.checked_add(b));
        if groups.contains(&0) || total != Some(polynomials.len()) {
            return Err(Error::invalid_config(format!(
                "Gram groups of schedule `{}`: expected positive sizes that add up to {} iterations, found {groups:?}",
                schedule.name(),
                polynomials.len()
            )));
        }
        // Completing the square divides by the leading coefficient.
        if polynomials.iter().any(|p| p.degree() == 9 && p.coefficients().last() == Some(&0.0)) {
            return Err(Error::invalid_config(format!(
                "schedule `{}`: a polynomial of degree 9 needs a leading coefficient, found `0`",
                schedule.name()
            )));
        }
        let mut b = Builder { ops: Vec::new(), taken: Vec::new() };
        let mut x = Iterate::X0;
        let mut next = 0;
        for (g, &size) in groups.iter().enumerate() {
            let mut r = b.take();
            b.ops.push(Op::Gram { x, out: r });
            if g == 0 && schedule.normalization() == Normalization::Aol {
                b.ops.push(Op::AolScale { x, r });
            }
            // The product so far is alpha·S + g·I, with the identity kept implicit: storing it would
            // round every other entry to the unit_roundoff of the large diagonal.
            let mut q: Option<StepFactor> = None;
            for (i, p) in polynomials[next..next + size].iter().enumerate() {
                let step = b.step_factor(p, r);
                let last = i + 1 == size;
                let r_next = (!last).then(|| {
                    // (S + g)·R·(S + g) with R in the middle: noise in S that does not commute with R
                    // then stays what it is. (S + g)²·R multiplies it by g.
                    let w = b.symmetric(step.alpha, r, step.s, step.g, r);
                    let r_next = b.symmetric(step.alpha, step.s, w, step.g, w);
                    b.release(w);
                    r_next
                });
                q = Some(match q.take() {
                    None => step,
                    Some(q) => {
                        let terms = ((q.alpha * step.g, q.s), (q.g * step.alpha, step.s));
                        let alpha = q.alpha * step.alpha;
                        // The later factor on the left, as the iterations apply them.
                        let s = b.symmetric_sum(alpha, step.s, q.s, terms.0, terms.1);
                        b.release(q.s);
                        b.release(step.s);
                        StepFactor { alpha: 1.0, s, g: q.g * step.g }
                    }
                });
                if let Some(r_next) = r_next {
                    if q.as_ref().is_none_or(|q| q.s != r) {
                        b.release(r);
                    }
                    r = r_next;
                }
            }
            if let Some(q) = q {
                let out = x.other();
                b.ops.push(Op::Apply { out, alpha: f32(q.alpha), q: q.s, x, beta: f32(q.g) });
                x = out;
            }
            b.taken.fill(false);
            next += size;
        }
        Ok(Self { ops: b.ops, small_buffers: b.taken.len(), result: x })
    }

    /// The operations, in order.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// How many `short × short` buffers they need.
    #[must_use]
    pub fn small_buffers(&self) -> usize {
        self.small_buffers
    }

    /// Where the orthogonalized direction ends up.
    #[must_use]
    pub fn result(&self) -> Iterate {
        self.result
    }

    /// Number of matrix products.
    #[must_use]
    pub fn gemms(&self) -> usize {
        self.ops
            .iter()
            .filter(|op| matches!(op, Op::Gram { .. } | Op::Symmetric { .. } | Op::Apply { .. }))
            .count()
    }

    /// GEMM FLOPs for one matrix of that shape; `u64::MAX` where there are more. No [plan](crate::Plan) has so many.
    #[must_use]
    pub fn flops(&self, shape: MatrixShape) -> Flops {
        let (n, m) = (shape.short() as u128, shape.long() as u128);
        let product = |a: u128, b: u128, c: u128| a.saturating_mul(b).saturating_mul(c);
        let (mut full, mut symmetric) = (0u128, 0u128);
        for op in &self.ops {
            let (all, triangle) = match op {
                Op::Gram { .. } => (product(2 * n, n, m), product(n, n + 1, m)),
                Op::Symmetric { .. } => (product(2 * n, n, n), product(n, n + 1, n)),
                Op::Apply { .. } => (product(2 * n, n, m), product(2 * n, n, m)),
                Op::AolScale { .. } => (0, 0),
            };
            full = full.saturating_add(all);
            symmetric = symmetric.saturating_add(triangle);
        }
        let fitted = |flops| u64::try_from(flops).unwrap_or(u64::MAX);
        Flops { full: fitted(full), symmetric: fitted(symmetric) }
    }

    /// Elements of workspace for one matrix of that shape: two iterates and the small buffers; `usize::MAX` where there
    /// are more. No [plan](crate::Plan) has so many.
    #[must_use]
    pub fn workspace_elements(&self, shape: MatrixShape) -> usize {
        let small = shape.short().saturating_mul(shape.short()).saturating_mul(self.small_buffers);
        shape.len().saturating_mul(2).saturating_add(small)
    }
}
