//! Device memory that only the device's own stream touches.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};

use super::status::driver_error;
use crate::error::Result;

/// A typed allocation. Its address goes into tables and launches as a number: cudarc's event tracking is
/// not needed where one stream does everything, and would cost two driver calls a use.
pub(super) struct Buffer<T> {
    slice: CudaSlice<T>,
    address: u64,
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    /// Zeroed memory for at least one element.
    ///
    /// # Errors
    /// `is_out_of_memory`; a failed device.
    pub(super) fn zeroed(stream: &Arc<CudaStream>, len: usize, what: &str) -> Result<Self> {
        let slice = stream.alloc_zeros::<T>(len.max(1)).map_err(|e| {
            driver_error(
                e,
                format_args!("allocating {} bytes for {what}", len.max(1) * size_of::<T>()),
            )
        })?;
        let (address, guard) = slice.device_ptr(stream);
        // The guard would record an event; nothing was enqueued yet.
        std::mem::forget(guard);
        Ok(Self { slice, address })
    }

    /// Copies from the host to the front of the buffer. Pageable memory is staged before this returns.
    ///
    /// # Errors
    /// A failed device. `source` must not be longer than the buffer.
    pub(super) fn upload(
        &mut self,
        stream: &Arc<CudaStream>,
        source: &[T],
        what: &str,
    ) -> Result<()> {
        if source.is_empty() {
            return Ok(());
        }
        let Some(mut view) = self.slice.try_slice_mut(..source.len()) else {
            return Err(crate::error::Error::shape_mismatch(what, self.len(), source.len()));
        };
        stream
            .memcpy_htod(source, &mut view)
            .map_err(|e| driver_error(e, format_args!("copying {what} to the device")))
    }
}

impl<T: DeviceRepr + Clone + Default> Buffer<T> {
    /// Copies the first `len` elements to the host; waits for the stream.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn download(
        &self,
        stream: &Arc<CudaStream>,
        len: usize,
        what: &str,
    ) -> Result<Vec<T>> {
        let mut out = vec![T::default(); len];
        let failed = |e| driver_error(e, format_args!("copying {what} to the host"));
        if len > 0 {
            stream.memcpy_dtoh(&self.slice.slice(..len), &mut out).map_err(failed)?;
        }
        stream.synchronize().map_err(failed)?;
        Ok(out)
    }
}

impl<T> Buffer<T> {
    /// Address of the first element.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.slice.len()
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} x {} bytes at {:#x})", self.slice.len(), size_of::<T>(), self.address)
    }
}

/// A table on the host and its copy on the device, which is renewed where it differs.
#[derive(Debug)]
pub(super) struct Table<T> {
    host: Vec<T>,
    device: Option<Buffer<T>>,
    what: &'static str,
}

impl<T: DeviceRepr + ValidAsZeroBits + Copy + PartialEq> Table<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { host: Vec::new(), device: None, what }
    }

    /// Makes the device's copy equal to `rows`: no call into the driver where it is already.
    ///
    /// # Errors
    /// Out of memory; a failed device. The device's copy is then renewed next time.
    pub(super) fn set(&mut self, stream: &Arc<CudaStream>, rows: &[T]) -> Result<u64> {
        let fits = self.device.as_ref().filter(|d| d.len() >= rows.len());
        if let Some(device) = fits
            && self.host == rows
        {
            return Ok(device.address());
        }
        self.host.clear();
        let mut device = match self.device.take().filter(|d| d.len() >= rows.len()) {
            Some(device) => device,
            None => Buffer::zeroed(stream, rows.len().next_power_of_two(), self.what)?,
        };
        device.upload(stream, rows, self.what)?;
        self.host.extend_from_slice(rows);
        let address = device.address();
        self.device = Some(device);
        Ok(address)
    }
}

/// Room on the device that grows and is never read by the host.
#[derive(Debug)]
pub(super) struct Room<T> {
    device: Option<Buffer<T>>,
    what: &'static str,
}

impl<T: DeviceRepr + ValidAsZeroBits> Room<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { device: None, what }
    }

    /// Address of room for at least `len` elements; what it held is lost when it grows.
    ///
    /// # Errors
    /// Out of memory; a failed device.
    pub(super) fn reserve(&mut self, stream: &Arc<CudaStream>, len: usize) -> Result<u64> {
        if self.device.as_ref().is_none_or(|d| d.len() < len) {
            self.device = None;
            self.device = Some(Buffer::zeroed(stream, len.next_power_of_two(), self.what)?);
        }
        Ok(self.device.as_ref().map_or(0, Buffer::address))
    }

    /// The buffer, once it was reserved.
    pub(super) fn buffer(&self) -> Option<&Buffer<T>> {
        self.device.as_ref()
    }
}

impl Buffer<u8> {
    /// Copies `out.len()` f32 from a byte offset to the host; waits for the stream.
    ///
    /// # Errors
    /// A failed device; a range that is not in the buffer.
    pub(super) fn download_f32(
        &self,
        stream: &Arc<CudaStream>,
        offset: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let end = offset.saturating_add(size_of_val(out));
        let failed = |e| driver_error(e, "copying directions to the host");
        let Some(bytes) = self.slice.try_slice(offset..end) else {
            return Err(crate::error::Error::shape_mismatch(
                "bytes of directions",
                self.len(),
                end,
            ));
        };
        // SAFETY: the range was written as f32 by pass A, and its start is a multiple of 16 bytes.
        let Some(view) = (unsafe { bytes.transmute::<f32>(out.len()) }) else {
            return Err(crate::error::Error::shape_mismatch(
                "bytes of directions",
                self.len(),
                end,
            ));
        };
        stream.memcpy_dtoh(&view, out).map_err(failed)?;
        stream.synchronize().map_err(failed)
    }

    /// Copies f32 from the host to a byte offset.
    ///
    /// # Errors
    /// A failed device; a range that is not in the buffer.
    pub(super) fn upload_f32(
        &mut self,
        stream: &Arc<CudaStream>,
        offset: usize,
        source: &[f32],
    ) -> Result<()> {
        let end = offset.saturating_add(size_of_val(source));
        let len = self.len();
        let Some(mut bytes) = self.slice.try_slice_mut(offset..end) else {
            return Err(crate::error::Error::shape_mismatch("bytes of directions", len, end));
        };
        stream
            .memcpy_htod(bytemuck::cast_slice::<f32, u8>(source), &mut bytes)
            .map_err(|e| driver_error(e, "copying directions to the device"))
    }
}
