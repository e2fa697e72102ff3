//! Whether CUDA can be used here at all, asked before the first call into cudarc, which panics where a
//! library or one of its functions is missing.

use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;

use super::library::{self, Found, Missing};
pub(crate) use super::status::driver_error;
use crate::error::{Error, Result};

/// The oldest driver interface the device is written for: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12_000;
/// The oldest NVRTC whose C++17 and bf16 conversions the kernels were tried with.
const OLDEST_NVRTC: (i32, i32) = (12, 0);
/// The oldest major version of cublasLt.
const OLDEST_CUBLAS_LT: usize = 12;

/// What the CUDA device and the parts of cudarc under it call in the driver.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
];

const NVRTC_SYMBOLS: &[&str] = &[
    "nvrtcVersion",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
];

const CUBLAS_LT_SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// A usable driver.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    /// CUDA's version of its interface: 13000 for 13.0.
    pub(crate) version: i32,
    pub(crate) devices: usize,
    pub(crate) path: PathBuf,
}

/// A usable library of the toolkit.
#[derive(Clone, Debug)]
pub(crate) struct Toolkit {
    pub(crate) version: String,
    pub(crate) path: PathBuf,
}

/// Checks that the CUDA device can be used: driver with a device, NVRTC, cublasLt.
///
/// Cost: loads the three libraries, where they are not loaded yet; compiles nothing. That NVRTC's
/// builtins are missing shows when a kernel is compiled, as the same kind of error.
///
/// # Errors
/// `is_cuda_unavailable`: the first thing that is missing, and what to install.
pub(crate) fn check() -> Result<()> {
    let driver = driver()?;
    nvrtc()?;
    fits(&driver, &cublas_lt()?)
}

/// Checks that the driver is new enough for cublasLt, which it says itself only as `CUBLAS_STATUS_NOT_INITIALIZED`: within a
/// major version of CUDA older drivers do, of a later one they do not.
///
/// # Errors
/// `is_cuda_unavailable`.
pub(crate) fn fits(driver: &Driver, cublas_lt: &Toolkit) -> Result<()> {
    let major = cublas_lt.version.split('.').next().and_then(|text| text.parse().ok());
    if major.unwrap_or(0) <= driver.version / 1000 {
        return Ok(());
    }
    Err(Error::cuda_unavailable(
        format!(
            "cublasLt {} ({}) is too new for the NVIDIA driver, which supports CUDA {}; install a newer driver, or \
             cublasLt of CUDA {} (`pip install nvidia-cublas-cu{}`), and put its directory into LD_LIBRARY_PATH",
            cublas_lt.version,
            cublas_lt.path.display(),
            version_text(driver.version),
            driver.version / 1000,
            driver.version / 1000
        ),
        None,
    ))
}

/// Checks the driver and counts its devices.
///
/// # Errors
/// `is_cuda_unavailable`.
pub(crate) fn driver() -> Result<Driver> {
    let found = library::find("cuda").map_err(|missing| {
        absent(
            "the NVIDIA driver (libcuda)",
            &missing,
            "install NVIDIA's driver, version 525 or newer",
        )
    })?;
    complete(&found, DRIVER_SYMBOLS, |path, symbol| {
        format!(
            "{path} is no NVIDIA driver of CUDA {} or newer: it lacks `{symbol}` (a stub, or too \
             old); install NVIDIA's driver, version 525 or newer, and take directories with stubs \
             out of LD_LIBRARY_PATH",
            version_text(OLDEST_DRIVER)
        )
    })?;
    let path = found.path("cuInit");
    let shown = path.display();
    let refused = |call: Call, status| {
        Err(Error::cuda_unavailable(no_driver(call, status, &shown), Some(status)))
    };
    let mut version = 0;
    // Without `cuInit` first: the version is known even where there is no device.
    let status = call_out(&found, Call::Version.name(), &mut version);
    if status != 0 {
        return refused(Call::Version, status);
    }
    if version < OLDEST_DRIVER {
        return Err(Error::cuda_unavailable(
            format!(
                "the NVIDIA driver ({shown}) is too old: it supports CUDA {}, needed is {} or newer; \
                 install version 525 or newer of the driver",
                version_text(version),
                version_text(OLDEST_DRIVER)
            ),
            None,
        ));
    }
    let status = init(&found);
    if status != 0 {
        return refused(Call::Init, status);
    }
    let mut devices = 0;
    let status = call_out(&found, Call::Count.name(), &mut devices);
    if status != 0 || devices <= 0 {
        return refused(Call::Count, if status == 0 { NO_DEVICE } else { status });
    }
    Ok(Driver { version, devices: usize::try_from(devices).unwrap_or_default(), path })
}

/// Checks NVRTC, all but its builtins.
///
/// # Errors
/// `is_cuda_unavailable`.
pub(crate) fn nvrtc() -> Result<Toolkit> {
    let install = "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`, and put the directory \
                   with libnvrtc.so into LD_LIBRARY_PATH";
    let found = library::find("nvrtc").map_err(|missing| {
        absent("NVRTC (libnvrtc), which compiles the kernels,", &missing, install)
    })?;
    complete(&found, NVRTC_SYMBOLS, |path, symbol| {
        format!("{path} is no NVRTC of CUDA 12 or newer: it lacks `{symbol}`; {install}")
    })?;
    let path = found.path("nvrtcVersion");
    let version = super::nvrtc::version()?;
    if version < OLDEST_NVRTC {
        return Err(Error::cuda_unavailable(
            format!(
                "NVRTC ({}) is too old: version {}.{}, needed is {}.{} or newer; {install}",
                path.display(),
                version.0,
                version.1,
                OLDEST_NVRTC.0,
                OLDEST_NVRTC.1
            ),
            None,
        ));
    }
    Ok(Toolkit { version: format!("{}.{}", version.0, version.1), path })
}

