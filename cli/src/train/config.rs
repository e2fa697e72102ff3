//! What a training job is: everything that decides its numbers, as recorded in `config.json`.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use muon_cuda::{
    CoefficientSchedule, LrSchedule, Normalization, OddPolynomial, Orthogonalizer, Tail,
};
use serde::{Deserialize, Serialize};

use super::text::TextId;
use super::transformer::TransformerShape;
use crate::args::PrecisionName;
use crate::devices::DeviceName;
use crate::glob::matches;

/// Everything that a job was started with, as `config.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// What decides its numbers.
    #[serde(flatten)]
    pub(crate) config: Config,
    /// What decides what it leaves behind.
    pub(crate) kept: Kept,
}

/// What a job leaves behind besides its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    /// Steps between checkpoints.
    pub(crate) checkpoint_every: usize,
    /// Where singular values of the directions go.
    pub(crate) spectra: Option<RecordedSpectra>,
    /// Whether the trained parameters are written.
    pub(crate) save_model: bool,
}

/// Where a job appends singular values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordedSpectra {
    /// Absolute: a job may be resumed from elsewhere.
    pub(crate) file: PathBuf,
    /// Steps between records.
    pub(crate) every: usize,
    /// Bytes of the file that were there before the job.
    pub(crate) from: u64,
}

/// A job: some optimizers, some seeds, one budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Optimizer steps of every run.
    pub(crate) steps: usize,
    /// What is learned, by which model.
    pub(crate) task: Task,
    /// Samples, or windows of text, a step.
    pub(crate) batch_size: usize,
    /// Each decides split, initialisation and order of the batches.
    pub(crate) seeds: Vec<u64>,
    /// Course of the learning rate, as a factor of each optimizer's own.
    pub(crate) lr_schedule: LrScheduleName,
    /// Steps between evaluations on all samples.
    pub(crate) evaluate_every: usize,
    /// Where the optimizer runs.
    pub(crate) device: DeviceName,
    /// What the iterate of the orthogonalization is stored in.
    pub(crate) precision: PrecisionName,
    /// Threads of the optimizer in each run.
    pub(crate) threads: usize,
    /// What is compared.
    pub(crate) optimizers: Vec<OptimizerConfig>,
}

impl Config {
    /// The factor of every learning rate at each step.
    ///
    /// # Errors
    /// No step to take.
    pub(crate) fn lr_schedule(&self) -> Result<LrSchedule> {
        let total = self.steps as u64;
        let warmup = total / 10;
        Ok(match self.lr_schedule {
            LrScheduleName::Constant => LrSchedule::constant(),
            LrScheduleName::Linear => LrSchedule::linear(warmup, total)?,
            LrScheduleName::Cosine => LrSchedule::cosine(warmup, total)?,
            LrScheduleName::Wsd => {
                LrSchedule::warmup_stable_decay(warmup, (total / 5).max(1), total)?
            }
        })
    }
}

/// What is learned, by which model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub(crate) enum Task {
    /// Handwritten digits, by a perceptron.
    Digits {
        /// Widths of its hidden layers.
        hidden: Vec<usize>,
    },
    /// The next byte of a text, by a transformer.
    Text {
        /// The text.
        text: TextId,
        /// Dimensions of the model.
        model: TransformerShape,
    },
}

impl Task {
    /// What the model is, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Digits { hidden } => {
                let hidden: Vec<String> = hidden.iter().map(ToString::to_string).collect();
                format!("perceptron 64 → {} → 10", hidden.join(" → "))
            }
            Self::Text { text, model: m } => format!(
                "transformer over bytes, {} layers of width {}, {} heads, context {}; {}",
                m.layers, m.width, m.heads, m.context, text
            ),
        }
    }

    /// Training loss, nats, whose first reaching is a column of the table.
    pub(crate) fn target_loss(&self) -> f64 {
        match self {
            Self::Digits { .. } => 0.1,
            Self::Text { .. } => 2.5,
        }
    }
}

