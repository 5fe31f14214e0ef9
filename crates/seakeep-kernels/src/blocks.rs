//! Quantised weights: GGML's blocks, and their dequantisation to f32, bit for bit as the Python package `gguf` does it
//! (`gguf/quants.py`, the reference that llama.cpp ships). Golden values: `tests/data/gguf_dequant.json`,
//! made by `scripts/parity/gguf_dequant.py` (in the crate `seakeep`).
//!
//! A block is a run of values along a row that share their scale(s). Names in the layouts: `d` is the
//! scale (f16), `m` or `dmin` the scale of the minimum, `qs`/`ql` the low bits, `qh` the high bits.

use crate::vectorise;
use half::{bf16, f16};
use rayon::prelude::*;

/// How a tensor's values are stored.
#[allow(non_camel_case_types)] // These are the names the world knows them by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // One line each would only repeat the name; the layouts stand below.
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    F64,
    BF16,
}

/// Values in a block of the K types.
const QK_K: usize = 256;

impl GgmlType {
    /// For error messages.
    pub const SUPPORTED: &str =
        "F32, F16, BF16, F64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K";

    /// The type with ggml's number `id`, if it is supported.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        use GgmlType::*;
        Some(match id {
            0 => F32,
            1 => F16,
            2 => Q4_0,
            3 => Q4_1,
            6 => Q5_0,
            7 => Q5_1,
            8 => Q8_0,
            10 => Q2_K,
            11 => Q3_K,
            12 => Q4_K,
            13 => Q5_K,
            14 => Q6_K,
            15 => Q8_K,
            28 => F64,
            30 => BF16,
            _ => return None,
        })
    }

    /// GGML's name.
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Values and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        use GgmlType::*;
        match self {
            F32 => (1, 4),
            F16 | BF16 => (1, 2),
            F64 => (1, 8),
            Q4_0 => (32, 2 + 16),
            Q4_1 => (32, 4 + 16),
            Q5_0 => (32, 2 + 4 + 16),
            Q5_1 => (32, 4 + 4 + 16),
            Q8_0 => (32, 2 + 32),
            Q2_K => (QK_K, 16 + 64 + 4),
            Q3_K => (QK_K, 32 + 64 + 12 + 2),
            Q4_K => (QK_K, 4 + 12 + 128),
            Q5_K => (QK_K, 4 + 12 + 32 + 128),
            Q6_K => (QK_K, 128 + 64 + 16 + 2),
            Q8_K => (QK_K, 4 + 256 + 32),
        }
    }
}

/// Dequantises `bytes` into `out`. The caller has checked the sizes: `bytes` holds exactly the blocks
/// of `out.len()` values.
pub fn dequantize(ggml_type: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let (block_items, block_bytes) = ggml_type.block();
    debug_assert_eq!(bytes.len() / block_bytes * block_items, out.len());
    let one = one_block(ggml_type);
    // About 64k values a task: enough work to be worth a thread, small enough to balance.
    let blocks = (65_536 / block_items).max(1);
    out.par_chunks_mut(blocks * block_items).zip(bytes.par_chunks(blocks * block_bytes)).for_each(
        |(out, bytes)| {
            for (y, block) in out.chunks_exact_mut(block_items).zip(bytes.chunks_exact(block_bytes)) {
                one(block, y);
            }
        },
    );
}

/// A weight `[rows, cols]` in quantised blocks along its rows, as a GGUF file has them: products read it as it is
/// ([`Elements::Blocks`](crate::gemm::Elements)).
#[derive(Clone, PartialEq)]
pub struct Blocks {
    ggml_type: GgmlType,
    bytes: Vec<u8>,
    len: usize,
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Blocks({:?}, {} elements)", self.ggml_type, self.len)
    }
}

impl Blocks {
    /// The blocks of `bytes`.
    ///
    /// # Panics
    /// If `bytes` is no whole number of blocks.
    pub fn new(ggml_type: GgmlType, bytes: Vec<u8>) -> Self {
        let (items, size) = ggml_type.block();
        assert!(bytes.len().is_multiple_of(size), "whole blocks");
        let len = bytes.len() / size * items;
        Blocks { ggml_type, bytes, len }
    }

