//! Events of feature `tracing`, for programs that subscribe to the crate `tracing`. Without the feature nothing of it is compiled.
//!
//! All have the target `muon_cuda`. A field that names a parameter by number counts the optimizer's parameters in the order of
//! registration.
//!
//! | event | level | fields |
//! |---|---|---|
//! | `plan` | info | `buckets`, `matrices`, `chunks`, `gemm_flops` |
//! | `bucket` of a plan | info | `shape`, `matrices`, `orthogonalizer`, `method`, `reason`, `symmetric` |
//! | `step skipped` by the loss scaler's verdict | debug | `parameters` |
//! | `matrix skipped` (CPU: as it happens) | warn | `param`, `matrix` |
//! | `matrices skipped` (every device: when [`Muon::counters`](crate::Muon::counters) is read) | warn | `name`, `steps`, `skipped` |
//! | `torn` | error | `why` |
//! | `kernel file from the cache`, `kernel file compiled` | debug | `file`, `architecture`, and `bytes` of what was compiled |
//! | `kernel cache not written` | warn | `directory`, `error` |
//! | `step captured`, `step replayed` | debug | `orthogonalized`, `adamw` |
//!
//! On CUDA a step does not wait for the device, so it cannot say which matrices were skipped; reading the counters does.
//!
//! # Cost
//! Events are made where something rare happens, and once a replay; a step that skips nothing makes none.
//!
//! # Example
//! ```
//! use std::sync::{Arc, Mutex};
//! use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec};
//! use tracing::span::{Attributes, Id, Record};
//! use tracing::{Event, Metadata, Subscriber};
//!
//! /// Keeps the names of the levels of all events; `tracing_subscriber::fmt()` prints them.
//! struct Levels(Arc<Mutex<Vec<String>>>);
//! impl Subscriber for Levels {
//!     fn enabled(&self, _: &Metadata<'_>) -> bool { true }
//!     fn new_span(&self, _: &Attributes<'_>) -> Id { Id::from_u64(1) }
//!     fn record(&self, _: &Id, _: &Record<'_>) {}
//!     fn record_follows_from(&self, _: &Id, _: &Id) {}
//!     fn event(&self, event: &Event<'_>) {
//!         self.0.lock().unwrap().push(event.metadata().level().to_string());
//!     }
//!     fn enter(&self, _: &Id) {}
//!     fn exit(&self, _: &Id) {}
//! }
//!
//! let levels = Arc::new(Mutex::new(Vec::new()));
//! tracing::subscriber::with_default(Levels(Arc::clone(&levels)), || {
//!     let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
//!     let hidden = muon.add_group("hidden", MuonRule::default())?;
//!     muon.add_param(hidden, ParamSpec::new("w", &[4, 8]))?;
//!     muon.plan()?;
//!     Ok::<(), muon_cuda::Error>(())
//! })?;
//! assert_eq!(*levels.lock().unwrap(), ["INFO", "INFO"]);    // the plan, and its one bucket
//! # Ok::<(), muon_cuda::Error>(())
//! ```

use crate::device::Counters;
#[cfg(feature = "cuda")]
use crate::optimizer::StepReport;
use crate::plan::Plan;

/// Functions that make an event with the feature and are empty without.
macro_rules! events {
    ($($(#[$attribute:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$attribute])*
        #[cfg(feature = "tracing")]
        pub(crate) fn $name($($arg: $type),*) $body

        $(#[$attribute])*
        #[cfg(not(feature = "tracing"))]
        #[inline(always)]
        pub(crate) fn $name($(_: $type),*) {}
    )*};
}

/// An event of that level.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $($rest:tt)+) => {
        tracing::event!(target: "muon_cuda", tracing::Level::$level, $($rest)+)
    };
}

events! {
    /// A plan was made.
    fn planned(plan: &Plan) {
        let matrices: usize = plan.buckets().iter().map(|b| b.matrices.len()).sum();
        let (buckets, chunks) = (plan.buckets().len(), plan.chunks());
        let gemm_flops: u64 = plan.buckets().iter().map(|b| b.flops()).sum();
        event!(INFO, buckets, matrices, chunks, gemm_flops, "plan");
        for bucket in plan.buckets() {
            let method = bucket.method.as_ref().map(ToString::to_string);
            event!(
                INFO,
                shape = %bucket.shape,
                matrices = bucket.matrices.len(),
                orthogonalizer = bucket.orthogonalizer.as_str(),
                method = method.as_deref(),
                reason = bucket.reason.as_str(),
                symmetric = bucket.symmetric.reason.as_str(),
                "bucket"
            );
        }
    }

    /// The loss scaler found an overflow.
    fn step_skipped(parameters: usize) {
        event!(DEBUG, parameters, "step skipped: the loss scaler found what is not finite");
    }

    /// A device that knows it at once left a matrix out.
    fn matrix_skipped(param: usize, matrix: usize) {
        event!(WARN, param, matrix, "matrix skipped: its gradient or update is not finite");
    }

    /// The counters of a parameter were read.
    fn counted(name: &str, counters: &Counters) {
        let skipped: u64 = counters.skipped.iter().sum();
        if skipped > 0 {
            event!(WARN, name, steps = counters.steps, skipped, "matrices skipped so far");
        }
    }

    /// A step was interrupted between its passes.
    fn torn(why: &str) {
        event!(ERROR, why, "torn");
    }

    /// A kernel file was in the cache.
    #[cfg(feature = "cuda")]
    fn kernel_cached(file: &str, architecture: &str) {
        event!(DEBUG, file, architecture, "kernel file from the cache");
    }

    /// A kernel file was not in the cache, or not as this driver takes it.
    #[cfg(feature = "cuda")]
    fn kernel_compiled(file: &str, architecture: &str, bytes: usize) {
        event!(DEBUG, file, architecture, bytes, "kernel file compiled");
    }

    /// A compiled kernel could not be kept.
    #[cfg(feature = "cuda")]
    fn cache_not_written(directory: &std::path::Path, error: &dyn std::fmt::Display) {
        event!(WARN, directory = %directory.display(), %error, "kernel cache not written");
    }

    /// A step was recorded.
    #[cfg(feature = "cuda")]
    fn captured(report: &StepReport) {
        event!(
            DEBUG,
            orthogonalized = report.orthogonalized,
            adamw = report.adamw,
            "step captured"
        );
    }

    /// A recorded step was taken.
    #[cfg(feature = "cuda")]
    fn replayed(report: &StepReport) {
        event!(
            DEBUG,
            orthogonalized = report.orthogonalized,
            adamw = report.adamw,
            "step replayed"
        );
    }
}
