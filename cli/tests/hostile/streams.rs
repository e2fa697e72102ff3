//! Output that cannot be written: a full disk is a failure that is said, a reader that left is none.

use super::{check, shell};

/// A quick command of each kind that prints.
const PRINTING: [&str; 14] = [
    "muon --help",
    "muon --version",
    "muon train --help",
    "muon completions bash",
    "muon schedules",
    "muon schedules jordan",
    "muon schedules jordan --json",
    "muon compare --shape 4x4",
    "muon compare --shape 4x4 --json",
    "muon plan --matrix 4x4",
    "muon plan --matrix 4x4 --json",
    "muon orthogonalize red.safetensors out --force",
    "muon train --steps 2 --hidden 4 --optimizer adamw",
    "muon train --steps 2 --hidden 4 --optimizer adamw --json",
];

#[test]
fn a_full_disk_is_said_and_a_reader_that_left_is_no_failure() {
    let mut wrong = Vec::new();
    for command in PRINTING {
        let dir = tempfile::tempdir().unwrap();
        super::files::write(dir.path());
        // The reader is gone before anything is written: what is read first is the exit code.
        let left = format!("({command}; echo $? >code) | true; cat code");
        let full = [
            (format!("{command} >/dev/full"), Some(1), "standard output"),
            (format!("{command} 2>/dev/full >/dev/null"), Some(0), ""),
            (format!("{command} >&-"), Some(0), ""),
        ];
        for (line, code, message) in full {
            let said = shell(dir.path(), &line);
            let _ = std::fs::remove_dir_all(dir.path().join("muon-run"));
            if said.code != code || !said.err.contains(message) || said.err.contains("panicked") {
                wrong.push(format!("{line}: {:?}: {}", said.code, said.err));
            }
        }
        let said = shell(dir.path(), &left);
        if said.out.trim() != "0" || said.err.contains("panicked") {
            wrong.push(format!("{left}: {}: {}", said.out, said.err));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn files_that_cannot_be_written_are_named() {
    check(&[
        ("muon schedules jordan --plot directory/nowhere/a.svg", 1, "directory/nowhere"),
        (
            "ln -s /dev/full a.svg && muon schedules jordan --plot a.svg --force",
            1,
            "not a regular file",
        ),
        ("muon orthogonalize red.safetensors directory", 2, "directory is there already"),
        ("muon orthogonalize red.safetensors directory --force", 1, "directory"),
        ("muon orthogonalize red.safetensors /dev/full --force", 1, "/dev/full"),
        ("muon orthogonalize red.safetensors nowhere/out", 1, "nowhere"),
        ("muon train --steps 1 --hidden 4 --out empty", 1, "empty is not writable"),
        ("muon train --steps 1 --hidden 4 --out /dev/full", 1, "/dev/full"),
        ("muon train --steps 1 --hidden 4 --out /proc/muon", 1, "/proc/muon is not writable"),
        ("muon train --lr-grid --steps 1 --hidden 4 --out /proc/muon", 1, "/proc/muon"),
        (
            "muon train --schedule jordan --steps 1 --hidden 4 --record-spectra /dev/full",
            2,
            "/dev/full is no regular file",
        ),
        (
            "muon train --schedule jordan --steps 1 --hidden 4 --record-spectra directory",
            2,
            "directory is no regular file",
        ),
        ("muon tune --out empty", 1, "empty"),
        ("muon tune --out /proc/muon", 1, "/proc/muon"),
        ("muon doctor | grep 'kernel cache'", 0, ""),
        (
            "MUON_CUDA_CACHE_DIR=/proc/kernels muon doctor",
            1,
            "@NOT WRITABLE: nothing can be written to /proc",
        ),
        (
            "MUON_CUDA_CACHE_DIR=empty/kernels muon doctor",
            1,
            "@NOT WRITABLE: nothing can be written to empty",
        ),
    ]);
}
