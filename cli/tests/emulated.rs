//! The CUDA device on the emulator, from the command line: verified, trained on, orthogonalized with.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

#[path = "../../tests/support/recordings.rs"]
mod recordings;
mod support;

use std::path::Path;

use support::{metrics, ok, tiny};

#[test]
fn recordings_of_pytorch_hold_in_every_precision() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data");
    let (muon_file, adamw_file) =
        (format!("{data}/torch_muon.json"), format!("{data}/torch_adamw.json"));
    // Tolerances as documented; measured 2.3e-6, 0.017 (0.013 to PyTorch's bf16), 0.0024, 0.0054, 0.017.
    for (file, more, tolerance) in [
        (&muon_file, &["--precision", "f32"][..], 1e-4),
        (&muon_file, &["--precision", "bf16", "--against", "bf16ns"], 0.02),
        (&muon_file, &["--precision", "fp16"], 0.004),
        (&muon_file, &["--precision", "tf32"], 0.005),
        (&muon_file, &["--momentum-dtype", "bf16"], 0.01),
        (&muon_file, &["--momentum-dtype", "bf16", "--precision", "bf16"], 0.02),
        (&adamw_file, &[], 1e-5),
    ] {
        let args = [&["verify", file.as_str(), "--device", "emulated", "--json"], more].concat();
        let said = ok(Path::new("."), &args);
        let value: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert!(value["target"].as_str().unwrap().starts_with("emulated, "), "{value}");
        assert_eq!(value["tolerance"], tolerance);
        let cases = value["cases"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            assert_eq!(case["passed"], true, "{more:?} {case}");
            let error = case["error"].as_f64().unwrap();
            assert!(error <= tolerance, "{more:?} {case}");
            // Rounding that is not there is a mistake as well: at least 1.1e-3 and 7.1e-4 were measured.
            assert!(
                error > 1e-4 || !more.iter().any(|m| ["bf16", "fp16", "tf32"].contains(m)),
                "{more:?} {case}"
            );
        }
    }
}

#[test]
fn every_field_of_a_recording_holds_on_the_kernels_of_a_gpu() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let samples = recordings::samples();
    let (json, tensors) = recordings::all_in_one(&samples);
    std::fs::write(dir.path().join("fields.json"), json).unwrap();
    std::fs::write(dir.path().join("fields.safetensors"), tensors).unwrap();
    let degenerate =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/degenerate_trajectories.json");
    for (file, cases) in [("fields.json", samples.len()), (degenerate, 12)] {
        let args = ["verify", file, "--device", "emulated", "--precision", "f32", "--json"];
        let said = ok(dir.path(), &args);
        let value: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        let held = value["cases"].as_array().unwrap();
        assert!(held.len() == cases && held.iter().all(|c| c["passed"] == true), "{value}");
    }
}

#[test]
fn training_follows_the_cpu_that_rounds_alike() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let run = |out: &str, device: &[&str]| {
        let job = ["--optimizer", "muon", "--schedule", "jordan", "--steps", "10", "--out", out];
        let args: Vec<&str> =
            tiny(&[]).into_iter().filter(|a| !["--steps", "40"].contains(a)).collect();
        ok(dir.path(), &[&args, &job[..], device].concat());
        metrics(&dir.path().join(out))["runs"][0].clone()
    };
    let cpu = run("cpu", &["--device", "cpu", "--precision", "bf16"]);
    let gpu = run("gpu", &["--device", "emulated"]);
    let losses = |run: &serde_json::Value| -> Vec<f64> {
        run["batch_losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect()
    };
    let (cpu, gpu) = (losses(&cpu), losses(&gpu));
    assert_eq!(cpu.len(), 10);
    for (i, (c, g)) in cpu.iter().zip(&gpu).enumerate() {
        // Sums of another order may round apart at bf16 stores. Measured: the same bits, over 300 steps of the
        // full job too; a GPU's own order of sums is not emulated.
        assert!((c / g - 1.0).abs() < 0.01, "step {i}: {c} {g}");
    }
    assert!(gpu[9] < gpu[0]);
    // The f32 run is another one: bf16 is the default on this device.
    let f32 = losses(&run("f32", &["--device", "cpu"]));
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>();
    assert!(distance(&gpu, &cpu) < distance(&gpu, &f32), "{gpu:?} {cpu:?} {f32:?}");
}

#[test]
fn a_stopped_run_resumes_with_the_state_of_the_device() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let job = ["--optimizer", "muon", "--schedule", "jordan", "--device", "emulated"];
    let args: Vec<&str> = tiny(&job)
        .into_iter()
        .map(|a| match a {
            "40" => "6",
            "10" => "3",
            a => a,
        })
        .collect();
    let run = |out: &str| {
        ok(dir.path(), &[&args[..], &["--out", out]].concat());
        metrics(&dir.path().join(out))["runs"].clone()
    };
    let whole = run("whole");
    // The checkpoint of the end holds everything that the metrics are made of.
    std::fs::remove_file(dir.path().join("whole/metrics.json")).unwrap();
    ok(dir.path(), &["train", "--resume", "--out", "whole", "--quiet"]);
    assert_eq!(whole, metrics(&dir.path().join("whole"))["runs"]);
}

