//! `muon doctor` on a machine without a usable device.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::path::Path;

use support::{command, said};

/// Nothing is found, or a driver that shows no device.
fn without_cuda(args: &[&str]) -> support::Said {
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(Path::new("."), args);
    command.env("LD_LIBRARY_PATH", directory.path());
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.env("MUON_CUDA_CACHE_DIR", directory.path().join("cache"));
    said(command.output().unwrap())
}

#[test]
fn a_machine_without_a_device_is_told_what_is_missing() {
    let found = without_cuda(&["doctor"]);
    assert_eq!(found.code, Some(1), "{}", found.err);
    assert_eq!(found.err, "");
    for part in ["driver", "NVRTC", "cublasLt", "MISSING: the NVIDIA driver", "devices      none"] {
        assert!(found.out.contains(part), "no `{part}` in\n{}", found.out);
    }
    assert!(found.out.contains("cache (0 entries)"), "{}", found.out);
    assert!(found.out.ends_with("The CUDA device cannot be used; the CPU device can.\n"));
}

#[test]
fn the_same_for_programs() {
    let found = without_cuda(&["doctor", "--json"]);
    assert_eq!(found.code, Some(1), "{}", found.err);
    let value: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(value["usable"], false);
    assert!(value["driver"]["problem"].as_str().unwrap().contains("NVIDIA driver"), "{value}");
    assert_eq!(value["devices"], serde_json::json!([]));
    assert_eq!(value["kernel_cache"]["entries"], 0);
}

#[test]
fn a_cache_that_cannot_be_written_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let doctor = |cache: &Path, args: &[&str]| {
        let mut command = command(Path::new("."), args);
        command.env("LD_LIBRARY_PATH", directory.path()).env("MUON_CUDA_CACHE_DIR", cache);
        said(command.output().unwrap()).out
    };
    let out = doctor(&file.join("below"), &["doctor"]);
    assert!(out.contains("NOT WRITABLE: nothing can be written to"), "{out}");
    assert!(out.contains("kernels are compiled at every start"), "{out}");
    let out = doctor(&file.join("below"), &["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(value["kernel_cache"]["problem"].is_string(), "{value}");
    // One that can be made is fine, and is not made.
    let out = doctor(&directory.path().join("new/cache"), &["doctor"]);
    assert!(!out.contains("NOT WRITABLE"), "{out}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
