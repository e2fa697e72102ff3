//! Every option of `muon tune`, in every kind of study: it is refused, or it changes what is found.

use std::path::Path;

use muon_cuda::MatrixShape;
use muon_cuda::spectrum::SpectrumRecord;
use serde_json::{Value, json};

use super::settings::Settings;
use super::{MANNERS, candidate, journal, layers, objective, record, search};
use crate::args::{Cli, Command, TuneArgs};
use crate::terminal::{Notes, stop_requested};

/// Options that are kinds of commands, with others than the one looked at here.
const KINDS: [(&str, &str); 3] = [
    ("resume", "goes on with a recorded study: there is no other"),
    ("check", "computes a record again"),
    ("per_layer", "is a kind below"),
];

/// Options that change what is found only where something else is chosen than here.
const INACTIVE: [(&str, &str); 1] =
    [("no_rounding_safety", "lifts a constraint that most of these studies keep anyway")];

/// A value of every option that makes a difference to the studies below.
fn sample(id: &str, dir: &Path) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    let text = match id {
        "precision" => "--precision f32",
        "aspect" => "--aspect 3",
        "size" => "--size 20",
        "spectrum" => "--spectrum power:2",
        "spectra" => return vec!["--spectra".into(), file("s.jsonl")],
        "held_out" => return vec!["--held-out".into(), file("held")],
        "iterations" => "--iterations 3",
        "degrees" => "--degrees 3,5",
        "method" => "--method any",
        "cost" => "--cost roofline:a100",
        "max_cost" => "--max-cost 1",
        "objective" => "--objective alignment",
        "aggregate" => "--aggregate worst",
        "lower" => "--lower 0.3",
        "band" => "--band 0.9,1.1",
        "min_safe_sigma" => "--min-safe-sigma 3",
        "max_slope" => "--max-slope 1.01",
        "no_rounding_safety" => "--no-rounding-safety",
        "seed" => "--seed 7",
        "polish" => "--polish 0",
        "evaluations" => "--evaluations 9",
        "time" => "--time 100",
        "jobs" => "--jobs 3",
        "out" => "--out elsewhere",
        "force" => "--out elsewhere --force",
        "json" => "--json",
        "quiet" => "--quiet",
        "resume" | "check" | "per_layer" => "",
        new => panic!("`{new}` is a new option: give it a value here, and say what it is"),
    };
    text.split(' ').map(str::to_owned).collect()
}

fn kinds(dir: &Path) -> Vec<Vec<String>> {
    let file = dir.join("s.jsonl").display().to_string();
    let study = "--iterations 2 --degrees 3 --polish 1 --evaluations 30";
    // A shape and spectra of one's own; or those of a file.
    let own = "--size 12 --aspect 2 --spectrum gaussian --spectrum power:1";
    [
        format!("{study} {own}"),
        format!("{study} {own} --objective worst-case"),
        format!("{study} {own} --band 0.1,1.6 --lower 0.1"),
        format!("{study} {own} --precision f64"),
        format!("{study} --spectra {file}"),
        format!("{study} --spectra {file} --per-layer"),
        format!("--iterations 2 --degrees 3 --polish 0 {own}"),
    ]
    .iter()
    .map(|text| text.split(' ').map(str::to_owned).collect())
    .collect()
}

fn parsed(args: &[String]) -> Result<TuneArgs, String> {
    let line = ["muon", "tune"].into_iter().chain(args.iter().map(String::as_str));
    let matches = Cli::definition().try_get_matches_from(line).map_err(|e| e.to_string())?;
    let Command::Tune(args) = Cli::from_matches(&matches).unwrap().command else { panic!() };
    for (id, _) in MANNERS {
        args.given.take(id);
    }
    Ok(*args)
}

