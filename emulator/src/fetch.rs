//! NVRTC from PyPI, for tests that compile kernels.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// The command that people run by hand, from its standard input.
const SCRIPT: &str = include_str!("../fetch-nvrtc");

/// Why NVRTC could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The running executable is not where Cargo puts one.
    #[error(
        "`{executable}` is not in Cargo's target directory, so NVRTC has no place; run `fetch-nvrtc DIRECTORY` and set `CUDA_EMULATOR_NVRTC_DIR`"
    )]
    NoTarget {
        /// The executable.
        executable: PathBuf,
    },
    /// The shell did not run.
    #[error("`sh`, which fetches NVRTC, did not run")]
    Shell(#[source] io::Error),
    /// The shell or pip failed.
    #[error("NVRTC could not be fetched from PyPI (python3 with pip is needed): {output}")]
    Failed {
        /// What they printed.
        output: String,
    },
}

/// Where [`fetch_nvrtc`] has put NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NvrtcDirectories {
    /// Cargo's target directory (with `--target`, that target's directory in it).
    pub target: PathBuf,
    /// `libnvrtc.so.13` and its builtins; the headers are in `../include`.
    pub cuda_13: PathBuf,
    /// `libnvrtc.so.12` and its builtins.
    pub cuda_12: PathBuf,
}

/// Fetches NVRTC and the CUDA headers from PyPI into Cargo's target directory, where [`crate::Emulator::load`]
/// finds them; does nothing when they are there.
///
/// The same as the command `emulator/fetch-nvrtc`, for the directory that the running test was built in.
/// Needs a shell and python3 with pip, and the network for the first call: about 200 MB.
///
/// # Errors
/// [`FetchError`]: no target directory, no shell, or what pip printed.
pub fn fetch_nvrtc() -> Result<NvrtcDirectories, FetchError> {
    // The script has a lock between processes, where there is `flock`.
    static ONCE: Mutex<Option<NvrtcDirectories>> = Mutex::new(None);
    let mut fetched = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(directories) = fetched.as_ref() {
        return Ok(directories.clone());
    }
    let executable = std::env::current_exe().map_err(FetchError::Shell)?;
    let Some(target) = target_directory(&executable) else {
        return Err(FetchError::NoTarget { executable });
    };
    let mut shell = Command::new("sh")
        .args(["-s", "--"])
        .arg(target)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(FetchError::Shell)?;
    if let Some(mut stdin) = shell.stdin.take() {
        stdin.write_all(SCRIPT.as_bytes()).map_err(FetchError::Shell)?;
    }
    let output = shell.wait_with_output().map_err(FetchError::Shell)?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let mut lines = printed.lines();
    match (output.status.success(), lines.next(), lines.next()) {
        (true, Some(cuda_13), Some(cuda_12)) => {
            let directories = NvrtcDirectories {
                target: target.to_path_buf(),
                cuda_13: cuda_13.into(),
                cuda_12: cuda_12.into(),
            };
            Ok(fetched.insert(directories).clone())
        }
        _ => Err(FetchError::Failed {
            output: format!("{printed}{}", String::from_utf8_lossy(&output.stderr)),
        }),
    }
}

/// The directory above the profile's: `target` of `target/debug/deps/test`, `target/debug/examples/example` and
/// `target/debug/program`.
fn target_directory(executable: &Path) -> Option<&Path> {
    let mut directory = executable.parent()?;
    if directory.file_name().is_some_and(|name| name == "deps" || name == "examples") {
        directory = directory.parent()?;
    }
    directory.parent().filter(|target| !target.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_the_one_above_the_profile() {
        for (executable, target) in [
            ("/a/target/debug/deps/test-0", Some("/a/target")),
            ("/a/target/release/examples/e", Some("/a/target")),
            ("/a/target/debug/muon", Some("/a/target")),
            (
                "/a/elsewhere/x86_64-unknown-linux-gnu/debug/deps/t",
                Some("/a/elsewhere/x86_64-unknown-linux-gnu"),
            ),
            ("muon", None),
        ] {
            assert_eq!(
                target_directory(Path::new(executable)),
                target.map(Path::new),
                "{executable}"
            );
        }
    }
}
