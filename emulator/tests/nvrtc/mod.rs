//! The real NVRTC for tests: found in target/, fetched on first use, called through its C interface.
//!
//! Set `CUDA_EMULATOR_SKIP_NVRTC=1` to skip the tests that need it (no network, no pip).

#![allow(dead_code, reason = "each test binary uses its part of this module")]
#![allow(unsafe_code, reason = "NVRTC is a C library")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "test support fails loudly")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::Library;

type Handle = *mut c_void;

/// A major version of CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cuda {
    V12,
    V13,
}

pub(crate) struct Nvrtc {
    library: Library,
    include: PathBuf,
}

/// NVRTC of a version, or `None` when the tests that need it are to be skipped. The library is only called under
/// NVRTC's own documented thread safety.
pub(crate) fn nvrtc(version: Cuda) -> Option<&'static Nvrtc> {
    static V12: OnceLock<Option<Nvrtc>> = OnceLock::new();
    static V13: OnceLock<Option<Nvrtc>> = OnceLock::new();
    let (cell, file) = match version {
        Cuda::V13 => (&V13, "libnvrtc.so.13"),
        Cuda::V12 => (&V12, "libnvrtc.so.12"),
    };
    cell.get_or_init(|| {
        if std::env::var_os("CUDA_EMULATOR_SKIP_NVRTC").is_some() {
            return None;
        }
        let fetched = cuda_emulator::fetch_nvrtc().unwrap();
        let directory = match version {
            Cuda::V13 => fetched.cuda_13,
            Cuda::V12 => fetched.cuda_12,
        };
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("libnvrtc-builtins.so") {
                // SAFETY: loading NVIDIA's library runs its initialisers only. NVRTC looks for it by
                // name later and then finds it loaded.
                std::mem::forget(unsafe { Library::new(&path) }.unwrap());
            }
        }
        // SAFETY: as above.
        let library = unsafe { Library::new(directory.join(file)) }.unwrap();
        let include = match version {
            Cuda::V13 => directory.join("../include"),
            Cuda::V12 => directory.join("../../cuda_runtime/include"),
        };
        Some(Nvrtc { library, include })
    })
    .as_ref()
}

macro_rules! call {
    ($self:expr, $name:literal, ($($ty:ty),*), $($argument:expr),*) => {{
        // SAFETY: the signature is the one nvrtc.h declares, and every pointer passed is valid for
        // the call.
        unsafe {
            let function: libloading::Symbol<'_, unsafe extern "C" fn($($ty),*) -> c_int> =
                $self.library.get($name).unwrap();
            function($($argument),*)
        }
    }};
}

impl Nvrtc {
    /// PTX of a CUDA C source, with line information; panics with the compiler's log.
    pub(crate) fn compile(&self, name: &str, source: &str, arch: &str, options: &[&str]) -> String {
        let source = CString::new(source).unwrap();
        let name = CString::new(name).unwrap();
        let mut program: Handle = std::ptr::null_mut();
        let null = std::ptr::null::<*const c_char>();
        let status = call!(
            self,
            b"nvrtcCreateProgram",
            (
                *mut Handle,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char
            ),
            &mut program,
            source.as_ptr(),
            name.as_ptr(),
            0,
            null,
            null
        );
        assert_eq!(status, 0, "nvrtcCreateProgram");
        let mut all = vec![
            format!("--gpu-architecture=compute_{arch}"),
            format!("-I{}", self.include.display()),
            "-lineinfo".to_owned(),
            "-default-device".to_owned(),
        ];
        all.extend(options.iter().map(|option| (*option).to_owned()));
        let all: Vec<CString> = all.into_iter().map(|o| CString::new(o).unwrap()).collect();
        let pointers: Vec<*const c_char> = all.iter().map(|option| option.as_ptr()).collect();
        let status = call!(
            self,
            b"nvrtcCompileProgram",
            (Handle, c_int, *const *const c_char),
            program,
            pointers.len() as c_int,
            pointers.as_ptr()
        );
        if status != 0 {
            let log = self.text(program, b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog");
            panic!("NVRTC, {arch}: {log}");
        }
        let ptx = self.text(program, b"nvrtcGetPTXSize", b"nvrtcGetPTX");
        call!(self, b"nvrtcDestroyProgram", (*mut Handle), &mut program);
        ptx
    }

    fn text(&self, program: Handle, size: &[u8], content: &[u8]) -> String {
        let mut bytes = 0usize;
        // SAFETY: signatures of nvrtc.h; the buffer has the size the library asked for.
        unsafe {
            let get_size: libloading::Symbol<
                '_,
                unsafe extern "C" fn(Handle, *mut usize) -> c_int,
            > = self.library.get(size).unwrap();
            assert_eq!(get_size(program, &mut bytes), 0);
            let mut buffer = vec![0u8; bytes + 1];
            let get: libloading::Symbol<'_, unsafe extern "C" fn(Handle, *mut c_char) -> c_int> =
                self.library.get(content).unwrap();
            assert_eq!(get(program, buffer.as_mut_ptr().cast()), 0);
            CStr::from_ptr(buffer.as_ptr().cast()).to_string_lossy().into_owned()
        }
    }
}
