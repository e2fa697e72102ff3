//! Ctrl-C and a system that gives no more: work ends soon, and what was done is kept.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::check;
use crate::support::{command, ok, said};

/// Waits until a file shows the child's work; a deadline far beyond what it takes, so that a hang is a failure.
fn wait_for(path: &Path, holds: &str, child: &mut Child) {
    let start = Instant::now();
    let shows = || {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.windows(holds.len()).any(|part| part == holds.as_bytes())
    };
    while !shows() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {}", path.display());
        assert!(start.elapsed() < Duration::from_secs(120), "no {}", path.display());
        std::thread::yield_now();
    }
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn ctrl_c_ends_what_would_run_for_hours() {
    // Each with a file that shows that the work goes on, and what resumes it.
    for (args, shows, holds, hint) in [
        (
            "train --steps 100000000 --hidden 8 --optimizer adamw --checkpoint-every 1 --out o",
            "o/checkpoints/adamw-seed0.safetensors",
            "record.step",
            "`muon train --resume --out o` goes on from here",
        ),
        (
            "train --sweep --seeds 10000 --lr 0.1 --steps 1 --hidden 4 --optimizer adamw --out o",
            "o/sweep.jsonl",
            "\"result\"",
            "the same command goes on from here",
        ),
        (
            "tune --evaluations 10000000 --polish 50 --iterations 2,3 --size 64 --out o",
            "o/journal.jsonl",
            "\"started\"",
            "muon tune --resume --out o",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<&str> = args.split_whitespace().collect();
        let mut command = command(dir.path(), &args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&dir.path().join(shows), holds, &mut child);
        interrupt(&child);
        let said = said(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(130), "{args:?}: {}", said.err);
        assert!(said.err.contains(hint), "{args:?}: {}", said.err);
        assert!(said.out.is_empty(), "{args:?}: {}", said.out);
    }
}

#[test]
fn threads_that_the_system_does_not_give_are_an_error_and_the_work_is_kept() {
    // Stacks of 64 MiB, of which 64 do not fit into this address space; one run needs no thread of its own.
    let dir = tempfile::tempdir().unwrap();
    let job = "train --seeds 64 --steps 5 --hidden 4 --optimizer adamw --out o -q";
    let line = format!("ulimit -v 1000000; RUST_MIN_STACK=67108864 muon {job} --jobs 64");
    let said = super::shell(dir.path(), &line);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("of 64 threads; ask for fewer with --jobs"), "{}", said.err);
    assert!(!said.err.contains("panicked"), "{}", said.err);
    let said =
        super::shell(dir.path(), "ulimit -v 120000; muon train --resume --out o -q --jobs 1");
    assert_eq!(said.code, Some(0), "{}", said.err);
    ok(dir.path(), &["schedules"]);
}

#[test]
fn little_memory_is_an_error_with_what_to_do() {
    check(&[
        ("ulimit -v 1000000; muon train --hidden 12000,12000 --steps 1", 1, "no memory"),
        (
            "ulimit -v 1000000; muon train --task text --batch-size 10000 --steps 1 --schedule jordan",
            1,
            "no memory",
        ),
        (
            "ulimit -v 1000000; RUST_MIN_STACK=67108864 muon tune --jobs 1024 --size 8 --evaluations 9",
            1,
            "--jobs",
        ),
    ]);
}
