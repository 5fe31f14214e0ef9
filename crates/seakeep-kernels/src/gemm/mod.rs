//! Matrix products: operands packed into panels, a micro-kernel for each instruction set, in f32 or in bf16 with f32
//! sums.
//!
//! ```text
//!            n                    B packed: [panel of NR columns][words][NR]
//!         +-----+
//!       k |  B  |                 A packed: [panel of MR rows][words][MR], or where it lies
//!    k    +-----+
//!  +---+  +-----+
//! m| A |  |  C  |   tiles of C: TILE_A panels x TILE_B panels, one thread each
//!  +---+  +-----+
//! ```
//!
//! A *word* is what the micro-kernel takes of one row (or column) at a time: an f32, or in [`Precision::Bf16`] on a
//! processor with AVX512-BF16 two consecutive values rounded to bf16. Packing transposes, rounds and dequantises,
//! so the micro-kernel sees words whatever the operands are. Where A is plain f32 its elements are the words, and it is read from where it lies.
//!
//! Every element of C is a sum over `k` in order, in blocks of `KC` words, each block in one fused chain. Neither
//! tiles nor threads nor the width of vectors take part in that: any number of threads gives the same bits, and so do
//! AVX-512 and AVX2 (not the portable kernel, which has no fused multiply-add, and not bf16 with and without AVX512-BF16).

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::blocks::Blocks;
use crate::vectorise;
use isa::{Isa, Side, Tile};
use pack::{Packed, Source, Strided, Words};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
mod pack;
mod portable;

/// Words of `k` that one call of the micro-kernel sums: a tile's panels of B fit the second-level cache, and C is read and
/// written once for each block (once in all for products of 576 channels or 512 rows).
const KC: usize = 576;
/// Words of `k` that are packed at a time: a multiple of `KC` and of the largest block of a quantised type.
const KB: usize = 12 * KC;
/// Words of packed A and of packed B at a time.
const PACKED: usize = 6 << 20;
/// Most panels of A and of B in a tile of C: few enough that threads share a layer's product evenly.
const TILE: (usize, usize) = (3, 4);
/// Below this many multiplications threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

/// A matrix inside a slice: element `(r, c)` is `data[r * row + c * col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix whose rows are `row` elements apart.
    pub fn new(data: &'a [f32], row: usize) -> Self {
        Mat { data, row, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Mat { row: self.col, col: self.row, ..self }
    }
}

/// How many threads a product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for products inside a parallel loop.
    One,
    /// All of rayon's current pool.
    All,
}

/// What products are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// Both operands rounded to bf16 (to nearest, ties to even), sums in f32. Everything but products stays in f32, as
    /// under PyTorch's autocast. Where the processor has no such instruction the values are rounded all the same and
    /// multiplied in f32.
    Bf16,
}

/// A weight `[rows, cols]` as it is stored.
#[derive(Clone, Copy)]
pub enum Elements<'a> {
    /// f32, row-major.
    F32(&'a [f32]),
    /// bf16, row-major.
    Bf16(&'a [half::bf16]),
    /// Quantised in blocks along rows.
    Blocks(&'a Blocks),
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(data: &'a [f32]) -> Self {
        Elements::F32(data)
    }
}

impl Elements<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Elements::F32(data) => data.len(),
            Elements::Bf16(data) => data.len(),
            Elements::Blocks(blocks) => blocks.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the elements from `first` on, in f32. For quantised ones both ends must be those of a block.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        match self {
            Elements::F32(data) => out.copy_from_slice(&data[first..first + out.len()]),
            Elements::Bf16(data) => {
                vectorise!(for (o, x) in out.iter_mut().zip(&data[first..]) {
                    *o = f32::from_bits(u32::from(x.to_bits()) << 16);
                });
            }
            Elements::Blocks(blocks) => blocks.read(first, out),
        }
    }

    /// Elements that belong together: a row's length must be a multiple of it.
    fn block(&self) -> usize {
        match self {
            Elements::F32(_) | Elements::Bf16(_) => 1,
            Elements::Blocks(blocks) => blocks.block(),
        }
    }
}