/// A file with one 4 × 6 matrix of rank 2.
fn write_matrix(path: &Path) {
    let mut bytes = Vec::new();
    for i in 0..24u32 {
        bytes.extend_from_slice(&((i as f32 * 0.7).sin()).to_le_bytes());
    }
    let header = r#"{"w":{"dtype":"F32","shape":[4,6],"data_offsets":[0,96]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn orthogonalized_files_agree_with_the_cpu() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_matrix(&dir.path().join("in.safetensors"));
    let run = |device: &str| {
        let out = format!("{device}.safetensors");
        let args =
            ["orthogonalize", "in.safetensors", &out, "--device", device, "--precision", "f32"];
        ok(dir.path(), &[&args[..], &["--quiet"]].concat());
        let file = std::fs::read(dir.path().join(out)).unwrap();
        let start = file.len() - 96;
        file[start..]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    let (cpu, gpu) = (run("cpu"), run("emulated"));
    // The matrix has rank 2: what polynomials lift from rounding noise differs more than f32 rounding itself.
    for (c, g) in cpu.iter().zip(&gpu) {
        assert!((c - g).abs() < 1e-3, "{cpu:?} {gpu:?}");
    }
    assert!(cpu.iter().any(|x| x.abs() > 0.1));
}

#[test]
fn spectra_of_directions_are_those_of_the_cpu_that_rounds_alike() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let run = |out: &str, device: &[&str]| {
        let spectra = format!("{out}.jsonl");
        let job = ["--optimizer", "muon", "--schedule", "jordan", "--steps", "7", "--out", out];
        let record = ["--record-spectra", &spectra, "--spectra-every", "3"];
        let args: Vec<&str> =
            tiny(&[]).into_iter().filter(|a| !["--steps", "40"].contains(a)).collect();
        ok(dir.path(), &[&args, &job[..], &record, device].concat());
        std::fs::read_to_string(dir.path().join(spectra)).unwrap()
    };
    let gpu = run("gpu", &["--device", "emulated"]);
    // Steps 0, 3 and 6 of two hidden matrices.
    assert_eq!(gpu.lines().count(), 6, "{gpu}");
    assert_eq!(gpu, run("cpu", &["--device", "cpu", "--precision", "bf16"]));
}

#[test]
fn what_the_emulator_finds_makes_a_command_fail() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_matrix(&dir.path().join("in.safetensors"));
    let args = ["orthogonalize", "in.safetensors", "out.safetensors", "--device", "emulated"];
    // A kernel that may execute ten instructions is ended as a runaway; what ends well in spite of a finding is tested in
    // `cli/src/devices.rs`.
    let output = support::command(dir.path(), &args)
        .env("CUDA_EMULATOR_INSTRUCTION_BUDGET", "10")
        .output()
        .unwrap();
    let said = support::said(output);
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.err.contains("cuda-emulator: Progress in launch of"), "{}", said.err);
    assert_eq!(ok(dir.path(), &args).code, Some(0));
    let output =
        support::command(dir.path(), &args).env("CUDA_EMULATOR_SEED", "x").output().unwrap();
    let said = support::said(output);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("`CUDA_EMULATOR_SEED`: `x` is not a number"), "{}", said.err);
}

#[test]
fn systems_are_compared_on_the_emulated_device() {
    cuda_emulator::fetch_nvrtc().unwrap();
    let here = Path::new(".");
    let args = ["compare", "--shape", "24x40", "--device", "emulated", "--schedule", "tuned_bf16"];
    let said = ok(here, &[&args[..], &["--json"]].concat());
    let value: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&value["device"], &value["precision"]), (&"emulated".into(), &"bf16".into()));
    let systems = value["systems"].as_array().unwrap();
    let error = |i: usize| systems[i]["error"].as_f64().unwrap();
    let names: Vec<_> = systems.iter().map(|s| s["name"].as_str().unwrap()).collect();
    let expected = ["gradient descent", "exact SVD (host)", "classical_cubic", "jordan"];
    assert_eq!(names[..4], expected);
    assert_eq!(names[4..], ["polar_express_5", "tuned_bf16"]);
    assert!(error(1) < 1e-6 && error(5) < error(4) && error(4) < error(3), "{systems:?}");
    assert!(error(3) < error(2) && error(2) < error(0), "{systems:?}");
    // Five iterations of three products, each of a step's 15 a call of cublasLt.
    assert_eq!(
        (systems[3]["products"].as_u64(), systems[0]["products"].as_u64()),
        (Some(15), Some(0))
    );
    assert!(ok(here, &args).out.contains("on emulated, bf16"));
}

