//! The plan of a step: which matrices go together, how each bucket is orthogonalized and why, and what it costs.
//!
//! A plan depends on the configuration, the rules and the registered shapes alone, so it is the same on
//! every device, and a CPU run in emulated bf16 predicts the GPU's.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::coefficients::{CoefficientSchedule, Normalization};
use crate::config::{MethodChoice, MuonConfig, MuonRule, Orthogonalizer};
use crate::error::{Error, Result, ResultExt};
use crate::method;
use crate::precision::Precision;
use crate::recipe::{Method, Recipe};
use crate::shape::{self, Block, MatrixShape};
use crate::symmetric::SymmetricStrips;

/// What is done to a matrix between pass A and pass B.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Treatment {
    /// The direction is the update.
    Identity,
    /// The direction over its Frobenius norm.
    Frobenius,
    /// The exact polar factor.
    ExactSvd,
    /// Normalise by `safety · max(‖X‖_F, norm_floor)`, then run the recipe.
    Polynomial {
        /// The matrix operations.
        recipe: Recipe,
        /// At least 1.
        safety: f64,
    },
}

impl Treatment {
    /// What the direction is stored in: the precision where there are products, else f32.
    #[must_use]
    pub fn stored_in(&self, precision: Precision) -> Precision {
        match self {
            Self::Polynomial { .. } => precision,
            Self::Identity | Self::Frobenius | Self::ExactSvd => Precision::F32,
        }
    }
}

/// When the CUDA device writes the momentum of a matrix. Either way a matrix that is skipped keeps its momentum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Commit {
    /// With the iterate, once the direction is known to be finite: nothing can make its update not finite.
    PassA,
    /// With the parameter, after the update was looked at: a Gram form in 16 bit can overflow, and a decomposition can
    /// fail. Gradient and momentum are read once more for it.
    AfterCheck,
}

impl Commit {
    fn of(treatment: &Treatment, method: Option<&Method>, precision: Precision) -> Self {
        match treatment {
            Treatment::ExactSvd => Self::AfterCheck,
            Treatment::Polynomial { .. }
                if precision != Precision::F32 && matches!(method, Some(Method::Gram { .. })) =>
            {
                Self::AfterCheck
            }
            _ => Self::PassA,
        }
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PassA => "momentum is committed in pass A, after the check of the direction",
            Self::AfterCheck => "momentum is committed in pass B, after the check of the update",
        })
    }
}

/// One matrix of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMatrix {
    /// Which parameter: its position among the optimizer's parameters.
    pub param: usize,
    /// Which of the parameter's matrices.
    pub matrix: usize,
    /// Where it lies in the parameter.
    pub block: Block,
}

/// Matrices of one shape that are treated alike, in one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Shape of every matrix in it.
    pub shape: MatrixShape,
    /// What is done to them.
    pub treatment: Treatment,
    /// The guard of the normalisation.
    pub norm_floor: f64,
    /// Name of the orthogonalizer, its schedule's name for polynomials.
    pub orthogonalizer: String,
    /// How the polynomials are evaluated; `None` for the other orthogonalizers.
    pub method: Option<Method>,
    /// Why this method, and any safety that was added for the precision.
    pub reason: String,
    /// When CUDA writes momentum; the CPU device always does so with the parameter.
    pub commit: Commit,
    /// The matrices, in registration order.
    pub matrices: Vec<PlannedMatrix>,
    /// How many of them the workspace holds at a time.
    pub slots: usize,
    /// How CUDA forms their symmetric products, and why; in full where there are none.
    pub symmetric: SymmetricStrips,
}

impl Bucket {
    /// GEMM FLOPs for the whole bucket, symmetric products by one triangle.
    #[must_use]
    pub fn flops(&self) -> u64 {
        match &self.treatment {
            Treatment::Polynomial { recipe, .. } => {
                recipe.flops(self.shape).symmetric * self.matrices.len() as u64
            }
            _ => 0,
        }
    }

    /// With symmetric products in full: no device executes more.
    fn flops_of_one(&self) -> u64 {
        match &self.treatment {
            Treatment::Polynomial { recipe, .. } => recipe.flops(self.shape).full,
            _ => 0,
        }
    }

