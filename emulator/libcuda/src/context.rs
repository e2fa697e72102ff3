//! Contexts, primary and the caller's own, and the current one of the thread.

use std::ffi::{c_int, c_uint, c_void};

use cuda_emulator::runtime::{current, pop_current, push_current, set_current, status::Status};

use crate::abi::{Out, aliases, entries, rt};

entries! {
    cuDevicePrimaryCtxRetain(context: Out<u64>, device: c_int) {
        context.set(rt(|rt| rt.primary_retain(device))?)
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) { rt(|rt| rt.primary_release(device)) }
    cuDevicePrimaryCtxReset_v2(device: c_int) { rt(|rt| rt.primary_reset(device)) }
    cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) {
        rt(|rt| rt.primary_set_flags(device, flags))
    }
    cuDevicePrimaryCtxGetState(device: c_int, flags: Out<c_uint>, active: Out<c_int>) {
        let (found, exists) = rt(|rt| rt.primary_state(device))?;
        flags.set_if_wanted(found);
        active.set_if_wanted(c_int::from(exists));
        Ok(())
    }
    cuCtxCreate_v2(context: Out<u64>, flags: c_uint, device: c_int) {
        context.set(rt(|rt| rt.context_create(device, flags))?)
    }
    cuCtxCreate_v3(context: Out<u64>, affinity: *const c_void, count: c_int, flags: c_uint, device: c_int) {
        if count != 0 || !affinity.is_null() {
            return Err(rt(|rt| rt.unsupported("cuCtxCreate with an execution affinity")));
        }
        context.set(rt(|rt| rt.context_create(device, flags))?)
    }
    cuCtxCreate_v4(context: Out<u64>, params: *const c_void, flags: c_uint, device: c_int) {
        if !params.is_null() {
            return Err(rt(|rt| rt.unsupported("cuCtxCreate_v4 with parameters")));
        }
        context.set(rt(|rt| rt.context_create(device, flags))?)
    }
    cuCtxDestroy_v2(context: u64) { rt(|rt| rt.context_destroy(context)) }
    cuCtxGetCurrent(context: Out<u64>) {
        let found = rt(|rt| {
            rt.require_init()?;
            // A context that is gone is no longer anybody's current one.
            Ok(if rt.context_exists(current()) { current() } else { 0 })
        })?;
        context.set(found)
    }
    cuCtxSetCurrent(context: u64) {
        rt(|rt| {
            rt.require_init()?;
            if context != 0 && !rt.context_exists(context) {
                return Err(Status::INVALID_CONTEXT);
            }
            Ok(())
        })?;
        set_current(context);
        Ok(())
    }
    cuCtxPushCurrent_v2(context: u64) {
        if !rt(|rt| rt.context_exists(context)) {
            return Err(Status::INVALID_CONTEXT);
        }
        push_current(context);
        Ok(())
    }
    cuCtxPopCurrent_v2(context: Out<u64>) {
        let popped = pop_current();
        if popped == 0 {
            return Err(Status::INVALID_CONTEXT);
        }
        context.set_if_wanted(popped);
        Ok(())
    }
    cuCtxGetDevice(device: Out<c_int>) {
        let found = rt(|rt| rt.require_init().and_then(|()| rt.context_device(current())))?;
        device.set(found)
    }
    cuCtxGetDevice_v2(device: Out<c_int>, context: u64) {
        let context = if context == 0 { current() } else { context };
        device.set(rt(|rt| rt.context_device(context))?)
    }
    cuCtxSynchronize() { rt(|rt| rt.context_synchronize()) }
    cuCtxGetFlags(flags: Out<c_uint>) { flags.set(rt(|rt| rt.context_flags(None))?) }
    cuCtxSetFlags(flags: c_uint) { rt(|rt| rt.context_flags(Some(flags)).map(drop)) }
    cuCtxGetLimit(value: Out<usize>, limit: c_int) { value.set(rt(|rt| rt.context_limit(limit, None))?) }
    cuCtxSetLimit(limit: c_int, value: usize) { rt(|rt| rt.context_limit(limit, Some(value)).map(drop)) }
    cuCtxGetCacheConfig(config: Out<c_int>) { config.set(rt(|rt| rt.context_cache_config(None))?) }
    cuCtxSetCacheConfig(config: c_int) { rt(|rt| rt.context_cache_config(Some(config)).map(drop)) }
    cuCtxGetSharedMemConfig(config: Out<c_int>) {
        rt(|rt| rt.current_context())?;
        config.set(1)
    }
    cuCtxSetSharedMemConfig(_config: c_int) { rt(|rt| rt.current_context().map(drop)) }
    cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) {
        rt(|rt| rt.current_context())?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }
    cuCtxGetApiVersion(context: u64, version: Out<c_uint>) {
        let context = if context == 0 { current() } else { context };
        rt(|rt| rt.context_device(context))?;
        version.set(3020)
    }
    cuCtxGetId(context: u64, id: Out<u64>) {
        let context = if context == 0 { current() } else { context };
        rt(|rt| rt.context_device(context))?;
        id.set(context)
    }
    cuCtxResetPersistingL2Cache() { rt(|rt| rt.current_context().map(drop)) }
    cuCtxEnablePeerAccess(peer: u64, flags: c_uint) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        rt(|rt| rt.enable_peer(peer))
    }
    cuCtxDisablePeerAccess(peer: u64) { rt(|rt| rt.disable_peer(peer)) }
}

aliases! {
    cuDevicePrimaryCtxRelease = cuDevicePrimaryCtxRelease_v2(device: c_int);
    cuDevicePrimaryCtxReset = cuDevicePrimaryCtxReset_v2(device: c_int);
    cuDevicePrimaryCtxSetFlags = cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint);
    cuCtxCreate = cuCtxCreate_v2(context: Out<u64>, flags: c_uint, device: c_int);
    cuCtxDestroy = cuCtxDestroy_v2(context: u64);
    cuCtxPushCurrent = cuCtxPushCurrent_v2(context: u64);
    cuCtxPopCurrent = cuCtxPopCurrent_v2(context: Out<u64>);
}
