//! What a job measured, as `metrics.json` has it.

use serde::Serialize;

use super::config::{Config, OptimizerConfig, Task};
use super::run::{Evaluation, Record};

const DIGITS: &str = "UCI Optical Recognition of Handwritten Digits, 1797 samples of 8x8 pixels";

/// The whole record. Everything outside `timing` is the same, bit for bit, whenever the job is repeated or
/// resumed on the same kind of machine.
#[derive(Debug, Serialize)]
pub(crate) struct Metrics<'a> {
    format: &'static str,
    versions: Versions,
    data: Data,
    config: &'a Config,
    /// One sentence.
    pub(crate) finding: String,
    pub(crate) summary: Vec<Summary>,
    runs: Vec<RunRecord<'a>>,
    pub(crate) timing: Timing,
}

#[derive(Debug, Serialize)]
struct Versions {
    #[serde(rename = "muon-cli")]
    cli: &'static str,
}

#[derive(Debug, Serialize)]
struct Data {
    source: String,
    /// Of a text: bytes.
    training_samples: usize,
    held_out_samples: usize,
}

/// Mean and sample standard deviation over seeds; the deviation is absent for one seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) deviation: Option<f64>,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        let deviation = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
        Self { mean, deviation }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub(crate) optimizer: String,
    pub(crate) label: String,
    #[serde(skip)]
    pub(crate) is_muon: bool,
    #[serde(skip)]
    pub(crate) seeds: usize,
    pub(crate) lr: f64,
    /// On the training data at the end.
    pub(crate) training_loss: Spread,
    /// On the held-out data at the end.
    pub(crate) held_out_loss: Spread,
    /// On the held-out data at the end.
    pub(crate) accuracy: Spread,
    /// Median over seeds of the first evaluated step with a training loss of at most the target; absent if fewer
    /// than half of the seeds got there.
    pub(crate) steps_to_target: Option<usize>,
    /// For each seed whose run diverged the step at which it did.
    pub(crate) diverged: Vec<Divergence>,
}

/// A run that diverged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Divergence {
    pub(crate) seed: u64,
    /// The first one with a loss that is not finite, or a hundred times that of the untrained model.
    pub(crate) step: usize,
}

#[derive(Debug, Serialize)]
struct RunRecord<'a> {
    optimizer: String,
    seed: u64,
    final_training_loss: f64,
    final_held_out_loss: f64,
    final_accuracy: f64,
    evaluations: &'a [Evaluation],
    batch_losses: &'a [f64],
}

/// How long it took: the part of the record that differs from one execution to the next.
#[derive(Debug, Serialize)]
pub(crate) struct Timing {
    /// Runs at the same time.
    pub(crate) jobs: usize,
    /// One for each row of the table.
    pub(crate) milliseconds_per_step: Vec<StepTime>,
}

/// Mean time of a step over all seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct StepTime {
    /// Forward, backward and optimizer.
    pub(crate) step: f64,
    /// The optimizer alone.
    pub(crate) optimizer: f64,
}

/// Results of one row, one for each seed.
pub(crate) struct RowResults<'a> {
    pub(crate) row: &'a OptimizerConfig,
    pub(crate) records: Vec<Record>,
}

impl<'a> Metrics<'a> {
    /// Puts a record together.
    pub(crate) fn new(
        config: &'a Config,
        samples: (usize, usize),
        rows: &'a [RowResults<'a>],
        jobs: usize,
    ) -> Self {
        let summary: Vec<Summary> = rows.iter().map(|r| summarize(r, config)).collect();
        Self {
            format: "muon train metrics, version 1",
            versions: Versions { cli: env!("CARGO_PKG_VERSION") },
            data: Data {
                source: match &config.task {
                    Task::Digits { .. } => DIGITS.to_owned(),
                    Task::Text { text, .. } => text.to_string(),
                },
                training_samples: samples.0,
                held_out_samples: samples.1,
            },
            config,
            finding: finding(&summary, config.steps),
            summary,
            runs: rows
                .iter()
                .flat_map(|r| {
                    r.records.iter().zip(&config.seeds).map(|(record, seed)| RunRecord {
                        optimizer: r.row.id(),
                        seed: *seed,
                        final_training_loss: record.final_loss(),
                        final_held_out_loss: record.final_held_out_loss(),
                        final_accuracy: record.final_accuracy(),
                        evaluations: &record.evaluations,
                        batch_losses: &record.batch_losses,
                    })
                })
                .collect(),
            timing: Timing {
                jobs,
                milliseconds_per_step: rows.iter().map(|r| step_time(r, config.steps)).collect(),
            },
        }
    }

    /// Whether any run did.
    pub(crate) fn diverged(&self) -> bool {
        self.summary.iter().any(|s| !s.diverged.is_empty())
    }
}

