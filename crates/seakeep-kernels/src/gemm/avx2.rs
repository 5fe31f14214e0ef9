//! The micro-kernel for AVX2 with fused multiply-add: 6 rows by 2 vectors, 12 of the 16 registers.

use std::arch::x86_64::{
    __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

use super::isa::Tile;

pub(super) const MR: usize = 6;
pub(super) const NR: usize = 16;

/// [`Kernel`](super::isa::Kernel) of `MR` by `NR` sums.
///
/// # Safety
/// As there.
pub(super) unsafe fn kernel(words: usize, a: *const u32, b: *const u32, tile: Tile) {
    let Tile { c, c_row, rows, cols, .. } = tile;
    // SAFETY: the caller vouches for sizes and instructions; a part of a tile goes through one of its own.
    unsafe {
        if (rows, cols) == (MR, NR) {
            whole(words, a.cast(), b.cast(), tile);
        } else {
            let mut own = [0.0f32; MR * NR];
            for r in 0..rows {
                std::ptr::copy_nonoverlapping(c.add(r * c_row), own.as_mut_ptr().add(r * NR), cols);
            }
            whole(words, a.cast(), b.cast(), Tile { c: own.as_mut_ptr(), c_row: NR, ..tile });
            for r in 0..rows {
                std::ptr::copy_nonoverlapping(own.as_ptr().add(r * NR), c.add(r * c_row), cols);
            }
        }
    }
}

/// All `MR` rows and `NR` columns.
///
/// # Safety
/// The panels hold `words` words, `c` a whole tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn whole(words: usize, mut a: *const f32, mut b: *const f32, tile: Tile) {
    let Tile { c, c_row, add, alpha, .. } = tile;
    // SAFETY: every address lies within what the caller vouches for.
    unsafe {
        let mut sums: [[__m256; 2]; MR] = [[_mm256_setzero_ps(); 2]; MR];
        for _ in 0..words {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(r));
                sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
            }
            (a, b) = (a.add(MR), b.add(NR));
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
