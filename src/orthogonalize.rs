//! One matrix, orthogonalized on its own: no momentum, no parameter, no learning rate.

use serde::{Deserialize, Serialize};

use crate::config::{
    MethodChoice, MomentumMode, MuonConfig, MuonRule, Nesterov, NonFinite, Orthogonalizer,
    WeightDecayMode,
};
use crate::device::{Device, MatrixJob, MuonScalars, StateRule, StateSpec, StepTensor};
use crate::error::{Error, Result};
use crate::optimizer::ParamId;
use crate::plan::{Plan, PlanInput, PreparedSchedule, Safety};
use crate::precision::Precision;
use crate::recipe::{Method, Recipe};
use crate::shape::{Block, MatrixShape};

/// How a standalone matrix is orthogonalized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrthogonalizeOptions {
    /// Default the schedule a [`MuonRule`] has by default.
    pub orthogonalizer: Orthogonalizer,
    /// What the iterate is stored in. Default the device's own: bf16 on CUDA, f32 on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Default automatic.
    pub method: MethodChoice,
    /// The guard of the normalisation. Default the smallest normal f32.
    pub norm_floor: f64,
    /// What to do about a schedule that is not safe in this precision. Default refuse it.
    pub safety: Safety,
}

impl Default for OrthogonalizeOptions {
    fn default() -> Self {
        let MuonRule { orthogonalizer, method, norm_floor, .. } = MuonRule::default();
        Self { orthogonalizer, precision: None, method, norm_floor, safety: Safety::Refuse }
    }
}

impl OrthogonalizeOptions {
    /// Whether matrices of any shape can be orthogonalized like this.
    ///
    /// # Errors
    /// As [`orthogonalize`]: a schedule that is not safe in the precision, a number of iterations that it does not have,
    /// groups that do not add up.
    pub fn check(&self, precision: Precision) -> Result<()> {
        crate::config::Rule::from(self.rule()).validate()?;
        let Orthogonalizer::Polynomial { schedule, iterations } = &self.orthogonalizer else {
            return Ok(());
        };
        let prepared = PreparedSchedule::new(schedule, *iterations, precision, self.safety)?;
        if let MethodChoice::Gram(groups) = &self.method {
            Recipe::new(&prepared.schedule, &Method::Gram { groups: groups.clone() })?;
        }
        Ok(())
    }

    fn rule(&self) -> MuonRule {
        MuonRule {
            orthogonalizer: self.orthogonalizer.clone(),
            method: self.method.clone(),
            norm_floor: self.norm_floor,
            ..MuonRule::default()
        }
    }
}

/// How a standalone matrix was orthogonalized.
#[derive(Debug, Clone, PartialEq)]
pub struct Orthogonalized {
    /// What the iterate was stored in.
    pub precision: Precision,
    /// `None` for orthogonalizers that are no polynomial.
    pub method: Option<Method>,
    /// Why this method.
    pub reason: String,
    /// GEMM FLOPs, symmetric products by one triangle.
    pub flops: u64,
}

