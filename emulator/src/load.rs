//! Loading the emulated libraries into a process, and talking to them.
//!
//! A program under test looks its CUDA libraries up by name. [`Emulator::load`] loads the emulated
//! ones by path first, so that the lookup finds them; no environment variable is needed, and a
//! driver that is installed on the machine is neither replaced nor touched.

use std::{
    ffi::{CStr, CString, c_void},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::runtime::{Request, Response, config::Config, counters::Counters, report::Report};

/// Why the emulator could not be loaded or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The shared library was not built, or is not where it is looked for.
    #[error(
        "`{file}` was found in none of {searched:?}; add `{package}` to the dev-dependencies, or set `CUDA_EMULATOR_LIB_DIR`"
    )]
    Missing {
        /// File name.
        file: String,
        /// Package that builds it.
        package: String,
        /// Directories that were searched.
        searched: Vec<PathBuf>,
    },
    /// The dynamic linker refused the file.
    #[error("`{path}` cannot be loaded: {reason}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// The linker's words.
        reason: String,
    },
    /// A program would find another library under this name.
    #[error(
        "looking up `{name}` finds another library than the emulator, such as a real driver; run with `LD_LIBRARY_PATH` set to a directory where `{name}` is a link to the emulated one"
    )]
    Shadowed {
        /// The name that was looked up.
        name: String,
    },
    /// The loaded library and this package do not understand each other.
    #[error(
        "the loaded emulator did not understand the request: were package and library built from one version?"
    )]
    Protocol,
}

type Control = unsafe extern "C" fn(*const u8, usize, *mut *mut u8, *mut usize) -> i32;
type Release = unsafe extern "C" fn(*mut u8, usize);

/// The loaded emulator, freshly configured; only one exists at a time in a process.
///
/// Tests of one binary run in threads that would share the emulated devices. Loading therefore
/// waits until the previous `Emulator` is dropped. Drop every CUDA object before it.
#[derive(Debug)]
pub struct Emulator {
    control: Control,
    release: Release,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

/// The names under which cudarc looks for the driver, up to the emulator's own.
const DRIVER_NAMES: [&CStr; 3] = [c"libcuda.so", c"libcuda64.so", c"libcuda.so.1"];
/// What cudarc tries for cuBLAS and cublasLt before the emulated files' own names.
const BLAS_NAMES: [&CStr; 4] =
    [c"libcublas.so", c"libcublas.so.13", c"libcublasLt.so", c"libcublasLt.so.13"];

impl Emulator {
    /// Loads the emulated libcuda, libcublas and libcublasLt, and NVRTC if it was fetched, and
    /// starts over with `config`.
    ///
    /// The libraries are looked for in `CUDA_EMULATOR_LIB_DIR`, else beside the running
    /// executable and in its `deps` directory, where Cargo puts them. NVRTC is looked for in
    /// `CUDA_EMULATOR_NVRTC_DIR`, else, CUDA 13's and 12's, where `fetch-nvrtc` put it in the target
    /// directory.
    ///
    /// # Errors
    /// [`LoadError::Missing`] and [`LoadError::Refused`] for the files,
    /// [`LoadError::Shadowed`] when a program would find another driver nevertheless.
    pub fn load(config: Config) -> Result<Self, LoadError> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directories = library_directories();
        let driver = open_built("libcuda", &directories)?;
        for name in ["libcublas", "libcublaslt"] {
            match open_built(name, &directories) {
                // A program without cuBLAS need not build it.
                Ok(_) | Err(LoadError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for name in DRIVER_NAMES {
            if let Some(handle) = open(name)
                && symbol(handle, c"cuda_emulator_control").is_none()
            {
                return Err(LoadError::Shadowed { name: name.to_string_lossy().into_owned() });
            }
        }
        for name in BLAS_NAMES {
            // Only what is found at all matters: cudarc asks for these names in this order.
            if let Some(handle) = open(name)
                && symbol(handle, c"cuda_emulator_thin").is_none()
            {
                return Err(LoadError::Shadowed { name: name.to_string_lossy().into_owned() });
            }
        }
        load_nvrtc();
        let control = symbol(driver, c"cuda_emulator_control").ok_or(LoadError::Protocol)?;
        let release = symbol(driver, c"cuda_emulator_release").ok_or(LoadError::Protocol)?;
        // SAFETY: the emulated libcuda exports both functions with these signatures and stays
        // loaded for the life of the process.
        #[allow(unsafe_code, reason = "functions of the loaded library")]
        let (control, release) = unsafe {
            (
                std::mem::transmute::<*mut c_void, Control>(control),
                std::mem::transmute::<*mut c_void, Release>(release),
            )
        };
        let emulator = Emulator { control, release, _alone: alone };
        emulator.ask(&Request::Reset(Box::new(config)))?;
        Ok(emulator)
    }

    /// The findings so far, in the order they were made.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn findings(&self) -> Result<Vec<Report>, LoadError> {
        self.ask_findings(&Request::Findings)
    }

    /// The findings so far, which the emulator then forgets.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn take_findings(&self) -> Result<Vec<Report>, LoadError> {
        self.ask_findings(&Request::TakeFindings)
    }

    /// Ends every context that is left, so that leaks are found, and returns all findings.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn finish(&self) -> Result<Vec<Report>, LoadError> {
        self.ask(&Request::Finish)?;
        self.findings()
    }

