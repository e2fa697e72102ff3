//! Modules, functions, launches and occupancy.

use std::ffi::{c_char, c_int, c_uint, c_void};

use cuda_emulator::runtime::{
    Arguments, LaunchShape,
    status::{Outcome, Status},
};

use crate::abi::{In, Out, Text, aliases, entries, rt};

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: u64,
    attributes: *const LaunchAttribute,
    count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: c_int,
    pad: [c_char; 4],
    value: [u64; 8],
}

/// The image a caller passed: machine code by its magic, else text up to the NUL.
fn image_bytes(image: *const c_void) -> Outcome<Vec<u8>> {
    if image.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: not null; every image, PTX text included, has at least four bytes by contract: PTX
    // is NUL-terminated and cannot be shorter than its `.version`, except the empty string, whose
    // NUL ends the comparison below before a byte beyond it is looked at.
    let byte = |index: usize| unsafe { image.cast::<u8>().add(index).read() };
    for magic in [*b"\x7fELF", [0x50, 0xED, 0x55, 0xBA]] {
        if magic.iter().enumerate().all(|(index, expected)| byte(index) == *expected) {
            return Ok(magic.to_vec());
        }
    }
    // SAFETY: not machine code, so NUL-terminated text by the contract of cuModuleLoadData.
    Ok(unsafe { std::ffi::CStr::from_ptr(image.cast()) }.to_bytes().to_vec())
}

/// `kernelParams` or `extra` of a launch.
fn arguments(params: *const c_void, extra: *const *const c_void) -> Outcome<Arguments> {
    if extra.is_null() {
        return Ok(Arguments::Pointers(params as u64));
    }
    if !params.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    let (mut buffer, mut size) = (0, None);
    let mut at = extra;
    loop {
        // SAFETY: `extra` is by contract a list of pairs that ends with CU_LAUNCH_PARAM_END, which
        // ends this loop.
        let key = unsafe { *at } as usize;
        if key == 0 {
            break;
        }
        // SAFETY: as above: a key that is not the end has a value behind it.
        let value = unsafe { *at.add(1) };
        match key {
            1 => buffer = value as u64,
            2 if !value.is_null() => {
                // SAFETY: CU_LAUNCH_PARAM_BUFFER_SIZE is followed by a pointer to a size_t.
                size = Some(unsafe { value.cast::<usize>().read_unaligned() });
            }
            _ => return Err(Status::INVALID_VALUE),
        }
        // SAFETY: the next pair of the list.
        at = unsafe { at.add(2) };
    }
    Ok(Arguments::Packed(buffer, size.ok_or(Status::INVALID_VALUE)? as u64))
}

type BlockToShared = Option<unsafe extern "C" fn(c_int) -> usize>;

fn best_block(
    grid: Out<c_int>,
    block: Out<c_int>,
    function: u64,
    shared: BlockToShared,
    fixed: usize,
    limit: c_int,
) -> Outcome<()> {
    let dynamic = |threads: i32| match shared {
        // SAFETY: the caller's own function from block size to shared memory.
        Some(call) => unsafe { call(threads) as u64 },
        None => fixed as u64,
    };
    let (blocks, threads) = rt(|rt| rt.best_block(function, dynamic, limit))?;
    grid.set(blocks)?;
    block.set(threads)
}

