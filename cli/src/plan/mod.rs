//! `muon plan`: what a step on a GPU consists of, and a bound on its time, without a GPU.

mod models;
mod profiles;
pub(crate) mod shapes;

use std::io::Write as _;

use anyhow::Result;
use muon_cuda::{
    Bf16Params, Bucket, CoefficientSchedule, CostInputs, Dtype, MatrixShape, MethodChoice,
    MuonConfig, MuonRule, Orthogonalizer, Plan, Precision, StepCost,
};
use serde_json::{Value, json};

pub(crate) use self::profiles::Profile;
use self::shapes::Shapes;
use crate::args::PlanArgs;
use crate::exit::{Ended, usage};
use crate::tables::table;

/// Runs the command.
///
/// # Errors
/// Of the arguments, the file, or a schedule that the precision makes unsafe.
pub(crate) fn plan(args: &PlanArgs) -> Result<Ended> {
    let profile = Profile::named(&args.profile).map_err(usage)?;
    let shapes = shapes::shapes(args)?;
    let rule = MuonRule {
        orthogonalizer: Orthogonalizer::Polynomial {
            schedule: CoefficientSchedule::preset_or_file(&args.schedule)?,
            iterations: None,
        },
        method: method(args),
        ..MuonRule::default()
    };
    let config = MuonConfig {
        precision: Some(args.precision.into()),
        momentum_dtype: args.momentum_dtype.into(),
        symmetric_products: args.symmetric,
        ..MuonConfig::default()
    };
    let config = match args.workspace_mib {
        None => config,
        Some(mib) => MuonConfig { workspace_limit: mib.saturating_mul(1 << 20), ..config },
    };
    let counted = shapes.muon.iter().map(|(shape, count)| (shape.as_slice(), *count));
    // What no plan can hold is nonsense on the command line, and a finding in a file.
    let refused = |e: muon_cuda::Error| match args.file {
        None if e.is_shape_mismatch() => usage(e.to_string()),
        _ => e.into(),
    };
    let plan = Plan::for_shapes(&config, &rule, counted).map_err(refused)?;
    let cost = plan.cuda_cost(&CostInputs {
        grad: args.grad_dtype.into(),
        param: Dtype::F32,
        momentum: config.momentum_dtype,
        bf16_params: Bf16Params::Master,
        adamw_elements: shapes.adamw_elements,
    });
    let cost = cost.map_err(refused)?;
    let bound = Bound::new(&plan, &cost, profile);
    let mut stdout = crate::output::stdout();
    if args.json {
        let document = document(&shapes, &plan, &cost, profile, &bound);
        writeln!(stdout, "{}", serde_json::to_string_pretty(&document)?)?;
    } else {
        write!(stdout, "{}", text(&shapes, &plan, &cost, profile, &bound))?;
    }
    Ok(Ended::Well)
}

fn method(args: &PlanArgs) -> MethodChoice {
    if !args.gram.is_empty() {
        MethodChoice::Gram(args.gram.clone())
    } else if args.standard {
        MethodChoice::Standard
    } else {
        MethodChoice::Auto
    }
}

/// The bound on a step on one matrix, seconds: bf16 gradient, f32 momentum and parameter, as `muon plan` has them unless
/// told otherwise.
///
/// # Errors
/// A schedule that the precision makes unsafe; a method that does not fit it.
pub(crate) fn bound_of_one(
    shape: MatrixShape,
    orthogonalizer: Orthogonalizer,
    method: MethodChoice,
    precision: Precision,
    profile: &Profile,
) -> Result<f64> {
    let rule = MuonRule { orthogonalizer, method, ..MuonRule::default() };
    let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
    let dimensions = [shape.rows, shape.cols];
    let plan = Plan::for_shapes(&config, &rule, [(dimensions.as_slice(), 1)])?;
    let cost = plan.cuda_cost(&CostInputs {
        grad: Dtype::Bf16,
        param: Dtype::F32,
        momentum: config.momentum_dtype,
        bf16_params: Bf16Params::Master,
        adamw_elements: 0,
    })?;
    Ok(Bound::new(&plan, &cost, profile).step())
}

/// Times below which a step cannot be, in seconds.
struct Bound {
    /// The products as they are executed, at the profile's ceiling.
    products: f64,
    /// The products with one triangle of what is symmetric.
    symmetric_products: f64,
    /// Reading and writing of the passes.
    passes: f64,
}

impl Bound {
    fn new(plan: &Plan, cost: &StepCost, profile: &Profile) -> Self {
        let flops = profile.flops(plan.precision());
        Self {
            products: cost.executed_flops as f64 / flops,
            symmetric_products: cost.flops.symmetric as f64 / flops,
            passes: cost.pass_bytes() as f64 / profile.bandwidth,
        }
    }

    /// The passes do not overlap with the products: they are in one stream.
    fn step(&self) -> f64 {
        self.products + self.passes
    }
}

