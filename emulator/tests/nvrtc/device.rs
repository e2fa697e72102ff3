//! A device for tests: memory, a compiled module, typed buffers, launches.

#![allow(dead_code, reason = "each test binary uses its part of this module")]

use std::sync::Arc;

use super::driver::Driver;
use cuda_emulator::exec::{DeviceLimits, LaunchOptions, LaunchParams, LaunchReport, launch};
use cuda_emulator::ptx::{LoadedModule, Module};
use cuda_emulator::{Checked, DeviceMemory, ReadPolicy};

/// A kernel argument.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    Ptr(u64),
    U32(u32),
    U64(u64),
    F32(f32),
}

pub(crate) struct Device {
    pub(crate) memory: DeviceMemory,
    pub(crate) module: LoadedModule,
    pub(crate) dynamic_shared: u32,
    /// The driver that does the work instead, if the device is one of the emulated libcuda's.
    driver: Option<Driver>,
}

/// Plain data that can be copied to and from a device.
pub(crate) trait Plain: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($ty:ty),*) => {$(
        impl Plain for $ty {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}

plain!(u8, u16, u32, u64, i32, i64, f32, f64);

impl Device {
    pub(crate) fn new(ptx: &str) -> Self {
        let module = Module::parse(ptx).unwrap_or_else(|error| panic!("{error}"));
        let memory = DeviceMemory::new(4 << 30);
        let module = Arc::new(module).load(&memory).unwrap();
        Self { memory, module, dynamic_shared: 0, driver: None }
    }

    /// The same through cudarc and the emulated libcuda.
    pub(crate) fn of_driver(ptx: &str) -> Self {
        Self { driver: Some(Driver::new(ptx)), ..Self::new(ptx) }
    }

    /// Address and size of a module's variable.
    pub(crate) fn variable(&self, name: &str) -> (u64, u64) {
        match &self.driver {
            Some(driver) => driver.variable(name),
            None => self.module.variable(name).unwrap(),
        }
    }

    /// A buffer with contents.
    pub(crate) fn upload<T: Plain>(&self, label: &str, data: &[T]) -> Arg {
        let bytes: Vec<u8> = data.iter().flat_map(|value| value.bytes()).collect();
        if let Some(driver) = &self.driver {
            return Arg::Ptr(driver.upload(&bytes));
        }
        let address = self.memory.alloc(bytes.len() as u64, label).unwrap();
        self.memory.copy_in(address, &bytes).unwrap();
        Arg::Ptr(address)
    }

    /// A buffer nothing was written to.
    pub(crate) fn alloc<T: Plain>(&self, label: &str, count: usize) -> Arg {
        if let Some(driver) = &self.driver {
            return Arg::Ptr(driver.alloc(count * size_of::<T>()));
        }
        Arg::Ptr(self.memory.alloc((count * size_of::<T>()) as u64, label).unwrap())
    }

    /// A buffer's contents; every element must have been written.
    pub(crate) fn download<T: Plain>(&self, buffer: Arg, count: usize) -> Vec<T> {
        let Arg::Ptr(address) = buffer else { panic!("not a buffer") };
        let mut bytes = vec![0u8; count * size_of::<T>()];
        if let Some(driver) = &self.driver {
            driver.download(address, &mut bytes);
            return bytes.chunks_exact(size_of::<T>()).map(T::from_bytes).collect();
        }
        let policy = ReadPolicy::RequireInitialised;
        self.memory.copy_out(address, &mut bytes, policy).unwrap_or_else(|f| panic!("{f}"));
        bytes.chunks_exact(size_of::<T>()).map(T::from_bytes).collect()
    }

    pub(crate) fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        args: &[Arg],
        options: &LaunchOptions,
    ) -> Checked<LaunchReport> {
        let entry = self.module.module().entry(kernel).unwrap_or_else(|| panic!("no `{kernel}`"));
        let mut params = vec![0u8; entry.param_bytes as usize];
        assert_eq!(entry.params.len(), args.len(), "{kernel}");
        for (info, arg) in entry.params.iter().zip(args) {
            let bytes = match *arg {
                Arg::Ptr(value) | Arg::U64(value) => value.to_le_bytes().to_vec(),
                Arg::U32(value) => value.to_le_bytes().to_vec(),
                Arg::F32(value) => value.to_le_bytes().to_vec(),
            };
            assert_eq!(bytes.len(), info.bytes as usize, "{kernel}: {}", info.name);
            params[info.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        if let Some(driver) = &self.driver {
            let arguments: Vec<&[u8]> = entry
                .params
                .iter()
                .map(|info| &params[info.offset as usize..][..info.bytes as usize])
                .collect();
            let counters = driver.launch(kernel, grid, block, self.dynamic_shared, &arguments);
            return Ok(LaunchReport { counters, ..LaunchReport::default() });
        }
        let launch_params = LaunchParams {
            grid,
            block,
            dynamic_shared: self.dynamic_shared,
            max_dynamic_shared: None,
            params: &params,
            limits: DeviceLimits::H100,
        };
        launch(&self.module, kernel, &self.memory, &launch_params, options)
    }

    /// A launch with a parameter buffer as it is.
    pub(crate) fn launch_raw(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: &[u8],
    ) -> Checked<LaunchReport> {
        let params = LaunchParams {
            grid,
            block,
            dynamic_shared: self.dynamic_shared,
            max_dynamic_shared: None,
            params,
            limits: DeviceLimits::H100,
        };
        launch(&self.module, kernel, &self.memory, &params, &LaunchOptions::default())
    }

    /// A launch that must succeed.
    pub(crate) fn run(&self, kernel: &str, grid: u32, block: u32, args: &[Arg]) -> LaunchReport {
        let options = LaunchOptions::default();
        self.launch(kernel, [grid, 1, 1], [block, 1, 1], args, &options)
            .unwrap_or_else(|finding| panic!("{finding}"))
    }
}
