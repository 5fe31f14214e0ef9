//! What one thread works on, and how: scores of a block of query rows with a piece of the columns at a time, so that they stay in
//! the second-level cache however long the text is.
//!
//! ```text
//!              columns (positions of the text)
//!            | piece  | piece  | piece |
//!   block    | seen   | seen   |\      |     rows: query rows x the G heads that share keys
//!   block    | seen   | seen   | seen\ |     pieces begin at multiples of PIECE, wherever the block lies
//! ```
//!
//! Keys and values are packed once for all blocks of a task. What the causal mask hides is left out by panels of the
//! micro-kernel, and within these is 0 in the probabilities.

use std::ops::Range;

use rayon::prelude::*;

use super::{Layout, Segment, Shape};
use crate::buffer::Buffer;
use crate::gemm::{Mat, Right};
use crate::simd::{LANES, dot, exp};
use crate::vectorise;

/// Rows of scores per block: query rows times query heads.
const BLOCK: usize = 126;
/// Columns of a piece.
const PIECE: usize = 384;
/// A long segment is cut into so many tasks (one text has as many besides as it has key/value heads), ...
const TASKS: usize = 4;
/// ... each of no less than so many rows on average: each packs the keys anew, and has gradients of them of its own.
const ROWS: usize = 128;

/// Some rows of a segment, for one key/value head.
pub(super) struct Task<'a> {
    pub shape: Shape,
    segment: &'a Segment,
    /// Index of the segment's group.
    group: usize,
    /// Its rows: of all rows of the batch.
    rows: Range<usize>,
    kv: usize,
}

/// The tasks of a batch in the order of their rows, key/value heads within.
pub(super) fn tasks(layout: &Layout, shape: Shape) -> Vec<Task<'_>> {
    let mut tasks = Vec::new();
    for (group, of_group) in layout.groups.iter().enumerate() {
        let segments = &layout.segments[of_group.clone()];
        for segment in segments {
            let first = &segments[0];
            let together = segment.opening == first.opening && segment.opening.end <= first.start;
            debug_assert!(together, "the segments of a group have one opening, before it");
            for rows in cut(segment, shape) {
                tasks.extend((0..shape.kv_heads).map(|kv| Task {
                    shape,
                    segment,
                    group,
                    rows: rows.clone(),
                    kv,
                }));
            }
        }
    }
    tasks
}

/// Cuts a segment's rows into parts that see about as many columns in all.
fn cut(segment: &Segment, shape: Shape) -> impl Iterator<Item = Range<usize>> {
    let (len, before) = (segment.len, (segment.columns() - segment.len) as f64);
    let count = (len / ROWS).clamp(1, TASKS);
    // The first `r` rows see `before r + r^2 / 2` columns: solved for `r`, in whole blocks.
    let all = len as f64 * (before + len as f64 / 2.0);
    let end = move |i: usize| match i {
        i if i == count => len,
        i => {
            let r = (before * before + 2.0 * all * i as f64 / count as f64).sqrt() - before;
            (r as usize / shape.block() * shape.block()).min(len)
        }
    };
    (0..count)
        .map(move |i| segment.start + end(i)..segment.start + end(i + 1))
        .filter(|rows| !rows.is_empty())
}

/// Runs every task in parallel; results in order of tasks.
pub(super) fn run<'a, R: Send>(
    tasks: &'a [Task<'a>],
    each: impl Fn(&'a Task<'a>) -> R + Sync + Send,
) -> Vec<R> {
    tasks.par_iter().with_max_len(1).map(each).collect()
}

/// A block of query rows. Of each row it has the `G` heads of its task, one after another: `S` rows of scores in all.
pub(super) struct Block {
    /// First query row.
    row: usize,
    rows: usize,
    /// `G`
    heads: usize,
    /// Position of the first query row.
    position: usize,
    window: Option<usize>,
}

/// Columns whose scores are made together.
pub(super) struct Piece {
    /// Its place among the text's pieces.
    pub index: usize,
    /// Whether it is the block's first.
    pub first: bool,
    /// The columns: a piece of the text, up to the block's last row.
    pub columns: Range<usize>,
}

impl Block {
    /// `S`
    pub fn scores(&self) -> usize {
        self.rows * self.heads
    }

    /// The columns (= positions) that row `s` of the scores sees.
    #[inline(always)]
    fn seen(&self, s: usize) -> Range<usize> {
        let end = self.position + s / self.heads + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }

