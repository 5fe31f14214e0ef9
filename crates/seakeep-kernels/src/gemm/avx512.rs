//! Packing and micro-kernels for AVX-512: 14 rows by 2 vectors, 28 of the 32 registers hold sums; with AVX512-BF16 each
//! instruction multiplies pairs.

use std::arch::x86_64::*;

use super::isa::{Side, Tile};
use super::pack::{Panel, Words};
use crate::simd::{Prefetch, prefetch};

pub(super) const MR: usize = 14;
pub(super) const NR: usize = 32;
/// Lanes of a vector.
const L: usize = 16;

/// [`Pack`](super::pack::Pack) of panels of A.
///
/// # Safety
/// The processor has AVX-512 (F, BW, VL, DQ), and for pairs BF16.
pub(super) unsafe fn pack_a(to: &mut [u32], panel: &Panel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { pack_of::<MR>(to, panel) }
}

/// [`Pack`](super::pack::Pack) of panels of B.
///
/// # Safety
/// As [`pack_a`].
pub(super) unsafe fn pack_b(to: &mut [u32], panel: &Panel) {
    // SAFETY: the caller vouches for the instructions.
    unsafe { pack_of::<NR>(to, panel) }
}

/// # Safety
/// As [`pack_a`].
unsafe fn pack_of<const P: usize>(to: &mut [u32], panel: &Panel) {
    // SAFETY: the caller vouches for the instructions; lengths are checked inside.
    unsafe {
        match (panel.from.inner, panel.from.outer, panel.words) {
            (1, _, Words::Pairs) => along_pairs::<P>(to, panel),
            (1, ..) => along::<P>(to, panel),
            (_, 1, Words::Pairs) => across_pairs::<P>(to, panel),
            (_, 1, _) => across::<P>(to, panel),
            _ => super::pack::pack::<P>(to, panel),
        }
    }
}

/// The lowest `n` lanes.
#[inline(always)]
fn lanes(n: usize) -> __mmask16 {
    if n >= L { !0 } else { (1 << n) - 1 }
}

/// Up to 16 elements, 0 in the lanes beyond.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[f32]) -> __m512 {
    // SAFETY: the mask keeps the load within the slice.
    unsafe { _mm512_maskz_loadu_ps(lanes(from.len()), from.as_ptr()) }
}

/// Rounds to bf16, to nearest, ties to even; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
    _mm512_and_si512(_mm512_mask_mov_epi32(up, nan, quiet), _mm512_set1_epi32(!0xffff))
}

/// [`load`], in the form that words of one value have.
#[inline]
#[target_feature(enable = "avx512f")]
fn words_of(from: &[f32], words: Words) -> __m512i {
    let x = load(from);
    if words == Words::Rounded { round(x) } else { _mm512_castps_si512(x) }
}

/// Up to 32 elements as bf16, those of `low` first; 0 in the lanes beyond.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw")]
fn bf16_of(low: &[f32], high: &[f32]) -> __m512i {
    // SAFETY: both are 512 bits of no particular meaning.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(load(high), load(low))) }
}

/// Up to 16 elements of a row from the place `p0` on.
#[inline(always)]
fn part(row: &[f32], p0: usize) -> &[f32] {
    let rest = row.get(p0..).unwrap_or(&[]);
    &rest[..rest.len().min(L)]
}

/// Panels where `k` is contiguous: 16 words of 16 rows at a time are transposed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn along<const P: usize>(to: &mut [u32], panel: &Panel) {
    for (start, to) in panel.elements.clone().step_by(L).zip(to.chunks_mut(L * P)) {
        for p0 in (0..P).step_by(L) {
            let mut rows = [_mm512_setzero_si512(); L];
            for (r, row) in rows.iter_mut().enumerate().take(panel.count.saturating_sub(p0)) {
                *row = words_of(panel.along(p0 + r, start, L), panel.words);
            }
            store_transposed::<P>(to, p0, rows);
        }
    }
}

/// [`along`] for pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn along_pairs<const P: usize>(to: &mut [u32], panel: &Panel) {
    for (start, to) in panel.elements.clone().step_by(2 * L).zip(to.chunks_mut(L * P)) {
        for p0 in (0..P).step_by(L) {
            let mut rows = [_mm512_setzero_si512(); L];
            for (r, row) in rows.iter_mut().enumerate().take(panel.count.saturating_sub(p0)) {
                let elements = panel.along(p0 + r, start, 2 * L);
                let (low, high) = elements.split_at(elements.len().min(L));
                *row = bf16_of(low, high);
            }
            store_transposed::<P>(to, p0, rows);
        }
    }
}

