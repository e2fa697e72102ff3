//! What the thin libraries (libcublas, libcublasLt) are made of: entries that forward to the emulated
//! libcuda, which holds all state, and entries that refuse by name.

use std::ffi::{CStr, c_char, c_int};

/// `CUBLAS_STATUS_NOT_INITIALIZED`.
pub const NOT_INITIALIZED: c_int = 1;

/// An export of the emulated libcuda; 0 when another libcuda, or none, is loaded.
#[allow(unsafe_code, reason = "looks a symbol of a loaded library up")]
#[must_use]
pub fn export(name: &CStr) -> usize {
    // SAFETY: NUL-terminated names; `RTLD_NOLOAD` only finds what is loaded, and the handle's
    // reference is kept for the life of the process, so the address stays valid.
    unsafe {
        let handle = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if handle.is_null() { 0 } else { libc::dlsym(handle, name.as_ptr()) as usize }
    }
}

/// Records a finding about an entry that is not implemented; `name` ends with a NUL.
#[allow(unsafe_code, reason = "calls the loaded libcuda")]
#[must_use]
pub fn refuse(name: &str) -> c_int {
    let target = export(c"cuda_emulator_blas_unsupported");
    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { return NOT_INITIALIZED };
    if target == 0 {
        return NOT_INITIALIZED;
    }
    // SAFETY: the emulated libcuda exports this function with this signature; the name is
    // NUL-terminated.
    unsafe {
        let target: unsafe extern "C" fn(*const c_char) -> c_int = std::mem::transmute(target);
        target(name.as_ptr())
    }
}

/// Declares entries `name(argument: type, …);` of a thin library that forward to the export
/// `cuda_emulator_name` of the emulated libcuda, and the mark by which the loader knows the library.
#[macro_export]
macro_rules! forward {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {
        /// Tells the loader that this is the emulator's library.
        #[unsafe(no_mangle)]
        pub extern "C" fn cuda_emulator_thin() -> ::std::ffi::c_int {
            1
        }
        $(
            #[doc = concat!("`", stringify!($name), "`: forwarded.")]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> ::std::ffi::c_int {
                static TARGET: ::std::sync::OnceLock<usize> = ::std::sync::OnceLock::new();
                const NAME: &str = concat!("cuda_emulator_", stringify!($name), "\0");
                let target = *TARGET.get_or_init(|| {
                    ::std::ffi::CStr::from_bytes_with_nul(NAME.as_bytes())
                        .map_or(0, $crate::thin::export)
                });
                if target == 0 {
                    return $crate::thin::NOT_INITIALIZED;
                }
                // SAFETY: the emulated libcuda exports this name with exactly this C signature, and
                // the arguments are passed on under the caller's contract.
                unsafe {
                    let target: unsafe extern "C" fn($($ty),*) -> ::std::ffi::c_int =
                        ::std::mem::transmute(target);
                    target($($arg),*)
                }
            }
        )*
    };
}

/// Declares entries of a thin library that are exported only to refuse.
#[macro_export]
macro_rules! unsupported {
    ($($name:ident)*) => {
        /// Names of the entries that are exported only to refuse.
        pub const UNSUPPORTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[doc = concat!("`", stringify!($name), "`: not implemented.")]
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> ::std::ffi::c_int {
                $crate::thin::refuse(concat!(stringify!($name), "\0"))
            }
        )*
    };
}