    /// The pieces that any row sees.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        let (from, to) = (self.seen(0).start, self.position + self.rows);
        (from / PIECE..to.div_ceil(PIECE)).map(move |index| {
            let columns = index * PIECE..to.min((index + 1) * PIECE);
            Piece { index, first: index == from / PIECE, columns }
        })
    }

    /// Rows of scores as the micro-kernel takes them: the first, how many, and how many of a piece's columns they see: the first so many, but for
    /// a window.
    fn panels(&self, piece: &Piece) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.scores()).step_by(Right::rows()).map(|first| {
            let rows = Right::rows().min(self.scores() - first);
            let end = self.seen(first + rows - 1).end;
            (first, rows, end.clamp(piece.columns.start, piece.columns.end) - piece.columns.start)
        })
    }

    /// Sets what row `s` does not see of a piece.
    #[inline(always)]
    pub fn hide(&self, piece: &Piece, s: usize, row: &mut [f32], value: f32) {
        let (seen, first) = (self.seen(s), piece.columns.start);
        row[..seen.start.saturating_sub(first).min(piece.columns.len())].fill(value);
        row[seen.end.saturating_sub(first).min(piece.columns.len())..].fill(value);
    }
}

impl Piece {
    /// Elements of a row of scores: whole vectors, so that loops along them have no rest.
    pub fn width(&self) -> usize {
        self.columns.len().next_multiple_of(LANES)
    }
}

