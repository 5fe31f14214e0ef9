//! Attention: forward and tangent.

use super::{Block, Layout, Shape, Task, blocks, place, run, tasks};
use crate::buffer::Buffer;
use crate::simd::{dispatch, exp, max, sum_by};

/// Turns scores into probabilities in place (zero where unseen); returns each row's log-sum-exp in two parts: the
/// largest score, and the log of the sum of exponentials of the rest of each. Their sum would round the second off.
pub(super) fn softmax(p: &mut [f32], block: &Block, window: Option<usize>) -> Vec<[f32; 2]> {
    p.chunks_exact_mut(block.columns())
        .enumerate()
        .map(|(r, p)| {
            let seen = block.seen(r, window);
            p[..seen.start].fill(0.0);
            p[seen.end..].fill(0.0);
            let p = &mut p[seen];
            dispatch(|| {
                let top = max(p);
                p.iter_mut().for_each(|p| *p = exp(*p - top));
                let total = sum_by(p.len(), |i| p[i]);
                let inverse = 1.0 / total;
                p.iter_mut().for_each(|p| *p *= inverse);
                [top, total.ln()]
            })
        })
        .collect()
}

/// Writes `o` (`[T, H, D]`) and the log-sum-exp of the scores `lse` (`[T, H, 2]`: maximum, and log of the sum of
/// exponentials relative to it).
pub fn forward(
    o: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let results = run(&tasks, |task| {
        let (d, heads) = (shape.head_dim, shape.per_kv());
        let (mut o, mut lse) = (Buffer::new(task.rows * heads * d), Buffer::new(task.rows * heads * 2));
        let mut p = Vec::new();
        for block in task.segments.iter().flat_map(blocks) {
            p.resize(block.rows * block.columns(), 0.0);
            let row = block.row - task.first;
            for (i, head) in task.heads().enumerate() {
                task.products(&mut p, &block, false, shape.scale, task.query(q, &block, head), k);
                for (r, value) in softmax(&mut p, &block, shape.window).into_iter().enumerate() {
                    let at = 2 * ((row + r) * heads + i);
                    lse[at..at + 2].copy_from_slice(&value);
                }
                task.mix(&mut o[(row * heads + i) * d..], heads * d, &block, false, 1.0, &p, v);
            }
        }
        (o, lse)
    });
    place(o, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * shape.head_dim);
    place(lse, &tasks, results.iter().map(|r| &r.1[..]), shape.per_kv() * 2);
}

/// Writes `p = softmax` and its tangent `t_p = p (t_s - sum p t_s)`, `t_s = scale (t_q k^T + q t_k^T)`.
#[allow(clippy::too_many_arguments)]
pub(super) fn probabilities_with_tangent(
    task: &Task,
    block: &Block,
    head: usize,
    (p, t_p): (&mut [f32], &mut [f32]),
    (q, k): (&[f32], &[f32]),
    (t_q, t_k): (&[f32], &[f32]),
    lse: &[f32],
) {
    let scale = task.shape.scale;
    task.probabilities(p, block, q, k, lse, head);
    task.products(t_p, block, false, scale, task.query(t_q, block, head), k);
    task.products(t_p, block, true, scale, task.query(q, block, head), t_k);
    let width = block.columns();
    dispatch(|| {
        for (p, t) in p.chunks_exact(width).zip(t_p.chunks_exact_mut(width)) {
            let mean = sum_by(width, |i| p[i] * t[i]);
            for i in 0..width {
                t[i] = p[i] * (t[i] - mean);
            }
        }
    });
}

/// Writes `t_o = t_p v + p t_v` (`[T, H, D]`).
#[allow(clippy::too_many_arguments)]
pub fn tangent(
    t_o: &mut [f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    (t_q, t_k, t_v): (&[f32], &[f32], &[f32]),
    lse: &[f32],
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let results = run(&tasks, |task| {
        let (d, heads) = (shape.head_dim, shape.per_kv());
        let mut t_o = Buffer::new(task.rows * heads * d);
        let (mut p, mut t_p) = (Vec::new(), Vec::new());
        for block in task.segments.iter().flat_map(blocks) {
            p.resize(block.rows * block.columns(), 0.0);
            t_p.resize(block.rows * block.columns(), 0.0);
            for (i, head) in task.heads().enumerate() {
                probabilities_with_tangent(task, &block, head, (&mut p, &mut t_p), (q, k), (t_q, t_k), lse);
                let out = &mut t_o[((block.row - task.first) * heads + i) * d..];
                task.mix(out, heads * d, &block, false, 1.0, &t_p, v);
                task.mix(out, heads * d, &block, true, 1.0, &p, t_v);
            }
        }
        t_o
    });
    place(t_o, &tasks, results.iter().map(|r| &r[..]), shape.per_kv() * shape.head_dim);
}
