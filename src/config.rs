//! What a user chooses: rules of parameter groups, and what holds for the whole optimizer.

use serde::{Deserialize, Serialize};

use crate::coefficients::{CoefficientSchedule, presets};
use crate::error::{Error, Result};
use crate::limits;
use crate::precision::{Dtype, Precision};
use crate::scale::UpdateScale;
use crate::symmetric::SymmetricProducts;

/// How the momentum buffer absorbs a gradient. Buffers of the two modes differ by `1/(1−β)` and are not
/// interchangeable; checkpoints record the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MomentumMode {
    /// `m ← β·m + (1−β)·g`: PyTorch, KellerJordan/Muon (default).
    #[default]
    Ema,
    /// `m ← β·m + g`: Moonlight, dion, burn.
    Sum,
}

/// Whether the direction looks one blend ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nesterov {
    /// Direction `(1−β)·g + β·m` (EMA) or `g + β·m` (sum), `m` already updated (default).
    #[default]
    On,
    /// Direction `m`.
    Off,
}

/// How weight decay shrinks a parameter: before the update is added, or, with L2, by way of the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightDecayMode {
    /// `param·(1 − lr·weight_decay)`, with the unscaled lr (default).
    #[default]
    Decoupled,
    /// As decoupled, but only where param and orthogonalized update have no opposite signs.
    Cautious,
    /// `param·(1 − weight_decay)`: the learning rate plays no part.
    Independent,
    /// `param·(1 − weight_decay·lr²)`, with the unscaled lr (PaLM, arXiv 2204.02311).
    Palm,
    /// `gradient + weight_decay·param` before momentum takes the gradient up; nothing is kept back afterwards. The
    /// gradient is the scaled and clipped one. Where there is a master copy, it is what is added.
    L2,
}

/// What is done to the direction before it becomes the update.
///
/// In a file `"identity"`, `"frobenius"`, `"exact_svd"`, the name of a preset such as `"jordan"`, or a table of a `schedule` (a
/// preset's name, or a table as in [`CoefficientSchedule::from_toml_str`]) and, where wanted, its `iterations`.
#[derive(Debug, Clone, PartialEq)]
pub enum Orthogonalizer {
    /// Nothing: stochastic gradient descent with momentum.
    Identity,
    /// `X / ‖X‖_F`: steepest descent in the Frobenius norm, gradient descent of unit length.
    Frobenius,
    /// The exact polar factor by singular value decomposition; the limit every polynomial aims at.
    ExactSvd,
    /// Newton–Schulz iterations by a coefficient schedule.
    Polynomial {
        /// The polynomials.
        schedule: CoefficientSchedule,
        /// How many of them; `None` for as many as the schedule has.
        iterations: Option<usize>,
    },
}

impl Orthogonalizer {
    /// The polynomial orthogonalizer of a preset.
    ///
    /// # Errors
    /// An unknown preset name; the message suggests the nearest.
    pub fn preset(name: &str) -> Result<Self> {
        Ok(Self::Polynomial { schedule: presets::preset(name)?, iterations: None })
    }

    /// Name in plans, reports and checkpoints.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Identity => "identity".into(),
            Self::Frobenius => "frobenius".into(),
            Self::ExactSvd => "exact_svd".into(),
            Self::Polynomial { schedule, iterations: None } => schedule.name().into(),
            Self::Polynomial { schedule, iterations: Some(n) } => {
                format!("{} x {n}", schedule.name())
            }
        }
    }
}

/// How a plan evaluates the polynomials of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodChoice {
    /// The cheapest method whose rounding error is no loss; see [`crate::Plan`] (default). In f32 its error is at most a
    /// hundredth of the schedule's own distance to the polar factor, in the other precisions near the standard form's.
    #[default]
    Auto,
    /// [`Method::Standard`](crate::recipe::Method::Standard).
    Standard,
    /// [`Method::Gram`](crate::recipe::Method::Gram) with these groups, whatever its rounding error.
    Gram(Vec<usize>),
}

