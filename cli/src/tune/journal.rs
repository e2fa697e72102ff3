//! The study's memory: a line of JSON for each finished piece of work, appended and never changed.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::candidate::Start;
use super::objective::Missed;
use super::settings::Settings;
use crate::files::write_atomically;
use crate::journal::{self, Lines};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Line {
    /// The first one: what is studied.
    Study(Box<Settings>),
    /// The best start of one candidate, if one keeps the constraints.
    Started { candidate: usize, best: Option<(Start, f64)>, missed: Missed },
    /// The best schedule a search from there found.
    Polished { candidate: usize, coefficients: Vec<Vec<f64>>, score: f64, evaluations: usize },
}

/// A journal open for appending.
#[derive(Debug)]
pub(crate) struct Journal(Lines);

/// A journal that is gone on with.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub(crate) journal: Journal,
    pub(crate) settings: Settings,
    /// After the first one.
    pub(crate) lines: Vec<Line>,
    /// Whether a part of a line was removed: its work is done again.
    pub(crate) cut: bool,
}

impl Journal {
    /// Begins a study, over an earlier one. A journal that is there has its first line: it is written whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn create(path: &Path, settings: &Settings) -> Result<Self> {
        let line = serde_json::to_string(&Line::Study(Box::new(settings.clone())))? + "\n";
        write_atomically(path, line.as_bytes())?;
        Ok(Self(Lines::after(path, &journal::read(path)?)?))
    }

    /// Goes on with a study. A last line that was cut off is removed: its work is done again.
    ///
    /// # Errors
    /// A line that is none, other than a cut last one; a first line that is no study.
    pub(crate) fn resume(path: &Path) -> Result<Resumed> {
        let context = || {
            format!(
                "the journal {} cannot be gone on with; remove the lines from the damaged one on, and their work is done \
                 again, or start afresh with --force",
                path.display()
            )
        };
        let whole = journal::read(path)?;
        let mut lines = parse(&whole.text).with_context(context)?.into_iter();
        let Some(Line::Study(settings)) = lines.next() else {
            return Err(anyhow!(
                "the journal {} does not begin with a study; start afresh with --force",
                path.display()
            ));
        };
        settings.check().with_context(|| format!("the journal {}", path.display()))?;
        let journal = Self(Lines::after(path, &whole)?);
        Ok(Resumed { journal, settings: *settings, lines: lines.collect(), cut: whole.cut })
    }

    /// Adds a line and waits until the disk has it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append(&self, line: &Line) -> Result<()> {
        self.0.append(line)
    }
}

fn parse(text: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let parsed = serde_json::from_str(line).map_err(|e| anyhow!("line {}: {e}", i + 1))?;
        ensure!(
            lines.is_empty() == matches!(parsed, Line::Study(_)),
            "line {}: a study begins on the first line, and on no other",
            i + 1
        );
        lines.push(parsed);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::settings;

    #[test]
    fn a_journal_cut_anywhere_goes_on_from_the_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let journal = Journal::create(&path, &settings()).unwrap();
        let polished = Line::Polished {
            candidate: 3,
            coefficients: vec![vec![1.5, -0.5], vec![0.1, 1e-300]],
            score: 0.1,
            evaluations: 7,
        };
        let started = Line::Started { candidate: 1, best: None, missed: Missed::WORST };
        journal.append(&started).unwrap();
        journal.append(&polished).unwrap();
        let text = std::fs::read(&path).unwrap();
        let ends: Vec<usize> =
            (0..text.len()).filter(|i| text[*i] == b'\n').map(|i| i + 1).collect();
        for cut in ends[0]..=text.len() {
            std::fs::write(&path, &text[..cut]).unwrap();
            let resumed = Journal::resume(&path).unwrap();
            assert_eq!(resumed.settings, settings());
            let whole = ends.iter().filter(|e| **e <= cut).count();
            assert_eq!(resumed.lines, [started.clone(), polished.clone()][..whole - 1], "{cut}");
            assert_eq!(resumed.cut, !ends.contains(&cut));
            resumed.journal.append(&polished).unwrap();
            let again = Journal::resume(&path).unwrap();
            assert_eq!((again.lines.len(), again.cut), (whole, false));
        }
        // Not even the study is whole.
        std::fs::write(&path, &text[..ends[0] - 1]).unwrap();
        assert!(Journal::resume(&path).unwrap_err().to_string().contains("does not begin"));
    }

    #[test]
    fn damage_elsewhere_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        drop(Journal::create(&path, &settings()).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let error = |more: &str| {
            std::fs::write(&path, format!("{text}{more}")).unwrap();
            format!("{:#}", Journal::resume(&path).unwrap_err())
        };
        assert!(error("{\"polished\":\n").contains("line 2"));
        assert!(error(&text).contains("line 2"));
        assert!(error("{\"unknown\":{}}\n").contains("unknown"));
    }
}
