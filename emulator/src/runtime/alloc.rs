//! Device memory: plain and stream-ordered allocation and freeing.

use super::{
    Runtime,
    config::FaultSite,
    handle::Kind,
    order::Span,
    report::Class,
    status::{Outcome, Status},
    store::Store,
    task::Work,
};

/// What the runtime knows about one device allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) context: u64,
    pub(crate) device: usize,
    pub(crate) bytes: u64,
    pub(crate) made_by: String,
    /// From `cuMemAllocAsync`: usable, and freed, in stream order.
    pub(crate) pool: Option<u64>,
    /// A stream-ordered free is queued.
    pub(crate) free_queued: bool,
    /// A module's global variable: freed with the module.
    pub(crate) module: bool,
}

impl Runtime {
    pub(crate) fn allocate(
        &mut self,
        context: u64,
        bytes: u64,
        made_by: &str,
        pool: Option<u64>,
    ) -> Outcome<u64> {
        let device = self.contexts[&context].device;
        let fits = |rt: &Self| bytes <= rt.capacity(device).saturating_sub(rt.devices[device].used);
        if !fits(self) {
            // Frees that are queued must happen now: a pool waits for them before it gives up.
            let frees: Vec<_> = self
                .pending
                .iter()
                .filter(|(_, task)| matches!(task.work, Work::Free { .. }))
                .map(|(id, _)| *id)
                .collect();
            self.run_until(&frees);
            self.check_context(context)?;
        }
        if !fits(self) {
            return Err(Status::OUT_OF_MEMORY);
        }
        let address = self.store.allocate(bytes, made_by).ok_or(Status::OUT_OF_MEMORY)?;
        self.devices[device].used += bytes;
        self.counters.allocations += 1;
        self.counters.allocated_bytes += bytes;
        self.counters.live_bytes += bytes;
        self.counters.peak_bytes = self.counters.peak_bytes.max(self.counters.live_bytes);
        if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.grew(bytes);
        }
        self.allocations.insert(
            address,
            Allocation {
                context,
                device,
                bytes,
                made_by: made_by.to_owned(),
                pool,
                free_queued: false,
                module: false,
            },
        );
        Ok(address)
    }

    /// Gives the bytes back; later accesses are uses after free.
    pub(crate) fn drop_allocation(&mut self, address: u64) {
        let Some(allocation) = self.allocations.remove(&address) else { return };
        self.store.release(address);
        self.order.forget(Span::new(address, allocation.bytes));
        self.devices[allocation.device].used -= allocation.bytes;
        self.counters.live_bytes -= allocation.bytes;
        if !allocation.module {
            self.counters.frees += 1;
        }
        if let Some(pool) = allocation.pool.and_then(|pool| self.pools.get_mut(&pool)) {
            pool.shrank(allocation.bytes);
        }
    }

    /// `cuMemAlloc`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for 0 bytes, `OUT_OF_MEMORY`, a capture error, an injected fault.
    pub fn mem_alloc(&mut self, bytes: u64) -> Outcome<u64> {
        let context = self.current_context()?;
        self.forbid_any_capture("cuMemAlloc")?;
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        self.inject(FaultSite::Allocation)?;
        self.allocate(context, bytes, "cuMemAlloc", None)
    }

    /// `cuMemAllocAsync` and `cuMemAllocFromPoolAsync`: usable by work ordered after this point
    /// of the stream.
    ///
    /// # Errors
    /// `INVALID_VALUE` for 0 bytes, `OUT_OF_MEMORY`, an injected fault; `NOT_SUPPORTED` in a
    /// capturing stream, because graph memory nodes are not modelled.
    pub fn mem_alloc_async(&mut self, bytes: u64, pool: Option<u64>, stream: u64) -> Outcome<u64> {
        let stream = self.resolve_stream(stream, "cuMemAllocAsync")?;
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        if let Some(capture) = self.streams[&stream].capture {
            self.invalidate(capture);
            return Err(
                self.unsupported("cuMemAllocAsync in a capturing stream (graph memory nodes)")
            );
        }
        let context = self.streams[&stream].context;
        let device = self.contexts[&context].device;
        let pool = match pool {
            None => self.devices[device].pool,
            Some(pool) if self.pools.contains_key(&pool) => pool,
            Some(pool) => return Err(self.bad_handle(Kind::Pool, pool, "cuMemAllocFromPoolAsync")),
        };
        self.inject(FaultSite::Allocation)?;
        let address = self.allocate(context, bytes, "cuMemAllocAsync", Some(pool))?;
        self.enqueue(
            stream,
            "allocation by cuMemAllocAsync",
            Work::Allocate { address, bytes },
            None,
        )?;
        Ok(address)
    }

    /// Says why `address` cannot be freed, if it cannot.
    fn check_free(&mut self, address: u64, operation: &str) -> Outcome<()> {
        let freed = self.store.was_freed(address)
            || self.allocations.get(&address).is_some_and(|allocation| allocation.free_queued);
        if freed {
            return Err(self.refuse(
                Status::INVALID_VALUE,
                Class::DoubleFree,
                operation,
                format!("the allocation at {address:#x} was already freed"),
            ));
        }
        if self.allocations.get(&address).is_none_or(|allocation| allocation.module) {
            let inside = match self.store.find(address) {
                Some((base, size)) => {
                    format!("; it lies in the allocation of {size} bytes at {base:#x}")
                }
                None => String::new(),
            };
            return Err(self.refuse(
                Status::INVALID_VALUE,
                Class::InvalidFree,
                operation,
                format!("no allocation starts at {address:#x}{inside}"),
            ));
        }
        Ok(())
    }

    /// `cuMemFree`: strict, the host must know that nothing uses the memory any more.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a double or invalid free; the context's error for a free in use.
    pub fn mem_free(&mut self, address: u64) -> Outcome<()> {
        self.current_context()?;
        if address == 0 {
            return Ok(());
        }
        self.forbid_any_capture("cuMemFree")?;
        self.check_free(address, "cuMemFree")?;
        let bytes = self.allocations[&address].bytes;
        let context = self.allocations[&address].context;
        let span = Span::new(address, bytes);
        let in_use = self
            .order
            .unordered(span, &self.host)
            .map(|conflict| conflict.earlier.what)
            .or_else(|| self.queued_user(span));
        if let Some(what) = in_use {
            self.report(super::report::Report::host(
                Class::UseAfterFree,
                "cuMemFree",
                format!(
                    "the {bytes} bytes at {address:#x} are freed while {what} may still use them; synchronise first"
                ),
            ));
            if self.fails() {
                self.poison(context, Status::ILLEGAL_ADDRESS);
            }
        }
        self.drop_allocation(address);
        self.check_context(context)
    }

    /// Queued copies, fills and products whose ranges are known before they run.
    fn queued_user(&self, span: Span) -> Option<std::sync::Arc<str>> {
        self.pending
            .values()
            .find(|task| {
                if let Work::Free { .. } = task.work {
                    return false;
                }
                let (reads, writes) = self.footprint(&task.work);
                reads.iter().chain(&writes).any(|used| used.overlaps(span))
            })
            .map(|task| task.stamp.what.clone())
    }

    /// Makes `status` the sticky error of a context that has none.
    pub(crate) fn poison(&mut self, context: u64, status: Status) {
        if let Some(found) = self.contexts.get_mut(&context)
            && found.error.is_none()
        {
            found.error = Some(status);
        }
    }

    /// `cuMemFreeAsync`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a double or invalid free; `NOT_SUPPORTED` in a capturing stream.
    pub fn mem_free_async(&mut self, address: u64, stream: u64) -> Outcome<()> {
        let stream = self.resolve_stream(stream, "cuMemFreeAsync")?;
        if address == 0 {
            return Ok(());
        }
        if let Some(capture) = self.streams[&stream].capture {
            self.invalidate(capture);
            return Err(
                self.unsupported("cuMemFreeAsync in a capturing stream (graph memory nodes)")
            );
        }
        self.check_free(address, "cuMemFreeAsync")?;
        if let Some(allocation) = self.allocations.get_mut(&address) {
            allocation.free_queued = true;
        }
        self.enqueue(stream, "free by cuMemFreeAsync", Work::Free { address }, None)?;
        Ok(())
    }

    /// `cuMemGetAddressRange`: base and size of the allocation an address lies in.
    ///
    /// # Errors
    /// `NOT_FOUND` when it lies in none.
    pub fn address_range(&mut self, address: u64) -> Outcome<(u64, u64)> {
        self.current_context()?;
        self.store.find(address).ok_or(Status::NOT_FOUND)
    }

    /// What `cuPointerGetAttribute` needs: context, device, base, size and pool of an address.
    #[must_use]
    pub fn pointer_facts(&self, address: u64) -> Option<PointerFacts> {
        if let Some((base, bytes)) = self.store.find(address) {
            let allocation = self.allocations.get(&base)?;
            return Some(PointerFacts {
                context: allocation.context,
                device: allocation.device as i32,
                base,
                bytes,
                host: false,
                pool: allocation.pool.unwrap_or(0),
            });
        }
        let (base, pinned) = self.pinned_at(address, 1)?;
        Some(PointerFacts {
            context: pinned.context,
            device: self.context_device(pinned.context).unwrap_or(0),
            base,
            bytes: pinned.bytes,
            host: true,
            pool: 0,
        })
    }

    /// Whether an address is a device address, live or not.
    #[must_use]
    pub fn is_device_address(&self, address: u64) -> bool {
        Store::is_device_address(address)
    }
}

/// What is known about an address.
#[derive(Clone, Copy, Debug)]
pub struct PointerFacts {
    /// The context that owns the memory.
    pub context: u64,
    /// The device of that context.
    pub device: i32,
    /// Start of the allocation.
    pub base: u64,
    /// Its size.
    pub bytes: u64,
    /// Pinned host memory, as against device memory.
    pub host: bool,
    /// The pool it came from, 0 for none.
    pub pool: u64,
}
