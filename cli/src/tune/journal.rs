//! The study's memory: a line of JSON for each finished piece of work, appended and never changed.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::candidate::Start;
use super::objective::Missed;
use super::settings::Settings;
use crate::exit::usage;
use crate::files::{MOST_OF_A_RECORD, read_text};

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
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Begins a study, over an earlier one.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn create(path: &Path, settings: &Settings) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut journal = Self { file, path: path.to_owned() };
        journal.append(&Line::Study(Box::new(settings.clone())))?;
        Ok(journal)
    }

    /// Whether a study was begun there: a writer that was killed may have left a file without a whole line.
    pub(crate) fn begun(path: &Path) -> bool {
        match muon_cuda::checkpoint::read_file(path, MOST_OF_A_RECORD) {
            Ok(bytes) => bytes.contains(&b'\n'),
            // What does not read is not to be written over: going on with it says what is wrong.
            Err(_) => path.exists(),
        }
    }

    /// Goes on with a study. A last line that was cut off is removed: its work is done again.
    ///
    /// # Errors
    /// No journal; a line that is none, other than a cut last one; a first line that is no study.
    pub(crate) fn resume(path: &Path) -> Result<(Self, Settings, Vec<Line>)> {
        if !path.exists() {
            return Err(usage(format!(
                "nothing to resume: {} does not exist; start a study without --resume",
                path.display()
            )));
        }
        let context = || format!("read the journal {}", path.display());
        let text = read_text(path, MOST_OF_A_RECORD).with_context(context)?;
        let (lines, whole) = parse(&text).with_context(context)?;
        let mut lines = lines.into_iter();
        let Some(Line::Study(settings)) = lines.next() else {
            return Err(anyhow!("the journal {} does not begin with a study", path.display()));
        };
        settings.check().with_context(context)?;
        let file = OpenOptions::new().append(true).open(path).with_context(context)?;
        file.set_len(u64::try_from(whole)?).with_context(context)?;
        Ok((Self { file, path: path.to_owned() }, *settings, lines.collect()))
    }

    /// Adds a line and waits until the disk has it.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append(&mut self, line: &Line) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        // One write: another process that reads meanwhile sees whole lines, or a cut last one.
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("write the journal {}", self.path.display()))
    }
}

/// The lines, and how many bytes they take: up to the last newline.
fn parse(text: &str) -> Result<(Vec<Line>, usize)> {
    let (mut lines, mut whole) = (Vec::new(), 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            // Even if it parses: what follows would be appended to it.
            break;
        }
        whole += line.len();
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
    Ok((lines, whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::settings;

    #[test]
    fn a_journal_cut_anywhere_goes_on_from_the_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::create(&path, &settings()).unwrap();
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
            let (mut journal, found, lines) = Journal::resume(&path).unwrap();
            assert_eq!(found, settings());
            let whole = ends.iter().filter(|e| **e <= cut).count();
            assert_eq!(lines, [started.clone(), polished.clone()][..whole - 1], "{cut}");
            journal.append(&polished).unwrap();
            assert_eq!(Journal::resume(&path).unwrap().2.len(), whole);
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
        let none = Journal::resume(&dir.path().join("none")).unwrap_err().to_string();
        assert!(none.contains("nothing to resume"), "{none}");
    }
}
