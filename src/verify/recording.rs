//! What a recording says: its fields, each with its range, and the rules of its steps.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::OptimizerKind;
use super::fields::{OF_THE_RECORDING, known, named, one_of, take};
use crate::coefficients::{
    CoefficientSchedule, MOST_POLYNOMIALS, Normalization, OddPolynomial, Tail,
};
use crate::config::{
    AdamWRule, Bf16Params, MethodChoice, MomentumMode, MuonRule, Nesterov, Orthogonalizer, Rule,
    WeightDecayMode,
};
use crate::error::{Error, Result, ResultExt};
use crate::precision::Dtype;
use crate::scale::UpdateScale;
use crate::shape::Layout;

/// Steps of a case that does not say how many.
const STEPS: usize = 5;

/// A recording without its tensors.
#[derive(Debug)]
pub(super) struct Header {
    pub optimizer: OptimizerKind,
    pub framework: String,
    /// Names, and all fields, those of the whole recording included.
    pub cases: Vec<(String, Map<String, Value>)>,
}

/// One recorded trajectory.
#[derive(Debug)]
pub(super) struct Case {
    pub name: String,
    pub shape: Vec<usize>,
    /// The rule of each step.
    pub rules: Vec<Rule>,
    /// What the polynomials can amplify rounding by; 0 for AdamW.
    pub steepest: f64,
    pub layout: Layout,
    pub parts: Parts,
    /// Whether the parameter is the matrix `[out, everything else]`.
    pub is_conv: bool,
    pub param_dtype: Dtype,
    pub bf16_params: Bf16Params,
    pub arithmetic: Arithmetic,
    /// How far the framework's bf16 result lies from f64.
    pub recorded_distance: Option<f64>,
}

/// The matrices of a parameter along its fan-out axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Parts {
    Whole,
    Heads(usize),
    Split(Vec<usize>),
    Interleaved(Interleaved),
}

/// Matrix j is the rows j of every group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interleaved {
    pub groups: usize,
    pub rows: Vec<usize>,
}

/// Where the framework rounds within an iteration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// Once a matrix, as this crate does and PyTorch's `addmm`.
    Fused,
    /// `b·A`, `A·A`, `c·(A·A)` and sums each.
    Unfused,
}

