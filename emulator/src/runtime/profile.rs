//! The devices that can be emulated: limits and attributes, from NVIDIA's published tables.

use serde::{Deserialize, Serialize};

/// Limits and identity of one emulated device.
///
/// # Sources
/// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the vendors'
/// data sheets for memory sizes, multiprocessor counts and clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// What `cuDeviceGetName` returns.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Device memory in bytes.
    pub total_memory: u64,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Boost clock in kHz.
    pub clock_khz: u32,
    /// Memory clock in kHz.
    pub memory_clock_khz: u32,
    /// Memory bus width in bits.
    pub memory_bus_bits: u32,
    /// Level-2 cache in bytes.
    pub l2_bytes: u32,
    /// Shared memory a block may use without opting in, in bytes.
    pub shared_per_block: u32,
    /// Shared memory a block may use after `cuFuncSetAttribute`, in bytes.
    pub shared_per_block_optin: u32,
    /// Shared memory of one multiprocessor, in bytes.
    pub shared_per_multiprocessor: u32,
    /// Resident threads of one multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Resident blocks of one multiprocessor.
    pub blocks_per_multiprocessor: u32,
}

const GIB: u64 = 1 << 30;
const MIB: u32 = 1 << 20;
const KIB: u32 = 1 << 10;

impl DeviceProfile {
    /// H100 SXM-like, compute capability 9.0: the default.
    #[must_use]
    pub fn h100() -> Self {
        DeviceProfile {
            name: "Emulated H100".to_owned(),
            compute_capability: (9, 0),
            total_memory: 80 * GIB,
            multiprocessors: 132,
            clock_khz: 1_980_000,
            memory_clock_khz: 2_619_000,
            memory_bus_bits: 5120,
            l2_bytes: 50 * MIB,
            shared_per_block: 48 * KIB,
            shared_per_block_optin: 227 * KIB,
            shared_per_multiprocessor: 228 * KIB,
            threads_per_multiprocessor: 2048,
            blocks_per_multiprocessor: 32,
        }
    }

    /// A100 SXM-like, compute capability 8.0.
    #[must_use]
    pub fn a100() -> Self {
        DeviceProfile {
            name: "Emulated A100".to_owned(),
            compute_capability: (8, 0),
            total_memory: 80 * GIB,
            multiprocessors: 108,
            clock_khz: 1_410_000,
            memory_clock_khz: 1_593_000,
            memory_bus_bits: 5120,
            l2_bytes: 40 * MIB,
            shared_per_block_optin: 163 * KIB,
            shared_per_multiprocessor: 164 * KIB,
            ..Self::h100()
        }
    }

    /// RTX 4090-like, compute capability 8.9.
    #[must_use]
    pub fn rtx4090() -> Self {
        DeviceProfile {
            name: "Emulated RTX 4090".to_owned(),
            compute_capability: (8, 9),
            total_memory: 24 * GIB,
            multiprocessors: 128,
            clock_khz: 2_520_000,
            memory_clock_khz: 10_501_000,
            memory_bus_bits: 384,
            l2_bytes: 72 * MIB,
            shared_per_block_optin: 99 * KIB,
            shared_per_multiprocessor: 100 * KIB,
            threads_per_multiprocessor: 1536,
            blocks_per_multiprocessor: 24,
            ..Self::h100()
        }
    }

    /// B200-like, compute capability 10.0.
    #[must_use]
    pub fn b200() -> Self {
        DeviceProfile {
            name: "Emulated B200".to_owned(),
            compute_capability: (10, 0),
            total_memory: 180 * GIB,
            multiprocessors: 148,
            clock_khz: 1_965_000,
            memory_clock_khz: 3_996_000,
            memory_bus_bits: 8192,
            l2_bytes: 126 * MIB,
            ..Self::h100()
        }
    }

    /// The profile a short name stands for: `h100`, `a100`, `rtx4090` or `b200`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "h100" => Some(Self::h100()),
            "a100" => Some(Self::a100()),
            "rtx4090" | "4090" => Some(Self::rtx4090()),
            "b200" => Some(Self::b200()),
            _ => None,
        }
    }

    /// The value of a `CUdevice_attribute`; `None` for a number the driver does not define.
    #[must_use]
    pub fn attribute(&self, attribute: i32, ordinal: i32) -> Option<i32> {
        let (major, minor) = self.compute_capability;
        let since = |cc: u32| i32::from(major >= cc);
        let value = match attribute {
            1 => 1024,
            2 | 3 => 1024,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65_535,
            8 => self.shared_per_block as i32,
            9 => 65_536,
            10 => 32,
            11 => i32::MAX,
            12 | 82 => 65_536,
            13 => self.clock_khz as i32,
            14 => 512,
            15 => 1,
            16 => self.multiprocessors as i32,
            17 | 18 => 0,
            19 => 1,
            20 => 0,
            30 => 512,
            31 => 1,
            32 => 1,
            33 => ordinal + 1,
            34 | 35 => 0,
            36 => self.memory_clock_khz as i32,
            37 => self.memory_bus_bits as i32,
            38 => self.l2_bytes as i32,
            39 => self.threads_per_multiprocessor as i32,
            40 => 3,
            41 => 1,
            50 => 0,
            51 => 32,
            75 => major as i32,
            76 => minor as i32,
            78..=80 => 1,
            81 => self.shared_per_multiprocessor as i32,
            // Managed memory is not modelled, and its absence is reported as a device would.
            83 => 0,
            84..=86 => 0,
            87 => 2,
            88..=89 => 0,
            90 => 1,
            91..=94 => 0,
            95 => 1,
            96 => 0,
            97 => self.shared_per_block_optin as i32,
            98..=105 => 0,
            106 => self.blocks_per_multiprocessor as i32,
            107..=110 => 0,
            111 => 1024,
            112..=114 => 0,
            115 => 1,
            116..=119 => 0,
            120 => since(9),
            121..=129 => 0,
            // Host NUMA node: none.
            130 => 0,
            131 | 134 => -1,
            132 | 133 | 135..=161 => 0,
            // Texture and surface limits: no texture is modelled.
            21..=29 | 42..=49 | 52..=74 | 77 => 0,
            _ => return None,
        };
        Some(value)
    }
}

impl Default for DeviceProfile {
    fn default() -> Self {
        Self::h100()
    }
}
