//! Running a program under a seed, and checking a planted bug against its repaired twin.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unsafe_code, reason = "the driver API below cudarc's safe layer is unsafe")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cuda_emulator::{Class, Config, Emulator, Log, Report};
use cudarc::driver::{CudaContext, result, sys};

/// Fetches NVRTC into target/ unless it is there; `false` when tests that need it are to be
/// skipped (`CUDA_EMULATOR_SKIP_NVRTC=1`).
pub(crate) fn fetch_nvrtc() -> bool {
    if std::env::var_os("CUDA_EMULATOR_SKIP_NVRTC").is_some() {
        return false;
    }
    cuda_emulator::fetch_nvrtc().unwrap();
    true
}

/// The seeds a repaired twin runs under.
pub(crate) const SEEDS: std::ops::Range<u64> = 0..20;

/// Which of the two programs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twin {
    Buggy,
    Fixed,
}

/// What a run produced.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) findings: Vec<Report>,
    pub(crate) output: Vec<u8>,
    /// The program ended with an error of its own, as programs do after a finding.
    pub(crate) failed: bool,
}

/// The default device, the given seed, findings kept from standard error.
pub(crate) fn config(seed: u64) -> Config {
    let mut config = Config::with_seed(seed);
    config.log = Log::Quiet;
    config
}

/// Runs a program that must not fail.
pub(crate) fn run(seed: u64, program: impl Fn() -> Vec<u8>) -> Run {
    let emulator = Emulator::load(config(seed)).unwrap();
    let output = program();
    Run { findings: emulator.finish().unwrap(), output, failed: false }
}

/// Runs a program that may fail.
pub(crate) fn run_failing(seed: u64, program: impl Fn() -> Vec<u8>) -> Run {
    let emulator = Emulator::load(config(seed)).unwrap();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(program));
    std::panic::set_hook(hook);
    let failed = result.is_err();
    let findings = if failed { emulator.findings() } else { emulator.finish() }.unwrap();
    Run { findings, output: result.unwrap_or_default(), failed }
}

/// The buggy program is found out under every seed, with the first findings of these classes;
/// the same seed finds the same; the repaired one is clean and bit-identical under every seed.
pub(crate) fn check(expected: &[Class], program: impl Fn(Twin) -> Vec<u8>) {
    for seed in SEEDS {
        let run = run_failing(seed, || program(Twin::Buggy));
        let classes: Vec<Class> = run.findings.iter().map(|finding| finding.class).collect();
        assert!(classes.starts_with(expected), "seed {seed}: {:#?}", run.findings);
    }
    let again: Vec<Vec<String>> = (0..2)
        .map(|_| {
            let run = run_failing(7, || program(Twin::Buggy));
            run.findings
                .iter()
                .map(|finding| format!("{:?} {}", finding.class, finding.operation))
                .collect()
        })
        .collect();
    assert_eq!(again[0], again[1], "the same seed must find the same");
    let mut first: Option<Vec<u8>> = None;
    for seed in SEEDS {
        let run = run(seed, || program(Twin::Fixed));
        assert_eq!(run.findings, [], "seed {seed}");
        let bits = first.get_or_insert_with(|| run.output.clone());
        assert_eq!(*bits, run.output, "seed {seed}");
    }
}

/// A context without event tracking: ordering is the program's business.
pub(crate) fn context() -> Arc<CudaContext> {
    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: the programs order their streams themselves, or are meant not to.
    unsafe { ctx.disable_event_tracking() };
    ctx
}

/// The contents of a buffer.
pub(crate) fn read_back(buffer: sys::CUdeviceptr, bytes: usize) -> Vec<u8> {
    let mut host = vec![0_u8; bytes];
    // SAFETY: every program asks for what it allocated.
    unsafe { result::memcpy_dtoh_sync(&mut host, buffer) }.unwrap();
    host
}

/// Waits for everything and frees.
pub(crate) fn free(buffers: &[sys::CUdeviceptr]) {
    result::ctx::synchronize().unwrap();
    for buffer in buffers {
        // SAFETY: allocated by the program and freed once, after the synchronisation.
        unsafe { result::free_sync(*buffer) }.unwrap();
    }
}
