//! Devices, contexts and the calling thread's current context.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    Runtime,
    clock::Clock,
    handle::Kind,
    profile::DeviceProfile,
    report::{Class, Report},
    status::{Outcome, Status},
    task::TaskId,
};

thread_local! {
    /// The context stack of the calling thread; the last entry is current.
    static STACK: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's current context, 0 for none.
#[must_use]
pub fn current() -> u64 {
    STACK.with(|stack| stack.borrow().last().copied().unwrap_or(0))
}

/// Makes `context` the calling thread's current context; 0 pops it.
pub fn set_current(context: u64) {
    STACK.with(|stack| {
        let mut stack = stack.borrow_mut();
        stack.pop();
        if context != 0 {
            stack.push(context);
        }
    });
}

/// Pushes a context on the calling thread's stack.
pub fn push_current(context: u64) {
    STACK.with(|stack| stack.borrow_mut().push(context));
}

/// Pops the calling thread's current context; 0 if there was none.
#[must_use]
pub fn pop_current() -> u64 {
    STACK.with(|stack| stack.borrow_mut().pop().unwrap_or(0))
}

/// One emulated device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) profile: DeviceProfile,
    pub(crate) primary: u64,
    pub(crate) primary_users: u32,
    pub(crate) primary_flags: u32,
    pub(crate) default_pool: u64,
    pub(crate) pool: u64,
    pub(crate) used: u64,
}

impl Device {
    pub(crate) fn new(profile: DeviceProfile, pool: u64) -> Self {
        Device {
            profile,
            primary: 0,
            primary_users: 0,
            primary_flags: 0,
            default_pool: pool,
            pool,
            used: 0,
        }
    }
}

/// `cuCtxGetLimit` numbers and their values.
pub type Limits = BTreeMap<i32, usize>;

/// One context.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) device: usize,
    pub(crate) legacy: u64,
    pub(crate) per_thread: BTreeMap<u64, u64>,
    pub(crate) flags: u32,
    pub(crate) limits: Limits,
    pub(crate) cache_config: i32,
    pub(crate) peers: BTreeSet<u64>,
    /// The first sticky error; every later call returns it.
    pub(crate) error: Option<Status>,
    /// What destroyed streams had queued.
    pub(crate) retired: Retired,
}

/// The work of streams that were destroyed: it still runs and still orders.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    /// Everything, for a synchronisation of the context.
    pub(crate) clock: Clock,
    /// The part that the legacy default stream follows.
    pub(crate) blocking: Clock,
    /// The last tasks of that part.
    pub(crate) frontier: Vec<TaskId>,
}

