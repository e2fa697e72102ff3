//! How much a command line may ask for, and why no more: each limit is far above what is of use, and far below what
//! would take a machine's memory, or run until somebody notices.

/// A whole number from 1 to a limit.
fn up_to(text: &str, most: u64, reason: &str) -> Result<u64, String> {
    let n: u64 = match text.parse() {
        Ok(n) => n,
        // Too many digits is a number all the same.
        Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => u64::MAX,
        Err(_) => return Err("expected a whole number".into()),
    };
    match n {
        0 => Err("expected at least 1".into()),
        n if n > most => Err(format!("expected at most {most}: {reason}")),
        n => Ok(n),
    }
}

fn size(text: &str, most: u64, reason: &str) -> Result<usize, String> {
    up_to(text, most, reason).and_then(|n| usize::try_from(n).map_err(|e| e.to_string()))
}

/// At least 1.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    size(text, usize::MAX as u64, "this machine counts no further")
}

/// Threads, or runs at the same time.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    size(text, 1024, "more threads than a machine has cores only wait for each other")
}

/// Optimizer steps.
pub(super) fn steps(text: &str) -> Result<usize, String> {
    size(text, 100_000_000, "the loss of every step is kept in memory and in metrics.json")
}

/// Seeds.
pub(super) fn seeds(text: &str) -> Result<usize, String> {
    size(text, 10_000, "each is a whole training run whose losses are kept")
}

/// Layers of the transformer.
pub(super) fn layers(text: &str) -> Result<usize, String> {
    size(text, 1000, "each has eight parameters, which are registered one by one")
}

/// Evaluations of one polish of the tuner.
pub(super) fn evaluations(text: &str) -> Result<usize, String> {
    size(text, 10_000_000, "a polish has converged long before")
}

/// Seconds of the tuner's budget.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    up_to(text, 31_536_000, "that is a year; without --time the search runs until all is done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_said_with_their_reason() {
        assert_eq!(threads("1024"), Ok(1024));
        for text in ["1025", "18446744073709551615", "99999999999999999999999"] {
            let said = threads(text).unwrap_err();
            assert!(said.starts_with("expected at most 1024: more threads"), "{text}: {said}");
        }
        for text in ["", "-1", "1.5", "1e3", "0x10", "NaN", "٣", " 1"] {
            assert_eq!(threads(text).unwrap_err(), "expected a whole number", "{text}");
        }
        assert_eq!(seconds("0").unwrap_err(), "expected at least 1");
        assert_eq!(positive("18446744073709551615"), Ok(usize::MAX));
    }
}
