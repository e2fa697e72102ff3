//! Kernels as text and as compiled code, without a GPU: contracts, signatures, registers, spills, the
//! width of memory accesses. NVRTC and ptxas come from PyPI (`tools/fetch-cuda-tools`); where they
//! cannot be fetched these tests fail, because nothing else looks at what the compiler makes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints what it measured"
)]

#[path = "../../build/contract.rs"]
#[allow(dead_code, reason = "build.rs uses more of it")]
mod contract;
mod contracts;
#[path = "../../build/flatten.rs"]
mod flatten;
mod machine_code;
#[path = "../../src/cuda/options.rs"]
#[allow(dead_code, reason = "the library uses more of it")]
mod options;
mod signature;
mod toolchain;

use contract::Entry;

/// A kernel file, flattened, with its entries.
struct KernelFile {
    name: String,
    source: String,
    entries: Vec<Entry>,
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");

/// Every kernel file, by name.
fn kernel_files() -> Vec<KernelFile> {
    let read = |name: &str| {
        std::fs::read_to_string(format!("{FOLDER}/{name}")).map_err(|error| error.to_string())
    };
    let mut names: Vec<String> = std::fs::read_dir(FOLDER)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".cu"))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no kernel file in {FOLDER}");
    let file = |name: String| {
        let source =
            flatten::flatten(&name, "kernels", &read).unwrap_or_else(|e| panic!("{e}")).text;
        let entries = contract::entries(&format!("kernels/{name}"), &read(&name).unwrap())
            .unwrap_or_else(|problems| panic!("{problems:#?}"));
        KernelFile { name, source, entries }
    };
    names.into_iter().map(file).collect()
}

/// Fails with everything that is wrong, one line each.
fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
