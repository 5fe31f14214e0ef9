//! Packing: operands into panels of words.

use std::ops::Range;

use rayon::prelude::*;

use super::tiles::end;
use super::{Elements, Operand, Precision, Weight};

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

/// What a panel `[words, P]` is made of: rows (or columns) of a matrix, and for each the same elements of `k`.
pub(super) struct Panel<'a> {
    pub from: Strided<'a>,
    /// The first row (or column).
    pub first: usize,
    /// How many, up to P; the other places are 0.
    pub count: usize,
    /// Elements of `k`.
    pub elements: Range<usize>,
    pub words: Words,
}

impl<'a> Panel<'a> {
    /// Up to `n` elements of the `p`-th row from element `start` on, where they are contiguous.
    #[inline(always)]
    pub fn along(&self, p: usize, start: usize, n: usize) -> &'a [f32] {
        let n = n.min(self.elements.end - start);
        &self.from.data[(self.first + p) * self.from.outer + start..][..n]
    }

    /// Element `i` of all rows, where these are contiguous.
    #[inline(always)]
    pub fn across(&self, i: usize) -> &'a [f32] {
        &self.from.data[i * self.from.inner + self.first..][..self.count]
    }
}

/// Writes a panel.
///
/// # Safety
/// The processor has the instructions; panels and elements are checked.
pub(super) type Pack = unsafe fn(&mut [u32], &Panel);

