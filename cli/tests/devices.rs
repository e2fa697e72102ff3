//! Devices that a build does not have: which one is missing, and how to get it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod support;

#[cfg(not(all(feature = "cuda", feature = "emulator")))]
use std::path::Path;

/// Every command that takes a device refuses this one as a mistake in the command line, and says so.
#[cfg(not(all(feature = "cuda", feature = "emulator")))]
fn refused(device: &str, reason: &str) {
    for command in [
        &["train", "--steps", "1"][..],
        &["verify", "recording.json"],
        &["orthogonalize", "in.safetensors", "out.safetensors"],
    ] {
        let said = support::muon(Path::new("."), &[command, &["--device", device]].concat());
        assert_eq!(said.code, Some(2), "{command:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(reason), "{command:?}: {}", said.err);
        assert_eq!(said.out, "");
    }
}

#[cfg(not(feature = "emulator"))]
#[test]
fn a_build_without_the_emulator_says_how_to_build_it() {
    refused("emulated", "built without the emulator: cargo build --features muon-cli/emulator");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    refused("cuda", "built without the feature `cuda`");
    refused("cuda:1", "built without the feature `cuda`");
}

#[test]
fn no_device_has_a_name_of_nonsense() {
    let said = support::muon(std::path::Path::new("."), &["train", "--device", "gpu"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("expected `cpu`, `reference`, `cuda`"), "{}", said.err);
}