/// A number for all steps, or one for each.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number or a list of one number a step")]
enum PerStep {
    One(f64),
    Each(Vec<f64>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected one row of coefficients or a list of rows")]
enum Coefficients {
    Row(Vec<f64>),
    Rows(Vec<Vec<f64>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected the name of a rule or {\"rms\": r}")]
enum AdjustLr {
    Name(String),
    Rms(Rms),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rms {
    rms: f64,
}

impl Header {
    /// # Errors
    /// JSON of another form, a field that nobody knows or that has no meaning here, no case.
    pub(super) fn parse(json: &str) -> Result<Self> {
        let form = |why: &dyn std::fmt::Display| {
            Error::parse(format!("not a recording of trajectories: {why}"))
        };
        let mut fields: Map<String, Value> = serde_json::from_str(json).map_err(|e| form(&e))?;
        let cases: Vec<Map<String, Value>> =
            take(&mut fields, "cases")?.ok_or_else(|| form(&"it has no `cases`"))?;
        let optimizer: OptimizerKind =
            take(&mut fields, "optimizer")?.ok_or_else(|| form(&"it has no `optimizer`"))?;
        let framework = take(&mut fields, "framework")?.unwrap_or_default();
        if cases.is_empty() {
            return Err(form(&"it has no case"));
        }
        known(&fields, optimizer, &OF_THE_RECORDING)?;
        let cases = cases
            .into_iter()
            .enumerate()
            .map(|(i, own)| {
                let mut all = fields.clone();
                all.extend(own);
                let name: String = take(&mut all, "name")
                    .context(|| format!("case {i}"))?
                    .ok_or_else(|| form(&format!("case {i} has no `name`")))?;
                known(&all, optimizer, &[]).context(|| format!("case `{name}`"))?;
                Ok((name, all))
            })
            .collect::<Result<_>>()?;
        Ok(Self { optimizer, framework, cases })
    }

    /// A case with its rules.
    ///
    /// # Errors
    /// A field that is missing, of another form, or out of its range.
    pub(super) fn case(&self, name: &str, fields: &Map<String, Value>) -> Result<Case> {
        Case::parse(name, fields.clone(), self.optimizer, &self.framework)
    }
}

impl PerStep {
    /// One value for each of so many steps.
    fn values(&self, field: &str, steps: usize) -> Result<Vec<f64>> {
        match self {
            Self::One(x) => Ok(vec![*x; steps]),
            Self::Each(list) if list.len() == steps => Ok(list.clone()),
            Self::Each(list) => Err(Error::shape_mismatch(
                format!("field `{field}`, a list"),
                format!("one number for each of {steps} steps"),
                format!("{} numbers", list.len()),
            )),
        }
    }
}

impl Case {
    fn parse(
        name: &str,
        mut fields: Map<String, Value>,
        optimizer: OptimizerKind,
        framework: &str,
    ) -> Result<Self> {
        let f = &mut fields;
        let missing = |what: &str| {
            Error::parse(format!(
                "the recording does not give `{what}`, which this optimizer needs"
            ))
        };
        let shape = match (take(f, "shape")?, take(f, "rows")?, take(f, "cols")?) {
            (Some(shape), None, None) => shape,
            (None, Some(rows), Some(cols)) => vec![rows, cols],
            _ => return Err(Error::parse("a case gives `shape`, or `rows` and `cols`")),
        };
        let lr: PerStep = take(f, "lr")?.ok_or_else(|| missing("lr"))?;
        let momentum: Option<PerStep> = take(f, "momentum")?;
        let steps: Option<usize> = take(f, "steps")?;
        let listed = [Some(&lr), momentum.as_ref()].into_iter().flatten().find_map(|x| match x {
            PerStep::Each(list) => Some(list.len()),
            PerStep::One(_) => None,
        });
        let steps = steps.or(listed).unwrap_or(STEPS);
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::invalid_config(format!(
                "steps: expected 1 to {MOST_STEPS}, found `{steps}`"
            )));
        }
        let lr = lr.values("lr", steps)?;
        let weight_decay = take(f, "weight_decay")?.ok_or_else(|| missing("weight_decay"))?;
        let eps = take(f, "eps")?.ok_or_else(|| missing("eps"))?;
        let param_dtype = one_of(f, "param_dtype", &[("f32", Dtype::F32), ("bf16", Dtype::Bf16)])?;
        let says_how = f.contains_key("bf16_params");
        let bf16_params = one_of(
            f,
            "bf16_params",
            &[("master", Bf16Params::Master), ("nearest", Bf16Params::Nearest)],
        )?;
        if says_how && param_dtype == Dtype::F32 {
            return Err(Error::parse("field `bf16_params` needs `param_dtype` \"bf16\""));
        }
        let mut case = Self {
            name: name.to_owned(),
            shape,
            rules: Vec::with_capacity(steps),
            steepest: 0.0,
            layout: Layout::OutIn,
            parts: Parts::Whole,
            is_conv: false,
            param_dtype,
            bf16_params,
            arithmetic: Arithmetic::Fused,
            recorded_distance: take(f, "rel_bf16_vs_f64_of_update")?,
        };
        if optimizer == OptimizerKind::AdamW {
            let (beta1, beta2) = take(f, "betas")?.ok_or_else(|| missing("betas"))?;
            let rule = |lr| AdamWRule { lr, beta1, beta2, eps, weight_decay };
            case.rules = lr.into_iter().map(|lr| Rule::from(rule(lr))).collect();
        } else {
            let momentum = momentum.ok_or_else(|| missing("momentum"))?;
            let momentum = momentum.values("momentum", steps)?;
            let schedule = schedule(f, framework)?;
            case.steepest = schedule.steepest_slope();
            case.arithmetic = one_of(
                f,
                "arithmetic",
                &[("fused", Arithmetic::Fused), ("unfused", Arithmetic::Unfused)],
            )?;
            case.matrices(f)?;
            let nesterov: bool = take(f, "nesterov")?.ok_or_else(|| missing("nesterov"))?;
            let rule = MuonRule {
                momentum_mode: one_of(
                    f,
                    "momentum_mode",
                    &[("ema", MomentumMode::Ema), ("sum", MomentumMode::Sum)],
                )?,
                nesterov: if nesterov { Nesterov::On } else { Nesterov::Off },
                weight_decay,
                weight_decay_mode: one_of(
                    f,
                    "weight_decay_mode",
                    &[
                        ("decoupled", WeightDecayMode::Decoupled),
                        ("independent", WeightDecayMode::Independent),
                        ("cautious", WeightDecayMode::Cautious),
                        ("l2", WeightDecayMode::L2),
                        ("palm", WeightDecayMode::Palm),
                    ],
                )?,
                update_scale: update_scale(f)?,
                orthogonalizer: Orthogonalizer::Polynomial { schedule, iterations: None },
                method: MethodChoice::Auto,
                norm_floor: eps,
                ..MuonRule::default()
            };
            let each = lr.into_iter().zip(momentum);
            case.rules = each
                .map(|(lr, momentum)| MuonRule { lr, momentum, ..rule.clone() }.into())
                .collect();
        }
        for (step, rule) in case.rules.iter().enumerate() {
            rule.validate().context(|| format!("step {step}"))?;
        }
        Ok(case)
    }

    /// `layout`, `view`, and how the fan-out axis divides.
    fn matrices(&mut self, f: &mut Map<String, Value>) -> Result<()> {
        self.layout = one_of(f, "layout", &[("out_in", Layout::OutIn), ("in_out", Layout::InOut)])?;
        self.is_conv = match take::<String>(f, "view")? {
            None => false,
            Some(view) => named("view", &view, &[("conv", true)])?,
        };
        let heads: Option<usize> = take(f, "heads")?;
        let split: Option<Vec<usize>> = take(f, "split")?;
        let interleaved: Option<Interleaved> = take(f, "split_interleaved")?;
        self.parts = match (heads, split, interleaved) {
            (None, None, None) => Parts::Whole,
            (Some(heads), None, None) => Parts::Heads(heads),
            (None, Some(sizes), None) => Parts::Split(sizes),
            (None, None, Some(interleaved)) => Parts::Interleaved(interleaved),
            _ => {
                return Err(Error::parse(
                    "a case gives one of `heads`, `split` and `split_interleaved`, found more",
                ));
            }
        };
        Ok(())
    }
}

/// More steps than anybody records; a list of rules is kept for them.
const MOST_STEPS: usize = 100_000;

/// `ns_coefficients`, the last row repeated up to `ns_steps`.
fn schedule(f: &mut Map<String, Value>, framework: &str) -> Result<CoefficientSchedule> {
    let rows = match take(f, "ns_coefficients")? {
        Some(Coefficients::Row(row)) => vec![row],
        Some(Coefficients::Rows(rows)) => rows,
        None => {
            return Err(Error::parse(
                "the recording does not give `ns_coefficients`, which this optimizer needs",
            ));
        }
    };
    let polynomials = rows
        .iter()
        .map(|row| OddPolynomial::new(row))
        .collect::<Result<Vec<_>>>()
        .context(|| "field `ns_coefficients`")?;
    let steps = take(f, "ns_steps")?;
    let steps: usize = match (steps, polynomials.len()) {
        (Some(steps), _) => steps,
        (None, 0 | 1) => {
            return Err(Error::parse(
                "the recording does not give `ns_steps`, which this optimizer needs",
            ));
        }
        (None, rows) => rows,
    };
    if !(polynomials.len()..=MOST_POLYNOMIALS).contains(&steps) {
        return Err(Error::invalid_config(format!(
            "ns_steps: expected at least as many as `ns_coefficients` has rows ({}) and at most {MOST_POLYNOMIALS}, found \
             `{steps}`; frameworks differ in which rows they leave out, so record those that were used",
            polynomials.len()
        )));
    }
    CoefficientSchedule::new(
        "recorded",
        polynomials,
        Normalization::Frobenius { safety: 1.0 },
        Tail::RepeatLast,
        framework,
    )?
    .with_iterations(steps)
}

fn update_scale(f: &mut Map<String, Value>) -> Result<UpdateScale> {
    match take(f, "adjust_lr_fn")? {
        None => Ok(UpdateScale::Original),
        Some(AdjustLr::Rms(Rms { rms })) => Ok(UpdateScale::MatchRms(rms)),
        Some(AdjustLr::Name(name)) => named(
            "adjust_lr_fn",
            &name,
            &[
                ("original", UpdateScale::Original),
                ("match_rms_adamw", UpdateScale::MatchRmsAdamW),
                ("spectral_unclamped", UpdateScale::Spectral),
            ],
        ),
    }
}
