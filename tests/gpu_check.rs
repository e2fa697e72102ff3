//! `tools/gpu-check run` without a GPU: what is missing, and with programs in the place of the real ones the report and the
//! exit status.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn write_script(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// An unpacked archive, and a directory of programs that is searched first.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    /// With everything there and in order.
    fn whole() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Self { directory };
        let (packed, programs) = (machine.packed(), machine.programs());
        std::fs::create_dir_all(packed.join("data")).unwrap();
        std::fs::create_dir_all(&programs).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/gpu-check");
        std::fs::copy(script, packed.join("gpu-check")).unwrap();
        for data in ["data/torch_muon.json", "data/torch_muon.safetensors"] {
            std::fs::write(packed.join(data), "{}").unwrap();
        }
        std::fs::write(packed.join("commit"), "0123abcd\n").unwrap();
        write_script(&packed.join("muon"), "echo \"muon $*\"");
        write_script(&packed.join("gpu"), "echo \"tests on $MUON_TEST_DEVICE: $*\"");
        write_script(
            &packed.join("bench"),
            "echo \"bench of $MUON_BENCH_COMMIT, $(ls \"$MUON_CUDA_CACHE_DIR\" | wc -l) kernels\"",
        );
        write_script(
            &programs.join("nvidia-smi"),
            "case $1 in --list-gpus) echo 'GPU 0: A GPU' ;; *) echo '0, A GPU, 580.1, 80 GiB, 9.0, 1980 MHz' ;; esac",
        );
        write_script(&programs.join("compute-sanitizer"), "echo \"sanitized: $*\"");
        machine
    }

    fn packed(&self) -> PathBuf {
        self.directory.path().join("gpu-check")
    }

    fn programs(&self) -> PathBuf {
        self.directory.path().join("programs")
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let path = format!("{}:/usr/bin:/bin", self.programs().display());
        let output: Output = Command::new(self.packed().join("gpu-check"))
            .arg("run")
            .args(args)
            .current_dir(self.directory.path())
            .env("PATH", path)
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn report(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("gpu-check-report/report.md")).unwrap()
    }
}

/// A program that starts, says so much, and fails.
fn failing(text: &str, status: i32) -> String {
    format!("[ \"$1\" = --help ] && exit; echo '{text}'; exit {status}")
}

const STEPS: [&str; 11] = [
    "doctor",
    "tests",
    "verify-f32",
    "verify-bf16",
    "verify-tf32",
    "verify-fp16",
    "memcheck",
    "racecheck",
    "initcheck",
    "synccheck",
    "bench",
];

#[test]
fn a_whole_machine_gets_a_report_of_every_step() {
    let machine = Machine::whole();
    let (code, out, err) = machine.run(&[]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.trim().ends_with("gpu-check-report/report.md"), "{out}");
    let report = machine.report();
    for step in STEPS {
        assert!(report.contains(&format!("| {step} | 0 | ")), "{step}: {report}");
        assert!(report.contains(&format!("\n## {step}\n")), "{step}: {report}");
    }
    for part in [
        "* commit: 0123abcd",
        "0, A GPU, 580.1, 80 GiB, 9.0, 1980 MHz",
        "tests on gpu: --test-threads 1 --show-output",
        "muon verify data/torch_muon.json --device cuda --precision bf16 --against bf16ns",
        "sanitized: --tool racecheck --racecheck-detect-level error --error-exitcode 1 ./gpu --test-threads 1 step:: hostile:: graph:: regressions:: plan::",
        "bench of 0123abcd, 0 kernels",
    ] {
        assert!(report.contains(part), "no `{part}` in {report}");
    }
    assert!(!report.contains("LD_LIBRARY_PATH"), "{report}");
    let (code, out, _) = machine.run(&["--dry-run"]);
    assert_eq!(code, 0);
    assert!(out.contains("  initcheck: env MUON_TEST_DEVICE=gpu compute-sanitizer"), "{out}");
}