impl Task<'_> {
    /// Its rows by blocks.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let (shape, rows) = (self.shape, self.rows.clone());
        let (start, before) = (self.segment.start, self.segment.columns() - self.segment.len);
        rows.clone().step_by(shape.block()).map(move |row| Block {
            row,
            rows: shape.block().min(rows.end - row),
            heads: shape.per_kv(),
            position: before + row - start,
            window: shape.window,
        })
    }

    /// Columns that any row of the task sees, or could: from the text's first.
    fn columns(&self) -> usize {
        self.segment.columns() - self.segment.len + (self.rows.end - self.segment.start)
    }

    /// Distance between rows of scores. An odd number of cache lines: rows whole pages apart would want the same few places of the
    /// first-level cache.
    pub fn width(&self) -> usize {
        self.columns().min(PIECE).next_multiple_of(LANES) + LANES / 2
    }

    /// A buffer for a block's scores with a piece.
    pub fn scores(&self) -> Buffer {
        Buffer::scratch(self.shape.block() * self.shape.per_kv() * self.width())
    }

    /// A buffer for the task's own rows, `[rows, G, channels]`.
    pub fn own(&self, channels: usize) -> Buffer {
        Buffer::scratch(self.rows.len() * self.shape.per_kv() * channels)
    }

    /// The part of such a buffer that belongs to the block, `[S, channels]`.
    pub fn part<'m>(&self, own: &'m mut [f32], block: &Block, channels: usize) -> &'m mut [f32] {
        &mut own[(block.row - self.rows.start) * block.heads * channels..][..block.scores() * channels]
    }

    /// The block's rows of the task's query heads in a `[T, H, channels]` buffer, `[S, channels]`.
    pub fn queries(&self, x: &[f32], block: &Block, channels: usize) -> Buffer {
        let (width, row) = (block.heads * channels, self.shape.heads * channels);
        let mut out = Buffer::new(block.rows * width, width);
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            out.copy_from_slice(&x[(block.row + r) * row + self.kv * width..][..width]);
        }
        out
    }

    /// `a b` of each of the block's query rows and heads, `[S]`; both are `[T, H, D]`.
    pub fn dots(&self, a: &[f32], b: &[f32], block: &Block) -> Vec<f32> {
        let Shape { heads, head_dim: d, .. } = self.shape;
        let row = |r: usize| {
            let at = ((block.row + r / block.heads) * heads + self.kv * block.heads + r % block.heads) * d;
            dot(&a[at..at + d], &b[at..at + d])
        };
        vectorise!((0..block.scores()).map(row).collect())
    }

    /// The columns' rows of the task's head in a `[T, J, D]` buffer of keys or values, in order of position, `[columns, D]`. Sums over
    /// them then do not depend on where they lay: a text has the same bits whatever it shares with others.
    pub fn keys(&self, x: &[f32]) -> Buffer {
        let Shape { kv_heads, head_dim: d, .. } = self.shape;
        let mut out = Buffer::new(self.columns() * d, d);
        for (out, row) in out.chunks_exact_mut(d).zip(self.segment.spans().into_iter().flatten()) {
            out.copy_from_slice(&x[(row * kv_heads + self.kv) * d..][..d]);
        }
        out
    }

    /// [Gathered](Self::keys) rows as right operands, by pieces: `[columns, D]`, to be [mixed](Self::mix).
    pub fn rows_of(&self, keys: &[f32]) -> Vec<Right> {
        keys.chunks(PIECE * self.shape.head_dim).map(|rows| self.right(rows)).collect()
    }

    /// Their transposes, `[D, columns]`, for [`products`](Self::products).
    pub fn columns_of(&self, keys: &[f32]) -> Vec<Right> {
        let d = self.shape.head_dim;
        let piece = |rows: &[f32]| Right::new(Mat::new(rows, d).t(), (d, rows.len() / d));
        keys.chunks(PIECE * d).map(piece).collect()
    }

    /// A block's rows, `[S, D]`, as a right operand, to be [spread](Self::spread).
    pub fn right(&self, a: &[f32]) -> Right {
        let d = self.shape.head_dim;
        Right::new(Mat::new(a, d), (a.len() / d, d))
    }

    /// `s[S, columns] (+)= alpha a k^T` for a piece, where panels of rows see it (the rest is left as it was); `a` is `[S, D]`.
    pub fn products(
        &self,
        s: &mut [f32],
        (block, piece): (&Block, &Piece),
        (add, alpha): (bool, f32),
        a: &[f32],
        k: &[Right],
    ) {
        let (width, d) = (self.width(), self.shape.head_dim);
        for (first, rows, n) in block.panels(piece) {
            let (s, a) = (&mut s[first * width..], Mat::new(&a[first * d..], d));
            k[piece.index].multiply((rows, n, 0..d), s, width, (add, alpha), a);
        }
    }

    /// `o[S, D] (+)= alpha s v` for a piece.
    pub fn mix(
        &self,
        o: &mut [f32],
        (block, piece): (&Block, &Piece),
        (add, alpha): (bool, f32),
        s: &[f32],
        v: &[Right],
    ) {
        let (width, d) = (self.width(), self.shape.head_dim);
        for (first, rows, seen) in block.panels(piece) {
            let (o, s) = (&mut o[first * d..], Mat::new(&s[first * width..], width));
            v[piece.index].multiply((rows, d, 0..seen), o, d, (add, alpha), s);
        }
    }

    /// `d_k[columns, D] += alpha s^T a` for a piece; `d_k` is of all columns of the task, `a` is `[S, D]`.
    pub fn spread(
        &self,
        d_k: &mut [f32],
        (block, piece): (&Block, &Piece),
        alpha: f32,
        s: &[f32],
        a: &Right,
    ) {
        let (width, d) = (self.width(), self.shape.head_dim);
        for first in piece.columns.clone().step_by(Right::rows()) {
            let columns = Right::rows().min(piece.columns.end - first);
            // The rows from the first on that sees any of these columns.
            let from = first.saturating_sub(block.position) * block.heads;
            let s = Mat::new(&s[from * width + first - piece.columns.start..], width).t();
            a.multiply((columns, d, from..block.scores()), &mut d_k[first * d..], d, (true, alpha), s);
        }
    }

    /// The block's probabilities for a piece from its queries `q`, `[S, D]`, and the saved log-sum-exp (`lse` is the block's, `[S, 2]`); zero where
    /// unseen.
    pub fn probabilities(
        &self,
        p: &mut [f32],
        (block, piece): (&Block, &Piece),
        q: &[f32],
        k: &[Right],
        lse: &[f32],
    ) {
        self.products(p, (block, piece), (false, self.shape.scale), q, k);
        vectorise!({
            for (s, (p, lse)) in p.chunks_exact_mut(self.width()).zip(lse.chunks_exact(2)).enumerate() {
                let (p, top, log_total) = (&mut p[..piece.width()], lse[0], lse[1]);
                block.hide(piece, s, p, f32::NEG_INFINITY);
                p.iter_mut().for_each(|p| *p = exp((*p - top) - log_total));
            }
        });
    }

    /// `t_s = scale (t_q k^T + q t_k^T)` for a piece, 0 where unseen.
    pub fn score_tangents(
        &self,
        t_s: &mut [f32],
        at: (&Block, &Piece),
        (q, t_q): (&[f32], &[f32]),
        (k, t_k): (&[Right], &[Right]),
    ) {
        self.products(t_s, at, (false, self.shape.scale), t_q, k);
        self.products(t_s, at, (true, self.shape.scale), q, t_k);
        self.clear(t_s, at);
    }

    /// Sets to 0 what rows do not see of a piece.
    pub fn clear(&self, s: &mut [f32], (block, piece): (&Block, &Piece)) {
        for (r, s) in s.chunks_exact_mut(self.width()).take(block.scores()).enumerate() {
            block.hide(piece, r, &mut s[..piece.width()], 0.0);
        }
    }

    /// Zeros for the gradients of the keys of all columns, `[columns, D]`.
    pub fn key_gradients(&self) -> Buffer {
        Buffer::zeros(self.columns() * self.shape.head_dim, self.shape.head_dim)
    }
}

