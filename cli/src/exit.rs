//! How a command ends: exit codes and the one line (with causes) that says what went wrong.

use std::fmt;
use std::process::ExitCode;

use anyhow::Error;
use muon_cuda::Printable;

/// A command that did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// And every check held.
    Well,
    /// But a check did not hold; the output says which.
    CheckFailed,
    /// Stopped by the user; what was done so far is kept.
    Interrupted,
    /// The command line was not understood; that was said.
    Misused,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Well => Self::SUCCESS,
            Ended::CheckFailed => Self::from(1),
            // 128 + SIGINT, as shells report it.
            Ended::Interrupted => Self::from(130),
            Ended::Misused => Self::from(2),
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

/// Several findings, a line each: the one message besides the library's whose line breaks are meant.
#[derive(Debug)]
pub(crate) struct Lines(pub(crate) Vec<String>);

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Lines {}

/// One cause on one line, control characters written out, whatever name or path is in it. The library has done that to
/// its own, of which the log of a compiler has lines.
fn shown(cause: &(dyn std::error::Error + 'static)) -> String {
    let text = cause.to_string();
    if cause.is::<Lines>() || cause.is::<muon_cuda::Error>() {
        return crate::output::plain_lines(&text);
    }
    Printable(&text).to_string()
}

/// The error and its causes, outermost first, without those that the line above already says.
pub(crate) fn describe(error: &Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let cause = shown(cause);
        if out.is_empty() {
            out = cause;
            continue;
        }
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
    fn no_name_forges_a_line() {
        let e = Error::new(std::io::Error::other("gone\u{7}")).context("read a\nerror: \u{1b}[2J");
        assert_eq!(describe(&e), "read a\\nerror: \\u001b[2J\n  because: gone\\u0007");
        let e = Error::new(Lines(vec!["2 mistakes:".into(), "a\u{1b}".into()]));
        assert_eq!(describe(&e), "2 mistakes:\na\\u001b");
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
