//! The one public error type: an opaque [`Error`] with predicates, a message that says what was
//! expected and found, and the context each layer added on the way out.

use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::printable::Plain;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Any failure of this crate.
///
/// The kind is asked with predicates ([`Error::is_shape_mismatch`], …) so that kinds can grow without
/// breaking callers. [`fmt::Display`] prints the contexts outermost first, then what happened, on one line with
/// control characters written out ([`Printable`](crate::Printable)); only a kernel that does not compile has the
/// lines of NVRTC's log;
/// [`std::error::Error::source`] returns the error of the layer below, where there is one.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// Innermost first; printed in reverse.
    context: Vec<String>,
    source: Option<Source>,
}

/// What went wrong. Private to the crate: callers use the predicates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ErrorKind {
    #[error("{0}")]
    InvalidConfig(String),
    #[error("{what}: expected {expected}, found {found}")]
    ShapeMismatch { what: String, expected: String, found: String },
    #[error("{what}: expected dtype {expected}, found {found}")]
    DtypeMismatch { what: String, expected: String, found: String },
    #[error("{what} `{name}` is not known{}", did_you_mean(.suggestion))]
    UnknownName { what: &'static str, name: String, suggestion: Option<String> },
    #[error(
        "the name `{name}` is registered already; names identify state in checkpoints and must be unique"
    )]
    DuplicateName { name: String },
    #[error("a tensor `{name}` was added before; every tensor of a file needs its own name")]
    DuplicateTensor { name: String },
    #[error(
        "param `{name}` is given twice, as tensors {first} and {second} of the step; give each parameter once"
    )]
    GivenTwice { name: String, first: usize, second: usize },
    #[error(
        "`{first}` and `{second}` overlap in memory; pass each memory range once (tied weights are one parameter)"
    )]
    Aliasing { first: String, second: String },
    #[error("{0}")]
    NonFinite(String),
    #[error("{0}")]
    Checkpoint(String),
    #[error("{path}: {message}", path = .path.display())]
    Io { path: PathBuf, message: String },
    #[error("{0}")]
    Parse(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Device(String),
    #[error("{0}")]
    OutOfMemory(String),
    #[error("an earlier step was interrupted and the optimizer is torn: {0}")]
    Torn(String),
    /// No CUDA on this machine, or not enough of it.
    #[error("{message}")]
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "constructed by the CUDA device"))]
    CudaUnavailable { message: String, status: Option<i32> },
    /// A failed call of the driver, NVRTC or cublasLt.
    #[error("{message}")]
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "constructed by the CUDA device"))]
    Cuda { message: String, status: i32, out_of_memory: bool },
    #[error("{message}")]
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "constructed by the CUDA device"))]
    KernelCompile { message: String, status: Option<i32> },
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default()
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, context: Vec::new(), source: None }))
    }

    pub(crate) fn invalid_config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidConfig(message.into()))
    }

    pub(crate) fn shape_mismatch(
        what: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::new(ErrorKind::ShapeMismatch {
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    pub(crate) fn dtype_mismatch(
        what: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::new(ErrorKind::DtypeMismatch {
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        })
    }

    /// An unknown name, with the nearest of the known ones as a suggestion.
    pub(crate) fn unknown_name<'a>(
        what: &'static str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let suggestion = known
            .into_iter()
            .map(|k| (strsim::jaro_winkler(name, k), k))
            .filter(|(score, _)| *score > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, k)| k.to_owned());
        Self::new(ErrorKind::UnknownName { what, name: name.to_owned(), suggestion })
    }

    pub(crate) fn duplicate_name(name: impl Into<String>) -> Self {
        Self::new(ErrorKind::DuplicateName { name: name.into() })
    }

    pub(crate) fn duplicate_tensor(name: impl Into<String>) -> Self {
        Self::new(ErrorKind::DuplicateTensor { name: name.into() })
    }

    /// A parameter that two tensors of a step are for, by their positions among the tensors.
    pub(crate) fn given_twice(name: impl Into<String>, first: usize, second: usize) -> Self {
        Self::new(ErrorKind::GivenTwice { name: name.into(), first, second })
    }

    pub(crate) fn non_finite(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NonFinite(message.into()))
    }

    pub(crate) fn checkpoint(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Checkpoint(message.into()))
    }

    pub(crate) fn parse(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Parse(message.into()))
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported(message.into()))
    }

    pub(crate) fn device(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Device(message.into()))
    }

    pub(crate) fn out_of_memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutOfMemory(message.into()))
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn cuda_unavailable(message: impl Into<String>, status: Option<i32>) -> Self {
        Self::new(ErrorKind::CudaUnavailable { message: message.into(), status })
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(message: impl Into<String>, status: i32, out_of_memory: bool) -> Self {
        Self::new(ErrorKind::Cuda { message: message.into(), status, out_of_memory })
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn kernel_compile(message: impl Into<String>, status: Option<i32>) -> Self {
        Self::new(ErrorKind::KernelCompile { message: message.into(), status })
    }

    /// A file-system error with the path it happened at.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        doing: impl fmt::Display,
        source: std::io::Error,
    ) -> Self {
        Self::new(ErrorKind::Io { path: path.into(), message: format!("{doing}: {source}") })
            .with_source(source)
    }

    pub(crate) fn with_source(
        mut self,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Adds what was being done when the error happened; printed before the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.context.push(context.to_string());
        self
    }

    /// A configuration, hyper-parameter or schedule that cannot be honoured.
    #[must_use]
    pub fn is_invalid_config(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::InvalidConfig(_)
                | ErrorKind::UnknownName { .. }
                | ErrorKind::DuplicateName { .. }
                | ErrorKind::DuplicateTensor { .. }
                | ErrorKind::GivenTwice { .. }
        )
    }

    /// A buffer, matrix or file entry whose shape or length is not the expected one.
    #[must_use]
    pub fn is_shape_mismatch(&self) -> bool {
        matches!(self.0.kind, ErrorKind::ShapeMismatch { .. })
    }

    /// A buffer or file entry whose element type is not the expected one.
    #[must_use]
    pub fn is_dtype_mismatch(&self) -> bool {
        matches!(self.0.kind, ErrorKind::DtypeMismatch { .. })
    }

    /// A name (preset, parameter, group) that nothing is known by.
    #[must_use]
    pub fn is_unknown_name(&self) -> bool {
        matches!(self.0.kind, ErrorKind::UnknownName { .. })
    }

    /// A name that was registered twice, or given twice to one step or one file.
    #[must_use]
    pub fn is_duplicate_name(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::DuplicateName { .. }
                | ErrorKind::DuplicateTensor { .. }
                | ErrorKind::GivenTwice { .. }
        )
    }

    /// The same memory passed for two operands of a step.
    #[must_use]
    pub fn is_aliasing(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Aliasing { .. })
    }

    /// A NaN or infinite gradient under the strict policy, or a non-finite input to a standalone call.
    #[must_use]
    pub fn is_non_finite(&self) -> bool {
        matches!(self.0.kind, ErrorKind::NonFinite(_))
    }

    /// A checkpoint that is damaged, truncated, or was written under other modes.
    #[must_use]
    pub fn is_checkpoint(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Checkpoint(_))
    }

    /// A failed file-system call.
    #[must_use]
    pub fn is_io(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Io { .. })
    }

    /// A text (schedule file, flag) that does not parse.
    #[must_use]
    pub fn is_parse(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Parse(_))
    }

    /// A request that is well formed but that this device or build does not implement.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unsupported(_))
    }

    pub(crate) fn torn(why: impl Into<String>) -> Self {
        Self::new(ErrorKind::Torn(why.into()))
    }

    /// An optimizer that an interrupted step left torn; restore a checkpoint.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Torn(_))
    }

    /// A failure of the device itself, a failed call of the CUDA libraries included.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Device(_) | ErrorKind::Cuda { .. })
    }

    /// No usable CUDA on this machine: a library is missing, a stub, or too old, or there is no
    /// device. The message says what to install.
    #[must_use]
    pub fn is_cuda_unavailable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::CudaUnavailable { .. })
    }

    /// Memory ran out, that of the device or of the host.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::OutOfMemory(_) | ErrorKind::Cuda { out_of_memory: true, .. }
        )
    }

    /// A kernel that NVRTC does not compile, or whose image the driver does not take.
    #[must_use]
    pub fn is_kernel_compile(&self) -> bool {
        matches!(self.0.kind, ErrorKind::KernelCompile { .. })
    }

    /// The status number of the failed CUDA call (`CUresult`, `nvrtcResult` or `cublasStatus_t`; the
    /// message names the library), where a call failed.
    #[must_use]
    pub fn cuda_status(&self) -> Option<i32> {
        match self.0.kind {
            ErrorKind::CudaUnavailable { status, .. } | ErrorKind::KernelCompile { status, .. } => {
                status
            }
            ErrorKind::Cuda { status, .. } => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.0.context.iter().rev() {
            write!(Plain::new(&mut *f), "{context}: ")?;
        }
        match &self.0.kind {
            kind @ ErrorKind::KernelCompile { .. } => write!(Plain::lines(f), "{kind}"),
            kind => write!(Plain::new(f), "{kind}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("context", &self.0.context)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

/// Adds context to the error of a `Result`.
pub(crate) trait ResultExt<T> {
    /// See [`Error::context`]; `context` is only evaluated on failure.
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| e.context(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_context_outermost_first_and_suggests_names() {
        let e = Error::unknown_name("schedule", "jordon", ["you", "jordan", "cans"])
            .context("group `hidden`")
            .context("register `w1`");
        assert_eq!(
            e.to_string(),
            "register `w1`: group `hidden`: schedule `jordon` is not known; did you mean `jordan`?"
        );
        assert!(e.is_unknown_name() && e.is_invalid_config() && !e.is_io());
    }

    #[test]
    fn names_from_files_command_no_terminal() {
        let name = "w\u{1b}[2J\nerror: all is well";
        let e = Error::non_finite(format!("tensor `{name}` holds a NaN")).context(name);
        let shown = r"w\u001b[2J\nerror: all is well";
        assert_eq!(e.to_string(), format!("{shown}: tensor `{shown}` holds a NaN"));
    }

    #[test]
    fn is_send_sync_and_small() {
        fn check<T: Send + Sync + 'static>() {}
        check::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn io_errors_keep_their_source() {
        let e = Error::io(
            "a/b",
            "open",
            std::io::Error::new(std::io::ErrorKind::NotFound, "no such file"),
        );
        assert!(e.is_io());
        assert!(std::error::Error::source(&e).is_some());
        assert_eq!(e.to_string(), "a/b: open: no such file");
    }
}