fn summarize(r: &RowResults<'_>, config: &Config) -> Summary {
    let target = config.task.target_loss();
    let mut reached: Vec<usize> =
        r.records.iter().map(|r| r.steps_to(target).unwrap_or(usize::MAX)).collect();
    reached.sort_unstable();
    Summary {
        optimizer: r.row.id(),
        label: r.row.to_string(),
        is_muon: r.row.is_muon(),
        seeds: config.seeds.len(),
        lr: r.row.lr,
        training_loss: Spread::of(r.records.iter().map(Record::final_loss)),
        held_out_loss: Spread::of(r.records.iter().map(Record::final_held_out_loss)),
        accuracy: Spread::of(r.records.iter().map(Record::final_accuracy)),
        steps_to_target: reached.get(reached.len() / 2).copied().filter(|s| *s != usize::MAX),
        diverged: r
            .records
            .iter()
            .zip(&config.seeds)
            .filter_map(|(r, seed)| Some(Divergence { seed: *seed, step: r.diverged()? }))
            .collect(),
    }
}

fn step_time(r: &RowResults<'_>, steps: usize) -> StepTime {
    let taken = (steps * r.records.len()) as f64;
    let mean = |f: fn(&Record) -> f64| r.records.iter().map(f).sum::<f64>() / taken * 1e3;
    StepTime { step: mean(|r| r.step_seconds), optimizer: mean(|r| r.optimizer_seconds) }
}

/// Best Muon against best other, in words, and what diverged; what is not so is not said.
fn finding(summary: &[Summary], steps: usize) -> String {
    let best = |muon: bool| {
        summary
            .iter()
            .filter(|s| s.is_muon == muon && s.diverged.is_empty())
            .min_by(|a, b| a.training_loss.mean.total_cmp(&b.training_loss.mean))
    };
    let compared = match (best(true), best(false)) {
        (Some(muon), Some(other)) => {
            let ratio = other.training_loss.mean / muon.training_loss.mean;
            let (better, worse, factor) = if ratio >= 1.0 {
                (&muon.label, &other.label, ratio)
            } else {
                (&other.label, &muon.label, 1.0 / ratio)
            };
            format!(
                "In {steps} steps {better} reaches 1/{} of the training loss of {worse}",
                significant(factor)
            )
        }
        _ => format!("Training loss over {steps} steps"),
    };
    let diverged: Vec<String> = summary
        .iter()
        .flat_map(|s| {
            let of = move |d: &Divergence| match s.seeds {
                1 => format!("{} diverged at step {}", s.label, d.step),
                _ => format!("{} with seed {} diverged at step {}", s.label, d.seed, d.step),
            };
            s.diverged.iter().map(of)
        })
        .collect();
    [vec![compared], diverged].concat().join("; ")
}

/// Two significant digits, without an exponent.
fn significant(x: f64) -> String {
    if x < 9.95 {
        return format!("{x:.1}");
    }
    let power = 10f64.powf((x.log10() - 1.0).floor());
    format!("{:.0}", (x / power).round() * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, is_muon: bool, loss: f64) -> Summary {
        let spread = |mean| Spread { mean, deviation: None };
        Summary {
            optimizer: label.into(),
            label: label.into(),
            is_muon,
            seeds: 1,
            lr: 0.1,
            training_loss: spread(loss),
            held_out_loss: spread(loss),
            accuracy: spread(1.0),
            steps_to_target: None,
            diverged: Vec::new(),
        }
    }

    #[test]
    fn finding_says_what_is_so() {
        let rows = [row("GD", false, 0.02), row("AdamW", false, 0.01), row("Muon", true, 0.0004)];
        assert_eq!(
            finding(&rows, 300),
            "In 300 steps Muon reaches 1/25 of the training loss of AdamW"
        );
        let mut rows =
            [row("GD", false, 0.02), row("Muon", true, 0.03), row("bad", true, f64::NAN)];
        rows[2].diverged = vec![Divergence { seed: 4, step: 3 }];
        let compared = "In 9 steps GD reaches 1/1.5 of the training loss of Muon";
        assert_eq!(finding(&rows[..2], 9), compared);
        assert_eq!(finding(&rows, 9), format!("{compared}; bad diverged at step 3"));
        rows[2].seeds = 2;
        assert_eq!(
            finding(&rows[2..], 9),
            "Training loss over 9 steps; bad with seed 4 diverged at step 3"
        );
        assert_eq!(finding(&rows[..1], 9), "Training loss over 9 steps");
    }

    #[test]
    fn spread_is_the_sample_deviation() {
        let s = Spread::of([1.0, 2.0, 3.0].into_iter());
        assert_eq!((s.mean, s.deviation), (2.0, Some(1.0)));
        assert_eq!(Spread::of([4.0].into_iter()).deviation, None);
        assert_eq!((significant(1234.0), significant(9.96)), ("1200".into(), "10".into()));
    }
}
