//! Options and help text of `muon orthogonalize`.

use std::path::PathBuf;

use clap::Args;
use muon_cuda::MethodChoice;

use super::{PrecisionName, positive};
use crate::devices::DeviceName;

/// Orthogonalize every matrix of safetensors files
///
/// Each two-dimensional tensor is replaced by its orthogonalization, each three-dimensional one matrix by
/// matrix (experts), each four-dimensional one (a convolution [out, in, kh, kw]) as the matrix [out, in·kh·kw]; all others
/// are copied. For every result the command prints how orthogonal it is and how far from the exact polar factor UVᵀ, which
/// a singular value decomposition in f64 gives. The output is written whole or not at all, and never over the input.
/// The output of a folder of shards, or of an index, is a folder with shards of the same names and a copy of the index.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon orthogonalize momentum.safetensors out.safetensors
      five Polar Express iterations in f32
  muon orthogonalize in.safetensors out.safetensors --schedule jordan --precision bf16
      what a GPU would make of it in 16 bit
  muon orthogonalize in.safetensors out.safetensors --exact --only 'blocks.*.weight'
      the exact polar factor of some of them
  muon orthogonalize model/ orthogonalized/ --schedule jordan --iterations 7 --method standard
      a folder of shards

Exit codes: 0 written; 1 a file could not be read or written, or holds NaN or infinities;
2 unknown schedule, one that is not safe, no matrix to orthogonalize, or the output is the input or is there already")]
pub(crate) struct OrthogonalizeArgs {
    /// File, folder of shards or index (*.safetensors.index.json) to read
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,

    /// File to write, or folder to make where the input is a folder or an index
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,

    /// Replace the file OUT where it is there already; a folder is never replaced
    #[arg(long)]
    pub(crate) force: bool,

    /// Coefficient schedule: preset name or TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "polar_express_5")]
    pub(crate) schedule: String,

    /// So many iterations; a schedule whose polynomials are made for each other has a fixed number
    #[arg(long, value_name = "N", value_parser = iterations)]
    pub(crate) iterations: Option<usize>,

    /// How the polynomials are evaluated: auto, standard, or gram:N,N… with so many iterations in each group
    #[arg(long, value_name = "auto|standard|gram:N,N…", default_value = "auto", value_parser = method)]
    pub(crate) method: MethodChoice,

    /// Run a schedule that the normalisation or the precision does not keep safe: the result may be anything
    #[arg(long)]
    pub(crate) accept_unsafe: bool,

    /// The exact polar factor by singular value decomposition instead
    #[arg(long, conflicts_with_all = ["schedule", "iterations", "method", "accept_unsafe", "precision"])]
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

/// Most iterations. The slowest polynomial in use, the classical cubic, enlarges a small singular value by half in each:
/// 260 take the least that f32 holds, 2⁻¹⁴⁹, to 1.
const MOST_ITERATIONS: usize = 300;

fn iterations(text: &str) -> Result<usize, String> {
    match positive(text)? {
        n if n > MOST_ITERATIONS => Err(format!(
            "expected at most {MOST_ITERATIONS}: fewer take the smallest number there is to 1"
        )),
        n => Ok(n),
    }
}

fn method(text: &str) -> Result<MethodChoice, String> {
    let expected = "expected `auto`, `standard`, or `gram:` and the iterations of each group, such as gram:3,2";
    match text {
        "auto" => Ok(MethodChoice::Auto),
        "standard" => Ok(MethodChoice::Standard),
        _ => {
            let groups = text.strip_prefix("gram:").ok_or(expected)?;
            let groups: Result<Vec<usize>, String> = groups.split(',').map(positive).collect();
            groups.map(MethodChoice::Gram).map_err(|_| expected.into())
        }
    }
}
