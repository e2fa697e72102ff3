//! A step as a CUDA graph: recorded once, replayed with other learning rates, decays and gradients.
//!
//! Everything that may change between replays is in tables in device memory. A replay renews the tables that differ, as an
//! eager step does, and launches the graph instead of its kernels and products.

use std::fmt;

use cudarc::driver::{CudaGraph, sys};

use super::Cuda;
use super::launch::Mode;
use super::status::driver_error;
use crate::config::NonFinite;
use crate::device::StepTensor;
use crate::error::{Error, Result};
use crate::optimizer::{FoundNonFinite, Muon, StepOptions, StepReport};
use crate::plan::Treatment;
use crate::trace;

/// A recorded step; see [`Muon::capture_step`].
pub struct CapturedStep {
    graph: CudaGraph,
    generation: (u64, u64),
    present: Vec<bool>,
    clip: Option<(u64, u64)>,
    /// Digest of its launches, with the addresses of the tables that they read.
    launches: u64,
    report: StepReport,
}

impl fmt::Debug for CapturedStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedStep").field("report", &self.report).finish_non_exhaustive()
    }
}

/// What clipping bakes into a graph: the limit and the inverse loss scale are arguments of a kernel.
fn clip(options: &StepOptions) -> Option<(u64, u64)> {
    options.clip_norm.map(|norm| (norm.to_bits(), options.inverse_loss_scale.to_bits()))
}

impl Muon<Cuda> {
    /// Records a step into a CUDA graph without taking it.
    ///
    /// Take one eager step with every tensor first: a later one with more tensors than any before moves tables, and the graph is
    /// refused. The step's products are enqueued once on the workspace, so that nothing is chosen or loaded while recording. Replays may change `lr_factor`, learning rates ([`Muon::set_lr`]), the
    /// inverse loss scale (unless gradients are clipped), and the addresses of parameters and gradients; the same
    /// parameters must have gradients, and rules and parameters must not change.
    ///
    /// # Stream
    /// Replays are ordered by the device's stream alone: cudarc's events are neither waited for nor recorded. Write
    /// gradients on that stream, or make it wait.
    ///
    /// # Errors
    /// As [`Muon::step`]; the strict policy for gradients that are not finite and the exact factor, which wait for the host; a
    /// device on the legacy default stream, which cannot be recorded; a bf16 parameter without its master copy. Nothing is
    /// changed.
    pub fn capture_step(
        &mut self,
        options: &StepOptions,
        tensors: &mut [StepTensor<'_, Cuda>],
    ) -> Result<CapturedStep> {
        self.ready(options, tensors).map_err(|e| e.context("capture"))?;
        if self.config().non_finite == NonFinite::Error {
            return Err(Error::invalid_config(
                "capture: the policy `NonFinite::Error` waits for the host in every step; use `NonFinite::Skip`",
            ));
        }
        if self.plan()?.buckets().iter().any(|b| matches!(b.treatment, Treatment::ExactSvd)) {
            return Err(Error::invalid_config(
                "capture: the exact polar factor is computed on the host; use a polynomial",
            ));
        }
        self.refuse_without_master().map_err(|e| e.context("capture"))?;
        let launches = self.tables_only(options, tensors)?;
        self.run_in(Mode::Rehearse, options, tensors).map_err(|e| e.context("capture"))?;
        let stream = self.device().stream().clone();
        let failed = |e| driver_error(e, "recording a step");
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(failed)?;
        self.device_mut().launcher.mode = Mode::Capture;
        let mut report = StepReport::default();
        let recorded = self.run_stages(options, tensors, &mut report);
        self.device_mut().launcher.mode = Mode::Enqueue;
        // The capture ends whether recording went well or not.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(failed);
        recorded.map_err(|e| e.context("recording a step"))?;
        let graph = graph?.ok_or_else(|| Error::device("recording a step gave an empty graph"))?;
        let present = self.present();
        report.untouched = present.iter().filter(|p| !**p).count();
        trace::captured(&report);
        Ok(CapturedStep {
            graph,
            generation: self.generation(),
            present,
            clip: clip(options),
            launches,
            report,
        })
    }

    /// Takes a recorded step, with these options and tensors.
    ///
    /// The result is bit for bit that of [`Muon::step`], and so is the report that [`Muon::last_step`] waits for.
    ///
    /// # Errors
    /// A step that was recorded under another plan or optimizer, other parameters with a gradient, or another clipping, or before a
    /// step of more tensors moved the device's tables; a master copy that was refreshed ([`Muon::refresh_master`]) since the last
    /// eager step: nothing changed. A failed device.
    pub fn replay_step(
        &mut self,
        captured: &CapturedStep,
        options: &StepOptions,
        tensors: &mut [StepTensor<'_, Cuda>],
    ) -> Result<StepReport> {
        self.ready(options, tensors).map_err(|e| e.context("replay"))?;
        let refuse = |what: &str| {
            Err(Error::invalid_config(format!(
                "replay: {what} since the step was recorded; capture it again"
            )))
        };
        if captured.generation != self.generation() {
            return refuse("parameters or rules changed");
        }
        if captured.present != self.present() {
            return refuse("other parameters have gradients");
        }
        if captured.clip != clip(options) {
            return refuse("the clipping changed");
        }
        if options.found_non_finite == FoundNonFinite::Yes {
            return Ok(self.skipped_step());
        }
        self.refuse_without_master().map_err(|e| e.context("replay"))?;
        // A step of more tensors in between has moved the tables that it had no room in.
        if self.tables_only(options, tensors)? != captured.launches {
            return refuse("tables of the device moved");
        }
        captured.graph.launch().map_err(|e| driver_error(e, "replaying a step"))?;
        trace::replayed(&captured.report);
        Ok(self.took_step(captured.report, options))
    }

    /// A recorded step makes no master copy: only an eager one does.
    fn refuse_without_master(&mut self) -> Result<()> {
        let present = self.present();
        let (_, params, states) = self.parts();
        let mut steps = params.iter().zip(states.iter()).zip(present).filter(|(_, p)| *p);
        match steps.find(|((_, state), _)| state.lacks_master()) {
            None => Ok(()),
            Some(((param, _), _)) => Err(Error::invalid_config(format!(
                "the bf16 parameter `{}` has no master copy: it has not stepped yet, or its copy was refreshed; take one \
                 eager step with every tensor first",
                param.spec.name
            ))),
        }
    }

    /// Brings the tables in device memory up to date and enqueues nothing else; a digest of what it left out.
    fn tables_only(
        &mut self,
        options: &StepOptions,
        tensors: &mut [StepTensor<'_, Cuda>],
    ) -> Result<u64> {
        *self.device_mut().launcher.left_out.get_mut() = 0;
        self.run_in(Mode::TablesOnly, options, tensors)?;
        Ok(*self.device_mut().launcher.left_out.get_mut())
    }

    /// The stages of a step in a mode that takes no step.
    fn run_in(
        &mut self,
        mode: Mode,
        options: &StepOptions,
        tensors: &mut [StepTensor<'_, Cuda>],
    ) -> Result<()> {
        self.device_mut().launcher.mode = mode;
        let done = self.run_stages(options, tensors, &mut StepReport::default());
        self.device_mut().launcher.mode = Mode::Enqueue;
        done
    }
}
