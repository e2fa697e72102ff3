//! The state behind the driver: devices, contexts, streams, memory and queued work.
//!
//! One [`Runtime`] lives in the loaded libcuda; every entry point locks it, calls one method and
//! turns the result into a `CUresult`. Work is queued as a graph of tasks and runs as late as the
//! driver's rules allow, in an order drawn from the seed.

mod alloc;
mod capture;
mod clock;
pub mod config;
mod context;
mod control;
mod copy;
pub mod counters;
mod event;
mod execute;
mod fault;
mod global;
mod graph;
mod handle;
mod host;
mod launch;
mod module;
mod occupancy;
mod order;
mod peek;
mod pool;
pub mod profile;
mod queue;
pub mod report;
mod rng;
pub mod status;
mod store;
mod stream;
mod task;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

pub use alloc::PointerFacts;
pub use context::{Limits, current, pop_current, push_current, set_current};
pub use control::{Request, Response};
pub use copy::{Copy2d, Place};
pub use global::{in_callback, with};
pub use launch::{Arguments, LaunchShape};

pub use graph::UpdateResult;

pub(crate) use config::FaultSite;
pub(crate) use handle::Kind;
pub(crate) use order::Span;
pub(crate) use report::{Class, Report};
pub(crate) use status::Status;
pub(crate) use store::Fault;
pub(crate) use task::{Task, Work};

use clock::Clock;
use config::{Config, Log, OnFinding};
use counters::Counters;
use fault::FaultState;
use handle::Handles;
use order::OrderMap;
use rng::Rng;
use status::Outcome;
use store::Store;
use task::TaskId;

/// Everything the emulated driver knows.
#[derive(Debug)]
pub struct Runtime {
    pub(crate) config: Config,
    pub(crate) initialized: bool,
    pub(crate) handles: Handles,
    pub(crate) devices: Vec<context::Device>,
    pub(crate) contexts: BTreeMap<u64, context::Context>,
    pub(crate) streams: BTreeMap<u64, stream::Stream>,
    pub(crate) events: BTreeMap<u64, event::Event>,
    pub(crate) modules: BTreeMap<u64, module::Module>,
    /// Parsed PTX by its text: a program under test loads the same modules again and again.
    pub(crate) parsed: HashMap<Box<str>, Arc<crate::ptx::Module>>,
    pub(crate) functions: BTreeMap<u64, module::Function>,
    pub(crate) graphs: BTreeMap<u64, graph::Graph>,
    pub(crate) execs: BTreeMap<u64, graph::Exec>,
    pub(crate) captures: BTreeMap<u64, capture::Capture>,
    pub(crate) pools: BTreeMap<u64, pool::Pool>,
    pub(crate) blas: crate::blas::BlasState,
    pub(crate) pinned: BTreeMap<u64, host::Pinned>,
    pub(crate) store: Store,
    pub(crate) allocations: HashMap<u64, alloc::Allocation>,
    pub(crate) order: OrderMap,
    pub(crate) pending: BTreeMap<TaskId, Task>,
    pub(crate) next_task: TaskId,
    pub(crate) next_lane: u32,
    /// What the host program knows to have happened. Host threads count as one.
    pub(crate) host: Clock,
    pub(crate) rng: Rng,
    pub(crate) faults: FaultState,
    pub(crate) counters: Counters,
    pub(crate) reports: Vec<Report>,
    /// Instructions that ran and are not exact.
    pub(crate) approximate: BTreeSet<String>,
}

