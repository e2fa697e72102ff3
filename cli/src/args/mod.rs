//! The command line: every command, option and help text.

use std::any::TypeId;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};
use muon_cuda::Precision;
use serde::{Deserialize, Serialize};

use crate::orthogonalize::compare::CompareArgs;

mod given;
mod limits;
mod orthogonalize;
mod plan;
mod schedules;
mod train;
mod tune;
mod verify;

use limits::positive;

pub(crate) use given::{Given, take, take_given};
pub(crate) use orthogonalize::OrthogonalizeArgs;
pub(crate) use plan::{ElementName, PlanArgs};
pub(crate) use schedules::SchedulesArgs;
pub(crate) use train::{OptimizerName, TaskName, TrainArgs};
pub(crate) use tune::{AggregateName, ObjectiveName, TuneArgs, TuneMethodName, TunePrecisionName};
pub(crate) use verify::{AgainstName, VerifyArgs};

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

impl Cli {
    /// The whole command line: `-1` is a value, not an option, wherever a number is expected, and so are `-1e-3` and `-inf`.
    pub(crate) fn definition() -> clap::Command {
        Self::command().mut_subcommands(|command| {
            command.mut_args(|arg| {
                let valued = arg.get_action().takes_values() && !arg.is_positional();
                let real = arg.get_value_parser().type_id() == TypeId::of::<f64>();
                arg.allow_hyphen_values(valued && real).allow_negative_numbers(valued && !real)
            })
        })
    }

    /// From the arguments of this process.
    ///
    /// # Errors
    /// What the parser has to say: help, or a mistake.
    pub(crate) fn from_command_line() -> Result<Self, clap::Error> {
        Self::from_matches(&Self::definition().try_get_matches()?)
    }

    /// From what was parsed, with which options were given.
    ///
    /// # Errors
    /// None if the matches are of [`Cli::definition`].
    pub(crate) fn from_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut cli = Self::from_arg_matches(matches)?;
        let definition = Self::definition();
        if let Some((name, matches)) = matches.subcommand()
            && let Some(command) = definition.find_subcommand(name)
        {
            let given = Given::new(command, matches);
            match &mut cli.command {
                Command::Train(args) => args.given = given,
                Command::Tune(args) => args.given = given,
                _ => {}
            }
        }
        Ok(cli)
    }
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
