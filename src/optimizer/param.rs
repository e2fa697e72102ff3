//! Parameters and groups as the optimizer knows them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::config::Rule;
use crate::device::StateSpec;
use crate::error::{Error, Result};
use crate::precision::Dtype;
use crate::shape::{Block, Layout, Split};
/// Names a parameter group of one optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId {
    pub(super) owner: u64,
    pub(super) index: usize,
}

/// Names a registered parameter of one optimizer; never reused after [`Muon::remove_param`](crate::Muon::remove_param).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId {
    pub(super) owner: u64,
    pub(super) index: usize,
}

impl ParamId {
    /// For a matrix that belongs to no optimizer.
    pub(crate) fn standalone() -> Self {
        Self { owner: u64::MAX, index: 0 }
    }
}

/// Source of the numbers that tell the ids of different optimizers apart.
static OWNERS: AtomicU64 = AtomicU64::new(0);

/// A number no other optimizer has.
pub(super) fn new_owner() -> u64 {
    OWNERS.fetch_add(1, Ordering::Relaxed)
}

/// What a parameter is stored in where nothing is said.
fn f32() -> Dtype {
    Dtype::F32
}

/// What is registered about a parameter. In a file `name` and `shape`, and `dtype`, `layout` and `split` where they are not the default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamSpec {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    #[serde(default = "f32")]
    pub(crate) dtype: Dtype,
    #[serde(default)]
    pub(super) layout: Layout,
    #[serde(default)]
    pub(super) split: Split,
}

impl ParamSpec {
    /// An f32 parameter of that shape, one matrix, stored `[fan_out, fan_in]`.
    #[must_use]
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: Dtype::F32,
            layout: Layout::OutIn,
            split: Split::Whole,
        }
    }

    /// Element type of the parameter: f32 or bf16.
    #[must_use]
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Which axis is fan-out.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// How it divides into matrices.
    #[must_use]
    pub fn split(mut self, split: Split) -> Self {
        self.split = split;
        self
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) rule: Rule,
}

#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) id: ParamId,
    pub(crate) spec: ParamSpec,
    pub(crate) group: usize,
    /// Empty under the AdamW rule.
    pub(super) blocks: Vec<Block>,
    pub(super) len: usize,
    pub(crate) state: StateSpec,
    /// Left out of plan and steps.
    pub(super) frozen: bool,
}

/// Position of a parameter among those of the optimizer with that owner.
pub(super) fn position_of(owner: u64, positions: &[Option<usize>], id: ParamId) -> Result<usize> {
    (id.owner == owner).then(|| positions.get(id.index).copied().flatten()).flatten().ok_or_else(
        || Error::invalid_config("the parameter was removed or belongs to another optimizer"),
    )
}