/// Hyper-parameters of a group under the Muon rule.
///
/// In a file the names are those of the fields, in lower case; what is absent is the default, and a name that is not
/// known is an error. Ranges are checked by [`Muon::add_group`](crate::Muon::add_group), as for a rule made by hand.
///
/// ```
/// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, Rule};
///
/// let rule: Rule = toml::from_str(
///     r#"
///     rule = "muon"
///     lr = 0.03
///     weight_decay_mode = "cautious"
///     update_scale = "match_rms_adamw"
///     orthogonalizer = "jordan"
///     "#,
/// )?;
/// let mut muon = Muon::new(Cpu::new()?, toml::from_str::<MuonConfig>("precision = \"bf16\"")?)?;
/// muon.add_group("hidden", rule)?;
///
/// assert!(toml::from_str::<MuonRule>("learning_rate = 0.03").is_err());
/// let rule: MuonRule = toml::from_str("momentum = 1.5")?;
/// assert!(muon.add_group("other", rule).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonRule {
    /// Learning rate, applied to an update of spectral norm ≈ 1 × update scale. At most 2⁶⁴, with the update scale and the
    /// step's `lr_factor` too. Default 0.02 (Jordan).
    pub lr: f64,
    /// β, dimensionless, in `[0, 1)` after rounding to f32. Default 0.95 (Jordan, PyTorch).
    pub momentum: f64,
    /// Default EMA.
    pub momentum_mode: MomentumMode,
    /// Default on.
    pub nesterov: Nesterov,
    /// Dimensionless, at least 0. Default 0.1 (PyTorch). What a step leaves of a parameter, `1 − lr·weight_decay`, must be in
    /// `[-1, 1]`. It is rounded to f32: below `lr·weight_decay` = 3e-8 (2⁻²⁵) it is 1, and there is no decay at all.
    pub weight_decay: f64,
    /// Default decoupled.
    pub weight_decay_mode: WeightDecayMode,
    /// Default original.
    pub update_scale: UpdateScale,
    /// Default the five-row Polar Express schedule of modded-nanogpt and dion.
    pub orthogonalizer: Orthogonalizer,
    /// Default automatic.
    pub method: MethodChoice,
    /// The guard of the normalisation, `max(‖X‖_F, norm_floor)`. Default the smallest normal f32, so that
    /// scaling a gradient never changes the update; PyTorch clamps at 1e-7. Smaller ones are refused, since f32 rounds them.
    pub norm_floor: f64,
}

impl Default for MuonRule {
    fn default() -> Self {
        Self {
            lr: 0.02,
            momentum: 0.95,
            momentum_mode: MomentumMode::default(),
            nesterov: Nesterov::default(),
            weight_decay: 0.1,
            weight_decay_mode: WeightDecayMode::default(),
            update_scale: UpdateScale::default(),
            orthogonalizer: Orthogonalizer::Polynomial {
                schedule: presets::default_schedule(),
                iterations: None,
            },
            method: MethodChoice::default(),
            norm_floor: f64::from(f32::MIN_POSITIVE),
        }
    }
}

/// Hyper-parameters of a group under the AdamW rule: what is not a hidden matrix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWRule {
    /// Learning rate. At most 2⁶⁴, with the step's `lr_factor` and over `1 − beta1` too. Default 1e-3 (PyTorch).
    pub lr: f64,
    /// Decay of the first moment, in `[0, 1)` after rounding to f32. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)` after rounding to f32. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; at least the smallest normal f32, 1.2e-38. Default 1e-8.
    pub eps: f64,
    /// Decoupled, dimensionless, at least 0. Default 0.01 (PyTorch). As for [`MuonRule::weight_decay`], `1 − lr·weight_decay` is
    /// rounded to f32: below `lr·weight_decay` = 3e-8 it is 1, and there is no decay at all.
    pub weight_decay: f64,
}