    /// What the program has cost so far. Work counts when it runs: synchronise first.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn counters(&self) -> Result<Counters, LoadError> {
        match self.ask(&Request::Counters)? {
            Response::Counters(counters) => Ok(*counters),
            _ => Err(LoadError::Protocol),
        }
    }

    /// The counters as one JSON object.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn counters_json(&self) -> Result<String, LoadError> {
        serde_json::to_string_pretty(&self.counters()?).map_err(|_| LoadError::Protocol)
    }

    /// Sets the counters to zero.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn reset_counters(&self) -> Result<(), LoadError> {
        self.ask(&Request::ResetCounters).map(drop)
    }

    /// One line that says whether anything inexact or unsupported executed.
    ///
    /// # Errors
    /// [`LoadError::Protocol`].
    pub fn fidelity(&self) -> Result<String, LoadError> {
        let Response::Fidelity { approximate, unsupported } = self.ask(&Request::Fidelity)? else {
            return Err(LoadError::Protocol);
        };
        let list =
            |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Ok(format!(
            "fidelity: approximate: {}; unsupported: {}",
            list(&approximate),
            list(&unsupported)
        ))
    }

    fn ask_findings(&self, request: &Request) -> Result<Vec<Report>, LoadError> {
        match self.ask(request)? {
            Response::Findings(findings) => Ok(findings),
            _ => Err(LoadError::Protocol),
        }
    }

    #[allow(unsafe_code, reason = "calls the loaded library")]
    fn ask(&self, request: &Request) -> Result<Response, LoadError> {
        let request = serde_json::to_vec(request).map_err(|_| LoadError::Protocol)?;
        let (mut bytes, mut len) = (std::ptr::null_mut(), 0);
        // SAFETY: `request` is readable for its length; `bytes` and `len` are writable.
        let status = unsafe {
            (self.control)(request.as_ptr(), request.len(), &raw mut bytes, &raw mut len)
        };
        if status != 0 || bytes.is_null() {
            return Err(LoadError::Protocol);
        }
        // SAFETY: on success the library hands out `len` bytes at `bytes`, ours until released.
        let response = serde_json::from_slice(unsafe { std::slice::from_raw_parts(bytes, len) });
        // SAFETY: the same address and length, once.
        unsafe { (self.release)(bytes, len) };
        response.map_err(|_| LoadError::Protocol)
    }
}

/// Where Cargo leaves shared libraries for the running executable.
fn library_directories() -> Vec<PathBuf> {
    if let Some(directory) = std::env::var_os("CUDA_EMULATOR_LIB_DIR") {
        return vec![PathBuf::from(directory)];
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let mut directories = Vec::new();
    // target/debug, target/debug/deps, target/debug/examples.
    for directory in executable.ancestors().skip(1).take(2) {
        directories.push(directory.to_path_buf());
        directories.push(directory.join("deps"));
    }
    directories
}

fn open_built(name: &str, directories: &[PathBuf]) -> Result<*mut c_void, LoadError> {
    let file = format!("libcuda_emulator_{name}.so");
    let Some(path) = directories.iter().map(|dir| dir.join(&file)).find(|path| path.is_file())
    else {
        return Err(LoadError::Missing {
            file,
            package: format!("cuda-emulator-{name}"),
            searched: directories.to_vec(),
        });
    };
    open_path(&path)
}

#[allow(unsafe_code, reason = "loads a shared library")]
fn open_path(path: &Path) -> Result<*mut c_void, LoadError> {
    use std::os::unix::ffi::OsStrExt as _;
    let refused = |reason: String| LoadError::Refused { path: path.to_path_buf(), reason };
    let name =
        CString::new(path.as_os_str().as_bytes()).map_err(|error| refused(error.to_string()))?;
    match open(&name) {
        Some(handle) => Ok(handle),
        None => {
            // SAFETY: dlerror returns null or a NUL-terminated string valid until the next call
            // of a dl function on this thread.
            let reason = unsafe {
                let text = libc::dlerror();
                if text.is_null() {
                    String::new()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            };
            Err(refused(reason))
        }
    }
}

#[allow(unsafe_code, reason = "loads a shared library")]
fn open(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a NUL-terminated name; running the library's initialisers is the point. The handle
    // is never closed, so what it hands out stays valid.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    (!handle.is_null()).then_some(handle)
}

#[allow(unsafe_code, reason = "looks a symbol up")]
fn symbol(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: `handle` came from dlopen and was never closed; the name is NUL-terminated.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Loads every NVRTC and its builtins from where `fetch-nvrtc` put them, so that the lookup by name
/// finds the one it asks for; without them the program's own lookup decides.
fn load_nvrtc() {
    let mut directories = Vec::new();
    if let Some(directory) = std::env::var_os("CUDA_EMULATOR_NVRTC_DIR") {
        directories.push(PathBuf::from(directory));
    } else {
        let executable = std::env::current_exe().unwrap_or_default();
        for ancestor in executable.ancestors().skip(1) {
            // cudarc's CUDA 12 features look for `libnvrtc.so.12`, its CUDA 13 features for `.13` first.
            directories.push(ancestor.join("cuda-python/nvidia/cu13/lib"));
            directories.push(ancestor.join("cuda-python-12/nvidia/cuda_nvrtc/lib"));
        }
    }
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let mut files: Vec<PathBuf> =
            entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        // `libnvrtc-builtins` sorts before `libnvrtc.so`, which needs it.
        files.sort();
        for file in files {
            let name = file
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            if name.starts_with("libnvrtc") && !name.contains("static") && !name.contains(".alt.") {
                // One that cannot be loaded is not there for the program's own lookup either.
                let _ = open_path(&file);
            }
        }
    }
}
