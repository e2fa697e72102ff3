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
        [&["orthogonalize", "in.safetensors", "out.safetensors", "--force", "--json", "-q"], more]
            .concat();
    let json: serde_json::Value = serde_json::from_str(&ok(dir, &args).out).unwrap();
    json.as_array().unwrap().clone()
}

#[test]
fn a_file_that_is_there_is_replaced_by_force_alone() {
    let dir = tempfile::tempdir().unwrap();
    write_input(&dir.path().join("in.safetensors"));
    let output = dir.path().join("out.safetensors");
    fs::write(&output, "years of work").unwrap();
    let args = ["orthogonalize", "in.safetensors", "out.safetensors", "-q"];
    let refused = muon(dir.path(), &args);
    assert!(
        refused.code == Some(2) && refused.err.contains("--force"),
        "{:?} {}",
        refused.code,
        refused.err
    );
    assert_eq!(fs::read(&output).unwrap(), b"years of work");
    ok(dir.path(), &[&args[..], &["--force"]].concat());
    assert!(TensorFile::load(&output).is_ok());
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

/// The 6 × 9 matrix of a case, whose elements are exact in every type that takes the scale.
fn at_scale(scale: f64) -> Vec<f64> {
    // Multiples of 2⁻³ below 1 have three bits: subnormals hold them to the last but two.
    let values = sample(54, 9);
    values.iter().map(|x| (f64::from(*x) * 8.0).round() / 8.0 * scale).collect()
}

#[test]
fn the_ends_of_every_type_are_orthogonalized_on_every_device() {
    let dir = tempfile::tempdir().unwrap();
    let two = |e: i32| 2f64.powi(e);
    let f64s = [1e-60, 1e300, 1e-300, 1e37, two(-1065), two(1023), 1e-160, 1e160];
    let f32s = [two(-146), two(-130), two(127), 1.0];
    let bf16s = [two(-130), two(127)];
    let f16s = [two(-21), two(15)];
    let mut w = TensorFileWriter::new();
    let shape = [6, 9];
    let bytes = |dtype: TensorDtype, scale: f64| -> Vec<u8> {
        let values = at_scale(scale).into_iter();
        match dtype {
            TensorDtype::F64 => values.flat_map(f64::to_le_bytes).collect(),
            #[expect(clippy::cast_possible_truncation, reason = "exact")]
            TensorDtype::F32 => values.flat_map(|x| (x as f32).to_le_bytes()).collect(),
            TensorDtype::BF16 => {
                values.flat_map(|x| half::bf16::from_f64(x).to_le_bytes()).collect()
            }
            _ => values.flat_map(|x| half::f16::from_f64(x).to_le_bytes()).collect(),
        }
    };
    for (dtype, scales) in [
        (TensorDtype::F64, &f64s[..]),
        (TensorDtype::F32, &f32s),
        (TensorDtype::BF16, &bf16s),
        (TensorDtype::F16, &f16s),
    ] {
        for scale in scales {
            w.tensor(&format!("{dtype}_{scale:e}"), dtype, &shape, bytes(dtype, *scale)).unwrap();
        }
    }
    w.save(dir.path().join("in.safetensors")).unwrap();
    for device in ["cpu", "reference"] {
        for (args, limit) in [(&["--exact"][..], 0.0), (&["--schedule", "jordan"], 0.4)] {
            let all = report(dir.path(), &[args, &["--device", device]].concat());
            assert_eq!(all.len(), 16);
            for t in &all {
                // The rounding of what is written: 2⁻⁸, 2⁻¹¹, 2⁻²⁴, Frobenius-averaged, and f32 arithmetic.
                let rounding = match t["dtype"].as_str().unwrap() {
                    "BF16" => 4e-3,
                    "F16" => 5e-4,
                    _ => 1e-6,
                };
                let error = t["polar"].as_f64().unwrap();
                assert!(error < rounding + limit, "{device} {t}");
            }
        }
        // What is a power of two apart has the same factor, bit for bit.
        let out = TensorFile::load(dir.path().join("out.safetensors")).unwrap();
        let bits = |scale: f64| out.bytes(&format!("F64_{scale:e}")).unwrap().to_vec();
        assert_eq!(bits(two(-1065)), bits(two(1023)), "{device}");
        let f32_bits = |scale: f64| out.bytes(&format!("F32_{scale:e}")).unwrap().to_vec();
        assert_eq!(f32_bits(two(-146)), f32_bits(1.0), "{device}");
    }
}

#[test]
fn convolutions_methods_iterations_and_unsafe_schedules() {
    let dir = tempfile::tempdir().unwrap();
    let values = sample(8 * 3 * 2 * 2, 7);
    let mut w = TensorFileWriter::new();
    w.values::<f32>("conv", &[8, 3, 2, 2], &values).unwrap();
    w.values::<f32>("flat", &[8, 12], &values).unwrap();
    w.save(dir.path().join("in.safetensors")).unwrap();
    for device in ["cpu", "reference"] {
        let both = report(dir.path(), &["--device", device]);
        assert_eq!(both.len(), 2);
        assert_eq!(
            [&both[0]["matrices"], &both[0]["rows"], &both[0]["cols"]],
            [&1.into(), &8.into(), &serde_json::Value::from(12)]
        );
        let out = TensorFile::load(dir.path().join("out.safetensors")).unwrap();
        assert_eq!(out.shape("conv").unwrap(), [8, 3, 2, 2]);
        assert_eq!(out.bytes("conv").unwrap(), out.bytes("flat").unwrap(), "{device}");
    }
    let table = ok(dir.path(), &["orthogonalize", "in.safetensors", "o.safetensors", "-q"]).out;
    assert!(table.contains("1 of 8 × 12"), "{table}");

    let jordan = ["--schedule", "jordan", "--only", "flat"];
    let method = |more: &[&str]| {
        report(dir.path(), &[&jordan[..], more].concat())[0]["method"].as_str().unwrap().to_owned()
    };
    assert!(method(&["--method", "standard"]).contains("standard"));
    assert!(method(&["--method", "gram:3,2"]).contains("gram(3,2)"));
    assert!(method(&["--method", "gram:4,3", "--iterations", "7"]).contains("gram(4,3)"));
    // The classical cubic converges: the more iterations, the nearer.
    let error = |n: &str, device: &str| {
        let args = ["--schedule", "classical_cubic", "--iterations", n, "--device", device];
        report(dir.path(), &args)[0]["polar"].as_f64().unwrap()
    };
    for device in ["cpu", "reference"] {
        assert!(error("30", device) < 1e-5 && error("2", device) > 0.1, "{device}");
    }

    let run = |more: &[&str]| {
        let args = [&["orthogonalize", "in.safetensors", "u.safetensors", "-q"], more].concat();
        muon(dir.path(), &args)
    };
    let diverging = ["--schedule", "nonic3_band12", "--precision", "bf16"];
    let said = run(&diverging);
    assert_eq!(said.code, Some(2), "{}", said.err);
    for word in ["--accept-unsafe", "nonic3_band12"] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    assert!(!said.err.contains("1x1"), "no matrix of the file is 1x1: {}", said.err);
    let said = run(&[&diverging[..], &["--accept-unsafe"]].concat());
    assert_eq!(said.code, Some(0), "{}", said.err);
    for (args, word) in [
        (&["--iterations", "0"][..], "at least 1"),
        (&["--iterations", "100000"], "at most 300"),
        (&["--iterations", "4"], "exactly 5 iterations"),
        (&["--iterations", "4", "--device", "reference"], "exactly 5 iterations"),
        (&["--method", "gram:9"], "add up"),
        (&["--method", "gram"], "gram:3,2"),
        (&["--method", "standard", "--device", "reference"], "--method belongs"),
        (&["--accept-unsafe", "--device", "reference"], "--accept-unsafe belongs"),
        (&["--exact", "--iterations", "4"], "cannot be used with"),
        (&["--exact", "--method", "standard"], "cannot be used with"),
        (&["--exact", "--accept-unsafe"], "cannot be used with"),
        (&["--exact", "--precision", "bf16"], "cannot be used with"),
    ] {
        let said = run(args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(word), "{args:?}: {}", said.err);
    }
}

#[test]
fn a_folder_of_shards_becomes_a_folder_of_shards() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    let names = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"];
    let (a, b, bias) = (sample(6 * 4, 1), sample(4 * 6, 2), sample(6, 3));
    let shard = |path: &Path, tensors: &[(&str, &[usize], &[f32])]| {
        let mut w = TensorFileWriter::new();
        w.metadata("format", "pt");
        for (name, shape, values) in tensors {
            w.values::<f32>(name, shape, values).unwrap();
        }
        w.save(path).unwrap();
    };
    shard(&model.join(names[0]), &[("z", &[6, 4], &a), ("bias", &[6], &bias)]);
    shard(&model.join(names[1]), &[("b", &[4, 6], &b)]);
    let index = format!(
        r#"{{"metadata":{{}},"weight_map":{{"z":"{0}","bias":"{0}","b":"{1}"}}}}"#,
        names[0], names[1]
    );
    fs::write(model.join("m.safetensors.index.json"), &index).unwrap();
    let whole = dir.path().join("whole.safetensors");
    shard(&whole, &[("z", &[6, 4], &a), ("bias", &[6], &bias), ("b", &[4, 6], &b)]);

    ok(dir.path(), &["orthogonalize", "whole.safetensors", "one.safetensors", "-q"]);
    let one = TensorFile::load(dir.path().join("one.safetensors")).unwrap();
    for (input, output) in [("model", "out"), ("model/m.safetensors.index.json", "out2")] {
        let said = ok(dir.path(), &["orthogonalize", input, output, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        let treated: Vec<&str> =
            json.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
        assert_eq!(treated, ["b", "z"]);
        let mut found: Vec<_> = fs::read_dir(dir.path().join(output))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        found.sort_unstable();
        assert_eq!(found, [names[0], names[1], "m.safetensors.index.json"]);
        for (name, shard) in [("z", names[0]), ("bias", names[0]), ("b", names[1])] {
            let file = TensorFile::load(dir.path().join(output).join(shard)).unwrap();
            assert_eq!(file.bytes(name).unwrap(), one.bytes(name).unwrap(), "{name}");
            assert_eq!(file.metadata()["format"], "pt");
        }
        // What is there is not written over, and a failure leaves nothing behind.
        let said = muon(dir.path(), &["orthogonalize", input, output]);
        assert_eq!(said.code, Some(2), "{}", said.err);
        assert!(said.err.contains("is there already"), "{}", said.err);
    }
    let mut bad = b.clone();
    bad[5] = f32::INFINITY;
    shard(&model.join(names[1]), &[("b", &[4, 6], &bad)]);
    let before = fs::read_dir(dir.path()).unwrap().count();
    let said = muon(dir.path(), &["orthogonalize", "model", "out3", "-q"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("`b`") && said.err.contains("inf"), "{}", said.err);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "nothing is left");
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
        (&["compare", "--shape", "100000x100000"], "at most 16777216"),
        (&["compare", "--shape", "18446744073709551615x18446744073709551615"], "at most 16777216"),
        (&["compare", "--device", "reference", "--precision", "bf16"], "f64"),
    ] {
        let said = muon(here, args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(word), "{args:?}: {}", said.err);
    }
}
