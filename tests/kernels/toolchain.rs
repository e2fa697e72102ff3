//! NVRTC, ptxas and cuobjdump, fetched once a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cuda_emulator::NvrtcDirectories;

use crate::options::options;

/// The directory of ptxas and cuobjdump; NVRTC is loaded on the way.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let NvrtcDirectories { target, cuda_13: nvrtc, .. } = cuda_emulator::fetch_nvrtc().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/fetch-cuda-tools");
        let output = Command::new(script).env("CARGO_TARGET_DIR", target).output().unwrap();
        assert!(
            output.status.success(),
            "NVRTC and ptxas could not be fetched, and without them the kernels are not checked:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // By path, builtins first: the lookup by name then finds them loaded.
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&nvrtc).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        for file in files {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let wanted = name.starts_with("libnvrtc") && name.contains(".so");
            if wanted && !name.contains(".alt.") {
                // SAFETY: NVRTC's own libraries, as cudarc loads them.
                #[allow(unsafe_code, reason = "loading a shared library")]
                std::mem::forget(unsafe { libloading::Library::new(&file) }.unwrap());
            }
        }
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

/// PTX as the library would compile it; NVRTC's log when it does not.
pub(crate) fn ptx(source: &str, name: &str, architecture: &str) -> Result<String, String> {
    tools();
    let options = cudarc::nvrtc::CompileOptions {
        name: Some(name.to_owned()),
        options: options(architecture),
        ..Default::default()
    };
    match cudarc::nvrtc::compile_ptx_with_opts(source, options) {
        Ok(ptx) => Ok(ptx.to_src()),
        Err(cudarc::nvrtc::CompileError::CompileError { log, .. }) => {
            Err(log.to_string_lossy().into_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What ptxas reports (`-v`) and what cuobjdump disassembles.
pub(crate) struct MachineCode {
    pub(crate) report: String,
    pub(crate) sass: String,
}

/// Machine code for an architecture such as `sm_90`.
pub(crate) fn assemble(ptx: &str, architecture: &str) -> Result<MachineCode, String> {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) =
        (directory.path().join("kernel.ptx"), directory.path().join("kernel.cubin"));
    std::fs::write(&input, ptx).unwrap();
    let mut ptxas = Command::new(tools().join("ptxas"));
    ptxas.args(["-v", "-arch", architecture]).arg(&input).arg("-o").arg(&output);
    let (_, report) = run(ptxas)?;
    let mut cuobjdump = Command::new(tools().join("cuobjdump"));
    cuobjdump.arg("-sass").arg(&output).env("PATH", tools());
    let (sass, _) = run(cuobjdump)?;
    Ok(MachineCode { report, sass })
}

fn run(mut command: Command) -> Result<(String, String), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() { Ok((out, err)) } else { Err(format!("{command:?}: {out}{err}")) }
}