    /// Quantises values to nearest, as GGML's reference does: `Q8_0`, or `Q4_0`, whose scale is that of the largest value with its sign.
    ///
    /// # Panics
    /// For another type, or values that are no whole number of blocks.
    pub fn quantise(ggml_type: GgmlType, values: &[f32]) -> Self {
        let (items, size) = ggml_type.block();
        assert!(values.len().is_multiple_of(items), "whole blocks");
        let one = match ggml_type {
            GgmlType::Q8_0 => to_q8_0,
            GgmlType::Q4_0 => to_q4_0,
            other => panic!("nothing is quantised to {other:?} here"),
        };
        let mut bytes = vec![0; values.len() / items * size];
        bytes
            .par_chunks_exact_mut(size)
            .zip(values.par_chunks_exact(items))
            .with_min_len(1 << 10)
            .for_each(|(to, from)| one(from, to));
        Blocks::new(ggml_type, bytes)
    }

    /// How they are quantised.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// The blocks as they are stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements in a block.
    pub fn block(&self) -> usize {
        self.ggml_type.block().0
    }

    /// Dequantises the elements from `first` on; both ends must be those of a block.
    ///
    /// # Panics
    /// If they are not, or there are not so many.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let (items, size) = self.ggml_type.block();
        assert!(first.is_multiple_of(items) && out.len().is_multiple_of(items), "whole blocks");
        let bytes = &self.bytes[first / items * size..(first + out.len()) / items * size];
        let one = one_block(self.ggml_type);
        vectorise!({
            for (y, block) in out.chunks_exact_mut(items).zip(bytes.chunks_exact(size)) {
                one(block, y);
            }
        });
    }
}

fn to_q8_0(x: &[f32], to: &mut [u8]) {
    let d = x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
    to[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    to[2..].iter_mut().zip(x).for_each(|(q, x)| *q = (x * inverse).round() as i8 as u8);
}

fn to_q4_0(x: &[f32], to: &mut [u8]) {
    let largest = x.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    let d = largest / -8.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    to[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let quantised = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    let (low, high) = x.split_at(16);
    to[2..]
        .iter_mut()
        .zip(low.iter().zip(high))
        .for_each(|(q, (l, h))| *q = quantised(*l) | quantised(*h) << 4);
}

type BlockFn = fn(&[u8], &mut [f32]);

fn one_block(ggml_type: GgmlType) -> BlockFn {
    use GgmlType::*;
    match ggml_type {
        F32 => |b, y| y[0] = f32_at(b, 0),
        F16 => |b, y| y[0] = f16_at(b, 0),
        BF16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        F64 => |b, y| y[0] = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
        Q4_0 => q4_0,
        Q4_1 => q4_1,
        Q5_0 => q5_0,
        Q5_1 => q5_1,
        Q8_0 => q8_0,
        Q2_K => q2_k,
        Q3_K => q3_k,
        Q4_K => q4_k,
        Q5_K => q5_k,
        Q6_K => q6_k,
        Q8_K => q8_k,
    }
}

fn f16_at(b: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([b[i], b[i + 1]]).to_f32()
}

fn f32_at(b: &[u8], i: usize) -> f32 {
    f32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

/// `i`-th 4-bit number of 16 bytes: the low halves first, then the high halves.
fn nibble(qs: &[u8], i: usize) -> u8 {
    if i < 16 { qs[i] & 0x0f } else { qs[i - 16] >> 4 }
}

/// d, qs[16]: y = d (q - 8)
fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = f16_at(b, 0);
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * (f32::from(nibble(&b[2..], i)) - 8.0);
    }
}

/// d, m, qs[16]: y = d q + m
fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for (i, y) in y.iter_mut().enumerate() {
        *y = d * f32::from(nibble(&b[4..], i)) + m;
    }
}

/// d, qh (bit i is the fifth bit of value i), qs[16]: y = d (q - 16)
fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = f16_at(b, 0);
    let qh = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for (i, y) in y.iter_mut().enumerate() {
        let q = nibble(&b[6..], i) | ((qh >> i & 1) << 4) as u8;
        *y = d * (f32::from(q) - 16.0);
    }
}

