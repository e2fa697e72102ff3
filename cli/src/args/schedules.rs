//! Options and help text of `muon schedules`.

use std::path::PathBuf;

use clap::Args;

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

Exit codes: 0 done; 1 a file could not be read or written; 2 unknown preset, or a file that would be replaced")]
pub(crate) struct SchedulesArgs {
    /// Preset or TOML file to show [default: list all presets]
    #[arg(value_name = "NAME|FILE")]
    pub(crate) schedule: Option<String>,

    /// Plot the partial compositions over log σ into this file (.svg or .png); one that is there is refused
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,

    /// Replace the file that --plot names
    #[arg(long, requires = "plot")]
    pub(crate) force: bool,

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
