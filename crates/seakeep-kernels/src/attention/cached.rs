//! The forward pass of generation: new rows of many texts over their key/value caches. A text's cache is a list of
//! stretches, the last its own, the others shared: a beginning that all prompts have in common, a prompt that its samples
//! have in common.
//!
//! A row's result depends on its own text alone, bit for bit, and neither on how the text was cut into stretches nor on
//! how many rows came at a time: a score is one sum over channels in order, an output one sum over positions in order.
//!
//! Legend: G query heads of a key/value head, S rows of scores (new rows of a task x G).

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::Shape;
use crate::simd::{Prefetch, exp, max, prefetch, sum_by};

/// Positions of a block, and channels of a line: a cache line of floats.
const LINE: usize = 16;
/// New rows of a text that one task computes together.
const ROWS: usize = 16;
/// Queries that are multiplied at a time.
const TILE: usize = 4;

/// Keys and values of successive positions, in blocks of 16 positions: reading them, which is most of the time of a step,
/// goes through memory in order. Keys are `[block, J, D, 16]`, so that a vector holds the same channel of 16 positions and a
/// score needs no sum across a vector; values are `[block, J, lines, 16 positions, 16 channels]`.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    len: usize,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Lines of a head's values: the last is filled up with zeros.
fn lines(shape: Shape) -> usize {
    shape.head_dim.div_ceil(LINE)
}

/// Floats of a block of keys, and of values, for one head.
fn block(shape: Shape) -> [usize; 2] {
    [shape.head_dim * LINE, lines(shape) * LINE * LINE]
}

impl Cache {
    /// An empty one for the same heads that takes `positions` without moving in memory.
    pub fn after(&self, positions: usize) -> Self {
        let blocks = self.len.div_ceil(LINE).max(1);
        let room = |all: &Vec<f32>| Vec::with_capacity(positions.div_ceil(LINE) * (all.len() / blocks));
        Cache { len: 0, k: room(&self.k), v: room(&self.v) }
    }

    /// Positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends positions: `k` and `v` are `[positions, J, D]`.
    fn push(&mut self, k: &[f32], v: &[f32], shape: Shape) {
        let Shape { kv_heads, head_dim, .. } = shape;
        let [of_k, of_v] = block(shape);
        let rows = k.chunks_exact(kv_heads * head_dim).zip(v.chunks_exact(kv_heads * head_dim));
        for (k, v) in rows {
            let (at, slot) = (self.len / LINE * kv_heads, self.len % LINE);
            self.len += 1;
            self.k.resize((at + kv_heads) * of_k, 0.0);
            self.v.resize((at + kv_heads) * of_v, 0.0);
            for (j, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                let to = &mut self.k[(at + j) * of_k..][..of_k];
                to.chunks_exact_mut(LINE).zip(k).for_each(|(to, k)| to[slot] = *k);
                let to = &mut self.v[(at + j) * of_v..][..of_v];
                for (to, v) in to.chunks_exact_mut(LINE * LINE).zip(v.chunks(LINE)) {
                    to[slot * LINE..][..v.len()].copy_from_slice(v);
                }
            }
        }
    }
}

/// One text of a generation step: its new rows, and its key/value cache.
pub struct Cached<'a> {
    /// First of the new rows in `q`, `k`, `v` and `o`.
    pub row: usize,
    /// New rows.
    pub rows: usize,
    /// The shared stretches, in order of positions.
    pub shared: Vec<&'a Cache>,
    /// The text's own, after them; the new rows are appended to it.
    pub own: &'a mut Cache,
}

/// Appends the new rows' keys and values (`[T, J, D]`) to the texts' own caches and writes `o` (`[T, H, D]`) for their
/// queries. The texts are in the order of their rows, which are all rows.
pub fn cached_forward(
    o: &mut [f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    texts: &mut [Cached],
    shape: Shape,
) {
    let of_row = shape.kv_heads * shape.head_dim;
    texts.par_iter_mut().for_each(|text| {
        let new = text.row * of_row..(text.row + text.rows) * of_row;
        text.own.push(&k[new.clone()], &v[new], shape);
    });
    let width = shape.per_kv() * shape.head_dim;
    let mut rest = o.chunks_exact_mut(shape.kv_heads * width);
    let mut tasks = Vec::new();
    for text in &*texts {
        let stretches: Vec<&Cache> = text.shared.iter().copied().chain([&*text.own]).collect();
        let len: usize = stretches.iter().map(|cache| cache.len).sum();
        for first in (0..text.rows).step_by(ROWS) {
            let rows = ROWS.min(text.rows - first);
            let mut of_head: Vec<Vec<&mut [f32]>> = (0..shape.kv_heads).map(|_| Vec::new()).collect();
            for row in rest.by_ref().take(rows) {
                of_head.iter_mut().zip(row.chunks_exact_mut(width)).for_each(|(rows, o)| rows.push(o));
            }
            for (kv, o) in of_head.into_iter().enumerate() {
                let row = text.row + first;
                tasks.push(Task {
                    o,
                    q,
                    row,
                    end: len - text.rows + first + 1,
                    stretches: stretches.clone(),
                    kv,
                    shape,
                });
            }
        }
    }
    tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        pulp::Arch::new().dispatch(Run { task, scratch });
    });
}

