//! Allocation, pools, pinned memory, copies, fills, pointer attributes.

use std::ffi::{c_int, c_uint, c_void};

use cuda_emulator::runtime::{
    Copy2d, Place,
    status::{Outcome, Status},
};

use crate::abi::{In, Out, aliases, entries, rt};

/// `CUmemPoolProps`, up to the location.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PoolProps {
    allocation: c_int,
    handles: c_int,
    location: c_int,
    id: c_int,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Memcpy2d {
    src_x: usize,
    src_y: usize,
    src_type: c_int,
    src_host: u64,
    src_device: u64,
    src_array: u64,
    src_pitch: usize,
    dst_x: usize,
    dst_y: usize,
    dst_type: c_int,
    dst_host: u64,
    dst_device: u64,
    dst_array: u64,
    dst_pitch: usize,
    width: usize,
    height: usize,
}

fn linear(name: &str, dst: Place, src: Place, bytes: usize, stream: Option<u64>) -> Outcome<()> {
    rt(|rt| rt.copy(name, Copy2d::linear(dst, src, bytes as u64), stream))
}

fn fill(
    name: &str,
    dst: u64,
    pattern: u32,
    unit: u8,
    count: usize,
    stream: Option<u64>,
) -> Outcome<()> {
    let bytes = (count as u64).checked_mul(u64::from(unit)).ok_or(Status::INVALID_VALUE)?;
    rt(|rt| rt.fill(name, dst, pattern, unit, (bytes, 1, bytes), stream))
}

fn fill_rows(
    name: &str,
    dst: u64,
    pitch: usize,
    pattern: u32,
    unit: u8,
    size: (usize, usize),
    stream: Option<u64>,
) -> Outcome<()> {
    let width = (size.0 as u64).checked_mul(u64::from(unit)).ok_or(Status::INVALID_VALUE)?;
    rt(|rt| rt.fill(name, dst, pattern, unit, (width, size.1 as u64, pitch as u64), stream))
}

fn copy_2d(name: &str, copy: Memcpy2d, stream: Option<u64>) -> Outcome<()> {
    let side = |kind: c_int, host: u64, device: u64, x: usize, y: usize, pitch: usize| {
        let offset = (x + y * pitch) as u64;
        match kind {
            1 => Ok(Place::Host(host.wrapping_add(offset))),
            2 => Ok(Place::Device(device.wrapping_add(offset))),
            4 => Ok(Place::Unified(device.wrapping_add(offset))),
            _ => Err(rt(|rt| rt.unsupported("a 2-D copy from or to a CUDA array"))),
        }
    };
    let tight = |pitch: usize| if pitch == 0 { copy.width } else { pitch };
    let src = side(
        copy.src_type,
        copy.src_host,
        copy.src_device,
        copy.src_x,
        copy.src_y,
        tight(copy.src_pitch),
    )?;
    let dst = side(
        copy.dst_type,
        copy.dst_host,
        copy.dst_device,
        copy.dst_x,
        copy.dst_y,
        tight(copy.dst_pitch),
    )?;
    let copy = Copy2d {
        src,
        dst,
        width: copy.width as u64,
        height: copy.height as u64,
        src_pitch: tight(copy.src_pitch) as u64,
        dst_pitch: tight(copy.dst_pitch) as u64,
    };
    rt(|rt| rt.copy(name, copy, stream))
}

