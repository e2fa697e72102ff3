//! What a GPU can do at most, for bounds.

use muon_cuda::Precision;
use serde::Serialize;

/// Ceilings of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    /// Products of bf16 or fp16 with f32 sums, dense, FLOP/s.
    pub(crate) half_flops: f64,
    /// Products that read tf32, dense, FLOP/s.
    pub(crate) tf32_flops: f64,
    /// Products of f32, FLOP/s.
    pub(crate) f32_flops: f64,
    /// Memory, bytes/s.
    pub(crate) bandwidth: f64,
    pub(crate) source: &'static str,
}

impl Profile {
    /// The profile of that name.
    ///
    /// # Errors
    /// None; the message lists them.
    pub(crate) fn named(name: &str) -> Result<&'static Self, String> {
        PROFILES.iter().find(|p| p.name == name).ok_or_else(|| {
            let known: Vec<_> = PROFILES.iter().map(|p| p.name).collect();
            format!("no device profile `{name}`; known are {}", known.join(", "))
        })
    }

    /// FLOP/s of products at a precision of the iterate.
    pub(crate) fn flops(&self, precision: Precision) -> f64 {
        match precision {
            Precision::F32 => self.f32_flops,
            Precision::Tf32 => self.tf32_flops,
            _ => self.half_flops,
        }
    }
}

static PROFILES: [Profile; 4] = [
    Profile {
        name: "h100",
        half_flops: 798e12,
        tf32_flops: 494.7e12,
        f32_flops: 67e12,
        bandwidth: 3.0e12,
        source: "assumed ceilings of large products and copies; NVIDIA H100 SXM data sheet: 989 TFLOP/s, 3.35 TB/s; \
                 f32 and tf32 as in the data sheet",
    },
    Profile {
        name: "a100",
        half_flops: 312e12,
        tf32_flops: 156e12,
        f32_flops: 19.5e12,
        bandwidth: 2.039e12,
        source: "NVIDIA A100 80GB SXM data sheet: peaks, which no product reaches",
    },
    Profile {
        name: "rtx4090",
        half_flops: 165.2e12,
        tf32_flops: 82.6e12,
        f32_flops: 82.6e12,
        bandwidth: 1.008e12,
        source: "NVIDIA Ada GPU architecture whitepaper, RTX 4090, f32 sums: peaks, which no product reaches",
    },
    Profile {
        name: "b200",
        half_flops: 2250e12,
        tf32_flops: 1125e12,
        f32_flops: 75e12,
        bandwidth: 8.0e12,
        source: "NVIDIA HGX B200 data sheet, one of eight, dense: peaks, which no product reaches",
    },
];