    /// Workspace elements for one matrix.
    #[must_use]
    pub fn workspace_elements(&self) -> usize {
        match &self.treatment {
            Treatment::Polynomial { recipe, .. } => recipe.workspace_elements(self.shape),
            _ => self.shape.len(),
        }
    }

    fn is_treated_as(&self, other: &Self) -> bool {
        self.shape == other.shape
            && self.treatment == other.treatment
            && self.norm_floor == other.norm_floor
            && self.orthogonalizer == other.orthogonalizer
    }
}

/// The readable plan of a step; see [`crate::Muon::plan`].
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    precision: Precision,
    buckets: Vec<Bucket>,
    chunks: usize,
}

/// A Muon-rule parameter as the plan sees it.
pub(crate) struct PlanInput<'a> {
    pub param: usize,
    pub rule: &'a MuonRule,
    pub blocks: &'a [Block],
    pub name: &'a str,
}

impl Plan {
    /// # Errors
    /// A schedule whose safe sigma its normalisation does not guarantee, or Gram groups that do not add up.
    pub(crate) fn new<'a>(
        config: &MuonConfig,
        inputs: impl IntoIterator<Item = PlanInput<'a>>,
    ) -> Result<Self> {
        Self::judged(config, Safety::Refuse, inputs)
    }

    /// # Errors
    /// As [`Plan::new`], but for schedules that the caller runs at their own risk.
    pub(crate) fn judged<'a>(
        config: &MuonConfig,
        safety: Safety,
        inputs: impl IntoIterator<Item = PlanInput<'a>>,
    ) -> Result<Self> {
        let precision = config.precision.unwrap_or_default();
        let mut buckets: Vec<Bucket> = Vec::new();
        // The bucket of every rule and shape that was seen: matrices are many, and a treatment takes long to work out.
        let mut known: HashMap<(usize, MatrixShape), usize> = HashMap::new();
        let mut matrices = 0;
        for input in inputs {
            for (matrix, &block) in input.blocks.iter().enumerate() {
                matrices += 1;
                shape::check_matrices(matrices)?;
                let key = (std::ptr::from_ref(input.rule).addr(), block.shape);
                let index = match known.get(&key) {
                    Some(index) => *index,
                    None => {
                        let bucket = Self::treat(precision, safety, input.rule, block.shape)
                            .context(|| match input.name {
                                "" => format!("{} matrix", block.shape),
                                name => format!("plan of `{name}` [{}]", block.shape),
                            })?;
                        let same = buckets.iter().position(|b| b.is_treated_as(&bucket));
                        let index = same.unwrap_or(buckets.len());
                        if same.is_none() {
                            buckets.push(bucket);
                        }
                        known.insert(key, index);
                        index
                    }
                };
                let planned = PlannedMatrix { param: input.param, matrix, block };
                buckets[index].matrices.push(planned);
            }
        }
        check_size(&buckets)?;
        let chunks = Self::chunk(config.workspace_limit, precision, &mut buckets);
        for bucket in &mut buckets {
            if let Treatment::Polynomial { recipe, .. } = &bucket.treatment {
                bucket.symmetric = SymmetricStrips::choose(
                    config.symmetric_products,
                    recipe,
                    bucket.shape,
                    bucket.slots,
                    precision,
                );
            }
        }
        Ok(Self { precision, buckets, chunks })
    }

    fn treat(
        precision: Precision,
        safety: Safety,
        rule: &MuonRule,
        shape: MatrixShape,
    ) -> Result<Bucket> {
        let (treatment, method, reason) = match &rule.orthogonalizer {
            Orthogonalizer::Identity => {
                (Treatment::Identity, None, "the direction itself is the update".into())
            }
            Orthogonalizer::Frobenius => {
                (Treatment::Frobenius, None, "unit Frobenius norm: gradient descent".into())
            }
            Orthogonalizer::ExactSvd => {
                (Treatment::ExactSvd, None, "singular value decomposition in f64".into())
            }
            Orthogonalizer::Polynomial { schedule, iterations } => {
                let prepared = PreparedSchedule::new(schedule, *iterations, precision, safety)?;
                let (method, why) = prepared.method(&rule.method, precision, shape);
                let recipe = Recipe::new(&prepared.schedule, &method)?;
                let reason = match prepared.added_safety {
                    Some(s) => format!(
                        "{why}; coefficients divided by safety {s}, without which they leave no room for {precision} rounding"
                    ),
                    None => why,
                };
                (Treatment::Polynomial { recipe, safety: prepared.safety }, Some(method), reason)
            }
        };
        Ok(Bucket {
            shape,
            commit: Commit::of(&treatment, method.as_ref(), precision),
            treatment,
            norm_floor: rule.norm_floor,
            orthogonalizer: rule.orthogonalizer.name(),
            method,
            reason,
            matrices: Vec::new(),
            slots: 0,
            symmetric: SymmetricStrips::full("no symmetric products"),
        })
    }

    /// Fewest chunks that keep the workspace under the limit, every bucket spread evenly over them.
    fn chunk(workspace_limit: usize, precision: Precision, buckets: &mut [Bucket]) -> usize {
        let most = buckets.iter().map(|b| b.matrices.len()).max().unwrap_or(1);
        let bytes = |chunks: usize| -> usize {
            buckets
                .iter()
                .map(|b| {
                    b.matrices
                        .len()
                        .div_ceil(chunks)
                        .saturating_mul(b.workspace_elements())
                        .saturating_mul(precision.bytes())
                })
                .fold(0, usize::saturating_add)
        };
        // More chunks never take more: halve what is left to look at.
        let (mut low, mut high) = (1, most.max(1));
        while low < high {
            let middle = low + (high - low) / 2;
            match bytes(middle) <= workspace_limit {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let chunks = low;
        for b in buckets {
            b.slots = b.matrices.len().div_ceil(chunks);
        }
        chunks
    }

    /// What the iterate is stored in.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The buckets, in order of first registration.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// How often the workspace is filled in one step.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// GEMM FLOPs of a step, symmetric products by one triangle.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.buckets.iter().map(Bucket::flops).sum()
    }

    /// Elements under the Muon rule.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.buckets.iter().map(|b| b.shape.len() * b.matrices.len()).sum()
    }

    /// Bytes of workspace at the iterate's element size. The CPU device keeps emulated 16-bit numbers in
    /// f32 and needs twice as much for them.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.buckets.iter().map(|b| b.slots * b.workspace_elements() * self.precision.bytes()).sum()
    }

    /// Which matrices of a bucket belong to a chunk.
    pub(crate) fn segment(bucket: &Bucket, chunk: usize) -> &[PlannedMatrix] {
        let start = (chunk * bucket.slots).min(bucket.matrices.len());
        let end = (start + bucket.slots).min(bucket.matrices.len());
        &bucket.matrices[start..end]
    }
}

