//! Text to learn from: bytes, a held-out part, and the windows of each step.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::rng::{Rng, Stream};
use crate::exit::usage;

/// Largest text, 1 GiB: every run holds it in memory.
const MOST_BYTES: u64 = 1 << 30;
/// One part in so many is held out.
const HELD_OUT: usize = 10;

/// Which text, and how to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TextId {
    /// The file; absent for the embedded text.
    pub(crate) file: Option<PathBuf>,
    /// Its length.
    pub(crate) bytes: usize,
    /// FNV-1a of its bytes, hexadecimal.
    pub(crate) fingerprint: String,
}

impl fmt::Display for TextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            None => write!(f, "Cicero, De finibus I ({} bytes)", self.bytes),
            Some(file) => write!(f, "{} ({} bytes)", file.display(), self.bytes),
        }
    }
}

/// The bytes of a text: of a file, or the one that the crate `lipsum` carries, the first book of Cicero's
/// *De finibus bonorum et malorum*, of which *lorem ipsum* is a mutilated passage.
///
/// # Errors
/// The file system's; a pipe or a device, which cannot be read twice or never ends; a text of more than 1 GiB.
pub(crate) fn read(file: Option<&Path>) -> Result<Vec<u8>> {
    match file {
        None => Ok(lipsum::LIBER_PRIMUS.as_bytes().to_vec()),
        Some(path) => muon_cuda::checkpoint::read_file(path, MOST_BYTES)
            .with_context(|| format!("read the text {}", path.display())),
    }
}

/// Describes a text that is long enough for windows of that many bytes.
///
/// # Errors
/// The file system's; a text that is empty or too short.
pub(crate) fn identify(file: Option<&Path>, window: usize) -> Result<TextId> {
    let bytes = read(file)?;
    let needed = window.saturating_mul(HELD_OUT);
    let name = file.map_or("the embedded text".into(), |f| f.display().to_string());
    if bytes.is_empty() {
        return Err(usage(format!("{name} is empty: expected a text of at least {needed} bytes")));
    }
    if bytes.len() < needed {
        return Err(usage(format!(
            "{name} is too short: expected at least {needed} bytes for a context of {}, found {}",
            window - 1,
            bytes.len()
        )));
    }
    Ok(TextId {
        // A job may be resumed from elsewhere.
        file: file.map(fs::canonicalize).transpose()?,
        bytes: bytes.len(),
        fingerprint: fingerprint(&bytes),
    })
}

/// Reads a text that was identified before.
///
/// # Errors
/// The file system's; a file that is no longer the same.
pub(crate) fn load(id: &TextId) -> Result<Vec<u8>> {
    let bytes = read(id.file.as_deref())?;
    ensure!(
        bytes.len() == id.bytes && fingerprint(&bytes) == id.fingerprint,
        "the text has changed: expected {} bytes with fingerprint {}, found {} with {}; \
         the job cannot go on with another text",
        id.bytes,
        id.fingerprint,
        bytes.len(),
        fingerprint(&bytes)
    );
    Ok(bytes)
}

fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// A text divided for one seed: one tenth, in one piece at a random place, is held out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Corpus {
    seed: u64,
    text: Vec<u8>,
    window: usize,
    held_out: Range<usize>,
}

impl Corpus {
    /// Divides a text of at least ten windows.
    pub(crate) fn new(text: Vec<u8>, window: usize, seed: u64) -> Self {
        let length = text.len() / HELD_OUT;
        let start = Rng::new(seed, Stream::Split).below(text.len() - length + 1);
        Self { seed, text, window, held_out: start..start + length }
    }

