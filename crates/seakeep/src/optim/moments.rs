//! The optimizer's moments of one tensor, in f32 or in 8 bits (Dettmers et al., arXiv 2110.02861, section 2): values in blocks of
//! [`BLOCK`], each divided by the largest (in magnitude) of its block and kept as the nearest of 256 numbers, which lie closer the smaller they are
//! (dynamic quantisation, the table of `bitsandbytes`). What was kept is read and kept again without change, so a checkpoint holds plain numbers.

use std::borrow::Cow;
use std::sync::LazyLock;

use rayon::prelude::*;

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// Tensors of fewer elements stay in f32, as in `bitsandbytes`: they cost little and matter much.
const LEAST: usize = 4096;

/// A moment of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    kept: Kept,
}

#[derive(Clone, Debug, PartialEq)]
enum Kept {
    F32(Vec<f32>),
    Eight { codes: Vec<u8>, scales: Vec<f32>, table: &'static Table },
}

/// Part of [`Moments`], to be changed.
pub enum Part<'a> {
    /// In f32.
    F32(&'a mut [f32]),
    /// In 8 bits.
    Eight(&'a mut [u8], &'a mut [f32], &'static Table),
}

/// The numbers that 8 bits stand for, ascending, and the way to the nearest.
#[derive(Debug)]
pub struct Table {
    values: [f32; 256],
    /// Halfway between a value and the next; infinite after the last.
    halves: [f32; 256],
    /// By the first 16 bits of an f32: the code of the smallest number in magnitude that begins so.
    first: Vec<u8>,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(true));
static UNSIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(false));

impl Table {
    /// Seven decades, the `i`-th from the smallest cut into `2^i` parts (without a sign twice as many), of which each is kept as its middle;
    /// 0 and 1.
    fn new(signed: bool) -> Table {
        let mut values = vec![0.0, 1.0];
        for i in 0..7 {
            let parts = 1 << if signed { i } else { i + 1 };
            let edge = |k: usize| 0.1 + 0.9 * k as f64 / parts as f64;
            for k in 0..parts {
                let value = 10f64.powi(i - 6) * (edge(k) + edge(k + 1)) / 2.0;
                values.push(value as f32);
                values.extend(signed.then_some(-value as f32));
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = values.try_into().expect("256 numbers");
        let half = |i: usize| if i < 255 { (values[i] + values[i + 1]) / 2.0 } else { f32::INFINITY };
        let halves = std::array::from_fn(half);
        let code = |x: f32| halves.iter().position(|half| x < *half).unwrap_or(255) as u8;
        let first = (0..1u32 << 16).map(|bits| code(f32::from_bits(bits << 16))).collect();
        Table { values, halves, first }
    }

    /// The code nearest to `x`, of magnitude up to 1. Numbers with the same first 16 bits lie within 2^-7 of each other, which is less than
    /// values are apart: there is at most one half between them.
    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        let code = self.first[(x.to_bits() >> 16) as usize];
        if x >= self.halves[code as usize] {
            code + 1
        } else if code > 0 && x < self.halves[code as usize - 1] {
            code - 1
        } else {
            code
        }
    }
}

impl Moments {
    /// Zeros; `signed`: values may be negative.
    pub fn zeros(len: usize, eight_bits: bool, signed: bool) -> Self {
        if !eight_bits || len < LEAST {
            let mut values = vec![0.0; len];
            // Written to now, by all threads: read first, every page of it would be fetched twice.
            values.par_chunks_mut(1 << 16).for_each(|values| values.fill(0.0));
            return Moments { kept: Kept::F32(values) };
        }
        let table: &'static Table = if signed { &SIGNED } else { &UNSIGNED };
        let zero = table.code(0.0);
        Moments {
            kept: Kept::Eight { codes: vec![zero; len], scales: vec![0.0; len.div_ceil(BLOCK)], table },
        }
    }

    /// The values.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.kept {
            Kept::F32(values) => Cow::Borrowed(values),
            Kept::Eight { codes, scales, table } => {
                let blocks = codes.chunks(BLOCK).zip(scales);
                let block = |(codes, scale): (&[u8], &f32)| -> Vec<f32> {
                    codes.iter().map(|code| table.values[*code as usize] * scale).collect()
                };
                Cow::Owned(blocks.flat_map(block).collect())
            }
        }
    }

