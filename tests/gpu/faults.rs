//! Failures: every allocation, launch, product and copy in turn; what holds afterwards.

use cuda_emulator::{Config, Fault, FaultSite};
use muon_cuda::{
    AdamWRule, Cuda, Muon, MuonConfig, MuonRule, Orthogonalizer, ParamSpec, Result, StepOptions,
    StepTensor,
};

use crate::device::{Offset, Session, only_on_the_emulator};
use crate::support::Random;

/// `CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES`, `CUDA_ERROR_OUT_OF_MEMORY`, `CUBLAS_STATUS_EXECUTION_FAILED`, `…_NOT_INITIALIZED`,
/// `…_NOT_SUPPORTED`, `CUDA_ERROR_INVALID_VALUE`: none of them ends the context when a call returns it.
const PASSING: [(FaultSite, i32); 6] = [
    (FaultSite::Launch, 701),
    (FaultSite::Allocation, 2),
    (FaultSite::Blas, 13),
    (FaultSite::BlasHandle, 1),
    (FaultSite::Heuristic, 15),
    (FaultSite::Copy, 1),
];

/// What a run came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// Bits of the parameters at the end.
    params: Vec<Vec<u32>>,
    error: Option<String>,
    torn: bool,
    /// Whether a later step was refused.
    refused: bool,
}

/// Two matrices of different shape and a vector; a step that fails is tried once more.
fn run(steps: usize) -> Result<Outcome> {
    let mut muon: Muon<Cuda> = Muon::new(Cuda::new(0)?, MuonConfig::default())?;
    let rule =
        MuonRule { orthogonalizer: Orthogonalizer::preset("jordan")?, ..MuonRule::default() };
    let hidden = muon.add_group("hidden", rule)?;
    let rest = muon.add_group("rest", AdamWRule::default())?;
    let shapes: [&[usize]; 3] = [&[6, 9], &[8, 5], &[7]];
    let mut random = Random::new(1);
    let stream = std::sync::Arc::clone(muon.device().stream());
    let mut params = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let group = if shape.len() == 2 { hidden } else { rest };
        let id = muon.add_param(group, ParamSpec::new(format!("p{i}"), shape))?;
        let len = shape.iter().product();
        let (p, g) = (random.normals(len), random.normals(len));
        params.push((id, Offset::new(&stream, &p, 0), Offset::new(&stream, &g, 0)));
    }
    let mut outcome = Outcome { params: Vec::new(), error: None, torn: false, refused: false };
    let mut left = steps;
    while left > 0 {
        left -= 1;
        let mut tensors: Vec<_> =
            params.iter_mut().map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad())).collect();
        let result = muon.step(&StepOptions::default(), &mut tensors);
        drop(tensors);
        match result {
            Ok(_) => {}
            Err(e) if outcome.error.is_none() => {
                outcome.error = Some(e.to_string());
                outcome.torn = muon.torn().is_some();
                // What failed is tried once more.
                left += 1;
            }
            Err(e) => {
                outcome.refused = e.is_torn();
                assert!(
                    muon.checkpoint().is_err_and(|e| e.is_torn()),
                    "a torn optimizer must not be saved"
                );
                break;
            }
        }
    }
    let _ = stream.synchronize();
    for (_, p, _) in &params {
        outcome.params.push(p.download().iter().map(|x| x.to_bits()).collect());
    }
    Ok(outcome)
}

fn with_fault(site: FaultSite, nth: u64, status: i32, steps: usize) -> Option<Result<Outcome>> {
    let mut config = Config::with_seed(1);
    config.faults = vec![Fault { site, nth, status }];
    let session = Session::with_config(config);
    let result = std::panic::catch_unwind(|| run(steps));
    // The test's own uploads may be what fails: those unwrap.
    let _ = session;
    result.ok()
}

#[test]
fn every_failed_call_is_an_error_that_leaves_whole_steps_or_says_which_are_torn() {
    if !only_on_the_emulator("faults are planted in the emulator") {
        return;
    }
    let session = Session::new(1);
    let undisturbed = run(3).unwrap();
    session.finish();
    assert_eq!(undisturbed.error, None);
    let mut torn = 0;
    let mut retried = 0;
    for (site, status) in PASSING {
        let mut passed = 0;
        for nth in 1.. {
            let Some(result) = with_fault(site, nth, status, 3) else { continue };
            let error = match &result {
                Err(e) => Some(e.to_string()),
                Ok(outcome) => outcome.error.clone(),
            };
            let of_cublas_lt =
                [FaultSite::Blas, FaultSite::BlasHandle, FaultSite::Heuristic].contains(&site);
            if let Some(error) = error.filter(|_| of_cublas_lt) {
                assert!(error.contains("CUBLASLT_LOG_LEVEL=1"), "{site:?} {nth}: {error}");
            }
            match result {
                // Making the optimizer failed: an error, and nothing exists.
                Err(e) => assert!(!e.to_string().is_empty()),
                Ok(outcome) => match &outcome.error {
                    None => {
                        assert_eq!(
                            outcome.params, undisturbed.params,
                            "{site:?} {nth}: undisturbed"
                        );
                        passed += 1;
                        if passed > 1 {
                            break;
                        }
                    }
                    Some(error) if outcome.torn => {
                        assert!(error.contains("half stepped: `p"), "{site:?} {nth}: {error}");
                        assert!(
                            outcome.refused,
                            "{site:?} {nth}: a torn optimizer went on: {error}"
                        );
                        torn += 1;
                    }
                    // Nothing had happened: tried once more, the steps give what they give undisturbed.
                    Some(error) => {
                        assert_eq!(outcome.params, undisturbed.params, "{site:?} {nth}: {error}");
                        retried += 1;
                    }
                },
            }
        }
    }
    println!("{torn} torn, {retried} clean");
    assert!(torn > 10 && retried > 5, "{torn} torn, {retried} clean");
}

#[test]
fn after_a_sticky_error_every_call_returns_the_first_cause() {
    if !only_on_the_emulator("faults are planted in the emulator") {
        return;
    }
    let mut config = Config::with_seed(1);
    // An illegal address in some launch of the first step.
    config.faults = vec![Fault { site: FaultSite::Launch, nth: 12, status: 700 }];
    let _session = Session::with_config(config);
    let mut muon: Muon<Cuda> = Muon::new(Cuda::new(0).unwrap(), MuonConfig::default()).unwrap();
    let hidden = muon.add_group("hidden", MuonRule::default()).unwrap();
    let id = muon.add_param(hidden, ParamSpec::new("w", &[6, 9])).unwrap();
    let stream = std::sync::Arc::clone(muon.device().stream());
    let mut p = Offset::new(&stream, &[1.0f32; 54], 0);
    let g = Offset::new(&stream, &[0.5f32; 54], 0);
    let mut first = None;
    for _ in 0..20 {
        let step =
            muon.step(&StepOptions::default(), &mut [StepTensor::new(id, p.param(), g.grad())]);
        if let Err(e) = step.and_then(|_| muon.synchronize()) {
            first = Some(e);
            break;
        }
    }
    let first = first.unwrap();
    assert_eq!(first.cuda_status(), Some(700), "{first}");
    for error in [
        muon.synchronize().unwrap_err(),
        muon.counters(id).unwrap_err(),
        muon.checkpoint().unwrap_err(),
        muon.step(&StepOptions::default(), &mut [StepTensor::new(id, p.param(), g.grad())])
            .unwrap_err(),
    ] {
        assert!(error.is_torn() || error.cuda_status() == Some(700), "{error}");
        assert!(error.to_string().contains("700"), "{error}");
    }
}
