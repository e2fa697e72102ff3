//! Finding CUDA's libraries the way cudarc will, without its panics.
//!
//! cudarc loads a library at the first call into it, and panics if there is none or if it lacks the
//! function. Everything here happens before that first call.

use std::ffi::c_void;
use std::path::PathBuf;

use libloading::Library;

/// A loaded library. It stays loaded for the life of the process, as cudarc's handles do.
#[derive(Debug)]
pub(crate) struct Found {
    library: &'static Library,
    /// Name under which it was found.
    pub(crate) name: String,
}

/// Why no library was loaded.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(crate) searched: Vec<String>,
    /// The loader's words about a file that exists but cannot be loaded.
    pub(crate) refused: Option<String>,
}

/// Looks for a library (`cuda`, `nvrtc`, `cublasLt`) under the names, and in the order, that cudarc uses.
pub(crate) fn find(library: &str) -> Result<Found, Missing> {
    let searched = candidates(library);
    let mut refused = None;
    for name in &searched {
        // SAFETY: loading runs the library's initialisers; these are CUDA's own libraries (or
        // stand-ins that the user put in their place), which cudarc loads in the same way next.
        #[allow(unsafe_code, reason = "loading a shared library")]
        match unsafe { Library::new(name) } {
            Ok(library) => {
                return Ok(Found { library: Box::leak(Box::new(library)), name: name.clone() });
            }
            Err(error) => {
                let text = chain(&error);
                if !text.contains("No such file or directory") || !text.contains(name.as_str()) {
                    refused.get_or_insert(text);
                }
            }
        }
    }
    Err(Missing { searched, refused })
}

/// An error with its causes: libloading's own text does not hold the loader's words.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl Found {
    /// Address of a function, if the library has it.
    pub(crate) fn symbol(&self, name: &str) -> Option<*const c_void> {
        // SAFETY: the symbol's address is taken, nothing is read or called through it here.
        #[allow(unsafe_code, reason = "looking up a symbol")]
        unsafe { self.library.get::<*const c_void>(name) }.ok().map(|symbol| *symbol)
    }

    /// The first of these functions that the library lacks.
    pub(crate) fn first_missing(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.symbol(name).is_none())
    }

    /// The file that the library was loaded from, where the system tells; else the name it was found
    /// under.
    pub(crate) fn path(&self, symbol: &str) -> PathBuf {
        self.symbol(symbol)
            .and_then(|address| mapped_file(address.addr()))
            .unwrap_or_else(|| PathBuf::from(&self.name))
    }
}

/// The file that is mapped at an address, from Linux's table of mappings.
fn mapped_file(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let path = rest.find('/').and_then(|at| rest.get(at..))?;
        (start..end).contains(&address).then(|| PathBuf::from(path))
    })
}

/// cudarc's list. It is not called because it exists only where cudarc loads its libraries itself; with
/// candle's CUDA feature they are linked.
fn candidates(library: &str) -> Vec<String> {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    let version = cudarc::driver::sys::CUDA_VERSION;
    let (major, minor) = (version / 1000, version % 1000 / 10);
    let plain = format!("{DLL_PREFIX}{library}");
    let wide = format!("{plain}{}", usize::BITS);
    let mut names = vec![format!("{plain}{DLL_SUFFIX}"), format!("{wide}{DLL_SUFFIX}")];
    for version in [
        format!("{major}"),
        format!("{major}{minor}"),
        format!("{major}{minor}_0"),
        format!("{major}0_{minor}"),
        "10".to_owned(),
        "11".to_owned(),
        "12".to_owned(),
        format!("{major}0_0"),
        "9".to_owned(),
    ] {
        names.push(format!("{wide}_{version}{DLL_SUFFIX}"));
    }
    for version in [major, 12, 11, 10, 9, 1] {
        names.push(format!("{plain}{DLL_SUFFIX}.{version}"));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_cudarc_in_its_order() {
        for library in ["cuda", "nvrtc", "cublasLt"] {
            assert_eq!(candidates(library), cudarc::get_lib_name_candidates(library));
        }
    }

    #[test]
    fn the_file_of_a_mapped_address_is_found() {
        let path = mapped_file((the_file_of_a_mapped_address_is_found as fn()) as usize).unwrap();
        assert_eq!(path, std::env::current_exe().unwrap());
        assert_eq!(mapped_file(0), None);
    }
}
