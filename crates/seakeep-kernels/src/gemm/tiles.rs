//! Products of sources: packing, and the tiles that threads share.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::isa::{Isa, Side, Tile};
use super::pack::{Packed, Source, Strided, Words};
use super::{Precision, Threads};

/// Words of `k` that one call of the micro-kernel sums: a tile's panels of B fit the second-level cache, and C is read and
/// written once for each block (once in all for products of 576 channels or 512 rows).
const KC: usize = 576;
/// Words of `k` that are packed at a time: a multiple of `KC` and of the largest block of a quantised type.
const KB: usize = 4 * KC;
/// Words of packed A and of packed B at a time. Every thread that asks for products keeps as much.
const PACKED: (usize, usize) = (1 << 20, 2 << 20);
/// Most panels of A and of B in a tile of C: few enough that threads share a layer's product evenly.
const TILE: (usize, usize) = (3, 4);
/// Below this many multiplications threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

thread_local! {
    /// Packed operands of the last product of this thread: memory that is not asked for anew each time. Taken out while in use, because
    /// a thread that waits for others may start another product.
    static BUFFERS: Cell<(Vec<u32>, Vec<u32>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// At least `len` words.
fn at_least(buffer: &mut Vec<u32>, len: usize) -> &mut [u32] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// A product's result; tiles write to parts of it that do not overlap.
#[derive(Clone, Copy)]
pub(super) struct C {
    at: *mut f32,
    row: usize,
    col: usize,
}

// SAFETY: threads write through it to tiles that do not overlap, while the caller of `Job::run` holds the slice borrowed mutably.
unsafe impl Send for C {}
// SAFETY: as above.
unsafe impl Sync for C {}

impl C {
    /// `[m, n]`, neither of them 0, rows `row` apart.
    pub fn of(c: &mut [f32], (m, n): (usize, usize), row: usize) -> Self {
        assert!(end(m, n, row, 1) <= c.len(), "gemm: c too short");
        assert!(n <= row || m == 1, "gemm: rows of c overlap");
        C { at: c.as_mut_ptr(), row, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        C { row: self.col, col: self.row, ..self }
    }
}

/// The elements that a matrix with these strides spans; neither `rows` nor `cols` is 0. Operands are read through pointers: a product of
/// strides that wraps must not pass.
pub(super) fn end(rows: usize, cols: usize, row: usize, col: usize) -> usize {
    let last = (rows - 1).checked_mul(row).zip((cols - 1).checked_mul(col));
    last.and_then(|(row, col)| row.checked_add(col)?.checked_add(1)).expect("gemm: strides are too large")
}

/// `c (+)= alpha a b`: one of several products with the same B.
pub(super) struct Part<'a> {
    /// Of `a` and `c`.
    pub rows: usize,
    pub a: Source<'a>,
    pub c: C,
    /// Whether to add to `c`.
    pub add: bool,
}

/// What several products with the same B have in common besides.
pub(super) struct Job<'a> {
    pub isa: &'a Isa,
    /// Elements that are summed.
    pub k: usize,
    pub words: Words,
    pub alpha: f32,
    pub threads: Threads,
}

impl<'a> Job<'a> {
    /// By all threads, `alpha` 1.
    pub fn whole(isa: &'a Isa, k: usize, precision: Precision) -> Self {
        Job { isa, k, words: Words::of(precision, isa.pairs), alpha: 1.0, threads: Threads::All }
    }

    /// Multiplies by the `n` columns of `b`.
    pub fn run(&self, parts: &[Part], b: Source, n: usize) {
        let &Job { isa, k, words, threads, .. } = self;
        let multiplications = k * n * parts.iter().map(|part| part.rows).sum::<usize>();
        // No gradient is asked for where a weight is frozen: nothing to pack `b` for.
        if multiplications == 0 {
            return;
        }
        let parallel =
            threads == Threads::All && multiplications >= PARALLEL_FROM && rayon::current_num_threads() > 1;
        let total = words.of_elements(k);
        let (mut for_a, mut for_b) = BUFFERS.take();
        for k0 in (0..total).step_by(KB) {
            let span = k0..(k0 + KB).min(total);
            let elements = span.start * words.each()..(span.end * words.each()).min(k);
            // As many whole panels as may be packed at a time.
            let most = |packed: usize, width: usize| (packed / (span.len() * width)).max(TILE.1) * width;
            let (most_rows, most_cols) = (most(PACKED.0, isa.mr), most(PACKED.1, isa.nr));
            for n0 in (0..n).step_by(most_cols) {
                let cols = n0..(n0 + most_cols).min(n);
                let to = at_least(&mut for_b, cols.len().div_ceil(isa.nr) * isa.nr * span.len());
                let (width, pack) = (isa.nr, isa.pack_b);
                let outer = cols.clone();
                Packed { width, outer, elements: elements.clone(), words, pack }.fill(to, &b, parallel);
                let b: &[u32] = to;
                for group in groups(parts, words, isa.mr, most_rows) {
                    let pack = (&span, &elements);
                    let lefts = self.lefts(parts, group, pack, &mut for_a, parallel);
                    let words = span.len();
                    Tiles { job: self, lefts, cols: cols.clone(), words, b, add: k0 > 0 }.run(parallel);
                }
            }
        }
        BUFFERS.set((for_a, for_b));
    }

    /// The rows of some parts as the micro-kernel reads them.
    fn lefts<'p>(
        &self,
        parts: &'p [Part],
        group: Vec<(usize, Range<usize>)>,
        (span, elements): (&Range<usize>, &Range<usize>),
        buffer: &'p mut Vec<u32>,
        parallel: bool,
    ) -> Vec<Left<'p>> {
        let (mr, pack, words) = (self.isa.mr, self.isa.pack_a, self.words);
        let len = |rows: &Range<usize>| rows.len().next_multiple_of(mr) * span.len();
        let packed = group.iter().filter(|(p, _)| parts[*p].a.in_place(words).is_none());
        let mut free = at_least(buffer, packed.map(|(_, rows)| len(rows)).sum());
        let left = |(p, rows): (usize, Range<usize>)| {
            let Part { a, c, add, .. } = &parts[p];
            let a = match a.in_place(words) {
                Some(from) => Form::Lies { from, first: (rows.start, span.start) },
                None => {
                    let (to, rest) = std::mem::take(&mut free).split_at_mut(len(&rows));
                    free = rest;
                    let (outer, elements) = (rows.clone(), elements.clone());
                    Packed { width: mr, outer, elements, words, pack }.fill(to, a, parallel);
                    Form::Packed(to)
                }
            };
            Left { rows, a, c: *c, add: *add }
        };
        group.into_iter().map(left).collect()
    }
}