impl Runtime {
    /// Number of devices.
    #[must_use]
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// The profile behind a `CUdevice`.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn profile(&self, device: i32) -> Outcome<&DeviceProfile> {
        self.require_init()?;
        usize::try_from(device)
            .ok()
            .and_then(|index| self.devices.get(index))
            .map(|device| &device.profile)
            .ok_or(Status::INVALID_DEVICE)
    }

    /// Total and free bytes of the current context's device, as `(free, total)`.
    ///
    /// # Errors
    /// Those of the current context.
    pub fn memory_info(&mut self) -> Outcome<(u64, u64)> {
        let context = self.current_context()?;
        let device = self.contexts[&context].device;
        let total = self.capacity(device);
        Ok((total.saturating_sub(self.devices[device].used), total))
    }

    /// Bytes that can be allocated on a device: its memory or the configured limit.
    pub(crate) fn capacity(&self, device: usize) -> u64 {
        let total = self.devices[device].profile.total_memory;
        self.config.memory_limit.map_or(total, |limit| limit.min(total))
    }

    /// Total memory of a device, the configured limit included.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn total_memory(&self, device: i32) -> Outcome<u64> {
        self.profile(device)?;
        Ok(self.capacity(device as usize))
    }

    fn make_context(&mut self, device: usize, flags: u32) -> u64 {
        let handle = self.handles.make(Kind::Context);
        let legacy = self.make_stream(handle, 0, 0, true);
        let limits = BTreeMap::from([
            (0, 1024),
            (1, 1 << 20),
            (2, 8 << 20),
            (3, 2),
            (4, 2048),
            (5, 64),
            (6, 0),
        ]);
        self.contexts.insert(
            handle,
            Context {
                device,
                legacy,
                per_thread: BTreeMap::new(),
                flags,
                limits,
                cache_config: 0,
                peers: BTreeSet::new(),
                error: None,
                retired: Retired::default(),
            },
        );
        handle
    }

    /// `cuDevicePrimaryCtxRetain`.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn primary_retain(&mut self, device: i32) -> Outcome<u64> {
        self.profile(device)?;
        let index = device as usize;
        if self.devices[index].primary_users == 0 {
            let flags = self.devices[index].primary_flags;
            self.devices[index].primary = self.make_context(index, flags);
        }
        self.devices[index].primary_users += 1;
        Ok(self.devices[index].primary)
    }

    /// `cuDevicePrimaryCtxRelease`: the last release ends the context.
    ///
    /// # Errors
    /// `INVALID_CONTEXT` when nobody retains it.
    pub fn primary_release(&mut self, device: i32) -> Outcome<()> {
        self.profile(device)?;
        let index = device as usize;
        if self.devices[index].primary_users == 0 {
            return Err(Status::INVALID_CONTEXT);
        }
        self.devices[index].primary_users -= 1;
        if self.devices[index].primary_users == 0 {
            let context = std::mem::take(&mut self.devices[index].primary);
            self.end_context(context);
        }
        Ok(())
    }

    /// `cuDevicePrimaryCtxReset`: ends the primary context whoever retains it.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn primary_reset(&mut self, device: i32) -> Outcome<()> {
        self.profile(device)?;
        let index = device as usize;
        if self.devices[index].primary_users > 0 {
            let context = self.devices[index].primary;
            self.end_context(context);
            self.devices[index].primary = self.make_context(index, 0);
        }
        Ok(())
    }

    /// `cuDevicePrimaryCtxGetState`: flags and whether the context exists.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn primary_state(&mut self, device: i32) -> Outcome<(u32, bool)> {
        self.profile(device)?;
        let device = &self.devices[device as usize];
        Ok((device.primary_flags, device.primary_users > 0))
    }

    /// `cuDevicePrimaryCtxSetFlags`.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn primary_set_flags(&mut self, device: i32, flags: u32) -> Outcome<()> {
        self.profile(device)?;
        self.devices[device as usize].primary_flags = flags;
        Ok(())
    }

    /// `cuCtxCreate`: a context of the caller's own, made current.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn context_create(&mut self, device: i32, flags: u32) -> Outcome<u64> {
        self.profile(device)?;
        let handle = self.make_context(device as usize, flags);
        push_current(handle);
        Ok(handle)
    }

    /// `cuCtxDestroy`.
    ///
    /// # Errors
    /// `INVALID_CONTEXT` for a handle that is not a context, or is a primary one.
    pub fn context_destroy(&mut self, context: u64) -> Outcome<()> {
        if !self.contexts.contains_key(&context) {
            self.bad_handle(Kind::Context, context, "cuCtxDestroy");
            return Err(Status::INVALID_CONTEXT);
        }
        if self.devices.iter().any(|device| device.primary == context) {
            return Err(self.refuse(
                Status::INVALID_CONTEXT,
                Class::InvalidArgument,
                "cuCtxDestroy",
                "the primary context is released with cuDevicePrimaryCtxRelease",
            ));
        }
        self.end_context(context);
        if current() == context {
            let _ = pop_current();
        }
        Ok(())
    }

    /// Finishes queued work, reports what is left behind, and forgets the context; whether it had no
    /// error.
    pub(crate) fn end_context(&mut self, context: u64) -> bool {
        // An error of the last work is recorded as a finding when it runs; the end goes on.
        let _ = self.drain_context(context);
        let healthy = self.contexts.get(&context).is_some_and(|found| found.error.is_none());
        if healthy {
            self.report_leaks(context);
        }
        self.pending.retain(|_, task| task.context != context);
        let gone: Vec<u64> = self
            .allocations
            .iter()
            .filter(|(_, allocation)| allocation.context == context)
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.drop_allocation(address);
        }
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
        self.functions.retain(|_, function| function.context != context);
        self.modules.retain(|_, module| module.context != context);
        self.captures.retain(|_, capture| capture.context != context);
        self.contexts.remove(&context);
        self.dump_counters();
        healthy
    }

    /// Writes the counters, and what was not exact, where the configuration wants them.
    fn dump_counters(&mut self) {
        let Some(path) = self.config.counters_file.clone() else { return };
        let Ok(mut report) = serde_json::to_value(&self.counters) else { return };
        let (approximate, unsupported) = self.fidelity();
        report["fidelity"] =
            serde_json::json!({ "approximate": approximate, "unsupported": unsupported });
        let text = serde_json::to_string_pretty(&report).unwrap_or_default();
        if let Err(error) = std::fs::write(&path, text) {
            super::write_stderr(&format!("cuda-emulator: {}: {error}\n", path.display()));
        }
    }

    fn report_leaks(&mut self, context: u64) {
        let mut left = Vec::new();
        let mut device: Vec<_> =
            self.allocations.iter().filter(|(_, a)| a.context == context && !a.module).collect();
        device.sort_by_key(|(address, _)| **address);
        for (address, allocation) in device {
            left.push(format!(
                "{} bytes of device memory at {address:#x} from {} were never freed",
                allocation.bytes, allocation.made_by
            ));
        }
        for (address, pinned) in self.pinned.iter().filter(|(_, pinned)| pinned.context == context)
        {
            left.push(format!(
                "{} bytes of pinned host memory at {address:#x} were never freed",
                pinned.bytes
            ));
        }
        let count = |left: &mut Vec<String>, n: usize, what: &str| {
            if n > 0 {
                left.push(format!("{n} {what} never destroyed"));
            }
        };
        let implicit = self.contexts.get(&context).map_or(0, |found| 1 + found.per_thread.len());
        let streams = self.streams.values().filter(|stream| stream.context == context).count();
        count(&mut left, streams.saturating_sub(implicit), "stream(s)");
        count(&mut left, self.events.values().filter(|e| e.context == context).count(), "event(s)");
        count(
            &mut left,
            self.modules.values().filter(|m| m.context == context).count(),
            "module(s)",
        );
        let handles = self.blas.handles.values().filter(|handle| handle.context == context);
        count(&mut left, handles.count(), "cuBLAS handle(s)");
        for message in left {
            self.report(Report::host(Class::Leak, "end of context", message));
        }
    }

    /// Reports cublasLt objects that are left behind.
    pub(crate) fn report_lt_leaks(&mut self) {
        let names = ["handle(s)", "matmul descriptor(s)", "matrix layout(s)", "preference(s)"];
        for (count, name) in self.blas.lt.counts().into_iter().zip(names) {
            if count > 0 {
                let message = format!("{count} cublasLt {name} never destroyed");
                self.report(Report::host(Class::Leak, "end of the program", message));
            }
        }
    }

    /// The current context, checked: it exists and has no sticky error.
    ///
    /// # Errors
    /// `NOT_INITIALIZED`, `INVALID_CONTEXT`, `CONTEXT_IS_DESTROYED`, or the sticky error.
    pub fn current_context(&mut self) -> Outcome<u64> {
        self.require_init()?;
        let context = current();
        if context == 0 {
            return Err(Status::INVALID_CONTEXT);
        }
        self.check_context(context)?;
        Ok(context)
    }

    /// Fails with the context's sticky error, or because it is gone.
    pub(crate) fn check_context(&self, context: u64) -> Outcome<()> {
        match self.contexts.get(&context) {
            None => Err(Status::CONTEXT_IS_DESTROYED),
            Some(found) => found.error.map_or(Ok(()), Err),
        }
    }

    /// Whether `context` exists, sticky error or not.
    #[must_use]
    pub fn context_exists(&self, context: u64) -> bool {
        self.contexts.contains_key(&context)
    }

    /// The device ordinal of a context.
    ///
    /// # Errors
    /// `INVALID_CONTEXT`.
    pub fn context_device(&self, context: u64) -> Outcome<i32> {
        self.contexts.get(&context).map(|found| found.device as i32).ok_or(Status::INVALID_CONTEXT)
    }

    /// `cuCtxGetFlags` and `cuCtxSetFlags`: the flags, after setting them if given.
    ///
    /// # Errors
    /// Those of the current context.
    pub fn context_flags(&mut self, set: Option<u32>) -> Outcome<u32> {
        let context = self.current_context()?;
        let found = self.contexts.get_mut(&context).ok_or(Status::INVALID_CONTEXT)?;
        if let Some(flags) = set {
            found.flags = flags;
        }
        Ok(found.flags)
    }

    /// `cuCtxGetCacheConfig` and `cuCtxSetCacheConfig`.
    ///
    /// # Errors
    /// Those of the current context.
    pub fn context_cache_config(&mut self, set: Option<i32>) -> Outcome<i32> {
        let context = self.current_context()?;
        let found = self.contexts.get_mut(&context).ok_or(Status::INVALID_CONTEXT)?;
        if let Some(config) = set {
            if !(0..=3).contains(&config) {
                return Err(Status::INVALID_VALUE);
            }
            found.cache_config = config;
        }
        Ok(found.cache_config)
    }

    /// `cuCtxGetLimit` and `cuCtxSetLimit`.
    ///
    /// # Errors
    /// `UNSUPPORTED_LIMIT` for an unknown number.
    pub fn context_limit(&mut self, limit: i32, set: Option<usize>) -> Outcome<usize> {
        let context = self.current_context()?;
        let found = self.contexts.get_mut(&context).ok_or(Status::INVALID_CONTEXT)?;
        let slot = found.limits.get_mut(&limit).ok_or(Status::UNSUPPORTED_LIMIT)?;
        if let Some(value) = set {
            *slot = value;
        }
        Ok(*slot)
    }

    /// `cuCtxEnablePeerAccess`.
    ///
    /// # Errors
    /// `INVALID_CONTEXT`, `INVALID_DEVICE` for the own device, `PEER_ACCESS_ALREADY_ENABLED`.
    pub fn enable_peer(&mut self, peer: u64) -> Outcome<()> {
        let context = self.current_context()?;
        let device = self.context_device(context)?;
        if self.context_device(peer)? == device {
            return Err(Status::INVALID_DEVICE);
        }
        let found = self.contexts.get_mut(&context).ok_or(Status::INVALID_CONTEXT)?;
        if found.peers.insert(peer) { Ok(()) } else { Err(Status::PEER_ACCESS_ALREADY_ENABLED) }
    }

    /// `cuCtxDisablePeerAccess`.
    ///
    /// # Errors
    /// `PEER_ACCESS_NOT_ENABLED`.
    pub fn disable_peer(&mut self, peer: u64) -> Outcome<()> {
        let context = self.current_context()?;
        let found = self.contexts.get_mut(&context).ok_or(Status::INVALID_CONTEXT)?;
        if found.peers.remove(&peer) { Ok(()) } else { Err(Status::PEER_ACCESS_NOT_ENABLED) }
    }
}
