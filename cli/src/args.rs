//! The command line: every command, option and help text.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use muon_cuda::{Dtype, Precision, SymmetricProducts};
use serde::{Deserialize, Serialize};

use crate::devices::DeviceName;
use crate::orthogonalize::compare::CompareArgs;
use crate::plan::shapes::Matrices;
use crate::train::config::LrScheduleName;
use crate::tune::cost::CostModel;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// The Muon optimizer from the command line
///
/// Muon trains the hidden matrices of a network with orthogonalized momentum: the update's singular values
/// are all driven to about 1 by a few odd polynomials of the matrix, instead of by a singular value
/// decomposition. These commands train with it, show the polynomials, apply them to files, and check a port
/// from PyTorch.
#[derive(Debug, Parser)]
#[command(
    name = "muon",
    version,
    styles = STYLES,
    arg_required_else_help = true,
    after_help = "Start here: muon train. More about a command: muon help COMMAND",
    after_long_help = "\
Start here:
  muon train                              train on handwritten digits and compare optimizers
  muon schedules                          the polynomials and what they can do
  muon tune                               better ones for your precision and spectra
  muon help train                         everything about one command

Exit codes:
  0  done, and every check held
  1  the job failed, or a check did not hold
  2  the command line asks for something that does not exist or contradicts itself"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(Box<TrainArgs>),
    Schedules(SchedulesArgs),
    Tune(Box<TuneArgs>),
    Orthogonalize(OrthogonalizeArgs),
    Compare(CompareArgs),
    Verify(VerifyArgs),
    Plan(PlanArgs),
    Doctor(DoctorArgs),
    Completions(CompletionsArgs),
}

/// Train on handwritten digits, or a text, and compare optimizers
///
/// Without arguments: gradient descent, AdamW and Muon under five orthogonalizations train the same
/// perceptron (64 → 128 → 128 → 10) on the 1797 digits that are embedded in this program, with the same split, initialisation,
/// batches and number of steps, each at the best learning rate of its own recorded grid. Under Muon the hidden
/// matrices are orthogonalized; the output head and the biases go to AdamW.
///
/// With --task text a small transformer learns to predict the next byte of a text: attention and perceptron
/// matrices under Muon; embeddings, norms and head under AdamW.
///
/// With --sweep every optimizer is trained at several learning rates under several seeds, and each one's best is
/// compared with the baseline's seed by seed. What is finished is noted in sweep.jsonl: stopped by Ctrl-C or by
/// force, the same command goes on from there.
///
/// Writes loss.svg, loss.png, metrics.json, config.json and checkpoints to the output directory. A run that
/// was stopped, by Ctrl-C or by force, continues with --resume and gives the same numbers, bit for bit.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon train
      the comparison, in well under a minute
  muon train --seeds 5 --out five-seeds
      mean and spread over five splits and initialisations
  muon train --optimizer muon --schedule jordan --schedule my-schedule.toml
      Muon alone, under a preset and under a schedule of your own
  muon train --precision bf16
      rounds where a GPU would: what 16 bit costs in training
  muon train --lr-grid --seed 100 --seeds 5
      how the default learning rates were found
  muon train --sweep --schedule jordan --schedule nonic3_band12 --lr 0.02,0.03,0.05 --seeds 8
      is the cheaper schedule as good? paired over seeds, each at its best learning rate
  muon train --task text
      the comparison on a language model over bytes, on the embedded text
  muon train --text war-and-peace.txt --width 128 --steps 1000 --schedule jordan
      on a text of your own, larger and longer
  muon train --schedule jordan --record-spectra spectra.jsonl
      record singular values of what is orthogonalized
  muon train --schedule jordan --schedules muon-tune/schedules.toml
      a schedule for each matrix, made by muon tune --per-layer from such a recording
  muon train --resume
      go on with the run in muon-run/

Exit codes: 0 trained; 1 failed (output directory not writable, checkpoint damaged, …);
2 unknown name or contradictory options; 130 stopped by Ctrl-C, resumable")]
pub(crate) struct TrainArgs {
    /// What to learn [default: digits, or text where --text is given]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) task: Option<TaskName>,

    /// Text to learn from, any bytes; a tenth is held out [default: Cicero, De finibus I, embedded]
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,

    /// What to compare; repeat for several [default: all three]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) optimizer: Vec<OptimizerName>,

    /// Coefficient schedules for Muon: preset names (see `muon schedules`), TOML files, or `exact` for the
    /// SVD; repeat for several [default: classical_cubic, jordan, polar_express_5, nonic3_band12, exact]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) schedule: Vec<String>,

