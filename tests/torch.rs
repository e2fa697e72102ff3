//! PyTorch's recorded trajectories, replayed on every target, and broken on purpose.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests stop at the first surprise, print what they measured, and narrow on purpose"
)]

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
        broken("torch_adamw", "\"steps\": 7", "\"steps\": 8").verify(&options(CPU)).unwrap_err();
    assert!(e.to_string().contains("matrix.grad7"), "{e}");
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
