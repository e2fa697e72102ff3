//! Every absence, planted: child processes whose loader finds stand-ins made by `cc`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::cuda::compile::tests::emulator;
use crate::cuda::diagnosis::compile_nothing;

const CHILD: &str = "MUON_TEST_PREFLIGHT";

/// What a child process found: `usable`, or the error's kind, status and text.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let text = match check().and_then(|()| compile_nothing()) {
        Ok(()) => "usable".to_owned(),
        Err(e) => {
            let kind = if e.is_cuda_unavailable() { "unavailable" } else { "other" };
            format!("{kind} {:?} {e}", e.cuda_status())
        }
    };
    println!("found: {text}");
}

/// Checks in a process whose loader looks into this directory first.
fn check_in(directory: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cuda::preflight::tests::child", "--nocapture"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", directory)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "the child panicked: {out}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let found = out.split_once("found: ").unwrap_or_else(|| panic!("{out}")).1;
    found.split_once("\ntest ").map_or(found, |(found, _)| found).trim().to_owned()
}

/// Makes a library with these functions; the bodies of some are given.
fn plant(directory: &Path, file: &str, symbols: &[&str], bodies: &[(&str, &str)]) {
    let mut code = String::new();
    for symbol in symbols {
        let body = bodies.iter().find(|(name, _)| name == symbol).map_or("return 0;", |(_, b)| b);
        writeln!(code, "int {symbol}(int *a, int *b) {{ (void)a; (void)b; {body} }}").unwrap();
    }
    let source = directory.join("stand-in.c");
    std::fs::write(&source, code).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(directory.join(file)).arg(&source);
    let output = compiler.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const GOOD_DRIVER: &[(&str, &str)] =
    &[("cuDriverGetVersion", "*a = 13000; return 0;"), ("cuDeviceGetCount", "*a = 1; return 0;")];
const GOOD_NVRTC: &[(&str, &str)] = &[("nvrtcVersion", "*a = 13; *b = 0; return 0;")];
const GOOD_CUBLAS_LT: &[(&str, &str)] = &[("cublasLtGetVersion", "return 130000;")];

fn plant_driver(directory: &Path, bodies: &[(&str, &str)]) {
    // Under the first name that is looked for, so that a real driver is not found.
    plant(directory, "libcuda.so", DRIVER_SYMBOLS, &[bodies, GOOD_DRIVER].concat());
}

fn plant_nvrtc(directory: &Path, bodies: &[(&str, &str)]) {
    plant(directory, "libnvrtc.so", NVRTC_SYMBOLS, &[bodies, GOOD_NVRTC].concat());
}

/// An error of the right kind that says each of these.
fn expect(found: &str, status: Option<i32>, parts: &[&str]) {
    assert!(found.starts_with(&format!("unavailable {status:?} ")), "{status:?}: {found}");
    for part in parts {
        assert!(found.contains(part), "no `{part}` in {found}");
    }
}

/// Whether the loader finds this library without our help, as on a machine with CUDA.
fn installed(library: &str) -> bool {
    let list = Command::new("ldconfig")
        .arg("-p")
        .output()
        .or_else(|_| Command::new("/sbin/ldconfig").arg("-p").output());
    list.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).contains(library))
}

