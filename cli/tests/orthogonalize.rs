//! Orthogonalizing files: right numbers, untouched neighbours, untouched inputs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;

use muon_cuda::checkpoint::{TensorDtype, TensorFile, TensorFileWriter};
use support::{muon, ok};

/// Fixed pseudo-random numbers in (−1, 1).
fn sample(n: usize, mut seed: u64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            f32::from(u16::try_from(seed >> 48).unwrap()) / 32768.0 - 1.0
        })
        .collect()
}

fn write_input(path: &Path) {
    let (wide, tall, experts, bias) =
        (sample(24 * 40, 1), sample(33 * 17, 2), sample(3 * 8 * 16, 3), sample(24, 4));
    let half: Vec<half::bf16> = sample(12 * 12, 5).into_iter().map(half::bf16::from_f32).collect();
    let mut w = TensorFileWriter::new();
    w.metadata("origin", "a test");
    w.values::<f32>("block.wide", &[24, 40], &wide).unwrap();
    w.values::<f32>("block.tall", &[33, 17], &tall).unwrap();
    w.values::<f32>("experts", &[3, 8, 16], &experts).unwrap();
    w.values::<f32>("bias", &[24], &bias).unwrap();
    w.values("half", &[12, 12], &half).unwrap();
    w.tensor("steps", TensorDtype::I64, &[], 7i64.to_le_bytes().to_vec()).unwrap();
    w.save(path).unwrap();
}

fn report(dir: &Path, more: &[&str]) -> Vec<serde_json::Value> {
    let args =
        [&["orthogonalize", "in.safetensors", "out.safetensors", "--json", "-q"], more].concat();
    let json: serde_json::Value = serde_json::from_str(&ok(dir, &args).out).unwrap();
    json.as_array().unwrap().clone()
}

#[test]
fn every_matrix_is_orthogonalized_and_everything_else_copied() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.safetensors");
    write_input(&input);
    let before = fs::read(&input).unwrap();

    let exact = report(dir.path(), &["--exact"]);
    let names: Vec<&str> = exact.iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["block.tall", "block.wide", "experts", "half"]);
    for t in &exact {
        // f32 SVD, or the rounding of bf16 storage (2⁻⁸, Frobenius-averaged).
        let limit = if t["dtype"] == "BF16" { 4e-3 } else { 2e-5 };
        assert!(
            t["polar"].as_f64().unwrap() < limit && t["gram"].as_f64().unwrap() < 2.0 * limit,
            "{t}"
        );
    }
    let (a, b) = (
        TensorFile::load(&input).unwrap(),
        TensorFile::load(dir.path().join("out.safetensors")).unwrap(),
    );
    assert!(a.names().eq(b.names()));
    assert_eq!(b.metadata()["origin"], "a test");
    for name in a.names() {
        assert_eq!(
            (a.dtype(name).unwrap(), a.shape(name).unwrap()),
            (b.dtype(name).unwrap(), b.shape(name).unwrap())
        );
        let copied = ["bias", "steps"].contains(&name);
        assert_eq!(a.bytes(name).unwrap() == b.bytes(name).unwrap(), copied, "{name}");
    }
    assert_eq!(fs::read(&input).unwrap(), before);
}

#[test]
fn polynomials_land_in_their_band_on_both_devices() {
    let dir = tempfile::tempdir().unwrap();
    write_input(&dir.path().join("in.safetensors"));
    for (schedule, limit) in [("polar_express_5", 0.15), ("jordan", 0.35)] {
        let cpu = report(dir.path(), &["--schedule", schedule]);
        let reference = report(dir.path(), &["--schedule", schedule, "--device", "reference"]);
        for (c, r) in cpu.iter().zip(&reference) {
            let error = |t: &serde_json::Value| t["polar"].as_f64().unwrap();
            assert!(error(c) < limit, "{schedule} {c}");
            // f32 against f64: five iterations of slope 4 amplify 2⁻²⁴ to below 1e-3 of the error.
            assert!((error(c) - error(r)).abs() < 2e-3, "{c} {r}");
        }
    }
    let cheap = report(dir.path(), &["--no-exact-error"]);
    assert!(cheap.iter().all(|t| t["polar"].is_null()));
}

