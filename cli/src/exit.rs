//! How a command ends: exit codes and the one line (with causes) that says what went wrong.

use std::fmt;
use std::process::ExitCode;

use anyhow::Error;

/// A command that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// And every check held.
    Well,
    /// But a check did not hold; the output says which.
    CheckFailed,
    /// Stopped by the user; what was done so far is kept.
    Interrupted,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Well => Self::SUCCESS,
            Ended::CheckFailed => Self::from(1),
            // 128 + SIGINT, as shells report it.
            Ended::Interrupted => Self::from(130),
        }
    }
}

/// A request that does not make sense, as opposed to one that failed.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error of the command line, for exit code 2.
pub(crate) fn usage(message: impl Into<String>) -> Error {
    Error::new(Usage(message.into()))
}

/// 2 for requests that do not make sense, 1 for the rest.
pub(crate) fn code(error: &Error) -> ExitCode {
    let nonsense = error.chain().any(|e| {
        e.is::<Usage>()
            || e.downcast_ref::<muon_cuda::Error>().is_some_and(muon_cuda::Error::is_invalid_config)
    });
    ExitCode::from(if nonsense { 2 } else { 1 })
}

/// Whether the other end of our output was closed.
pub(crate) fn is_broken_pipe(error: &Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|e| e.downcast_ref::<std::io::Error>().is_some_and(broken))
}

/// The error and its causes, outermost first, without those that the line above already says.
pub(crate) fn describe(error: &Error) -> String {
    let mut out = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !out.contains(&cause) {
            out.push_str("\n  because: ");
            out.push_str(&cause);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&Error::new(closed).context("print")));
        assert!(!is_broken_pipe(&Error::new(std::io::Error::other("disk full"))));
    }

    #[test]
    fn causes_are_printed_once_and_decide_the_code() {
        let io = std::io::Error::other("disk full");
        let e = Error::new(io).context("write a").context("train");
        assert_eq!(describe(&e), "train\n  because: write a\n  because: disk full");
        assert_eq!(format!("{:?}", code(&e)), format!("{:?}", ExitCode::from(1)));
        let e = Err::<(), _>(usage("no such thing")).context("row 1: no such thing").unwrap_err();
        assert_eq!(describe(&e), "row 1: no such thing");
        assert_eq!(format!("{:?}", code(&e)), format!("{:?}", ExitCode::from(2)));
    }
}
