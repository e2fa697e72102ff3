//! Pinned host memory: real memory that queued copies read and write when they run.

use std::alloc::Layout;

use super::{
    Runtime,
    config::FaultSite,
    order::Span,
    report::{Class, Report},
    status::{Outcome, Status},
    task::{HostSource, Work},
};

/// One pinned host allocation.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) context: u64,
    pub(crate) bytes: u64,
    /// Registered by `cuMemHostRegister`: the memory is the program's own.
    pub(crate) foreign: bool,
    pub(crate) flags: u32,
}

const ALIGN: usize = 4096;

fn layout(bytes: u64) -> Option<Layout> {
    Layout::from_size_align(usize::try_from(bytes).ok()?.max(1), ALIGN).ok()
}

impl Runtime {
    /// `cuMemHostAlloc` and `cuMemAllocHost`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for 0 bytes or unknown flags, `OUT_OF_MEMORY`, an injected fault.
    #[allow(unsafe_code, reason = "pinned memory is real memory handed to the program")]
    pub fn host_alloc(&mut self, bytes: u64, flags: u32) -> Outcome<u64> {
        let context = self.current_context()?;
        self.forbid_any_capture("cuMemHostAlloc")?;
        if bytes == 0 || flags & !7 != 0 {
            return Err(Status::INVALID_VALUE);
        }
        self.inject(FaultSite::Allocation)?;
        let layout = layout(bytes).ok_or(Status::OUT_OF_MEMORY)?;
        // SAFETY: the layout has a non-zero size.
        let pointer = unsafe { std::alloc::alloc(layout) };
        if pointer.is_null() {
            return Err(Status::OUT_OF_MEMORY);
        }
        // Fresh pinned memory is not zero on a device either: fill it with a NaN pattern.
        // SAFETY: the allocation above has `layout.size()` bytes and nobody else knows it yet.
        unsafe { std::ptr::write_bytes(pointer, 0xFF, layout.size()) };
        let address = pointer as u64;
        self.pinned.insert(address, Pinned { context, bytes, foreign: false, flags });
        self.counters.host_allocations += 1;
        Ok(address)
    }

    /// `cuMemHostRegister`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for nothing or a null address, `712` when it overlaps pinned memory.
    pub fn host_register(&mut self, address: u64, bytes: u64, flags: u32) -> Outcome<()> {
        let context = self.current_context()?;
        if address == 0 || bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let span = Span::new(address, bytes);
        if self.pinned.iter().any(|(start, pinned)| Span::new(*start, pinned.bytes).overlaps(span))
        {
            return Err(Status(712));
        }
        self.pinned.insert(address, Pinned { context, bytes, foreign: true, flags });
        Ok(())
    }

    /// `cuMemFreeHost`, or `cuMemHostUnregister` for registered memory.
    ///
    /// # Errors
    /// `INVALID_VALUE` for an address that is not the start of such memory, and the context's
    /// error when queued work still uses it.
    #[allow(unsafe_code, reason = "gives real memory back")]
    pub fn host_free(&mut self, address: u64, foreign: bool) -> Outcome<()> {
        self.current_context()?;
        let operation = if foreign { "cuMemHostUnregister" } else { "cuMemFreeHost" };
        let Some(pinned) = self.pinned.get(&address).filter(|pinned| pinned.foreign == foreign)
        else {
            return Err(self.refuse(
                if foreign { Status::HOST_MEMORY_NOT_REGISTERED } else { Status::INVALID_VALUE },
                Class::InvalidFree,
                operation,
                format!("no pinned host memory starts at {address:#x}"),
            ));
        };
        let (context, bytes) = (pinned.context, pinned.bytes);
        let span = Span::new(address, bytes);
        let queued = self
            .pending
            .values()
            .find(|task| host_span(&task.work).is_some_and(|used| used.overlaps(span)))
            .map(|task| task.stamp.what.clone())
            .or_else(|| self.order.unordered(span, &self.host).map(|found| found.earlier.what));
        if let Some(what) = queued {
            self.report(Report::host(
                Class::HostMemory,
                operation,
                format!(
                    "{bytes} bytes of pinned host memory at {address:#x} are freed while {what} may still use them; synchronise first"
                ),
            ));
            if self.fails() {
                self.poison(context, Status::ILLEGAL_ADDRESS);
            }
        }
        self.pinned.remove(&address);
        self.order.forget(span);
        if let (false, Some(layout)) = (foreign, layout(bytes)) {
            // SAFETY: `host_alloc` made this allocation with the same layout, and its entry has
            // just been removed, so it is given back once.
            unsafe { std::alloc::dealloc(address as *mut u8, layout) };
        }
        self.check_context(context)
    }

