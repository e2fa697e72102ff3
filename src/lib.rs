//! The Muon optimizer: momentum, orthogonalized by Newton–Schulz iterations.
//!
//! Minimise `tr(Gᵀ·ΔW)` over a ball. If the ball is that of the Frobenius norm the answer is gradient descent; if it
//! is that of the spectral norm the answer is `−UVᵀ`, the polar factor of the gradient `G = UΣVᵀ`. Muon applies
//! the second to the momentum of hidden matrices. A singular value decomposition a step is too slow, so an odd
//! polynomial, applied a few times, drives every singular value toward 1. The better the polynomial, the better
//! the optimizer.
//!
//! # Tour
//!
//! | you want to | look at |
//! |---|---|
//! | train | [`Muon`], [`MuonRule`], [`AdamWRule`], [`StepOptions`], [`LrSchedule`] |
//! | train a candle model | `muon_cuda::candle` (feature `candle`), [`RoutingRule`] |
//! | see what a step will do and cost | [`Muon::plan`], [`Muon::routing`] |
//! | choose, read, make polynomials | [`CoefficientSchedule`], [`coefficients`] |
//! | predict the error of a schedule under rounding | [`mod@prediction`] |
//! | record and read singular values | [`mod@spectrum`] |
//! | orthogonalize one matrix | [`orthogonalize()`] |
//! | change rates and momentum while training, freeze, move | [`Muon::set_scalars`], [`Muon::freeze`], [`Muon::move_param`] |
//! | stop and resume | [`Muon::checkpoint`], [`Checkpoint`], [`Muon::restore_matching`] |
//! | check a device or a port | [`mod@reference`], [`verify`] |
//! | log plans, skips and torn steps | `muon_cuda::trace` (feature `tracing`) |
//! | know how a result is computed | [`recipe`], and NUMERICS.md in the repository |
//!
//! # A step
//!
//! ```text
//! grad, param (the caller's)
//!   │  pass A          direction = blend of grad and momentum, written as the iterate, normalised
//!   │  orthogonalize   per bucket of equal shape: the recipe's matrix products
//!   └▶ pass B          momentum committed; param ← decay(param) − lr · update_scale · X
//! ```
//!
//! A matrix that is not finite is skipped whole. Errors are typed ([`Error`]); no call panics.

#[cfg(feature = "candle")]
pub mod candle;
pub mod checkpoint;
pub mod coefficients;
mod config;
mod cost;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
pub mod error;
mod learning_rate;
mod limits;
mod memory;
mod method;
mod optimizer;
mod orthogonalize;
mod plan;
mod precision;
pub mod prediction;
mod printable;
pub mod recipe;
pub mod reference;
mod rounding;
mod routing;
mod routing_report;
mod scale;
mod shape;
pub mod spectrum;
mod state;
mod symmetric;
mod torch_state;
#[cfg(feature = "tracing")]
pub mod trace;
#[cfg(not(feature = "tracing"))]
mod trace;
mod transfer;
pub mod verify;
#[cfg(test)]
mod written_tests;

pub use coefficients::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
pub use config::{
    AdamWRule, Bf16Params, MethodChoice, MomentumMode, MuonConfig, MuonRule, Nesterov, NonFinite,
    Orthogonalizer, Rule, WeightDecayMode, WithoutMuon,
};
pub use cost::{CostInputs, StepCost};
pub use cpu::{Cpu, CpuGrad, CpuParamMut, CpuState, CpuWorkspace};
#[cfg(feature = "cuda")]
pub use cuda::{
    CapturedStep, Cuda, CudaGrad, CudaParamMut, CudaState, CudaWorkspace, cudarc, diagnosis,
};
pub use device::{
    AdamWJob, BufferInfo, Counters, Device, GradientUnit, HostBuffer, MatrixJob, MuonScalars,
    StateData, StateRule, StateSpec, StepRecord, StepTensor,
};
pub use error::{Error, Result};
pub use learning_rate::{Decay, LrSchedule};
pub use optimizer::{
    FoundNonFinite, GroupId, GroupScalars, Muon, ParamId, ParamSpec, StepOptions, StepReport,
};
pub use orthogonalize::{OrthogonalizeOptions, Orthogonalized, orthogonalize};
pub use plan::{Bucket, Commit, Plan, PlannedMatrix, Safety, Treatment};
pub use precision::{Dtype, Precision};
pub use printable::Printable;
pub use routing::{Decision, Destination, Reading, RoutingRule};
pub use routing_report::{Route, RoutingReport};
pub use scale::UpdateScale;
pub use shape::{Block, Layout, MatrixShape, Orientation, Split};
pub use spectrum::Spectrum;
pub use state::{Checkpoint, Mismatch, RestoreReport};
pub use symmetric::{SymmetricProducts, SymmetricStrips};
pub use transfer::Transfer;

/// The crate of the 16-bit numbers that gradients, parameters and momentum may have, in the version that this crate takes.
pub use half;

/// Runs the example of the README as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