#[test]
fn globs_choose_and_the_input_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.safetensors");
    write_input(&input);
    let before = fs::read(&input).unwrap();
    assert_eq!(report(dir.path(), &["--only", "block.*"]).len(), 2);

    for out in ["in.safetensors", "./in.safetensors"] {
        let said = muon(dir.path(), &["orthogonalize", "in.safetensors", out]);
        assert_eq!(said.code, Some(2), "{}", said.err);
        assert!(said.err.contains("is the input"), "{}", said.err);
    }
    let said =
        muon(dir.path(), &["orthogonalize", "in.safetensors", "x.safetensors", "--only", "head*"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("no matrix of in.safetensors matches `head*`"), "{}", said.err);
    assert!(!dir.path().join("x.safetensors").exists());
    assert_eq!(fs::read(&input).unwrap(), before);
}

#[test]
fn damaged_and_non_finite_files_are_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut w = TensorFileWriter::new();
    let values = [1.0, f32::NAN, 0.5, 2.0];
    w.values::<f32>("weight", &[2, 2], &values).unwrap();
    w.save(dir.path().join("nan.safetensors")).unwrap();
    write_input(&dir.path().join("in.safetensors"));
    let bytes = fs::read(dir.path().join("in.safetensors")).unwrap();
    fs::write(dir.path().join("cut.safetensors"), &bytes[..bytes.len() - 3]).unwrap();
    for (input, device) in [("nan", "cpu"), ("nan", "reference"), ("cut", "cpu")] {
        let file = format!("{input}.safetensors");
        let said =
            muon(dir.path(), &["orthogonalize", &file, "out.safetensors", "--device", device]);
        assert_eq!(said.code, Some(1), "{}", said.err);
        let named = if input == "nan" { "`weight`" } else { "cut.safetensors" };
        assert!(said.err.contains(named), "{}", said.err);
        assert!(!dir.path().join("out.safetensors").exists());
    }
}

#[test]
fn systems_are_compared_from_gradient_descent_to_the_exact_factor() {
    let here = Path::new(".");
    let compare = |more: &[&str]| -> serde_json::Value {
        let args = [&["compare", "--shape", "20x12", "--json"], more].concat();
        serde_json::from_str(&ok(here, &args).out).unwrap()
    };
    for device in ["cpu", "reference"] {
        let value = compare(&["--device", device]);
        let systems = value["systems"].as_array().unwrap();
        let errors: Vec<f64> = systems.iter().map(|s| s["error"].as_f64().unwrap()).collect();
        let [descent, exact, cubic, jordan, express] = errors[..] else { panic!("{errors:?}") };
        // Better polynomials are nearer to the polar factor, and none is the factor.
        assert!(descent > cubic && cubic > express && jordan > express && express > exact);
        assert!(exact < if device == "cpu" { 1e-6 } else { 1e-12 }, "{exact:e}");
    }
    let table = ok(here, &["compare", "--spectrum", "power:1", "--precision", "tf32"]).out;
    assert!(table.contains("spectrum power:1, on cpu, tf32"), "{table}");
    for (args, word) in [
        (&["compare", "--shape", "96"][..], "ROWSxCOLS"),
        (&["compare", "--schedule", "nope"], "nope"),
        (&["compare", "--schedule", "nonic3_band12", "--precision", "tf32"], "tuned_bf16"),
        (&["compare", "--spectrum", "red"], "red"),
        (&["compare", "--device", "reference", "--precision", "bf16"], "f64"),
    ] {
        let said = muon(here, args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(word), "{args:?}: {}", said.err);
    }
}
