//! `muon`: train with the Muon optimizer, look at its polynomials, make new ones, orthogonalize files, check a port.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod args;
mod chart;
mod devices;
mod doctor;
mod exit;
mod files;
mod glob;
mod orthogonalize;
mod plan;
mod schedules;
mod tables;
mod terminal;
mod train;
mod tune;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command};
use exit::Ended;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(ended) => ended.into(),
        // The reader of our output has seen enough (`muon schedules | head`).
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", exit::describe(&error));
            exit::code(&error)
        }
    }
}

fn run(command: &Command) -> Result<Ended> {
    match command {
        Command::Train(args) => train::train(args),
        Command::Tune(args) => tune::tune(args),
        Command::Schedules(args) => schedules::schedules(args),
        Command::Orthogonalize(args) => orthogonalize::orthogonalize(args),
        Command::Compare(args) => orthogonalize::compare::compare(args),
        Command::Verify(args) => verify::verify(args),
        Command::Plan(args) => plan::plan(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Completions(args) => {
            clap_complete::generate(
                args.shell,
                &mut Cli::command(),
                "muon",
                &mut std::io::stdout(),
            );
            Ok(Ended::Well)
        }
    }
}