    /// Table of schedules by parameter (TOML; written by `muon tune --per-layer`): one row of Muon in the comparison; repeat
    /// for several
    #[arg(long, value_name = "FILE", conflicts_with = "iterations")]
    pub(crate) schedules: Vec<PathBuf>,

    /// Iterations of each schedule, where its tail allows another number than its own
    #[arg(long, value_name = "N")]
    pub(crate) iterations: Option<usize>,

    /// Peak learning rate of every optimizer chosen, several for --sweep [default: each one's own, from --lr-grid;
    /// with --sweep each one's grid]
    #[arg(long, value_name = "LR", value_delimiter = ',')]
    pub(crate) lr: Vec<f64>,

    /// Course of the learning rate over the run
    #[arg(long, value_enum, default_value = "linear", value_name = "NAME")]
    pub(crate) lr_schedule: LrScheduleName,

    /// Decoupled weight decay [default: Muon 0.1, AdamW 0.01, gradient descent 0]
    #[arg(long, value_name = "W")]
    pub(crate) weight_decay: Option<f64>,

    /// Learning rate of AdamW for what Muon leaves to it [default: 0.003]
    #[arg(long, value_name = "LR")]
    pub(crate) head_lr: Option<f64>,

    /// Momentum β (β₁ of AdamW) [default: 0.95; AdamW 0.9]
    #[arg(long, value_name = "B")]
    pub(crate) momentum: Option<f64>,

    /// Optimizer steps of each run
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = positive)]
    pub(crate) steps: usize,

    /// Samples, or windows of text, a step [default: 128, or 16 windows]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,

    /// Widths of the perceptron's hidden layers [default: 128,128]
    #[arg(long, value_delimiter = ',', value_name = "N,N…", value_parser = positive)]
    pub(crate) hidden: Vec<usize>,

    /// Width of the transformer [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) width: Option<usize>,

    /// Layers of the transformer [default: 2]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) layers: Option<usize>,

    /// Attention heads of the transformer, a divisor of its width [default: 2]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) heads: Option<usize>,

    /// Bytes that a prediction may look at [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) context: Option<usize>,

    /// First seed: decides the split, the initialisation and the order of the batches
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,

    /// Number of seeds, counted up from --seed; the table gives mean ± standard deviation
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = positive)]
    pub(crate) seeds: usize,

    /// Where the optimizer runs: cpu, reference (the f64 oracle), cuda or cuda:N, emulated (the GPU's kernels executed
    /// and checked on the CPU, slow; in builds with feature `emulator`)
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    pub(crate) device: DeviceName,

    /// What the iterate of the orthogonalization is stored in; all but f32 is emulated on the CPU [default: f32; bf16
    /// on CUDA]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) precision: Option<PrecisionName>,

    /// Threads of the optimizer in each run; the numbers do not depend on it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = positive)]
    pub(crate) threads: usize,

    /// Runs at the same time [default: 1, or all cores for a grid or several seeds]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) jobs: Option<usize>,

    /// Output directory, made if it is not there
    #[arg(long, default_value = "muon-run", value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Steps between checkpoints
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = positive)]
    pub(crate) checkpoint_every: usize,

    /// Go on with the job recorded in the output directory, exactly as it was started
    #[arg(long, conflicts_with_all = [
        "optimizer", "schedule", "schedules", "iterations", "lr", "head_lr", "lr_schedule", "weight_decay", "momentum",
        "steps", "batch_size", "hidden", "seed", "seeds", "device", "precision", "threads", "lr_grid", "sweep", "task", "text",
        "width", "layers", "heads", "context",
    ])]
    pub(crate) resume: bool,

    /// Instead of one learning rate for each optimizer, try its whole grid and say which is best
    #[arg(long, conflicts_with = "lr")]
    pub(crate) lr_grid: bool,

    /// Try every optimizer at every learning rate under every seed and compare each one's best with the baseline's
    #[arg(long, conflicts_with = "lr_grid")]
    pub(crate) sweep: bool,

    /// What the others are compared with: a schedule, or an optimizer of the sweep by its name in the record
    /// [default: jordan, or the first]
    #[arg(long, value_name = "NAME", requires = "sweep")]
    pub(crate) baseline: Option<String>,

    /// Difference in held-out loss, nats, that still counts as not inferior
    #[arg(long, value_name = "NATS", default_value_t = 0.01, requires = "sweep")]
    pub(crate) margin: f64,

    /// Record singular values of the directions that Muon orthogonalizes, one line of JSON a matrix and step
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lr_grid", "sweep"])]
    pub(crate) record_spectra: Option<PathBuf>,

    /// Steps between records
    #[arg(long, value_name = "K", default_value_t = 50, value_parser = positive, requires = "record_spectra")]
    pub(crate) spectra_every: usize,

    /// Print the metrics as JSON instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// No progress bars and no notes
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// List coefficient schedules, or show one
///
/// A coefficient schedule is a sequence of odd polynomials p₁, p₂, … that are applied to the normalised
/// matrix in turn; on each singular value σ they act as the scalar function p∘…∘p. Its band says how near 1 the
/// singular values end, its slope how fast small ones grow, its safe sigma how much above 1 one may start
/// before the iteration turns it around or blows it up.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon schedules
      all presets with their properties
  muon schedules polar_express_5
      every polynomial of one of them
  muon schedules jordan --plot jordan.svg
      p∘…∘p over σ from 10⁻⁴ to 1, one line an iteration (.svg or .png)
  muon schedules my-schedule.toml --json
      the same numbers for a program
  muon schedules --table --with my-schedule.toml
      every published set, refused ones too, with what 16 bit does to it, and one of your own