/// What the studies find: cost, score and coefficients of every schedule, and what they do to matrices; the message where
/// there is none.
fn found(args: &[String]) -> Result<Value, String> {
    let args = parsed(args)?;
    let message = |e: anyhow::Error| crate::exit::describe(&e);
    let settings = Settings::new(&args).map_err(message)?;
    let studies =
        if args.per_layer { layers::settings(&settings).map_err(message)? } else { vec![settings] };
    let all = studies.iter().map(|s| one(s).map_err(message));
    Ok(json!(all.collect::<Result<Vec<_>, _>>()?))
}

fn one(settings: &Settings) -> anyhow::Result<Value> {
    let spectra = settings.spectra()?;
    let held_out = super::analytic(&settings.held_out, settings.shape())?;
    let objective = objective::Objective::new(settings, &spectra);
    let all = candidate::candidates(settings)?;
    let dir = tempfile::tempdir()?;
    let journal = journal::Journal::create(&dir.path().join("j"), settings)?;
    let limits = search::Limits { jobs: 2, deadline: None, stop: stop_requested() };
    let notes = Notes::new(true);
    let searched =
        search::search(settings, &objective, &all, &journal, Vec::new(), limits, &notes)?;
    let outcome = match searched {
        search::Searched::Found(outcome) => outcome,
        search::Searched::Infeasible(why) => return Ok(json!(why)),
    };
    let benches = record::Benches::new(settings, &spectra, &held_out);
    let entries = outcome.found.iter().map(|f| {
        let entry = record::Entry::tuned(settings, f, String::new(), &benches)?;
        Ok(json!(entry))
    });
    Ok(json!(entries.collect::<anyhow::Result<Vec<_>>>()?))
}

#[test]
fn every_option_is_refused_or_changes_what_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("held"), "lognormal:1\n").unwrap();
    // Two of each parameter, so that what is made of several has something to do.
    let line = |name: &str, shape: MatrixShape, seed: f32| {
        let matrix: Vec<f32> = (0u8..72).map(|i| (f32::from(i) * seed).sin()).collect();
        SpectrumRecord::measure(10, name, shape, &matrix).unwrap().to_line().unwrap()
    };
    let (a, b) = (MatrixShape { rows: 6, cols: 12 }, MatrixShape { rows: 8, cols: 9 });
    let lines =
        [line("a", a, 0.7), line("a", a, 0.31), line("b", b, 1.1), line("b", b, 0.53)].concat();
    std::fs::write(dir.join("s.jsonl"), lines).unwrap();

    let command = Cli::definition();
    let options = command.find_subcommand("tune").unwrap().get_arguments();
    let options: Vec<String> = options.map(|a| a.get_id().to_string()).collect();
    let (mut refused, mut used) = (0, 0);
    for kind in kinds(dir) {
        let base = found(&kind).unwrap();
        for id in &options {
            let flag = format!("--{}", id.replace('_', "-"));
            if kind.contains(&flag) && !matches!(id.as_str(), "degrees" | "iterations")
                || KINDS.iter().any(|(k, _)| k == id)
            {
                continue;
            }
            // An option with a list of values is given once.
            let mut args = kind.clone();
            if let Some(i) = args.iter().position(|a| *a == flag) {
                args.drain(i..i + 2);
            }
            args.extend(sample(id, dir));
            match found(&args) {
                Err(message) => {
                    refused += 1;
                    assert!(message.contains(&flag), "{args:?}: {message}");
                }
                Ok(_) if MANNERS.iter().any(|(m, _)| m == id) => {}
                Ok(now) => {
                    used += 1;
                    let inactive = INACTIVE.iter().any(|(i, _)| i == id);
                    assert!(now != base || inactive, "{args:?}");
                }
            }
        }
    }
    assert!(refused > 10 && used > 50, "{refused} {used}");
    for (id, reason) in MANNERS.iter().chain(&KINDS).chain(&INACTIVE) {
        assert!(options.iter().any(|o| o == id) && !reason.is_empty(), "{id} is no option");
    }
}