/// Some new rows of a text: the query heads of one key/value head.
struct Task<'a> {
    /// Of each new row, `[G, D]`.
    o: Vec<&'a mut [f32]>,
    /// `[T, H, D]`
    q: &'a [f32],
    /// The first of them in `q`.
    row: usize,
    /// Positions that the first row can see; every further row sees one more.
    end: usize,
    stretches: Vec<&'a Cache>,
    kv: usize,
    shape: Shape,
}

#[derive(Default)]
struct Scratch {
    /// `[S, columns]`, a column for each position and some to spare.
    scores: Vec<f32>,
    /// One over the sum of each row's weights, `[S]`.
    inverse: Vec<f32>,
    /// `[S, lines, 16]`
    out: Vec<f32>,
}

struct Run<'a, 's> {
    task: Task<'a>,
    scratch: &'s mut Scratch,
}

impl WithSimd for Run<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.task.run::<S, 1>(simd, self.scratch),
            8 => self.task.run::<S, 2>(simd, self.scratch),
            4 => self.task.run::<S, 4>(simd, self.scratch),
            _ => self.task.run::<S, LINE>(simd, self.scratch),
        }
    }
}

impl Task<'_> {
    /// The positions that row `r` sees.
    fn seen(&self, r: usize) -> Range<usize> {
        let end = self.end + r;
        end.saturating_sub(self.shape.window.unwrap_or(end))..end
    }

    /// The positions that any row sees.
    fn seen_by_any(&self) -> Range<usize> {
        self.seen(0).start..self.seen(self.o.len() - 1).end
    }

    /// The query of row `s` of the scores.
    #[inline(always)]
    fn query(&self, s: usize) -> &[f32] {
        let (d, per_kv) = (self.shape.head_dim, self.shape.per_kv());
        &self.q[((self.row + s / per_kv) * self.shape.heads + self.kv * per_kv + s % per_kv) * d..][..d]
    }

    /// Blocks that any row sees: the stretch, the block's place in it, and the positions seen of those that it begins with and has.
    fn blocks(&self) -> impl Iterator<Item = (&Cache, usize, usize, Range<usize>)> {
        let all = self.seen_by_any();
        let mut first = 0;
        self.stretches.iter().flat_map(move |&cache| {
            let start = first;
            first += cache.len;
            let (all, end) = (all.clone(), first);
            (0..cache.len.div_ceil(LINE)).filter_map(move |b| {
                let at = start + b * LINE;
                let seen = all.start.max(at)..all.end.min(end).min(at + LINE);
                (!seen.is_empty()).then_some((cache, b, at, seen))
            })
        })
    }

    /// With `V` vectors to a line.
    #[inline(always)]
    fn run<S: Simd, const V: usize>(mut self, simd: S, scratch: &mut Scratch) {
        let shape = self.shape;
        let (d, per_kv, lines) = (shape.head_dim, shape.per_kv(), lines(shape));
        let [of_k, of_v] = block(shape);
        let count = self.o.len() * per_kv;
        let all = self.seen_by_any();
        // A block's last columns may lie beyond its stretch: the next stretch overwrites them.
        let columns = all.end + LINE;
        scratch.scores.resize(scratch.scores.len().max(count * columns), 0.0);
        let scores = &mut scratch.scores[..count * columns];

        for (cache, b, at, _) in self.blocks() {
            let k = S::as_simd_f32s(&cache.k[(b * shape.kv_heads + self.kv) * of_k..][..of_k]).0;
            for s in (0..count).step_by(TILE) {
                let to = &mut scores[s * columns + at..];
                match count - s {
                    1 => self.score::<S, V, 1>(simd, s, k, to, columns),
                    2 => self.score::<S, V, 2>(simd, s, k, to, columns),
                    3 => self.score::<S, V, 3>(simd, s, k, to, columns),
                    _ => self.score::<S, V, TILE>(simd, s, k, to, columns),
                }
            }
        }
        scratch.inverse.clear();
        // A loop: a closure handed to an iterator would be compiled for no vectors.
        for (s, p) in scores.chunks_exact_mut(columns).enumerate() {
            let seen = self.seen(s / per_kv);
            let top = max(&p[seen.clone()]);
            // Whole vectors, into the columns to spare.
            for p in &mut p[seen.start..seen.start + seen.len().next_multiple_of(LINE)] {
                *p = exp(*p - top);
            }
            p[all.start..seen.start].fill(0.0);
            p[seen.end..all.end].fill(0.0);
            let p = &p[seen];
            scratch.inverse.push(1.0 / sum_by(p.len(), |i| p[i]));
        }

        scratch.out.clear();
        scratch.out.resize(count * lines * LINE, 0.0);
        for (cache, b, at, seen) in self.blocks() {
            let v = &cache.v[(b * shape.kv_heads + self.kv) * of_v..][..of_v];
            let slots = seen.start - at..seen.end - at;
            for (line, v) in v.chunks_exact(LINE * LINE).enumerate() {
                let v = S::as_simd_f32s(&v[slots.start * LINE..slots.end * LINE]).0;
                let next = after::<S>(v, shape.kv_heads * of_v);
                for s in (0..count).step_by(TILE) {
                    let p = (&scores[s * columns + seen.start..], columns);
                    let out = (&mut scratch.out[(s * lines + line) * LINE..], lines * LINE);
                    match count - s {
                        1 => mix::<S, V, 1>(simd, out, p, v, next),
                        2 => mix::<S, V, 2>(simd, out, p, v, next),
                        3 => mix::<S, V, 3>(simd, out, p, v, next),
                        _ => mix::<S, V, TILE>(simd, out, p, v, next),
                    }
                }
            }
        }
        let outs = scratch.out.chunks_exact(lines * LINE).zip(&scratch.inverse);
        for (o, (out, inverse)) in self.o.iter_mut().flat_map(|o| o.chunks_exact_mut(d)).zip(outs) {
            o.iter_mut().zip(out).for_each(|(o, out)| *o = out * inverse);
        }
    }

    /// Scores of `N` queries from row `s` on with a block of keys; `to` is `[N, 16]` with rows `columns` apart.
    #[inline(always)]
    fn score<S: Simd, const V: usize, const N: usize>(
        &self,
        simd: S,
        s: usize,
        k: &[S::f32s],
        to: &mut [f32],
        columns: usize,
    ) {
        let q: [&[f32]; N] = std::array::from_fn(|n| self.query(s + n));
        let mut sums = [[simd.splat_f32s(0.0); V]; N];
        let next = after::<S>(k, self.shape.kv_heads * block(self.shape)[0]);
        for (d, k) in k.chunks_exact(V).enumerate() {
            prefetch(next.wrapping_add(d * LINE), Prefetch::Second);
            for n in 0..N {
                let q = simd.splat_f32s(q[n][d]);
                for v in 0..V {
                    sums[n][v] = simd.mul_add_e_f32s(q, k[v], sums[n][v]);
                }
            }
        }
        let scale = simd.splat_f32s(self.shape.scale);
        for (n, sums) in sums.iter().enumerate() {
            let to = S::as_mut_simd_f32s(&mut to[n * columns..][..LINE]).0;
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to = simd.mul_f32s(*sum, scale));
        }
    }
}

