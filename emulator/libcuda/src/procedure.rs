//! `cuGetProcAddress`: this library's own entry points by name.

use std::ffi::{CString, c_int, c_ulonglong, c_void};

use cuda_emulator::runtime::status::{Outcome, Status};

use crate::abi::{Out, Text, entries};

/// Entries whose newer form has another signature, and the version that brought it.
const VERSIONED: &[(&str, c_int, &str)] = &[
    ("cuCtxCreate", 12_050, "_v4"),
    ("cuCtxCreate", 11_040, "_v3"),
    ("cuGraphExecUpdate", 12_000, "_v2"),
    ("cuGraphAddKernelNode", 12_000, "_v2"),
    ("cuGraphInstantiate", 12_000, "WithFlags"),
    ("cuEventElapsedTime", 12_080, "_v2"),
    ("cuStreamBeginCapture", 10_010, "_v2"),
    ("cuGetProcAddress", 12_000, "_v2"),
    ("cuDeviceGetUuid", 11_040, "_v2"),
];

/// Entries that keep their first form unless the table above says otherwise.
const UNVERSIONED: &[&str] = &["cuMemAdvise", "cuMemPrefetchAsync", "cuGetProcAddress"];

fn find(name: &str, version: c_int) -> Option<*mut c_void> {
    let lookup = |symbol: String| {
        let symbol = CString::new(symbol).ok()?;
        own_symbol(&symbol)
    };
    let newer = VERSIONED.iter().find(|row| row.0 == name && version >= row.1);
    if let Some((_, _, suffix)) = newer {
        return lookup(format!("{name}{suffix}"));
    }
    if !VERSIONED.iter().any(|row| row.0 == name)
        && !UNVERSIONED.contains(&name)
        && let Some(found) = lookup(format!("{name}_v2"))
    {
        return Some(found);
    }
    lookup(name.to_owned())
}

/// A symbol of this shared library, whatever else the process has loaded.
fn own_symbol(symbol: &std::ffi::CStr) -> Option<*mut c_void> {
    // SAFETY: an all-zero Dl_info is valid (null pointers), and the address asked about is a
    // function of this library.
    let handle = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(cuGetProcAddress as *const c_void, &raw mut info) == 0 {
            return None;
        }
        libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD)
    };
    if handle.is_null() {
        return None;
    }
    // SAFETY: a handle of a loaded library and a NUL-terminated name; the reference that dlopen
    // added is given back afterwards.
    let found = unsafe {
        let found = libc::dlsym(handle, symbol.as_ptr());
        libc::dlclose(handle);
        found
    };
    (!found.is_null()).then_some(found)
}

fn procedure(name: &Text, version: c_int) -> Outcome<*mut c_void> {
    find(name.text()?, version).ok_or(Status::NOT_FOUND)
}

entries! {
    // Undocumented tables of the driver; NVRTC asks for one and does without it. None is here.
    cuGetExportTable(table: Out<*const c_void>, _id: *const c_void) {
        table.set_if_wanted(std::ptr::null());
        Err(Status::NOT_FOUND)
    }
    cuGetProcAddress(name: Text, function: Out<*mut c_void>, version: c_int, _flags: c_ulonglong) {
        function.set(procedure(&name, version)?)
    }
    cuGetProcAddress_v2(name: Text, function: Out<*mut c_void>, version: c_int, _flags: c_ulonglong, result: Out<c_int>) {
        match procedure(&name, version) {
            Ok(found) => {
                result.set_if_wanted(0);
                function.set(found)
            }
            Err(status) => {
                result.set_if_wanted(1);
                function.set_if_wanted(std::ptr::null_mut());
                Err(status)
            }
        }
    }
}
