//! One warp instruction's access to memory as a whole: neighbouring lanes at neighbouring addresses, or
//! all of them at one. Nearly every access of a good kernel is such a row, and is checked once instead
//! of lane by lane.

use super::alu::Lanes;

/// Where the lanes of a warp access memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// First byte; a multiple of `bytes`.
    pub(crate) start: u64,
    /// Bytes that one lane accesses; a power of two.
    pub(crate) bytes: u32,
    /// The first lane.
    pub(crate) first: u32,
    /// Number of lanes.
    pub(crate) count: u32,
    /// The lanes that take part.
    pub(crate) lanes: u32,
    /// All lanes access the same bytes.
    pub(crate) uniform: bool,
}

impl Row {
    /// The row that the lanes of `active` form when each accesses `bytes` bytes, if they do.
    pub(crate) fn find(addresses: &Lanes, active: u32, bytes: u32) -> Option<Self> {
        let first = active.trailing_zeros();
        let count = active.count_ones();
        let start = *addresses.get(first as usize)?;
        if start & u64::from(bytes - 1) != 0 {
            return None;
        }
        let row = Self { start, bytes, first, count, lanes: active, uniform: false };
        if count == 1 {
            return Some(row);
        }
        let mut same = true;
        for (lane, address) in addresses.iter().enumerate() {
            same &= *address == start || active >> lane & 1 == 0;
        }
        if same {
            return Some(Self { uniform: true, ..row });
        }
        if (active >> first).trailing_ones() != count {
            return None;
        }
        let lanes = addresses.get(first as usize..(first + count) as usize)?;
        let mut expected = start;
        let mut neighbours = true;
        for address in lanes {
            neighbours &= *address == expected;
            expected = expected.wrapping_add(u64::from(bytes));
        }
        (neighbours && expected >= start).then_some(row)
    }

    /// Bytes from the first to the last.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.bytes) * if self.uniform { 1 } else { u64::from(self.count) }
    }

    /// 32-byte sectors.
    pub(crate) fn sectors(&self) -> u64 {
        (self.start + self.len() - 1) / 32 - self.start / 32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(f: impl Fn(u64) -> u64) -> Lanes {
        std::array::from_fn(|lane| f(lane as u64))
    }

    #[test]
    fn rows_are_neighbours_or_one_address() {
        let row = Row::find(&addresses(|lane| 256 + 4 * lane), u32::MAX, 4).unwrap();
        assert_eq!((row.start, row.len(), row.sectors(), row.uniform), (256, 128, 4, false));
        let tail = Row::find(&addresses(|lane| 256 + 2 * lane), 0x7f0, 2).unwrap();
        assert_eq!((tail.start, tail.first, tail.count, tail.len()), (264, 4, 7, 14));
        let all = Row::find(&addresses(|_| 60), 0x8001, 4).unwrap();
        assert_eq!((all.len(), all.sectors(), all.uniform), (4, 1, true));
        let single = Row::find(&addresses(|lane| 1000 * lane), 1 << 5, 8).unwrap();
        assert!(!single.uniform && single.start == 5000);
    }

    #[test]
    fn anything_else_is_not_a_row() {
        assert_eq!(Row::find(&addresses(|lane| 8 * lane), u32::MAX, 4), None);
        assert_eq!(Row::find(&addresses(|lane| 2 + 4 * lane), u32::MAX, 4), None);
        assert_eq!(Row::find(&addresses(|lane| 4 * lane), 0b101, 4), None);
        assert_eq!(Row::find(&addresses(|lane| 4 * (31 - lane)), u32::MAX, 4), None);
        let wraps = addresses(|lane| (u64::MAX - 15).wrapping_add(4 * lane));
        assert_eq!(Row::find(&wraps, u32::MAX, 4), None);
    }
}
