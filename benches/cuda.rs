//! Optimizer steps on a GPU at the shapes of GPT-2 small and of one block of Llama 7B: error first, then time by device events,
//! beside the least time that the plan's FLOPs and bytes take at ceilings measured in the same run.
//!
//! `cargo bench --bench cuda [-- FILTER]`: one table for people, one JSON line a case for programs. Without a GPU it says "nothing
//! measured" and succeeds. `MUON_BENCH_DEVICE=emulated cargo bench --profile dev --bench cuda` runs all of it on the emulator with every
//! dimension divided by 64; times are then the emulator's own. `MUON_BENCH_COMMIT` goes into the report.
#![allow(unsafe_code, reason = "products by cublasLt")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::multiple_unsafe_ops_per_block,
    reason = "a bench prints what it measured, and its sizes are small"
)]

#[path = "cuda/ceilings.rs"]
mod ceilings;

use std::sync::Arc;

use half::bf16;
use muon_cuda::cudarc::driver::{CudaSlice, CudaStream, sys};
use muon_cuda::reference::{Matrix, newton_schulz};
use muon_cuda::{
    Bf16Params, CostInputs, Cuda, Dtype, MatrixShape, MethodChoice, Muon, MuonConfig, MuonRule,
    OrthogonalizeOptions, Orthogonalizer, ParamId, ParamSpec, Precision, StepOptions, StepTensor,
    diagnosis, orthogonalize,
};

type Failure = Box<dyn std::error::Error>;

/// Whether a GPU is timed, or the emulator shows that the bench works.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    /// Real shapes.
    Gpu,
    /// Small ones.
    Emulated,
}

impl Scale {
    fn pick<T>(self, gpu: T, emulated: T) -> T {
        if self == Self::Gpu { gpu } else { emulated }
    }
}

/// Precisions, each with a schedule of degree 9 that has room for its rounding.
const PRECISIONS: [(Precision, &str); 4] = [
    (Precision::Bf16, "tuned_bf16"),
    (Precision::Fp16, "tuned_fp16"),
    (Precision::Tf32, "tuned_bf16"),
    (Precision::F32, "nonic3_band12"),
];

/// Count, rows and columns of matrices.
type Shapes = &'static [(usize, [usize; 2])];

/// Hidden matrices of a model, or of a part of one.
const MODELS: [(&str, Shapes); 2] = [
    ("gpt2-small", &[(48, [768, 768]), (12, [3072, 768]), (12, [768, 3072])]),
    ("llama-7b block", &[(4, [4096, 4096]), (2, [11008, 4096]), (1, [4096, 11008])]),
];

/// How the polynomials are evaluated.
#[derive(Debug, Clone, Copy)]
enum Form {
    Standard,
    Gram,
    DegreeNine,
}