impl Default for AdamWRule {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// The rule of a parameter group. In a file a table with `rule = "muon"` or `rule = "adamw"` among its fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase")]
pub enum Rule {
    /// Momentum, orthogonalization, scaled update: for hidden matrices. Boxed: a schedule is large.
    Muon(Box<MuonRule>),
    /// AdamW: for embeddings, output heads, vectors.
    AdamW(AdamWRule),
}

impl From<MuonRule> for Rule {
    fn from(rule: MuonRule) -> Self {
        Self::Muon(Box::new(rule))
    }
}

impl From<AdamWRule> for Rule {
    fn from(rule: AdamWRule) -> Self {
        Self::AdamW(rule)
    }
}

/// What happens to a matrix whose gradient, direction or update is not finite.
///
/// An update is judged by its size as well: one that would change an element by more than 2¹⁰² ≈ 5.1e30 is skipped, so a finite
/// parameter stays finite. With [`Orthogonalizer::Identity`] the norm of the direction stands for its largest element; after
/// a polynomial in standard form no element is above 1.5, and nothing is left to judge. A tensor under AdamW is skipped where
/// the norm of its scaled gradient is not below 2⁶³ ≈ 9.2e18: its second moment would overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// That matrix, or that tensor under AdamW, is skipped: parameter (no decay), state and step count stay bit for bit;
    /// counted and reported (default).
    #[default]
    Skip,
    /// If a gradient has a NaN or an infinity, the step is an error that names the parameter, and nothing has changed. What turns
    /// out not to be finite later, as momentum does that overflows, is skipped and counted.
    Error,
}

/// What an optimizer, or a group under the Muon rule, says to having nothing that it could orthogonalize.
///
/// # Example
/// ```
/// use muon_cuda::{
///     AdamWRule, Cpu, Muon, MuonConfig, ParamSpec, StepOptions, StepTensor, WithoutMuon,
/// };
///
/// let step = |without_muon| {
///     let mut muon = Muon::new(Cpu::new()?, MuonConfig { without_muon, ..MuonConfig::default() })?;
///     let rest = muon.add_group("rest", AdamWRule::default())?;
///     let b = muon.add_param(rest, ParamSpec::new("embedding", &[3]))?;
///     let (mut bias, grad) = (vec![0.0f32; 3], vec![1.0f32; 3]);
///     muon.step(&StepOptions::default(), &mut [StepTensor::new(b, &mut bias, &grad)])
/// };
/// assert!(step(WithoutMuon::Refuse).unwrap_err().to_string().contains("no parameter is under the Muon rule"));
/// assert_eq!(step(WithoutMuon::Allow)?.adamw, 1);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutMuon {
    /// It is an error: most often a name or a shape did not match (default).
    #[default]
    Refuse,
    /// It steps what it has: a stage of a pipeline, a device that holds embeddings alone, a group that is empty for now.
    Allow,
}

/// How bf16 parameters absorb an update smaller than their spacing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Bf16Params {
    /// An f32 master copy is kept in the state; the parameter is its rounding (default, +4 bytes an element).
    ///
    /// The copy is made from the parameter in the first step that gives it a gradient, skipped or not. From then on every
    /// step writes the parameter from the copy: **whoever writes the parameter between steps** (loads weights, averages,
    /// prunes) must call [`Muon::refresh_master`](crate::Muon::refresh_master), or the next step undoes it. The CPU compares 64 elements of each parameter
    /// with their copies before a step, which costs nothing, and refuses the step where they differ; a write that touches
    /// none of them is not seen. CUDA does not look: it would read 2 bytes an element more and wait for the answer.
    #[default]
    Master,
    /// Rounded up or down at random, with the right expectation; the bits depend on this seed, the
    /// parameter's name and step count, and the element's index, and on nothing else.
    Stochastic {
        /// Seed of the random bits.
        seed: u64,
    },
    /// Rounded to nearest, ties to even, once a step. An update of less than half the spacing is lost (the spacing is
    /// 2⁻⁸ to 2⁻⁷ of the parameter). PyTorch does so too, and rounds twice: after the decay and after the update.
    Nearest,
}