#[test]
fn nothing_at_all() {
    if installed("libcuda.so") {
        println!("not tested: this machine has a driver");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let found = check_in(directory.path());
    expect(&found, None, &["libcuda) was not found", "install NVIDIA's driver, version 525"]);
}

#[test]
fn a_file_that_is_no_library() {
    if installed("libcuda.so") {
        println!("not tested: this machine has a driver");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("libcuda.so.1"),
        "not a library, and long enough for a header: ".repeat(9),
    )
    .unwrap();
    let found = check_in(directory.path());
    expect(
        &found,
        None,
        &["cannot be loaded (", "libcuda.so.1: invalid ELF header", "install NVIDIA's driver"],
    );
}

#[test]
fn a_driver_that_lacks_a_function() {
    for lacking in ["cuInit", "cuMemAllocAsync", "cuGraphUpload"] {
        let directory = tempfile::tempdir().unwrap();
        let symbols: Vec<&str> =
            DRIVER_SYMBOLS.iter().copied().filter(|symbol| *symbol != lacking).collect();
        plant(directory.path(), "libcuda.so", &symbols, GOOD_DRIVER);
        let found = check_in(directory.path());
        let path = directory.path().join("libcuda.so").display().to_string();
        expect(&found, None, &[&path, &format!("lacks `{lacking}` (a stub"), "LD_LIBRARY_PATH"]);
    }
}

#[test]
fn a_driver_that_does_not_start() {
    for (body, status, parts) in [
        ("return 34;", 34, ["toolkit's stub", "install NVIDIA's driver"]),
        ("return 100;", 100, ["finds no device", "CUDA_VISIBLE_DEVICES"]),
        ("return 803;", 803, ["do not fit together", "reboot"]),
        ("return 802;", 802, ["not ready", "nvidia-fabricmanager"]),
        ("return 999;", 999, ["cuInit returned 999", "nvidia-smi"]),
        // A number that this build has no name for.
        ("return 4242;", 4242, ["cuInit returned 4242", "nvidia-smi"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        plant_driver(directory.path(), &[("cuInit", body)]);
        expect(&check_in(directory.path()), Some(status), &parts);
    }
}

#[test]
fn a_driver_is_reported_with_the_call_that_failed() {
    for (call, what) in [
        ("cuDriverGetVersion", "does not say its version"),
        ("cuDeviceGetCount", "does not count its devices"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        plant_driver(directory.path(), &[(call, "return 999;")]);
        let found = check_in(directory.path());
        expect(&found, Some(999), &[&format!("{what}: {call} returned 999"), "nvidia-smi"]);
        assert!(!found.contains("cuInit"), "{found}");
    }
}

#[test]
fn a_driver_without_a_device() {
    let directory = tempfile::tempdir().unwrap();
    plant_driver(directory.path(), &[("cuDeviceGetCount", "*a = 0; return 0;")]);
    expect(&check_in(directory.path()), Some(100), &["finds no device"]);
}

#[test]
fn a_driver_that_is_too_old() {
    let directory = tempfile::tempdir().unwrap();
    plant_driver(directory.path(), &[("cuDriverGetVersion", "*a = 11080; return 0;")]);
    let found = check_in(directory.path());
    expect(&found, None, &["too old: it supports CUDA 11.8, needed is 12.0", "version 525"]);
}

#[test]
fn nvrtc_absent_incomplete_or_old() {
    let install = "pip install nvidia-cuda-nvrtc";
    let directory = tempfile::tempdir().unwrap();
    plant_driver(directory.path(), &[]);
    if !installed("libnvrtc.so") {
        expect(&check_in(directory.path()), None, &["NVRTC (libnvrtc)", "was not found", install]);
    }
    plant(directory.path(), "libnvrtc.so", &["nvrtcVersion"], GOOD_NVRTC);
    expect(
        &check_in(directory.path()),
        None,
        &["no NVRTC", "lacks `nvrtcGetNumSupportedArchs`", install],
    );
    plant_nvrtc(directory.path(), &[("nvrtcVersion", "*a = 11; *b = 8; return 0;")]);
    expect(&check_in(directory.path()), None, &["too old: version 11.8, needed is 12.0", install]);
}

#[test]
fn cublas_lt_absent_or_incomplete() {
    let install = "pip install nvidia-cublas";
    let directory = tempfile::tempdir().unwrap();
    plant_driver(directory.path(), &[]);
    plant_nvrtc(directory.path(), &[]);
    if !installed("libcublasLt.so") {
        expect(
            &check_in(directory.path()),
            None,
            &["cublasLt (libcublasLt)", "was not found", install],
        );
    }
    plant(directory.path(), "libcublasLt.so", &["cublasLtCreate"], &[]);
    expect(&check_in(directory.path()), None, &["lacks `cublasLtDestroy`", install]);
}

#[test]
fn cublas_lt_too_old_or_too_new_for_the_driver() {
    let directory = tempfile::tempdir().unwrap();
    plant_driver(directory.path(), &[("cuDriverGetVersion", "*a = 12080; return 0;")]);
    plant_nvrtc(directory.path(), &[]);
    for (version, parts) in [
        (
            "return 110803;",
            ["too old: version 11.8.3, needed is 12.0", "pip install nvidia-cublas"],
        ),
        (
            "return 130100;",
            [
                "13.1.0",
                "too new for the NVIDIA driver, which supports CUDA 12.8; install a newer driver",
            ],
        ),
    ] {
        let body = [("cublasLtGetVersion", version)];
        plant(directory.path(), "libcublasLt.so", CUBLAS_LT_SYMBOLS, &body);
        expect(&check_in(directory.path()), None, &parts);
    }
    // Of the driver's major version any will do, and of an older one.
    let toolkit = |version: &str| Toolkit { version: version.to_owned(), path: PathBuf::new() };
    let driver = Driver { version: 12_080, devices: 1, path: PathBuf::new() };
    for version in ["12.0.0", "12.9.3"] {
        fits(&driver, &toolkit(version)).unwrap();
    }
    fits(&Driver { version: 13_000, ..driver }, &toolkit("12.9.3")).unwrap();
}

/// Puts the real NVRTC, or its builtins, into a directory.
fn plant_real(directory: &Path, prefix: &str) {
    let from = cuda_emulator::fetch_nvrtc().unwrap();
    for file in std::fs::read_dir(from.cuda_13).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        if name.starts_with(prefix) && !name.contains(".alt.") {
            // Copied: NVRTC would find its builtins beside the target of a symbolic link, and a hard
            // link would let a later write reach the original.
            std::fs::copy(file.path(), directory.join(&name)).unwrap();
        }
    }
}

#[test]
fn nvrtc_without_its_builtins_and_a_complete_installation() {
    // Fetches NVRTC, and keeps others from loading meanwhile.
    let _emulator = emulator(cuda_emulator::Config::default());
    let directory = tempfile::tempdir_in(cuda_emulator::fetch_nvrtc().unwrap().target).unwrap();
    plant_driver(directory.path(), &[]);
    plant(directory.path(), "libcublasLt.so", CUBLAS_LT_SYMBOLS, GOOD_CUBLAS_LT);
    plant_real(directory.path(), "libnvrtc.so");
    let found = check_in(directory.path());
    expect(
        &found,
        Some(7),
        &["does not find its builtins", "libnvrtc-builtins", "reinstall NVRTC"],
    );
    plant_real(directory.path(), "libnvrtc-builtins.so");
    assert_eq!(check_in(directory.path()), "usable");
}

const WHOLE_RUN: &str = "MUON_TEST_WHOLE_RUN";

/// Everything that the device can be asked for, in a process of its own.
#[test]
fn whole_run() {
    use crate::{
        AdamWRule, Cuda, Muon, MuonConfig, MuonRule, NonFinite, Orthogonalizer, ParamSpec,
        Precision, StepOptions, StepTensor, Transfer,
    };
    if std::env::var_os(WHOLE_RUN).is_none() {
        return;
    }
    let emulator = cuda_emulator::Emulator::load(cuda_emulator::Config::default()).unwrap();
    assert!(crate::cuda::diagnosis::diagnose().is_usable());
    let preset = |name| Orthogonalizer::preset(name).unwrap();
    for (orthogonalizer, precision, non_finite) in [
        (preset("jordan"), Precision::Bf16, NonFinite::Skip),
        (preset("tuned_fp16"), Precision::Fp16, NonFinite::Error),
        (Orthogonalizer::ExactSvd, Precision::F32, NonFinite::Skip),
    ] {
        let config = MuonConfig { precision: Some(precision), non_finite, ..MuonConfig::default() };
        let mut muon = Muon::new(Cuda::new(0).unwrap(), config).unwrap();
        let captured = precision == Precision::Bf16;
        let rule = MuonRule { orthogonalizer, ..MuonRule::default() };
        let hidden = muon.add_group("hidden", rule).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let w = muon.add_param(hidden, ParamSpec::new("w", &[8, 12])).unwrap();
        let b = muon.add_param(rest, ParamSpec::new("b", &[5])).unwrap();
        let device = muon.device();
        let (mut pw, mut pb) =
            (device.upload(&[0.5; 96]).unwrap(), device.upload(&[0.5; 5]).unwrap());
        let (gw, gb) = (device.upload(&[0.25; 96]).unwrap(), device.upload(&[0.25; 5]).unwrap());
        for clip_norm in [None, Some(0.1)] {
            let options = StepOptions { clip_norm, ..StepOptions::default() };
            let mut tensors = [StepTensor::new(w, &mut pw, &gw), StepTensor::new(b, &mut pb, &gb)];
            muon.step(&options, &mut tensors).unwrap();
            if captured {
                let graph = muon.capture_step(&options, &mut tensors).unwrap();
                muon.replay_step(&graph, &options, &mut tensors).unwrap();
                muon.synchronize().unwrap();
            }
        }
        muon.device().read(&pw, &mut [0.0; 96]).unwrap();
        muon.counters(w).unwrap();
        let checkpoint = muon.checkpoint().unwrap();
        muon.restore(&checkpoint).unwrap();
        muon.synchronize().unwrap();
    }
    assert_eq!(emulator.finish().unwrap(), []);
    println!("ran whole");
}

/// Functions of a library that a process looked up by `dlsym`, from what the loader wrote (`LD_DEBUG=symbols`): such a search
/// starts in the library, one for a reference of another library starts in the program.
fn looked_up<'a>(log: &'a str, library: &str, prefix: &str) -> std::collections::BTreeSet<&'a str> {
    let mut found = std::collections::BTreeSet::new();
    let mut last = "";
    for line in log.lines() {
        let Some((_, search)) = line.split_once("symbol=") else { continue };
        let Some((name, place)) = search.split_once(';') else { continue };
        let first = name != last;
        last = name;
        let rest = name.strip_prefix(prefix);
        if first
            && place.contains(library)
            && rest.is_some_and(|r| r.starts_with(char::is_uppercase))
        {
            found.insert(name);
        }
    }
    found
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn every_function_that_a_run_looks_up_is_asked_for_before() {
    // Fetches NVRTC, and keeps others from loading meanwhile.
    drop(emulator(cuda_emulator::Config::default()));
    let directory = tempfile::tempdir().unwrap();
    // With a cache that is empty, so that NVRTC compiles.
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cuda::preflight::tests::whole_run", "--nocapture"])
        .env(WHOLE_RUN, "1")
        .env("MUON_CUDA_CACHE_DIR", directory.path().join("cache"))
        .env("LD_DEBUG", "symbols")
        .env("LD_DEBUG_OUTPUT", directory.path().join("log"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let log = directory.path().join(format!("log.{}", child.id()));
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("ran whole"), "{out}");
    let log = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    for (library, prefix, symbols) in [
        ("libcuda", "cu", DRIVER_SYMBOLS),
        ("libnvrtc", "nvrtc", NVRTC_SYMBOLS),
        ("libcublaslt", "cublasLt", CUBLAS_LT_SYMBOLS),
    ] {
        let found = looked_up(&log, library, prefix);
        // NVRTC itself asks a driver that is loaded for this one, and does without.
        let ours = found.iter().filter(|name| **name != "cuGetExportTable");
        let unlisted: Vec<_> = ours.filter(|name| !symbols.contains(name)).collect();
        assert!(unlisted.is_empty(), "looked up but not in the preflight's list: {unlisted:?}");
        // The list itself was looked up, so the log is one of lookups.
        assert!(symbols.iter().all(|name| found.contains(name)), "{prefix}: {found:?}");
    }
}
