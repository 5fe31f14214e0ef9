//! The micro-kernel in plain Rust, for processors without AVX2 and for the others to be tested against.

use super::isa::{Side, Tile};

pub(super) const MR: usize = 4;
pub(super) const NR: usize = 8;

/// [`Kernel`](super::isa::Kernel) of `MR` by `NR` sums.
///
/// # Safety
/// As there.
pub(super) unsafe fn kernel(words: usize, a: Side, b: *const u32, tile: Tile) {
    let Tile { c, c_row, c_col, rows, cols, add, alpha } = tile;
    let mut sums = [[0.0f32; NR]; MR];
    for w in 0..words {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the tile's rows of `a` (of others the last is read again) and for `b`.
            let (a, b) = unsafe {
                let a = *a.at.add(r.min(rows - 1) * a.outer + w * a.inner);
                (f32::from_bits(a), std::slice::from_raw_parts(b.add(w * NR), NR))
            };
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * f32::from_bits(*b);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate().take(rows) {
        for (j, sum) in sums.iter().enumerate().take(cols) {
            // SAFETY: the caller vouches for `rows` times `cols` elements of `c`.
            let c = unsafe { &mut *c.add(r * c_row + j * c_col) };
            *c = if add { *c + alpha * sum } else { alpha * sum };
        }
    }
}