impl Form {
    fn rule(self, degree_nine: &str) -> Result<MuonRule, Failure> {
        let (preset, method) = match self {
            Self::Standard => ("polar_express_5", MethodChoice::Standard),
            Self::Gram => ("polar_express_5", MethodChoice::Gram(vec![2, 2, 1])),
            Self::DegreeNine => (degree_nine, MethodChoice::Auto),
        };
        Ok(MuonRule {
            orthogonalizer: Orthogonalizer::preset(preset)?,
            method,
            ..MuonRule::default()
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Gram => "Gram (2,2,1)",
            Self::DegreeNine => "degree 9",
        }
    }
}

/// Milliseconds of repetitions.
#[derive(Debug, Clone, Copy)]
struct Times {
    median: f64,
    /// From the first to the third quartile.
    spread: f64,
    count: usize,
}

/// Times work by device events, after three repetitions that are not counted.
fn median_ms(
    stream: &Arc<CudaStream>,
    count: usize,
    mut work: impl FnMut() -> Result<(), Failure>,
) -> Result<Times, Failure> {
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    for _ in 0..3.min(count) {
        work()?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = stream.record_event(flags)?;
        work()?;
        let end = stream.record_event(flags)?;
        times.push(f64::from(start.elapsed_ms(&end)?));
    }
    times.sort_by(f64::total_cmp);
    let at = |quarter: usize| times[(times.len() - 1) * quarter / 4];
    Ok(Times { median: at(2), spread: at(3) - at(1), count })
}

/// Numbers in (−1, 1) that a fast generator draws.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = u16::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 48).unwrap();
        f32::from(bits) / 32768.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Relative error of one 96 × 192 matrix against the same polynomials in f64.
fn error(device: &mut Cuda, rule: &MuonRule, precision: Precision) -> Result<f64, Failure> {
    let Orthogonalizer::Polynomial { schedule, .. } = &rule.orthogonalizer else {
        return Err("the bench has polynomials only".into());
    };
    let shape = MatrixShape { rows: 96, cols: 192 };
    let input = numbers(shape.len(), 3);
    let expected = newton_schulz(schedule, &Matrix::from_f32(96, 192, &input)?, 1e-30);
    let stream = device.stream().clone();
    let on_device = stream.clone_htod(&input)?;
    let mut output = stream.alloc_zeros::<f32>(input.len())?;
    let options = OrthogonalizeOptions {
        orthogonalizer: rule.orthogonalizer.clone(),
        method: rule.method.clone(),
        precision: Some(precision),
        ..OrthogonalizeOptions::default()
    };
    orthogonalize(device, shape, &on_device, &mut output, &options)?;
    let found = stream.clone_dtoh(&output)?;
    let (mut difference, mut norm) = (0.0, 0.0);
    for (x, e) in found.iter().zip(expected.data()) {
        difference += (f64::from(*x) - e).powi(2);
        norm += e * e;
    }
    Ok(f64::sqrt(difference / norm))
}

/// A model's hidden matrices under one rule: f32 parameters and momentum, bf16 gradients.
struct Model {
    muon: Muon<Cuda>,
    params: Vec<(ParamId, CudaSlice<f32>, CudaSlice<bf16>)>,
}

impl Model {
    fn new(
        matrices: Shapes,
        rule: MuonRule,
        precision: Precision,
        scale: Scale,
    ) -> Result<Self, Failure> {
        let mut muon = Muon::new(
            Cuda::new(0)?,
            MuonConfig { precision: Some(precision), ..MuonConfig::default() },
        )?;
        let stream = muon.device().stream().clone();
        let group = muon.add_group("hidden", rule)?;
        let mut params = Vec::new();
        for (kind, (count, shape)) in matrices.iter().enumerate() {
            let shape = shape.map(|n| n / scale.pick(1, 64));
            let len = shape[0] * shape[1];
            // One drawing a shape: the generator is slow beside the device.
            let param = numbers(len, 1 + kind as u64);
            let grad: Vec<bf16> =
                numbers(len, 101 + kind as u64).into_iter().map(bf16::from_f32).collect();
            for i in 0..scale.pick(*count, 1.max(count / 12)) {
                let id = muon.add_param(group, ParamSpec::new(format!("{kind}.{i}"), &shape))?;
                params.push((id, stream.clone_htod(&param)?, stream.clone_htod(&grad)?));
            }
        }
        Ok(Self { muon, params })
    }

    fn tensors(
        params: &mut [(ParamId, CudaSlice<f32>, CudaSlice<bf16>)],
    ) -> Vec<StepTensor<'_, Cuda>> {
        params.iter_mut().map(|(id, p, g)| StepTensor::new(*id, p, &*g)).collect()
    }
}

/// One line of the report.
fn run(
    name: &str,
    model: &mut Model,
    scale: Scale,
    flops_per_second: f64,
    bytes_per_second: f64,
) -> Result<serde_json::Value, Failure> {
    let cost = model.muon.plan()?.cuda_cost(&CostInputs {
        grad: Dtype::Bf16,
        param: Dtype::F32,
        momentum: Dtype::F32,
        bf16_params: Bf16Params::Master,
        adamw_elements: 0,
    })?;
    let (flops, bytes) = (cost.executed_flops as f64, cost.pass_bytes() as f64);
    let floor = (flops / flops_per_second + bytes / bytes_per_second) * 1e3;
    let stream = model.muon.device().stream().clone();
    let count = scale.pick(30, 2);
    // The rate is nothing, so that the parameters stay what they are however often the step is taken.
    let options = StepOptions { lr_factor: 0.0, ..StepOptions::default() };
    let Model { muon, params } = model;
    let eager = median_ms(&stream, count, || {
        muon.step(&options, &mut Model::tensors(params))?;
        Ok(())
    })?;
    let graph = muon.capture_step(&options, &mut Model::tensors(params))?;
    let replay = median_ms(&stream, count, || {
        muon.replay_step(&graph, &options, &mut Model::tensors(params))?;
        Ok(())
    })?;
    println!(
        "{name:<42} {:>9.3} ± {:<7.3} {:>9.3} {:>9.1} {:>9.2} {:>9.3} {:>7.1} %",
        eager.median,
        eager.spread,
        replay.median,
        flops / eager.median * 1e-9,
        bytes * 1e-9,
        floor,
        100.0 * floor / replay.median,
    );
    Ok(serde_json::json!({
        "eager_ms": eager.median, "eager_spread_ms": eager.spread,
        "replay_ms": replay.median, "replay_spread_ms": replay.spread,
        "repetitions": eager.count, "flops": cost.executed_flops, "flops_symmetric": cost.flops.symmetric,
        "pass_bytes": cost.pass_bytes(), "launches": cost.kernel_launches, "products": cost.products,
        "floor_ms": floor, "fraction_of_floor": floor / replay.median,
    }))
}