#[test]
fn a_step_that_fails_does_not_stop_the_others_and_decides_the_status() {
    let machine = Machine::whole();
    write_script(&machine.packed().join("gpu"), &failing("a test failed", 101));
    let (code, ..) = machine.run(&["--without-sanitizer"]);
    assert_eq!(code, 1);
    let report = machine.report();
    assert!(report.contains("| tests | 101 | ") && report.contains("a test failed"), "{report}");
    assert!(report.contains("| bench | 0 | "), "{report}");
    assert!(report.contains("compute-sanitizer was left out"), "{report}");
    assert!(!report.contains("| memcheck"), "{report}");
}

#[test]
fn a_bench_that_measured_nothing_on_a_machine_with_a_gpu_has_failed() {
    let machine = Machine::whole();
    write_script(&machine.packed().join("bench"), "echo 'nothing measured: too old a driver'");
    let (code, ..) = machine.run(&["--without-sanitizer"]);
    assert_eq!(code, 1);
    let report = machine.report();
    assert!(report.contains("| bench | 1 | ") && report.contains("too old a driver"), "{report}");
}

#[test]
fn a_step_that_hangs_is_stopped_at_the_limit_and_the_others_run() {
    let machine = Machine::whole();
    write_script(&machine.packed().join("gpu"), "[ \"$1\" = --help ] && exit; exec sleep 30");
    let (code, ..) = machine.run(&["--without-sanitizer", "--limit", "1"]);
    assert_eq!(code, 1);
    let report = machine.report();
    assert!(report.contains("| tests | 124 | "), "{report}");
    assert!(report.contains("stopped after 1 seconds, the limit"), "{report}");
    assert!(report.contains("| bench | 0 | "), "{report}");
    for wrong in ["0", "soon", ""] {
        assert_eq!(machine.run(&["--limit", wrong]).0, 2, "{wrong}");
    }
}

#[test]
fn steps_are_run_alone_where_they_are_asked_for() {
    let machine = Machine::whole();
    std::fs::remove_file(machine.programs().join("compute-sanitizer")).unwrap();
    let (code, out, err) = machine.run(&["--only", "verify-bf16,bench"]);
    assert_eq!(code, 0, "{out}{err}");
    // Of an earlier run, or somebody else's.
    let other = machine.directory.path().join("gpu-check-report/tests.log");
    std::fs::write(&other, "not of this run").unwrap();
    let (code, ..) = machine.run(&["--only", "verify-bf16,bench"]);
    assert_eq!(code, 0);
    assert!(other.exists() && !machine.report().contains("not of this run"));
    let report = machine.report();
    for step in STEPS {
        let asked = ["verify-bf16", "bench"].contains(&step);
        assert_eq!(report.contains(&format!("| {step} | ")), asked, "{step}: {report}");
    }
    assert!(report.contains("* only these steps were asked for: verify-bf16,bench"), "{report}");
    let (code, _, err) = machine.run(&["--only", "bench,memcheck"]);
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = machine.run(&["--only", "verify"]);
    assert_eq!(code, 2);
    assert!(err.contains("there is no step `verify`"), "{err}");
}

/// `nvidia-smi` of older drivers refuses the whole query for one field that it does not know.
#[test]
fn a_query_that_nvidia_smi_refuses_does_not_end_the_run() {
    let machine = Machine::whole();
    write_script(
        &machine.programs().join("nvidia-smi"),
        "[ \"$1\" = --list-gpus ] && echo 'GPU 0: A GPU' && exit\n\
         echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2",
    );
    let (code, out, err) = machine.run(&["--without-sanitizer"]);
    assert_eq!(code, 0, "{out}{err}");
    let report = machine.report();
    assert!(report.contains("GPU 0: A GPU") && report.contains("| bench | 0 | "), "{report}");
}

#[test]
fn libraries_that_pip_installed_are_found_and_named() {
    let machine = Machine::whole();
    let libraries = machine.directory.path().join("nvidia/cu13/lib");
    write_script(&machine.programs().join("python3"), &format!("echo {}", libraries.display()));
    let doctor = |directory: &Path| {
        let body = format!(
            "[ \"$1\" = doctor ] || exit 0\n\
             case :$LD_LIBRARY_PATH: in *:{}:*) ;; *) echo 'install NVRTC'; exit 1 ;; esac",
            directory.display()
        );
        write_script(&machine.packed().join("muon"), &body);
    };
    doctor(&libraries);
    let (code, out, err) = machine.run(&[]);
    assert_eq!(code, 0, "{out}{err}");
    let report = machine.report();
    let named = format!("{}\n", libraries.display());
    let line = report.lines().find(|line| line.starts_with("* LD_LIBRARY_PATH: "));
    assert!(line.is_some_and(|line| format!("{line}\n").ends_with(&named)), "{report}");
    assert!(report.contains("| doctor | 0 | "), "{report}");

    doctor(Path::new("/elsewhere"));
    let (code, _, err) = machine.run(&[]);
    assert_eq!(code, 3);
    assert!(err.contains("what muon doctor asks for:\n    install NVRTC"), "{err}");
}

