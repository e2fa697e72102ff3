//! Compiling, caching and loading, with the real NVRTC and the emulated driver.
#![allow(unsafe_code, reason = "launching a kernel is unsafe")]

use std::path::{Path, PathBuf};
use std::process::Command;

use cuda_emulator::{Config, DeviceProfile, Emulator, Log};
use cudarc::driver::{LaunchConfig, PushKernelArg};

use super::*;

const FILL: KernelSource = KernelSource {
    file: "fill.cu",
    source: "#line 1 \"kernels/fill.cu\"\n\
             extern \"C\" __global__ void fill(float* x, float value) { x[threadIdx.x] = value; }\n",
    digest: "fill",
    entries: &["fill"],
};

pub(in crate::cuda) fn emulator(config: Config) -> Emulator {
    cuda_emulator::fetch_nvrtc().unwrap();
    Emulator::load(config).unwrap()
}

fn quiet() -> Config {
    let mut config = Config::default();
    config.log = Log::Quiet;
    config
}

fn load(sources: &[KernelSource], cache: &Cache) -> Result<Kernels> {
    Kernels::load_sources(&CudaContext::new(0).unwrap(), sources, cache)
}

/// Runs `fill` and reads what it wrote.
fn run_fill(kernels: &Kernels) -> Vec<f32> {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let mut x = stream.alloc_zeros::<f32>(4).unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (4, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the arguments are those of `fill`, and `x` holds one element for each thread.
    unsafe {
        stream
            .launch_builder(kernels.function("fill").unwrap())
            .arg(&mut x)
            .arg(&2.5_f32)
            .launch(config)
    }
    .unwrap();
    stream.clone_dtoh(&x).unwrap()
}

fn entry(directory: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn the_second_start_compiles_nothing() {
    let _emulator = emulator(quiet());
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(&directory.path().join("new/cache"));
    let before = nvrtc::compilations();
    let first = load(&[FILL], &cache).unwrap();
    assert_eq!((first.compiled, first.cached, nvrtc::compilations() - before), (1, 0, 1));
    assert_eq!(run_fill(&first), [2.5; 4]);
    let second = load(&[FILL], &cache).unwrap();
    assert_eq!((second.compiled, second.cached, nvrtc::compilations() - before), (0, 1, 1));
    assert_eq!(run_fill(&second), [2.5; 4]);
    assert!(second.to_string().starts_with("kernels for sm_90 by NVRTC 13."), "{second}");
    assert!(second.function("spill").unwrap_err().is_kernel_compile());
}

#[test]
fn another_source_option_or_compiler_is_another_entry() {
    let options = options("compute_90");
    let other_options = super::options("compute_80");
    let key = |source, options: &[String], image, nvrtc| Key::new(&source, options, image, nvrtc);
    let base = key(FILL, &options, Image::Ptx, (13, 0));
    assert_eq!(base, key(FILL, &options, Image::Ptx, (13, 0)));
    assert_ne!(base, key(KernelSource { digest: "other", ..FILL }, &options, Image::Ptx, (13, 0)));
    assert_ne!(base, key(KernelSource { file: "other.cu", ..FILL }, &options, Image::Ptx, (13, 0)));
    assert_ne!(base, key(FILL, &other_options, Image::Ptx, (13, 0)));
    assert_ne!(base, key(FILL, &options, Image::Cubin, (13, 0)));
    assert_ne!(base, key(FILL, &options, Image::Ptx, (13, 1)));
}

#[test]
fn a_damaged_or_foreign_entry_is_compiled_again() {
    let _emulator = emulator(quiet());
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    load(&[FILL], &cache).unwrap();
    let path = entry(directory.path());
    let good = std::fs::read(&path).unwrap();
    // Undamaged, but of another kernel: a file that was renamed.
    let other = KernelSource { digest: "other", ..FILL };
    let other_directory = tempfile::tempdir().unwrap();
    load(&[other], &Cache::at(other_directory.path())).unwrap();
    let foreign = std::fs::read(entry(other_directory.path())).unwrap();
    let mut bit = good.clone();
    // In a comment of the PTX: the driver would take it, only the digest tells.
    let comment = good.windows(9).position(|bytes| bytes == b"Generated").unwrap();
    bit[comment] ^= 1;
    let mut header = good.clone();
    header[0] ^= 1;
    let longer = [good.as_slice(), b"\n"].concat();
    let cases: [(&str, Vec<u8>); 7] = [
        ("foreign", foreign),
        ("one bit", bit),
        ("header", header),
        ("longer", longer),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("header alone", good[..100].to_vec()),
        ("empty", Vec::new()),
    ];
    for (case, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let kernels = load(&[FILL], &cache).unwrap();
        assert_eq!((kernels.compiled, kernels.cached), (1, 0), "{case}");
        assert_eq!(std::fs::read(&path).unwrap(), good, "{case}: not replaced");
    }
}

#[test]
fn a_valid_entry_that_the_driver_refuses_is_compiled_again() {
    let _emulator = emulator(quiet());
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path());
    let key = Key::new(&FILL, &options("compute_90"), Image::Ptx, nvrtc::version().unwrap());
    let newer = nvrtc::compile(FILL.source, "fill", &options("compute_120"), Image::Ptx).unwrap();
    cache.put(&key, &newer);
    assert_eq!(cache.get(&key).unwrap(), newer);
    let kernels = load(&[FILL], &cache).unwrap();
    assert_eq!((kernels.compiled, kernels.cached), (1, 0));
    assert_ne!(cache.get(&key).unwrap(), newer);
}

#[test]
fn a_directory_that_cannot_be_used_is_no_error() {
    let _emulator = emulator(quiet());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for cache in [Cache::at(&file), Cache::at(&file.join("below"))] {
        for _ in 0..2 {
            let kernels = load(&[FILL], &cache).unwrap();
            assert_eq!((kernels.compiled, kernels.cached), (1, 0));
        }
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a directory");
}

#[test]
fn a_kernel_that_does_not_compile_shows_the_log_and_the_options() {
    let _emulator = emulator(quiet());
    let source = KernelSource {
        source: "#line 41 \"kernels/fill.cu\"\n\
                 extern \"C\" __global__ void fill(float* x) { *x = y; }\n",
        ..FILL
    };
    let directory = tempfile::tempdir().unwrap();
    let error = load(&[source], &Cache::at(directory.path())).unwrap_err();
    assert!(error.is_kernel_compile() && error.cuda_status() == Some(6), "{error:?}");
    let said = error.to_string();
    assert!(
        said.contains("\n  kernels/fill.cu(41): error: identifier \"y\" is undefined"),
        "{said}"
    );
    assert!(said.contains("--fmad=false") && said.contains("compute_90"), "{said}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a failure was cached");
}

#[test]
fn an_image_that_the_driver_refuses_is_an_error() {
    let _emulator = emulator(quiet());
    let source = KernelSource {
        source: "extern \"C\" __global__ void fill(float* x) { asm(\"nonsense.f32;\"); }\n",
        ..FILL
    };
    let error = load(&[source], &Cache::at(Path::new("/dev/null/none"))).unwrap_err();
    assert!(error.is_kernel_compile(), "{error:?}");
    assert!(error.to_string().contains("CUDA_ERROR_INVALID_PTX"), "{error}");
}

#[test]
fn a_missing_entry_is_an_error_at_load() {
    let _emulator = emulator(quiet());
    let source = KernelSource { entries: &["fill", "drain"], ..FILL };
    let error = load(&[source], &Cache::at(Path::new("/dev/null/none"))).unwrap_err();
    assert!(error.to_string().contains("kernels/fill.cu: finding the entry `drain`"), "{error}");
    assert!(error.is_device() && error.cuda_status() == Some(500), "{error:?}");
}

#[test]
fn an_old_device_is_refused_by_name() {
    let mut config = quiet();
    let mut turing = DeviceProfile::a100();
    turing.name = "Tesla T4".to_owned();
    turing.compute_capability = (7, 5);
    config.devices = vec![turing];
    let _emulator = emulator(config);
    let error = load(&[FILL], &Cache::at(Path::new("/dev/null/none"))).unwrap_err();
    assert!(error.is_unsupported(), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("Tesla T4") && said.contains("capability 7.5"), "{said}");
}

#[test]
fn the_target_is_the_newest_that_nvrtc_knows() {
    let known = [75, 80, 86, 90, 100, 120];
    let choose = |device| Architecture::choose(device, &known, (13, 0));
    for (device, target) in [(80, 80), (89, 86), (90, 90), (121, 120), (200, 120)] {
        assert_eq!(choose(device).unwrap(), Architecture { device, target });
    }
    let error = Architecture::choose(80, &[75, 90], (11, 8)).unwrap_err();
    assert!(error.is_cuda_unavailable(), "{error:?}");
    // Machine code stays within its major number.
    assert_eq!(choose(89).unwrap().name(Image::Cubin).unwrap(), "sm_86");
    assert!(choose(200).unwrap().name(Image::Cubin).unwrap_err().is_cuda_unavailable());
    assert_eq!(choose(200).unwrap().name(Image::Ptx).unwrap(), "compute_120");
}

#[test]
fn nvrtc_makes_machine_code_too() {
    let _emulator = emulator(quiet());
    let cubin = nvrtc::compile(FILL.source, "fill", &options("sm_90"), Image::Cubin).unwrap();
    assert!(cubin.starts_with(b"\x7fELF"));
    let known = nvrtc::supported_architectures().unwrap();
    assert!(known.is_sorted() && known.contains(&80) && known.contains(&90), "{known:?}");
}

#[test]
fn every_kernel_of_the_library_loads() {
    let _emulator = emulator(quiet());
    let kernels = load(SOURCES, &Cache::at(Path::new("/dev/null/none"))).unwrap();
    assert!(!SOURCES.is_empty());
    for entry in SOURCES.iter().flat_map(|source| source.entries) {
        assert!(kernels.function(entry).is_ok(), "{entry}");
    }
}

const RACE: &str = "MUON_TEST_CACHE_RACE";

#[test]
fn racing_processes_leave_a_valid_entry() {
    if let Some(directory) = std::env::var_os(RACE) {
        // One of the racers.
        let _emulator = emulator(quiet());
        for _ in 0..5 {
            let kernels = load(&[FILL], &Cache::at(Path::new(&directory))).unwrap();
            assert_eq!(run_fill(&kernels), [2.5; 4]);
            for file in std::fs::read_dir(&directory).unwrap() {
                let _gone_already = std::fs::remove_file(file.unwrap().path());
            }
        }
        load(&[FILL], &Cache::at(Path::new(&directory))).unwrap();
        return;
    }
    let _emulator = emulator(quiet());
    let directory = tempfile::tempdir().unwrap();
    let racers: Vec<_> = (0..3)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "cuda::compile::tests::racing_processes_leave_a_valid_entry"])
                .env(RACE, directory.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let kernels = load(&[FILL], &Cache::at(directory.path())).unwrap();
    assert_eq!((kernels.compiled, kernels.cached), (0, 1));
    entry(directory.path());
}
