//! `muon compare`: ways to orthogonalize one matrix, from gradient descent to the exact factor, as rows of one table.

use std::io::Write as _;

use anyhow::Result;
use clap::Args;
use muon_cuda::spectrum::SpectrumFamily;
use muon_cuda::{
    Bf16Params, CoefficientSchedule, CostInputs, Dtype, MatrixShape, MethodChoice, MuonConfig,
    MuonRule, Orthogonalizer, Plan, Safety,
};
use serde::Serialize;
use serde_json::json;

use super::engine::{Engine, Matrices};
use super::measure::{self, Exact};
use crate::args::PrecisionName;
use crate::devices::DeviceName;
use crate::exit::Ended;
use crate::tables::table;

/// Compare ways to orthogonalize: gradient descent, the exact factor, polynomials
///
/// Makes a matrix with known singular values, orthogonalizes it in each way on a device, and prints how far each result is
/// from the exact polar factor and what a step costs on a GPU. Gradient descent is the direction divided by its
/// norm; the exact factor is a singular value decomposition on the host; the others are five iterations each of the
/// classical cubic, of Jordan's quintic and of Polar Express, and the schedules that --schedule adds.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon compare
      a Gaussian 96 × 160 matrix on the CPU in f32
  muon compare --device emulated
      by the GPU's own kernels and products in bf16, executed and checked on the CPU
  muon compare --shape 256x1024 --spectrum power:1 --precision bf16 --schedule tuned_bf16
      on a decaying spectrum, with one more schedule

Exit codes: 0 done; 1 a device that fails; 2 unknown schedule, spectrum or device, or a schedule that the precision
makes unsafe")]
pub(crate) struct CompareArgs {
    /// Shape of the matrix
    #[arg(long, value_name = "ROWSxCOLS", default_value = "96x160", value_parser = shape)]
    pub(crate) shape: MatrixShape,

    /// Its singular values: gaussian, power:E, exponential:D, linear, outliers:C:S, two-level:F:R, rank:F
    #[arg(long, value_name = "FAMILY", default_value = "gaussian")]
    pub(crate) spectrum: SpectrumFamily,

    /// Seed of the matrix
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,

    /// A further coefficient schedule: preset name or TOML file; may be repeated
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) schedule: Vec<String>,

    /// Where to compute: cpu, reference (the f64 oracle), cuda or cuda:N, emulated (in builds with feature `emulator`)
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    pub(crate) device: DeviceName,

    /// What the iterate is stored in; all but f32 are emulated on the CPU [default: f32; bf16 on CUDA]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) precision: Option<PrecisionName>,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Largest matrix: 4096 × 4096. Its decomposition, by rotations in f64, takes hours already.
const MOST_ELEMENTS: usize = 1 << 24;

/// One row.
#[derive(Debug, Serialize)]
struct System {
    name: String,
    /// `‖X − Q‖_F / ‖Q‖_F`.
    error: f64,
    /// `⟨X, Q⟩ / (‖X‖·‖Q‖)`.
    cosine: f64,
    /// `‖XXᵀ − I‖_F / √n`.
    gram: f64,
    flops: u64,
    products: u64,
    kernel_launches: u64,
}

/// Runs the command.
///
/// # Errors
/// Of the arguments or the library.
pub(crate) fn compare(args: &CompareArgs) -> Result<Ended> {
    let mut systems = vec![
        ("gradient descent".to_owned(), Orthogonalizer::Frobenius),
        ("exact SVD (host)".to_owned(), Orthogonalizer::ExactSvd),
    ];
    let presets = ["classical_cubic", "jordan", "polar_express_5"].map(str::to_owned);
    for name in presets.iter().chain(&args.schedule) {
        let schedule = CoefficientSchedule::preset_or_file(name)?;
        let name = schedule.name().to_owned();
        systems.push((name, Orthogonalizer::Polynomial { schedule, iterations: None }));
    }
    let MatrixShape { rows, cols } = args.shape;
    let input: Vec<f64> =
        args.spectrum.spectrum(args.shape)?.matrix(args.seed).into_iter().map(f64::from).collect();
    let matrices = Matrices { count: 1, shape: args.shape };
    let engine = |device, precision, orthogonalizer| {
        Engine::new(device, precision, orthogonalizer, MethodChoice::Auto, Safety::Refuse)
    };
    let exact = Orthogonalizer::ExactSvd;
    let polar = engine(DeviceName::Reference, None, exact)?.run(matrices, &input)?.0;
    let session = args.device.open()?;
    let mut rows_of_table = Vec::new();
    for (name, orthogonalizer) in systems {
        let mut engine = engine(args.device, args.precision, orthogonalizer.clone())?;
        let (result, _) = engine.run(matrices, &input)?;
        let errors = measure::errors(&input, &result, rows, cols, Exact::Skip)?;
        rows_of_table.push(System {
            name,
            gram: errors.gram,
            ..cost(args, orthogonalizer, distance(&result, &polar))?
        });
    }
    let ended = session.close(Ended::Well)?;
    print(args, &rows_of_table)?;
    Ok(ended)
}

