//! Options and help text of `muon tune`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use muon_cuda::Precision;
use serde::{Deserialize, Serialize};

use crate::tune::cost::CostModel;

use super::{Given, limits};

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
///
/// Nothing is replaced unless you say so: a directory that holds a study, or files of yours, is refused. Without --out
/// the next free name is taken: muon-tune, muon-tune-2, … The file muon-files.json lists what was written there; --force
/// replaces those files and no others. An option that the study does not use is refused.
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
      go on with the last study in muon-tune, muon-tune-2, …
  muon tune --check muon-tune/record.json
      compute a record's scores again

Exit codes: 0 done, or the record holds; 1 failed (a file, a damaged journal or record, a directory in use), or the
record does not hold; 2 unknown spectrum, infeasible options, an option that the study does not use, or an output
directory that holds something else; 130 stopped by Ctrl-C, resumable")]
pub(crate) struct TuneArgs {
    /// Which of these were given.
    #[arg(skip)]
    pub(crate) given: Given,

    /// What the iterate is stored in
    #[arg(long, value_enum, default_value = "bf16", value_name = "NAME")]
    pub(crate) precision: TunePrecisionName,

    /// Long side over short side, for cost and spectra (with --per-layer each layer has its own)
    #[arg(long, default_value_t = 4.0, value_name = "X")]
    pub(crate) aspect: f64,

    /// Short side of analytic spectra and of the matrices made from them (with --per-layer each layer has its own)
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

    /// Families, one a line, that results are measured on and that the search does not see (not in f64, where nothing is
    /// measured)
    #[arg(long, value_name = "FILE")]
    pub(crate) held_out: Option<PathBuf>,

    /// Numbers of iterations to try, 1 to 8 each
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

    /// How the spectra are put together (not for --objective worst-case, which looks at none)
    #[arg(long, value_enum, default_value = "mean", value_name = "NAME")]
    pub(crate) aggregate: AggregateName,

    /// Lower end of the interval of --band and of --objective worst-case
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

    /// Allow schedules that rounding can drive apart on a matrix with one dominant row (f64 does not round)
    #[arg(long)]
    pub(crate) no_rounding_safety: bool,

    /// Decides every random number
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,

    /// Candidates that are polished
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub(crate) polish: usize,

    /// Evaluations of each polish, at most 10000000
    #[arg(long, default_value_t = 3000, value_name = "N", value_parser = limits::evaluations)]
    pub(crate) evaluations: usize,

    /// Stop searching after that long, at most a year; what is found so far is reported [default: when all is done]
    #[arg(long, value_name = "SECONDS", value_parser = limits::seconds)]
    pub(crate) time: Option<u64>,

    /// Threads, at most 1024 [default: all cores]; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = limits::threads)]
    pub(crate) jobs: Option<usize>,

    /// Output directory, made if it is not there; refused if it holds a study or files of others [default: muon-tune, or
    /// the next free of muon-tune-2, muon-tune-3, …]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// Replace the files that an earlier study left in --out, or write beside files of others; these are never replaced
    #[arg(long, requires = "out")]
    pub(crate) force: bool,

    /// Go on with the study recorded in the output directory, exactly as it was started; without --out with the last one of
    /// muon-tune, muon-tune-2, …
    #[arg(long)]
    pub(crate) resume: bool,

    /// Compute the scores of a record again, and nothing else
    #[arg(long, value_name = "RECORD.json")]
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
