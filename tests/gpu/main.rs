//! Levels 3 and 4: every kernel and whole steps, on the emulator, or on a GPU with `MUON_TEST_DEVICE=gpu`.
#![allow(unsafe_code, reason = "sets the cache directory of the tests")]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking and reports what it measured"
)]

mod costs;
mod device;
mod faults;
mod graph;
mod groups;
mod hostile;
mod plan;
mod regressions;
mod report;
mod resume;
mod settings;
mod spectra;
mod step;
#[path = "../support/mod.rs"]
mod support;
mod symmetric;
mod systems;
