//! Kernels: compiled for the device's architecture, or taken from the cache, and loaded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::cache::{Cache, Key};
use super::nvrtc::{self, Image};
use super::options::{OLDEST_ARCHITECTURE, options};
use super::preflight::driver_error;
use super::sources::{KernelSource, SOURCES};
use crate::error::{Error, Result};
use crate::trace;

/// Every entry of `kernels/`, loaded in one context.
pub(crate) struct Kernels {
    functions: BTreeMap<&'static str, CudaFunction>,
    architecture: Architecture,
    nvrtc: (i32, i32),
    compiled: usize,
    cached: usize,
}

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Architecture {
    /// The device's: 90 for capability 9.0.
    device: u32,
    /// The one compiled for: the device's, or the newest that NVRTC knows.
    target: u32,
}

/// A module, or the driver's verdict on its image.
type Loaded = Result<Arc<CudaModule>, CUresult>;

impl Kernels {
    /// Compiles and loads every kernel for the context's device. The caller has been through
    /// [`preflight::check`](super::preflight::check).
    ///
    /// # Errors
    /// `is_unsupported`: a device older than sm_80. `is_kernel_compile`: NVRTC's log, with file and
    /// line, or an image that the driver does not take. `is_cuda_unavailable`: NVRTC without its
    /// builtins, or older than the device needs. `is_device`: the driver failed.
    pub(crate) fn load(context: &Arc<CudaContext>) -> Result<Self> {
        Self::load_sources(context, SOURCES, &Cache::from_env())
    }

    /// [`Kernels::load`] for these sources and this cache.
    pub(crate) fn load_sources(
        context: &Arc<CudaContext>,
        sources: &[KernelSource],
        cache: &Cache,
    ) -> Result<Self> {
        let version = nvrtc::version()?;
        let architecture = architecture(context, version)?;
        let mut kernels = Self {
            functions: BTreeMap::new(),
            architecture,
            nvrtc: version,
            compiled: 0,
            cached: 0,
        };
        for source in sources {
            kernels
                .load_source(context, source, cache)
                .map_err(|error| error.context(format_args!("kernels/{}", source.file)))?;
        }
        Ok(kernels)
    }

    /// A loaded entry. Every entry was resolved when the kernels were loaded; a name that `kernels/`
    /// does not have is an error that says so.
    pub(crate) fn function(&self, entry: &'static str) -> Result<&CudaFunction> {
        self.functions.get(entry).ok_or_else(|| {
            Error::kernel_compile(format!("no kernel file has an entry `{entry}`"), None)
        })
    }

    fn load_source(
        &mut self,
        context: &Arc<CudaContext>,
        source: &KernelSource,
        cache: &Cache,
    ) -> Result<()> {
        let module = match self.module(context, source, cache, Image::Ptx)? {
            // The driver is older than NVRTC and does not know its PTX. Machine code needs no
            // translation; within one major version of CUDA older drivers take it.
            Err(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION) => {
                self.module(context, source, cache, Image::Cubin)?
            }
            loaded => loaded,
        };
        let module = module.map_err(|status| self.refused(status))?;
        for entry in source.entries {
            let function = module.load_function(entry).map_err(|error| {
                driver_error(error, format_args!("finding the entry `{entry}`"))
            })?;
            self.functions.insert(entry, function);
        }
        Ok(())
    }

    /// Compiles a source, or takes it from the cache, and has the driver load it.
    fn module(
        &mut self,
        context: &Arc<CudaContext>,
        source: &KernelSource,
        cache: &Cache,
        image: Image,
    ) -> Result<Loaded> {
        let architecture = self.architecture.name(image)?;
        let options = options(&architecture);
        let key = Key::new(source, &options, image, self.nvrtc);
        // An undamaged entry that this driver does not take is compiled again, and overwritten.
        if let Some(bytes) = cache.get(&key)
            && let Ok(module) = load_image(context, bytes)?
        {
            self.cached += 1;
            trace::kernel_cached(source.file, &architecture);
            return Ok(Ok(module));
        }
        self.compiled += 1;
        let name = format!("kernels/{}", source.file);
        let bytes = nvrtc::compile(source.source, &name, &options, image)?;
        trace::kernel_compiled(source.file, &architecture, bytes.len());
        cache.put(&key, &bytes);
        load_image(context, bytes)
    }