/// Writes the transpose of `rows` as the places from `p0` on of as many words as `to` has room for.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_transposed<const P: usize>(to: &mut [u32], p0: usize, rows: [__m512i; L]) {
    for (to, word) in to.chunks_exact_mut(P).zip(transpose(rows)) {
        store::<P>(to, p0, word);
    }
}

/// [`Unpack`](super::pack::Unpack) of panels of B.
///
/// # Safety
/// As [`pack_a`].
pub(super) unsafe fn unpack(y: &mut [f32], panel: &[f32], channels: usize, add: bool) {
    // SAFETY: the caller vouches for the instructions; lengths are checked inside.
    unsafe { unpack_rows(y, panel, channels, add) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn unpack_rows(y: &mut [f32], panel: &[f32], channels: usize, add: bool) {
    let panel = &panel[..channels * NR];
    for c0 in (0..channels).step_by(L) {
        let count = L.min(channels - c0);
        for (half, y) in y.chunks_mut(L * channels).enumerate() {
            let mut words = [_mm512_setzero_si512(); L];
            for (i, word) in words.iter_mut().enumerate().take(count) {
                *word = _mm512_castps_si512(load(&panel[(c0 + i) * NR + half * L..][..L]));
            }
            for (row, y) in transpose(words).into_iter().zip(y.chunks_exact_mut(channels)) {
                let (y, row) = (&mut y[c0..c0 + count], _mm512_castsi512_ps(row));
                let row = if add { _mm512_add_ps(load(y), row) } else { row };
                // SAFETY: the mask keeps the store within the slice.
                unsafe { _mm512_mask_storeu_ps(y.as_mut_ptr(), lanes(count), row) };
            }
        }
    }
}

/// Writes the places from `p0` on of one word.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<const P: usize>(to: &mut [u32], p0: usize, word: __m512i) {
    let to = &mut to[p0..P];
    // SAFETY: the mask keeps the store within the slice.
    unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), lanes(to.len()), word) };
}

/// 16 by 16 words: first within pairs of rows, then of pairs, then the four quarters of the vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; L]) -> [__m512i; L] {
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (g, four) in fours.iter_mut().enumerate() {
        let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        // Column 4 l + j of rows 4 g.. in quarter l of `four[j]`.
        *four = [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    let mut out = [_mm512_setzero_si512(); L];
    for j in 0..4 {
        let [a, b, c, d] = [fours[0][j], fours[1][j], fours[2][j], fours[3][j]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even_high, odd_high) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[j] = _mm512_shuffle_i32x4::<0x88>(even, even_high);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd, odd_high);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even, even_high);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_high);
    }
    out
}

/// Panels where rows are contiguous: words are copied.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn across<const P: usize>(to: &mut [u32], panel: &Panel) {
    for (i, to) in panel.elements.clone().zip(to.chunks_exact_mut(P)) {
        let row = panel.across(i);
        for p0 in (0..P).step_by(L) {
            store::<P>(to, p0, words_of(part(row, p0), panel.words));
        }
    }
}

/// [`across`] for pairs of bf16: two rows are interleaved.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn across_pairs<const P: usize>(to: &mut [u32], panel: &Panel) {
    // 0, 16, 1, 17, ...: element i of the first row, then of the second.
    let order: [u16; 2 * L] = std::array::from_fn(|i| (i / 2 + i % 2 * L) as u16);
    // SAFETY: 32 numbers of 16 bits are a vector.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for (i, to) in panel.elements.clone().step_by(2).zip(to.chunks_exact_mut(P)) {
        let row = panel.across(i);
        let next = if i + 1 < panel.elements.end { panel.across(i + 1) } else { &[] };
        for p0 in (0..P).step_by(L) {
            let both = bf16_of(part(row, p0), part(next, p0));
            store::<P>(to, p0, _mm512_permutexvar_epi16(order, both));
        }
    }
}