/// Relative distance of a result to the exact factor, and the cosine between them.
fn distance(result: &[f64], polar: &[f64]) -> (f64, f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let apart: f64 = result.iter().zip(polar).map(|(x, q)| (x - q) * (x - q)).sum();
    let norm = dot(polar, polar);
    ((apart / norm).sqrt(), dot(result, polar) / (dot(result, result) * norm).sqrt())
}

/// What a step of the one matrix costs on CUDA, from its plan.
fn cost(
    args: &CompareArgs,
    orthogonalizer: Orthogonalizer,
    (error, cosine): (f64, f64),
) -> Result<System> {
    let precision = args.precision.unwrap_or(args.device.default_precision());
    let config = MuonConfig { precision: Some(precision.into()), ..MuonConfig::default() };
    let rule = MuonRule { orthogonalizer, ..MuonRule::default() };
    let shape = [args.shape.rows, args.shape.cols];
    let cost = Plan::for_shapes(&config, &rule, [(&shape[..], 1)])?.cuda_cost(&CostInputs {
        grad: Dtype::F32,
        param: Dtype::F32,
        momentum: Dtype::F32,
        bf16_params: Bf16Params::Master,
        adamw_elements: 0,
    })?;
    Ok(System {
        name: String::new(),
        error,
        cosine,
        gram: 0.0,
        flops: cost.executed_flops,
        products: cost.products,
        kernel_launches: cost.kernel_launches,
    })
}

fn print(args: &CompareArgs, systems: &[System]) -> Result<()> {
    let mut stdout = crate::output::stdout();
    let precision = args.precision.unwrap_or(args.device.default_precision());
    let arithmetic = match args.device {
        DeviceName::Reference => "f64".to_owned(),
        _ => muon_cuda::Precision::from(precision).to_string(),
    };
    if args.json {
        let document = json!({
            "rows": args.shape.rows,
            "cols": args.shape.cols,
            "spectrum": args.spectrum.to_string(),
            "device": args.device.to_string(),
            "precision": arithmetic,
            "systems": systems,
        });
        writeln!(stdout, "{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    let mut table = table([
        "orthogonalized by",
        "error to polar factor",
        "cosine",
        "|XXᵀ−I|",
        "MFLOP",
        "products",
        "kernel launches",
    ]);
    for s in systems {
        table.add_row([
            s.name.clone(),
            format!("{:.2e}", s.error),
            format!("{:.4}", s.cosine),
            format!("{:.1e}", s.gram),
            if s.flops == 0 { "-".into() } else { format!("{:.2}", s.flops as f64 / 1e6) },
            s.products.to_string(),
            s.kernel_launches.to_string(),
        ]);
    }
    writeln!(
        stdout,
        "{} matrix, spectrum {}, on {}, {arithmetic}\n{table}\n\
         error: Frobenius distance to the exact polar factor over its norm; MFLOP, products (calls of cublasLt) and kernel\n\
         launches: of a step of this one matrix on CUDA, by its plan; the decomposition on the host is not counted.",
        args.shape, args.spectrum, args.device
    )?;
    Ok(())
}

fn shape(text: &str) -> Result<MatrixShape, String> {
    let numbers: Option<Vec<usize>> =
        text.split('x').map(|n| n.parse().ok().filter(|n| *n > 0)).collect();
    match numbers.as_deref() {
        Some([rows, cols]) => {
            let shape = MatrixShape { rows: *rows, cols: *cols };
            if shape.len() > MOST_ELEMENTS {
                return Err(format!(
                    "expected at most {MOST_ELEMENTS} elements: the exact factor takes a singular value decomposition on the host"
                ));
            }
            Ok(shape)
        }
        _ => Err("expected ROWSxCOLS, such as 96x160".into()),
    }
}
