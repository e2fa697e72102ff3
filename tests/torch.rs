//! PyTorch's recorded trajectories, replayed on every target, and broken on purpose.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests stop at the first surprise, print what they measured, and narrow on purpose"
)]

#[path = "support/recordings.rs"]
mod recordings;

use muon_cuda::Precision;
use muon_cuda::checkpoint::TensorFile;
use muon_cuda::verify::{Against, CaseResult, OptimizerKind, Target, Trajectories, VerifyOptions};

const CPU: Target = Target::Cpu { precision: Precision::F32, threads: 2 };
const BF16: Target = Target::Cpu { precision: Precision::Bf16, threads: 2 };
const TF32: Target = Target::Cpu { precision: Precision::Tf32, threads: 2 };
const FP16: Target = Target::Cpu { precision: Precision::Fp16, threads: 2 };

fn options(target: Target) -> VerifyOptions {
    VerifyOptions::new(target)
}

fn verify(file: &str, options: &VerifyOptions) -> Vec<CaseResult> {
    let path = format!("{}/tests/data/{file}.json", env!("CARGO_MANIFEST_DIR"));
    Trajectories::load(path).unwrap().verify(options).unwrap()
}

fn failures(results: &[CaseResult]) -> Vec<String> {
    results
        .iter()
        .flat_map(|r| {
            r.checks.iter().filter(|c| !c.held).map(move |c| format!("{}: {}", r.name, c.what))
        })
        .collect()
}

#[test]
fn muon_trajectories_are_met_on_every_target() {
    for target in [Target::Reference, CPU, TF32, BF16, FP16] {
        let results = verify("torch_muon", &options(target));
        assert_eq!(results.len(), 12);
        for r in &results {
            println!(
                "{target} {}: {:.3e}, {:?}, recorded {:?}",
                r.name, r.error, r.error_bf16, r.recorded_distance
            );
        }
        assert_eq!(failures(&results), [""; 0], "{target}");
    }
}

#[test]
fn emulated_bf16_is_as_near_to_pytorchs_bf16_as_documented() {
    let results = verify("torch_muon", &VerifyOptions { against: Against::Bf16, ..options(BF16) });
    assert_eq!(failures(&results), [""; 0]);
    // Two conditions on the update, one on the momentum, one against the recorded bf16.
    assert!(results.iter().all(|r| r.checks.len() == 4));
}

#[test]
fn rounding_that_is_not_there_fails_the_bf16_check() {
    // f32 results held against what bf16 should be: too good is wrong as well.
    for r in verify("torch_muon", &options(CPU)) {
        assert!(r.error < 0.5 * r.recorded_distance.unwrap(), "{}", r.name);
    }
}

#[test]
fn tf32_errs_as_ten_bits_of_mantissa_do() {
    let (f32, fp16) = (verify("torch_muon", &options(CPU)), verify("torch_muon", &options(FP16)));
    for ((t, s), h) in verify("torch_muon", &options(TF32)).iter().zip(&f32).zip(&fp16) {
        println!("{}: tf32 {:.2e}, f32 {:.2e}, fp16 {:.2e}", t.name, t.error, s.error, h.error);
        // Operands that are not cut would err as f32 does.
        assert!(t.error > 100.0 * s.error, "{}: {:e} {:e}", t.name, t.error, s.error);
        // fp16 has as many bits and rounds stores instead of operands.
        assert!(
            (0.2..5.0).contains(&(t.error / h.error)),
            "{}: {:e} {:e}",
            t.name,
            t.error,
            h.error
        );
    }
}

#[test]
fn adamw_trajectories_are_met_on_every_target() {
    for target in [Target::Reference, CPU] {
        let results = verify("torch_adamw", &options(target));
        assert_eq!(results.len(), 3);
        assert_eq!(failures(&results), [""; 0], "{target}");
    }
}

/// The recording with one passage of its JSON replaced.
fn broken(file: &str, from: &str, to: &str) -> Trajectories {
    let base = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let json = std::fs::read_to_string(format!("{base}.json")).unwrap();
    assert!(json.contains(from), "{from}");
    let tensors = TensorFile::load(format!("{base}.safetensors")).unwrap();
    Trajectories::new(&json.replace(from, to), tensors).unwrap()
}

