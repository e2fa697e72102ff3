//! The state of one warp: registers, local memory, and the fragments it has diverged into.

use std::collections::HashMap;

use super::alu::Lanes;
use crate::ptx::ir::{Reg, SINK};

/// What a fragment waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing: it can run.
    None,
    /// A barrier of the block.
    Barrier(u32),
    /// The other threads of a warp-wide instruction's mask.
    Lanes(u32),
    /// Nothing any more: something was found here.
    Stopped,
}

/// Threads of a warp that are at the same instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
    /// The furthest instruction that touched memory or other threads since the last barrier; after a
    /// jump back, not further than where it led.
    pub(crate) deed: u32,
    /// The last barrier or warp-wide instruction it executed; none after a jump back to before it.
    pub(crate) met: u32,
    /// Whether its threads, apart from others of the warp, did such a thing or went apart again.
    pub(crate) apart: bool,
    /// Jumps back since the last barrier, and where the last one was.
    pub(crate) rounds: u32,
    pub(crate) looped: u32,
}

impl Fragment {
    /// The same threads after a jump from where they are.
    pub(crate) fn to(self, target: u32) -> Self {
        if target > self.pc {
            return Self { pc: target, ..self };
        }
        let (deed, rounds) = (self.deed.min(target), self.rounds.saturating_add(1));
        let met = if target <= self.met { u32::MAX } else { self.met };
        Self { pc: target, deed, met, rounds, looped: self.pc, ..self }
    }

    /// Threads that start at the first instruction.
    fn start(mask: u32) -> Self {
        Self {
            pc: 0,
            mask,
            wait: Wait::None,
            deed: 0,
            met: u32::MAX,
            apart: false,
            rounds: 0,
            looped: 0,
        }
    }
}

/// One warp.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    /// Threads the launch gave it.
    pub(crate) launched: u32,
    pub(crate) live: u32,
    pub(crate) fragments: Vec<Fragment>,
    pub(crate) regs: Vec<Lanes>,
    /// For each register, the lanes in which some of its bits were never computed.
    pub(crate) undefined: Vec<u32>,
    /// Which bits, for the lanes flagged in `undefined`; all of them where there is no entry.
    bits: HashMap<Reg, Box<Lanes>>,
    pub(crate) tid: [Lanes; 3],
    pub(crate) local: Local,
    /// For lanes that have exited, [`Fragment::deed`] and [`Fragment::met`] at their end.
    pub(crate) last_deeds: [(u32, u32); 32],
    /// Lanes that exited inside a branch that others of the warp did not take.
    pub(crate) left_apart: u32,
    /// Jumps back by one fragment while another could run.
    pub(crate) impatience: u32,
    /// Whose turn it is when one fragment has jumped back too often.
    pub(crate) turn: usize,
    /// The allocation accessed last; a guess for the next access.
    pub(crate) recent: usize,
}

/// Local memory of a warp's threads.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) bytes: usize,
    data: Vec<u8>,
    written: Vec<bool>,
}

impl Local {
    /// Reads up to 8 bytes in bounds, and the mask of bytes that were written.
    pub(crate) fn load(&self, lane: usize, offset: u64, bytes: u32) -> (u64, u32) {
        let start = lane * self.bytes + offset as usize;
        let (mut value, mut written) = (0u64, 0u32);
        for i in 0..bytes as usize {
            value |= u64::from(self.data[start + i]) << (8 * i);
            written |= u32::from(self.written[start + i]) << i;
        }
        (value, written)
    }

    /// Writes up to 8 bytes in bounds; those not in `defined` become unwritten.
    pub(crate) fn store(&mut self, lane: usize, offset: u64, bytes: u32, value: u64, defined: u32) {
        let start = lane * self.bytes + offset as usize;
        for i in 0..bytes as usize {
            self.data[start + i] = (value >> (8 * i)) as u8;
            self.written[start + i] = defined >> i & 1 == 1;
        }
    }
}