    /// Gives all pinned memory back, whoever made it.
    #[allow(unsafe_code, reason = "gives real memory back")]
    pub(crate) fn free_all_pinned(&mut self) {
        for (address, pinned) in std::mem::take(&mut self.pinned) {
            if let (false, Some(layout)) = (pinned.foreign, layout(pinned.bytes)) {
                // SAFETY: `host_alloc` made this allocation with the same layout, and its entry is
                // gone, so it is given back once.
                unsafe { std::alloc::dealloc(address as *mut u8, layout) };
            }
        }
    }

    /// The pinned allocation that holds `bytes` bytes at `address`.
    pub(crate) fn pinned_at(&self, address: u64, bytes: u64) -> Option<(u64, &Pinned)> {
        let (start, pinned) = self.pinned.range(..=address).next_back()?;
        (address - start)
            .checked_add(bytes)
            .filter(|end| *end <= pinned.bytes)
            .map(|_| (*start, pinned))
    }

    /// `cuMemHostGetFlags`.
    ///
    /// # Errors
    /// `INVALID_VALUE` when the address is not pinned memory.
    pub fn host_flags(&mut self, address: u64) -> Outcome<u32> {
        self.current_context()?;
        self.pinned_at(address, 1).map(|(_, pinned)| pinned.flags).ok_or(Status::INVALID_VALUE)
    }

    /// A digest of pinned memory, unless queued work or a callback may legitimately change it.
    pub(crate) fn digest_pinned(&self, address: u64, rows: super::task::Rows) -> Option<u64> {
        let span = Span::new(address, extent(rows.src_pitch, rows.width, rows.height));
        let changing = self.pending.values().any(|task| match &task.work {
            Work::Host(_) => true,
            Work::DeviceToHost { .. } => {
                host_span(&task.work).is_some_and(|used| used.overlaps(span))
            }
            _ => false,
        });
        if changing {
            return None;
        }
        Some(digest(&read_host(address, rows)))
    }

    /// Overwrites the destination of a queued copy: until the copy has run, what is there is
    /// undefined, and a host that reads too early should notice.
    #[allow(unsafe_code, reason = "writes pinned memory")]
    pub(crate) fn scramble_pinned(&mut self, work: &Work) {
        let Work::DeviceToHost { dst, rows, .. } = work else { return };
        let Some(span) = host_span(work) else { return };
        let read_first = self.pending.values().any(|task| {
            matches!(task.work, Work::HostToDevice { .. } | Work::Host(_))
                && host_span(&task.work).is_none_or(|used| used.overlaps(span))
        });
        if read_first {
            return;
        }
        for row in 0..rows.height {
            let at = (dst + row * rows.dst_pitch) as *mut u8;
            // SAFETY: the caller found the whole range inside one live pinned allocation.
            unsafe { std::ptr::write_bytes(at, 0xFF, rows.width as usize) };
        }
    }
}

/// Bytes from the first to the last byte of `height` rows.
pub(crate) fn extent(pitch: u64, width: u64, height: u64) -> u64 {
    if height == 0 { 0 } else { pitch * (height - 1) + width }
}

/// The host memory a queued copy will touch when it runs.
pub(crate) fn host_span(work: &Work) -> Option<Span> {
    match work {
        Work::HostToDevice { source: HostSource::Pinned { address, .. }, rows, .. } => {
            Some(Span::new(*address, extent(rows.src_pitch, rows.width, rows.height)))
        }
        Work::DeviceToHost { dst, rows, .. } => {
            Some(Span::new(*dst, extent(rows.dst_pitch, rows.width, rows.height)))
        }
        _ => None,
    }
}

/// Copies rows of host memory into one packed buffer.
#[allow(unsafe_code, reason = "reads memory the program passed as a copy's source")]
pub(crate) fn read_host(address: u64, rows: super::task::Rows) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows.bytes() as usize);
    for row in 0..rows.height {
        let at = (address + row * rows.src_pitch) as *const u8;
        // SAFETY: the caller of the driver promises that the source of a copy is readable; for
        // pinned memory the runtime has checked the range as well.
        let row = unsafe { std::slice::from_raw_parts(at, rows.width as usize) };
        bytes.extend_from_slice(row);
    }
    bytes
}

/// FNV-1a over 8-byte words: fast, and any single change shows.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut value = [0; 8];
        value.copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(value)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    for byte in words.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    hash
}