#[test]
fn every_wrong_ingredient_fails() {
    for (from, to) in [
        ("3.4445", "3.4444"),
        ("-4.775", "-4.7"),
        ("\"ns_steps\": 5", "\"ns_steps\": 6"),
        ("\"weight_decay\": 0.1", "\"weight_decay\": 0.0"),
        ("\"nesterov\": true", "\"nesterov\": false"),
        ("\"match_rms_adamw\"", "\"original\""),
        ("\"momentum\": 0.95", "\"momentum\": 0.9"),
        ("\"lr\": 0.02", "\"lr\": 0.021"),
    ] {
        let results = broken("torch_muon", from, to).verify(&options(CPU)).unwrap();
        assert!(!failures(&results).is_empty(), "{from} -> {to} went unnoticed");
    }
    for (from, to) in
        [("1e-08", "1e-04"), ("0.999", "0.99"), ("\"weight_decay\": 0.1", "\"weight_decay\": 0.0")]
    {
        let results = broken("torch_adamw", from, to).verify(&options(CPU)).unwrap();
        assert!(!failures(&results).is_empty(), "{from} -> {to} went unnoticed");
    }
}

#[test]
fn bad_recordings_are_errors_that_name_the_case() {
    let e = broken("torch_muon", "\"rows\": 48", "\"rows\": 49").verify(&options(CPU)).unwrap_err();
    assert!(e.is_shape_mismatch() && e.to_string().contains("case `wide`"), "{e}");
    let e = broken("torch_muon", "\"name\": \"odd\"", "\"name\": \"add\"")
        .verify(&options(CPU))
        .unwrap_err();
    assert!(e.to_string().contains("add"), "{e}");
    let e = broken("torch_muon", "match_rms_adamw", "match_rms_adam")
        .verify(&options(CPU))
        .unwrap_err();
    assert!(e.to_string().contains("did you mean `match_rms_adamw`"), "{e}");
    let e =
        broken("torch_muon", "\"lr\": 0.02", "\"lr\": -0.02").verify(&options(CPU)).unwrap_err();
    assert!(e.is_invalid_config(), "{e}");
    let e =
        broken("torch_adamw", "\"steps\": 7", "\"steps\": 6").verify(&options(CPU)).unwrap_err();
    assert!(e.to_string().contains("`matrix.grad6` is the gradient of no step"), "{e}");
    let empty = TensorFile::load(format!(
        "{}/tests/data/torch_adamw.safetensors",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap();
    assert!(Trajectories::new("{}", empty.clone()).unwrap_err().is_parse());
    assert!(
        Trajectories::new("{\"optimizer\":\"muon\",\"cases\":[]}", empty).unwrap_err().is_parse()
    );
    assert!(Trajectories::load("no/such/file.json").unwrap_err().is_io());
    assert_eq!(broken("torch_adamw", "matrix", "matrix").optimizer(), OptimizerKind::AdamW);
}

#[test]
fn every_field_is_replayed_and_none_is_ignored() {
    for sample in recordings::samples() {
        for target in [Target::Reference, CPU] {
            let run = |right| {
                let (json, tensors) = sample.files(right);
                let recording = Trajectories::new(&json, tensors).unwrap();
                recording.verify(&options(target)).unwrap().remove(0)
            };
            let (right, wrong) = (run(true), run(false));
            println!(
                "{} {target}: {:.1e} of {:.1e}, wrong {:.1e} of {:.1e}",
                sample.case["name"], right.error, right.tolerance, wrong.error, wrong.tolerance
            );
            assert!(right.passed(), "{} {target}: {:?}", sample.case["name"], right.checks);
            assert!(!wrong.passed(), "{}: {} is not read", sample.case["name"], sample.field);
        }
    }
}

#[test]
fn a_framework_that_rounds_every_product_is_no_measure_for_a_fused_iteration() {
    let sample = recordings::unfused_with_f64();
    let run = |right, options| {
        let (json, tensors) = sample.files(right);
        Trajectories::new(&json, tensors).unwrap().verify(&options).unwrap().remove(0)
    };
    let bf16 = VerifyOptions { against: Against::Bf16, ..options(BF16) };
    let right = run(true, bf16);
    println!("{:?}", right.checks);
    assert!(right.passed(), "{:?}", right.checks);
    // Fused, the iteration errs too little by half.
    let wrong = run(false, bf16);
    let missed: Vec<_> = wrong.checks.iter().filter(|c| !c.held).map(|c| &c.what).collect();
    assert!(missed.len() == 1 && missed[0].contains("recorded distance"), "{missed:?}");
}

#[test]
fn one_tolerance_judges_a_check_here_and_in_the_documents() {
    // Jordan's five iterations amplify rounding by 484.9: 8 · 2⁻²⁴ · 484.9 = 2.3e-4, and `rank_one` needs 1.1e-4 of it.
    for target in [Target::Reference, CPU] {
        let results = verify("degenerate_trajectories", &options(target));
        assert_eq!(results.len(), 12);
        assert_eq!(failures(&results), [""; 0], "{target}");
    }
    let results = verify("degenerate_trajectories", &options(CPU));
    for r in &results {
        assert!((r.tolerance / 2.312e-4 - 1.0).abs() < 1e-3, "{}: {}", r.name, r.tolerance);
        assert!(r.checks[0].what.ends_with("<= 2.3e-4"), "{}", r.checks[0].what);
    }
    assert!(results.iter().any(|r| r.name == "rank_one" && r.error > 1e-4));
    // What is asked for takes the place of all of it.
    let strict = VerifyOptions { tolerance: Some(1e-4), ..options(CPU) };
    assert_eq!(failures(&verify("degenerate_trajectories", &strict)).len(), 1);
}

#[test]
fn a_thin_matrix_is_judged_by_what_few_roundings_can_say() {
    // One row has one singular value, 1, and its five iterations are a handful of roundings of one number: two bf16 iterations
    // that differ in one store end up to 2.7 times apart in either direction.
    let rows = [
        ("\"rel_bf16_vs_f64_of_update\": 0.014813455753028393", 0.014_813),
        ("\"rel_bf16_vs_f64_of_update\": 0.009570431895554066", 0.009_570),
        ("\"rel_bf16_vs_f64_of_update\": 0.007318513467907906", 0.007_319),
    ];
    let run = |i: usize, factor: f64, name: &str| {
        let (from, recorded) = rows[i];
        let to = format!("\"rel_bf16_vs_f64_of_update\": {}", factor * recorded);
        let results = broken("torch_muon", from, &to).verify(&options(BF16)).unwrap();
        results.iter().find(|r| r.name == name).unwrap().passed()
    };
    for factor in [0.25, 1.0, 4.0] {
        assert!(run(0, factor, "row"), "{factor}");
    }
    // Seven rows have 28 roundings to average; 64 have 2080, where a factor of two is the limit.
    assert!(run(1, 0.6, "odd") && run(1, 1.7, "odd") && !run(1, 3.0, "odd"));
    assert!(run(2, 0.7, "square") && !run(2, 2.5, "square") && !run(2, 0.3, "square"));
    // On a single row rounding that is not there is seen all the same: f32 errs 1e-4 times as much.
    assert!(!run(0, 1e4, "row") && !run(0, 1e-4, "row"));
}

#[test]
fn an_unknown_field_is_an_error_that_names_it() {
    let with = |from: &str, to: &str| {
        let base = format!("{}/tests/data/torch_muon", env!("CARGO_MANIFEST_DIR"));
        let json = std::fs::read_to_string(format!("{base}.json")).unwrap();
        let tensors = TensorFile::load(format!("{base}.safetensors")).unwrap();
        Trajectories::new(&json.replacen(from, to, 1), tensors)
    };
    for (from, to, named) in [
        ("\"lr\": 0.02", "\"lr\": 0.02, \"dampening\": 0.1", "`dampening`"),
        ("\"ns_steps\"", "\"cooldown\": 1, \"ns_steps\"", "`cooldown`"),
        ("\"lr\": 0.02", "\"lr\": 0.02, \"nestrov\": true", "did you mean `nesterov`"),
        (
            "\"lr\": 0.02",
            "\"lr\": 0.02, \"betas\": [0.9, 0.99]",
            "`betas` belongs to recordings of AdamW",
        ),
    ] {
        let e = with(from, to).unwrap_err().to_string();
        assert!(e.contains(named), "{e}");
    }
    let told = "\"lr\": 0.02, \"note\": 1, \"reference\": {}, \"commit\": \"\", \"file\": [], \"gradients\": \"plain\", \"rel_x\": 2";
    with("\"lr\": 0.02", told).unwrap();
}

#[test]
fn a_field_out_of_its_range_is_an_error_that_says_what_is_expected() {
    let samples = recordings::samples();
    let plain = samples.iter().find(|s| s.field == "momentum").unwrap();
    let interleaved = samples.iter().find(|s| s.field == "split_interleaved").unwrap();
    for (sample, field, value, expected) in [
        (plain, "lr", serde_json::json!([0.1, 0.2]), "one number for each of 4 steps"),
        (plain, "lr", serde_json::json!("fast"), "field `lr`"),
        (plain, "ns_steps", serde_json::json!(0), "ns_steps: expected at least"),
        (plain, "ns_steps", serde_json::json!(1_000_000), "at most 128"),
        (plain, "steps", serde_json::json!(u64::MAX), "steps: expected 1 to"),
        (plain, "ns_coefficients", serde_json::json!([]), "field `ns_coefficients`"),
        (plain, "ns_coefficients", serde_json::json!([[1.0]]), "field `ns_coefficients`"),
        (plain, "adjust_lr_fn", serde_json::json!({ "rms": -1.0 }), "positive finite factor"),
        (plain, "adjust_lr_fn", serde_json::json!({ "rsm": 1.0 }), "field `adjust_lr_fn`"),
        (plain, "momentum_mode", serde_json::json!("nag"), "expected one of `ema`, `sum`"),
        (plain, "weight_decay_mode", serde_json::json!("lion"), "`palm`"),
        (plain, "arithmetic", serde_json::json!("exact"), "`unfused`"),
        (plain, "param_dtype", serde_json::json!("f16"), "`f32`, `bf16`"),
        (plain, "param_dtype", serde_json::json!("bf16"), "values that bf16 holds exactly"),
        (plain, "bf16_params", serde_json::json!("nearest"), "needs `param_dtype`"),
        (plain, "view", serde_json::json!("conv"), "at least 3 dimensions"),
        (plain, "heads", serde_json::json!(0), "positive number"),
        (plain, "heads", serde_json::json!(4), "divides fan-out 6"),
        (plain, "split", serde_json::json!([5, 2]), "add up to fan-out 6"),
        (interleaved, "heads", serde_json::json!(2), "one of `heads`, `split`"),
        (
            interleaved,
            "split_interleaved",
            serde_json::json!({ "groups": usize::MAX, "rows": [usize::MAX, 2] }),
            "= 12, the fan-out",
        ),
        (
            interleaved,
            "split_interleaved",
            serde_json::json!({ "groups": 12, "rows": [1, 0] }),
            "positive sizes",
        ),
        (
            interleaved,
            "split_interleaved",
            serde_json::json!({ "groups": 0, "rows": [] }),
            "fan-out",
        ),
        (
            interleaved,
            "split_interleaved",
            serde_json::json!({ "groups": 2 }),
            "missing field `rows`",
        ),
    ] {
        let (json, tensors) = sample.files(true);
        let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["cases"][0][field] = value;
        let e = Trajectories::new(&json.to_string(), tensors)
            .and_then(|t| t.verify(&options(CPU)))
            .unwrap_err()
            .to_string();
        assert!(e.contains(expected) && e.contains("case `"), "{field}: {e}");
    }
}