/// What holds for the whole optimizer. In a file the names are those of the fields, as in [`MuonRule`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MuonConfig {
    /// What the iterate is stored in. Default the device's own ([`Device::DEFAULT_PRECISION`](crate::Device::DEFAULT_PRECISION)): bf16
    /// on CUDA, f32 on the CPU, and f32 for a plan without a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// f32 (default) or bf16.
    pub momentum_dtype: Dtype,
    /// Default an f32 master copy.
    pub bf16_params: Bf16Params,
    /// Default skip.
    pub non_finite: NonFinite,
    /// Default refuse.
    pub without_muon: WithoutMuon,
    /// How CUDA forms symmetric products. Default by a model of their time; in full it takes the fewest launches.
    pub symmetric_products: SymmetricProducts,
    /// Bytes of workspace a step may hold; buckets are processed in chunks that fit. At least one matrix of
    /// each shape is always held; the plan tells the bytes. Default 1 GiB.
    pub workspace_limit: usize,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            precision: None,
            momentum_dtype: Dtype::F32,
            bf16_params: Bf16Params::default(),
            non_finite: NonFinite::default(),
            without_muon: WithoutMuon::default(),
            symmetric_products: SymmetricProducts::default(),
            workspace_limit: 1 << 30,
        }
    }
}

impl MuonConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        if !matches!(self.momentum_dtype, Dtype::F32 | Dtype::Bf16) {
            return Err(Error::dtype_mismatch("momentum", "f32 or bf16", self.momentum_dtype));
        }
        if self.symmetric_products == SymmetricProducts::Strips(0) {
            return Err(Error::invalid_config(
                "symmetric_products: expected at least one strip, found `0`",
            ));
        }
        Ok(())
    }
}

/// The one check of a learning rate.
pub(crate) fn validate_lr(lr: f64) -> Result<()> {
    limits::rate("lr", lr)
}

impl Rule {
    /// Learning rate of the group.
    #[must_use]
    pub fn lr(&self) -> f64 {
        match self {
            Self::Muon(r) => r.lr,
            Self::AdamW(r) => r.lr,
        }
    }

    /// Whether it is the Muon rule.
    #[must_use]
    pub fn is_muon(&self) -> bool {
        matches!(self, Self::Muon(_))
    }

    /// Numbers by themselves; what a step makes of several is checked by the step.
    pub(crate) fn validate(&self) -> Result<()> {
        match self {
            Self::Muon(r) => {
                validate_lr(r.lr)?;
                limits::share("momentum", r.momentum)?;
                limits::weight_decay(r.weight_decay)?;
                r.update_scale.validate()?;
                limits::positive("norm_floor", r.norm_floor)?;
                if let Orthogonalizer::Polynomial { schedule, iterations: Some(n) } =
                    &r.orthogonalizer
                {
                    schedule.with_iterations(*n)?;
                }
                Ok(())
            }
            Self::AdamW(r) => {
                validate_lr(r.lr)?;
                limits::share("beta1", r.beta1)?;
                limits::share("beta2", r.beta2)?;
                limits::positive("eps", r.eps)?;
                limits::weight_decay(r.weight_decay)
            }
        }
    }

