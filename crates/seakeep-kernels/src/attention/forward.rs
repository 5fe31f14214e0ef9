//! Attention: forward and tangent.

use super::{Block, Layout, Shape, Task, place, run, tasks};
use crate::buffer::Buffer;
use crate::simd::{exp, max, sum_by};
use crate::vectorise;

/// Turns scores into probabilities in place (zero where unseen); returns each row's log-sum-exp in two parts: the
/// largest score, and the log of the sum of exponentials of the rest of each. Their sum would round the second off.
fn softmax(p: &mut [f32], block: &Block, window: Option<usize>) -> Vec<[f32; 2]> {
    p.chunks_exact_mut(block.width())
        .enumerate()
        .map(|(r, p)| {
            block.hide(r, p, window);
            vectorise!({
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
        let rows = task.rows * shape.per_kv();
        let (mut o, mut lse) = (Buffer::scratch(rows * shape.head_dim), Buffer::scratch(rows * 2));
        for segment in task.segments {
            let [k, v] = [k, v].map(|x| task.keys(x, segment));
            for block in segment.blocks(shape) {
                let mut p = block.buffer();
                task.products(&mut p, &block, false, shape.scale, &task.queries(q, &block), &k);
                let lse = &mut lse[2 * (block.row - task.first) * block.heads..];
                for (lse, value) in lse.chunks_exact_mut(2).zip(softmax(&mut p, &block, shape.window)) {
                    lse.copy_from_slice(&value);
                }
                task.mix(task.part(&mut o, &block), &block, false, 1.0, &p, &v);
            }
        }
        (o, lse)
    });
    place(o, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * shape.head_dim);
    place(lse, &tasks, results.iter().map(|r| &r.1[..]), shape.per_kv() * 2);
}

/// Writes `p = softmax` and its tangent `t_p = p (t_s - sum p t_s)`, `t_s = scale (t_q k^T + q t_k^T)`; queries are the
/// block's, `[S, D]`.
pub(super) fn probabilities_with_tangent(
    task: &Task,
    block: &Block,
    (p, t_p): (&mut [f32], &mut [f32]),
    (q, k): (&[f32], &[f32]),
    (t_q, t_k): (&[f32], &[f32]),
    lse: &[f32],
) {
    let scale = task.shape.scale;
    task.probabilities(p, block, q, k, lse);
    task.products(t_p, block, false, scale, t_q, k);
    task.products(t_p, block, true, scale, q, t_k);
    let width = block.width();
    vectorise!({
        for (p, t) in p.chunks_exact(width).zip(t_p.chunks_exact_mut(width)) {
            let mean = sum_by(width, |i| p[i] * t[i]);
            for i in 0..width {
                t[i] = p[i] * (t[i] - mean);
            }
        }
    });
}

/// Writes `t_o = t_p v + p t_v` (`[T, H, D]`).
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
        let mut t_o = Buffer::scratch(task.rows * shape.per_kv() * shape.head_dim);
        for segment in task.segments {
            let [k, v, t_k, t_v] = [k, v, t_k, t_v].map(|x| task.keys(x, segment));
            for block in segment.blocks(shape) {
                let (mut p, mut t_p) = (block.buffer(), block.buffer());
                let (q, t_q) = (task.queries(q, &block), task.queries(t_q, &block));
                probabilities_with_tangent(task, &block, (&mut p, &mut t_p), (&q, &k), (&t_q, &t_k), lse);
                let out = task.part(&mut t_o, &block);
                task.mix(out, &block, false, 1.0, &t_p, &v);
                task.mix(out, &block, true, 1.0, &p, &t_v);
            }
        }
        t_o
    });
    place(t_o, &tasks, results.iter().map(|r| &r[..]), shape.per_kv() * shape.head_dim);
}
