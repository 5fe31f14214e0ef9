//! The micro-kernel in plain Rust, for processors without AVX2 and for the others to be tested against.

use super::isa::Tile;

pub(super) const MR: usize = 4;
pub(super) const NR: usize = 8;

/// [`Kernel`](super::isa::Kernel) of `MR` by `NR` sums.
///
/// # Safety
/// As there.
pub(super) unsafe fn kernel(words: usize, a: *const u32, b: *const u32, tile: Tile) {
    let Tile { c, c_row, rows, cols, add, alpha } = tile;
    // SAFETY: the caller vouches for the panels.
    let (a, b) =
        unsafe { (std::slice::from_raw_parts(a, words * MR), std::slice::from_raw_parts(b, words * NR)) };
    let mut sums = [[0.0f32; NR]; MR];
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += f32::from_bits(*a) * f32::from_bits(*b);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate().take(rows) {
        // SAFETY: the caller vouches for `rows` times `cols` elements of `c`.
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(r * c_row), cols) };
        for (c, sum) in c.iter_mut().zip(sums) {
            *c = if add { *c + alpha * sum } else { alpha * sum };
        }
    }
}
