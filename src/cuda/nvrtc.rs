//! NVRTC behind functions that return errors: cudarc's own wrapper unwraps while reading the log and
//! while dropping a program.
//!
//! Callers have been through [`preflight`](super::preflight), so every function is there.

use std::ffi::{CString, c_char};
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys::{self, nvrtcResult};

use crate::error::{Error, Result};

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// PTX, which the driver translates for its device.
    Ptx,
    /// Machine code of one architecture, for drivers that do not know the compiler's PTX version yet.
    Cubin,
}

/// Programs compiled by this process; tests read it.
#[cfg(test)]
static COMPILATIONS: AtomicU64 = AtomicU64::new(0);

/// How many programs this process has compiled.
#[cfg(test)]
pub(crate) fn compilations() -> u64 {
    COMPILATIONS.load(Ordering::Relaxed)
}

/// NVRTC's version, such as (13, 0).
pub(crate) fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to live integers, which the call writes.
    #[allow(unsafe_code, reason = "a call of NVRTC")]
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|error| failure(error, "asking for the version"))?;
    Ok((major, minor))
}

/// The architectures NVRTC compiles for, ascending: 80 for sm_80.
pub(crate) fn supported_architectures() -> Result<Vec<u32>> {
    let doing = "asking for the supported architectures";
    let mut count = 0;
    // SAFETY: the pointer is to a live integer, which the call writes.
    #[allow(unsafe_code, reason = "a call of NVRTC")]
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }
        .result()
        .map_err(|error| failure(error, doing))?;
    let mut architectures = vec![0; usize::try_from(count).unwrap_or_default()];
    // SAFETY: the vector holds as many integers as NVRTC said it writes.
    #[allow(unsafe_code, reason = "a call of NVRTC")]
    unsafe { sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()) }
        .result()
        .map_err(|error| failure(error, doing))?;
    let mut architectures: Vec<u32> =
        architectures.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect();
    architectures.sort_unstable();
    Ok(architectures)
}

/// Compiles a source; `name` stands in messages about lines without `#line`.
pub(crate) fn compile(
    source: &str,
    name: &str,
    options: &[String],
    image: Image,
) -> Result<Vec<u8>> {
    #[cfg(test)]
    COMPILATIONS.fetch_add(1, Ordering::Relaxed);
    let source = c_string(source, "the source")?;
    let c_name = c_string(name, "the name")?;
    let c_options =
        options.iter().map(|option| c_string(option, "an option")).collect::<Result<Vec<_>>>()?;
    let program = Program(
        result::create_program(&source, Some(&c_name))
            .map_err(|error| failure(error, format_args!("creating the program `{name}`")))?,
    );
    let pointers: Vec<*const c_char> = c_options.iter().map(|option| option.as_ptr()).collect();
    let count = i32::try_from(pointers.len()).unwrap_or(i32::MAX);
    // SAFETY: the program is alive until `program` drops, source and name outlive it, and `pointers`
    // holds `count` strings that live until the end of this function.
    #[allow(unsafe_code, reason = "a call of NVRTC")]
    let compiled = unsafe { sys::nvrtcCompileProgram(program.0, count, pointers.as_ptr()) };
    if let Err(error) = compiled.result() {
        return Err(compile_failure(error, name, options, &program.log()));
    }
    program
        .image(image)
        .map_err(|error| failure(error, format_args!("reading the image of `{name}`")))
}

/// An NVRTC program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    /// The compiler's messages; empty where there are none or they cannot be read.
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        #[allow(unsafe_code, reason = "a call of NVRTC")]
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(c_char::cast_unsigned).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    fn image(&self, image: Image) -> Result<Vec<u8>, NvrtcError> {
        if image == Image::Ptx {
            // SAFETY: the program is alive and was compiled.
            #[allow(unsafe_code, reason = "a call of NVRTC")]
            let ptx = unsafe { result::get_ptx(self.0) }?;
            let mut ptx: Vec<u8> = ptx.into_iter().map(c_char::cast_unsigned).collect();
            while ptx.last() == Some(&0) {
                ptx.pop();
            }
            return Ok(ptx);
        }
        let mut size = 0;
        // SAFETY: the program is alive and was compiled; the pointer is to a live integer.
        #[allow(unsafe_code, reason = "a call of NVRTC")]
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) }.result()?;
        let mut cubin = vec![0_u8; size];
        // SAFETY: the buffer holds as many bytes as NVRTC said it writes.
        #[allow(unsafe_code, reason = "a call of NVRTC")]
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A program that cannot be destroyed leaks; there is nobody to tell and nothing to do.
        // SAFETY: the program was created by NVRTC and is destroyed once.
        #[allow(unsafe_code, reason = "a call of NVRTC")]
        let _leaked = unsafe { result::destroy_program(self.0) };
    }
}

fn c_string(text: &str, what: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::kernel_compile(format!("{what} of a kernel holds a NUL character"), None)
    })
}

fn number(error: NvrtcError) -> i32 {
    i32::try_from(error.0 as u32).unwrap_or(i32::MAX)
}

fn failure(error: NvrtcError, doing: impl std::fmt::Display) -> Error {
    let status = error.0;
    Error::cuda(
        format!("{doing}: NVRTC: {status:?} ({})", number(error)),
        number(error),
        status == nvrtcResult::NVRTC_ERROR_OUT_OF_MEMORY,
    )
}

fn compile_failure(error: NvrtcError, name: &str, options: &[String], log: &str) -> Error {
    let status = number(error);
    // Without its builtins NVRTC reports this status, or a compilation error that names the file.
    if error.0 == nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE
        || log.contains("nvrtc-builtins")
    {
        let detail = log.lines().next().map(|line| format!(" ({line})")).unwrap_or_default();
        return Error::cuda_unavailable(
            format!(
                "NVRTC does not find its builtins{detail}: the file libnvrtc-builtins.so of the same \
                 version belongs beside libnvrtc.so, in a directory that the loader searches; \
                 reinstall NVRTC (CUDA toolkit, or `pip install nvidia-cuda-nvrtc`) and put its \
                 directory into LD_LIBRARY_PATH"
            ),
            Some(status),
        );
    }
    let mut message = format!("`{name}` does not compile: NVRTC: {:?} ({status})", error.0);
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        message.push_str("\n  ");
        message.push_str(line);
    }
    message.push_str("\n  options: ");
    message.push_str(&options.join(" "));
    Error::kernel_compile(message, Some(status))
}
