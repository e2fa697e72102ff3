//! `muon schedules`: coefficient schedules by name or from a file, as tables, JSON and plots.

mod comparison;
mod facts;
mod plot;
pub(crate) mod published;

use std::io::Write as _;

use anyhow::Result;
use muon_cuda::coefficients::presets;
use muon_cuda::{CoefficientSchedule, Printable};

use self::facts::Facts;
use crate::args::SchedulesArgs;
use crate::chart::check_path;
use crate::exit::{Ended, usage};
use crate::files::refuse_to_replace;
use crate::tables::table;

/// Runs the command.
///
/// # Errors
/// Unknown names; the file system's.
pub(crate) fn schedules(args: &SchedulesArgs) -> Result<Ended> {
    if let Some(path) = &args.plot {
        check_path(path)?;
        refuse_to_replace(path, args.force)?;
    }
    if args.table {
        comparison::print(args)?;
        return Ok(Ended::Well);
    }
    match &args.schedule {
        Some(name) => one(args, &CoefficientSchedule::preset_or_file(name)?)?,
        None if args.plot.is_some() => {
            return Err(usage(
                "--plot shows one schedule; name it: muon schedules NAME --plot FILE",
            ));
        }
        None => all(args)?,
    }
    Ok(Ended::Well)
}

/// p∘…∘p of a schedule over log σ, one line for every iteration.
///
/// # Errors
/// None in practice.
pub(crate) fn composition_chart(schedule: &CoefficientSchedule) -> Result<crate::chart::Chart> {
    Ok(plot::chart(schedule, &Facts::of(schedule)?))
}

fn all(args: &SchedulesArgs) -> Result<()> {
    let facts = presets::names()
        .map(|name| Facts::of(&presets::preset(name)?))
        .collect::<Result<Vec<_>>>()?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&facts)?)?;
        return Ok(());
    }
    let mut table = table([
        "name",
        "degrees",
        "slope",
        "band [10⁻³, 1]",
        "band [10⁻², 1]",
        "safe σ",
        "lifts from",
        "n³, 1:1",
        "n³, 4:1",
        "tail",
    ]);
    for f in &facts {
        table.add_row([
            f.name.clone(),
            f.degrees_in_short(),
            facts::number(f.slope),
            facts::band(f.band_from_1e_3),
            facts::band(f.band_from_1e_2),
            facts::number(f.safe_sigma),
            f.lift_threshold.map_or("never".into(), |x| format!("{x:.1e}")),
            format!("{:.1}", f.flops_square.symmetric),
            format!("{:.1}", f.flops_four_to_one.symmetric),
            f.tail.to_owned(),
        ]);
    }
    writeln!(stdout, "{table}")?;
    writeln!(stdout, "{}", facts::LEGEND)?;
    writeln!(stdout, "sources:")?;
    for f in &facts {
        writeln!(stdout, "  {:18} {}", f.name, f.source)?;
    }
    Ok(())
}

fn one(args: &SchedulesArgs, schedule: &CoefficientSchedule) -> Result<()> {
    let facts = Facts::of(schedule)?;
    // First: a file that cannot be written is not to be found out below a page of output.
    if let Some(path) = &args.plot {
        plot::chart(schedule, &facts).write(path)?;
    }
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&facts)?)?;
    } else {
        let (name, source) = (Printable(&facts.name), Printable(&facts.source));
        writeln!(stdout, "{name}\nsource: {source}\n")?;
        let mut table =
            table(["iteration", "degree", "polynomial", "slope so far", "band [10⁻³, 1] so far"]);
        for (i, step) in facts.polynomials.iter().enumerate() {
            table.add_row([
                (i + 1).to_string(),
                step.degree.to_string(),
                step.text.clone(),
                facts::number(step.slope_so_far),
                facts::band(step.band_so_far),
            ]);
        }
        writeln!(stdout, "{table}")?;
        for (what, value) in facts.lines() {
            writeln!(stdout, "{what:28} {value}")?;
        }
        writeln!(stdout, "\n{}", facts::LEGEND)?;
    }
    if let Some(path) = args.plot.as_ref().filter(|_| !args.json) {
        writeln!(stdout, "wrote {}", path.display())?;
    }
    Ok(())
}
