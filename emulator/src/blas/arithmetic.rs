//! The arithmetic of a product: element formats and a blocked f32 kernel.
//!
//! Sums run over the inner dimension in order, in f32 (f64 for f64 products), each term rounded
//! once as a product and once as a sum: the same bits on every machine.

use half::{bf16, f16};

/// An element format of cuBLAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
}

impl Dtype {
    /// The format a `cudaDataType` stands for.
    pub(crate) fn from_cuda(code: i32) -> Option<Self> {
        match code {
            0 => Some(Dtype::F32),
            1 => Some(Dtype::F64),
            2 => Some(Dtype::F16),
            14 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    pub(crate) fn size(self) -> u64 {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The values of packed little-endian elements; exact for every format but f64.
    pub(crate) fn widen(self, bytes: &[u8], into: &mut Vec<f32>) {
        match self {
            Dtype::F32 => into.extend(
                bytes.as_chunks::<4>().0.iter().map(|element| f32::from_le_bytes(*element)),
            ),
            Dtype::F16 => into.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|element| f16::from_le_bytes(*element).to_f32()),
            ),
            Dtype::Bf16 => into.extend(
                bytes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|element| bf16::from_le_bytes(*element).to_f32()),
            ),
            Dtype::F64 => into.extend(
                bytes.as_chunks::<8>().0.iter().map(|element| f64::from_le_bytes(*element) as f32),
            ),
        }
    }

    /// Appends `value`, rounded to this format once, to nearest with ties to even.
    pub(crate) fn narrow(self, value: f32, into: &mut Vec<u8>) {
        match self {
            Dtype::F32 => into.extend(value.to_le_bytes()),
            Dtype::F16 => into.extend(f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => into.extend(bf16::from_f32(value).to_le_bytes()),
            Dtype::F64 => into.extend(f64::from(value).to_le_bytes()),
        }
    }
}

/// What is done to f32 inputs before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputRounding {
    /// Used as they are.
    None,
    /// To 10 bits of mantissa, ties away from zero, as `cvt.rna.tf32`.
    Tf32,
    /// To bf16, nearest even.
    Bf16,
    /// To f16, nearest even.
    F16,
}

impl InputRounding {
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            InputRounding::None => {}
            InputRounding::Tf32 => values.iter_mut().for_each(|value| *value = round_tf32(*value)),
            InputRounding::Bf16 => {
                values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
            }
            InputRounding::F16 => {
                values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
            }
        }
    }
}

/// Rounds to the nearest tf32 value, ties away from zero.
///
/// # Sources
/// PTX ISA, `cvt.rna.tf32.f32`.
pub(crate) fn round_tf32(value: f32) -> f32 {
    if !value.is_finite() {
        return value;
    }
    f32::from_bits((value.to_bits() + 0x1000) & !0x1FFF)
}

/// Rows of the left and columns of the right operand that one inner loop works on.
const TILE: usize = 4;

/// `out[i, j] = Σ_p left[i, p]·right[p, j]`, all row-major.
///
/// # Cost
/// m·n·k multiply-adds, on the calling thread's share of `threads` threads.
pub(crate) fn multiply(
    left: &[f32],
    right: &[f32],
    m: usize,
    n: usize,
    k: usize,
    threads: usize,
) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    if m == 0 || n == 0 || k == 0 {
        return out;
    }
    // Columns of the right operand in panels of TILE, each running along the inner dimension.
    let panels = n.div_ceil(TILE);
    let mut packed = vec![0.0_f32; panels * TILE * k];
    for (panel, into) in packed.chunks_exact_mut(TILE * k).enumerate() {
        let width = TILE.min(n - panel * TILE);
        for (p, into) in into.chunks_exact_mut(TILE).enumerate() {
            let from = p * n + panel * TILE;
            into[..width].copy_from_slice(&right[from..from + width]);
        }
    }
    let share = m.div_ceil(TILE).div_ceil(threads.max(1)) * TILE;
    std::thread::scope(|scope| {
        let mut parts = out.chunks_mut(share * n).zip(left.chunks(share * k));
        let first = parts.next();
        for (out, left) in parts {
            let packed = &packed;
            scope.spawn(move || rows(left, packed, out, n, k));
        }
        if let Some((out, left)) = first {
            rows(left, &packed, out, n, k);
        }
    });
    out
}

fn rows(left: &[f32], packed: &[f32], out: &mut [f32], n: usize, k: usize) {
    let mut strip = vec![0.0_f32; TILE * k];
    for (left, out) in left.chunks(TILE * k).zip(out.chunks_mut(TILE * n)) {
        strip.fill(0.0);
        let height = left.len() / k;
        for (row, values) in left.chunks_exact(k).enumerate() {
            for (p, value) in values.iter().enumerate() {
                strip[p * TILE + row] = *value;
            }
        }
        for (panel, right) in packed.chunks_exact(TILE * k).enumerate() {
            let sums = tile(&strip, right);
            let width = TILE.min(n - panel * TILE);
            for (row, sums) in sums.iter().take(height).enumerate() {
                let at = row * n + panel * TILE;
                out[at..at + width].copy_from_slice(&sums[..width]);
            }
        }
    }
}

/// One TILE × TILE block of sums, kept in registers over the whole inner dimension.
fn tile(left: &[f32], right: &[f32]) -> [[f32; TILE]; TILE] {
    let mut sums = [[0.0_f32; TILE]; TILE];
    let (left, right) = (left.as_chunks::<TILE>().0, right.as_chunks::<TILE>().0);
    for (l, r) in left.iter().zip(right) {
        for (sums, l) in sums.iter_mut().zip(l) {
            for (sum, r) in sums.iter_mut().zip(r) {
                *sum += *l * *r;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_threads_do_not_change_the_bits() {
        let (m, n, k) = (13, 11, 29);
        let left: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let right: Vec<f32> = (0..k * n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 11.0).collect();
        let mut expected = vec![0.0_f32; m * n];
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0_f32;
                for p in 0..k {
                    sum += left[i * k + p] * right[p * n + j];
                }
                expected[i * n + j] = sum;
            }
        }
        for threads in [1, 2, 5] {
            assert_eq!(multiply(&left, &right, m, n, k, threads), expected);
        }
    }

    #[test]
    fn tf32_keeps_ten_bits() {
        assert_eq!(round_tf32(1.0 + 2.0_f32.powi(-10)), 1.0 + 2.0_f32.powi(-10));
        assert_eq!(round_tf32(1.0 + 2.0_f32.powi(-11)), 1.0 + 2.0_f32.powi(-10));
        assert_eq!(round_tf32(1.0 + 2.0_f32.powi(-12)), 1.0);
        assert!(round_tf32(f32::NAN).is_nan());
    }
}