/// Copies each task's `[rows, width]` result into its columns of `out` (`[T, total]`).
pub(super) fn place<'r>(
    out: &mut [f32],
    tasks: &[Task],
    results: impl Iterator<Item = &'r [f32]>,
    width: usize,
) {
    let results: Vec<&[f32]> = results.collect();
    let Some(kv_heads) = tasks.first().map(|task| task.shape.kv_heads) else { return };
    // The heads of some rows follow each other, and so do the rows.
    let (mut rest, mut parts) = (out, Vec::new());
    for (of_rows, results) in tasks.chunks(kv_heads).zip(results.chunks(kv_heads)) {
        let (mine, after) = rest.split_at_mut(of_rows[0].rows.len() * kv_heads * width);
        parts.push((mine, results));
        rest = after;
    }
    debug_assert!(rest.is_empty(), "tasks cover all rows: what they leave out would stay as it was");
    parts.into_par_iter().for_each(|(out, results)| {
        for (r, row) in out.chunks_exact_mut(kv_heads * width).enumerate() {
            for (out, result) in row.chunks_exact_mut(width).zip(results) {
                out.copy_from_slice(&result[r * width..(r + 1) * width]);
            }
        }
    });
}

/// Writes to `out` (`[T, J, D]`) the sums of the tasks' [`key_gradients`](Task::key_gradients): of each group those of its own rows, in the order of
/// tasks; then adds what tasks have for their openings, in their order.
pub(super) fn place_keys<'r>(out: &mut [f32], tasks: &[Task], results: impl Iterator<Item = &'r [f32]>) {
    let results: Vec<&[f32]> = results.collect();
    let Some(&Shape { kv_heads, head_dim: d, .. }) = tasks.first().map(|task| &task.shape) else { return };
    let add = |out: &mut [f32], first: usize, kv: usize, rows: Range<usize>, from: &[f32]| {
        for (row, from) in rows.zip(from.chunks_exact(d)) {
            let to = &mut out[((row - first) * kv_heads + kv) * d..][..d];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    };
    let (mut rest, mut after, mut groups) = (&mut *out, &results[..], Vec::new());
    for tasks in tasks.chunk_by(|a, b| a.group == b.group) {
        let rows = tasks[0].rows.start..tasks.last().map_or(0, |task| task.rows.end);
        let (mine, others) = rest.split_at_mut(rows.len() * kv_heads * d);
        let (of_group, of_others) = after.split_at(tasks.len());
        groups.push((mine, rows.start, tasks, of_group));
        (rest, after) = (others, of_others);
    }
    debug_assert!(rest.is_empty(), "groups cover all rows: what they leave out would stay as it was");
    groups.into_par_iter().for_each(|(out, first, tasks, results)| {
        out.fill(0.0);
        for (task, result) in tasks.iter().zip(results) {
            let [opening, context, own] = task.segment.spans();
            let (of_context, of_own) = result[opening.len() * d..].split_at(context.len() * d);
            add(out, first, task.kv, context, of_context);
            add(out, first, task.kv, own, of_own);
        }
    });
    for (task, result) in tasks.iter().zip(&results) {
        add(out, 0, task.kv, task.segment.opening.clone(), result);
    }
}

impl Shape {
    /// Query rows per block.
    fn block(&self) -> usize {
        (BLOCK / self.per_kv()).clamp(16, 64)
    }
}
