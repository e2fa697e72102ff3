//! Options and help text of `muon verify`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ElementName, PrecisionName};
use crate::devices::DeviceName;

/// Replay recorded optimizer trajectories and compare
///
/// A recording holds, for some cases, a parameter, its gradients, and the parameter that another framework
/// reached with them: a JSON file and a safetensors file of the same name beside it. The command takes the
/// same steps and compares the whole update, relative to its length: a proof that moving a training job here changes
/// nothing. With --precision bf16 the error must also be as large as the framework's own, within a factor of
/// two (more for thin matrices): rounding that is not there is a mistake as well.
///
/// A case says what its optimizer does: learning rates and momenta step by step, EMA or sum momentum, five kinds of weight
/// decay, four update scales, a schedule of polynomials, fan-in first, heads, splits and interleaved splits, convolutions,
/// experts, bf16 parameters, steps without a gradient, where momentum starts. docs/trajectories.md lists every field. A field
/// that the command does not know is an error.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon verify tests/data/torch_muon.json
      torch.optim.Muon against the CPU in f32
  muon verify tests/data/torch_muon.json --device reference
      against the f64 oracle, to 1e-12
  muon verify tests/data/torch_muon.json --precision bf16 --against bf16ns
      against PyTorch's own bf16 result
  muon verify tests/data/torch_muon.json --device cuda:1 --precision bf16
      on the second GPU
  muon verify tests/data/torch_adamw.json --json
      AdamW, for a program

Exit codes: 0 every case holds; 1 one does not, or the recording does not read; 2 contradictory options, or a field or a value in
the recording that this command does not know")]
pub(crate) struct VerifyArgs {
    /// The recording; its tensors are read from the .safetensors file beside it
    #[arg(value_name = "TRAJECTORIES.json")]
    pub(crate) trajectories: PathBuf,

    /// Where to replay: cpu, reference (the f64 oracle), cuda or cuda:N, emulated (the GPU's kernels executed and checked
    /// on the CPU; in builds with feature `emulator`)
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    pub(crate) device: DeviceName,

    /// What the iterate is stored in; all but f32 is emulated on the CPU
    #[arg(long, value_enum, default_value = "f32", value_name = "NAME")]
    pub(crate) precision: PrecisionName,

    /// What the momentum is stored in
    #[arg(long, value_enum, default_value = "f32", value_name = "NAME")]
    pub(crate) momentum_dtype: ElementName,

    /// Largest relative error of an update [default: 1e-12 reference, 1e-4 f32, 5e-3 tf32, 0.02 bf16, 0.004 fp16, at least 0.01
    /// with bf16 momentum; AdamW 1e-5; more for steep schedules, thin matrices, bf16 parameters and results of a framework
    /// alone, as docs/trajectories.md says]
    #[arg(long, value_name = "T")]
    pub(crate) tolerance: Option<f64>,

    /// Which recorded result must be met
    #[arg(long, value_enum, default_value = "f64", value_name = "NAME")]
    pub(crate) against: AgainstName,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Results in a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AgainstName {
    /// The framework's algorithm in f64 throughout.
    F64,
    /// The framework's own result, Newton–Schulz in bf16; the distance to f64 is checked as well where it is recorded.
    Bf16ns,
}
