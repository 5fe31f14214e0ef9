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
//! so the micro-kernel sees words whatever the operands are. Where A is plain f32 its elements are the words, and it is read from where it lies
//! unless its lines are whole pages apart.
//!
//! Every element of C is a sum over `k` in order, in blocks of `KC` words, each block in one fused chain. Neither
//! tiles nor threads nor the width of vectors take part in that: any number of threads gives the same bits, and so do
//! AVX-512 and AVX2 (not the portable kernel, which has no fused multiply-add, and not bf16 with and without AVX512-BF16).

use crate::blocks::Blocks;
use crate::vectorise;
use isa::Isa;
use pack::{Source, Strided, Words};
use tiles::{C, Job, Part};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
mod pack;
mod portable;
mod right;
mod screen;
mod tiles;

pub(crate) use right::Right;
pub use screen::Screen;

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

/// A matrix that is multiplied.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// In f32, with any strides.
    Mat(Mat<'a>),
    /// As it is stored.
    Weight(Weight<'a>),
}

impl<'a> From<Mat<'a>> for Operand<'a> {
    fn from(mat: Mat<'a>) -> Self {
        Operand::Mat(mat)
    }
}

impl<'a> From<Weight<'a>> for Operand<'a> {
    fn from(weight: Weight<'a>) -> Self {
        Operand::Weight(weight)
    }
}

impl Operand<'_> {
    fn t(self) -> Self {
        match self {
            Operand::Mat(mat) => Operand::Mat(mat.t()),
            Operand::Weight(weight) => Operand::Weight(weight.t()),
        }
    }
}

/// Where a product goes and how: `c = alpha a b` or, with `accumulate`, `c += alpha a b`.
#[derive(Clone, Copy)]
pub struct Product {
    /// Distance between rows of `c`.
    pub c_row: usize,
    /// Whether to add to `c`.
    pub accumulate: bool,
    /// The operand.
    pub alpha: f32,
    /// Threads.
    pub threads: Threads,
    /// What is multiplied in.
    pub precision: Precision,
}

impl Product {
    /// By all threads, `alpha` 1, to rows of `c` without gaps.
    pub fn whole(c_row: usize, accumulate: bool, precision: Precision) -> Self {
        Product { c_row, accumulate, alpha: 1.0, threads: Threads::All, precision }
    }
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
/// If a slice is too short for its matrix, or a weight has another shape.
pub fn multiply<'a>(
    size: (usize, usize, usize),
    c: &mut [f32],
    product: Product,
    a: Mat<'a>,
    b: impl Into<Operand<'a>>,
) {
    run(Isa::best(), size, c, product, a.into(), b.into());
}

/// What is its own of one of several products that have an operand in common.
pub struct Own<'a> {
    /// The other operand.
    pub operand: Operand<'a>,
    /// Its rows where it stands on the left, its columns where on the right.
    pub size: usize,
    /// The result, row-major without gaps.
    pub c: &'a mut [f32],
    /// Whether to add to `c`.
    pub accumulate: bool,
}

/// `c_i (+)= a b_i` for one `a` `[m, k]` and `b_i` `[k, size_i]`: to the bit what one product after the other gives, but `a` is packed once
/// and threads meet once.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_by_each(a: Mat, (m, k): (usize, usize), each: Vec<Own>, precision: Precision) {
    together(Isa::best(), each, a, (m, k), precision, Common::Left);
}

/// `c_i (+)= a_i b` for `a_i` `[size_i, k]` and one `b` `[k, n]`; as [`multiply_by_each`].
///
/// # Panics
/// As [`multiply`].
pub fn multiply_each_by(each: Vec<Own>, b: Mat, (n, k): (usize, usize), precision: Precision) {
    together(Isa::best(), each, b, (n, k), precision, Common::Right);
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

fn run(isa: &Isa, (m, n, k): (usize, usize, usize), c: &mut [f32], product: Product, a: Operand, b: Operand) {
    let Product { c_row, accumulate: add, alpha, threads, precision } = product;
    if m == 0 || n == 0 {
        return;
    }
    let to = C::of(c, (m, n), c_row);
    if k == 0 {
        if !add {
            c.chunks_mut(c_row).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let (a, b) = (Source::rows(a, m, k), Source::rows(b.t(), n, k));
    let job = Job { isa, k, words: Words::of(precision, isa.pairs), alpha, threads };
    // A plain B along whose columns `k` runs would have to be transposed; as the left operand of the transposed product
    // it is read from where it lies, and A is packed in its stead, if that is less.
    let lies_along = b.in_place(job.words).is_some_and(|b| b.inner == 1);
    if (isa.nr..n).contains(&m) && lies_along {
        job.run(&[Part { rows: n, a: b, c: to.t(), add }], a, m);
    } else {
        job.run(&[Part { rows: m, a, c: to, add }], b, n);
    }
}

/// On which side the common operand of several products stands.
#[derive(Clone, Copy, PartialEq)]
enum Common {
    Left,
    Right,
}

/// Products with the operand `common`, which has `n` rows or columns. On the left it is the right one of the transposed products.
fn together<'a>(
    isa: &Isa,
    each: Vec<Own<'a>>,
    common: Mat,
    (n, k): (usize, usize),
    precision: Precision,
    side: Common,
) {
    // So few rows do not fill a panel of B.
    let few = side == Common::Left && n < isa.nr;
    if few || n == 0 || k == 0 {
        for Own { operand, size, c, accumulate } in each {
            let (shape, c_row, a, b) = match side {
                Common::Left => ((n, size, k), size, common.into(), operand),
                Common::Right => ((size, n, k), n, operand, common.into()),
            };
            run(isa, shape, c, Product::whole(c_row, accumulate, precision), a, b);
        }
        return;
    }
    let part = |Own { operand, size, c, accumulate: add }: Own<'a>| {
        let (operand, c) = match side {
            Common::Left => (operand.t(), C::of(c, (n, size), size).t()),
            Common::Right => (operand, C::of(c, (size, n), n)),
        };
        Part { rows: size, a: Source::rows(operand, size, k), c, add }
    };
    let parts: Vec<Part> = each.into_iter().filter(|own| own.size > 0).map(part).collect();
    let rows = if side == Common::Left { common } else { common.t() };
    Job::whole(isa, k, precision).run(&parts, Source::rows(rows.into(), n, k), n);
}

#[cfg(test)]
mod tests;
