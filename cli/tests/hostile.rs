//! Hostile commands: each ends by itself, in bounded memory, with the exit code and the message that belong to it.
//!
//! A row of a table is a shell command that runs in a directory of its own, where `muon` is the program under test and
//! the files of [`files`] are. `@` before the message means that standard output holds it, otherwise standard error does.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failure here is a failed test, and its files are the test's own"
)]

mod support;

#[path = "hostile/arguments.rs"]
mod arguments;
#[path = "hostile/files.rs"]
mod files;
#[path = "hostile/signals.rs"]
mod signals;
#[path = "hostile/streams.rs"]
mod streams;

use std::path::Path;
use std::process::Command;

use support::{Said, said};

/// Command, exit code, piece of the message.
type Row = (&'static str, i32, &'static str);

/// Address space of a command, KiB: what a command needs is a small part of it, and what would take a machine's memory
/// fails in it.
const MEMORY_KIB: u32 = 4 << 20;
/// A command that runs until then, in seconds, hangs: each takes a second or two.
const DEADLINE: u32 = 240;

/// What a shell command says in that directory.
fn shell(dir: &Path, command: &str) -> Said {
    let bin = Path::new(env!("CARGO_BIN_EXE_muon")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let script = format!(
        "ulimit -v {MEMORY_KIB} && exec timeout --signal=KILL {DEADLINE} sh -c \"$COMMAND\""
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(dir);
    shell.env("COMMAND", command).env("PATH", format!("{}:{path}", bin.display()));
    shell.env("MUON_CUDA_CACHE_DIR", "").env("RUST_BACKTRACE", "0").env_remove("COLUMNS");
    said(shell.output().unwrap())
}

/// Runs every row and reports all that differ at once.
fn check(rows: &[Row]) {
    let mut wrong = Vec::new();
    for (command, code, message) in rows {
        let dir = tempfile::tempdir().unwrap();
        files::write(dir.path());
        let before = files::names(dir.path());
        let said = shell(dir.path(), command);
        let (place, wanted) = match message.strip_prefix('@') {
            Some(rest) => (&said.out, rest),
            None => (&said.err, *message),
        };
        let mut faults = Vec::new();
        if said.code != Some(*code) {
            faults.push(format!("exit code {:?}, not {code}", said.code));
        }
        if !place.contains(wanted) {
            faults.push(format!("no `{wanted}`"));
        }
        let hidden =
            |c: &char| (c.is_control() && *c != '\n') || ('\u{202a}'..='\u{202e}').contains(c);
        if let Some(c) = said.out.chars().chain(said.err.chars()).find(hidden) {
            faults.push(format!("{c:?} reaches the terminal"));
        }
        for word in ["panicked", "memory allocation of", "stack overflow"] {
            if said.err.contains(word) {
                faults.push(word.to_owned());
            }
        }
        // What makes no sense leaves nothing behind.
        if *code == 2 && files::names(dir.path()) != before {
            faults.push("something was written".to_owned());
        }
        if !faults.is_empty() {
            let clip = |text: &str| text.chars().take(600).collect::<String>();
            wrong.push(format!(
                "{command}\n  {}\n  out: {}\n  err: {}",
                faults.join("; "),
                clip(&said.out),
                clip(&said.err)
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
