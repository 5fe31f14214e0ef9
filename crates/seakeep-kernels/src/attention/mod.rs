//! Causal attention with grouped key/value heads over a flat batch of segments:
//! `o = softmax(scale q k^T) v`; `q`, `o` are `[T, H, D]`, `k`, `v` are `[T, J, D]`.
//!
//! A *segment* is a run of rows that follow each other in one text. It attends to itself causally and, if
//! it continues a prompt, to all of the prompt's rows (its *context*). So the prompt of a preference pair
//! is computed once and both completions look back at it:
//!
//! ```text
//! rows     | prompt ......... | chosen ... | rejected .... |
//! keys of a chosen row:  the whole prompt, and chosen up to itself
//! keys of a rejected row: the whole prompt, and rejected up to itself
//! ```
//!
//! Where all texts of a batch begin with the same tokens (a chat template's system prompt), those stand once too,
//! before everything else: the *opening* that the segments of every group look back at.
//!
//! A *group* is the segments that share keys (one pair); its rows are contiguous. Work is done by
//! (group, key/value head), so every gradient is summed by one thread in a fixed order; what groups add to the
//! gradients of the opening they keep apart, and it is added in the order of groups. Queries are taken
//! in blocks of rows, of all the heads that share keys: a block's products are as large as may be. Memory is linear in
//! the length, and no pass stores probabilities; the backward passes recompute them from the saved log-sum-exp.

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::gemm::{Mat, Threads, gemm};
use crate::simd::{LANES, exp};
use crate::vectorise;

mod backward;
mod cached;
mod forward;

pub use backward::{backward, curvature};
pub use cached::{Cache, Cached, cached_forward};
pub use forward::{forward, tangent};

/// Rows of scores per block: query rows times query heads.
const BLOCK: usize = 96;

/// Sizes that all heads share.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `J`; query head `h` uses key/value head `h / (H / J)`.
    pub kv_heads: usize,
    /// Channels of a head, `D`.
    pub head_dim: usize,
    /// Factor on the scores, usually `D^(-1/2)`.
    pub scale: f32,
    /// Sliding window: a row sees at most this many positions, itself included.
    pub window: Option<usize>,
}

impl Shape {
    /// Query heads per key/value head, `G`.
    fn per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Query rows per block: few enough that not much is computed which a causal row does not see.
    fn block(&self) -> usize {
        (BLOCK / self.per_kv()).clamp(16, 64)
    }
}

/// A run of rows of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Rows that its text begins with and that other groups share. Empty, or all of a segment before its group.
    pub opening: Range<usize>,
    /// Rows of the text between the opening and where the segment continues, in its own group. Empty if it starts there.
    pub context: Range<usize>,
}

/// The segments of a flat batch, and which of them share keys.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// In order of rows; a segment's context lies before it in the same group, an opening before the group. The segments of a
    /// group have the same opening.
    pub segments: Vec<Segment>,
    /// Ranges of `segments`, in order, together all of them; they cover all rows.
    pub groups: Vec<Range<usize>>,
}

/// One (group, key/value head): what one thread works on.
struct Task<'a> {
    shape: Shape,
    segments: &'a [Segment],
    /// First row and number of rows of the group.
    first: usize,
    rows: usize,
    kv: usize,
}

/// A block of query rows of one segment. Of each row it has the `G` heads of its task, one after another: `S` rows of scores in all.
struct Block {
    /// First query row.
    row: usize,
    rows: usize,
    /// `G`
    heads: usize,
    /// Position of the first query row.
    position: usize,
}

impl Block {
    /// `S`
    fn scores(&self) -> usize {
        self.rows * self.heads
    }

    /// Key columns of the block, seen or not: every position of the text up to its last row.
    fn columns(&self) -> usize {
        self.position + self.rows
    }

    /// Distance between rows of scores: whole vectors, so that loops along them have no rest.
    fn width(&self) -> usize {
        self.columns().next_multiple_of(LANES)
    }

    /// A buffer for scores, `[S, width]`.
    fn buffer(&self) -> Buffer {
        Buffer::scratch(self.scores() * self.width())
    }

    /// The columns (= positions) that row `s` of the scores sees.
    #[inline(always)]
    fn seen(&self, s: usize, window: Option<usize>) -> Range<usize> {
        let end = self.position + s / self.heads + 1;
        end.saturating_sub(window.unwrap_or(end))..end
    }