/// Writes the orthogonalized `input` to `output`; waits for the device.
///
/// # Shapes
/// Both row-major and contiguous, `[rows, cols]`. `output` must hold finite numbers (zeros, say) beforehand.
///
/// # Cost
/// Allocates state and workspace for one matrix; in a loop use [`Muon`](crate::Muon).
///
/// # Errors
/// A zero dimension, a length that is not `rows · cols`, a schedule its normalisation does not keep safe (unless
/// [`OrthogonalizeOptions::safety`] says otherwise), an input with a NaN or an infinity (`output` then stays as it was),
/// no memory, a failed device.
///
/// # Example
/// ```
/// use muon_cuda::{Cpu, MatrixShape, OrthogonalizeOptions, Orthogonalizer, orthogonalize};
///
/// let input = [3.0f32, 0.0, 0.0, -4.0, 0.0, 0.0];    // singular values 3 and 4
/// let mut output = [0.0f32; 6];
/// let options = OrthogonalizeOptions { orthogonalizer: Orthogonalizer::ExactSvd, ..Default::default() };
/// let shape = MatrixShape { rows: 3, cols: 2 };
/// orthogonalize(&mut Cpu::new()?, shape, &input[..], &mut output[..], &options)?;
/// assert!(output.iter().zip([1.0, 0.0, 0.0, -1.0, 0.0, 0.0]).all(|(x, polar)| (x - polar).abs() < 1e-6));
/// # Ok::<(), muon_cuda::Error>(())
/// ```
pub fn orthogonalize<'a, D: Device>(
    device: &mut D,
    shape: MatrixShape,
    input: impl Into<D::Grad<'a>>,
    output: impl Into<D::ParamMut<'a>>,
    options: &OrthogonalizeOptions,
) -> Result<Orthogonalized> {
    let blocks = [Block { offset: 0, shape, row_stride: shape.cols }];
    crate::shape::element_count(&[shape.rows, shape.cols])?;
    if shape.is_empty() {
        return Err(Error::shape_mismatch("matrix to orthogonalize", "at least 1x1", shape));
    }
    let mut tensors = [StepTensor::<D>::new(ParamId::standalone(), output, input)];
    let param = D::param_buffer(&tensors[0].param);
    for buffer in [Some(param), tensors[0].grad.as_ref().map(D::grad_buffer)].into_iter().flatten()
    {
        if buffer.len != shape.len() {
            return Err(Error::shape_mismatch(
                format!("elements of a {shape} matrix"),
                shape.len(),
                buffer.len,
            ));
        }
    }
    let rule = options.rule();
    crate::config::Rule::from(rule.clone()).validate()?;
    let config = MuonConfig {
        precision: Some(options.precision.unwrap_or(D::DEFAULT_PRECISION)),
        non_finite: NonFinite::Skip,
        ..MuonConfig::default()
    };
    let inputs = [PlanInput { param: 0, rule: &rule, blocks: &blocks, name: "" }];
    let plan = Plan::judged(&config, options.safety, inputs)?;
    let spec = StateSpec {
        len: shape.len(),
        param_dtype: param.dtype,
        bf16_params: config.bf16_params,
        rule: StateRule::Muon { momentum_dtype: config.momentum_dtype, matrices: 1 },
        salt: 0,
    };
    let mut states = [device.new_state(&spec)?];
    let mut workspace = device.new_workspace(&plan)?;
    // A step whose momentum is the input and whose update replaces the output: 0·output + 1·X.
    let jobs = [MatrixJob {
        tensor: 0,
        param: 0,
        matrix: 0,
        block: blocks[0],
        bucket: 0,
        slot: 0,
        scalars: MuonScalars {
            momentum: 0.0,
            one_minus_momentum: 1.0,
            keep: 0.0,
            step: -1.0,
            momentum_mode: MomentumMode::Ema,
            nesterov: Nesterov::Off,
            l2: 0.0,
            largest: f32::INFINITY,
            weight_decay_mode: WeightDecayMode::Decoupled,
        },
    }];
    device.gradient_scale(&tensors, &[], 1.0, None)?;
    device.pass_a(&plan, &jobs, &tensors, &mut states, &mut workspace)?;
    device.orthogonalize(&plan, 0, 1, &mut workspace)?;
    device.pass_b(&plan, &jobs, &mut tensors, &mut states, &workspace)?;
    if device.counters(&states[0])?.skipped != [0] {
        return Err(Error::non_finite(format!(
            "the {shape} matrix, or what the iterations made of it, has a NaN or an infinity; the output was not written"
        )));
    }
    let bucket = &plan.buckets()[0];
    Ok(Orthogonalized {
        precision: plan.precision(),
        method: bucket.method.clone(),
        reason: bucket.reason.clone(),
        flops: bucket.flops(),
    })
}
