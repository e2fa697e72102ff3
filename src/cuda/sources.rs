//! The kernels' sources, embedded by `build.rs`.

/// One kernel file, its headers inlined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelSource {
    /// Name within `kernels/`.
    pub(crate) file: &'static str,
    pub(crate) source: &'static str,
    /// SHA-256 of `source`, 64 lower-case hexadecimal digits.
    pub(crate) digest: &'static str,
    /// Names of its `extern "C" __global__` functions.
    pub(crate) entries: &'static [&'static str],
}

/// Every kernel file, by name.
pub(crate) const SOURCES: &[KernelSource] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