Exit codes: 0 done; 1 a file could not be read or written; 2 unknown preset")]
pub(crate) struct SchedulesArgs {
    /// Preset or TOML file to show [default: list all presets]
    #[arg(value_name = "NAME|FILE")]
    pub(crate) schedule: Option<String>,

    /// Plot the partial compositions over log σ into this file (.svg or .png)
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,

    /// Compare all published sets: slope, band, safe sigma, rounding errors
    #[arg(long, conflicts_with_all = ["schedule", "plot"])]
    pub(crate) table: bool,

    /// Preset or TOML file to add to the table; repeat for several
    #[arg(long, requires = "table", value_name = "NAME|FILE")]
    pub(crate) with: Vec<String>,

    /// Families of spectra, one a line, to measure every set of the table on (a minute)
    #[arg(long, requires = "table", value_name = "FILE")]
    pub(crate) held_out: Option<PathBuf>,

    /// Print JSON instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// Search coefficient schedules for your spectra, precision and budget
///
/// Every combination of degrees is started from greedy minimax compositions; the best in cost and error are
/// polished by CMA-ES over all coefficients. Error is that of the result to the exact polar factor under
/// rounding at every store, predicted from singular values; the finalists and the published sets are then
/// measured on matrices. Constraints keep schedules safe: no sign change, no divergence above σ = 1, and room
/// for rounding between the iterations.
///
/// Writes record.json, a TOML file for each schedule of the Pareto front, pareto, errors and composition charts
/// (SVG and PNG) and journal.jsonl to the output directory. A study that was stopped, by Ctrl-C or by force, goes on
/// with --resume and ends with the same schedules.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Spectra (--spectrum), for singular values k = 0, 1, … n−1:
  gaussian         a matrix of independent normal numbers
  power:E          (k+1)^−E
  exponential:D    even in the logarithm over D decades
  linear           1 − k/n
  outliers:C:S     gaussian with C values S times its largest
  two-level:F:R    a fraction F of ones, the others R
  rank:F           gaussian of a fraction F of the rank
  lognormal:S      logarithms normal, standard deviation S
  product:S        a product of S square matrices of normal numbers
  elbow:F:E        flat for a fraction F, then a power law of exponent E
  staircase:L:D    L equal levels over D decades
  noisy:E:R        power:E on a gaussian floor, its largest value R

Examples:
  muon tune
      bf16, 4:1, three to five iterations, nine families of spectra
  muon tune --precision fp16 --aspect 1 --iterations 3 --degrees 9
      three iterations of degree 9 for square matrices in fp16
  muon tune --spectra momentum.safetensors --time 300
      for the singular values of your own momenta (or a recording of them)
  muon tune --spectra spectra.jsonl --per-layer --max-cost 60
      a schedule for each parameter of a recording (muon train --record-spectra), for muon train --schedules
  muon tune --cost roofline:h100 --size 1024
      by the time that a step needs on an H100 at least, instead of FLOPs
  muon tune --max-cost 40 --band 0.7,1.3 --lower 2e-3
      the best that costs at most 40 n³ and ends everything from σ = 0.002 in that band
  muon tune --resume
      go on with the study in muon-tune/
  muon tune --check muon-tune/record.json
      compute a record's scores again

Exit codes: 0 done, or the record holds; 1 failed (a file, a damaged journal or record), or the record does not
hold; 2 unknown spectrum, contradictory or infeasible options; 130 stopped by Ctrl-C, resumable")]
pub(crate) struct TuneArgs {
    /// What the iterate is stored in
    #[arg(long, value_enum, default_value = "bf16", value_name = "NAME")]
    pub(crate) precision: TunePrecisionName,