/// Calls `$kernel::<R, ..>` for the number of rows.
macro_rules! by_rows {
    ($kernel:ident [$($other:literal),*], $rows:expr, $($argument:expr),*) => {
        match $rows {
            1 => $kernel::<1 $(, $other)*>($($argument),*),
            2 => $kernel::<2 $(, $other)*>($($argument),*),
            3 => $kernel::<3 $(, $other)*>($($argument),*),
            4 => $kernel::<4 $(, $other)*>($($argument),*),
            5 => $kernel::<5 $(, $other)*>($($argument),*),
            6 => $kernel::<6 $(, $other)*>($($argument),*),
            7 => $kernel::<7 $(, $other)*>($($argument),*),
            8 => $kernel::<8 $(, $other)*>($($argument),*),
            9 => $kernel::<9 $(, $other)*>($($argument),*),
            10 => $kernel::<10 $(, $other)*>($($argument),*),
            11 => $kernel::<11 $(, $other)*>($($argument),*),
            12 => $kernel::<12 $(, $other)*>($($argument),*),
            13 => $kernel::<13 $(, $other)*>($($argument),*),
            _ => $kernel::<14 $(, $other)*>($($argument),*),
        }
    };
}

/// `$body` for `$i` from 0 to `$count`, written out. An array that is only indexed by constants is in registers from the start; loops over more
/// than 8 rows are unrolled too late for that: their sums were set to 0 in memory and loaded from there, 1% of a training step.
macro_rules! written_out {
    ($count:ident, |$i:ident| $body:expr; $($n:literal)*) => {{
        $(if $n < $count {
            let $i = $n;
            $body
        })*
    }};
}

/// [`written_out!`] for the rows of a tile.
macro_rules! for_rows {
    ($count:ident, |$i:ident| $body:expr) => {
        written_out!($count, |$i| $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
}

/// [`written_out!`] for the vectors of a row.
macro_rules! for_vectors {
    ($count:ident, |$i:ident| $body:expr) => {
        written_out!($count, |$i| $body; 0 1)
    };
}

/// Writes a tile of `sums`, `[[__m512; V]; R]`, or its first `cols` columns. (Part of the kernel and no function, which `sums` would have to lie in
/// memory for.)
///
/// # Safety
/// `c` has `R` rows of `cols` elements.
macro_rules! write_tile {
    ($sums:ident, $tile:ident) => {
        let Tile { c, c_row, c_col, cols, .. } = $tile;
        if c_col == 1 {
            for_rows!(R, |r| for_vectors!(V, |half| {
                // The mask leaves out what lies beyond `cols`.
                let mask = lanes(cols.saturating_sub(half * L));
                write_row(c.wrapping_add(r * c_row + half * L), mask, $sums[r][half], $tile);
            }));
        } else {
            for_vectors!(V, |half| {
                let mut rows = [_mm512_setzero_si512(); L];
                for_rows!(R, |r| rows[r] = _mm512_castps_si512($sums[r][half]));
                for (j, col) in transpose(rows).into_iter().enumerate().take(cols.saturating_sub(half * L)) {
                    // The mask leaves out what lies beyond `R`.
                    write_row(c.add((half * L + j) * c_col), lanes(R), _mm512_castsi512_ps(col), $tile);
                }
            });
        }
    };
}

/// [`Kernel`](super::isa::Kernel) for f32.
///
/// # Safety
/// As there.
pub(super) unsafe fn kernel_f32(words: usize, a: Side, b: *const u32, tile: Tile) {
    let packed = (a.outer, a.inner) == (1, MR);
    // SAFETY: the caller vouches for all of it.
    unsafe {
        match (tile.cols <= L, packed) {
            (true, true) => by_rows!(of_f32[1, true], tile.rows, words, a, b, tile),
            (true, false) => by_rows!(of_f32[1, false], tile.rows, words, a, b, tile),
            (false, true) => by_rows!(of_f32[2, true], tile.rows, words, a, b, tile),
            (false, false) => by_rows!(of_f32[2, false], tile.rows, words, a, b, tile),
        }
    }
}

/// [`Kernel`](super::isa::Kernel) for pairs of bf16: always of packed panels.
///
/// # Safety
/// As there.
pub(super) unsafe fn kernel_bf16(words: usize, a: Side, b: *const u32, tile: Tile) {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        if tile.cols <= L {
            by_rows!(of_pairs[1], tile.rows, words, a, b, tile)
        } else {
            by_rows!(of_pairs[2], tile.rows, words, a, b, tile)
        }
    }
}

/// # Safety
/// As [`kernel_f32`], with `R` rows and no more columns than `V` vectors hold. If `PACKED`, `a` has the strides of a packed panel:
/// distances are known when compiled.
#[target_feature(enable = "avx512f")]
unsafe fn of_f32<const R: usize, const V: usize, const PACKED: bool>(
    words: usize,
    a: Side,
    b: *const u32,
    tile: Tile,
) {
    let (outer, inner) = if PACKED { (1, MR) } else { (a.outer, a.inner) };
    let (mut a, mut b): (*const f32, *const f32) = (a.at.cast(), b.cast());
    if !PACKED {
        prefetch_c::<R>(tile);
    }
    // SAFETY: every address lies within the panels and the tile that the caller vouches for.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for w in 0..words {
            if !PACKED {
                prefetch_a::<R>(a, (outer, inner), w);
            }
            let mut bs = [_mm512_setzero_ps(); V];
            for (v, to) in bs.iter_mut().enumerate() {
                prefetch(b.wrapping_add(B_AHEAD * NR + v * L), Prefetch::First);
                *to = _mm512_loadu_ps(b.add(v * L));
            }
            for_rows!(R, |r| {
                let a = _mm512_set1_ps(*a.add(r * outer));
                for_vectors!(V, |v| sums[r][v] = _mm512_fmadd_ps(a, bs[v], sums[r][v]));
            });
            (a, b) = (a.wrapping_add(inner), b.add(NR));
        }
        write_tile!(sums, tile);
    }
}

