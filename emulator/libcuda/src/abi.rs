//! What every entry point shares: pointers of the caller, error codes, and no panics across C.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cuda_emulator::{
    blas::{BlasOutcome, BlasStatus},
    runtime::{
        Runtime, in_callback,
        status::{Outcome, Status},
        with,
    },
};

/// Where a result goes. The C caller's contract is that it is null or points to a writable `T`.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Writes the result.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub(crate) fn set(self, value: T) -> Outcome<()> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and then, by the contract of the entry point whose argument this is,
        // writable for one `T`; C does not promise alignment beyond the type's, so unaligned.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the result unless the caller does not want it.
    pub(crate) fn set_if_wanted(self, value: T) {
        // A null pointer means that the caller does not want this part.
        let _ = self.set(value);
    }

    /// The same place again, for a result that is both read and written.
    pub(crate) fn clone_of(other: &Out<T>) -> Self {
        Out(other.0)
    }

    /// The address, for results that are more than one value.
    pub(crate) fn raw(&self) -> *mut T {
        self.0
    }
}

/// Something the caller passes by address, with the same contract for reading.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The place of a result that is an input as well.
    pub(crate) fn over(place: &Out<T>) -> Self {
        In(place.0)
    }

    /// Reads the value.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub(crate) fn get(&self) -> Outcome<T> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and then, by the contract of the entry point whose argument this is,
        // readable for one `T`.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Reads `count` values.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer with a count above 0.
    pub(crate) fn list(&self, count: usize) -> Outcome<Vec<T>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and then, by the contract of the entry point, readable for `count`
        // values of `T`.
        Ok((0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect())
    }

    /// The address as a number.
    pub(crate) fn address(&self) -> u64 {
        self.0 as u64
    }
}

/// Text the caller passes, NUL-terminated.
#[repr(transparent)]
pub struct Text(*const std::ffi::c_char);

impl Text {
    /// The bytes before the NUL.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer.
    pub(crate) fn bytes(&self) -> Outcome<&[u8]> {
        if self.0.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and then, by the contract of the entry point, NUL-terminated and
        // alive for the duration of the call.
        Ok(unsafe { std::ffi::CStr::from_ptr(self.0) }.to_bytes())
    }

    /// The text.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a null pointer or bytes that are not UTF-8.
    pub(crate) fn text(&self) -> Outcome<&str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Status::INVALID_VALUE)
    }
}

/// Runs one entry point: refuses driver calls from callbacks, keeps panics on this side.
pub(crate) fn entry(name: &str, call: impl FnOnce() -> Outcome<()>) -> i32 {
    if in_callback() {
        // The runtime is locked by the call that runs the callback, so no finding can be recorded.
        return Status::NOT_PERMITTED.0;
    }
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => 0,
        Ok(Err(status)) => status.0,
        Err(_) => {
            // A bug of the emulator: name the entry, so that it can be reported.
            let _ = catch_unwind(AssertUnwindSafe(|| with(|rt| rt.internal_error(name))));
            Status::UNKNOWN.0
        }
    }
}

/// As [`entry`], for entry points that return a `cublasStatus_t`.
pub(crate) fn blas_entry(name: &str, call: impl FnOnce() -> BlasOutcome<()>) -> i32 {
    if in_callback() {
        return BlasStatus::INTERNAL_ERROR.0;
    }
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => 0,
        Ok(Err(status)) => status.0,
        Err(_) => {
            let _ = catch_unwind(AssertUnwindSafe(|| with(|rt| rt.internal_error(name))));
            BlasStatus::INTERNAL_ERROR.0
        }
    }
}

/// Locks the runtime.
pub(crate) fn rt<T>(call: impl FnOnce(&mut Runtime) -> T) -> T {
    with(call)
}

/// Declares driver entry points whose bodies return `Outcome<()>`.
macro_rules! entries {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the CUDA driver API.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
            crate::abi::entry(stringify!($name), move || -> cuda_emulator::runtime::status::Outcome<()> { $body })
        }
    )*};
}

/// Declares cuBLAS entry points whose bodies return `BlasOutcome<()>`.
macro_rules! blas_entries {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: what the thin library's entry of that name forwards to.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
            crate::abi::blas_entry(stringify!($name), move || -> cuda_emulator::blas::BlasOutcome<()> { $body })
        }
    )*};
}

/// Declares entry points that are another one under an older or newer name.
macro_rules! aliases {
    ($($name:ident = $target:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: the same as `", stringify!($target), "`.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> i32 {
            // SAFETY: the same arguments under the same contract.
            unsafe { $target($($arg),*) }
        }
    )*};
}

pub(crate) use {aliases, blas_entries, entries};