/// What to do about a schedule that its normalisation or its rounding does not keep safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Safety {
    /// An error, before anything is computed (default).
    #[default]
    Refuse,
    /// Run it as it is: the result may be anything, not finite included.
    RunAnyway,
}

/// Most elements of a plan: 2⁵⁶. State, workspace and traffic take less than 256 bytes of each, which 64 bits count.
const MOST_ELEMENTS: usize = 1 << 56;

/// # Errors
/// Elements or FLOPs that 64 bits do not count. After it no sum over a plan can overflow.
fn check_size(buckets: &[Bucket]) -> Result<()> {
    let (mut elements, mut flops) = (0usize, 0u64);
    for bucket in buckets {
        let matrices = bucket.matrices.len();
        let (workspace, of_one) = (bucket.workspace_elements(), bucket.flops_of_one());
        let all = bucket.shape.len().max(workspace).checked_mul(matrices);
        elements = all
            .and_then(|all| elements.checked_add(all))
            .filter(|all| *all <= MOST_ELEMENTS)
            .ok_or_else(|| {
                Error::shape_mismatch(
                    format!("elements of {matrices} matrices {} and their workspace", bucket.shape),
                    format!("at most {MOST_ELEMENTS}"),
                    "more",
                )
            })?;
        let all = of_one.checked_mul(matrices as u64).and_then(|all| flops.checked_add(all));
        flops = all.filter(|all| *all < u64::MAX).ok_or_else(|| {
            Error::shape_mismatch(
                format!("FLOPs of a step with {matrices} matrices {}", bucket.shape),
                format!("at most {}", u64::MAX),
                "more",
            )
        })?;
    }
    Ok(())
}