/// Checks cublasLt.
///
/// # Errors
/// `is_cuda_unavailable`.
pub(crate) fn cublas_lt() -> Result<Toolkit> {
    let install = "install the CUDA toolkit, or `pip install nvidia-cublas`, and put the directory \
                   with libcublasLt.so into LD_LIBRARY_PATH";
    let found = library::find("cublasLt").map_err(|missing| {
        absent("cublasLt (libcublasLt), which multiplies the matrices,", &missing, install)
    })?;
    complete(&found, CUBLAS_LT_SYMBOLS, |path, symbol| {
        format!("{path} is no cublasLt of CUDA 12 or newer: it lacks `{symbol}`; {install}")
    })?;
    let path = found.path("cublasLtCreate");
    // SAFETY: takes nothing, returns a number.
    #[allow(unsafe_code, reason = "a call of cublasLt")]
    let version = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
    let major = version / 10_000;
    let version = format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100);
    if major < OLDEST_CUBLAS_LT {
        return Err(Error::cuda_unavailable(
            format!(
                "cublasLt ({}) is too old: version {version}, needed is {OLDEST_CUBLAS_LT}.0 or newer; {install}",
                path.display()
            ),
            None,
        ));
    }
    Ok(Toolkit { version, path })
}

fn absent(what: &str, missing: &Missing, install: &str) -> Error {
    let why = match &missing.refused {
        Some(words) => format!("cannot be loaded ({words})"),
        None => {
            let first = missing.searched.first().map_or("", String::as_str);
            format!(
                "was not found (searched: {first} and {} more names)",
                missing.searched.len() - 1
            )
        }
    };
    Error::cuda_unavailable(format!("{what} {why}; {install}"), None)
}

fn complete(
    found: &Found,
    symbols: &[&'static str],
    message: impl FnOnce(&str, &str) -> String,
) -> Result<()> {
    let Some(lacking) = found.first_missing(symbols) else { return Ok(()) };
    let present = symbols.iter().copied().find(|symbol| found.symbol(symbol).is_some());
    let path = found.path(present.unwrap_or_default()).display().to_string();
    Err(Error::cuda_unavailable(message(&path, lacking), None))
}

const NO_DEVICE: i32 = 100;

/// The calls that show whether there is a driver.
#[derive(Clone, Copy)]
enum Call {
    Version,
    Init,
    Count,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Version => "cuDriverGetVersion",
            Self::Init => "cuInit",
            Self::Count => "cuDeviceGetCount",
        }
    }

    fn failed(self) -> &'static str {
        match self {
            Self::Version => "does not say its version",
            Self::Init => "does not start",
            Self::Count => "does not count its devices",
        }
    }
}

/// What to do about a driver of which one of the first calls fails.
fn no_driver(call: Call, status: i32, path: &dyn std::fmt::Display) -> String {
    // Numbers instead of cudarc's enumeration: a newer driver may return one that it does not know.
    match status {
        34 => format!(
            "{path} is the CUDA toolkit's stub, not a driver; install NVIDIA's driver and take the \
             directory with the stub out of LD_LIBRARY_PATH"
        ),
        NO_DEVICE => format!(
            "the NVIDIA driver ({path}) finds no device; look at `nvidia-smi`, at \
             CUDA_VISIBLE_DEVICES, and in a container at its --gpus option"
        ),
        35 | 803 => format!(
            "the parts of the NVIDIA driver ({path}) do not fit together (status {status}): the \
             library and the kernel module differ in version; reboot after a driver update, or \
             reinstall the driver"
        ),
        46 => format!("the device is in use by another process alone (status {status}, {path})"),
        802 => format!(
            "the system is not ready (status {status}, {path}): on machines with NVSwitch start \
             nvidia-fabricmanager"
        ),
        804 => format!(
            "{path} comes from a forward-compatibility package that this device does not support \
             (status {status}); install a driver of that version, or take the package away"
        ),
        _ => format!(
            "the NVIDIA driver ({path}) {}: {} returned {status}; look at `nvidia-smi` and the \
             system log",
            call.failed(),
            call.name()
        ),
    }
}

fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn init(found: &Found) -> c_int {
    let Some(function) = found.symbol(Call::Init.name()) else { return -1 };
    // SAFETY: `cuInit` is `CUresult(unsigned)`, and `CUresult` an `int`.
    #[allow(unsafe_code, reason = "a function of the loaded library")]
    let function = unsafe {
        std::mem::transmute::<*const c_void, unsafe extern "C" fn(c_uint) -> c_int>(function)
    };
    // SAFETY: 0 is the only argument that it takes.
    #[allow(unsafe_code, reason = "a call of the driver")]
    unsafe {
        function(0)
    }
}

/// Calls a driver function that writes one `int`.
fn call_out(found: &Found, name: &str, value: &mut c_int) -> c_int {
    let Some(function) = found.symbol(name) else { return -1 };
    // SAFETY: the callers name functions that are `CUresult(int *)`, and `CUresult` is an `int`.
    #[allow(unsafe_code, reason = "a function of the loaded library")]
    let function = unsafe {
        std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_int) -> c_int>(function)
    };
    // SAFETY: the pointer is to a live integer.
    #[allow(unsafe_code, reason = "a call of the driver")]
    unsafe {
        function(value)
    }
}

// Not with feature `cust`: these tests plant absences for child processes, and a test program that links libcuda is not started
// by the loader where that is absent ("error while loading shared libraries") or not whole.
#[cfg(test)]
#[cfg(not(feature = "cust"))]
#[path = "preflight_tests.rs"]
mod tests;
