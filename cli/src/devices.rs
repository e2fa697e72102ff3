//! Devices by name: what `--device` takes, and the emulator's life around a command.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::args::PrecisionName;
use crate::exit::Ended;

/// Where the optimizer's arithmetic runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum DeviceName {
    /// f32 (or emulated 16 bit) on the CPU.
    Cpu,
    /// The f64 oracle: slow, independent of the rest of the library.
    Reference,
    /// The CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(Gpu),
}

/// What the CUDA device runs on.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gpu {
    /// An NVIDIA GPU, by its number.
    Number(usize),
    /// The emulator: the same kernels, executed and checked on the CPU.
    #[cfg(feature = "emulator")]
    Emulated,
}

#[cfg(feature = "cuda")]
impl Gpu {
    /// What the driver, true or emulated, calls it.
    pub(crate) fn ordinal(self) -> usize {
        match self {
            Self::Number(ordinal) => ordinal,
            #[cfg(feature = "emulator")]
            Self::Emulated => 0,
        }
    }
}

impl DeviceName {
    /// What training stores the iterate in where nothing is asked for: 16 bit where it is fast.
    pub(crate) fn default_precision(self) -> PrecisionName {
        match self {
            Self::Cpu | Self::Reference => PrecisionName::F32,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => PrecisionName::Bf16,
        }
    }

    /// Makes the device findable; for the emulated one this loads its libraries, as the variables `CUDA_EMULATOR_*` say.
    ///
    /// # Errors
    /// An emulator that was not built or cannot be loaded; a variable that is not understood.
    pub(crate) fn open(self) -> Result<Session> {
        #[cfg(feature = "emulator")]
        if self == Self::Cuda(Gpu::Emulated) {
            return Session::emulated();
        }
        Ok(Session::default())
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Reference => f.write_str("reference"),
            #[cfg(feature = "cuda")]
            Self::Cuda(Gpu::Number(ordinal)) => write!(f, "cuda:{ordinal}"),
            #[cfg(feature = "emulator")]
            Self::Cuda(Gpu::Emulated) => f.write_str("emulated"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let ordinal = match name {
            "cpu" => return Ok(Self::Cpu),
            "reference" => return Ok(Self::Reference),
            "emulated" => return emulated(),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        ordinal.map_or_else(
            || Err("expected `cpu`, `reference`, `cuda`, `cuda:N` or `emulated`".into()),
            cuda,
        )
    }
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<DeviceName, String> {
    Ok(DeviceName::Cuda(Gpu::Number(ordinal)))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize) -> Result<DeviceName, String> {
    Err("this program was built without the feature `cuda`".into())
}

#[cfg(feature = "emulator")]
fn emulated() -> Result<DeviceName, String> {
    Ok(DeviceName::Cuda(Gpu::Emulated))
}

#[cfg(not(feature = "emulator"))]
fn emulated() -> Result<DeviceName, String> {
    Err("this program was built without the emulator: cargo build --features muon-cli/emulator"
        .into())
}

impl TryFrom<String> for DeviceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<DeviceName> for String {
    fn from(device: DeviceName) -> Self {
        device.to_string()
    }
}

/// What must live as long as anything on the device does.
#[derive(Debug, Default)]
pub(crate) struct Session {
    #[cfg(feature = "emulator")]
    emulator: Option<cuda_emulator::Emulator>,
}

impl Session {
    #[cfg(feature = "emulator")]
    fn emulated() -> Result<Self> {
        use anyhow::Context as _;
        use cuda_emulator::{Config, Emulator, LoadError};

        let config = Config::from_env().map_err(anyhow::Error::msg)?;
        let emulator = Emulator::load(config).map_err(|e| match e {
            LoadError::Missing { file, .. } => anyhow::anyhow!(
                "`{file}` is not beside this program: run it from Cargo's target directory, or set CUDA_EMULATOR_LIB_DIR"
            ),
            e => e.into(),
        });
        Ok(Self { emulator: Some(emulator.context("device `emulated`")?) })
    }

    /// The outcome of the command, unless the emulator found a mistake in what ran on it.
    ///
    /// # Errors
    /// The findings: an access out of bounds, a race, a leak.
    pub(crate) fn close(self, ended: Ended) -> Result<Ended> {
        #[cfg(feature = "emulator")]
        if let Some(emulator) = self.emulator {
            let found = emulator.finish()?;
            if !found.is_empty() {
                let mut lines = vec![format!("the emulator found {} mistakes:", found.len())];
                lines.extend(found.iter().map(ToString::to_string));
                return Err(crate::exit::Lines(lines).into());
            }
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for device in [DeviceName::Cpu, DeviceName::Reference] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for nonsense in ["", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "gpu", "cuda:0:1"] {
            assert!(nonsense.parse::<DeviceName>().is_err(), "{nonsense}");
        }
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn a_finding_is_an_error_of_a_command_that_ended_well() {
        use muon_cuda::cudarc::driver::CudaContext;

        let leave_behind = |elements: Option<usize>| {
            let session = DeviceName::Cuda(Gpu::Emulated).open().unwrap();
            let context = CudaContext::new(0).unwrap();
            let stream = context.new_stream().unwrap();
            if let Some(elements) = elements {
                stream.alloc_zeros::<u8>(elements).unwrap().leak();
            }
            stream.synchronize().unwrap();
            drop((stream, context));
            session.close(Ended::Well)
        };
        assert!(leave_behind(None).is_ok());
        let error = leave_behind(Some(24)).unwrap_err().to_string();
        assert!(error.starts_with("the emulator found 1 mistakes:\nLeak"), "{error}");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn gpus_have_numbers() {
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(Gpu::Number(0))));
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(Gpu::Number(3))));
        assert_eq!(DeviceName::Cuda(Gpu::Number(3)).to_string(), "cuda:3");
    }
}