/// Rows of the parts, by part, in groups that are packed together, of at most `most` rows in panels of `mr` (and `most` whole panels);
/// those that need no packing all in one.
pub(super) fn groups(
    parts: &[Part],
    words: Words,
    mr: usize,
    most: usize,
) -> Vec<Vec<(usize, Range<usize>)>> {
    let (mut groups, mut room) = (vec![Vec::new()], most);
    for (p, part) in parts.iter().enumerate() {
        let in_place = part.a.in_place(words).is_some();
        let mut rest = 0..part.rows;
        while !rest.is_empty() {
            if !in_place && room == 0 {
                groups.push(Vec::new());
                room = most;
            }
            let end = if in_place { rest.end } else { rest.end.min(rest.start + room) };
            room -= if in_place { 0 } else { (end - rest.start).next_multiple_of(mr) };
            groups.last_mut().expect("one at least").push((p, rest.start..end));
            rest.start = end;
        }
    }
    groups
}

/// Rows of a part's A and C.
struct Left<'a> {
    rows: Range<usize>,
    a: Form<'a>,
    c: C,
    add: bool,
}

impl Left<'_> {
    fn panels(&self, mr: usize) -> usize {
        self.rows.len().div_ceil(mr)
    }
}

/// Rows of A as the micro-kernel reads them.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// `[panels][words][MR]`
    Packed(&'a [u32]),
    /// Where they lie, f32 being words: any strides will do. Packing a weight for some hundred rows of activations would be a
    /// tenth of their product.
    Lies {
        from: Strided<'a>,
        /// The first row and the first word.
        first: (usize, usize),
    },
}