/// [`Pack`] for panels of `P`, one element after another: the twin of the vectorised ones.
pub(super) fn pack<const P: usize>(to: &mut [u32], panel: &Panel) {
    let &Panel { from, first, count, ref elements, words } = panel;
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

/// Writes (or with `add` adds) the rows of a panel of B of f32, `[channels, NR]`, to `[rows, channels]`; there are up to NR rows.
///
/// # Safety
/// The processor has the instructions; sizes are checked.
pub(super) type Unpack = unsafe fn(&mut [f32], &[f32], usize, bool);

/// [`Unpack`] for panels of any width, one element after another: the twin of the vectorised one.
pub(super) fn unpack(y: &mut [f32], panel: &[f32], (channels, width): (usize, usize), add: bool) {
    /// Channels at a time: a cache line of each row.
    const LINE: usize = 16;
    for (i, from) in panel[..channels * width].chunks(LINE * width).enumerate() {
        let line = i * LINE..i * LINE + from.len() / width;
        for (r, y) in y.chunks_exact_mut(channels).enumerate() {
            for (y, from) in y[line.clone()].iter_mut().zip(from.chunks_exact(width)) {
                *y = if add { *y + from[r] } else { from[r] };
            }
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

/// Floats of a page, and of one way of a first-level cache.
const PAGE: usize = 1024;
/// Elements that are decoded at a time along stored rows: a multiple of every block.
const DECODED: usize = 1024;
/// Stored rows that are decoded at a time where `k` runs across them.
const ROWS: usize = 64;

impl<'a> Source<'a> {
    /// The elements, if they are the words and lie so that they can be read as they are: with lines whole pages apart, as rows of 1,024 or of
    /// 49,152 channels have them, all rows of a panel would want the same few places of the first-level cache.
    pub fn in_place(self, words: Words) -> Option<Strided<'a>> {
        match self {
            Source::Plain(from)
                if words == Words::F32 && !from.outer.max(from.inner).is_multiple_of(PAGE) =>
            {
                Some(from)
            }
            _ => None,
        }
    }

    /// The rows of a factor, `[rows, k]`, neither of them 0.
    pub fn rows(of: Operand<'a>, rows: usize, k: usize) -> Self {
        match of {
            Operand::Mat(mat) => {
                assert!(end(rows, k, mat.row, mat.col) <= mat.data.len(), "gemm: a factor is too short");
                Source::Plain(Strided { data: mat.data, outer: mat.row, inner: mat.col })
            }
            Operand::Weight(Weight { elements, cols, transposed }) => {
                let stored = if transposed { (k, rows) } else { (rows, k) };
                assert!(
                    cols == stored.1 && elements.len() >= stored.0 * cols,
                    "gemm: the weight has another shape"
                );
                assert!(cols.is_multiple_of(elements.block()), "gemm: the weight's rows are no whole blocks");
                match elements {
                    Elements::F32(data) => {
                        let (outer, inner) = if transposed { (1, cols) } else { (cols, 1) };
                        Source::Plain(Strided { data, outer, inner })
                    }
                    elements => Source::Stored { elements, cols, along: !transposed },
                }
            }
        }
    }
}

/// A part of an operand in panels, `[panels, words, width]`.
pub(super) struct Packed {
    /// P.
    pub width: usize,
    /// Rows (or columns).
    pub outer: Range<usize>,
    /// Elements of `k`.
    pub elements: Range<usize>,
    pub words: Words,
    pub pack: Pack,
}

impl Packed {
    /// Fills `to`.
    pub fn fill(&self, to: &mut [u32], from: &Source, parallel: bool) {
        let panel = self.words.of_elements(self.elements.len()) * self.width;
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
                Source::Plain(from) => self.panel(to, from, first, first, self.elements.clone()),
                Source::Stored { elements, cols, along: true } => self.along(to, (elements, cols), first),
                Source::Stored { elements, cols, along: false } => {
                    self.across(to, (elements, cols), first, panel);
                }
            }
        };
        if parallel {
            to.par_chunks_mut(together * panel).enumerate().with_max_len(1).for_each(unit);
        } else {
            to.chunks_mut(together * panel).enumerate().for_each(unit);
        }
    }

    /// The panel of the rows (or columns) from `outer` on, which in `from` begin with `first`.
    fn panel(&self, to: &mut [u32], from: Strided, first: usize, outer: usize, elements: Range<usize>) {
        let count = self.width.min(self.outer.end - outer);
        let panel = Panel { from, first, count, elements, words: self.words };
        // SAFETY: `Isa::best` found the instructions.
        unsafe { (self.pack)(to, &panel) };
    }

    /// A panel of stored rows from `first` on.
    fn along(&self, to: &mut [u32], (stored, cols): (Elements, usize), first: usize) {
        let count = self.width.min(self.outer.end - first);
        let mut decoded = vec![0.0; count * DECODED];
        let step = DECODED / self.words.each() * self.width;
        for (start, to) in self.elements.clone().step_by(DECODED).zip(to.chunks_mut(step)) {
            // Blocks end where the row does; what lies beyond `elements` is decoded and not packed.
            let whole = (start + DECODED).min(cols) - start;
            for (r, row) in decoded.chunks_exact_mut(DECODED).enumerate() {
                stored.read((first + r) * cols + start, &mut row[..whole]);
            }
            let from = Strided { data: &decoded, outer: DECODED, inner: 1 };
            self.panel(to, from, 0, first, 0..DECODED.min(self.elements.end - start));
        }
    }

    /// Panels, each of `panel` words, of stored columns from `first` on.
    fn across(&self, to: &mut [u32], (stored, cols): (Elements, usize), first: usize, panel: usize) {
        let last = (first + to.len() / panel * self.width).min(self.outer.end);
        let block = stored.block();
        let (left, right) = (first / block * block, last.next_multiple_of(block).min(cols));
        let width = right - left;
        let mut decoded = vec![0.0; ROWS * width];
        for (i, start) in self.elements.clone().step_by(ROWS).enumerate() {
            let rows = ROWS.min(self.elements.end - start);
            for (r, row) in decoded.chunks_exact_mut(width).take(rows).enumerate() {
                stored.read((start + r) * cols + left, row);
            }
            let from = Strided { data: &decoded, outer: 1, inner: width };
            let at = i * (ROWS / self.words.each()) * self.width;
            let some = self.words.of_elements(rows) * self.width;
            for (p, to) in to.chunks_exact_mut(panel).enumerate() {
                let outer = first + p * self.width;
                self.panel(&mut to[at..at + some], from, outer - left, outer, 0..rows);
            }
        }
    }
}
