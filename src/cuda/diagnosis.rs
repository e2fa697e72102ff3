//! What the CUDA device needs and what of it is here: the facts behind `muon doctor`.

use std::path::PathBuf;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use serde::Serialize;

use super::cache::Cache;
use super::nvrtc::Image;
use super::options::{OLDEST_ARCHITECTURE, options};
use super::preflight::{self, Toolkit};
use super::status::driver_error;
use crate::error::{Error, Result};

/// Everything that the CUDA device needs on this machine.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The NVIDIA driver (libcuda); its version is the CUDA version that it supports.
    pub driver: Part,
    /// NVRTC, which compiles the kernels, with its builtins.
    pub nvrtc: Part,
    /// cublasLt, which multiplies the matrices.
    pub cublas_lt: Part,
    /// Devices that the driver shows.
    pub devices: Vec<DeviceInfo>,
    /// Where compiled kernels are kept.
    pub kernel_cache: KernelCache,
}

/// A library: what was found, or what is wrong and what to do.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Part {
    /// Version, such as `13.0`.
    pub version: Option<String>,
    /// The file.
    pub path: Option<PathBuf>,
    /// What is missing and what to install; none for a usable library.
    pub problem: Option<String>,
}

/// A device.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Number, as in `cuda:0`.
    pub ordinal: usize,
    /// The driver's name of it.
    pub name: String,
    /// Compute capability, such as `9.0`.
    pub compute_capability: String,
    /// Device memory in bytes.
    pub memory_bytes: u64,
    /// Why it cannot be used; none for a usable device.
    pub problem: Option<String>,
}

/// The directory of compiled kernels.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KernelCache {
    /// The directory; none when the cache is off (`MUON_CUDA_CACHE_DIR` set but empty, or no home).
    pub directory: Option<PathBuf>,
    /// Entries in it.
    pub entries: usize,
    /// Why nothing can be kept there; none where something can, and where the cache is off.
    pub problem: Option<String>,
}

impl Diagnosis {
    /// Whether a device can be used: every library is here, and at least one device is new enough.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        [&self.driver, &self.nvrtc, &self.cublas_lt].iter().all(|part| part.problem.is_none())
            && self.devices.iter().any(|device| device.problem.is_none())
    }
}

/// Looks at this machine. Loads the libraries that are here and compiles an empty kernel; creates no
/// context on any device. Whether the cache can be written is found out by making a file in it and removing it.
#[must_use]
pub fn diagnose() -> Diagnosis {
    let mut devices = Vec::new();
    let found = preflight::driver();
    let driver = match &found {
        Ok(driver) => {
            devices.extend((0..driver.devices).map(device));
            let version = driver.version;
            Part {
                version: Some(format!("{}.{}", version / 1000, version % 1000 / 10)),
                path: Some(driver.path.clone()),
                problem: None,
            }
        }
        Err(error) => missing(error),
    };
    let mut nvrtc = toolkit(preflight::nvrtc());
    if nvrtc.problem.is_none() {
        nvrtc.problem = compile_nothing().err().map(|error| error.to_string());
    }
    let cublas_lt = preflight::cublas_lt().and_then(|cublas_lt| match &found {
        Ok(driver) => preflight::fits(driver, &cublas_lt).map(|()| cublas_lt),
        Err(_) => Ok(cublas_lt),
    });
    let cache = Cache::from_env();
    let directory = cache.directory().map(PathBuf::from);
    let entries = directory
        .as_ref()
        .and_then(|directory| std::fs::read_dir(directory).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "kernel"))
        .count();
    Diagnosis {
        driver,
        nvrtc,
        cublas_lt: toolkit(cublas_lt),
        devices,
        kernel_cache: KernelCache { directory, entries, problem: cache.problem() },
    }
}

/// Compiles an empty kernel, which fails where NVRTC lacks its builtins.
pub(super) fn compile_nothing() -> Result<()> {
    let options = options(&format!("compute_{OLDEST_ARCHITECTURE}"));
    super::nvrtc::compile(
        "extern \"C\" __global__ void nothing() {}\n",
        "an empty kernel",
        &options,
        Image::Ptx,
    )
    .map(drop)
}

fn missing(error: &Error) -> Part {
    Part { problem: Some(error.to_string()), ..Part::default() }
}

fn toolkit(found: Result<Toolkit>) -> Part {
    match found {
        Ok(Toolkit { version, path }) => {
            Part { version: Some(version), path: Some(path), problem: None }
        }
        Err(error) => missing(&error),
    }
}

fn device(ordinal: usize) -> DeviceInfo {
    device_facts(ordinal).unwrap_or_else(|error| DeviceInfo {
        ordinal,
        name: "unknown".to_owned(),
        compute_capability: "unknown".to_owned(),
        memory_bytes: 0,
        problem: Some(driver_error(error, "asking for the device's properties").to_string()),
    })
}

fn device_facts(ordinal: usize) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
    let attribute = |attribute| {
        // SAFETY: the device comes from `get`.
        #[allow(unsafe_code, reason = "a call of the driver")]
        unsafe {
            result::device::get_attribute(device, attribute)
        }
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // SAFETY: the device comes from `get`.
    #[allow(unsafe_code, reason = "a call of the driver")]
    let memory = unsafe { result::device::total_mem(device) }?;
    let old = u32::try_from(major * 10 + minor).unwrap_or_default() < OLDEST_ARCHITECTURE;
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device)?,
        compute_capability: format!("{major}.{minor}"),
        memory_bytes: memory as u64,
        problem: old
            .then(|| format!("compute capability {major}.{minor}; 8.0 (A100) or newer is needed")),
    })
}