#[test]
fn a_program_that_does_not_start_is_missing_a_machine() {
    let machine = Machine::whole();
    write_script(&machine.packed().join("gpu"), "echo \"version 'GLIBC_2.99' not found\"; exit 1");
    let (code, _, err) = machine.run(&[]);
    assert_eq!(code, 3);
    assert!(err.contains("a machine that gpu starts on: version 'GLIBC_2.99' not found"), "{err}");
}

#[test]
fn what_is_missing_is_said_and_nothing_is_run() {
    let machine = Machine::whole();
    std::fs::remove_file(machine.programs().join("compute-sanitizer")).unwrap();
    let (code, _, err) = machine.run(&[]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("compute-sanitizer") && err.contains("nothing was run"), "{err}");
    assert!(!machine.directory.path().join("gpu-check-report").exists());
    let (code, ..) = machine.run(&["--without-sanitizer"]);
    assert_eq!(code, 0);

    write_script(&machine.programs().join("nvidia-smi"), "exit 9");
    std::fs::remove_file(machine.packed().join("bench")).unwrap();
    let (code, out, err) = machine.run(&["--without-sanitizer", "--dry-run"]);
    assert_eq!(code, 3);
    assert!(out.contains("./gpu --test-threads 1"), "{out}");
    for part in ["bench beside this script", "nvidia-smi lists none"] {
        assert!(err.contains(part), "{err}");
    }
    std::fs::remove_file(machine.programs().join("nvidia-smi")).unwrap();
    let (code, _, err) = machine.run(&["--without-sanitizer"]);
    assert_eq!(code, 3);
    assert!(err.contains("nvidia-smi, which comes with NVIDIA's driver"), "{err}");

    let (code, _, err) = machine.run(&["--nonsense"]);
    assert_eq!(code, 2);
    assert!(err.contains("gpu-check run"), "{err}");
}

#[test]
fn the_archive_holds_what_a_run_needs() {
    let directory = tempfile::tempdir().unwrap();
    let (programs, target) = (directory.path().join("programs"), directory.path().join("target"));
    std::fs::create_dir_all(&programs).unwrap();
    // In the place of cargo: one executable for each command, which is what cargo says among other things.
    let built = directory.path().join("built");
    write_script(&built, "echo built");
    let cargo = format!(
        "echo '{{\"reason\":\"compiler-artifact\",\"executable\":null}}'\n\
         echo '{{\"reason\":\"compiler-artifact\",\"executable\":\"{}\"}}'\n\
         echo '{{\"reason\":\"build-finished\",\"success\":true}}'\n\
         echo \"$*\" >> {}",
        built.display(),
        directory.path().join("commands").display()
    );
    write_script(&programs.join("cargo"), &cargo);
    let archive = directory.path().join("archive.tar.gz");
    // From another directory than the repository's, and to a file relative to it.
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/gpu-check"))
        .arg("pack")
        .arg("archive.tar.gz")
        .current_dir(directory.path())
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let commands = std::fs::read_to_string(directory.path().join("commands")).unwrap();
    for part in ["test --locked --no-run -p muon-cuda --test gpu", "--bench cuda", "-p muon-cli"] {
        assert!(commands.contains(part), "{commands}");
    }
    let unpacked = directory.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let status =
        Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&unpacked).status().unwrap();
    assert!(status.success());
    // What is left to miss is the machine's: a driver, a GPU, the sanitizer.
    let output = Command::new(unpacked.join("gpu-check/gpu-check"))
        .args(["run", "--dry-run"])
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    let missing = String::from_utf8_lossy(&output.stderr);
    assert!(!missing.contains("beside this script"), "{missing}");
}