/// Everything, where there is a device.
fn measure(scale: Scale, filter: Option<&str>) -> Result<(), Failure> {
    let mut device = Cuda::new(0)?;
    let stream = device.stream().clone();
    let driver = diagnosis::diagnose().driver.version;
    // cudarc's bindings of CUDA 13 time events by a function that came with 12.8, and panic where it is missing.
    let since = |version: &str| {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    if sys::CUDA_VERSION >= 13_000 && driver.as_deref().map(since) < Some((12, 8)) {
        println!("nothing measured: the driver supports CUDA {driver:?}, device events need 12.8");
        return Ok(());
    }
    let commit = std::env::var("MUON_BENCH_COMMIT").unwrap_or_else(|_| "unknown".into());
    println!(
        "{:?}\ndriver {}, commit {commit}{}",
        device,
        driver.as_deref().unwrap_or("unknown"),
        scale.pick("", "\nEMULATED, every dimension divided by 64: times and ceilings are the emulator's own and say nothing of a GPU"),
    );
    let bytes_per_second = ceilings::copies(&stream, scale)?;
    println!("ceiling of copies: {:.1} GB/s", bytes_per_second * 1e-9);
    let mut lines = Vec::new();
    for (precision, degree_nine) in PRECISIONS {
        let flops_per_second = ceilings::products(&stream, precision, scale)?;
        println!("\n{precision}: ceiling of products {:.3} TFLOP/s", flops_per_second * 1e-12);
        for form in [Form::Standard, Form::Gram, Form::DegreeNine] {
            let rule = form.rule(degree_nine)?;
            let error = error(&mut device, &rule, precision)?;
            println!("{precision} {}: error against f64 {error:.1e}", form.name());
        }
        println!(
            "{:<42} {:>9}   {:<7} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "step",
            "eager ms",
            "spread",
            "graph ms",
            "GFLOP/s",
            "passes GB",
            "floor ms",
            "floor/graph"
        );
        for (model_name, matrices) in MODELS {
            for form in [Form::Standard, Form::Gram, Form::DegreeNine] {
                let name = format!("{model_name}, {precision}, {}", form.name());
                if filter.is_some_and(|filter| !name.contains(filter)) {
                    continue;
                }
                let rule = form.rule(degree_nine)?;
                let error = error(&mut device, &rule, precision)?;
                let mut model = Model::new(matrices, rule, precision, scale)?;
                let mut line = run(&name, &mut model, scale, flops_per_second, bytes_per_second)?;
                line["case"] = name.into();
                line["error"] = error.into();
                line["emulated"] = (scale == Scale::Emulated).into();
                line["products_ceiling_flops"] = flops_per_second.into();
                line["copies_ceiling_bytes"] = bytes_per_second.into();
                line["device"] = format!("{device:?}").into();
                line["driver"] = driver.clone().into();
                line["commit"] = commit.clone().into();
                lines.push(line);
            }
        }
    }
    println!();
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    // `--bench` is cargo's; what is left is a filter.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if std::env::var("MUON_BENCH_DEVICE").is_ok_and(|device| device == "emulated") {
        let emulator = cuda_emulator::Emulator::load(cuda_emulator::Config::from_env()?)?;
        measure(Scale::Emulated, filter.as_deref())?;
        let found = emulator.finish()?;
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        return if found.is_empty() { Ok(()) } else { Err(found.join("\n").into()) };
    }
    match Cuda::new(0) {
        Err(e) if e.is_cuda_unavailable() => {
            println!("nothing measured: {e}");
            Ok(())
        }
        Err(e) => Err(e.into()),
        Ok(device) => {
            drop(device);
            measure(Scale::Gpu, filter.as_deref())
        }
    }
}
