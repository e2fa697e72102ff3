//! Units of queued work: what a stream, or a node of a graph, will do when it runs.

use std::sync::Arc;

use super::{
    clock::{Clock, Lane, Stamp},
    module::Kernel,
};
use crate::blas::product::Product;

pub(crate) type TaskId = u64;

/// Extent of a copy or fill: `height` rows of `width` bytes, `pitch` bytes apart on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) width: u64,
    pub(crate) height: u64,
    pub(crate) src_pitch: u64,
    pub(crate) dst_pitch: u64,
}

impl Rows {
    pub(crate) fn bytes(&self) -> u64 {
        self.width * self.height
    }
}

/// Where the bytes of a host-to-device copy come from.
#[derive(Clone, Debug)]
pub(crate) enum HostSource {
    /// Pageable memory, staged at the call, rows packed.
    Staged(Arc<[u8]>),
    /// Pinned memory, read when the copy runs; with a digest of what it held at the call.
    Pinned { address: u64, digest: Option<u64> },
    /// Pageable memory of a graph node, read when the graph is launched.
    AtLaunch { address: u64 },
}

/// A function that the host asked a stream to call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callback {
    pub(crate) function: unsafe extern "C" fn(*mut std::ffi::c_void),
    pub(crate) data: usize,
}

/// A kernel launch with its arguments packed as the entry point's parameter space wants them.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) function: u64,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) params: Arc<[u8]>,
}

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Launch(Launch),
    HostToDevice {
        source: HostSource,
        dst: u64,
        rows: Rows,
    },
    DeviceToHost {
        src: u64,
        dst: u64,
        pinned: bool,
        rows: Rows,
    },
    DeviceToDevice {
        src: u64,
        dst: u64,
        rows: Rows,
    },
    /// `unit` bytes of `pattern`, repeated over rows.
    Fill {
        dst: u64,
        pattern: u32,
        unit: u8,
        rows: Rows,
    },
    Product(Arc<Product>),
    /// Stamps an event; the generation tells a re-recorded event from an old record.
    Record {
        event: u64,
        generation: u64,
    },
    Host(Callback),
    /// Makes stream-ordered memory usable.
    Allocate {
        address: u64,
        bytes: u64,
    },
    /// Gives stream-ordered memory back.
    Free {
        address: u64,
    },
    /// Nothing: joins its dependencies.
    Join,
}

/// A unit of work in its place among the others.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) context: u64,
    pub(crate) stamp: Stamp,
    pub(crate) clock: Clock,
    pub(crate) after: Vec<TaskId>,
    pub(crate) work: Work,
    /// An injected status this task is to fail with when it runs.
    pub(crate) fault: Option<i32>,
}

/// A unit of work inside a graph; dependencies are indices of earlier nodes.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) handle: u64,
    pub(crate) context: u64,
    pub(crate) lane: Lane,
    pub(crate) label: Arc<str>,
    pub(crate) after: Vec<usize>,
    pub(crate) work: Work,
}