/// d, m, qh, qs[16]: y = d q + m
fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    let qh = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for (i, y) in y.iter_mut().enumerate() {
        let q = nibble(&b[8..], i) | ((qh >> i & 1) << 4) as u8;
        *y = d * f32::from(q) + m;
    }
}

/// d, qs[32] (signed): y = d q
fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = f16_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..34]) {
        *y = f32::from(q as i8) * d;
    }
}

/// scales[16] (4-bit scale, 4-bit minimum, one byte per 16 values), qs[64], d, dmin:
/// y = d scale q - dmin minimum
fn q2_k(b: &[u8], y: &mut [f32]) {
    let (scales, qs) = (&b[..16], &b[16..80]);
    let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
    for (i, y) in y.iter_mut().enumerate() {
        // Each half of 128 values is 32 bytes, whose four 2-bit planes follow one another.
        let q = qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let scale = scales[i / 16];
        *y = d * f32::from(scale & 0x0f) * f32::from(q) - dmin * f32::from(scale >> 4);
    }
}

/// hmask[32] (third bits), qs[64] (low two bits), scales[12] (sixteen 6-bit numbers), d:
/// y = d (scale - 32) q, where q is in -4..4: a third bit of zero subtracts 4
fn q3_k(b: &[u8], y: &mut [f32]) {
    let (hmask, qs, scales) = (&b[..32], &b[32..96], &b[96..108]);
    let d = f16_at(b, 108);
    for (i, y) in y.iter_mut().enumerate() {
        let group = i / 16;
        let low = if group < 8 { scales[group] & 0x0f } else { scales[group - 8] >> 4 };
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = f32::from(low | high << 4) - 32.0;
        let q = qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let third = hmask[i % 32] >> (i / 32) & 1;
        *y = d * scale * (f32::from(q) - if third == 1 { 0.0 } else { 4.0 });
    }
}

/// The `j`-th 6-bit scale and minimum of the twelve bytes that Q4_K and Q5_K share.
fn scale_min(scales: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (scales[j] & 0x3f, scales[j + 4] & 0x3f)
    } else {
        let low = scales[j + 4];
        ((low & 0x0f) | (scales[j - 4] >> 2 & 0x30), (low >> 4) | (scales[j] >> 2 & 0x30))
    };
    (f32::from(scale), f32::from(min))
}

/// d, dmin, scales[12], qs[128] (pairs of 32-value groups: low halves, then high halves):
/// y = d scale q - dmin minimum
fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, qs) = (f16_at(b, 0), f16_at(b, 2), &b[16..144]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], group);
        let (d, m) = (d * scale, dmin * min);
        for (l, y) in y.iter_mut().enumerate() {
            let q = qs[group / 2 * 32 + l] >> (group % 2 * 4) & 0x0f;
            *y = d * f32::from(q) - m;
        }
    }
}

/// d, dmin, scales[12], qh[32] (bit `group` of byte l is the fifth bit), qs[128] as in Q4_K
fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin, qh, qs) = (f16_at(b, 0), f16_at(b, 2), &b[16..48], &b[48..176]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], group);
        let (d, m) = (d * scale, dmin * min);
        for (l, y) in y.iter_mut().enumerate() {
            let q = (qs[group / 2 * 32 + l] >> (group % 2 * 4) & 0x0f) | (qh[l] >> group & 1) << 4;
            *y = d * f32::from(q) - m;
        }
    }
}

/// ql[128] (low four bits), qh[64] (high two bits), scales[16] (signed, per 16 values), d:
/// y = d scale (q - 32)
fn q6_k(b: &[u8], y: &mut [f32]) {
    let (ql, qh, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = f16_at(b, 208);
    for (i, y) in y.iter_mut().enumerate() {
        let (half, r) = (i / 128, i % 128);
        let low = ql[half * 64 + r % 64] >> (r / 64 * 4) & 0x0f;
        let high = qh[half * 32 + r % 32] >> (r / 32 * 2) & 3;
        let q = f32::from(low | high << 4) - 32.0;
        *y = d * f32::from(scales[i / 16] as i8) * q;
    }
}

/// d (f32), qs[256] (signed), sums of 16 (not needed here): y = d q
fn q8_k(b: &[u8], y: &mut [f32]) {
    let d = f32_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[4..260]) {
        *y = d * f32::from(q as i8);
    }
}
