//! Standard output: results, and nothing that could command a terminal.

use std::io::{self, Write};

use muon_cuda::Printable;

/// Standard output; control characters other than line breaks are written out. Names of tensors, schedules and files
/// go through here, whoever chose them; JSON stays JSON.
pub(crate) fn stdout() -> impl Write {
    Plain(io::stdout().lock())
}

/// Text whose lines are meant, everything else written out.
pub(crate) fn plain_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| Printable(line).to_string()).collect();
    lines.join("\n")
}

struct Plain<W>(W);

impl<W: Write> Write for Plain<W> {
    /// A piece of formatted text, which is whole characters.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = plain_lines(&String::from_utf8_lossy(bytes));
        self.0.write_all(text.as_bytes()).map_err(named)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// With what could not be written.
fn named(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("standard output: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_pass_and_commands_do_not() {
        let mut out = Vec::new();
        let name = "\u{1b}[31mred\u{9b}";
        writeln!(Plain(&mut out), "name {name}\n┌─┐").unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "name \\u001b[31mred\\u009b\n┌─┐\n");
        let json = serde_json::json!({ "name": "a\u{9b}\u{7f}\"\n" });
        let mut out = Vec::new();
        writeln!(Plain(&mut out), "{json:#}").unwrap();
        assert!(out.is_ascii());
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), json);
    }
}
