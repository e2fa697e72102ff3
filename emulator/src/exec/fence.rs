//! Fences, and atomics that carry what they released to who acquires it (PTX ISA, memory consistency
//! model: release and acquire patterns).
//!
//! A fence by a thread makes its later atomic writes a release of all that it knew at the fence; a
//! fence after an atomic read acquires what the read saw released. Updates carry on what was released
//! before them; a plain atomic store ends it. Either side counts for other blocks only if its fence
//! and its atomic have the device's scope.
//!
//! One thing is laxer than the manual: a barrier of the block acquires like a fence. NVIDIA's own
//! samples (`threadFenceReduction`, the guide's `__threadfence` example) let the last block read what
//! others wrote after nothing but `atomicInc` and `__syncthreads()`.

use std::collections::{BTreeMap, HashMap};

use super::block::Core;
use super::clocks::{Known, join};
use super::record::lanes_of;
use crate::ptx::ir::{Order, Scope};

/// What is known, by how far the fence and the atomic on this side reach.
#[derive(Debug, Clone, Default)]
struct Reach {
    device: Option<Known>,
    /// For threads of the own block.
    block: Option<Known>,
}

/// What an atomic variable carries.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    device: Option<Known>,
    /// For threads of the block that released it.
    blocks: BTreeMap<u32, Known>,
}

/// Atomic variables by address.
pub(crate) type Variables = HashMap<u64, Carried>;

/// What the threads of a block have heard from atomics and not yet acquired, and what they have
/// fenced and not yet released.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    heard: Vec<[Reach; 32]>,
    fenced: Vec<[Reach; 32]>,
    /// Variables in shared memory.
    pub(crate) shared: Variables,
}

impl Messages {
    pub(crate) fn new(warps: usize) -> Self {
        let none = || (0..warps).map(|_| std::array::from_fn(|_| Reach::default())).collect();
        Self { heard: none(), fenced: none(), shared: Variables::new() }
    }
}

/// An atomic access of one lane to one variable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Letter {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
    /// The address, and whether it is in global memory.
    pub(crate) address: u64,
    pub(crate) global: bool,
    pub(crate) order: Order,
    /// The thread sees what was there.
    pub(crate) hears: bool,
    pub(crate) writes: Writes,
}

/// What an atomic access leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    Nothing,
    /// An update of what was there.
    Update,
    /// A value of its own.
    Value,
}

impl Core<'_> {
    /// Executes a fence.
    pub(crate) fn fence(&mut self, warp: usize, lanes: u32, order: Order) {
        for lane in lanes_of(lanes) {
            if order.acquires {
                self.acquire_heard(warp, lane, order.scope);
            }
            if order.releases {
                let all = self.clocks.all_of(warp, lane);
                let fenced = &mut self.messages.fenced[warp][lane];
                if order.scope == Scope::Device {
                    fenced.device = Some(all.clone());
                }
                fenced.block = Some(all);
            }
        }
        if order.releases {
            self.clocks.tick(warp);
        }
    }

    /// Acquires what threads heard, as a fence of a scope does.
    fn acquire_heard(&mut self, warp: usize, lane: usize, scope: Scope) {
        let heard = &mut self.messages.heard[warp][lane];
        let near = heard.block.take();
        let far = if scope == Scope::Device { heard.device.take() } else { None };
        for known in [near, far].into_iter().flatten() {
            self.clocks.tell(warp, lane, &known);
        }
    }

    /// Acquires what threads heard at a barrier of the block.
    pub(crate) fn acquire_at_barrier(&mut self, warp: usize, lanes: u32) {
        if self.launch.fences {
            lanes_of(lanes).for_each(|lane| self.acquire_heard(warp, lane, Scope::Device));
        }
    }

    /// What an atomic access hears and carries on.
    pub(crate) fn carry(&mut self, letter: Letter) {
        if !self.launch.fences {
            return;
        }
        let Letter { warp, lane, address, global, order, hears, writes } = letter;
        let block = self.clocks.block;
        // In shared memory every thread that can come is of this block.
        let far = order.scope == Scope::Device && global;
        let variables = if global { &mut self.variables } else { &mut self.messages.shared };
        let mut carried = variables.remove(&address).unwrap_or_default();
        if hears {
            let device = carried.device.as_ref().filter(|_| far);
            let near = carried.blocks.get(&block);
            let heard = &mut self.messages.heard[warp][lane];
            if order.acquires {
                device.into_iter().chain(near).for_each(|k| self.clocks.tell(warp, lane, k));
            } else {
                if let Some(known) = device {
                    join(&mut heard.device, known);
                }
                if let Some(known) = near {
                    join(&mut heard.block, known);
                }
            }
        }
        if writes != Writes::Nothing {
            let mut out = self.messages.fenced[warp][lane].clone();
            if order.releases {
                let all = self.clocks.all_of(warp, lane);
                self.clocks.tick(warp);
                out = Reach { device: Some(all.clone()), block: Some(all) };
            }
            if writes == Writes::Value {
                carried = Carried::default();
            }
            if let Some(known) = out.device.filter(|_| far) {
                join(&mut carried.device, &known);
            }
            if let Some(known) = out.block {
                let mut near = carried.blocks.remove(&block);
                join(&mut near, &known);
                carried.blocks.extend(near.map(|near| (block, near)));
            }
        }
        let variables = if global { &mut self.variables } else { &mut self.messages.shared };
        variables.insert(address, carried);
    }
}
