//! Events of feature `tracing`: what a subscriber is told, on the CPU and on CUDA.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use muon_cuda::{
    Cpu, FoundNonFinite, Muon, MuonConfig, MuonRule, Orthogonalizer, ParamSpec, StepOptions,
    StepTensor,
};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps every event of ours as a line: level, message, fields.
struct Lines(Arc<Mutex<Vec<String>>>);

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            write!(self.fields, " {}={value:?}", field.name()).unwrap();
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "muon_cuda"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = event.metadata().level();
        self.0.lock().unwrap().push(format!("{level} {}{}", line.message, line.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What is said meanwhile.
fn said(work: impl FnOnce()) -> Vec<String> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Lines(Arc::clone(&lines)), work);
    let lines = lines.lock().unwrap();
    lines.clone()
}

#[test]
fn the_cpu_tells_its_plan_and_what_it_skips() {
    let mut muon = Muon::new(Cpu::new().unwrap(), MuonConfig::default()).unwrap();
    let rule = MuonRule {
        orthogonalizer: Orthogonalizer::preset("jordan").unwrap(),
        ..MuonRule::default()
    };
    let hidden = muon.add_group("hidden", rule).unwrap();
    let id = muon.add_param(hidden, ParamSpec::new("w", &[3, 4])).unwrap();
    let mut w = vec![1.0f32; 12];
    let (good, bad) = (vec![0.5f32; 12], vec![f32::NAN; 12]);
    let step = |muon: &mut Muon<Cpu>, w: &mut Vec<f32>, grad: &Vec<f32>, options| {
        muon.step(&options, &mut [StepTensor::new(id, w, grad)]).unwrap();
    };
    let plan = said(|| step(&mut muon, &mut w, &good, StepOptions::default()));
    assert_eq!(plan.len(), 2, "{plan:?}");
    assert!(plan[0].starts_with("INFO plan buckets=1 matrices=1 chunks=1 gemm_flops="), "{plan:?}");
    assert!(
        plan[1].starts_with(
            "INFO bucket shape=3x4 matrices=1 orthogonalizer=\"jordan\" method=\"standard\" reason=\"standard form"
        ),
        "{plan:?}"
    );
    // A step that does what it always does says nothing.
    assert!(said(|| step(&mut muon, &mut w, &good, StepOptions::default())).is_empty());
    assert_eq!(
        said(|| step(&mut muon, &mut w, &bad, StepOptions::default())),
        ["WARN matrix skipped: its gradient or update is not finite param=0 matrix=0"]
    );
    let overflow = StepOptions { found_non_finite: FoundNonFinite::Yes, ..StepOptions::default() };
    assert_eq!(
        said(|| step(&mut muon, &mut w, &good, overflow)),
        ["DEBUG step skipped: the loss scaler found what is not finite parameters=1"]
    );
    assert_eq!(
        said(|| drop(muon.counters(id).unwrap())),
        ["WARN matrices skipped so far name=\"w\" steps=2 skipped=1"]
    );
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_tells_where_kernels_come_from_and_of_graphs_and_torn_steps() {
    use cuda_emulator::{Config, Emulator, Fault, FaultSite, Log};
    use muon_cuda::{Cuda, Transfer as _};

    cuda_emulator::fetch_nvrtc().unwrap();
    let directory = tempfile::tempdir().unwrap();
    // SAFETY: the other test of this program does not read the environment.
    #[allow(unsafe_code, reason = "names the kernel cache of this test")]
    unsafe {
        std::env::set_var("MUON_CUDA_CACHE_DIR", directory.path());
    }
    let kernels = |lines: &[String], what: &str| {
        lines.iter().filter(|l| l.starts_with(&format!("DEBUG kernel file {what} file="))).count()
    };
    let mut config = Config::with_seed(1);
    config.log = Log::Quiet;
    let emulator = Emulator::load(config.clone()).unwrap();
    let first = said(|| drop(Cuda::new(0).unwrap()));
    let second = said(|| drop(Cuda::new(0).unwrap()));
    let files = first.len();
    assert!(files > 3 && kernels(&first, "compiled") == files, "{first:?}");
    assert_eq!(kernels(&second, "from the cache"), files, "{second:?}");
    assert!(first[0].contains(" architecture=\"compute_90\" bytes="), "{first:?}");

    let make = || {
        let mut muon = Muon::new(Cuda::new(0).unwrap(), MuonConfig::default()).unwrap();
        let hidden = muon.add_group("hidden", MuonRule::default()).unwrap();
        let id = muon.add_param(hidden, ParamSpec::new("w", &[6, 9])).unwrap();
        (muon, id)
    };
    let (mut muon, id) = make();
    let mut w = muon.device().upload(&[1.0; 54]).unwrap();
    let (good, bad) = {
        let device = muon.device();
        (device.upload(&[0.5; 54]).unwrap(), device.upload(&[f32::NAN; 54]).unwrap())
    };
    let options = StepOptions::default();
    muon.step(&options, &mut [StepTensor::new(id, &mut w, &good)]).unwrap();
    let graph = said(|| {
        let mut tensors = [StepTensor::new(id, &mut w, &good)];
        let captured = muon.capture_step(&options, &mut tensors).unwrap();
        muon.replay_step(&captured, &options, &mut tensors).unwrap();
        muon.synchronize().unwrap();
    });
    assert_eq!(
        graph,
        [
            "DEBUG step captured orthogonalized=1 adamw=0",
            "DEBUG step replayed orthogonalized=1 adamw=0"
        ]
    );
    // The host learns of a skip when it asks.
    let skipped = said(|| {
        muon.step(&options, &mut [StepTensor::new(id, &mut w, &bad)]).unwrap();
        muon.counters(id).unwrap();
    });
    assert_eq!(skipped, ["WARN matrices skipped so far name=\"w\" steps=2 skipped=1"]);
    drop((w, good, bad, muon));
    assert_eq!(emulator.finish().unwrap(), []);
    drop(emulator);

    // Products are counted while the plan is made; one of the first step's fails.
    let torn = (1..200).find_map(|nth| {
        config.faults = vec![Fault { site: FaultSite::Blas, nth, status: 13 }];
        let _emulator = Emulator::load(config.clone()).unwrap();
        let (mut muon, id) = make();
        let mut w = muon.device().upload(&[1.0; 54]).unwrap();
        let grad = muon.device().upload(&[0.5; 54]).unwrap();
        let lines = said(|| {
            let step = muon.step(&options, &mut [StepTensor::new(id, &mut w, &grad)]);
            assert_eq!(muon.torn().is_some(), step.is_err_and(|e| e.to_string().contains("half")));
        });
        muon.torn()?;
        Some(lines)
    });
    let torn = torn.unwrap();
    let last = torn.last().unwrap();
    assert!(last.starts_with("ERROR torn why=\"step interrupted; "), "{torn:?}");

    // A directory that cannot be made: a file is in its place.
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    // SAFETY: as above.
    #[allow(unsafe_code, reason = "names the kernel cache of this test")]
    unsafe {
        std::env::set_var("MUON_CUDA_CACHE_DIR", file.join("cache"));
    }
    config.faults = Vec::new();
    let _emulator = Emulator::load(config).unwrap();
    let lines = said(|| drop(Cuda::new(0).unwrap()));
    let unwritten =
        lines.iter().filter(|l| l.starts_with("WARN kernel cache not written directory="));
    assert_eq!(unwritten.count(), files, "{lines:?}");
}