/// A weight as the right operand of a product, `[rows, cols]` row-major, perhaps transposed.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    elements: Elements<'a>,
    cols: usize,
    transposed: bool,
}

impl<'a> Weight<'a> {
    /// `[.., cols]`, row-major.
    pub fn new(elements: impl Into<Elements<'a>>, cols: usize) -> Self {
        Weight { elements: elements.into(), cols, transposed: false }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Weight { transposed: !self.transposed, ..self }
    }
}

/// The right operand.
#[derive(Clone, Copy)]
enum Right<'a> {
    Mat(Mat<'a>),
    Weight(Weight<'a>),
}

/// Where a product goes and how: `c = alpha a b` or, with `accumulate`, `c += alpha a b`.
#[derive(Clone, Copy)]
pub struct Product {
    /// Distance between rows of `c`.
    pub c_row: usize,
    /// Whether to add to `c`.
    pub accumulate: bool,
    /// The factor.
    pub alpha: f32,
    /// Threads.
    pub threads: Threads,
    /// What is multiplied in.
    pub precision: Precision,
}

/// `c = alpha a b` or, with `accumulate`, `c += alpha a b`, in f32; `a` is `[m, k]`, `b` is `[k, n]`, `c` is `[m, n]`
/// row-major with rows `c_row` apart.
///
/// # Panics
/// If a slice is too short for its matrix.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    size: (usize, usize, usize),
    c: &mut [f32],
    c_row: usize,
    accumulate: bool,
    alpha: f32,
    a: Mat,
    b: Mat,
    threads: Threads,
) {
    let product = Product { c_row, accumulate, alpha, threads, precision: Precision::F32 };
    multiply(size, c, product, a, b);
}

/// `c (+)= alpha a b` for `a` `[m, k]` and `b` `[k, n]`, sizes given as `(m, n, k)`.
///
/// # Panics
/// If a slice is too short for its matrix.
pub fn multiply(size: (usize, usize, usize), c: &mut [f32], product: Product, a: Mat, b: Mat) {
    run(Isa::best(), size, c, product, a, Right::Mat(b));
}

/// [`multiply`] by a weight in whatever form it is stored.
///
/// # Panics
/// If a slice is too short for its matrix.
pub fn multiply_weight(size: (usize, usize, usize), c: &mut [f32], product: Product, a: Mat, b: Weight) {
    run(Isa::best(), size, c, product, a, Right::Weight(b));
}

/// Writes rows `x` (`[rows, channels]`) as a panel `[channels, width]`, other places 0.
pub(crate) fn pack_panel(panel: &mut [f32], x: &[f32], (channels, width): (usize, usize)) {
    let (isa, rows) = (Isa::best(), x.len() / channels);
    assert!(panel.len() == channels * width && rows <= width, "a panel holds its rows");
    if isa.nr == width {
        let from = Strided { data: x, outer: channels, inner: 1 };
        let from = pack::Panel { from, first: 0, count: rows, elements: 0..channels, words: Words::F32 };
        // SAFETY: `Isa::best` found the instructions.
        return unsafe { (isa.pack_b)(bytemuck::cast_slice_mut(panel), &from) };
    }
    if rows < width {
        panel.fill(0.0);
    }
    for (r, x) in x.chunks_exact(channels).enumerate() {
        panel.chunks_exact_mut(width).zip(x).for_each(|(to, x)| to[r] = *x);
    }
}

/// The reverse of [`pack_panel`]; with `add` adds to `x`.
pub(crate) fn unpack_panel(x: &mut [f32], panel: &[f32], (channels, width): (usize, usize), add: bool) {
    let isa = Isa::best();
    assert!(panel.len() == channels * width && x.len() <= channels * width, "a panel holds its rows");
    match isa.unpack {
        // SAFETY: `Isa::best` found the instructions.
        Some(unpack) if isa.nr == width => unsafe { unpack(x, panel, channels, add) },
        _ => pack::unpack(x, panel, (channels, width), add),
    }
}

/// The instruction set that products use here, and whether bf16 is multiplied as such.
pub fn instruction_set() -> (&'static str, bool) {
    (Isa::best().name, Isa::best().pairs)
}

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

