//! Runs an entry over a grid of blocks and checks everything it does.

mod launch;

pub use launch::{
    BlockOrder, Counters, DeviceLimits, LaunchOptions, LaunchParams, LaunchReport, launch,
};