    /// Keeps these values.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn set(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.len(), "as many values");
        for part in self.parts_mut(values.len().max(1).next_multiple_of(BLOCK)) {
            part.change(|kept| kept.copy_from_slice(values));
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.kept {
            Kept::F32(values) => values.len(),
            Kept::Eight { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        match &self.kept {
            Kept::F32(values) => 4 * values.len(),
            Kept::Eight { codes, scales, .. } => codes.len() + 4 * scales.len(),
        }
    }

    /// Parts of `len` values, a multiple of `BLOCK`.
    pub fn parts_mut(&mut self, len: usize) -> Vec<Part<'_>> {
        match &mut self.kept {
            Kept::F32(values) => values.chunks_mut(len).map(Part::F32).collect(),
            Kept::Eight { codes, scales, table } => {
                let parts = codes.chunks_mut(len).zip(scales.chunks_mut(len / BLOCK));
                parts.map(|(codes, scales)| Part::Eight(codes, scales, table)).collect()
            }
        }
    }
}

impl Part<'_> {
    /// Lets `change` change the values. A value that is not 0 is not kept as 0 where the table has no sign: a mean square of 0 would make a
    /// step without bound.
    pub fn change(self, change: impl FnOnce(&mut [f32])) {
        let (codes, scales, table) = match self {
            Part::F32(values) => return change(values),
            Part::Eight(codes, scales, table) => (codes, scales, table),
        };
        let scale_of = |i: usize, scales: &[f32]| scales[i / BLOCK];
        let mut values: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(i, code)| table.values[*code as usize] * scale_of(i, scales))
            .collect();
        change(&mut values);
        let unsigned = table.values[0] == 0.0;
        for ((values, codes), scale) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
            // With its sign: the table has a 1 but no -1, and the largest comes back as it was.
            let largest = values.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
            let inverse = 1.0 / largest;
            // So small that its inverse is no number: as good as 0.
            let (largest, inverse) = if inverse.is_finite() { (largest, inverse) } else { (0.0, 0.0) };
            *scale = largest;
            for (code, x) in codes.iter_mut().zip(values) {
                *code = table.code(x * inverse);
                if unsigned && *code == 0 && *x > 0.0 {
                    *code = 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_that_of_the_nearest_value() {
        for table in [&*SIGNED, &*UNSIGNED] {
            assert!(table.values.is_sorted() && table.values[255] == 1.0);
            let from = if table.values[0] < 0.0 { -100_000 } else { 0 };
            for x in (from..=100_000).map(|i| i as f32 * 1e-5).chain((0..60).map(|i| 0.7f32.powi(i))) {
                let found = (table.values[table.code(x) as usize] - x).abs();
                let best = table.values.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
                // Ties are decided by rounding.
                assert!(found <= best + 3e-7 * x.abs(), "{x}: {found} {best}");
            }
            for (i, value) in table.values.iter().enumerate() {
                assert_eq!(table.code(*value), i as u8);
            }
        }
    }

    #[test]
    fn values_are_near_and_what_was_kept_is_kept_again() {
        for signed in [true, false] {
            let value = |i: usize| {
                let x = ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * 1e-3 * (1 + i / BLOCK) as f32;
                if signed { x } else { x * x }
            };
            let values: Vec<f32> = (0..LEAST + 100).map(value).collect();
            let mut kept = Moments::zeros(values.len(), true, signed);
            assert_eq!(kept.to_f32().as_ref(), vec![0.0; values.len()]);
            kept.set(&values);
            assert!(3 * kept.bytes() < 4 * values.len());
            for (block, got) in values.chunks(BLOCK).zip(kept.to_f32().chunks(BLOCK)) {
                let largest = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                for (x, y) in block.iter().zip(got) {
                    // Half the widest gap, a 64th of nine tenths (without a sign a 128th); small ones are nearer.
                    let gap = if signed { 0.9 / 128.0 } else { 0.9 / 256.0 };
                    assert!((x - y).abs() <= 1.01 * gap * largest, "{x} {y}");
                    assert!(signed || *x == 0.0 || *y > 0.0, "{x} became 0");
                }
            }
            let mut again = Moments::zeros(values.len(), true, signed);
            again.set(&kept.to_f32());
            assert!(again == kept);
        }
    }

    #[test]
    fn values_without_an_inverse_are_as_good_as_0() {
        let values: Vec<f32> = (0..LEAST).map(|i| if i % 2 == 0 { 1e-39 } else { 0.0 }).collect();
        for signed in [true, false] {
            let mut kept = Moments::zeros(LEAST, true, signed);
            kept.set(&values);
            assert!(kept.to_f32().iter().all(|x| *x == 0.0));
        }
    }

    #[test]
    fn small_tensors_stay_exact() {
        let values: Vec<f32> = (0..LEAST - 1).map(|i| i as f32).collect();
        let mut kept = Moments::zeros(values.len(), true, true);
        kept.set(&values);
        assert_eq!(kept.to_f32().as_ref(), values);
    }
}
