//! The CUDA device.
#![allow(dead_code, reason = "the device that calls these modules is being written")]

pub(crate) mod cache;
pub(crate) mod compile;
pub mod diagnosis;
pub(crate) mod library;
pub(crate) mod nvrtc;
pub(crate) mod options;
pub(crate) mod preflight;
pub(crate) mod sources;
pub(crate) mod status;
