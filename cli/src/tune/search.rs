//! The search: a start for every candidate, then a polish of the best, in parallel and journalled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::Builder;
use std::time::Instant;

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use muon_cuda::CoefficientSchedule;

use super::candidate::{Candidate, Coordinates, Start, schedule};
use super::cma::{Random, minimise};
use super::journal::{Journal, Line};
use super::objective::{Missed, Objective};
use super::settings::Settings;
use crate::terminal::Notes;

/// Starts of one candidate whose rounding is looked at, the best without rounding.
const STARTS_SCORED: usize = 6;

/// First steps of a polish: two percent of `r` at each node.
const FIRST_STEP: f64 = 0.02;

/// A schedule with where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) candidate: Candidate,
    pub(crate) cost: f64,
    pub(crate) score: f64,
    pub(crate) schedule: CoefficientSchedule,
    pub(crate) start: Start,
    pub(crate) evaluations: usize,
}

/// How a search ended.
#[derive(Debug)]
pub(crate) enum Searched {
    /// With schedules, or stopped before there were any.
    Found(Outcome),
    /// No candidate keeps the constraints, in words.
    Infeasible(String),
}

/// What the search did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Everything that keeps the constraints.
    pub(crate) found: Vec<Found>,
    /// Whether all work was done, or time ran out.
    pub(crate) complete: bool,
    /// Whether the user asked to stop.
    pub(crate) stopped: bool,
}

/// When to stop.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) jobs: usize,
    pub(crate) deadline: Option<Instant>,
    pub(crate) stop: &'a AtomicBool,
}

impl Limits<'_> {
    fn reached(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|t| Instant::now() >= t)
    }
}

/// Runs or finishes a study.
///
/// Each piece of work depends on the study and its own number alone, so the result does not depend on the
/// number of jobs, nor on where the study was interrupted.
///
/// # Errors
/// The journal cannot be written.
pub(crate) fn search(
    settings: &Settings,
    objective: &Objective<'_>,
    candidates: &[(f64, Candidate)],
    journal: &Journal,
    before: Vec<Line>,
    limits: Limits<'_>,
    notes: &Notes,
) -> Result<Searched> {
    let (mut started, mut polished) = (BTreeMap::new(), BTreeMap::new());
    for line in before {
        match line {
            Line::Study(_) => {}
            Line::Started { candidate, best, missed } => {
                started.insert(candidate, (best, missed));
            }
            Line::Polished { candidate, coefficients, score, evaluations } => {
                polished.insert(candidate, (coefficients, score, evaluations));
            }
        }
    }

    let todo: Vec<usize> = (0..candidates.len()).filter(|i| !started.contains_key(i)).collect();
    let bar = notes.bar("starts", todo.len() as u64);
    run(
        &todo,
        limits,
        &bar,
        |i| start(objective, &candidates[i].1).map(Some),
        |i, result| {
            let (best, missed) = result;
            journal.append(&Line::Started { candidate: i, best, missed })?;
            started.insert(i, (best, missed));
            Ok(())
        },
    )?;
    bar.finish_and_clear();

    let feasible: Vec<(usize, f64, f64)> = started
        .iter()
        .filter_map(|(&i, (best, _))| Some((i, candidates.get(i)?.0, best.as_ref()?.1)))
        .collect();
    if feasible.is_empty() && started.len() == candidates.len() {
        let least = started.values().fold(Missed::WORST, |a, (_, m)| a.least(*m));
        return Ok(Searched::Infeasible(format!(
            "infeasible: none of {} candidates keeps the constraints; missed by all: {least}",
            candidates.len()
        )));
    }
    let chosen = best_layers(&feasible, settings.polish);
    let todo: Vec<usize> = chosen.iter().copied().filter(|i| !polished.contains_key(i)).collect();
    let bar = notes.bar("polish", todo.len() as u64);
    let polish_one = |i: usize| {
        let Some((Some((from, _)), _)) = started.get(&i) else { return Ok(None) };
        polish(settings, objective, i, &candidates[i].1, from, &limits)
    };
    run(&todo, limits, &bar, polish_one, |i, (coefficients, score, evaluations)| {
        journal.append(&Line::Polished {
            candidate: i,
            coefficients: coefficients.clone(),
            score,
            evaluations,
        })?;
        polished.insert(i, (coefficients, score, evaluations));
        Ok(())
    })?;
    bar.finish_and_clear();

    let complete =
        started.len() == candidates.len() && chosen.iter().all(|i| polished.contains_key(i));
    let mut found = Vec::new();
    for (i, cost, score) in feasible {
        let Some((Some((start, _)), _)) = started.get(&i) else { continue };
        let candidate = &candidates[i].1;
        let at = |schedule, score, evaluations| Found {
            candidate: candidate.clone(),
            cost,
            score,
            schedule,
            start: *start,
            evaluations,
        };
        found.push(match polished.get(&i) {
            Some((coefficients, score, evaluations)) => {
                at(from_rows(coefficients)?, *score, *evaluations)
            }
            None => at(candidate.start(start)?, score, 0),
        });
    }
    let stopped = limits.stop.load(Ordering::Relaxed);
    Ok(Searched::Found(Outcome { found, complete, stopped }))
}