    /// Takes what row `s` does not see out of its scores `p`: the exponential is 0.
    fn hide(&self, s: usize, p: &mut [f32], window: Option<usize>) {
        let seen = self.seen(s, window);
        p[..seen.start].fill(f32::NEG_INFINITY);
        p[seen.end..].fill(f32::NEG_INFINITY);
    }
}

impl Segment {
    /// Rows of its text up to its last, in order of position.
    fn spans(&self) -> [Range<usize>; 3] {
        [self.opening.clone(), self.context.clone(), self.start..self.start + self.len]
    }

    /// Rows of its text up to its last.
    fn columns(&self) -> usize {
        self.opening.len() + self.context.len() + self.len
    }

    fn blocks(&self, shape: Shape) -> impl Iterator<Item = Block> {
        (0..self.len).step_by(shape.block()).map(move |i| Block {
            row: self.start + i,
            rows: shape.block().min(self.len - i),
            heads: shape.per_kv(),
            position: self.columns() - self.len + i,
        })
    }
}

/// The tasks of a batch, groups in order, heads within.
fn tasks(layout: &Layout, shape: Shape) -> Vec<Task<'_>> {
    let of_group = |group: &Range<usize>| {
        let segments = &layout.segments[group.clone()];
        let first = segments.first().map_or(0, |s| s.start);
        let rows = segments.last().map_or(0, |s| s.start + s.len) - first;
        let together = |s: &Segment| s.opening == segments[0].opening && s.opening.end <= first;
        debug_assert!(segments.iter().all(together), "the segments of a group have one opening, before it");
        (0..shape.kv_heads).map(move |kv| Task { shape, segments, first, rows, kv })
    };
    layout.groups.iter().flat_map(of_group).collect()
}

/// Runs every task in parallel; results in order of tasks.
fn run<'a, R: Send>(tasks: &'a [Task<'a>], each: impl Fn(&'a Task<'a>) -> R + Sync + Send) -> Vec<R> {
    tasks.par_iter().with_max_len(1).map(each).collect()
}