entries! {
    cuModuleLoadData(module: Out<u64>, image: *const c_void) {
        let bytes = image_bytes(image)?;
        module.set(rt(|rt| rt.module_load(&bytes))?)
    }
    cuModuleLoadDataEx(module: Out<u64>, image: *const c_void, _count: c_uint, _options: *const c_int, _values: *const *const c_void) {
        let bytes = image_bytes(image)?;
        module.set(rt(|rt| rt.module_load(&bytes))?)
    }
    cuModuleLoadFatBinary(_module: Out<u64>, _image: *const c_void) {
        Err(rt(|rt| rt.module_load(&[0x50, 0xED, 0x55, 0xBA]).err().unwrap_or(Status::INVALID_IMAGE)))
    }
    cuModuleLoad(module: Out<u64>, path: Text) {
        let bytes = std::fs::read(path.text()?).map_err(|_| Status::FILE_NOT_FOUND)?;
        module.set(rt(|rt| rt.module_load(&bytes))?)
    }
    cuModuleUnload(module: u64) { rt(|rt| rt.module_unload(module)) }
    cuModuleGetFunction(function: Out<u64>, module: u64, name: Text) {
        let found = rt(|rt| rt.module_function(module, name.text()?))?;
        function.set(found)
    }
    cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: u64, name: Text) {
        let (found, size) = rt(|rt| rt.module_global(module, name.text()?))?;
        address.set_if_wanted(found);
        bytes.set_if_wanted(size as usize);
        Ok(())
    }
    cuModuleGetLoadingMode(mode: Out<c_int>) { mode.set(1) }
    cuFuncGetModule(module: Out<u64>, function: u64) { module.set(rt(|rt| rt.function_module(function))?) }
    cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: u64) {
        value.set(rt(|rt| rt.function_attribute(function, attribute))?)
    }
    cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) {
        rt(|rt| rt.function_set_attribute(function, attribute, value))
    }
    cuFuncSetCacheConfig(function: u64, config: c_int) {
        if !(0..=3).contains(&config) {
            return Err(Status::INVALID_VALUE);
        }
        rt(|rt| rt.function_module(function).map(drop))
    }
    cuFuncSetSharedMemConfig(function: u64, _config: c_int) { rt(|rt| rt.function_module(function).map(drop)) }
    cuLaunchKernel(function: u64, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: u64, params: *const c_void, extra: *const *const c_void) {
        let shape = LaunchShape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared,
            cooperative: false,
        };
        let arguments = arguments(params, extra)?;
        rt(|rt| rt.launch(function, shape, stream, arguments))
    }
    cuLaunchCooperativeKernel(function: u64, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared: c_uint, stream: u64, params: *const c_void) {
        let shape = LaunchShape {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared,
            cooperative: true,
        };
        rt(|rt| rt.launch(function, shape, stream, Arguments::Pointers(params as u64)))
    }
    cuLaunchKernelEx(config: In<LaunchConfig>, function: u64, params: *const c_void, extra: *const *const c_void) {
        let config = config.get()?;
        let mut cooperative = false;
        for index in 0..config.count as usize {
            if config.attributes.is_null() {
                return Err(Status::INVALID_VALUE);
            }
            // SAFETY: not null, and by contract `count` attributes long.
            let attribute = unsafe { config.attributes.add(index).read_unaligned() };
            match attribute.id {
                // Hints that change no result: access policy, synchronisation policy, priority.
                0 | 1 | 3 | 8 => {}
                2 => cooperative = attribute.value[0] as u32 != 0,
                id => {
                    let what = format!("cuLaunchKernelEx with launch attribute {id}");
                    return Err(rt(|rt| rt.unsupported(&what)));
                }
            }
        }
        let shape = LaunchShape { grid: config.grid, block: config.block, shared: config.shared, cooperative };
        let arguments = arguments(params, extra)?;
        rt(|rt| rt.launch(function, shape, config.stream, arguments))
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<c_int>, function: u64, threads: c_int, shared: usize) {
        blocks.set(rt(|rt| rt.occupancy(function, threads, shared as u64))?)
    }
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks: Out<c_int>, function: u64, threads: c_int, shared: usize, _flags: c_uint) {
        blocks.set(rt(|rt| rt.occupancy(function, threads, shared as u64))?)
    }
    cuOccupancyMaxPotentialBlockSize(grid: Out<c_int>, block: Out<c_int>, function: u64, of_block: BlockToShared, shared: usize, limit: c_int) {
        best_block(grid, block, function, of_block, shared, limit)
    }
    cuOccupancyMaxPotentialBlockSizeWithFlags(grid: Out<c_int>, block: Out<c_int>, function: u64, of_block: BlockToShared, shared: usize, limit: c_int, _flags: c_uint) {
        best_block(grid, block, function, of_block, shared, limit)
    }
    cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: u64, blocks: c_int, _threads: c_int) {
        bytes.set(rt(|rt| rt.available_shared(function, blocks))? as usize)
    }
}

aliases! {
    cuModuleGetGlobal = cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: u64, name: Text);
}