impl Warp {
    pub(crate) fn new(index: usize, block: [u32; 3], registers: usize, local_bytes: usize) -> Self {
        let threads = u64::from(block[0]) * u64::from(block[1]) * u64::from(block[2]);
        let first = index as u64 * 32;
        let count = (threads - first).min(32);
        let launched = if count == 32 { u32::MAX } else { (1u32 << count) - 1 };
        let mut tid = [[0u64; 32]; 3];
        for lane in 0..32 {
            let [x, y, z] = thread_index(first + lane, block);
            let lane = lane as usize;
            (tid[0][lane], tid[1][lane], tid[2][lane]) = (x.into(), y.into(), z.into());
        }
        Self {
            index,
            launched,
            live: launched,
            fragments: Vec::new(),
            regs: vec![[0; 32]; registers],
            undefined: vec![u32::MAX; registers],
            bits: HashMap::new(),
            tid,
            local: Local {
                bytes: local_bytes,
                data: vec![0; 32 * local_bytes],
                written: vec![false; 32 * local_bytes],
            },
            last_deeds: [(0, u32::MAX); 32],
            left_apart: 0,
            impatience: 0,
            turn: 0,
            recent: 0,
        }
    }

    /// Back to the first instruction, for the next block.
    pub(crate) fn reset(&mut self) {
        self.live = self.launched;
        self.fragments.clear();
        self.fragments.push(Fragment::start(self.launched));
        (self.left_apart, self.impatience, self.turn) = (0, 0, 0);
        self.undefined.fill(u32::MAX);
        self.bits.clear();
        self.local.written.fill(false);
    }

    /// Writes a register in the lanes of `mask`.
    #[inline]
    pub(crate) fn write(&mut self, reg: Reg, mask: u32, value: &Lanes, undefined: u32) {
        if reg == SINK {
            return;
        }
        let to = &mut self.regs[reg as usize];
        if mask == u32::MAX {
            *to = *value;
        } else {
            for lane in 0..32 {
                if mask >> lane & 1 == 1 {
                    to[lane] = value[lane];
                }
            }
        }
        let flags = &mut self.undefined[reg as usize];
        *flags = *flags & !mask | undefined & mask;
        if undefined & mask != 0 {
            self.set_bits(reg, undefined & mask, &[u64::MAX; 32]);
        }
    }

    /// Writes a register some of whose bits were never computed.
    #[cold]
    pub(crate) fn write_partial(&mut self, reg: Reg, mask: u32, value: &Lanes, bits: &Lanes) {
        if reg == SINK {
            return;
        }
        let some = |lane: &usize| mask >> lane & 1 == 1 && bits[*lane] != 0;
        let flags = (0..32).filter(some).fold(0u32, |flags, lane| flags | 1 << lane);
        self.write(reg, mask, value, flags);
        if flags != 0 {
            self.set_bits(reg, flags, bits);
        }
    }

    #[cold]
    fn set_bits(&mut self, reg: Reg, lanes: u32, bits: &Lanes) {
        let entry = self.bits.entry(reg).or_insert_with(|| Box::new([u64::MAX; 32]));
        for (lane, slot) in entry.iter_mut().enumerate() {
            if lanes >> lane & 1 == 1 {
                *slot = bits[lane];
            }
        }
    }

    /// The bits of a register that were never computed, by lane.
    pub(crate) fn undefined_bits(&self, reg: Reg) -> Lanes {
        let flags = self.undefined[reg as usize];
        let entry = self.bits.get(&reg);
        std::array::from_fn(|lane| {
            let bits = entry.map_or(u64::MAX, |bits| bits[lane]);
            if flags >> lane & 1 == 1 { bits } else { 0 }
        })
    }

    /// Joins fragments that can run and are at the same instruction, also those that wait there
    /// for other lanes of the warp.
    pub(crate) fn merge(&mut self) {
        let mut i = 0;
        while i < self.fragments.len() {
            let mut j = i + 1;
            while j < self.fragments.len() {
                let (a, b) = (self.fragments[i], self.fragments[j]);
                let alone = |wait| matches!(wait, Wait::Barrier(_) | Wait::Stopped);
                if a.pc == b.pc && !alone(a.wait) && !alone(b.wait) {
                    let merged = Fragment {
                        mask: a.mask | b.mask,
                        deed: a.deed.max(b.deed),
                        met: if a.met == b.met { a.met } else { u32::MAX },
                        apart: a.apart || b.apart,
                        rounds: a.rounds.max(b.rounds),
                        looped: if a.rounds < b.rounds { b.looped } else { a.looped },
                        ..a
                    };
                    // Two that both wait for lanes stay waiting until one that runs joins them.
                    let wait = if a.wait == b.wait { a.wait } else { Wait::None };
                    self.fragments[i] = Fragment { wait, ..merged };
                    self.fragments.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
    }
}

/// The index of thread `linear` in a block.
pub(crate) fn thread_index(linear: u64, block: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = block.map(|extent| u64::from(extent).max(1));
    [(linear % x) as u32, (linear / x % y) as u32, (linear / (x * y)) as u32]
}
