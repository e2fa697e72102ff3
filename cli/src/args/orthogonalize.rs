//! Options and help text of `muon orthogonalize`.

use std::path::PathBuf;

use clap::Args;

use super::PrecisionName;
use crate::devices::DeviceName;

/// Orthogonalize every matrix of a safetensors file
///
/// Each two-dimensional tensor is replaced by its orthogonalization, each three-dimensional one matrix by
/// matrix (experts); all others are copied. For every result the command prints how orthogonal it is and how
/// far from the exact polar factor UVᵀ, which a singular value decomposition in f64 gives. The output is
/// written whole or not at all, and never over the input.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon orthogonalize momentum.safetensors out.safetensors
      five Polar Express iterations in f32
  muon orthogonalize in.safetensors out.safetensors --schedule jordan --precision bf16
      what a GPU would make of it in 16 bit
  muon orthogonalize in.safetensors out.safetensors --exact --only 'blocks.*.weight'
      the exact polar factor of some of them

Exit codes: 0 written; 1 a file could not be read or written, or holds NaN or infinities;
2 unknown schedule, no matrix to orthogonalize, or the output is the input")]
pub(crate) struct OrthogonalizeArgs {
    /// File to read
    #[arg(value_name = "IN.safetensors")]
    pub(crate) input: PathBuf,

    /// File to write
    #[arg(value_name = "OUT.safetensors")]
    pub(crate) output: PathBuf,

    /// Coefficient schedule: preset name or TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "polar_express_5")]
    pub(crate) schedule: String,

    /// The exact polar factor by singular value decomposition instead
    #[arg(long, conflicts_with = "schedule")]
    pub(crate) exact: bool,

    /// Where to compute: cpu, reference (the f64 oracle), cuda or cuda:N, emulated (in builds with feature `emulator`)
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    pub(crate) device: DeviceName,

    /// What the iterate is stored in; all but f32 is emulated on the CPU [default: f32; bf16 on CUDA]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) precision: Option<PrecisionName>,

    /// Only tensors whose name matches; `*` is anything, `?` one character
    #[arg(long, value_name = "GLOB")]
    pub(crate) only: Option<String>,

    /// Leave out the distance to the exact polar factor, which costs far more than the result
    #[arg(long)]
    pub(crate) no_exact_error: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,

    /// No progress bar and no notes
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