    /// Long side over short side, for cost and spectra
    #[arg(long, default_value_t = 4.0, value_name = "X")]
    pub(crate) aspect: f64,

    /// Short side of analytic spectra, and of the matrices that finalists are measured on
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub(crate) size: usize,

    /// Family of spectra to tune for; repeat for several [default: nine of them]
    #[arg(long, value_name = "FAMILY")]
    pub(crate) spectrum: Vec<String>,

    /// File of matrices (.safetensors) or recorded spectra (.jsonl) to tune for; repeat for several
    #[arg(long, value_name = "FILE")]
    pub(crate) spectra: Vec<PathBuf>,

    /// A study for each parameter of --spectra, of its own shape, and schedules.toml for `muon train --schedules`
    #[arg(long)]
    pub(crate) per_layer: bool,

    /// Families, one a line, that results are judged on and that the search does not see
    #[arg(long, value_name = "FILE")]
    pub(crate) held_out: Option<PathBuf>,

    /// Numbers of iterations to try
    #[arg(long, default_value = "3,4,5", value_delimiter = ',', value_name = "N,N…")]
    pub(crate) iterations: Vec<usize>,

    /// Degrees to mix
    #[arg(long, default_value = "3,5,9", value_delimiter = ',', value_name = "D,D…")]
    pub(crate) degrees: Vec<usize>,

    /// How schedules are evaluated
    #[arg(long, value_enum, default_value = "standard", value_name = "NAME")]
    pub(crate) method: TuneMethodName,

    /// What schedules are priced by: flops (n³, symmetric products by one triangle), or roofline:PROFILE (microseconds below
    /// which a step on one matrix of --size and --aspect cannot be; profiles as in `muon plan`)
    #[arg(long, default_value = "flops", value_name = "MODEL")]
    pub(crate) cost: CostModel,

    /// Largest cost, in the unit of --cost
    #[arg(long, value_name = "N3")]
    pub(crate) max_cost: Option<f64>,

    /// What is minimised
    #[arg(long, value_enum, default_value = "error", value_name = "NAME")]
    pub(crate) objective: ObjectiveName,

    /// How the spectra are put together
    #[arg(long, value_enum, default_value = "mean", value_name = "NAME")]
    pub(crate) aggregate: AggregateName,

    /// Lower end of the interval of --band and of the worst case
    #[arg(long, default_value_t = 1e-3, value_name = "SIGMA")]
    pub(crate) lower: f64,

    /// Where everything from --lower to 1 must end
    #[arg(long, value_delimiter = ',', value_name = "LO,HI")]
    pub(crate) band: Option<Vec<f64>>,

    /// Largest start that may neither flip its sign nor end above 1.5 [default: what the normalisation guarantees]
    #[arg(long, value_name = "SIGMA")]
    pub(crate) min_safe_sigma: Option<f64>,

    /// Largest slope of an iteration, or of a Gram group
    #[arg(long, value_name = "X")]
    pub(crate) max_slope: Option<f64>,

    /// Allow schedules that rounding can drive apart on a matrix with one dominant row
    #[arg(long)]
    pub(crate) no_rounding_safety: bool,

    /// Decides every random number
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,

    /// Candidates that are polished
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub(crate) polish: usize,

    /// Evaluations of each polish
    #[arg(long, default_value_t = 3000, value_name = "N")]
    pub(crate) evaluations: usize,

    /// Stop searching after that long; what is found so far is reported [default: when all is done]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) time: Option<u64>,

    /// Threads [default: all cores]; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) jobs: Option<usize>,

    /// Output directory, made if it is not there
    #[arg(long, default_value = "muon-tune", value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Go on with the study recorded in the output directory, exactly as it was started
    #[arg(long, conflicts_with_all = [
        "precision", "aspect", "size", "spectrum", "spectra", "held_out", "iterations", "degrees", "method", "cost",
        "max_cost",
        "objective", "aggregate", "lower", "band", "min_safe_sigma", "max_slope", "no_rounding_safety", "seed",
        "polish", "evaluations", "per_layer",
    ])]
    pub(crate) resume: bool,

    /// Compute the scores of a record again, and nothing else
    #[arg(long, value_name = "RECORD.json", conflicts_with = "resume")]
    pub(crate) check: Option<PathBuf>,

    /// Print the record as JSON instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// No progress bars and no notes
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// What a tuned iterate is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TunePrecisionName {
    /// 64 bit: as good as no rounding; nothing is measured.
    F64,
    /// 32 bit.
    F32,
    /// bfloat16, rounded at every store.
    Bf16,
    /// IEEE half, rounded at every store.
    Fp16,
}

