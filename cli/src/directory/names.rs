//! Names for directories that the user did not name: `muon-run`, `muon-run-2`, `muon-run-3`, …

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The name with that number; the first one has none.
pub(super) fn numbered(default: &str, number: u64) -> PathBuf {
    PathBuf::from(match number {
        1 => default.to_owned(),
        n => format!("{default}-{n}"),
    })
}

/// The largest number that is taken; 0 for none.
///
/// # Errors
/// The working directory cannot be read.
pub(super) fn last(default: &str) -> Result<u64> {
    Ok(numbers(default)?.last().copied().unwrap_or(0))
}

/// Every directory of that name that is there, the last one last.
///
/// # Errors
/// The working directory cannot be read.
pub(super) fn all(default: &str) -> Result<Vec<PathBuf>> {
    Ok(numbers(default)?.into_iter().map(|n| numbered(default, n)).collect())
}

fn numbers(default: &str) -> Result<Vec<u64>> {
    let context = || "the working directory cannot be read";
    let mut numbers = Vec::new();
    for entry in fs::read_dir(".").with_context(context)? {
        let name = entry.with_context(context)?.file_name();
        let rest = name.to_str().and_then(|n| n.strip_prefix(default));
        let number = match rest {
            Some("") => Some(1),
            Some(rest) => rest.strip_prefix('-').and_then(|n| n.parse().ok()),
            None => None,
        };
        // Not `muon-run-02`, which is another name.
        numbers.extend(number.filter(|n| numbered(default, *n).as_os_str() == name));
    }
    numbers.sort_unstable();
    Ok(numbers)
}
