//! The Muon optimizer for Rust.

#[cfg(feature = "candle")]
pub mod candle;
pub mod checkpoint;
pub mod coefficients;
mod config;
mod cpu;
mod device;
pub mod error;
mod learning_rate;
mod method;
mod optimizer;
mod orthogonalize;
mod plan;
mod precision;
pub mod recipe;
pub mod reference;
mod routing;
mod scale;
mod shape;
mod state;
pub mod verify;

pub use coefficients::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
pub use config::{
    AdamWRule, Bf16Params, MethodChoice, MomentumMode, MuonConfig, MuonRule, Nesterov, NonFinite,
    Orthogonalizer, Rule, WeightDecayMode,
};
pub use cpu::{Cpu, CpuGrad, CpuParamMut, CpuState, CpuWorkspace};
pub use device::{
    AdamWJob, BufferInfo, Counters, Device, HostBuffer, MatrixJob, MuonScalars, StateData,
    StateRule, StateSpec, StepTensor,
};
pub use error::{Error, Result};
pub use learning_rate::LrSchedule;
pub use optimizer::{
    FoundNonFinite, GroupId, Muon, ParamId, ParamSpec, Route, RoutingReport, StepOptions,
    StepReport,
};
pub use orthogonalize::{OrthogonalizeOptions, Orthogonalized, orthogonalize};
pub use plan::{Bucket, Plan, PlannedMatrix, Treatment};
pub use precision::{Dtype, Precision};
pub use routing::{Decision, RoutingRule};
pub use scale::UpdateScale;
pub use shape::{Block, Layout, MatrixShape, Orientation, Split};
pub use state::Checkpoint;