/// `muon doctor` where the emulated libraries are those of the machine.
fn doctor(args: &[&str], variables: &[(&str, &str)]) -> support::Said {
    let fetched = cuda_emulator::fetch_nvrtc().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let link = |file: &Path, name: &str| {
        std::os::unix::fs::symlink(file, directory.path().join(name)).unwrap();
    };
    let built = Path::new(env!("CARGO_BIN_EXE_muon")).parent().unwrap().join("deps");
    for (library, names) in [
        ("libcuda", ["libcuda.so", "libcuda.so.1"]),
        ("libcublaslt", ["libcublasLt.so", "libcublasLt.so.13"]),
    ] {
        let file = built.join(format!("libcuda_emulator_{library}.so"));
        assert!(file.is_file(), "{file:?} is not built");
        names.iter().for_each(|name| link(&file, name));
    }
    for file in std::fs::read_dir(fetched.cuda_13).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.starts_with("libnvrtc") {
            link(&file, name);
        }
    }
    let mut command = support::command(Path::new("."), args);
    command.env("LD_LIBRARY_PATH", directory.path());
    command.env("MUON_CUDA_CACHE_DIR", "");
    command.envs(variables.iter().copied());
    support::said(command.output().unwrap())
}

#[test]
fn the_doctor_tries_every_device_as_the_optimizer_would() {
    let well = doctor(&["doctor"], &[]);
    assert_eq!((well.code, well.err.as_str()), (Some(0), ""), "{}", well.out);
    for part in ["cublasLt multiplies bf16 (", "cublasLt multiplies f32 ("] {
        assert!(well.out.contains(part), "{}", well.out);
    }
    assert!(well.out.ends_with("The CUDA device can be used.\n"), "{}", well.out);
    assert!(!well.out.contains("warning"), "{}", well.out);

    // A library that makes no handle, as NVIDIA's does on a driver that is not NVIDIA's; one that knows no product of f32; a
    // device without memory for its workspace; one that is taken.
    for (fault, parts) in [
        (
            "blas_handle:1:1",
            &["creating a cublasLt handle: cublasLt: CUBLAS_STATUS_NOT_INITIALIZED (1)"][..],
        ),
        (
            "heuristic:2:15",
            &[
                "cublasLt multiplies bf16",
                "product 1024x1024x1024 in f32: choosing an algorithm: cublasLt: CUBLAS_STATUS_NOT_SUPPORTED (15)",
            ],
        ),
        ("alloc:1:2", &["CUDA_ERROR_OUT_OF_MEMORY (2)"]),
    ] {
        let found = doctor(&["doctor"], &[("CUDA_EMULATOR_FAIL", fault)]);
        assert_eq!(found.code, Some(1), "{fault}: {}{}", found.out, found.err);
        assert!(found.out.contains("NOT USABLE: "), "{fault}: {}", found.out);
        for part in parts {
            assert!(found.out.contains(part), "{fault}: {}", found.out);
        }
        let hint = found.out.contains("CUBLASLT_LOG_LEVEL=1");
        assert_eq!(hint, !fault.starts_with("alloc"), "{fault}: {}", found.out);
        assert!(found.out.ends_with("The CUDA device cannot be used; the CPU device can.\n"));
    }
    let found = doctor(
        &["doctor", "--json"],
        &[("CUDA_EMULATOR_DEVICES", "h100,a100"), ("CUDA_EMULATOR_FAIL", "blas_handle:1:1")],
    );
    let value: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!((found.code, &value["usable"]), (Some(0), &true.into()), "{value}");
    assert!(
        value["devices"][0]["problem"].as_str().unwrap().contains("cublasLt handle"),
        "{value}"
    );
    assert_eq!(value["devices"][1]["problem"], serde_json::Value::Null);
    assert_eq!(value["devices"][1]["products"][1]["precision"], "f32");
    let found = doctor(
        &["doctor"],
        &[("CUDA_EMULATOR_DEVICES", "h100,a100"), ("CUDA_EMULATOR_FAIL", "blas_handle:1:1")],
    );
    assert!(found.out.ends_with("Of the CUDA devices cuda:1 can be used.\n"), "{}", found.out);
}

#[test]
fn the_doctor_warns_of_variables_that_change_results() {
    let variables = [
        ("NVIDIA_TF32_OVERRIDE", "0"),
        ("CUBLAS_EMULATE_SINGLE_PRECISION", "1"),
        ("CUBLAS_BATCH_INVARIANCE_FLAGS", "3\u{1b}[31m"),
    ];
    let found = doctor(&["doctor"], &variables);
    assert_eq!(found.code, Some(0), "{}{}", found.out, found.err);
    for part in [
        "warning      NVIDIA_TF32_OVERRIDE=0 is set: ",
        "warning      CUBLAS_EMULATE_SINGLE_PRECISION=1 is set: ",
        "warning      CUBLAS_BATCH_INVARIANCE_FLAGS=3\\u{1b}[31m is set: ",
    ] {
        assert!(found.out.contains(part), "no `{part}` in\n{}", found.out);
    }
    let value: serde_json::Value =
        serde_json::from_str(&doctor(&["doctor", "--json"], &variables).out).unwrap();
    assert_eq!(value["warnings"][0]["variable"], "NVIDIA_TF32_OVERRIDE");
}
