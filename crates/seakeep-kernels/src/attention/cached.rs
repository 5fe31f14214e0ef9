//! The forward pass of generation: new rows of many texts over their key/value caches. A text's cache is two
//! spans: what it shares with others (its prompt, which its samples have in common) and its own.
//!
//! A row's result depends on its own text alone, bit for bit.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::forward::softmax;
use super::{Segment, Shape, Task, blocks};
use crate::buffer::Buffer;
use crate::simd::{exp, max, sum_by};

/// Keys and values of successive positions, each `[len, J, D]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span<'a> {
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// One text of a generation step: its new query rows, and its key/value cache.
pub struct Cached<'a> {
    /// First of the new rows in `q` and `o`.
    pub row: usize,
    /// New rows.
    pub rows: usize,
    /// The positions so far: the shared ones, then the text's own, the new rows' included.
    pub spans: [Span<'a>; 2],
}

/// Writes `o` (`[T, H, D]`) for the new rows of every text. The texts are in the order of their rows.
pub fn cached_forward(o: &mut [f32], q: &[f32], texts: &[Cached], shape: Shape) {
    let (row, mut rest, mut at) = (shape.heads * shape.head_dim, o, 0);
    // One new row over a cache, as at every step after the first, is a vector's work; a whole prompt is matrices'.
    let (mut single, mut whole) = (Vec::new(), Vec::new());
    for text in texts {
        let (_, after) = rest.split_at_mut((text.row - at) * row);
        let (mine, after) = after.split_at_mut(text.rows * row);
        (rest, at) = (after, text.row + text.rows);
        if text.spans[0].k.is_empty() && text.rows > 1 {
            whole.push((text, mine));
        } else {
            let width = shape.per_kv() * shape.head_dim;
            single.extend(mine.chunks_mut(width).enumerate().map(|(i, o)| (text, i, o)));
        }
    }
    single.into_par_iter().for_each_init(Vec::new, |scores, (text, i, o)| {
        let (r, kv) = (i / shape.kv_heads, i % shape.kv_heads);
        let q = &q[((text.row + r) * shape.kv_heads + kv) * o.len()..][..o.len()];
        let hidden = text.rows - 1 - r;
        pulp::Arch::new().dispatch(Row { o, q, spans: text.spans, hidden, kv, shape, scores });
    });
    for (text, o) in whole {
        matrices(o, q, text, shape);
    }
}

/// One new row of a text: the query heads of one key/value head.
struct Row<'a> {
    /// `[H / J, D]`
    o: &'a mut [f32],
    /// `[H / J, D]`
    q: &'a [f32],
    spans: [Span<'a>; 2],
    /// Positions at the end that the row does not see.
    hidden: usize,
    kv: usize,
    shape: Shape,
    scores: &'a mut Vec<f32>,
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Shape { kv_heads, head_dim, scale, window, .. } = self.shape;
        let step = kv_heads * head_dim;
        let len = (self.spans[0].k.len() + self.spans[1].k.len()) / step - self.hidden;
        let first = len - window.unwrap_or(len).min(len);
        // The seen rows of each span.
        let cut = self.spans[0].k.len() / step;
        let seen = [first.min(cut)..cut, first.max(cut) - cut..len - cut];
        let at = |row: usize| row * step + self.kv * head_dim;
        for (q, o) in self.q.chunks_exact(head_dim).zip(self.o.chunks_exact_mut(head_dim)) {
            self.scores.clear();
            for (span, seen) in self.spans.iter().zip(&seen) {
                for row in seen.clone() {
                    self.scores.push(dot(simd, q, &span.k[at(row)..at(row) + head_dim]) * scale);
                }
            }
            let p = &mut self.scores[..];
            let top = max(p);
            p.iter_mut().for_each(|p| *p = exp(*p - top));
            let inverse = 1.0 / sum_by(p.len(), |i| p[i]);
            o.fill(0.0);
            let mut p = &p[..];
            for (span, seen) in self.spans.iter().zip(&seen) {
                let (now, later) = p.split_at(seen.len());
                p = later;
                mix(simd, o, now, span.v, at(seen.start), step);
            }
            o.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// `sum a_i b_i` of vectors of the same length.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let mut sum = simd.splat_f32s(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = simd.mul_add_e_f32s(*a, *b, sum);
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + tail
}

/// `o += sum p_j v_j`, rows of `v` `step` apart from `at` on; four at a time, so that `o` is read and written a
/// quarter as often.
#[inline(always)]
fn mix<S: Simd>(simd: S, o: &mut [f32], p: &[f32], v: &[f32], at: usize, step: usize) {
    const ROWS: usize = 4;
    let d = o.len();
    let (o, o_tail) = S::as_mut_simd_f32s(o);
    for (i, p) in p.chunks(ROWS).enumerate() {
        // A row beyond the last counts nothing and is read from the first.
        let weight = |r: usize| p.get(r).copied().unwrap_or(0.0);
        let row = |r: usize| {
            let start = at + (i * ROWS + if r < p.len() { r } else { 0 }) * step;
            S::as_simd_f32s(&v[start..start + d])
        };
        let rows: [_; ROWS] = std::array::from_fn(row);
        let splat: [_; ROWS] = std::array::from_fn(|r| simd.splat_f32s(weight(r)));
        for (c, o) in o.iter_mut().enumerate() {
            for (p, row) in splat.iter().zip(&rows) {
                *o = simd.mul_add_e_f32s(*p, row.0[c], *o);
            }
        }
        for (c, o) in o_tail.iter_mut().enumerate() {
            for (r, row) in rows.iter().enumerate() {
                *o += weight(r) * row.1[c];
            }
        }
    }
}

/// Many new rows of a text that shares nothing: matrix products over blocks of rows, heads in parallel.
fn matrices(o: &mut [f32], q: &[f32], text: &Cached, shape: Shape) {
    let (d, per_kv, [_, own]) = (shape.head_dim, shape.per_kv(), text.spans);
    let past = own.k.len() / (shape.kv_heads * d) - text.rows;
    // The cache as one text: the past is the context, the new rows follow it.
    let segment = Segment { start: past, len: text.rows, context: 0..past };
    let results: Vec<Buffer> = (0..shape.kv_heads)
        .into_par_iter()
        .map(|kv| {
            let task = Task { shape, segments: &[], first: past, rows: text.rows, kv };
            let mut o = Buffer::scratch(text.rows * per_kv * d);
            for block in blocks(&segment, shape) {
                let mut p = Buffer::scratch(block.scores() * block.columns());
                let q = task.rows(q, text.row + block.row - past, &block);
                task.products(&mut p, &block, false, shape.scale, &q, own.k);
                softmax(&mut p, &block, shape.window);
                task.mix(task.part(&mut o, &block), &block, false, 1.0, &p, own.v);
            }
            o
        })
        .collect();
    for (kv, result) in results.iter().enumerate() {
        for (r, row) in result.chunks_exact(per_kv * d).enumerate() {
            let at = (r * shape.heads + kv * per_kv) * d;
            o[at..at + per_kv * d].copy_from_slice(row);
        }
    }
}