impl TunePrecisionName {
    /// The library's; `None` for f64.
    pub(crate) fn of(self) -> Option<Precision> {
        match self {
            Self::F64 => None,
            Self::F32 => Some(Precision::F32),
            Self::Bf16 => Some(Precision::Bf16),
            Self::Fp16 => Some(Precision::Fp16),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        self.of().map_or("f64", Precision::name)
    }
}

/// Which methods a study tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TuneMethodName {
    /// Every iteration multiplies the iterate.
    Standard,
    /// Every grouping that works on the Gram matrix; to be forced where it is run.
    Gram,
    /// Both.
    Any,
}

/// What a study minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ObjectiveName {
    /// Relative Frobenius distance to the polar factor UVᵀ, under rounding.
    Error,
    /// One less the cosine with UVᵀ, under rounding.
    Alignment,
    /// Largest distance from 1 on [lower, 1], without rounding and spectra.
    WorstCase,
}

/// How the scores of several spectra become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AggregateName {
    /// Their mean.
    Mean,
    /// The largest.
    Worst,
}

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

/// Replay recorded optimizer trajectories and compare
///
/// A recording holds, for some cases, a parameter, its gradients, and the parameter that another framework
/// reached with them: a JSON file and a safetensors file of the same name beside it. The command takes the
/// same steps and compares the whole update, relative to its length: a proof that moving a training job here changes
/// nothing. With --precision bf16 the error must also be as large as the framework's own, within a factor of
/// two: rounding that is not there is a mistake as well.
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

Exit codes: 0 every case holds; 1 one does not, or the recording does not read; 2 contradictory options")]
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
    /// with bf16 momentum; AdamW 1e-5]
    #[arg(long, value_name = "T")]
    pub(crate) tolerance: Option<f64>,

    /// Which recorded result must be met
    #[arg(long, value_enum, default_value = "f64", value_name = "NAME")]
    pub(crate) against: AgainstName,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

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

Exit codes: 0 done; 1 a file could not be read; 2 unknown model, schedule or profile, or no matrix")]
pub(crate) struct PlanArgs {
    /// A known model: gpt2-small, llama-7b, kimi-k2-stage
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub(crate) model: Option<String>,

    /// Shapes of this safetensors file, routed by name as a trainer would
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) file: Option<PathBuf>,

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

/// Look for what the CUDA device needs, and say what is missing
///
/// Looks for the NVIDIA driver, NVRTC (which compiles the kernels on this machine) with its builtins, and
/// cublasLt; lists the devices and the cache of compiled kernels. Whatever is missing is said with what to
/// install. Nothing is changed. The CPU device needs none of it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon doctor
      a table: what was found where, and what to do about the rest
  muon doctor --json
      the same for programs

Exit codes: 0 the CUDA device can be used; 1 something is missing, and the output says what")]
pub(crate) struct DoctorArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a completion script for a shell
///
/// The script goes to standard output; where it belongs depends on the shell.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  muon completions bash > ~/.local/share/bash-completion/completions/muon
  muon completions zsh > ~/.zfunc/_muon
  muon completions fish > ~/.config/fish/completions/muon.fish

Exit codes: 0 done; 2 unknown shell")]
pub(crate) struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskName {
    /// Handwritten digits.
    Digits,
    /// The next byte of a text.
    Text,
}

/// The optimizers of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OptimizerName {
    /// Gradient descent with Nesterov momentum.
    #[value(alias = "gd", alias = "sgd")]
    GradientDescent,
    /// AdamW.
    Adamw,
    /// Muon, once for each schedule.
    Muon,
}

/// Results in a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AgainstName {
    /// The framework's algorithm in f64 throughout.
    F64,
    /// The framework's own result, Newton–Schulz in bf16; the distance to f64 is checked as well.
    Bf16ns,
}

/// Element types of momentum and gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ElementName {
    /// 32 bit.
    F32,
    /// bfloat16.
    Bf16,
}

/// What the iterate of an orthogonalization is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PrecisionName {
    /// 32 bit.
    F32,
    /// 32 bit, of which products read 10 bits of mantissa (NVIDIA's tensor cores).
    Tf32,
    /// bfloat16, rounded at every store.
    Bf16,
    /// IEEE half, rounded at every store.
    Fp16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Tf32 => Self::Tf32,
            PrecisionName::Bf16 => Self::Bf16,
            PrecisionName::Fp16 => Self::Fp16,
        }
    }
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

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("expected a whole number".into()),
    }
}
