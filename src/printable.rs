//! Text that can be shown: what could command a terminal, or hide in it, is written out.

use std::fmt;
use std::fmt::Write as _;

/// Text on one line, with control characters written out.
///
/// Names of parameters, schedules and files come from files and may hold anything. Control characters (line breaks
/// included), line and paragraph separators, and marks that reorder text are written as JSON writes them, such as
/// `\n` and `\u001b`. Everything else stays as it is, the backslash too, so this is for reading, not for parsing. The
/// messages of [`Error`](crate::Error) are written this way.
///
/// # Example
/// ```
/// use muon_cuda::Printable;
///
/// assert_eq!(Printable("w\u{1b}[31m\n").to_string(), r"w\u001b[31m\n");
/// assert_eq!(Printable("blöcke.0.w").to_string(), "blöcke.0.w");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Plain::new(f).write_str(self.0)
    }
}

/// Writes text through, control characters written out.
pub(crate) struct Plain<W> {
    to: W,
    /// Whether line breaks and tabs pass.
    lines: bool,
}

impl<W: fmt::Write> Plain<W> {
    /// All on one line.
    pub(crate) fn new(to: W) -> Self {
        Self { to, lines: false }
    }

    /// Text whose lines are meant.
    pub(crate) fn lines(to: W) -> Self {
        Self { to, lines: true }
    }
}

impl<W: fmt::Write> fmt::Write for Plain<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_hidden(*c)) {
            self.to.write_str(rest.get(..at).unwrap_or_default())?;
            match c {
                '\n' | '\t' if self.lines => self.to.write_char(c)?,
                '\n' => self.to.write_str("\\n")?,
                '\t' => self.to.write_str("\\t")?,
                '\r' => self.to.write_str("\\r")?,
                // All of them have four digits, so that JSON that holds one stays JSON.
                c => write!(self.to, "\\u{:04x}", u32::from(c))?,
            }
            rest = rest.get(at + c.len_utf8()..).unwrap_or_default();
        }
        self.to.write_str(rest)
    }
}

/// Control characters; separators that some terminals break lines at; marks that reorder or hide text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'
                ..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_commands_a_terminal_passes() {
        for code in 0..=0xffff_u32 {
            let Some(c) = char::from_u32(code) else { continue };
            let shown = Printable(&format!("a{c}b")).to_string();
            assert!(shown.starts_with('a') && shown.ends_with('b'), "{shown:?}");
            assert!(!shown.chars().any(char::is_control), "U+{code:04X}: {shown:?}");
        }
        // ESC, BEL, the 8-bit CSI, a right-to-left override, a line separator.
        let shown = Printable("\u{1b}]0;x\u{7} \u{9b}31m \u{202e}gpj \u{2028}").to_string();
        assert_eq!(shown, r"\u001b]0;x\u0007 \u009b31m \u202egpj \u2028");
    }

    #[test]
    fn lines_pass_where_they_are_meant() {
        let mut out = String::new();
        Plain::lines(&mut out).write_str("a\n\tbc\r\u{1b}").unwrap();
        assert_eq!(out, "a\n\tbc\\r\\u001b");
    }
}
