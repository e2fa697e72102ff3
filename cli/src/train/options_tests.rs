//! Every option of `muon train`, in every kind of job: it is refused, or it changes the run, and then the record has it.

use std::path::Path;

use serde_json::{Value, json};

use super::config::OptimizerConfig;
use super::jobs;
use super::plan::{self, MANNERS, Planned};
use super::{grid, sweep};
use crate::args::{Cli, Command};
use crate::terminal::Notes;

/// Options that change what a job leaves behind, or how it is computed, and none of its numbers.
const KEPT: [(&str, &str); 5] = [
    ("threads", "the numbers do not depend on it"),
    ("checkpoint_every", "says where a killed run goes on"),
    ("record_spectra", "looks at the directions and changes nothing"),
    ("spectra_every", "says when"),
    ("save_model", "is about the end of a run"),
];

/// Options that say what kind of command it is: other jobs, which are kinds of their own below.
const KINDS: [(&str, &str); 3] = [
    ("resume", "goes on with a recorded job: there is no other"),
    ("lr_grid", "is a job of its own, which has no config.json"),
    ("sweep", "is a job of its own, which has no config.json"),
];

/// A value of every option that differs from its default and from the jobs below.
fn sample(id: &str, dir: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let text = match id {
        "task" => "--task text",
        "text" => return vec!["--text".into(), file("t.txt")],
        "optimizer" => "--optimizer gradient-descent",
        "schedule" => "--schedule you",
        "schedules" => return vec!["--schedules".into(), file("by.toml")],
        "iterations" => "--iterations 3",
        "lr" => "--lr 0.017",
        "lr_schedule" => "--lr-schedule constant",
        "weight_decay" => "--weight-decay 0.3",
        "head_lr" => "--head-lr 0.02",
        "momentum" => "--momentum 0.6",
        "steps" => "--steps 7",
        "batch_size" => "--batch-size 9",
        "hidden" => "--hidden 7",
        "width" => "--width 12",
        "layers" => "--layers 3",
        "heads" => "--heads 4",
        "context" => "--context 9",
        "seed" => "--seed 3",
        "seeds" => "--seeds 3",
        "device" => "--device reference",
        "precision" => "--precision bf16",
        "threads" => "--threads 3",
        "jobs" => "--jobs 2",
        "out" => "--out elsewhere",
        "force" => "--out elsewhere --force",
        "checkpoint_every" => "--checkpoint-every 3",
        "resume" => "--resume",
        "lr_grid" => "--lr-grid",
        "sweep" => "--sweep",
        "baseline" => "--baseline classical_cubic",
        "margin" => "--margin 0.4",
        "record_spectra" => return vec!["--record-spectra".into(), file("s.jsonl")],
        "spectra_every" => {
            return vec!["--record-spectra".into(), file("s.jsonl"), "--spectra-every=3".into()];
        }
        "save_model" => "--save-model",
        "json" => "--json",
        "quiet" => "--quiet",
        new => panic!("`{new}` is a new option: give it a value here, and say what it is"),
    };
    text.split(' ').map(str::to_owned).collect()
}

/// Kinds of jobs, small enough for hundreds of them. The transformer and the perceptron have other defaults than these.
fn kinds() -> Vec<Vec<String>> {
    let text = "--task text --layers 1 --width 8 --context 8 --steps 4 --batch-size 2";
    let digits = "--hidden 6,5 --steps 6 --batch-size 8";
    [
        format!("{digits} --optimizer adamw"),
        format!("{digits} --optimizer gradient-descent"),
        format!("{digits} --optimizer muon --schedule jordan"),
        format!("{digits} --optimizer muon --schedule exact"),
        format!("{digits} --optimizer muon --schedule jordan --device reference"),
        format!("{digits} --optimizer adamw --device reference"),
        format!("{text} --optimizer adamw"),
        format!("{text} --optimizer muon --schedule jordan"),
        format!("{digits} --lr-grid --optimizer adamw"),
        format!("{digits} --lr-grid --optimizer muon --schedule jordan"),
        format!(
            "{digits} --sweep --schedule jordan --schedule classical_cubic --seeds 2 --lr 0.02"
        ),
        format!(
            "{digits} --sweep --optimizer adamw --optimizer gradient-descent --seeds 2 --lr 0.02"
        ),
    ]
    .iter()
    .map(|text| text.split(' ').map(str::to_owned).collect())
    .collect()
}

/// What is planned; the message where the command line is refused.
fn planned(args: &[String]) -> Result<Planned, String> {
    let line = ["muon", "train"].into_iter().chain(args.iter().map(String::as_str));
    let matches = Cli::definition().try_get_matches_from(line).map_err(|e| e.to_string())?;
    let Command::Train(args) = Cli::from_matches(&matches).unwrap().command else { panic!() };
    plan::job(&args).map_err(|e| crate::exit::describe(&e))
}

