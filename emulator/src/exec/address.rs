//! Where the state spaces lie in generic addresses.

/// Size of each window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;
/// Shared memory of the block.
pub(crate) const SHARED_WINDOW: u64 = 0x0000_0100_0000_0000;
/// Local memory of the thread.
pub(crate) const LOCAL_WINDOW: u64 = 0x0000_0200_0000_0000;
/// Kernel parameters.
pub(crate) const PARAM_WINDOW: u64 = 0x0000_0300_0000_0000;