/// # Safety
/// As [`kernel_bf16`], with `R` rows and no more columns than `V` vectors hold.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn of_pairs<const R: usize, const V: usize>(words: usize, a: Side, b: *const u32, tile: Tile) {
    let (mut a, mut b) = (a.at, b);
    prefetch_c::<R>(tile);
    // SAFETY: every address lies within the panels and the tile that the caller vouches for; vectors of bf16 are 512 bits.
    unsafe {
        let pairs = |v: __m512i| std::mem::transmute::<__m512i, __m512bh>(v);
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for _ in 0..words {
            let mut bs = [_mm512_setzero_si512(); V];
            for (v, to) in bs.iter_mut().enumerate() {
                *to = _mm512_loadu_si512(b.add(v * L).cast());
            }
            for_rows!(R, |r| {
                let a = pairs(_mm512_set1_epi32(*a.add(r) as i32));
                for_vectors!(V, |v| sums[r][v] = _mm512_dpbf16_ps(sums[r][v], a, pairs(bs[v])));
            });
            (a, b) = (a.add(MR), b.add(NR));
        }
        write_tile!(sums, tile);
    }
}

/// Words of B that are asked for ahead of time: a panel of B comes from the second-level cache, once for each panel of A.
const B_AHEAD: usize = 8;

/// Asks for what comes after word `w` of A, which is at `a`, where A is read from where it lies: the processor foresees neither 14 rows side by
/// side nor rows in a page each, and up to a tenth of a product was waiting for them.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch_a<const R: usize>(a: *const f32, (outer, inner): (usize, usize), w: usize) {
    /// Words ahead where those of all rows lie together.
    const AHEAD: usize = 16;
    if inner == 1 {
        // A line holds 16 words of a row: each word asks for another row's.
        prefetch(a.wrapping_add((w % L).wrapping_mul(outer)).wrapping_add(2 * L), Prefetch::First);
    } else {
        let ahead = a.wrapping_add(AHEAD.wrapping_mul(inner));
        prefetch(ahead, Prefetch::First);
        prefetch(ahead.wrapping_add(R), Prefetch::First);
    }
}

/// Asks for the tile's part of C ahead of time.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch_c<const R: usize>(tile: Tile) {
    let (count, apart, each) =
        if tile.c_col == 1 { (R, tile.c_row, tile.cols) } else { (tile.cols, tile.c_col, R) };
    for i in 0..count {
        let line = tile.c.wrapping_add(i * apart);
        prefetch(line, Prefetch::FirstToWrite);
        if each > L {
            prefetch(line.wrapping_add(L), Prefetch::FirstToWrite);
        }
    }
}

/// Writes the masked lanes of what is consecutive in C.
///
/// # Safety
/// They lie in C.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn write_row(at: *mut f32, mask: __mmask16, sum: __m512, tile: Tile) {
    let alpha = _mm512_set1_ps(tile.alpha);
    // SAFETY: the caller vouches for the lanes.
    unsafe {
        let value = if tile.add {
            _mm512_fmadd_ps(alpha, sum, _mm512_maskz_loadu_ps(mask, at))
        } else {
            _mm512_mul_ps(alpha, sum)
        };
        _mm512_mask_storeu_ps(at, mask, value);
    }
}
