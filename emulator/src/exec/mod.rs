//! Runs an entry over a grid of blocks and checks everything it does.

mod access;
pub(crate) mod address;
pub(crate) mod alu;
mod block;
mod clocks;
mod collective;
mod launch;
mod shadow;
mod shared;
mod step;
mod trace;
mod traffic;
mod warp;

pub use launch::{
    BlockOrder, Counters, DeviceLimits, LaunchOptions, LaunchParams, LaunchReport, launch,
};
