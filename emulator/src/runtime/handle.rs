//! Opaque handles: numbers that are never dereferenced and never used twice.

/// What a handle stands for; part of its value, so that a stream is never taken for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Context = 1,
    Stream = 2,
    Event = 3,
    Module = 4,
    Function = 5,
    Graph = 6,
    Exec = 7,
    Pool = 8,
    Node = 9,
    Blas = 10,
    Capture = 11,
}

impl Kind {
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Context => "context",
            Kind::Stream => "stream",
            Kind::Event => "event",
            Kind::Module => "module",
            Kind::Function => "function",
            Kind::Graph => "graph",
            Kind::Exec => "executable graph",
            Kind::Pool => "memory pool",
            Kind::Node => "graph node",
            Kind::Blas => "cuBLAS object",
            Kind::Capture => "capture",
        }
    }
}

/// Above every user-space address, so that a handle is never mistaken for a host pointer.
const BASE: u64 = 0x00DA_0000_0000_0000;

/// Hands out handles.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: u32,
}

impl Handles {
    pub(crate) fn make(&mut self, kind: Kind) -> u64 {
        self.next += 1;
        BASE | ((kind as u64) << 32) | u64::from(self.next)
    }

    /// Whether `value` was handed out, ever, as a `kind`.
    pub(crate) fn was(&self, kind: Kind, value: u64) -> bool {
        value >> 32 == (BASE >> 32 | kind as u64) && value as u32 != 0 && value as u32 <= self.next
    }
}