/// Cuts panels into `count` parts of nearly one size: the last thread to finish is waited for.
fn evenly(panels: Range<usize>, count: usize) -> impl Iterator<Item = Range<usize>> {
    let (first, len) = (panels.start, panels.len());
    (0..count).map(move |i| first + len * i / count..first + len * (i + 1) / count)
}

/// [`evenly`], into parts of at most `most`.
fn cut(panels: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = panels.len().div_ceil(most);
    evenly(panels, count)
}

/// Operands, and the parts of the results that they make.
struct Tiles<'a> {
    job: &'a Job<'a>,
    lefts: Vec<Left<'a>>,
    cols: Range<usize>,
    words: usize,
    /// `[panels][words][NR]`
    b: &'a [u32],
    /// Whether the results have sums of words before these.
    add: bool,
}

impl Tiles<'_> {
    /// Makes the tiles. Each thread has columns of its own: their panels of B, most of which it has packed itself, then stay in its caches (threads may
    /// be far apart). When it is done with them it takes what another has left.
    fn run(&self, parallel: bool) {
        let Isa { mr, nr, .. } = *self.job.isa;
        let across = 0..self.cols.len().div_ceil(nr);
        let down = || {
            let of_left = |left| cut(0..Left::panels(left, mr), TILE.0).map(move |panels| (left, panels));
            self.lefts.iter().flat_map(of_left)
        };
        let tiles =
            |columns| cut(columns, TILE.1).flat_map(|b| down().map(move |(left, a)| (left, a, b.clone())));
        if !parallel {
            return tiles(across).for_each(|(left, a, b)| self.tile(left, a, b));
        }
        let threads = rayon::current_num_threads();
        let share = |columns| (AtomicUsize::new(0), tiles(columns).collect());
        let shares: Vec<(AtomicUsize, Vec<_>)> = evenly(across, threads).map(share).collect();
        (0..threads).into_par_iter().with_max_len(1).for_each(|t| {
            for (next, tiles) in shares[t..].iter().chain(&shares[..t]) {
                while let Some((left, a, b)) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                    self.tile(left, a.clone(), b.clone());
                }
            }
        });
    }

    /// A panel of A from word `w0` on.
    fn left(&self, left: &Left, panel: usize, w0: usize) -> Side {
        let mr = self.job.isa.mr;
        match left.a {
            Form::Packed(a) => Side { at: a[(panel * self.words + w0) * mr..].as_ptr(), outer: 1, inner: mr },
            Form::Lies { from: Strided { data, outer, inner }, first } => {
                let at = (first.0 + panel * mr) * outer + (first.1 + w0) * inner;
                Side { at: data[at..].as_ptr().cast(), outer, inner }
            }
        }
    }

    /// The tile of C that these panels of A and of B make.
    fn tile(&self, left: &Left, a_panels: Range<usize>, b_panels: Range<usize>) {
        let Job { isa: Isa { mr, nr, .. }, alpha, .. } = *self.job;
        let (&mr, &nr, c) = (mr, nr, left.c);
        let bf16 = self.job.words == Words::Pairs;
        let kernel = if bf16 { self.job.isa.kernel_bf16 } else { self.job.isa.kernel_f32 };
        for w0 in (0..self.words).step_by(KC) {
            let words = KC.min(self.words - w0);
            let add = left.add || self.add || w0 > 0;
            for i in a_panels.clone() {
                let (row, a) = (left.rows.start + i * mr, self.left(left, i, w0));
                for j in b_panels.clone() {
                    let col = self.cols.start + j * nr;
                    let b = &self.b[(j * self.words + w0) * nr..][..words * nr];
                    let (rows, cols) = (mr.min(left.rows.end - row), nr.min(self.cols.end - col));
                    // SAFETY: `rows` and `cols` from (row, col) on lie in C, whose length `C::of` checked, and in
                    // this tile alone; the panels hold `words` words of these rows, as `Source::rows` checked of what is
                    // not packed; `Isa::best` found the instructions.
                    unsafe {
                        let c_at = c.at.add(row * c.row + col * c.col);
                        let tile = Tile { c: c_at, c_row: c.row, c_col: c.col, rows, cols, add, alpha };
                        kernel(words, a, b.as_ptr(), tile);
                    }
                }
            }
        }
    }
}
