//! Copies and fills as the driver's calls make them: what is staged, what waits, what is queued.

use super::{
    Runtime,
    config::FaultSite,
    host::{extent, read_host},
    report::Class,
    status::{Outcome, Status},
    store::Store,
    task::{HostSource, Rows, Work},
};

/// One side of a copy.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A host address.
    Host(u64),
    /// A device address.
    Device(u64),
    /// An address of either kind, told apart by its value.
    Unified(u64),
}

/// A copy of `height` rows of `width` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Copy2d {
    /// Where the bytes come from.
    pub src: Place,
    /// Where they go.
    pub dst: Place,
    /// Bytes per row.
    pub width: u64,
    /// Number of rows.
    pub height: u64,
    /// Bytes from one source row to the next.
    pub src_pitch: u64,
    /// Bytes from one destination row to the next.
    pub dst_pitch: u64,
}

impl Copy2d {
    /// A copy of one run of bytes.
    #[must_use]
    pub fn linear(dst: Place, src: Place, bytes: u64) -> Self {
        Copy2d { src, dst, width: bytes, height: 1, src_pitch: bytes, dst_pitch: bytes }
    }
}

impl Runtime {
    /// One side of a copy as a device or host address that holds the rows.
    fn place(&mut self, place: Place, pitch: u64, rows: Rows, operation: &str) -> Outcome<Place> {
        let bytes = extent(pitch, rows.width, rows.height);
        let (address, wanted_host) = match place {
            Place::Host(address) => (address, Some(true)),
            Place::Device(address) => (address, Some(false)),
            Place::Unified(address) => (address, None),
        };
        let is_device = Store::is_device_address(address);
        let wrong = if address == 0 {
            Some("a null address".to_owned())
        } else if wanted_host == Some(true) && is_device {
            Some(format!("{address:#x} is a device address, where a host address belongs"))
        } else if wanted_host == Some(false)
            && !is_device
            && self.pinned_at(address, bytes).is_none()
        {
            Some(format!("{address:#x} is not a device address"))
        } else {
            None
        };
        if let Some(message) = wrong {
            return Err(self.refuse(
                Status::INVALID_VALUE,
                Class::InvalidArgument,
                operation,
                message,
            ));
        }
        if !is_device {
            return Ok(Place::Host(address));
        }
        if let Err(fault) = self.store.check(address, bytes) {
            return Err(self.refuse(Status::INVALID_VALUE, fault.class, operation, fault.message));
        }
        Ok(Place::Device(address))
    }