    /// Whether a plan made for one rule is that of the other: they differ in scalars alone, which every step reads anew.
    pub(crate) fn plans_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Muon(a), Self::Muon(b)) => {
                a.orthogonalizer == b.orthogonalizer
                    && a.method == b.method
                    && a.norm_floor.to_bits() == b.norm_floor.to_bits()
            }
            (Self::AdamW(_), Self::AdamW(_)) => true,
            _ => false,
        }
    }

    /// The parts of a rule that give a state buffer its meaning; checkpoints of other modes are refused.
    pub(crate) fn modes(&self) -> String {
        match self {
            Self::Muon(r) => match r.momentum_mode {
                MomentumMode::Ema => "muon, momentum ema".into(),
                MomentumMode::Sum => "muon, momentum sum".into(),
            },
            Self::AdamW(_) => "adamw".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        Rule::from(MuonRule::default()).validate().unwrap();
        Rule::from(AdamWRule::default()).validate().unwrap();
        // The ends of the ranges are inside.
        let adamw = AdamWRule {
            lr: 0.0,
            beta1: 0.999_999_9,
            beta2: 0.0,
            eps: f64::from(f32::MIN_POSITIVE),
            weight_decay: 0.0,
        };
        Rule::from(adamw).validate().unwrap();
        MuonConfig::default().validate().unwrap();
    }

    #[test]
    fn every_bad_number_is_refused_with_its_name() {
        type Break = fn(&mut MuonRule, f64);
        let cases: [(&str, Break, &[f64]); 8] = [
            ("lr", |r, x| r.lr = x, &[-1e-9, f64::NAN, f64::INFINITY]),
            ("momentum", |r, x| r.momentum = x, &[1.0, -0.1, 2.0, f64::NAN]),
            ("weight_decay", |r, x| r.weight_decay = x, &[-0.1, f64::NAN, f64::INFINITY]),
            ("norm_floor", |r, x| r.norm_floor = x, &[0.0, -1.0, f64::NAN]),
            // Finite in f64, but not what a device reads.
            ("lr", |r, x| r.lr = x, &[1e39, 1.9e19, f64::MAX]),
            ("momentum", |r, x| r.momentum = x, &[0.999_999_99, 1.0 - f64::EPSILON]),
            ("weight_decay", |r, x| r.weight_decay = x, &[1e300, 3.5e38]),
            ("norm_floor", |r, x| r.norm_floor = x, &[1e-300, 1e-39, 1e300, f64::INFINITY]),
        ];
        for (name, set, values) in cases {
            for &value in values {
                let mut rule = MuonRule::default();
                set(&mut rule, value);
                let e = Rule::from(rule).validate().unwrap_err();
                assert!(e.is_invalid_config() && e.to_string().contains(name), "{e}");
                let found = [format!("found `{value}`"), format!("found `{value:e}`")];
                assert!(found.iter().any(|f| e.to_string().contains(f)), "{e}");
            }
        }
        for bad in [
            AdamWRule { eps: 0.0, ..AdamWRule::default() },
            AdamWRule { beta1: 1.0, ..AdamWRule::default() },
            AdamWRule { beta2: -0.1, ..AdamWRule::default() },
            AdamWRule { lr: f64::NAN, ..AdamWRule::default() },
            AdamWRule { weight_decay: -1.0, ..AdamWRule::default() },
            AdamWRule { eps: 1e-46, ..AdamWRule::default() },
            AdamWRule { eps: 1e-39, ..AdamWRule::default() },
            AdamWRule { eps: 1e39, ..AdamWRule::default() },
            AdamWRule { beta1: 1.0 - 1e-9, ..AdamWRule::default() },
            AdamWRule { beta2: 1.0 - 1e-9, ..AdamWRule::default() },
            AdamWRule { lr: 1e39, ..AdamWRule::default() },
            AdamWRule { weight_decay: 1e300, ..AdamWRule::default() },
        ] {
            assert!(Rule::from(bad).validate().unwrap_err().is_invalid_config(), "{bad:?}");
        }
    }

    #[test]
    fn an_exact_schedule_of_another_length_is_refused() {
        let schedule = presets::preset("you").unwrap();
        let rule = MuonRule {
            orthogonalizer: Orthogonalizer::Polynomial { schedule, iterations: Some(4) },
            ..MuonRule::default()
        };
        let e = Rule::from(rule).validate().unwrap_err();
        assert!(e.to_string().contains("exactly 5 iterations"), "{e}");
    }
}