/// A schedule from rows of coefficients.
///
/// # Errors
/// Rows that are no odd polynomials.
pub(crate) fn from_rows(rows: &[Vec<f64>]) -> Result<CoefficientSchedule> {
    let polynomials = rows
        .iter()
        .map(|row| Ok(muon_cuda::OddPolynomial::new(row)?))
        .collect::<Result<Vec<_>>>()?;
    schedule(polynomials)
}

/// The start of least score among the greedy compositions, and by how much each constraint was missed by
/// the one that missed it least.
fn start(
    objective: &Objective<'_>,
    candidate: &Candidate,
) -> Result<(Option<(Start, f64)>, Missed)> {
    let method = candidate.method();
    let mut feasible = Vec::new();
    let mut least = Missed::WORST;
    for start in Start::grid() {
        // Some intervals are too wide for a composition of few polynomials.
        let Ok(schedule) = candidate.start(&start) else { continue };
        let score = objective.quick_score(&schedule, &method)?;
        least = least.least(score.missed.before_rounding());
        if score.feasible() {
            feasible.push((score.value, start));
        }
    }
    feasible.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best: Option<(Start, f64)> = None;
    let mut left = STARTS_SCORED;
    for (_, start) in feasible {
        let score = objective.score(&candidate.start(&start)?, &method)?;
        least = least.with_rounding(score.missed);
        if score.feasible() {
            if best.is_none_or(|b| score.value < b.1) {
                best = Some((start, score.value));
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    Ok((best, least))
}

type Polished = (Vec<Vec<f64>>, f64, usize);

/// The best schedule near a start; `None` if the search was stopped.
fn polish(
    settings: &Settings,
    objective: &Objective<'_>,
    index: usize,
    candidate: &Candidate,
    from: &Start,
    limits: &Limits<'_>,
) -> Result<Option<Polished>> {
    let method = candidate.method();
    let origin = candidate.start(from)?;
    let rows = |s: &CoefficientSchedule| {
        s.polynomials().iter().map(|p| p.coefficients().to_vec()).collect::<Vec<_>>()
    };
    let Some(coordinates) = Coordinates::around(&origin) else {
        return Ok(Some((rows(&origin), objective.value(&origin, &method)?, 0)));
    };
    let seed = settings.seed ^ (index as u64 + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut interrupted = false;
    let best = minimise(
        &coordinates.origin,
        FIRST_STEP,
        settings.evaluations,
        &mut Random::new(seed),
        |point| {
            if limits.reached() {
                interrupted = true;
                return None;
            }
            let scored =
                coordinates.schedule(point).and_then(|s| objective.score(&s, &method).ok());
            Some(scored.map_or(f64::INFINITY, |s| s.penalised()))
        },
    )?;
    if interrupted {
        return Ok(None);
    }
    let schedule = coordinates.schedule(&best.point).unwrap_or_else(|| origin.clone());
    // Interpolation moved the origin by rounding: what is kept is scored as it is.
    let score = objective.score(&schedule, &method)?;
    let (schedule, score) = if score.feasible() {
        (schedule, score.value)
    } else {
        let value = objective.value(&origin, &method)?;
        (origin, value)
    };
    Ok(Some((rows(&schedule), score, best.evaluations)))
}

/// The first `count` of the Pareto front of cost and score, then of the front of the rest, and so on.
fn best_layers(points: &[(usize, f64, f64)], count: usize) -> Vec<usize> {
    let mut rest = points.to_vec();
    let mut out = Vec::new();
    while !rest.is_empty() && out.len() < count {
        let front = front(&rest.iter().map(|p| (p.1, p.2)).collect::<Vec<_>>());
        for &i in &front {
            out.push(rest[i].0);
        }
        rest = rest
            .into_iter()
            .enumerate()
            .filter(|(i, _)| !front.contains(i))
            .map(|(_, p)| p)
            .collect();
    }
    out.truncate(count);
    out
}

/// Indices of the points (cost, score) that no other beats in both, cheapest first.
pub(crate) fn front(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| {
        points[a]
            .0
            .total_cmp(&points[b].0)
            .then(points[a].1.total_cmp(&points[b].1))
            .then(a.cmp(&b))
    });
    let mut best = f64::INFINITY;
    order.retain(|&i| {
        let better = points[i].1 < best;
        if better {
            best = points[i].1;
        }
        better
    });
    order
}

/// Does pieces of work on several threads and hands the results to this one, in the order they come.
fn run<T: Send>(
    todo: &[usize],
    limits: Limits<'_>,
    bar: &ProgressBar,
    work: impl Fn(usize) -> Result<Option<T>> + Sync,
    mut done: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        let threads = limits.jobs.min(todo.len());
        for thread in 0..threads {
            let (sender, next, work, failed) = (sender.clone(), &next, &work, &failed);
            let worker = move || {
                while !limits.reached() && !failed.load(Ordering::Relaxed) {
                    let Some(&i) = todo.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if sender.send((i, work(i))).is_err() {
                        return;
                    }
                }
            };
            if let Err(e) = Builder::new().spawn_scoped(scope, worker) {
                failed.store(true, Ordering::Relaxed);
                return Err(e).with_context(|| {
                    format!(
                        "the system gives {thread} of {threads} threads; ask for fewer with --jobs"
                    )
                });
            }
        }
        drop(sender);
        let mut outcome = Ok(());
        for (i, result) in results {
            if outcome.is_ok() {
                outcome = result.and_then(|r| r.map_or(Ok(()), |r| done(i, r)));
                if outcome.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
            }
            bar.inc(1);
        }
        outcome
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start is the best of those whose rounding is looked at, and a polish is no worse than its start.
    #[test]
    fn starts_are_the_best_of_the_grid_and_polishes_improve_them() {
        let settings = crate::tune::tests::settings();
        let spectra = settings.spectra().unwrap();
        let objective = Objective::new(&settings, &spectra);
        let candidate = Candidate { degrees: vec![5, 3], groups: Vec::new() };
        let (best, _) = start(&objective, &candidate).unwrap();
        let (from, score) = best.unwrap();
        let method = candidate.method();
        let scored = |start: &Start| {
            let schedule = candidate.start(start).ok()?;
            let quick = objective.quick_score(&schedule, &method).unwrap();
            let full = objective.score(&schedule, &method).unwrap();
            full.feasible().then_some((quick.value, full.value))
        };
        let mut grid: Vec<(f64, f64)> = Start::grid().filter_map(|s| scored(&s)).collect();
        grid.sort_by(|a, b| a.0.total_cmp(&b.0));
        let least = grid[..STARTS_SCORED].iter().map(|g| g.1).fold(f64::INFINITY, f64::min);
        assert_eq!(score, least);
        let stop = AtomicBool::new(false);
        let limits = Limits { jobs: 1, deadline: None, stop: &stop };
        let polish_of = |index, seed| {
            let settings = Settings { seed, ..settings.clone() };
            polish(&settings, &objective, index, &candidate, &from, &limits).unwrap().unwrap()
        };
        let (rows, polished, evaluations) = polish_of(3, 0);
        assert!(polished < score && evaluations == settings.evaluations, "{polished} {score}");
        // What is recorded is what the schedule scores, and it keeps the constraints.
        let again = objective.score(&from_rows(&rows).unwrap(), &method).unwrap();
        assert!(again.feasible() && again.value == polished, "{again:?} {polished}");
        // A piece of work has random numbers of its own, decided by the study's seed and its number.
        assert_eq!(polish_of(3, 0).0, rows);
        assert!(polish_of(4, 0).0 != rows && polish_of(3, 1).0 != rows);
    }

    #[test]
    fn fronts_and_layers() {
        let points = [(3.0, 0.1), (1.0, 0.5), (2.0, 0.5), (2.0, 0.3), (4.0, 0.2)];
        assert_eq!(front(&points), [1, 3, 0]);
        let numbered: Vec<(usize, f64, f64)> =
            points.iter().enumerate().map(|(i, p)| (10 + i, p.0, p.1)).collect();
        assert_eq!(best_layers(&numbered, 9), [11, 13, 10, 12, 14]);
        assert_eq!(best_layers(&numbered, 2), [11, 13]);
    }

    #[test]
    fn work_is_done_once_and_errors_end_it() {
        let stop = AtomicBool::new(false);
        let limits = Limits { jobs: 3, deadline: None, stop: &stop };
        let todo: Vec<usize> = (0..50).collect();
        let mut seen = Vec::new();
        let bar = ProgressBar::hidden();
        run(
            &todo,
            limits,
            &bar,
            |i| Ok(Some(i * i)),
            |i, x| {
                assert_eq!(x, i * i);
                seen.push(i);
                Ok(())
            },
        )
        .unwrap();
        seen.sort_unstable();
        assert_eq!(seen, todo);
        let e = run(
            &todo,
            limits,
            &bar,
            |i| Ok(Some(i)),
            |i, _| {
                if i == 7 { Err(anyhow::anyhow!("seven")) } else { Ok(()) }
            },
        );
        assert_eq!(e.unwrap_err().to_string(), "seven");
        let mut count = 0;
        let past = Limits { deadline: Some(Instant::now()), ..limits };
        run(
            &todo,
            past,
            &bar,
            |i| Ok(Some(i)),
            |_, _| {
                count += 1;
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(count, 0);
    }
}
