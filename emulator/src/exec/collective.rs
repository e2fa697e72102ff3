//! Instructions that the threads named in a mask execute together.

use super::alu::{Lanes, Ty};
use super::block::{Core, Fault, Step, fault, text};
use super::record::lanes_of;
use super::step::{Outcome, undefined};
use super::warp::{Wait, Warp, thread_index};
use crate::finding::{Finding, FindingKind};
use crate::ptx::ir::{Collective, Op, Reduction, Shuffle, Src, Vote};

impl Core<'_> {
    /// Executes a collective if everyone it needs is here, else waits.
    pub(crate) fn collective(
        &mut self,
        warp: &mut Warp,
        at: usize,
        collective: &Collective,
        mask: Src,
    ) -> Step<Outcome> {
        let here = warp.fragments[at].mask;
        let unknown = undefined(warp, mask) & here;
        if unknown != 0 {
            let message = "a warp mask that was never computed";
            return fault(unknown, Finding::new(FindingKind::UndefinedPredicate, message));
        }
        let masks = self.operands().value(warp, mask);
        let (mut missing, mut everyone) = (0u32, 0u32);
        let mut rest = here;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            let named = masks[lane as usize] as u32;
            let group = same(&masks, named, here);
            rest &= !group;
            if group & !named != 0 {
                let message = format!(
                    "a thread executes a warp-wide instruction whose mask 0x{named:08x} does not \
                     name it"
                );
                let finding = Finding::new(FindingKind::WarpMask, message);
                return fault(group & !named, finding);
            }
            missing |= named & warp.live & !group;
            everyone |= named;
        }
        if missing & here != 0 {
            let named = masks[(missing & here).trailing_zeros() as usize] as u32;
            let message = format!(
                "threads name each other but disagree about the mask (one has 0x{named:08x})"
            );
            return fault(missing & here, Finding::new(FindingKind::WarpMask, message));
        }
        if missing != 0 {
            let named = masks[here.trailing_zeros() as usize & 31] as u32;
            warp.fragments[at].wait = Wait::Lanes(named);
            return Ok(Outcome::Reschedule);
        }
        self.passed_by(warp, warp.fragments[at].pc, everyone)?;
        let mut rest = here;
        while rest != 0 {
            let named = masks[rest.trailing_zeros() as usize] as u32;
            let group = same(&masks, named, here);
            rest &= !group;
            self.perform(warp, group, collective)?;
        }
        let fragment = &mut warp.fragments[at];
        fragment.met = fragment.pc;
        fragment.pc += 1;
        Ok(Outcome::Continue)
    }

    /// Lets waiting fragments go on whose missing lanes have exited, or that meet at
    /// `bar.warp.sync` from different places; `true` if one could.
    /// A fault comes with the instruction it is at.
    pub(crate) fn retry_collectives(&mut self, warp: &mut Warp) -> Result<bool, (u32, Box<Fault>)> {
        let launch = self.launch;
        for at in 0..warp.fragments.len() {
            let Wait::Lanes(named) = warp.fragments[at].wait else { continue };
            let pc = warp.fragments[at].pc;
            let Some(Op::Collective { collective, mask }) =
                launch.entry.code.instrs.get(pc as usize).map(|instr| &instr.op)
            else {
                continue;
            };
            if matches!(collective, Collective::Sync) {
                let is_sync = |pc: u32| {
                    let instr = launch.entry.code.instrs.get(pc as usize);
                    matches!(
                        instr.map(|instr| &instr.op),
                        Some(Op::Collective { collective: Collective::Sync, .. })
                    )
                };
                let together = warp
                    .fragments
                    .iter()
                    .filter(|f| f.wait == Wait::Lanes(named) && is_sync(f.pc))
                    .fold(0, |lanes, f| lanes | f.mask);
                if named & warp.live & !together == 0 {
                    self.passed_by(warp, pc, named).map_err(|fault| (pc, fault))?;
                    self.clocks.sync_lanes(warp.index, together & named);
                    for fragment in &mut warp.fragments {
                        if fragment.wait == Wait::Lanes(named) && is_sync(fragment.pc) {
                            (fragment.wait, fragment.met) = (Wait::None, fragment.pc);
                            fragment.pc += 1;
                        }
                    }
                    return Ok(true);
                }
                continue;
            }
            if named & warp.live & !warp.fragments[at].mask == 0 {
                warp.fragments[at].wait = Wait::None;
                let outcome = self.collective(warp, at, collective, *mask);
                if outcome.map_err(|fault| (pc, fault))? == Outcome::Continue {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Checks that no thread in `named` has exited after it passed the instruction at `pc` by. (PTX
    /// ISA, `shfl.sync` and its kin: all threads named by the mask that have not exited must execute
    /// it; those that exit ahead of it need not.)
    fn passed_by(&mut self, warp: &Warp, pc: u32, named: u32) -> Step<()> {
        let gone = named & warp.launched & !warp.live;
        if gone == 0 {
            return Ok(());
        }
        let launch = self.launch;
        let code = &launch.entry.code;
        let around = self.surroundings.entry(pc).or_insert_with(|| code.surroundings(pc));
        let passed = |lane: &usize| {
            let (deed, met) = warp.last_deeds[*lane];
            around.left_behind(deed, met)
        };
        let Some(lane) = lanes_of(gone).find(passed) else { return Ok(()) };
        let linear = (warp.index * 32 + lane) as u64;
        let message = format!(
            "a mask names thread {}, which passed this warp-wide instruction by (to ptx line {}) and \
             returned; threads that a mask names must come to the same instruction, or have returned \
             ahead of it",
            text(thread_index(linear, self.launch.params.block)),
            code.instrs.get(warp.last_deeds[lane].0 as usize).map_or(0, |instr| instr.line)
        );
        fault(named & warp.live, Finding::new(FindingKind::WarpMask, message))
    }

    fn perform(&mut self, warp: &mut Warp, group: u32, collective: &Collective) -> Step<()> {
        match collective {
            Collective::Sync => self.clocks.sync_lanes(warp.index, group),
            Collective::Shuffle { mode, dst, in_range, value, lane, clamp } => {
                let operands = self.operands();
                let values = operands.value(warp, *value);
                let selectors = operands.value(warp, *lane);
                let clamps = operands.value(warp, *clamp);
                let value_unknown = undefined(warp, *value);
                let mut unknown = undefined(warp, *lane) | undefined(warp, *clamp);
                let (mut out, mut predicate): (Lanes, Lanes) = ([0; 32], [0; 32]);
                for lane in 0..32u32 {
                    if group >> lane & 1 == 0 {
                        continue;
                    }
                    let l = lane as usize;
                    let (from, valid) =
                        source_lane(*mode, lane, selectors[l] as u32, clamps[l] as u32);
                    let from = if valid { from } else { lane };
                    out[l] = values[from as usize] & 0xffff_ffff;
                    predicate[l] = u64::from(valid);
                    // A lane that takes no part has nothing to give.
                    if group >> from & 1 == 0 || value_unknown >> from & 1 == 1 {
                        unknown |= 1 << lane;
                    }
                }
                let selector_unknown = undefined(warp, *lane) | undefined(warp, *clamp);
                warp.write(*dst, group, &out, unknown);
                warp.write(*in_range, group, &predicate, selector_unknown);
            }
            Collective::Vote { vote, dst, predicate, negated } => {
                let votes = self.predicate(warp, group, *predicate, *negated)?;
                let result = match vote {
                    Vote::All => u64::from(votes == group),
                    Vote::Any => u64::from(votes != 0),
                    Vote::Uniform => u64::from(votes == group || votes == 0),
                    Vote::Ballot => u64::from(votes),
                };
                warp.write(*dst, group, &[result; 32], 0);
            }
            Collective::Match { all, dst, uniform, value, ty } => {
                let values = self.operands().value(warp, *value);
                let unknown = undefined(warp, *value) & group;
                let flags = if unknown != 0 { u32::MAX } else { 0 };
                let mut out: Lanes = [0; 32];
                let mut predicate: Lanes = [0; 32];
                for lane in 0..32usize {
                    let equal = (0..32)
                        .filter(|other| values[*other] & ty.mask() == values[lane] & ty.mask());
                    let equal = equal.fold(0u32, |lanes, other| lanes | 1 << other) & group;
                    let everyone = equal == group;
                    out[lane] = u64::from(if *all && !everyone { 0 } else { equal });
                    predicate[lane] = u64::from(everyone);
                }
                warp.write(*dst, group, &out, flags);
                warp.write(*uniform, group, &predicate, flags);
            }
            Collective::Reduce { reduction, dst, value, ty } => {
                let values = self.operands().value(warp, *value);
                let unknown = undefined(warp, *value) & group;
                let members = (0..32).filter(|lane| group >> lane & 1 == 1);
                let result = members.map(|lane| values[lane] & ty.mask());
                let result = result.reduce(|a, b| reduce(*reduction, *ty, a, b)).unwrap_or(0);
                let flags = if unknown != 0 { u32::MAX } else { 0 };
                warp.write(*dst, group, &[result; 32], flags);
            }
            Collective::Elect { dst, elected } => {
                let leader = group.trailing_zeros() & 31;
                let predicate = std::array::from_fn(|lane| u64::from(lane as u32 == leader));
                warp.write(*dst, group, &[u64::from(leader); 32], 0);
                warp.write(*elected, group, &predicate, 0);
            }
        }
        Ok(())
    }
}

/// The lanes of `here` whose mask is `named`.
fn same(masks: &Lanes, named: u32, here: u32) -> u32 {
    let equal = (0..32).filter(|lane| masks[*lane] as u32 == named);
    equal.fold(0u32, |lanes, lane| lanes | 1 << lane) & here
}

fn reduce(reduction: Reduction, ty: Ty, a: u64, b: u64) -> u64 {
    let less = if ty.signed() { ty.extend(a) < ty.extend(b) } else { a < b };
    match reduction {
        Reduction::Add => a.wrapping_add(b) & ty.mask(),
        Reduction::Min => {
            if less {
                a
            } else {
                b
            }
        }
        Reduction::Max => {
            if less {
                b
            } else {
                a
            }
        }
        Reduction::And => a & b,
        Reduction::Or => a | b,
        Reduction::Xor => a ^ b,
    }
}

/// Source lane of a shuffle and whether it is in range (PTX ISA, `shfl.sync`).
fn source_lane(mode: Shuffle, lane: u32, selector: u32, clamp: u32) -> (u32, bool) {
    let selector = selector & 31;
    let segment = clamp >> 8 & 31;
    let bound = clamp & 31;
    let highest = lane & segment | bound & !segment;
    let lowest = lane & segment;
    match mode {
        Shuffle::Up => {
            let from = lane.wrapping_sub(selector) as i32;
            // For `up` the bound is a lower one.
            (from as u32 & 31, from >= highest as i32)
        }
        Shuffle::Down => {
            let from = lane + selector;
            (from & 31, from <= highest)
        }
        Shuffle::Butterfly => {
            let from = lane ^ selector;
            (from, from <= highest)
        }
        Shuffle::Index => {
            let from = lowest | selector & !segment;
            (from & 31, (from & 31) <= highest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_stay_in_their_segment() {
        // `__shfl_*_sync` with width 8: clamp value 0x1807 (down, bfly, idx) or 0x1800 (up).
        assert_eq!(source_lane(Shuffle::Down, 5, 2, 0x1807), (7, true));
        assert_eq!(source_lane(Shuffle::Down, 6, 2, 0x1807), (8, false));
        assert_eq!(source_lane(Shuffle::Up, 9, 1, 0x1800), (8, true));
        assert_eq!(source_lane(Shuffle::Up, 8, 1, 0x1800), (7, false));
        assert_eq!(source_lane(Shuffle::Index, 13, 2, 0x1807), (10, true));
        assert_eq!(source_lane(Shuffle::Butterfly, 31, 16, 0x1f), (15, true));
        assert_eq!(source_lane(Shuffle::Up, 0, 1, 0), (31, false));
    }
}
