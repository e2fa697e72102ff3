//! What a run of the emulator is configured with, from Rust or from the environment.

use serde::{Deserialize, Serialize};

use super::{profile::DeviceProfile, status::Status};

/// Settings of one run; [`Config::default`] is one H100-like device, seed 0, no faults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// The emulated devices, by ordinal.
    pub devices: Vec<DeviceProfile>,
    /// Chooses the order of independent work; the same seed gives the same run.
    pub seed: u64,
    /// Device memory limit in bytes, below the profile's.
    pub memory_limit: Option<u64>,
    /// Calls that are to fail.
    pub faults: Vec<Fault>,
    /// What a finding does besides being recorded.
    pub on_finding: OnFinding,
    /// Whether findings are also written to standard error.
    pub log: Log,
    /// Thread-instructions one launch may execute before it counts as a runaway.
    pub instruction_budget: Option<u64>,
    /// A file that gets the counters as JSON whenever a context ends.
    pub counters_file: Option<std::path::PathBuf>,
}

/// What happens to the operation that a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFinding {
    /// The operation fails and its context is unusable from then on, as after a device fault.
    Fail,
    /// The finding is recorded and the run goes on where that is possible.
    Record,
}

/// Whether findings are written to standard error as they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Log {
    /// Every finding is written.
    Stderr,
    /// Findings are only kept for the Rust API.
    Quiet,
}

/// Where a fault is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultSite {
    /// Device and pinned host allocations.
    Allocation,
    /// Kernel launches, graph nodes included.
    Launch,
    /// cuBLAS and cublasLt calls that enqueue a product.
    Blas,
    /// `cublasCreate` and `cublasLtCreate`.
    BlasHandle,
    /// `cublasLtMatmulAlgoGetHeuristic`.
    Heuristic,
    /// Copies and memsets.
    Copy,
}

/// One call that is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind of call that fails.
    pub site: FaultSite,
    /// Which call of this kind fails, counted from 1.
    pub nth: u64,
    /// The `CUresult` (for calls of cuBLAS and cublasLt the `cublasStatus_t`) it fails with.
    ///
    /// A sticky `CUresult` (700, 702, 710, 714–719) on a launch or copy shows where a device
    /// would show it: at the next synchronisation, and from every later call.
    pub status: i32,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            devices: vec![DeviceProfile::h100()],
            seed: 0,
            memory_limit: None,
            faults: Vec::new(),
            on_finding: OnFinding::Fail,
            log: Log::Stderr,
            instruction_budget: None,
            counters_file: None,
        }
    }
}

impl Config {
    /// The default configuration with another scheduling seed.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Config { seed, ..Config::default() }
    }

    /// The configuration the `CUDA_EMULATOR_*` environment variables describe.
    ///
    /// # Errors
    /// Names the variable whose value is not understood.
    pub fn from_env() -> Result<Self, String> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// As [`Config::from_env`], with the variables looked up by `get`.
    ///
    /// # Errors
    /// Names the variable whose value is not understood.
    pub fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut config = Config::default();
        if let Some(names) = get("CUDA_EMULATOR_DEVICES") {
            config.devices = names
                .split(',')
                .map(|name| {
                    DeviceProfile::by_name(name).ok_or_else(|| {
                        format!(
                            "`CUDA_EMULATOR_DEVICES`: unknown device `{name}`; known are h100, a100, rtx4090, b200"
                        )
                    })
                })
                .collect::<Result<_, _>>()?;
        }
        let number = |name: &str| -> Result<Option<u64>, String> {
            get(name)
                .map(|text| {
                    text.trim().parse().map_err(|_| format!("`{name}`: `{text}` is not a number"))
                })
                .transpose()
        };
        if let Some(seed) = number("CUDA_EMULATOR_SEED")? {
            config.seed = seed;
        }
        config.memory_limit = number("CUDA_EMULATOR_MEMORY_LIMIT")?;
        config.instruction_budget = number("CUDA_EMULATOR_INSTRUCTION_BUDGET")?;
        config.counters_file = get("CUDA_EMULATOR_COUNTERS").map(Into::into);
        if let Some(text) = get("CUDA_EMULATOR_FAIL") {
            config.faults = text
                .split(',')
                .filter(|part| !part.trim().is_empty())
                .map(parse_fault)
                .collect::<Result<_, _>>()?;
        }
        match get("CUDA_EMULATOR_ON_FINDING").as_deref() {
            None | Some("fail") => {}
            Some("record") => config.on_finding = OnFinding::Record,
            Some(other) => {
                return Err(format!(
                    "`CUDA_EMULATOR_ON_FINDING`: `{other}` is neither `fail` nor `record`"
                ));
            }
        }
        match get("CUDA_EMULATOR_LOG").as_deref() {
            None | Some("stderr") => {}
            Some("quiet") => config.log = Log::Quiet,
            Some(other) => {
                return Err(format!(
                    "`CUDA_EMULATOR_LOG`: `{other}` is neither `stderr` nor `quiet`"
                ));
            }
        }
        Ok(config)
    }
}

/// `launch:17:716`, `alloc:3:OUT_OF_MEMORY`, `copy:1:2`, `blas:4:13`.
fn parse_fault(text: &str) -> Result<Fault, String> {
    let wrong = || {
        format!(
            "`CUDA_EMULATOR_FAIL`: `{text}` is not `site:nth:status` with site alloc, launch, blas, blas_handle, heuristic or copy"
        )
    };
    let mut parts = text.trim().splitn(3, ':');
    let site = match parts.next() {
        Some("alloc") => FaultSite::Allocation,
        Some("launch") => FaultSite::Launch,
        Some("blas") => FaultSite::Blas,
        Some("blas_handle") => FaultSite::BlasHandle,
        Some("heuristic") => FaultSite::Heuristic,
        Some("copy") => FaultSite::Copy,
        _ => return Err(wrong()),
    };
    let nth = parts.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0).ok_or_else(wrong)?;
    let status = parts.next().and_then(Status::parse).ok_or_else(wrong)?.0;
    Ok(Fault { site, nth, status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_understood_or_refused_by_name() {
        let get = |name: &str| {
            Some(match name {
                "CUDA_EMULATOR_DEVICES" => "a100,b200".to_owned(),
                "CUDA_EMULATOR_SEED" => "7".to_owned(),
                "CUDA_EMULATOR_FAIL" => "launch:17:716, alloc:3:OUT_OF_MEMORY".to_owned(),
                _ => return None,
            })
        };
        let config = Config::from_lookup(get).unwrap();
        assert_eq!(config.devices.len(), 2);
        assert_eq!(config.seed, 7);
        assert_eq!(
            config.faults,
            [
                Fault { site: FaultSite::Launch, nth: 17, status: 716 },
                Fault { site: FaultSite::Allocation, nth: 3, status: 2 },
            ]
        );
        let error = Config::from_lookup(|name| {
            (name == "CUDA_EMULATOR_FAIL").then(|| "launch:0:1".to_owned())
        })
        .unwrap_err();
        assert!(error.contains("CUDA_EMULATOR_FAIL"), "{error}");
    }
}
