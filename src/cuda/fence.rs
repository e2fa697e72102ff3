//! What orders a step with the other users of its slices.

use std::sync::Arc;

use cudarc::driver::{CudaStream, SyncOnDrop};

use super::buffers::{CudaGrad, CudaParamMut};
use super::launch::{Launcher, Mode};
use super::status::driver_error;
use crate::error::Result;

/// Makes the device's stream wait for earlier users of slices; later users are told when it is dropped.
///
/// Between streams of one `CudaContext` cudarc's events do that. They say nothing about slices of another such object, even
/// of the same context of the driver: while a program has made no stream there, nothing records them. For those the
/// stream that allocated the slice and the device's wait for each other.
pub(super) struct Fences<'s> {
    stream: &'s Arc<CudaStream>,
    enqueues: bool,
    events: Vec<SyncOnDrop<'s>>,
    others: Vec<Arc<CudaStream>>,
}

impl<'s> Fences<'s> {
    /// Fences of a stream; none where nothing is enqueued, or a graph is recorded.
    pub(super) fn new(launcher: &Launcher, stream: &'s Arc<CudaStream>) -> Self {
        let enqueues = launcher.mode == Mode::Enqueue;
        Self { stream, enqueues, events: Vec::new(), others: Vec::new() }
    }

    /// A gradient that is read.
    ///
    /// # Errors
    /// A failed device; a slice of another device.
    pub(super) fn read(&mut self, grad: &'s CudaGrad<'_>) -> Result<()> {
        self.meet(grad.stream())?;
        if self.manages() {
            self.events.extend(grad.fence(self.stream));
        }
        Ok(())
    }

    /// A parameter that is only read.
    ///
    /// # Errors
    /// As [`Fences::read`].
    pub(super) fn read_param(&mut self, param: &'s CudaParamMut<'_>) -> Result<()> {
        self.meet(param.stream())?;
        if self.manages() {
            self.events.extend(param.fence_read(self.stream));
        }
        Ok(())
    }

    /// A parameter that is written.
    ///
    /// # Errors
    /// As [`Fences::read`].
    pub(super) fn write(&mut self, param: &'s mut CudaParamMut<'_>) -> Result<()> {
        self.meet(param.stream())?;
        if self.manages() {
            self.events.extend(param.fence(self.stream));
        }
        Ok(())
    }

    fn manages(&self) -> bool {
        self.enqueues && self.stream.context().is_managing_stream_synchronization()
    }

    fn meet(&mut self, owner: Option<&Arc<CudaStream>>) -> Result<()> {
        let Some(owner) = owner.filter(|_| self.enqueues) else { return Ok(()) };
        if Arc::ptr_eq(owner.context(), self.stream.context())
            || self.others.iter().any(|other| Arc::ptr_eq(other, owner))
        {
            return Ok(());
        }
        self.stream
            .join(owner)
            .map_err(|e| driver_error(e, "waiting for the stream of a slice"))?;
        self.others.push(Arc::clone(owner));
        Ok(())
    }
}

impl Drop for Fences<'_> {
    fn drop(&mut self) {
        for other in &self.others {
            // As cudarc does where there is nobody to tell: the next call returns it.
            self.stream.context().record_err(other.join(self.stream));
        }
    }
}