fn run(isa: &Isa, (m, n, k): (usize, usize, usize), c: &mut [f32], product: Product, a: Mat, b: Right) {
    let Product { c_row, accumulate, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    // Operands are read through pointers: a product of strides that wraps must not pass.
    let end = |rows: usize, cols: usize, row: usize, col: usize| {
        let last = (rows - 1).checked_mul(row).zip((cols - 1).checked_mul(col));
        last.and_then(|(row, col)| row.checked_add(col)?.checked_add(1)).expect("gemm: strides are too large")
    };
    assert!(end(m, n, c_row, 1) <= c.len(), "gemm: c too short");
    assert!(n <= c_row || m == 1, "gemm: rows of c overlap");
    if k == 0 {
        if !accumulate {
            c.chunks_mut(c_row).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    assert!(end(m, k, a.row, a.col) <= a.data.len(), "gemm: a too short");
    let a = Source::rows(a);
    let b = match b {
        Right::Mat(b) => {
            assert!(end(k, n, b.row, b.col) <= b.data.len(), "gemm: b too short");
            Source::columns(b)
        }
        Right::Weight(w) => {
            let (rows, cols) = if w.transposed { (n, k) } else { (k, n) };
            assert!(w.cols == cols && w.elements.len() >= rows * cols, "gemm: the weight has another shape");
            assert!(cols.is_multiple_of(w.elements.block()), "gemm: the weight's rows are no whole blocks");
            Source::weight(w)
        }
    };
    let words = Words::of(product.precision, isa.pairs);
    let c = C { at: c.as_mut_ptr(), row: c_row, col: 1 };
    // A plain B along whose columns `k` runs would have to be transposed; as the left operand of the transposed product
    // it is read from where it lies.
    if words == Words::F32 && m >= isa.nr && matches!(b, Source::Plain(Strided { inner: 1, .. })) {
        multiply_sources(isa, (n, m, k), C { row: 1, col: c_row, ..c }, product, words, (b, a));
    } else {
        multiply_sources(isa, (m, n, k), c, product, words, (a, b));
    }
}

/// [`run`] with everything checked.
fn multiply_sources(
    isa: &Isa,
    (m, n, k): (usize, usize, usize),
    c: C,
    product: Product,
    words: Words,
    (a, b): (Source, Source),
) {
    let Product { accumulate, alpha, threads, .. } = product;
    let parallel = threads == Threads::All && m * n * k >= PARALLEL_FROM && rayon::current_num_threads() > 1;
    let total = words.of_elements(k);
    let elements = |span: &Range<usize>| span.start * words.each()..(span.end * words.each()).min(k);
    let a_lies = a.in_place(words);
    let (mut for_a, mut for_b) = BUFFERS.take();
    for k0 in (0..total).step_by(KB) {
        let span = k0..(k0 + KB).min(total);
        let add = accumulate || k0 > 0;
        // As many whole panels as may be packed at a time.
        let most = |width: usize| (PACKED / (span.len() * width)).max(TILE.1) * width;
        let m_step = if a_lies.is_some() { m } else { most(isa.mr) };
        for m0 in (0..m).step_by(m_step) {
            let rows = m0..(m0 + m_step).min(m);
            let a_panels = match a_lies {
                Some(from) => Left::Lies { from, first: (rows.start, span.start) },
                None => {
                    let at = at_least(&mut for_a, rows.len().div_ceil(isa.mr) * isa.mr * span.len());
                    let (width, pack) = (isa.mr, isa.pack_a);
                    let packed =
                        Packed { width, outer: rows.clone(), elements: elements(&span), words, pack };
                    packed.fill(at, &a, parallel);
                    Left::Packed(at)
                }
            };
            for n0 in (0..n).step_by(most(isa.nr)) {
                let cols = n0..(n0 + most(isa.nr)).min(n);
                let b_panels = at_least(&mut for_b, cols.len().div_ceil(isa.nr) * isa.nr * span.len());
                let (width, pack) = (isa.nr, isa.pack_b);
                let packed = Packed { width, outer: cols.clone(), elements: elements(&span), words, pack };
                packed.fill(b_panels, &b, parallel);
                let work = Tiles {
                    isa,
                    rows: rows.clone(),
                    cols,
                    words: span.len(),
                    bf16: words == Words::Pairs,
                    a: a_panels,
                    b: b_panels,
                };
                work.run(c, add, alpha, parallel);
            }
        }
    }
    BUFFERS.set((for_a, for_b));
}

/// The product's result; tiles write to parts of it that do not overlap.
#[derive(Clone, Copy)]
struct C {
    at: *mut f32,
    row: usize,
    col: usize,
}

// SAFETY: threads write through it to tiles that do not overlap, while `run` holds the slice borrowed mutably.
unsafe impl Send for C {}
// SAFETY: as above.
unsafe impl Sync for C {}

/// Rows of A as the micro-kernel reads them.
#[derive(Clone, Copy)]
enum Left<'a> {
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

/// Operands, and the part of C that they make.
struct Tiles<'a> {
    isa: &'a Isa,
    rows: Range<usize>,
    cols: Range<usize>,
    words: usize,
    bf16: bool,
    a: Left<'a>,
    /// `[panels][words][NR]`
    b: &'a [u32],
}

impl Tiles<'_> {
    fn run(&self, c: C, add: bool, alpha: f32, parallel: bool) {
        let panels = (self.rows.len().div_ceil(self.isa.mr), self.cols.len().div_ceil(self.isa.nr));
        let grid = (panels.0.div_ceil(TILE.0), panels.1.div_ceil(TILE.1));
        // Tiles of nearly one size: the last thread to finish is waited for.
        let cut = |panels: usize, of: usize, i: usize| panels * i / of..panels * (i + 1) / of;
        let tile = |t: usize| {
            self.tile(cut(panels.0, grid.0, t % grid.0), cut(panels.1, grid.1, t / grid.0), c, add, alpha);
        };
        if parallel {
            (0..grid.0 * grid.1).into_par_iter().with_max_len(1).for_each(tile);
        } else {
            (0..grid.0 * grid.1).for_each(tile);
        }
    }

    /// A panel of A from word `w0` on.
    fn left(&self, panel: usize, w0: usize) -> Side {
        let mr = self.isa.mr;
        match self.a {
            Left::Packed(a) => Side { at: a[(panel * self.words + w0) * mr..].as_ptr(), outer: 1, inner: mr },
            Left::Lies { from: Strided { data, outer, inner }, first } => {
                let at = (first.0 + panel * mr) * outer + (first.1 + w0) * inner;
                Side { at: data[at..].as_ptr().cast(), outer, inner }
            }
        }
    }

    /// The tile of C that these panels of A and of B make.
    fn tile(&self, a_panels: Range<usize>, b_panels: Range<usize>, c: C, add: bool, alpha: f32) {
        let Isa { mr, nr, .. } = *self.isa;
        let kernel = if self.bf16 { self.isa.kernel_bf16 } else { self.isa.kernel_f32 };
        for w0 in (0..self.words).step_by(KC) {
            let words = KC.min(self.words - w0);
            for i in a_panels.clone() {
                let (row, a) = (self.rows.start + i * mr, self.left(i, w0));
                for j in b_panels.clone() {
                    let col = self.cols.start + j * nr;
                    let b = &self.b[(j * self.words + w0) * nr..][..words * nr];
                    let (rows, cols) = (mr.min(self.rows.end - row), nr.min(self.cols.end - col));
                    // SAFETY: `rows` and `cols` from (row, col) on lie in C, whose length `run` checked, and in
                    // this tile alone; the panels hold `words` words of these rows, as `run` checked of what is not
                    // packed; `Isa::best` found the instructions.
                    unsafe {
                        let at = c.at.add(row * c.row + col * c.col);
                        let add = add || w0 > 0;
                        kernel(
                            words,
                            a,
                            b.as_ptr(),
                            Tile { c: at, c_row: c.row, c_col: c.col, rows, cols, add, alpha },
                        );
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
