//! The Muon optimizer for Rust.

pub mod checkpoint;
pub mod coefficients;
pub mod error;
pub mod precision;
pub mod recipe;
pub mod shape;

pub use error::{Error, Result};
