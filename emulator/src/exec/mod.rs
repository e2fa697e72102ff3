//! Runs an entry over a grid of blocks and checks everything it does.

mod access;
pub(crate) mod address;
pub(crate) mod alu;
mod atomic;
mod block;
mod blocks;
mod clocks;
mod collective;
mod fence;
mod history;
mod launch;
mod place;
mod race;
mod record;
mod row;
mod row_access;
mod shadow;
mod shared;
mod step;
mod traffic;
mod undo;
mod warp;

pub use launch::{
    BlockOrder, Counters, DeviceLimits, LaunchOptions, LaunchParams, LaunchReport, launch,
};
