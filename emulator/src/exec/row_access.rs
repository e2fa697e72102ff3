//! Loads and stores of a whole row at once: one check of bounds, one of races, one of sectors.
//!
//! Everything here may answer `false`, before it has changed anything but records of accesses that
//! will be made again: then the access is made lane by lane, which finds what is wrong with it, if
//! anything is.

use super::address::{SHARED_WINDOW, WINDOW_BYTES};
use super::alu::Lanes;
use super::block::Core;
use super::row::Row;
use super::shadow::{Place, Touch};
use super::step::undefined;
use super::warp::Warp;
use crate::ptx::ir::{Op, Space};

/// What memory a row lies in.
enum Home {
    /// Number of the allocation, offset in it.
    Global(usize, u64),
    Shared(u64),
    /// Offset in the parameters.
    Param(usize),
}

impl Core<'_> {
    /// Where the row lies, if all of it may be accessed.
    fn home(&self, warp: &mut Warp, row: &Row, space: Space, writes: bool) -> Option<Home> {
        let shared =
            |offset: u64| self.shared.extent(offset, row.len()).map(|_| Home::Shared(offset));
        match space {
            Space::Param if row.uniform || row.count == 1 => {
                let end = row.start.checked_add(row.len())?;
                let fits = !writes && end <= self.launch.params.params.len() as u64;
                fits.then_some(Home::Param(row.start as usize))
            }
            Space::Shared => shared(row.start & 0xffff_ffff),
            Space::Generic if row.start.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES => {
                shared(row.start - SHARED_WINDOW)
            }
            Space::Global | Space::Const | Space::Generic => {
                // No allocation lies in a window of generic addresses.
                let index = self.allocation(warp, row.start, row.len())?;
                let allocation = &self.launch.allocations[index];
                let allowed = !(writes && allocation.read_only);
                allowed.then(|| Home::Global(index, row.start - allocation.base))
            }
            Space::Local | Space::Frame | Space::Param => None,
        }
    }

    /// Records the accesses; `false` if there may be a race.
    fn note_row(&mut self, warp: &Warp, row: &Row, pc: u32, home: &Home, write: bool) -> bool {
        let launch = self.launch;
        match *home {
            Home::Param(_) => true,
            Home::Shared(offset) => {
                let row = Row { start: offset, ..*row };
                self.shared_history.note_row(&self.clocks, warp.index, pc, &row, write)
            }
            Home::Global(allocation, offset) => {
                let alone = launch.threads_per_block == 1 && !launch.communicates;
                if !alone && !self.global_history.note_row(&self.clocks, warp.index, pc, row, write)
                {
                    return false;
                }
                let size = launch.allocations[allocation].size;
                let place = Place { allocation, size, offset, bytes: row.len() };
                let touch = if write { Touch::Write } else { Touch::Read };
                launch.shadow.touch_row(place, self.shadow_id(), touch)
            }
        }
    }

    /// The element `at` bytes into the row; `None` if a byte of it was never written.
    fn load_element(&self, home: &Home, at: u64, element: u32) -> Option<u64> {
        match *home {
            Home::Global(index, offset) => {
                let (value, written) = self.launch.allocations[index].load(offset + at, element);
                (written == (1 << element) - 1).then_some(value)
            }
            Home::Shared(offset) => self.shared.load(offset + at, element),
            Home::Param(offset) => {
                let mut value = [0u8; 8];
                let from = offset + at as usize;
                let source = self.launch.params.params.get(from..from + element as usize)?;
                value[..element as usize].copy_from_slice(source);
                Some(u64::from_le_bytes(value))
            }
        }
    }

    /// Executes a plain load of a row.
    pub(crate) fn load_row(&mut self, warp: &mut Warp, row: &Row, pc: u32, op: &Op) -> bool {
        let Op::Load { space, bytes, signed, dst, .. } = op else { return false };
        let Some(home) = self.home(warp, row, *space, false) else { return false };
        let element = u32::from(*bytes);
        let mut loaded = self.loaded.take().unwrap_or_default();
        let first = row.first as usize;
        let count = if row.uniform { 1 } else { row.count as usize };
        let mut known = true;
        // The usual case: one element per lane of global memory.
        if let (Home::Global(index, offset), 1, [out, ..]) = (&home, dst.len(), &mut loaded[..]) {
            let out = &mut out[first..first + count];
            known = self.launch.allocations[*index].load_run(*offset, element, out);
            if *signed {
                out.iter_mut().for_each(|value| *value = extend(*value, element));
            }
        } else {
            for i in 0..count {
                for (k, out) in loaded.iter_mut().enumerate().take(dst.len()) {
                    let at = (i * dst.len() + k) as u64 * u64::from(element);
                    let value = self.load_element(&home, at, element);
                    known &= value.is_some();
                    let value = value.unwrap_or(0);
                    out[first + i] = if *signed { extend(value, element) } else { value };
                }
            }
        }
        if row.uniform {
            for out in loaded.iter_mut().take(dst.len()) {
                *out = [out[first]; 32];
            }
        }
        known &= self.note_row(warp, row, pc, &home, false);
        if known {
            for (reg, value) in dst.iter().zip(loaded.iter()) {
                warp.write(*reg, row.lanes, value, 0);
            }
            if matches!(home, Home::Global(..)) {
                self.counters.sectors_loaded += row.sectors();
                self.counters.global_bytes_loaded += u64::from(row.bytes * row.count);
            }
        }
        self.loaded = Some(loaded);
        known
    }

    /// Executes a plain store of a row.
    pub(crate) fn store_row(&mut self, warp: &mut Warp, row: &Row, pc: u32, op: &Op) -> bool {
        let Op::Store { space, bytes, src, .. } = op else { return false };
        let element = u32::from(*bytes);
        if row.uniform || src.iter().any(|src| undefined(warp, *src) & row.lanes != 0) {
            return false;
        }
        let Some(home) = self.home(warp, row, *space, true) else { return false };
        if !self.note_row(warp, row, pc, &home, true) {
            return false;
        }
        if let Home::Global(index, offset) = home
            && !self.keep(index, offset, row.len())
        {
            return false;
        }
        for (k, value) in src.iter().enumerate() {
            let values: Lanes = self.operands().value(warp, *value);
            let lanes = &values[row.first as usize..(row.first + row.count) as usize];
            if let (Home::Global(index, offset), 1) = (&home, src.len()) {
                self.launch.allocations[*index].store_run(*offset, element, lanes);
                continue;
            }
            for (i, value) in lanes.iter().enumerate() {
                let at = (i * src.len() + k) as u64 * u64::from(element);
                match home {
                    Home::Global(index, offset) => {
                        self.launch.allocations[index].store(offset + at, element, *value);
                    }
                    Home::Shared(offset) => self.shared.store(offset + at, element, *value),
                    Home::Param(_) => {}
                }
            }
        }
        if matches!(home, Home::Global(..)) {
            self.counters.sectors_stored += row.sectors();
            self.counters.global_bytes_stored += row.len();
        }
        true
    }
}

/// Extends the sign of a value of `bytes` bytes.
fn extend(value: u64, bytes: u32) -> u64 {
    let shift = 64 - 8 * bytes;
    (((value << shift) as i64) >> shift) as u64
}