/// What lies `floats` after the beginning of `from`: the next block of the same head, which is asked for while this one is in use.
/// (A head's part of a block is about a page, and the processor does not read ahead from one page into another.)
#[inline(always)]
fn after<S: Simd>(from: &[S::f32s], floats: usize) -> *const f32 {
    from.as_ptr().cast::<f32>().wrapping_add(floats)
}

/// `out += p v` for `N` rows of probabilities and a line of values, `[positions, 16]`; both come with the distance of their rows.
/// Asks for as much at `next`.
#[inline(always)]
fn mix<S: Simd, const V: usize, const N: usize>(
    simd: S,
    (out, to_next): (&mut [f32], usize),
    (p, columns): (&[f32], usize),
    v: &[S::f32s],
    next: *const f32,
) {
    let p: [&[f32]; N] = std::array::from_fn(|n| &p[n * columns..][..v.len() / V]);
    let mut sums = [[simd.splat_f32s(0.0); V]; N];
    for (n, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(S::as_simd_f32s(&out[n * to_next..][..LINE]).0);
    }
    for (i, v) in v.chunks_exact(V).enumerate() {
        prefetch(next.wrapping_add(i * LINE), Prefetch::Second);
        for n in 0..N {
            let p = simd.splat_f32s(p[n][i]);
            for c in 0..V {
                sums[n][c] = simd.mul_add_e_f32s(p, v[c], sums[n][c]);
            }
        }
    }
    for (n, sums) in sums.iter().enumerate() {
        S::as_mut_simd_f32s(&mut out[n * to_next..][..LINE]).0.copy_from_slice(sums);
    }
}
