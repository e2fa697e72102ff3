//! What the CUDA device needs and what of it is here: the facts behind `muon doctor`.

use std::ffi::OsString;
use std::path::PathBuf;

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use serde::Serialize;

use super::cache::Cache;
use super::compile::Kernels;
use super::gemm::Gemm;
use super::nvrtc::Image;
use super::options::{OLDEST_ARCHITECTURE, options};
use super::preflight::{self, Toolkit};
use super::sources::KernelSource;
use super::status::driver_error;
use crate::error::{Error, Result};
use crate::precision::Precision;

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
    /// Variables of the environment that change what cublasLt computes.
    pub warnings: Vec<Warning>,
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
    /// What cublasLt says to a product of each of the precisions that stand for the rest, `bf16` and `f32`; empty where it was
    /// not asked.
    pub products: Vec<ProductInfo>,
    /// Why it cannot be used; none for a usable device.
    pub problem: Option<String>,
}

/// cublasLt's answer to one product of 1024 × 1024 matrices.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ProductInfo {
    /// What the matrices are stored in.
    pub precision: String,
    /// Workspace that the algorithm needs, in bytes.
    pub workspace_bytes: usize,
    /// Times that its blocks fill the device; dimensionless.
    pub waves: f32,
}

/// A variable that is set.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// Its name.
    pub variable: &'static str,
    /// Its value; bytes that are no text are replaced.
    pub value: String,
    /// What it changes.
    pub effect: &'static str,
}

/// Variables of NVIDIA's libraries that change results without a word. CUDA 13.
const VARIABLES: [(&str, &str); 4] = [
    (
        "NVIDIA_TF32_OVERRIDE",
        "at 0 cublasLt computes products of precision tf32 in f32, which is slower and rounds otherwise",
    ),
    (
        "CUBLAS_EMULATE_SINGLE_PRECISION",
        "at 1 cublasLt may make products of precision f32 from bf16 ones where the device has them \
         (compute capability 10.0 and 10.3): they are then not summed as f32 products are",
    ),
    (
        "CUBLAS_EMULATION_STRATEGY",
        "cublasLt may make products of precision f32 from bf16 ones where the device has them (compute \
         capability 10.0 and 10.3): they are then not summed as f32 products are",
    ),
    (
        "CUBLAS_BATCH_INVARIANCE_FLAGS",
        "cublasLt chooses other algorithms for batches: sums may run in another order than without it",
    ),
];

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
    /// Whether a device can be used: every library is here, and at least one device is new enough, loads a kernel and
    /// has a cublasLt that multiplies.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        [&self.driver, &self.nvrtc, &self.cublas_lt].iter().all(|part| part.problem.is_none())
            && self.devices.iter().any(|device| device.problem.is_none())
    }
}

/// Looks at this machine. Loads the libraries that are here and tries every device as [`Cuda::new`](crate::Cuda::new) does: opens its primary
/// context, loads an empty kernel, makes a cublasLt handle with its workspace, and asks for the algorithms of two products. Nothing of
/// it is left behind. Whether the cache can be written is found out by making a file in it and removing it.
#[must_use]
pub fn diagnose() -> Diagnosis {
    let found = preflight::driver();
    let driver = match &found {
        Ok(driver) => {
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
    let tools = Tools { nvrtc: nvrtc.problem.is_none(), cublas_lt: cublas_lt.is_ok() };
    let count = found.as_ref().map_or(0, |driver| driver.devices);
    let devices = (0..count).map(|ordinal| device(ordinal, tools)).collect();
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
        warnings: warnings(|name| std::env::var_os(name)),
    }
}

/// Those of the variables that are set to something.
fn warnings(get: impl Fn(&str) -> Option<OsString>) -> Vec<Warning> {
    let set = |(variable, effect)| {
        let value = get(variable).filter(|value| !value.is_empty())?;
        Some(Warning { variable, value: value.to_string_lossy().into_owned(), effect })
    };
    VARIABLES.into_iter().filter_map(set).collect()
}

/// Which of the libraries can be tried on a device.
#[derive(Clone, Copy)]
struct Tools {
    nvrtc: bool,
    cublas_lt: bool,
}

const NOTHING: &str = "extern \"C\" __global__ void nothing() {}\n";

/// Compiles an empty kernel, which fails where NVRTC lacks its builtins.
pub(super) fn compile_nothing() -> Result<()> {
    let options = options(&format!("compute_{OLDEST_ARCHITECTURE}"));
    super::nvrtc::compile(NOTHING, "an empty kernel", &options, Image::Ptx).map(drop)
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

fn device(ordinal: usize, tools: Tools) -> DeviceInfo {
    let mut info = device_facts(ordinal).unwrap_or_else(|error| DeviceInfo {
        ordinal,
        name: "unknown".to_owned(),
        compute_capability: "unknown".to_owned(),
        memory_bytes: 0,
        products: Vec::new(),
        problem: Some(driver_error(error, "asking for the device's properties").to_string()),
    });
    if info.problem.is_none() {
        info.problem = try_device(ordinal, tools, &mut info.products).err().map(|e| e.to_string());
    }
    info
}

/// Does what [`Cuda::new`](crate::Cuda::new) does, with an empty kernel, and asks cublasLt for two products.
fn try_device(ordinal: usize, tools: Tools, products: &mut Vec<ProductInfo>) -> Result<()> {
    let context = CudaContext::new(ordinal).map_err(|e| driver_error(e, "opening the device"))?;
    let stream = context.new_stream().map_err(|e| driver_error(e, "making a stream"))?;
    if tools.nvrtc {
        let source =
            KernelSource { file: "nothing.cu", source: NOTHING, digest: "", entries: &["nothing"] };
        Kernels::load_sources(&context, &[source], &Cache::off())?;
    }
    if tools.cublas_lt {
        let (major, _) = context
            .compute_capability()
            .map_err(|e| driver_error(e, "asking for the compute capability"))?;
        let gemm = Gemm::new(&stream, major)?;
        for precision in [Precision::Bf16, Precision::F32] {
            let (workspace_bytes, waves) = gemm.ask(precision)?;
            let precision = precision.to_string();
            products.push(ProductInfo { precision, workspace_bytes, waves });
        }
    }
    stream.synchronize().map_err(|e| driver_error(e, "waiting for the device"))
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
        products: Vec::new(),
        problem: old
            .then(|| format!("compute capability {major}.{minor}; 8.0 (A100) or newer is needed")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_are_set_to_something_are_warned_of() {
        let set = |name: &str| match name {
            "NVIDIA_TF32_OVERRIDE" => Some("0".into()),
            "CUBLAS_EMULATION_STRATEGY" => Some("eager".into()),
            "CUBLAS_BATCH_INVARIANCE_FLAGS" => Some("".into()),
            _ => None,
        };
        let found: Vec<_> =
            warnings(set).into_iter().map(|warning| (warning.variable, warning.value)).collect();
        assert_eq!(
            found,
            [
                ("NVIDIA_TF32_OVERRIDE", "0".to_owned()),
                ("CUBLAS_EMULATION_STRATEGY", "eager".to_owned())
            ]
        );
        assert_eq!(warnings(|_| None), []);
        assert_eq!(warnings(|_| Some("1".into())).len(), VARIABLES.len());
    }
}
