//! Packing: operands into panels of words.

use std::ops::Range;

use rayon::prelude::*;

use super::{Elements, Mat, Precision, Weight};

/// What a word holds of a row of A (or a column of B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// One f32.
    F32,
    /// One f32 that has been rounded to bf16.
    Rounded,
    /// Two consecutive values as bf16, the first in the low half; 0 beyond the end.
    Pairs,
}

impl Words {
    pub fn of(precision: Precision, pairs: bool) -> Self {
        match precision {
            Precision::F32 => Words::F32,
            Precision::Bf16 if pairs => Words::Pairs,
            Precision::Bf16 => Words::Rounded,
        }
    }

    /// Elements in a word.
    pub fn each(self) -> usize {
        if self == Words::Pairs { 2 } else { 1 }
    }

    /// Words of `k` elements.
    pub fn of_elements(self, k: usize) -> usize {
        k.div_ceil(self.each())
    }
}

/// The bits of `x` as bf16, to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { bits >> 16 | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

/// f32 elements on their way into panels: element `i` along `k` of row (or column) `o` is `data[o * outer + i * inner]`.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub data: &'a [f32],
    pub outer: usize,
    pub inner: usize,
}

/// What is to be packed: `(to, from, first, count, elements, words)` writes the panel `[words, P]` of the rows (or columns)
/// `first..first + count` of `from` and of these elements of `k`, 0 in the places that are left.
///
/// # Safety
/// The processor has the instructions; panels and elements are checked.
pub(super) type Pack = unsafe fn(&mut [u32], Strided, usize, usize, Range<usize>, Words);

/// [`Pack`] for panels of `P`, one element after another: the twin of the vectorised ones.
pub(super) fn pack<const P: usize>(
    to: &mut [u32],
    from: Strided,
    first: usize,
    count: usize,
    elements: Range<usize>,
    words: Words,
) {
    let each = words.each();
    for (w, to) in to.chunks_exact_mut(P).enumerate() {
        let at = elements.start + w * each;
        for (p, to) in to.iter_mut().enumerate() {
            let value = |i: usize| from.data[(first + p) * from.outer + i * from.inner];
            *to = match words {
                _ if p >= count => 0,
                Words::F32 => value(at).to_bits(),
                Words::Rounded => bf16_bits(value(at)) << 16,
                Words::Pairs => {
                    let second = if at + 1 < elements.end { bf16_bits(value(at + 1)) } else { 0 };
                    bf16_bits(value(at)) | second << 16
                }
            };
        }
    }
}

/// An operand, seen from its rows (or columns) outward: `o` counts those, `k` runs within.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Plain(Strided<'a>),
    /// Not in f32: decoded by and by.
    Stored {
        elements: Elements<'a>,
        cols: usize,
        /// Whether `k` runs along the stored rows.
        along: bool,
    },
}

/// Elements that are decoded at a time along stored rows: a multiple of every block.
const DECODED: usize = 1024;
/// Stored rows that are decoded at a time where `k` runs across them.
const ROWS: usize = 64;

impl<'a> Source<'a> {
    /// The rows of A.
    pub fn rows(a: Mat<'a>) -> Self {
        Source::Plain(Strided { data: a.data, outer: a.row, inner: a.col })
    }

    /// The columns of B.
    pub fn columns(b: Mat<'a>) -> Self {
        Source::Plain(Strided { data: b.data, outer: b.col, inner: b.row })
    }

    /// The columns of a weight.
    pub fn weight(w: Weight<'a>) -> Self {
        match w.elements {
            Elements::F32(data) => {
                let (outer, inner) = if w.transposed { (w.cols, 1) } else { (1, w.cols) };
                Source::Plain(Strided { data, outer, inner })
            }
            elements => Source::Stored { elements, cols: w.cols, along: w.transposed },
        }
    }
}

/// A part of an operand in panels, `[panels, words, width]`.
pub(super) struct Packed {
    /// P.
    pub width: usize,
    /// Rows (or columns).
    pub outer: Range<usize>,
    /// Words of `k`.
    pub words: Range<usize>,
}