const NOT_MEASURED: &str = "a bound computed from counts and ceilings, not a measurement; launches and traffic of the products are left out";

fn document(
    shapes: &Shapes,
    plan: &Plan,
    cost: &StepCost,
    profile: &Profile,
    bound: &Bound,
) -> Value {
    json!({
        "source": shapes.source,
        "precision": plan.precision().to_string(),
        "chunks": plan.chunks(),
        "buckets": plan.buckets().iter().map(|b| json!({
            "matrices": b.matrices.len(),
            "rows": b.shape.rows,
            "cols": b.shape.cols,
            "orthogonalizer": b.orthogonalizer,
            "method": b.method.as_ref().map(ToString::to_string),
            "reason": b.reason,
            "symmetric_flops": b.flops(),
            "symmetric_strips": {
                "gram": b.symmetric.gram,
                "square": b.symmetric.square,
                "product": b.symmetric.product,
            },
            "symmetric_reason": b.symmetric.reason,
            "commit": b.commit.to_string(),
        })).collect::<Vec<_>>(),
        "muon_elements": plan.elements(),
        "adamw_elements": shapes.adamw_elements,
        "left_out": { "tensors": shapes.left_out, "elements": shapes.left_out_elements },
        "doubts": shapes.doubts,
        "kernel_launches": cost.kernel_launches,
        "products": cost.products,
        "flops": cost.executed_flops,
        "full_flops": cost.flops.full,
        "symmetric_flops": cost.flops.symmetric,
        "pass_a_bytes": cost.pass_a_bytes,
        "pass_b_bytes": cost.pass_b_bytes,
        "adamw_bytes": cost.adamw_bytes,
        "workspace_bytes": plan.workspace_bytes(),
        "state_bytes": cost.state_bytes,
        "profile": profile,
        "bound": {
            "what": NOT_MEASURED,
            "products_ms": 1e3 * bound.products,
            "symmetric_products_ms": 1e3 * bound.symmetric_products,
            "passes_ms": 1e3 * bound.passes,
            "step_ms": 1e3 * bound.step(),
        },
    })
}

fn text(shapes: &Shapes, plan: &Plan, cost: &StepCost, profile: &Profile, bound: &Bound) -> String {
    let mut buckets = table(["shape", "matrices", "method", "GFLOP, symmetric by one triangle"]);
    let mut reasons = String::new();
    for b in plan.buckets() {
        let method = b.method.as_ref().map_or_else(|| "-".into(), ToString::to_string);
        buckets.add_row([
            b.shape.to_string(),
            b.matrices.len().to_string(),
            format!("{}, {method}", b.orthogonalizer),
            format!("{:.2}", b.flops() as f64 / 1e9),
        ]);
        let Bucket { shape, reason, symmetric, commit, .. } = b;
        reasons.push_str(&format!("  {shape}: {reason}\n    {}\n    {commit}\n", symmetric.reason));
    }
    let mut remarks = String::new();
    if shapes.left_out > 0 {
        remarks.push_str(&format!(
            "{} tensors with {} elements are no parameters (integers, masks, statistics, parts of quantised tensors)\n",
            shapes.left_out, shapes.left_out_elements
        ));
    }
    for doubt in &shapes.doubts {
        remarks.push_str(&format!("{doubt}\n"));
    }
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let ms = |seconds: f64| format!("{:.3} ms", 1e3 * seconds);
    format!(
        "{source}\n{buckets}\n{reasons}{remarks}\
         iterate {precision}, {chunks} chunk(s); {muon} elements under Muon, {adamw} under AdamW\n\
         a step: {launches} kernel launches + {products} calls of cublasLt = {all}\n\
         products: {executed:.2} GFLOP as executed, {full:.2} with symmetric products in full, {least:.2} with one triangle of them\n\
         passes: pass A {a}, pass B {b}, AdamW {w}\n\
         workspace {workspace}, optimizer state {state}\n\
         at least {step} a step on {name}: products {t_products} ({t_least} by one triangle) + passes {t_passes}\n  \
         ({NOT_MEASURED})\n  ({ceilings})\n",
        source = shapes.source,
        precision = plan.precision(),
        chunks = plan.chunks(),
        muon = plan.elements(),
        adamw = shapes.adamw_elements,
        launches = cost.kernel_launches,
        products = cost.products,
        all = cost.kernel_launches + cost.products,
        executed = cost.executed_flops as f64 / 1e9,
        full = cost.flops.full as f64 / 1e9,
        least = cost.flops.symmetric as f64 / 1e9,
        a = mib(cost.pass_a_bytes),
        b = mib(cost.pass_b_bytes),
        w = mib(cost.adamw_bytes),
        workspace = mib(plan.workspace_bytes() as u64),
        state = mib(cost.state_bytes),
        step = ms(bound.step()),
        name = profile.name,
        t_products = ms(bound.products),
        t_least = ms(bound.symmetric_products),
        t_passes = ms(bound.passes),
        ceilings = profile.source,
    )
}
