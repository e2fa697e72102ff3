//! Options and help text of `muon train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Given, PrecisionName, limits, positive};
use crate::devices::DeviceName;
use crate::train::config::LrScheduleName;

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
///
/// Nothing is replaced unless you say so: a directory that holds a job, or files of yours, is refused. Without --out the
/// next free name is taken: muon-run, muon-run-2, … The file muon-files.json lists what was written there; --force
/// replaces those files and no others. An option that the job does not use is refused.
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
  muon train --optimizer muon --schedule jordan --save-model
      keep the trained parameters, in muon-run/models/
  muon train --resume
      go on with the last job in muon-run, muon-run-2, …

Exit codes: 0 trained; 1 failed (output directory not writable or in use, checkpoint damaged, …) or diverged, which
the last line says; 2 unknown name, an option that the job does not use, or an output directory that holds something
else; 130 stopped by Ctrl-C, resumable")]
pub(crate) struct TrainArgs {
    /// Which of these were given.
    #[arg(skip)]
    pub(crate) given: Given,

    /// What to learn [default: digits, or text where --text is given]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) task: Option<TaskName>,

    /// Text to learn from (--task text), a file of any bytes, at most 1 GiB, since it is held in memory by each run; a tenth
    /// is held out [default: Cicero, De finibus I, embedded]
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

    /// Iterations of each schedule, at most 128, where its tail allows another number than its own
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

    /// Learning rate of AdamW for what Muon leaves to it (--optimizer muon) [default: 0.003]
    #[arg(long, value_name = "LR")]
    pub(crate) head_lr: Option<f64>,

    /// Momentum β (β₁ of AdamW) [default: 0.95; AdamW 0.9]
    #[arg(long, value_name = "B")]
    pub(crate) momentum: Option<f64>,

    /// Optimizer steps of each run, at most 100000000: the loss of every step is kept
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = limits::steps)]
    pub(crate) steps: usize,

    /// Samples, at most as many as there are to train on, or windows of text, a step [default: 128, or 16 windows]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) batch_size: Option<usize>,

    /// Widths of the perceptron's hidden layers (--task digits), at most 64 of them; a run may need 16 GiB of memory, as far
    /// as is known beforehand [default: 128,128]
    #[arg(long, value_delimiter = ',', value_name = "N,N…", value_parser = positive)]
    pub(crate) hidden: Vec<usize>,

    /// Width of the transformer (--task text); a run may need 16 GiB of memory, as far as is known beforehand [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) width: Option<usize>,

    /// Layers of the transformer (--task text), at most 1000: their parameters are registered one by one [default: 2]
    #[arg(long, value_name = "N", value_parser = limits::layers)]
    pub(crate) layers: Option<usize>,

    /// Attention heads of the transformer, a divisor of its width (--task text) [default: 2]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) heads: Option<usize>,

    /// Bytes that a prediction may look at (--task text) [default: 64]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) context: Option<usize>,

    /// First seed: decides the split, the initialisation and the order of the batches
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,

    /// Number of seeds, at most 10000, counted up from --seed; the table gives mean ± standard deviation
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = limits::seeds)]
    pub(crate) seeds: usize,

    /// Where the optimizer runs: cpu, reference (the f64 oracle), cuda or cuda:N, emulated (the GPU's kernels executed
    /// and checked on the CPU, slow; in builds with feature `emulator`)
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    pub(crate) device: DeviceName,

    /// What the iterate of the polynomials is stored in (--optimizer muon); all but f32 is emulated on the CPU
    /// [default: f32; bf16 on CUDA]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) precision: Option<PrecisionName>,

    /// Threads of the optimizer in each run (--device cpu), at most 1024; the numbers do not depend on it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = limits::threads)]
    pub(crate) threads: usize,

    /// Runs at the same time, at most 1024, all their threads together too [default: 1, or all cores for a grid or several
    /// seeds]
    #[arg(long, value_name = "N", value_parser = limits::threads)]
    pub(crate) jobs: Option<usize>,

    /// Output directory, made if it is not there; refused if it holds a job or files of others [default: muon-run, or the
    /// next free of muon-run-2, muon-run-3, …]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// Replace the files that an earlier job left in --out, or write beside files of others; these are never replaced
    #[arg(long, requires = "out")]
    pub(crate) force: bool,

    /// Steps between checkpoints (not for --lr-grid and --sweep, which note every finished run)
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = positive)]
    pub(crate) checkpoint_every: usize,

    /// Write the trained parameters of every run to models/ in the output directory (.safetensors); with --resume also
    /// those of a job that was started without it
    #[arg(long)]
    pub(crate) save_model: bool,

    /// Go on with the job recorded in the output directory, exactly as it was started; without --out with the last one of
    /// muon-run, muon-run-2, …
    #[arg(long)]
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

    /// Append singular values of the directions that Muon orthogonalizes to this file, one line of JSON a matrix and step;
    /// what it holds already stays
    #[arg(long, value_name = "FILE")]
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
