//! Initialisation, versions, errors and devices.

use std::ffi::{c_char, c_int, c_uint};

use cuda_emulator::runtime::status::Status;

use crate::abi::{Out, aliases, entries, rt};

/// The driver version the emulator presents: 13.0.
const DRIVER_VERSION: c_int = 13_000;

entries! {
    cuInit(flags: c_uint) { rt(|rt| rt.init(flags)) }
    cuDriverGetVersion(version: Out<c_int>) { version.set(DRIVER_VERSION) }
    cuDeviceGet(device: Out<c_int>, ordinal: c_int) {
        rt(|rt| rt.profile(ordinal).map(drop))?;
        device.set(ordinal)
    }
    cuDeviceGetCount(count: Out<c_int>) {
        let found = rt(|rt| rt.require_init().map(|()| rt.device_count()))?;
        count.set(found as c_int)
    }
    cuDeviceGetName(name: Out<c_char>, len: c_int, device: c_int) {
        let text = rt(|rt| rt.profile(device).map(|profile| profile.name.clone()))?;
        let len = usize::try_from(len).map_err(|_| Status::INVALID_VALUE)?;
        if len == 0 || name.raw().is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let bytes: Vec<u8> = text.bytes().take(len - 1).chain([0]).collect();
        // SAFETY: not null, and writable for `len` bytes by the contract of cuDeviceGetName;
        // `bytes` has at most `len` of them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), name.raw().cast::<u8>(), bytes.len()) };
        Ok(())
    }
    cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) {
        let capability = rt(|rt| rt.profile(device).map(|profile| profile.compute_capability))?;
        let mut bytes = *b"cuda-emulator\0\0\0";
        bytes[13] = capability.0 as u8;
        bytes[14] = capability.1 as u8;
        bytes[15] = device as u8;
        uuid.set(bytes)
    }
    cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) {
        bytes.set(rt(|rt| rt.total_memory(device))? as usize)
    }
    cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) {
        let found = rt(|rt| rt.profile(device).map(|profile| profile.attribute(attribute, device)))?;
        value.set(found.ok_or(Status::INVALID_VALUE)?)
    }
    cuDeviceComputeCapability(major: Out<c_int>, minor: Out<c_int>, device: c_int) {
        let (high, low) = rt(|rt| rt.profile(device).map(|profile| profile.compute_capability))?;
        major.set(high as c_int)?;
        minor.set(low as c_int)
    }
    cuDeviceGetPCIBusId(text: Out<c_char>, len: c_int, device: c_int) {
        rt(|rt| rt.profile(device).map(drop))?;
        let id = format!("0000:{:02x}:00.0\0", device + 1);
        if text.raw().is_null() || usize::try_from(len).is_ok_and(|len| len < id.len()) || len < 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null and writable for `len` bytes by contract; `id` is no longer than that.
        unsafe { std::ptr::copy_nonoverlapping(id.as_ptr(), text.raw().cast::<u8>(), id.len()) };
        Ok(())
    }
    cuDeviceCanAccessPeer(can: Out<c_int>, device: c_int, peer: c_int) {
        rt(|rt| rt.profile(device).map(drop).and_then(|()| rt.profile(peer).map(drop)))?;
        can.set(c_int::from(device != peer))
    }
    cuGetErrorName(status: c_int, text: Out<*const c_char>) { error_text(status, text, NAMES) }
    cuGetErrorString(status: c_int, text: Out<*const c_char>) { error_text(status, text, TEXTS) }
    cuProfilerStart() { rt(|rt| rt.require_init()) }
    cuProfilerStop() { rt(|rt| rt.require_init()) }
}

aliases! {
    cuDeviceGetUuid = cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int);
    cuDeviceTotalMem = cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int);
}

const NAMES: fn(Status) -> Option<&'static str> = Status::name;
const TEXTS: fn(Status) -> Option<&'static str> = Status::text;

/// Hands out a NUL-terminated copy that lives as long as the process.
fn error_text(
    code: c_int,
    into: Out<*const c_char>,
    find: fn(Status) -> Option<&'static str>,
) -> Result<(), Status> {
    use std::{
        collections::BTreeMap,
        ffi::CString,
        sync::{Mutex, PoisonError},
    };
    static KEPT: Mutex<BTreeMap<&'static str, CString>> = Mutex::new(BTreeMap::new());
    let Some(text) = find(Status(code)) else {
        into.set_if_wanted(std::ptr::null());
        return Err(Status::INVALID_VALUE);
    };
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    // Entries are never removed and a CString's buffer does not move with it.
    let text = kept.entry(text).or_insert_with(|| CString::new(text).unwrap_or_default());
    into.set(text.as_ptr())
}