/// The course of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LrScheduleName {
    /// The same at every step.
    Constant,
    /// Linear warm-up over the first tenth of the steps, then linear decay to 0.
    Linear,
    /// Linear warm-up over the first tenth of the steps, then half a cosine to 0.
    Cosine,
    /// Linear warm-up over the first tenth of the steps, constant, linear decay to 0 over the last fifth.
    Wsd,
}

/// One row of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OptimizerConfig {
    /// How parameters become steps.
    pub(crate) kind: Kind,
    /// Peak learning rate.
    pub(crate) lr: f64,
    /// β of the momentum (β₁ under AdamW).
    pub(crate) momentum: f64,
    /// Decoupled weight decay.
    pub(crate) weight_decay: f64,
    /// Peak learning rate of AdamW for what Muon leaves to it; unused by the others.
    pub(crate) adamw_lr: f64,
}

/// The optimizers of the lecture's argument.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "optimizer", rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Heavy-ball gradient descent with Nesterov's look-ahead on every parameter.
    GradientDescent,
    /// AdamW on every parameter.
    AdamW,
    /// Hidden matrices orthogonalized; the rest to AdamW.
    Muon {
        /// How they are orthogonalized.
        method: MuonMethod,
    },
}

/// How Muon orthogonalizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub(crate) enum MuonMethod {
    /// Exact polar factor.
    ExactSvd,
    /// Each hidden matrix by its own.
    PerLayer {
        /// Name of the table.
        name: String,
        /// The first whose pattern matches a parameter decides.
        layers: Vec<LayerMethod>,
    },
    /// Polynomial iterations, written out so that a record needs no file beside it.
    Polynomials {
        /// Name of the schedule.
        name: String,
        /// One polynomial per iteration, odd coefficients from the lowest degree.
        polynomials: Vec<Vec<f64>>,
        /// What the direction's norm is multiplied with before it is divided; `null` for the AOL normalisation.
        safety: Option<f64>,
        /// What more iterations would be.
        tail: TailName,
        /// Where the numbers come from.
        source: String,
    },
}

/// How parameters whose names match a pattern are orthogonalized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerMethod {
    /// `*` is anything, `?` one character.
    pub(crate) param: String,
    /// Not by layer again.
    pub(crate) method: MuonMethod,
}

/// The schedule's rule for another number of iterations; part of what makes it the published one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TailName {
    /// There are none.
    Exact,
    /// The last one again.
    RepeatLast,
}

impl MuonMethod {
    /// A schedule with a given number of iterations as a method.
    pub(crate) fn from_schedule(schedule: &CoefficientSchedule) -> Self {
        Self::Polynomials {
            name: schedule.name().to_owned(),
            polynomials: schedule.polynomials().iter().map(|p| p.coefficients().to_vec()).collect(),
            safety: match schedule.normalization() {
                Normalization::Frobenius { safety } => Some(safety),
                Normalization::Aol => None,
            },
            tail: match schedule.tail() {
                Tail::Exact => TailName::Exact,
                Tail::RepeatLast => TailName::RepeatLast,
            },
            source: schedule.source().to_owned(),
        }
    }

    /// Whether an iterate is stored, so that the precision matters.
    pub(crate) fn stores_an_iterate(&self) -> bool {
        match self {
            Self::ExactSvd => false,
            Self::Polynomials { .. } => true,
            Self::PerLayer { layers, .. } => layers.iter().any(|l| l.method.stores_an_iterate()),
        }
    }

    /// The method of one parameter, with the pattern that decided; `None` if none matches.
    pub(crate) fn of_param(&self, param: &str) -> Option<(Option<&str>, &Self)> {
        match self {
            Self::PerLayer { layers, .. } => layers
                .iter()
                .find(|l| matches(&l.param, param))
                .map(|l| (Some(l.param.as_str()), &l.method)),
            Self::ExactSvd | Self::Polynomials { .. } => Some((None, self)),
        }
    }

