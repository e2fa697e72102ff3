//! Embeds the kernels: flattens `kernels/*.cu`, checks that every entry has its contract block, and
//! writes the table that `src/cuda/sources.rs` includes. Needs no CUDA; kernels are compiled on the
//! user's machine, by NVRTC, for the device that is there.

#![allow(clippy::print_stdout, reason = "build scripts talk to Cargo on standard output")]

#[path = "build/contract.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod contract;
#[path = "build/flatten.rs"]
mod flatten;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use contract::Problem;
use sha2::{Digest as _, Sha256};

const FOLDER: &str = "kernels";

fn main() -> ExitCode {
    for path in ["build.rs", "build", FOLDER] {
        println!("cargo::rerun-if-changed={path}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match embed() {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            for problem in problems {
                println!("cargo::error={problem}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("cargo::error=embedding the kernels: {error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> io::Result<Vec<Problem>> {
    let out_dir =
        env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("Cargo did not set OUT_DIR"))?;
    let out_dir = Path::new(&out_dir);
    let mut table = String::from("&[\n");
    let mut problems = Vec::new();
    let mut owners: Vec<(String, String)> = Vec::new();
    for file in kernel_files()? {
        let path = format!("{FOLDER}/{file}");
        let flattened = match flatten::flatten(&file, FOLDER, &read) {
            Ok(flattened) => flattened,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let entries = match contract::entries(&path, &fs::read_to_string(&path)?) {
            Ok(entries) => entries,
            Err(found) => {
                problems.extend(found);
                continue;
            }
        };
        if entries.is_empty() {
            problems.push(Problem::new(&path, 1, "no entry (`extern \"C\" __global__`)"));
        }
        for entry in &entries {
            if let Some((_, owner)) = owners.iter().find(|(name, _)| *name == entry.name) {
                let message = format!("entry `{}` is defined in {owner} already", entry.name);
                problems.push(Problem::new(&path, entry.line, message));
            }
            owners.push((entry.name.clone(), path.clone()));
        }
        fs::write(out_dir.join(&file), &flattened.text)?;
        let digest = Sha256::digest(flattened.text.as_bytes());
        let digest = digest.iter().fold(String::new(), |mut hex, byte| {
            let _infallible = write!(hex, "{byte:02x}");
            hex
        });
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let _infallible = writeln!(
            table,
            "    KernelSource {{ file: {file:?}, source: include_str!(concat!(env!(\"OUT_DIR\"), \
             {:?})), digest: {digest:?}, entries: &{names:?} }},",
            format!("/{file}"),
        );
    }
    table.push_str("]\n");
    fs::write(out_dir.join("kernels.rs"), table)?;
    Ok(problems)
}

/// The names of the kernel files, sorted, so that builds are reproducible.
fn kernel_files() -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    let folder = match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        folder => folder?,
    };
    for file in folder {
        let name = file?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".cu") {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

fn read(name: &str) -> Result<String, String> {
    fs::read_to_string(Path::new(FOLDER).join(name)).map_err(|error| error.to_string())
}