/// The largest singular value a schedule may reach under rounding: that up to which its exact image counts as safe.
const LARGEST_ROUNDED: f64 = 1.5;

/// A schedule with the asked number of iterations, made safe for a precision.
pub(crate) struct PreparedSchedule {
    pub schedule: CoefficientSchedule,
    /// Of the normalisation.
    pub safety: f64,
    pub added_safety: Option<f64>,
}

impl PreparedSchedule {
    /// # Errors
    /// An `Exact` schedule asked for another length; unless it is to run anyway, one that its normalisation does not
    /// keep safe, or one that diverges when it is rounded.
    pub(crate) fn new(
        schedule: &CoefficientSchedule,
        iterations: Option<usize>,
        precision: Precision,
        judged: Safety,
    ) -> Result<Self> {
        let schedule = match iterations {
            Some(n) => schedule.with_iterations(n)?,
            None => schedule.clone(),
        };
        let (schedule, added_safety) = match schedule.for_precision(precision.unit_roundoff()) {
            Err(_) if judged == Safety::RunAnyway => (schedule, None),
            prepared => prepared?,
        };
        let safety = match schedule.normalization() {
            Normalization::Frobenius { safety } => safety,
            Normalization::Aol => 1.0,
        };
        // A schedule that is safe in exact arithmetic may still have no room for the rounding of its stores.
        let largest = method::largest_rounded(&schedule, precision)?;
        if largest > LARGEST_ROUNDED && judged == Safety::Refuse {
            let tuned = match precision {
                Precision::Fp16 => "tuned_fp16",
                _ => "tuned_bf16",
            };
            return Err(Error::invalid_config(format!(
                "schedule `{}` diverges in {precision}: rounded at every store, a matrix that one row dominates can reach a \
                 singular value of {largest:.1e} (allowed: {LARGEST_ROUNDED}); use f32, or a schedule with room for \
                 rounding such as `{tuned}`",
                schedule.name()
            )));
        }
        Ok(Self { schedule, safety, added_safety })
    }

    /// The method for one shape, and why.
    pub(crate) fn method(
        &self,
        choice: &MethodChoice,
        precision: Precision,
        shape: MatrixShape,
    ) -> (Method, String) {
        match choice {
            MethodChoice::Standard => (Method::Standard, "standard form, as configured".into()),
            MethodChoice::Gram(groups) => (
                Method::Gram { groups: groups.clone() },
                "Gram form, as configured; its rounding error is the configuration's responsibility".into(),
            ),
            MethodChoice::Auto => {
                let c = method::choose(&self.schedule, precision, shape);
                let c = method::if_it_pays(c, &self.schedule, precision, shape);
                (c.method, c.reason)
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} matrices in {} buckets, {} chunk(s), iterate {}, {:.3} GFLOP, workspace {:.1} MiB",
            self.buckets.iter().map(|b| b.matrices.len()).sum::<usize>(),
            self.buckets.len(),
            self.chunks,
            self.precision,
            self.flops() as f64 / 1e9,
            self.workspace_bytes() as f64 / f64::from(1 << 20),
        )?;
        for b in &self.buckets {
            let method = b.method.as_ref().map(|m| format!(", {m}")).unwrap_or_default();
            writeln!(
                f,
                "  {} x [{}]: {}{method}, {:.3} GFLOP ({})",
                b.matrices.len(),
                b.shape,
                b.orthogonalizer,
                b.flops() as f64 / 1e9,
                b.reason
            )?;
            if b.symmetric.is_cut() {
                writeln!(f, "    on CUDA {}", b.symmetric.reason)?;
            }
            if b.commit == Commit::AfterCheck {
                writeln!(f, "    on CUDA {}", b.commit)?;
            }
        }
        Ok(())
    }
}