    fn refused(&self, status: CUresult) -> Error {
        let number = i32::try_from(status as u32).ok();
        Error::kernel_compile(
            format!(
                "the driver does not take what NVRTC {}.{} compiled for sm_{}: {status:?}; use an \
                 NVRTC that is not newer than the driver (`muon doctor` shows both versions)",
                self.nvrtc.0, self.nvrtc.1, self.architecture.target
            ),
            number,
        )
    }
}

impl fmt::Display for Kernels {
    /// One line for reports.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Architecture { device, target } = self.architecture;
        write!(f, "kernels for sm_{target}")?;
        if device != target {
            write!(f, " (the device is sm_{device}, which this NVRTC does not know)")?;
        }
        write!(f, " by NVRTC {}.{}", self.nvrtc.0, self.nvrtc.1)?;
        write!(f, ", {} files compiled, {} from the cache", self.compiled, self.cached)
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels")
            .field("summary", &self.to_string())
            .field("entries", &self.functions.keys())
            .finish()
    }
}

impl Architecture {
    /// For a device of this architecture and an NVRTC that knows those.
    fn choose(device: u32, known: &[u32], nvrtc: (i32, i32)) -> Result<Self> {
        let target = known.iter().copied().filter(|arch| *arch <= device).max();
        let Some(target) = target.filter(|arch| *arch >= OLDEST_ARCHITECTURE) else {
            return Err(Error::cuda_unavailable(
                format!(
                    "NVRTC {}.{} compiles for none of sm_{OLDEST_ARCHITECTURE} to sm_{device}; \
                     install the NVRTC of a CUDA release that supports the device",
                    nvrtc.0, nvrtc.1
                ),
                None,
            ));
        };
        Ok(Self { device, target })
    }

    /// NVRTC's name of the target.
    fn name(self, image: Image) -> Result<String> {
        match image {
            Image::Ptx => Ok(format!("compute_{}", self.target)),
            // Machine code runs on the architecture it was made for, and on later ones of the same
            // major number.
            Image::Cubin if self.target / 10 == self.device / 10 => {
                Ok(format!("sm_{}", self.target))
            }
            Image::Cubin => Err(Error::cuda_unavailable(
                format!(
                    "the driver does not know this NVRTC's PTX, and NVRTC cannot make machine code \
                     for sm_{}; install a newer driver and a newer NVRTC",
                    self.device
                ),
                None,
            )),
        }
    }
}

fn architecture(context: &CudaContext, nvrtc: (i32, i32)) -> Result<Architecture> {
    let (major, minor) = context
        .compute_capability()
        .map_err(|error| driver_error(error, "asking for the compute capability"))?;
    let device = u32::try_from(major * 10 + minor).unwrap_or_default();
    if device < OLDEST_ARCHITECTURE {
        let name = context.name().unwrap_or_else(|_| "this device".to_owned());
        return Err(Error::unsupported(format!(
            "device {} ({name}) has compute capability {major}.{minor}; 8.0 (A100) or newer is needed",
            context.ordinal()
        )));
    }
    Architecture::choose(device, &nvrtc::supported_architectures()?, nvrtc)
}

fn load_image(context: &Arc<CudaContext>, mut image: Vec<u8>) -> Result<Loaded> {
    // PTX is text that ends with a NUL; behind machine code one more byte is not looked at.
    image.push(0);
    match context.load_module(Ptx::from_binary(image)) {
        Ok(module) => Ok(Ok(module)),
        Err(DriverError(status)) if is_verdict_on_image(status) => Ok(Err(status)),
        Err(error) => Err(driver_error(error, "loading the module")),
    }
}

fn is_verdict_on_image(status: CUresult) -> bool {
    matches!(
        status,
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED
    )
}

#[cfg(test)]
#[path = "compile_tests.rs"]
pub(in crate::cuda) mod tests;