entries! {
    cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let (left, all) = rt(|rt| rt.memory_info())?;
        free.set(left as usize)?;
        total.set(all as usize)
    }
    cuMemAlloc_v2(address: Out<u64>, bytes: usize) { address.set(rt(|rt| rt.mem_alloc(bytes as u64))?) }
    cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, unit: c_uint) {
        if !matches!(unit, 4 | 8 | 16) {
            return Err(Status::INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(512).ok_or(Status::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).ok_or(Status::INVALID_VALUE)?;
        address.set(rt(|rt| rt.mem_alloc(bytes as u64))?)?;
        pitch.set(row)
    }
    cuMemFree_v2(address: u64) { rt(|rt| rt.mem_free(address)) }
    cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: u64) {
        address.set(rt(|rt| rt.mem_alloc_async(bytes as u64, None, stream))?)
    }
    cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: u64, stream: u64) {
        address.set(rt(|rt| rt.mem_alloc_async(bytes as u64, Some(pool), stream))?)
    }
    cuMemFreeAsync(address: u64, stream: u64) { rt(|rt| rt.mem_free_async(address, stream)) }
    cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, address: u64) {
        let (start, bytes) = rt(|rt| rt.address_range(address))?;
        base.set_if_wanted(start);
        size.set_if_wanted(bytes as usize);
        Ok(())
    }
    cuDeviceGetDefaultMemPool(pool: Out<u64>, device: c_int) { pool.set(rt(|rt| rt.default_pool(device))?) }
    cuDeviceGetMemPool(pool: Out<u64>, device: c_int) { pool.set(rt(|rt| rt.device_pool(device))?) }
    cuDeviceSetMemPool(device: c_int, pool: u64) { rt(|rt| rt.set_device_pool(device, pool)) }
    cuMemPoolCreate(pool: Out<u64>, props: In<PoolProps>) {
        let props = props.get()?;
        if props.handles != 0 || props.allocation != 1 || props.location != 1 {
            return Err(rt(|rt| rt.unsupported("cuMemPoolCreate other than for device memory without export")));
        }
        pool.set(rt(|rt| rt.pool_create(props.id))?)
    }
    cuMemPoolDestroy(pool: u64) { rt(|rt| rt.pool_destroy(pool)) }
    cuMemPoolTrimTo(pool: u64, _keep: usize) { rt(|rt| rt.pool_trim(pool)) }
    cuMemPoolGetAttribute(pool: u64, attribute: c_int, value: *mut c_void) {
        let found = rt(|rt| rt.pool_attribute(pool, attribute, None))?;
        if value.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and by contract writable for an int (attributes 1 to 3) or a cuuint64_t.
        unsafe {
            if attribute <= 3 {
                value.cast::<c_int>().write_unaligned(found as c_int);
            } else {
                value.cast::<u64>().write_unaligned(found);
            }
        }
        Ok(())
    }
    cuMemPoolSetAttribute(pool: u64, attribute: c_int, value: *mut c_void) {
        if value.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: not null, and by contract readable for an int (attributes 1 to 3) or a cuuint64_t.
        let wanted = unsafe {
            if attribute <= 3 { value.cast::<c_int>().read_unaligned() as u64 } else { value.cast::<u64>().read_unaligned() }
        };
        rt(|rt| rt.pool_attribute(pool, attribute, Some(wanted)).map(drop))
    }
    cuMemHostAlloc(address: Out<u64>, bytes: usize, flags: c_uint) {
        address.set(rt(|rt| rt.host_alloc(bytes as u64, flags))?)
    }
    cuMemAllocHost_v2(address: Out<u64>, bytes: usize) {
        address.set(rt(|rt| rt.host_alloc(bytes as u64, 0))?)
    }
    cuMemFreeHost(address: u64) { rt(|rt| rt.host_free(address, false)) }
    cuMemHostRegister_v2(address: u64, bytes: usize, flags: c_uint) {
        rt(|rt| rt.host_register(address, bytes as u64, flags))
    }
    cuMemHostUnregister(address: u64) { rt(|rt| rt.host_free(address, true)) }
    cuMemHostGetFlags(flags: Out<c_uint>, address: u64) { flags.set(rt(|rt| rt.host_flags(address))?) }

    cuMemcpy(dst: u64, src: u64, bytes: usize) {
        linear("cuMemcpy", Place::Unified(dst), Place::Unified(src), bytes, None)
    }
    cuMemcpyAsync(dst: u64, src: u64, bytes: usize, stream: u64) {
        linear("cuMemcpyAsync", Place::Unified(dst), Place::Unified(src), bytes, Some(stream))
    }
    cuMemcpyHtoD_v2(dst: u64, src: u64, bytes: usize) {
        linear("cuMemcpyHtoD", Place::Device(dst), Place::Host(src), bytes, None)
    }
    cuMemcpyHtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64) {
        linear("cuMemcpyHtoDAsync", Place::Device(dst), Place::Host(src), bytes, Some(stream))
    }
    cuMemcpyDtoH_v2(dst: u64, src: u64, bytes: usize) {
        linear("cuMemcpyDtoH", Place::Host(dst), Place::Device(src), bytes, None)
    }
    cuMemcpyDtoHAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64) {
        linear("cuMemcpyDtoHAsync", Place::Host(dst), Place::Device(src), bytes, Some(stream))
    }
    cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: usize) {
        linear("cuMemcpyDtoD", Place::Device(dst), Place::Device(src), bytes, None)
    }
    cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64) {
        linear("cuMemcpyDtoDAsync", Place::Device(dst), Place::Device(src), bytes, Some(stream))
    }
    cuMemcpyPeer(dst: u64, _to: u64, src: u64, _from: u64, bytes: usize) {
        linear("cuMemcpyPeer", Place::Device(dst), Place::Device(src), bytes, None)
    }
    cuMemcpyPeerAsync(dst: u64, _to: u64, src: u64, _from: u64, bytes: usize, stream: u64) {
        linear("cuMemcpyPeerAsync", Place::Device(dst), Place::Device(src), bytes, Some(stream))
    }
    cuMemcpy2D_v2(copy: In<Memcpy2d>) { copy_2d("cuMemcpy2D", copy.get()?, None) }
    cuMemcpy2DUnaligned_v2(copy: In<Memcpy2d>) { copy_2d("cuMemcpy2DUnaligned", copy.get()?, None) }
    cuMemcpy2DAsync_v2(copy: In<Memcpy2d>, stream: u64) {
        copy_2d("cuMemcpy2DAsync", copy.get()?, Some(stream))
    }

    cuMemsetD8_v2(dst: u64, value: u8, count: usize) {
        fill("cuMemsetD8", dst, u32::from(value), 1, count, None)
    }
    cuMemsetD8Async(dst: u64, value: u8, count: usize, stream: u64) {
        fill("cuMemsetD8Async", dst, u32::from(value), 1, count, Some(stream))
    }
    cuMemsetD16_v2(dst: u64, value: u16, count: usize) {
        fill("cuMemsetD16", dst, u32::from(value), 2, count, None)
    }
    cuMemsetD16Async(dst: u64, value: u16, count: usize, stream: u64) {
        fill("cuMemsetD16Async", dst, u32::from(value), 2, count, Some(stream))
    }
    cuMemsetD32_v2(dst: u64, value: u32, count: usize) { fill("cuMemsetD32", dst, value, 4, count, None) }
    cuMemsetD32Async(dst: u64, value: u32, count: usize, stream: u64) {
        fill("cuMemsetD32Async", dst, value, 4, count, Some(stream))
    }
    cuMemsetD2D8_v2(dst: u64, pitch: usize, value: u8, width: usize, height: usize) {
        fill_rows("cuMemsetD2D8", dst, pitch, u32::from(value), 1, (width, height), None)
    }
    cuMemsetD2D8Async(dst: u64, pitch: usize, value: u8, width: usize, height: usize, stream: u64) {
        fill_rows("cuMemsetD2D8Async", dst, pitch, u32::from(value), 1, (width, height), Some(stream))
    }
    cuMemsetD2D16_v2(dst: u64, pitch: usize, value: u16, width: usize, height: usize) {
        fill_rows("cuMemsetD2D16", dst, pitch, u32::from(value), 2, (width, height), None)
    }
    cuMemsetD2D32_v2(dst: u64, pitch: usize, value: u32, width: usize, height: usize) {
        fill_rows("cuMemsetD2D32", dst, pitch, value, 4, (width, height), None)
    }

    cuPointerGetAttribute(value: *mut c_void, attribute: c_int, address: u64) {
        if value.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let facts = rt(|rt| rt.pointer_facts(address)).ok_or(Status::INVALID_VALUE)?;
        let wide = |number: u64| {
            // SAFETY: `value` is not null, and by contract writable for this attribute's 8 bytes.
            unsafe { value.cast::<u64>().write_unaligned(number) };
        };
        let narrow = |number: u32| {
            // SAFETY: `value` is not null, and by contract writable for this attribute's 4 bytes.
            unsafe { value.cast::<u32>().write_unaligned(number) };
        };
        let flag = |set: bool| {
            // SAFETY: `value` is not null, and by contract writable for this attribute's bool.
            unsafe { value.cast::<u8>().write(u8::from(set)) };
        };
        match attribute {
            1 => wide(facts.context),
            2 => narrow(if facts.host { 1 } else { 2 }),
            3 if !facts.host => wide(address),
            4 if facts.host => wide(address),
            3 | 4 => return Err(Status::INVALID_VALUE),
            7 => wide(facts.base),
            8 | 10 => flag(false),
            9 => narrow(facts.device as u32),
            11 => wide(facts.base),
            12 => wide(facts.bytes),
            13 => flag(true),
            17 => wide(facts.pool),
            _ => return Err(rt(|rt| rt.unsupported("cuPointerGetAttribute with this attribute"))),
        }
        Ok(())
    }
}

