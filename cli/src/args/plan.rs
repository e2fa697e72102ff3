//! Options and help text of `muon plan`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use muon_cuda::{Dtype, SymmetricProducts};

use super::{PrecisionName, positive};
use crate::plan::shapes::{Matrices, Route};

/// Say what a step on a GPU consists of, and what it costs at least
///
/// Groups the matrices as the optimizer would and prints each bucket's method with the reason, kernel launches and
/// calls of cublasLt, FLOPs, bytes of the passes, workspace and state; and the time below which a step cannot be on a
/// device whose ceilings are known. Everything is counted from shapes: no GPU is needed, and none is asked.
/// Parameters are f32.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon plan --model gpt2-small
      GPT-2 small: launches, FLOPs, bytes, and a bound on an H100
  muon plan --matrix 48x768x768 --matrix 24x768x3072 --schedule jordan --profile a100
      matrices of your own, on an A100
  muon plan --file model.safetensors --json
      the shapes of a checkpoint, of which the header alone is read
  muon plan --file Mixtral-8x7B/ --route mlp.bank=experts
      a folder of shards; what the routing rule cannot know is said

Exit codes: 0 done; 1 a file could not be read, or holds what no plan can; 2 unknown model, schedule or profile, no matrix,
or a tensor that can be two things")]
pub(crate) struct PlanArgs {
    /// A known model: gpt2-small, llama-7b, kimi-k2-stage
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub(crate) model: Option<String>,

    /// Shapes of this safetensors file, index (*.safetensors.index.json) or folder of shards, routed as a trainer would
    #[arg(long, value_name = "FILE|FOLDER")]
    pub(crate) file: Option<PathBuf>,

    /// Where tensors of the file go: NAME=adamw, muon, experts ([experts, rows, cols]) or convolution ([out, in, k]); NAME is
    /// one or more whole parts of a name, such as h.1 or mlp.bank; repeat, later ones win
    #[arg(long, value_name = "NAME=WHERE", requires = "file")]
    pub(crate) route: Vec<Route>,

    /// Hidden matrices, ROWSxCOLS or COUNTxROWSxCOLS; repeat for several shapes
    #[arg(long, value_name = "NxRxC")]
    pub(crate) matrix: Vec<Matrices>,

    /// Elements under AdamW, besides those of a model or file
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) adamw: u64,

    /// Coefficient schedule: preset name or TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "polar_express_5")]
    pub(crate) schedule: String,

    /// Standard form, whatever the shape
    #[arg(long)]
    pub(crate) standard: bool,

    /// Gram form with so many iterations in each group, such as 2,2,1
    #[arg(long, value_name = "N,N…", value_delimiter = ',', value_parser = positive, conflicts_with = "standard")]
    pub(crate) gram: Vec<usize>,

    /// What the iterate is stored in
    #[arg(long, value_enum, default_value = "bf16", value_name = "NAME")]
    pub(crate) precision: PrecisionName,

    /// How symmetric products are formed: auto, full (fewest launches), or a number of strips of rows
    #[arg(long, value_name = "auto|full|N", default_value = "auto", value_parser = symmetric)]
    pub(crate) symmetric: SymmetricProducts,

    /// What gradients are stored in
    #[arg(long, value_enum, default_value = "bf16", value_name = "NAME")]
    pub(crate) grad_dtype: ElementName,

    /// What the momentum is stored in
    #[arg(long, value_enum, default_value = "f32", value_name = "NAME")]
    pub(crate) momentum_dtype: ElementName,

    /// Workspace that chunks must fit into, MiB [default: the optimizer's own limit]
    #[arg(long, value_name = "MIB", value_parser = positive)]
    pub(crate) workspace_mib: Option<usize>,

    /// Ceilings for the bound: h100, a100, rtx4090, b200
    #[arg(long, value_name = "NAME", default_value = "h100")]
    pub(crate) profile: String,

    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Element types of momentum and gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ElementName {
    /// 32 bit.
    F32,
    /// bfloat16.
    Bf16,
}

impl From<ElementName> for Dtype {
    fn from(name: ElementName) -> Self {
        match name {
            ElementName::F32 => Self::F32,
            ElementName::Bf16 => Self::Bf16,
        }
    }
}

fn symmetric(text: &str) -> Result<SymmetricProducts, String> {
    match text {
        "auto" => Ok(SymmetricProducts::Auto),
        "full" => Ok(SymmetricProducts::Full),
        number => positive(number)
            .map(SymmetricProducts::Strips)
            .map_err(|_| "expected `auto`, `full` or a number of strips".into()),
    }
}
