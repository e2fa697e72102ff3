//! `muon`: train with the Muon optimizer, look at its polynomials, make new ones, orthogonalize files, check a port.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod args;
mod chart;
mod devices;
mod directory;
mod doctor;
mod exit;
mod files;
mod glob;
mod journal;
mod orthogonalize;
mod output;
mod plan;
mod schedules;
mod tables;
mod terminal;
mod train;
mod tune;
mod verify;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use args::{Cli, Command};
use exit::Ended;

fn main() -> ExitCode {
    let ended = match Cli::from_command_line() {
        Ok(cli) => run(&cli.command),
        Err(error) => parser_said(&error),
    };
    match ended {
        Ok(ended) => ended.into(),
        // The reader of our output has seen enough (`muon schedules | head`).
        Err(error) if exit::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::to_stderr(&format!("error: {}", exit::describe(&error)));
            exit::code(&error)
        }
    }
}

/// Help and version go to standard output, mistakes to standard error, where a failed write has nobody to be told to.
fn parser_said(error: &clap::Error) -> Result<Ended> {
    if error.use_stderr() {
        // An argument that could command the terminal is repeated without colours, and without such commands.
        let hostile = |arg: std::ffi::OsString| arg.to_string_lossy().chars().any(char::is_control);
        if std::env::args_os().any(hostile) {
            terminal::to_stderr(output::plain_lines(&error.render().to_string()).trim_end());
        } else {
            let _ = error.print();
        }
        return Ok(Ended::Misused);
    }
    error.print().context("standard output")?;
    Ok(Ended::Well)
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
            // The generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "muon", &mut script);
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&script).and_then(|()| stdout.flush()).context("standard output")?;
            Ok(Ended::Well)
        }
    }
}