aliases! {
    cuMemGetInfo = cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>);
    cuMemAlloc = cuMemAlloc_v2(address: Out<u64>, bytes: usize);
    cuMemAllocPitch = cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, unit: c_uint);
    cuMemFree = cuMemFree_v2(address: u64);
    cuMemAllocHost = cuMemAllocHost_v2(address: Out<u64>, bytes: usize);
    cuMemHostRegister = cuMemHostRegister_v2(address: u64, bytes: usize, flags: c_uint);
    cuMemGetAddressRange = cuMemGetAddressRange_v2(base: Out<u64>, size: Out<usize>, address: u64);
    cuMemcpyHtoD = cuMemcpyHtoD_v2(dst: u64, src: u64, bytes: usize);
    cuMemcpyHtoDAsync = cuMemcpyHtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64);
    cuMemcpyDtoH = cuMemcpyDtoH_v2(dst: u64, src: u64, bytes: usize);
    cuMemcpyDtoHAsync = cuMemcpyDtoHAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64);
    cuMemcpyDtoD = cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: usize);
    cuMemcpyDtoDAsync = cuMemcpyDtoDAsync_v2(dst: u64, src: u64, bytes: usize, stream: u64);
    cuMemcpy2D = cuMemcpy2D_v2(copy: In<Memcpy2d>);
    cuMemcpy2DAsync = cuMemcpy2DAsync_v2(copy: In<Memcpy2d>, stream: u64);
    cuMemsetD8 = cuMemsetD8_v2(dst: u64, value: u8, count: usize);
    cuMemsetD16 = cuMemsetD16_v2(dst: u64, value: u16, count: usize);
    cuMemsetD32 = cuMemsetD32_v2(dst: u64, value: u32, count: usize);
}