impl Packed {
    /// Fills `to`; `k` is the number of elements there are.
    pub fn fill(&self, to: &mut [u32], from: &Source, words: Words, k: usize, pack: Pack, parallel: bool) {
        let each = words.each();
        let elements = self.words.start * each..(self.words.end * each).min(k);
        let panel = self.words.len() * self.width;
        // Where k runs across stored rows, a row's blocks are decoded for as many panels as they are wide.
        let together = match from {
            Source::Stored { elements, along: false, .. } => {
                elements.block().max(DECODED / 4).div_ceil(self.width)
            }
            _ => 1,
        };
        let unit = |(u, to): (usize, &mut [u32])| {
            let first = self.outer.start + u * together * self.width;
            match *from {
                Source::Plain(from) => {
                    let count = self.width.min(self.outer.end - first);
                    // SAFETY: `Isa::best` found the instructions.
                    unsafe { pack(to, from, first, count, elements.clone(), words) };
                }
                Source::Stored { elements: stored, cols, along: true } => {
                    self.along(to, (stored, cols), first, elements.clone(), words, pack);
                }
                Source::Stored { elements: stored, cols, along: false } => {
                    self.across(to, (stored, cols), first, elements.clone(), words, pack);
                }
            }
        };
        if parallel {
            to.par_chunks_mut(together * panel).enumerate().for_each(unit);
        } else {
            to.chunks_mut(together * panel).enumerate().for_each(unit);
        }
    }

    /// A panel of stored rows from `first` on.
    fn along(
        &self,
        to: &mut [u32],
        (stored, cols): (Elements, usize),
        first: usize,
        elements: Range<usize>,
        words: Words,
        pack: Pack,
    ) {
        let count = self.width.min(self.outer.end - first);
        let mut decoded = vec![0.0; count * DECODED];
        let step = DECODED / words.each() * self.width;
        for (start, to) in elements.clone().step_by(DECODED).zip(to.chunks_mut(step)) {
            // Blocks end where the row does; what lies beyond `elements` is decoded and not packed.
            let whole = (start + DECODED).min(cols) - start;
            let inner = DECODED.min(elements.end - start);
            for (r, row) in decoded.chunks_exact_mut(DECODED).enumerate() {
                stored.read((first + r) * cols + start, &mut row[..whole]);
            }
            let strided = Strided { data: &decoded, outer: DECODED, inner: 1 };
            // SAFETY: `Isa::best` found the instructions.
            unsafe { pack(to, strided, 0, count, 0..inner, words) };
        }
    }

    /// Panels of stored columns from `first` on.
    fn across(
        &self,
        to: &mut [u32],
        (stored, cols): (Elements, usize),
        first: usize,
        elements: Range<usize>,
        words: Words,
        pack: Pack,
    ) {
        let panel = self.words.len() * self.width;
        let panels = to.len() / panel;
        let last = (first + panels * self.width).min(self.outer.end);
        let block = stored.block();
        let (from, end) = (first / block * block, last.next_multiple_of(block).min(cols));
        let width = end - from;
        let mut decoded = vec![0.0; ROWS * width];
        for (i, start) in elements.clone().step_by(ROWS).enumerate() {
            let rows = ROWS.min(elements.end - start);
            for (r, row) in decoded.chunks_exact_mut(width).take(rows).enumerate() {
                stored.read((start + r) * cols + from, row);
            }
            let strided = Strided { data: &decoded, outer: 1, inner: width };
            let at = i * (ROWS / words.each()) * self.width;
            let some = words.of_elements(rows) * self.width;
            for (p, to) in to.chunks_exact_mut(panel).enumerate() {
                let o = first + p * self.width;
                let count = self.width.min(self.outer.end - o);
                // SAFETY: `Isa::best` found the instructions.
                unsafe { pack(&mut to[at..at + some], strided, o - from, count, 0..rows, words) };
            }
        }
    }
}
