//! The Muon optimizer for Rust.

pub mod error;

pub use error::{Error, Result};