    /// Bytes to train on and bytes held out.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.text.len() - self.held_out.len(), self.held_out.len())
    }

    /// The windows of a step's batch, one after another; a function of seed and step.
    pub(crate) fn batch(&self, step: usize, count: usize) -> Vec<u8> {
        let mut rng = Rng::new(self.seed, Stream::Windows(step as u64));
        let [before, after] = self.starts();
        let mut out = Vec::with_capacity(count * self.window);
        for _ in 0..count {
            let i = rng.below(before.len() + after.len());
            let start =
                if i < before.len() { before.start + i } else { after.start + i - before.len() };
            out.extend_from_slice(&self.text[start..start + self.window]);
        }
        out
    }

    /// The held-out part, cut into windows that share the byte between them; a rest is left out.
    pub(crate) fn held_out(&self) -> Vec<u8> {
        self.cut(self.held_out.clone(), self.window - 1)
    }

    /// As many windows of the training part as there are held-out ones, evenly spaced.
    pub(crate) fn training_sample(&self) -> Vec<u8> {
        let wanted = (self.held_out.len() - 1) / (self.window - 1);
        let [before, after] = self.starts();
        let total = before.len() + after.len();
        let mut out = Vec::with_capacity(wanted * self.window);
        for n in 0..wanted {
            let i = n * total / wanted;
            let start =
                if i < before.len() { before.start + i } else { after.start + i - before.len() };
            out.extend_from_slice(&self.text[start..start + self.window]);
        }
        out
    }

    /// Where windows of the training part can start: before and after the held-out part.
    fn starts(&self) -> [Range<usize>; 2] {
        let Range { start, end } = self.held_out;
        let before = 0..(start + 1).saturating_sub(self.window);
        let after = end..(self.text.len() + 1).saturating_sub(self.window).max(end);
        [before, after]
    }

    fn cut(&self, part: Range<usize>, stride: usize) -> Vec<u8> {
        let last = (part.end + 1).saturating_sub(self.window);
        let starts = (part.start..last).step_by(stride);
        starts.flat_map(|s| &self.text[s..s + self.window]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two bytes a position, so that a window tells where it is from.
    fn numbered(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    #[test]
    fn no_training_window_touches_the_held_out_part() {
        for seed in 0..20 {
            let c = Corpus::new(numbered(250), 9, seed);
            assert_eq!(c.sizes(), (225, 25));
            let mut seen = vec![false; 250];
            for step in 0..200 {
                for w in c.batch(step, 4).chunks_exact(9) {
                    let start = usize::from(w[0]);
                    assert_eq!(w, &c.text[start..start + 9]);
                    seen[start..start + 9].fill(true);
                }
            }
            for (i, seen) in seen.iter().enumerate() {
                if c.held_out.contains(&i) {
                    assert!(!seen, "seed {seed}: {i} is held out");
                }
            }
            // 800 windows out of 208: all but the corners are seen.
            assert!(seen.iter().filter(|s| **s).count() >= 215, "seed {seed}");
            assert_eq!(c.held_out().len(), 3 * 9);
            assert_eq!(c.held_out()[0], c.text[c.held_out.start]);
            assert_eq!(c.training_sample().len(), 3 * 9);
            assert_eq!(c.batch(7, 4), c.batch(7, 4));
            assert_ne!(c.batch(7, 4), c.batch(8, 4));
        }
        assert_ne!(
            Corpus::new(numbered(250), 9, 0).held_out,
            Corpus::new(numbered(250), 9, 1).held_out
        );
    }

    #[test]
    fn the_shortest_text_that_is_taken_trains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.txt");
        for (len, fine) in [(0, false), (89, false), (90, true)] {
            fs::write(&path, numbered(len)).unwrap();
            assert_eq!(identify(Some(&path), 9).is_ok(), fine, "{len}");
        }
        for seed in 0..50 {
            let c = Corpus::new(numbered(90), 9, seed);
            assert_eq!(c.batch(0, 2).len(), 18);
            assert_eq!((c.held_out().len(), c.training_sample().len()), (9, 9));
        }
    }

    #[test]
    fn the_embedded_text_is_cicero_and_a_changed_file_is_refused() {
        let id = identify(None, 65).unwrap();
        let text = load(&id).unwrap();
        assert!(text.starts_with(b"Non eram nescius, Brute"));
        // What the recorded runs were made with.
        assert_eq!((id.bytes, id.fingerprint.as_str()), (49_068, FINGERPRINT));
        let e = load(&TextId { fingerprint: "0".repeat(16), ..id }).unwrap_err();
        assert!(e.to_string().contains("has changed"), "{e}");
    }

    const FINGERPRINT: &str = "96783d40b8707192";
}