/// Everything that a job computes: losses of every run, and what a sweep concludes from them.
fn numbers(planned: &Planned) -> Value {
    let config = planned.config();
    let rows: Vec<OptimizerConfig> = match planned {
        Planned::Compare(_) => config.optimizers.clone(),
        Planned::Grid(_) => grid::rows(config, &[]),
        Planned::Sweep(_, comparison) => grid::rows(config, &comparison.lrs),
    };
    let notes = Notes::new(true);
    let (checkpoints, spectra, models) = (None, None, None);
    let job =
        jobs::Job { config, rows: &rows, checkpoints, spectra, models, jobs: 2, notes: &notes };
    let results = job.run().unwrap().unwrap();
    let runs: Vec<Value> = rows
        .iter()
        .zip(&results)
        .map(|(row, records)| {
            let losses: Vec<Value> =
                records.iter().map(|r| json!([r.batch_losses, r.evaluations.last()])).collect();
            json!([row.id(), row.lr, losses])
        })
        .collect();
    let concluded = match planned {
        Planned::Sweep(_, c) => {
            let finals = results.iter().map(|r| r.iter().map(sweep::journal::Final::of).collect());
            let results: Vec<_> = rows.into_iter().zip(finals).collect();
            let sweep = sweep::report::Sweep::new(config, &results, &c.baseline, c.margin);
            json!(sweep.rows)
        }
        _ => Value::Null,
    };
    json!([runs, concluded])
}

/// What `config.json` has; for a grid and a sweep, which have none, what decides their numbers.
fn record(planned: &Planned) -> Value {
    match planned {
        Planned::Compare(job) => json!(job),
        Planned::Grid(config) | Planned::Sweep(config, _) => json!(config),
    }
}

fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.txt"), "all work and no play ".repeat(60)).unwrap();
    let table = "[[schedule]]\nparam = \"*\"\nuse = \"cubic5\"\n";
    std::fs::write(dir.path().join("by.toml"), table).unwrap();
    dir
}

fn named(list: &[(&str, &str)], id: &str) -> bool {
    list.iter().any(|(name, _)| *name == id)
}

/// The ids of all options, as clap has them.
fn options() -> Vec<String> {
    let command = Cli::definition();
    let train = command.find_subcommand("train").unwrap();
    train.get_arguments().map(|a| a.get_id().to_string()).collect()
}

#[test]
fn every_option_is_refused_or_changes_the_run() {
    let dir = files();
    let (mut refused, mut used) = (0, 0);
    for kind in kinds() {
        let base = numbers(&planned(&kind).unwrap());
        for id in options() {
            let flag = format!("--{}", id.replace('_', "-"));
            // What makes the kind: without it the job would be another.
            if kind.contains(&flag) || named(&KINDS, &id) {
                continue;
            }
            let args = [kind.clone(), sample(&id, dir.path())].concat();
            match planned(&args) {
                Err(message) => {
                    refused += 1;
                    assert!(
                        message.contains(&flag) || message.contains("is not used by"),
                        "{args:?}: {message}"
                    );
                }
                Ok(_) if named(&MANNERS, &id) => {}
                Ok(planned) => {
                    used += 1;
                    let (now, changed) = (numbers(&planned), !named(&KEPT, &id));
                    assert_eq!(now != base, changed, "{args:?}");
                }
            }
        }
    }
    // 12 kinds: a mistake that refuses nothing, or everything, is none of the above.
    assert!(refused > 60 && used > 60, "{refused} {used}");
}

/// "Resume is the same run": what an option changes is in the record, so that --resume has it.
#[test]
fn every_option_that_a_job_uses_is_in_its_record() {
    let dir = files();
    for kind in kinds().into_iter().filter(|k| !k.contains(&"--sweep".to_owned())) {
        let base = record(&planned(&kind).unwrap());
        for id in options() {
            let flag = format!("--{}", id.replace('_', "-"));
            if kind.contains(&flag) || named(&KINDS, &id) {
                continue;
            }
            let args = [kind.clone(), sample(&id, dir.path())].concat();
            let Ok(planned) = planned(&args) else { continue };
            assert_eq!(record(&planned) != base, !named(&MANNERS, &id), "{args:?}");
        }
    }
    for (id, reason) in MANNERS.iter().chain(&KEPT).chain(&KINDS) {
        assert!(options().iter().any(|o| o == id) && !reason.is_empty(), "{id} is no option");
    }
}