impl Task<'_> {
    /// What the group's texts begin with, outside of it.
    fn opening(&self) -> Range<usize> {
        self.segments.first().map_or(0..0, |segment| segment.opening.clone())
    }

    /// The block's rows of the task's query heads in a `[T, H, D]` buffer, `[S, D]`.
    fn queries(&self, x: &[f32], block: &Block) -> Buffer {
        let Shape { heads, head_dim, .. } = self.shape;
        let (width, row) = (block.heads * head_dim, heads * head_dim);
        let mut out = Buffer::new(block.rows * width, width);
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            out.copy_from_slice(&x[(block.row + r) * row + self.kv * width..][..width]);
        }
        out
    }

    /// Key or value rows of a segment's text in a `[T, J, D]` buffer, in order of position, `[columns, D]`. Sums over them then do
    /// not depend on where they lay: a text has the same bits whatever it shares with others.
    fn keys(&self, x: &[f32], segment: &Segment) -> Buffer {
        let Shape { kv_heads, head_dim: d, .. } = self.shape;
        let mut out = Buffer::new(segment.columns() * d, d);
        for (out, row) in out.chunks_exact_mut(d).zip(segment.spans().into_iter().flatten()) {
            out.copy_from_slice(&x[(row * kv_heads + self.kv) * d..][..d]);
        }
        out
    }

    /// `s[S, columns] (+)= alpha a k^T` over the block's key columns, 0 beyond; `a` is `[S, D]`.
    fn products(&self, s: &mut [f32], block: &Block, add: bool, alpha: f32, a: &[f32], k: &[f32]) {
        let (width, d) = (block.width(), self.shape.head_dim);
        s.chunks_exact_mut(width).for_each(|s| s[block.columns()..].fill(0.0));
        let size = (block.scores(), block.columns(), d);
        gemm(size, s, width, add, alpha, Mat::new(a, d), Mat::new(k, d).t(), Threads::One);
    }

    /// `o[S, D] (+)= alpha s v`.
    fn mix(&self, o: &mut [f32], block: &Block, add: bool, alpha: f32, s: &[f32], v: &[f32]) {
        let (width, d) = (block.width(), self.shape.head_dim);
        let size = (block.scores(), d, block.columns());
        gemm(size, o, d, add, alpha, Mat::new(s, width), Mat::new(v, d), Threads::One);
    }

    /// `d_k[columns, D] += alpha s^T a`; `a` is `[S, D]`.
    fn spread(&self, d_k: &mut [f32], block: &Block, alpha: f32, s: &[f32], a: &[f32]) {
        let (width, d) = (block.width(), self.shape.head_dim);
        let size = (block.columns(), d, block.scores());
        gemm(size, d_k, d, true, alpha, Mat::new(s, width).t(), Mat::new(a, d), Threads::One);
    }

    /// Adds gradients of a segment's keys, `[columns, D]`, to those of the group's rows and then of its opening,
    /// `[rows + opening, D]`.
    fn scatter(&self, to: &mut [f32], segment: &Segment, from: &[f32]) {
        let d = self.shape.head_dim;
        for (from, row) in from.chunks_exact(d).zip(segment.spans().into_iter().flatten()) {
            let at = row.checked_sub(self.first).unwrap_or(self.rows + row - self.opening().start);
            to[at * d..][..d].iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }

    /// Zeros for [`scatter`](Self::scatter).
    fn key_gradients(&self) -> Buffer {
        let d = self.shape.head_dim;
        Buffer::zeros((self.rows + self.opening().len()) * d, d)
    }

    /// The block's probabilities from its queries `q`, `[S, D]`, and the saved log-sum-exp (`lse` is `[T, H, 2]`); zero where
    /// unseen.
    fn probabilities(&self, p: &mut [f32], block: &Block, q: &[f32], k: &[f32], lse: &[f32]) {
        self.products(p, block, false, self.shape.scale, q, k);
        for (s, p) in p.chunks_exact_mut(block.width()).enumerate() {
            block.hide(s, p, self.shape.window);
            let (row, head) = (block.row + s / block.heads, self.kv * block.heads + s % block.heads);
            let at = 2 * (row * self.shape.heads + head);
            let (top, log_total) = (lse[at], lse[at + 1]);
            vectorise!(p.iter_mut().for_each(|p| *p = exp((*p - top) - log_total)));
        }
    }

    /// The part of a `[group rows, G, D]` buffer of this task alone that belongs to the block, `[S, D]`.
    fn part<'m>(&self, x: &'m mut [f32], block: &Block) -> &'m mut [f32] {
        let d = self.shape.head_dim;
        &mut x[(block.row - self.first) * block.heads * d..][..block.scores() * d]
    }
}

/// Copies each task's `[group rows, width]` result into its columns of `out` (`[T, total]`).
fn place<'r>(out: &mut [f32], tasks: &[Task], results: impl Iterator<Item = &'r [f32]>, width: usize) {
    let results: Vec<&[f32]> = results.collect();
    let Some(kv_heads) = tasks.first().map(|task| task.shape.kv_heads) else { return };
    // The heads of a group follow each other, and so do the rows of groups.
    let (mut rest, mut groups) = (out, Vec::new());
    for (group, results) in tasks.chunks(kv_heads).zip(results.chunks(kv_heads)) {
        let (mine, after) = rest.split_at_mut(group[0].rows * kv_heads * width);
        groups.push((mine, results));
        rest = after;
    }
    debug_assert!(rest.is_empty(), "groups cover all rows: what they leave out would stay as it was");
    groups.into_par_iter().for_each(|(out, results)| {
        for (r, row) in out.chunks_exact_mut(kv_heads * width).enumerate() {
            for (out, result) in row.chunks_exact_mut(width).zip(results) {
                out.copy_from_slice(&result[r * width..(r + 1) * width]);
            }
        }
    });
}

/// [`place`] of [`key_gradients`](Task::key_gradients); then adds what groups have for their openings, in the order of groups.
fn place_keys<'r>(out: &mut [f32], tasks: &[Task], results: impl Iterator<Item = &'r [f32]> + Clone) {
    let Some(&Shape { kv_heads, head_dim: d, .. }) = tasks.first().map(|task| &task.shape) else { return };
    place(out, tasks, results.clone(), d);
    for (task, result) in tasks.iter().zip(results) {
        for (row, from) in task.opening().zip(result[task.rows * d..].chunks_exact(d)) {
            let to = &mut out[(row * kv_heads + task.kv) * d..][..d];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}

#[cfg(test)]
mod tests;
