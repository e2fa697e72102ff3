//! State of one parameter on the device.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use half::bf16;

use super::memory::Buffer;
use crate::device::{Counters, HostBuffer, StateData, StateRule, StateSpec};
use crate::error::{Error, Result};
use crate::precision::Dtype;

/// State of one parameter on the device.
#[derive(Debug)]
pub struct CudaState {
    pub(super) spec: StateSpec,
    /// In the order of [`StateSpec::buffers`], the master copy apart.
    buffers: Vec<StateBuffer>,
    master: Option<Buffer<f32>>,
    /// Whether the master copy was made from the parameter, which happens at the first step with a gradient.
    pub(super) master_ready: bool,
    /// Steps, then skips of each matrix, then the outcome of each matrix in the step that is going on.
    counters: Buffer<u64>,
}

#[derive(Debug)]
enum StateBuffer {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl CudaState {
    /// Zeroed state.
    ///
    /// # Errors
    /// Out of memory; a failed device.
    pub(super) fn new(stream: &Arc<CudaStream>, spec: &StateSpec) -> Result<Self> {
        let mut buffers = Vec::new();
        let mut master = None;
        for (name, dtype) in spec.buffers() {
            match (name, dtype) {
                ("master", _) => master = Some(Buffer::zeroed(stream, spec.len, name)?),
                (_, Dtype::Bf16) => {
                    buffers.push(StateBuffer::Bf16(Buffer::zeroed(stream, spec.len, name)?))
                }
                _ => buffers.push(StateBuffer::F32(Buffer::zeroed(stream, spec.len, name)?)),
            }
        }
        let counters = Buffer::zeroed(stream, 1 + 2 * spec.matrices(), "step counters")?;
        Ok(Self { spec: spec.clone(), buffers, master, master_ready: false, counters })
    }

    /// Address of a buffer by its position; 0 where there is none.
    pub(super) fn buffer(&self, position: usize) -> u64 {
        match self.buffers.get(position) {
            Some(StateBuffer::F32(b)) => b.address(),
            Some(StateBuffer::Bf16(b)) => b.address(),
            None => 0,
        }
    }

    /// Element type of the momentum.
    pub(super) fn momentum_dtype(&self) -> Dtype {
        match self.spec.rule {
            StateRule::Muon { momentum_dtype, .. } => momentum_dtype,
            StateRule::AdamW => Dtype::F32,
        }
    }

    /// Address of the master copy; 0 where there is none.
    pub(super) fn master(&self) -> u64 {
        self.master.as_ref().map_or(0, Buffer::address)
    }

    /// Whether the next step must make the master copy.
    pub(super) fn lacks_master(&self) -> bool {
        self.master.is_some() && !self.master_ready
    }

    /// Address of the counters.
    pub(super) fn counters_address(&self) -> u64 {
        self.counters.address()
    }

    /// Steps and skips; waits for the stream.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn counters(&self, stream: &Arc<CudaStream>) -> Result<Counters> {
        let all = self.counters.download(stream, 1 + self.spec.matrices(), "step counters")?;
        Ok(Counters {
            steps: all.first().copied().unwrap_or(0),
            skipped: all.get(1..).unwrap_or_default().to_vec(),
        })
    }

    /// Everything, on the host; waits for the stream.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn export(&self, stream: &Arc<CudaStream>) -> Result<StateData> {
        let names = self.spec.buffers();
        let mut buffers = Vec::new();
        for ((name, _), buffer) in names.iter().zip(&self.buffers) {
            let host = match buffer {
                StateBuffer::F32(b) => HostBuffer::F32(b.download(stream, self.spec.len, name)?),
                StateBuffer::Bf16(b) => {
                    HostBuffer::Bf16(b.download(stream, self.spec.len, name)?)
                }
            };
            buffers.push((*name, host));
        }
        if let Some(master) = self.master.as_ref().filter(|_| self.master_ready) {
            buffers.push((
                "master",
                HostBuffer::F32(master.download(stream, self.spec.len, "master")?),
            ));
        }
        Ok(StateData { buffers, counters: self.counters(stream)? })
    }

    /// State from host buffers.
    ///
    /// # Errors
    /// Buffers whose number, dtype or length is not what the specification asks; a failed device.
    pub(super) fn import(
        stream: &Arc<CudaStream>,
        spec: &StateSpec,
        data: &StateData,
    ) -> Result<Self> {
        spec.check(data)?;
        let mut state = Self::new(stream, spec)?;
        for (i, (name, buffer)) in data.buffers.iter().enumerate() {
            match (state.buffers.get_mut(i), buffer) {
                (Some(StateBuffer::F32(to)), HostBuffer::F32(from)) => {
                    to.upload(stream, from, name)?
                }
                (Some(StateBuffer::Bf16(to)), HostBuffer::Bf16(from)) => {
                    to.upload(stream, from, name)?
                }
                (None, HostBuffer::F32(from)) => {
                    if let Some(master) = &mut state.master {
                        master.upload(stream, from, name)?;
                        state.master_ready = true;
                    }
                }
                _ => {
                    return Err(Error::dtype_mismatch(
                        format!("state buffer `{name}`"),
                        "the state's",
                        buffer.dtype(),
                    ));
                }
            }
        }
        let mut counters = vec![data.counters.steps];
        counters.extend_from_slice(&data.counters.skipped);
        state.counters.upload(stream, &counters, "step counters")?;
        // The next step of another parameter must not find half a copy; pageable memory is staged, and the
        // caller may free its buffers.
        Ok(state)
    }
}
