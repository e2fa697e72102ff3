//! A machine with a real driver: the emulator neither takes its place by accident nor uses it.
//!
//! The driver is a stand-in that leaves a mark when it is opened and another when it is called. The
//! program under test runs in a process of its own, with the stand-in on `LD_LIBRARY_PATH`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cuda_emulator::{Config, Emulator, LoadError};
use cudarc::driver::{CudaContext, result};

const DRIVER: &str = r#"
fn mark(name: &str) {
    if let Some(directory) = std::env::var_os("STAND_IN_MARKS") {
        let _ = std::fs::write(std::path::Path::new(&directory).join(name), "");
    }
}
extern "C" fn opened() { mark("opened"); }
#[used]
#[unsafe(link_section = ".init_array")]
static OPENED: extern "C" fn() = opened;
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: u32) -> i32 { mark("called"); 100 }
"#;

/// A fresh directory with the stand-in under these names, and a place for its marks.
fn machine(case: &str, names: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{case}"));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("marks")).unwrap();
    let source = root.join("driver.rs");
    fs::write(&source, DRIVER).unwrap();
    for name in names {
        let status = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))
            .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "stand_in"])
            .args(["-C", "link-arg=-Wl,-soname,libcuda.so.1", "-o"])
            .arg(root.join(name))
            .arg(&source)
            .status()
            .unwrap();
        assert!(status.success());
    }
    root
}

/// Runs the program below in a process that finds the stand-in first.
fn run(machine: &Path, program: &str) -> Output {
    let mut path = machine.as_os_str().to_owned();
    if let Some(inherited) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(inherited);
    }
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", path)
        .env("STAND_IN_MARKS", machine.join("marks"))
        .env("PROGRAM", program)
        .output()
        .unwrap()
}

fn marks(machine: &Path) -> Vec<String> {
    let mut marks: Vec<String> = fs::read_dir(machine.join("marks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    marks.sort();
    marks
}

/// What runs in the other process.
#[test]
#[ignore = "the program that the tests of this file run in a process of its own"]
fn program() {
    match std::env::var("PROGRAM").as_deref() {
        Ok("emulator") => {
            let emulator = Emulator::load(Config::default()).unwrap();
            let ctx = CudaContext::new(0).unwrap();
            assert!(ctx.name().unwrap().contains("Emulated"));
            let stream = ctx.default_stream();
            let data = stream.clone_htod(&[3_u8; 99]).unwrap();
            assert_eq!(stream.clone_dtoh(&data).unwrap(), [3; 99]);
            drop((data, stream, ctx));
            assert_eq!(emulator.finish().unwrap(), []);
        }
        Ok("shadowed") => {
            let error = Emulator::load(Config::default()).unwrap_err();
            assert!(matches!(&error, LoadError::Shadowed { name } if name == "libcuda.so"));
            assert!(error.to_string().contains("LD_LIBRARY_PATH"), "{error}");
        }
        // A program that never loads the emulator, though its libraries lie beside it.
        Ok("no emulator") => assert_eq!(result::init().unwrap_err().0 as i32, 100),
        other => panic!("{other:?}"),
    }
}

fn check(case: &str, names: &[&str], program: &str, expected: &[&str]) {
    let machine = machine(case, names);
    let output = run(&machine, program);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(marks(&machine), expected, "{text}");
}

#[test]
fn the_emulator_does_not_open_an_installed_driver() {
    check("runtime", &["libcuda.so.1"], "emulator", &[]);
}

#[test]
fn a_driver_that_programs_would_find_first_is_an_error_and_is_not_called() {
    check("developer", &["libcuda.so.1", "libcuda.so"], "shadowed", &["opened"]);
}

#[test]
fn a_program_that_does_not_load_the_emulator_gets_the_driver() {
    check("plain", &["libcuda.so.1"], "no emulator", &["called", "opened"]);
}
