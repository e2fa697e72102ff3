//! The driver behind a test device: what a program that uses cudarc would call.

#![allow(dead_code, reason = "each test binary uses its part of this module")]
#![allow(unsafe_code, reason = "the driver API below cudarc's safe layer is unsafe")]

use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cuda_emulator::exec::Counters;
use cuda_emulator::{Config, Emulator};
use cudarc::driver::{CudaContext, CudaModule, result};

pub(crate) struct Driver {
    ctx: Option<Arc<CudaContext>>,
    module: Option<Arc<CudaModule>>,
    handle: cudarc::driver::sys::CUmodule,
    buffers: RefCell<Vec<u64>>,
    emulator: Emulator,
}

impl Driver {
    pub(crate) fn new(ptx: &str) -> Self {
        let emulator = Emulator::load(Config::with_seed(1)).unwrap();
        let ctx = CudaContext::new(0).unwrap();
        ctx.bind_to_thread().unwrap();
        let module = ctx.load_module(cudarc::nvrtc::Ptx::from_src(ptx)).unwrap();
        // A second load, for the handle that the safe layer keeps to itself.
        let text = CString::new(ptx).unwrap();
        // SAFETY: NUL-terminated PTX.
        let handle = unsafe { result::module::load_data(text.as_ptr().cast()) }.unwrap();
        let (ctx, module) = (Some(ctx), Some(module));
        Self { ctx, module, handle, buffers: RefCell::default(), emulator }
    }

    pub(crate) fn variable(&self, name: &str) -> (u64, u64) {
        // SAFETY: a live module.
        let (address, bytes) =
            unsafe { result::module::get_global(self.handle, CString::new(name).unwrap()) }
                .unwrap();
        (address, bytes as u64)
    }

    pub(crate) fn alloc(&self, bytes: usize) -> u64 {
        // SAFETY: freed once, at the end.
        let address = unsafe { result::malloc_sync(bytes) }.unwrap();
        self.buffers.borrow_mut().push(address);
        address
    }

    pub(crate) fn upload(&self, bytes: &[u8]) -> u64 {
        let address = self.alloc(bytes.len());
        // SAFETY: the allocation has exactly these bytes.
        unsafe { result::memcpy_htod_sync(address, bytes) }.unwrap();
        address
    }

    pub(crate) fn download(&self, address: u64, bytes: &mut [u8]) {
        // SAFETY: the caller reads what it allocated.
        unsafe { result::memcpy_dtoh_sync(bytes, address) }
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.emulator.findings()));
    }

    pub(crate) fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: &[&[u8]],
    ) -> Counters {
        self.emulator.reset_counters().unwrap();
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|bytes| bytes.as_ptr().cast_mut().cast()).collect();
        let name = CString::new(kernel).unwrap();
        let (grid, block) = (grid.into(), block.into());
        // SAFETY: every argument has the size of its parameter.
        unsafe {
            let function = result::module::get_function(self.handle, name).unwrap();
            let stream = std::ptr::null_mut();
            result::launch_kernel(function, grid, block, shared, stream, &mut pointers).unwrap();
        }
        result::ctx::synchronize()
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.emulator.findings()));
        let counted = self.emulator.counters().unwrap().kernels[kernel];
        Counters {
            blocks: counted.blocks,
            threads: counted.threads,
            thread_instructions: counted.instructions,
            global_bytes_loaded: counted.global_load_bytes,
            global_bytes_stored: counted.global_store_bytes,
            sectors_loaded: counted.global_load_sectors,
            sectors_stored: counted.global_store_sectors,
            bank_conflicts: counted.bank_conflicts,
            flops: counted.flops,
            atomics: counted.atomics,
            barriers: counted.barriers,
            ..Counters::default()
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for buffer in self.buffers.take() {
            // SAFETY: allocated above, freed once, after the synchronisations.
            unsafe { result::free_sync(buffer) }.unwrap();
        }
        // SAFETY: nothing is queued.
        unsafe { result::module::unload(self.handle) }.unwrap();
        drop((self.module.take(), self.ctx.take()));
        assert_eq!(self.emulator.finish().unwrap(), []);
    }
}