    /// What the library calls it.
    ///
    /// # Errors
    /// A record that was edited into something impossible; a method by layer, which is several.
    pub(crate) fn orthogonalizer(&self) -> Result<Orthogonalizer> {
        match self {
            Self::PerLayer { name, .. } => {
                Err(anyhow!("`{name}`: schedules by layer within schedules by layer"))
            }
            Self::ExactSvd => Ok(Orthogonalizer::ExactSvd),
            Self::Polynomials { name, polynomials, safety, tail, source } => {
                let polynomials = polynomials
                    .iter()
                    .map(|row| OddPolynomial::new(row))
                    .collect::<muon_cuda::Result<Vec<_>>>()?;
                let normalization =
                    safety.map_or(Normalization::Aol, |safety| Normalization::Frobenius { safety });
                let schedule = CoefficientSchedule::new(
                    name.as_str(),
                    polynomials,
                    normalization,
                    match tail {
                        TailName::Exact => Tail::Exact,
                        TailName::RepeatLast => Tail::RepeatLast,
                    },
                    source.as_str(),
                )?;
                Ok(Orthogonalizer::Polynomial { schedule, iterations: None })
            }
        }
    }
}

impl Kind {
    /// Whether an iterate is stored, so that the precision matters.
    pub(crate) fn stores_an_iterate(&self) -> bool {
        matches!(self, Self::Muon { method } if method.stores_an_iterate())
    }
}

impl OptimizerConfig {
    /// The name of files and records.
    pub(crate) fn id(&self) -> String {
        match &self.kind {
            Kind::GradientDescent => "gradient_descent".into(),
            Kind::AdamW => "adamw".into(),
            Kind::Muon { method: MuonMethod::ExactSvd } => "muon_exact_svd".into(),
            Kind::Muon { method: MuonMethod::Polynomials { name, polynomials, .. } } => {
                format!("muon_{}_{}", clean(name), polynomials.len())
            }
            Kind::Muon { method: MuonMethod::PerLayer { name, .. } } => {
                format!("muon_{}_layers", clean(name))
            }
        }
    }

    /// The name of its coefficient schedule.
    pub(crate) fn schedule(&self) -> Option<&str> {
        match &self.kind {
            Kind::Muon {
                method: MuonMethod::Polynomials { name, .. } | MuonMethod::PerLayer { name, .. },
            } => Some(name),
            Kind::Muon { method: MuonMethod::ExactSvd } => Some("exact"),
            _ => None,
        }
    }

    /// Whether the hidden matrices are orthogonalized.
    pub(crate) fn is_muon(&self) -> bool {
        matches!(self.kind, Kind::Muon { .. })
    }
}

/// The name in tables and plots.
impl fmt::Display for OptimizerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::GradientDescent => f.write_str("gradient descent"),
            Kind::AdamW => f.write_str("AdamW"),
            Kind::Muon { method: MuonMethod::ExactSvd } => f.write_str("Muon (exact SVD)"),
            Kind::Muon {
                method: MuonMethod::Polynomials { name, .. } | MuonMethod::PerLayer { name, .. },
            } => {
                write!(f, "Muon ({name})")
            }
        }
    }
}

/// As part of a file name.
fn clean(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use muon_cuda::coefficients::presets;

    #[test]
    fn a_preset_is_still_one_after_being_recorded() {
        for name in presets::names() {
            let schedule = presets::preset(name).unwrap();
            let json = serde_json::to_string(&MuonMethod::from_schedule(&schedule)).unwrap();
            let method: MuonMethod = serde_json::from_str(&json).unwrap();
            let Orthogonalizer::Polynomial { schedule: back, .. } =
                method.orthogonalizer().unwrap()
            else {
                panic!("{name} came back as something else");
            };
            // 16-bit runs guard presets and nothing else, so this decides numbers.
            assert!(back.is_preset(), "{name}");
            assert_eq!(back, schedule);
        }
    }
}
