//! The micro-kernel for AVX2 with fused multiply-add: 6 rows by 2 vectors, 12 of the 16 registers.

use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::isa::{Side, Tile};

pub(super) const MR: usize = 6;
pub(super) const NR: usize = 16;

/// [`Kernel`](super::isa::Kernel) of `MR` by `NR` sums.
///
/// # Safety
/// As there.
pub(super) unsafe fn kernel(words: usize, a: Side, b: *const u32, tile: Tile) {
    let Tile { c, c_row, c_col, rows, cols, .. } = tile;
    // SAFETY: the caller vouches for sizes and instructions; a part of a tile, and one of columns, goes through one of its own.
    unsafe {
        if (rows, cols, c_col) == (MR, NR, 1) {
            whole(words, a, b, tile);
        } else {
            let mut own = [0.0f32; MR * NR];
            let places =
                || (0..rows).flat_map(|r| (0..cols).map(move |j| (r * NR + j, r * c_row + j * c_col)));
            places().for_each(|(mine, at)| own[mine] = *c.add(at));
            whole(words, a, b, Tile { c: own.as_mut_ptr(), c_row: NR, ..tile });
            places().for_each(|(mine, at)| *c.add(at) = own[mine]);
        }
    }
}

/// All `MR` rows and `NR` columns.
///
/// # Safety
/// The panels hold `words` words, `c` a whole tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn whole(words: usize, a: Side, b: *const u32, tile: Tile) {
    let Tile { c, c_row, rows, add, alpha, .. } = tile;
    // SAFETY: every address lies within what the caller vouches for: for rows that the tile has not, its last is read again.
    unsafe {
        let rows: [*const f32; MR] = std::array::from_fn(|r| a.at.add(r.min(rows - 1) * a.outer).cast());
        let mut sums: [[__m256; 2]; MR] = [[_mm256_setzero_ps(); 2]; MR];
        for w in 0..words {
            let at: *const f32 = b.add(w * NR).cast();
            let (b0, b1) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
            for (row, sums) in rows.iter().zip(&mut sums) {
                let a = _mm256_set1_ps(*row.add(w * a.inner));
                sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
            }
        }
        let alpha = _mm256_set1_ps(alpha);
        for (r, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                let at = c.add(r * c_row + half * 8);
                let value = if add {
                    _mm256_fmadd_ps(alpha, *sum, _mm256_loadu_ps(at))
                } else {
                    _mm256_mul_ps(alpha, *sum)
                };
                _mm256_storeu_ps(at, value);
            }
        }
    }
}