    /// Every `cuMemcpy*` call; `stream` is `None` for the ones without a stream.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a range outside its allocation, a capture error, an injected fault, or
    /// the error of work this call waits for.
    pub fn copy(&mut self, operation: &str, copy: Copy2d, stream: Option<u64>) -> Outcome<()> {
        let blocking = stream.is_none();
        let context = self.current_context()?;
        let stream = match stream {
            Some(stream) => self.resolve_stream(stream, operation)?,
            None => {
                self.forbid_any_capture(operation)?;
                self.contexts[&context].legacy
            }
        };
        if copy.width == 0 || copy.height == 0 {
            return Ok(());
        }
        if copy.src_pitch < copy.width || copy.dst_pitch < copy.width {
            return Err(Status::INVALID_VALUE);
        }
        let rows = Rows {
            width: copy.width,
            height: copy.height,
            src_pitch: copy.src_pitch,
            dst_pitch: copy.dst_pitch,
        };
        let src = self.place(copy.src, copy.src_pitch, rows, operation)?;
        let dst = self.place(copy.dst, copy.dst_pitch, rows, operation)?;
        let capturing = self.streams[&stream].capture.is_some();
        // A captured copy counts when its graph is launched.
        let fault = if capturing { None } else { self.inject(FaultSite::Copy)? };
        if blocking {
            self.counters.blocking_copies += 1;
        }
        match (src, dst) {
            (Place::Host(src), Place::Device(dst)) => {
                let pinned =
                    self.pinned_at(src, extent(rows.src_pitch, rows.width, rows.height)).is_some();
                let source = if pinned {
                    let digest = if capturing { None } else { self.digest_pinned(src, rows) };
                    HostSource::Pinned { address: src, digest }
                } else if capturing {
                    HostSource::AtLaunch { address: src }
                } else {
                    if blocking {
                        self.wait_stream(stream)?;
                    }
                    HostSource::Staged(read_host(src, rows).into())
                };
                self.enqueue(stream, operation, Work::HostToDevice { source, dst, rows }, fault)?;
                // From pageable memory the call returns when the bytes are staged; the device may
                // get them later. From pinned memory it returns when the copy is done.
                if blocking && pinned {
                    self.wait_stream(stream)?;
                }
            }
            (Place::Device(src), Place::Host(dst)) => {
                let pinned =
                    self.pinned_at(dst, extent(rows.dst_pitch, rows.width, rows.height)).is_some();
                let work = Work::DeviceToHost { src, dst, pinned, rows };
                if pinned && !capturing {
                    self.scramble_pinned(&work);
                }
                self.enqueue(stream, operation, work, fault)?;
                if !capturing && (blocking || !pinned) {
                    if !blocking {
                        self.counters.blocking_copies += 1;
                    }
                    self.wait_stream(stream)?;
                }
            }
            (Place::Device(src), Place::Device(dst)) => {
                self.enqueue(stream, operation, Work::DeviceToDevice { src, dst, rows }, fault)?;
            }
            (Place::Host(src), Place::Host(dst)) => {
                if capturing {
                    return Err(self.unsupported("a host-to-host copy in a capturing stream"));
                }
                self.wait_stream(stream)?;
                write_host(dst, &read_host(src, rows), rows);
            }
            _ => return Err(Status::INVALID_VALUE),
        }
        Ok(())
    }

    /// Every `cuMemset*` call: `pattern` of `unit` bytes over `height` rows of `width` bytes.
    ///
    /// # Errors
    /// As [`Runtime::copy`]; `INVALID_VALUE` also for a misaligned address.
    pub fn fill(
        &mut self,
        operation: &str,
        dst: u64,
        pattern: u32,
        unit: u8,
        rows: (u64, u64, u64),
        stream: Option<u64>,
    ) -> Outcome<()> {
        let (width, height, pitch) = rows;
        let context = self.current_context()?;
        let stream = match stream {
            Some(stream) => self.resolve_stream(stream, operation)?,
            None => {
                self.forbid_any_capture(operation)?;
                self.contexts[&context].legacy
            }
        };
        if width == 0 || height == 0 {
            return Ok(());
        }
        let rows = Rows { width, height, src_pitch: pitch, dst_pitch: pitch };
        if pitch < width {
            return Err(Status::INVALID_VALUE);
        }
        let Place::Device(dst) = self.place(Place::Device(dst), pitch, rows, operation)? else {
            return Err(self.unsupported("a memset of pinned host memory"));
        };
        if !dst.is_multiple_of(u64::from(unit)) {
            return Err(self.refuse(
                Status::INVALID_VALUE,
                Class::Misaligned,
                operation,
                format!("{dst:#x} is not a multiple of {unit}"),
            ));
        }
        let capturing = self.streams[&stream].capture.is_some();
        let fault = if capturing { None } else { self.inject(FaultSite::Copy)? };
        self.enqueue(stream, operation, Work::Fill { dst, pattern, unit, rows }, fault)?;
        Ok(())
    }
}

/// Writes packed rows to host memory.
#[allow(unsafe_code, reason = "writes memory the program passed as a copy's destination")]
pub(crate) fn write_host(address: u64, bytes: &[u8], rows: Rows) {
    if rows.width == 0 {
        return;
    }
    for (row, from) in bytes.chunks_exact(rows.width as usize).enumerate() {
        let at = (address + row as u64 * rows.dst_pitch) as *mut u8;
        // SAFETY: the caller of the driver promises that the destination of a copy is writable
        // until the copy is done; for pinned memory the runtime has checked the range as well.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at, from.len()) };
    }
}