impl Runtime {
    /// A fresh machine with the configured devices.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::build(config, Handles::default(), Store::default())
    }

    fn build(config: Config, mut handles: Handles, store: Store) -> Self {
        let mut pools = BTreeMap::new();
        let devices = config
            .devices
            .iter()
            .enumerate()
            .map(|(ordinal, profile)| {
                let handle = handles.make(Kind::Pool);
                pools.insert(handle, pool::Pool::new(ordinal));
                context::Device::new(profile.clone(), handle)
            })
            .collect();
        Runtime {
            rng: Rng::new(config.seed),
            faults: FaultState::new(config.faults.clone()),
            initialized: false,
            handles,
            devices,
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            parsed: HashMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            execs: BTreeMap::new(),
            captures: BTreeMap::new(),
            pools,
            blas: crate::blas::BlasState::default(),
            pinned: BTreeMap::new(),
            store,
            allocations: HashMap::new(),
            order: OrderMap::default(),
            pending: BTreeMap::new(),
            next_task: 1,
            next_lane: 0,
            host: Clock::default(),
            counters: Counters::default(),
            reports: Vec::new(),
            approximate: BTreeSet::new(),
            config,
        }
    }

    /// Starts over with another configuration; every handle and address becomes foreign.
    pub fn reset(&mut self, config: Config) {
        // Handles and addresses go on counting: one from before must not come to life again.
        let handles = std::mem::take(&mut self.handles);
        let addresses: Vec<u64> = self.allocations.keys().copied().collect();
        for address in addresses {
            self.drop_allocation(address);
        }
        self.free_all_pinned();
        let store = std::mem::take(&mut self.store);
        let parsed = std::mem::take(&mut self.parsed);
        *self = Self { parsed, ..Self::build(config, handles, store) };
    }

    /// Records a finding and, unless the configuration says otherwise, writes it to standard error.
    pub(crate) fn report(&mut self, mut report: Report) {
        report.seed = self.config.seed;
        if self.config.log == Log::Stderr {
            write_stderr(&format!("cuda-emulator: {report}\n"));
        }
        self.reports.push(report);
    }

    /// Records a finding about a host call and returns the status the call fails with.
    pub(crate) fn refuse(
        &mut self,
        status: Status,
        class: Class,
        operation: &str,
        message: impl Into<String>,
    ) -> Status {
        self.report(Report::host(class, operation, message));
        status
    }

    /// Records that the program used something the emulator does not have.
    pub fn unsupported(&mut self, what: &str) -> Status {
        self.refuse(
            Status::NOT_SUPPORTED,
            Class::Unsupported,
            what,
            format!("`{what}` is not implemented by the emulator"),
        )
    }

    /// Records that an entry point of the emulator itself panicked.
    pub fn internal_error(&mut self, entry: &str) {
        self.report(Report::host(
            Class::Unsupported,
            entry,
            "the emulator itself failed here; this is a bug of the emulator, please report it",
        ));
    }

    /// The findings so far.
    #[must_use]
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    /// Whether findings make operations fail.
    pub(crate) fn fails(&self) -> bool {
        self.config.on_finding == OnFinding::Fail
    }

    /// A destroyed handle is a finding; one that was never handed out is only an error.
    pub(crate) fn bad_handle(&mut self, kind: Kind, value: u64, operation: &str) -> Status {
        let message = if self.handles.was(kind, value) {
            format!("{} {value:#x} was destroyed before this call", kind.noun())
        } else {
            format!("{value:#x} is not a {}", kind.noun())
        };
        self.refuse(Status::INVALID_HANDLE, Class::InvalidHandle, operation, message)
    }

    /// Interns the words for one operation.
    pub(crate) fn label(text: impl Into<String>) -> Arc<str> {
        text.into().into()
    }

    /// Fails with `NOT_INITIALIZED` before `cuInit`.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_INITIALIZED`.
    pub fn require_init(&self) -> Outcome<()> {
        if self.initialized { Ok(()) } else { Err(Status::NOT_INITIALIZED) }
    }

    /// `cuInit`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for flags other than 0, `NO_DEVICE` when none is configured.
    pub fn init(&mut self, flags: u32) -> Outcome<()> {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        if self.devices.is_empty() {
            return Err(Status::NO_DEVICE);
        }
        self.initialized = true;
        Ok(())
    }
}

/// Writes without the test harness's capture and without panicking when the stream is closed.
fn write_stderr(text: &str) {
    use std::io::Write as _;
    // A finding that cannot be written is still kept for the Rust API.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
