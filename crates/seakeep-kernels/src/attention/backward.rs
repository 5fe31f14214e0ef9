//! Attention: backward, and how it changes along a tangent. Probabilities are recomputed block by block.

use super::forward::probabilities_with_tangent;
use super::{Layout, Shape, place, place_keys, run, tasks};
use crate::buffer::Buffer;
use crate::simd::sum_by;
use crate::vectorise;

/// Writes `d_q`, `d_k`, `d_v` from `d_o`. With `d_p = d_o v^T`:
/// `d_s = p (d_p - sum p d_p)`, `d_q = scale d_s k`, `d_k = scale d_s^T q`, `d_v = p^T d_o`.
pub fn backward(
    (d_q, d_k, d_v): (&mut [f32], &mut [f32], &mut [f32]),
    d_o: &[f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    lse: &[f32],
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let d = shape.head_dim;
    let results = run(&tasks, |task| {
        let mut d_q = Buffer::scratch(task.rows * shape.per_kv() * d);
        let (mut d_k, mut d_v) = (task.key_gradients(), task.key_gradients());
        for segment in task.segments {
            let [k, v] = [k, v].map(|x| task.keys(x, segment));
            let (mut own_d_k, mut own_d_v) = (Buffer::zeros(k.len(), d), Buffer::zeros(v.len(), d));
            for block in segment.blocks(shape) {
                let width = block.width();
                let (mut p, mut d_s) = (block.buffer(), block.buffer());
                let (q, d_out) = (task.queries(q, &block), task.queries(d_o, &block));
                task.probabilities(&mut p, &block, &q, &k, lse);
                task.spread(&mut own_d_v, &block, 1.0, &p, &d_out);
                task.products(&mut d_s, &block, false, 1.0, &d_out, &v);
                vectorise!({
                    for (p, d) in p.chunks_exact(width).zip(d_s.chunks_exact_mut(width)) {
                        let mean = sum_by(width, |i| p[i] * d[i]);
                        for i in 0..width {
                            d[i] = p[i] * (d[i] - mean);
                        }
                    }
                });
                task.mix(task.part(&mut d_q, &block), &block, false, shape.scale, &d_s, &k);
                task.spread(&mut own_d_k, &block, shape.scale, &d_s, &q);
            }
            task.scatter(&mut d_k, segment, &own_d_k);
            task.scatter(&mut d_v, segment, &own_d_v);
        }
        (d_q, d_k, d_v)
    });
    place(d_q, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * d);
    place_keys(d_k, &tasks, results.iter().map(|r| &r.1[..]));
    place_keys(d_v, &tasks, results.iter().map(|r| &r.2[..]));
}

/// How [`backward`] changes along the tangents, `d_o` held: writes `s_q`, `s_k`, `s_v`. With `t_dp = d_o t_v^T`,
/// `m = sum p d_p`, `t_m = sum(t_p d_p + p t_dp)`: `s_s = t_p (d_p - m) + p (t_dp - t_m)`,
/// `s_q = scale (s_s k + d_s t_k)`, `s_k = scale (s_s^T q + d_s^T t_q)`, `s_v = t_p^T d_o`.
pub fn curvature(
    (s_q, s_k, s_v): (&mut [f32], &mut [f32], &mut [f32]),
    d_o: &[f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    (t_q, t_k, t_v): (&[f32], &[f32], &[f32]),
    lse: &[f32],
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let d = shape.head_dim;
    let results = run(&tasks, |task| {
        let mut s_q = Buffer::scratch(task.rows * shape.per_kv() * d);
        let (mut s_k, mut s_v) = (task.key_gradients(), task.key_gradients());
        for segment in task.segments {
            let [k, v, t_k, t_v] = [k, v, t_k, t_v].map(|x| task.keys(x, segment));
            let (mut own_s_k, mut own_s_v) = (Buffer::zeros(k.len(), d), Buffer::zeros(v.len(), d));
            for block in segment.blocks(shape) {
                let width = block.width();
                let [mut p, mut t_p, mut d_s, mut s_s] = std::array::from_fn(|_| block.buffer());
                let [q, t_q, d_out] = [q, t_q, d_o].map(|x| task.queries(x, &block));
                probabilities_with_tangent(task, &block, (&mut p, &mut t_p), (&q, &k), (&t_q, &t_k), lse);
                task.spread(&mut own_s_v, &block, 1.0, &t_p, &d_out);
                task.products(&mut d_s, &block, false, 1.0, &d_out, &v);
                task.products(&mut s_s, &block, false, 1.0, &d_out, &t_v);
                vectorise!({
                    for r in 0..block.scores() {
                        let at = r * width..(r + 1) * width;
                        let (p, t_p) = (&p[at.clone()], &t_p[at.clone()]);
                        let (d, s) = (&mut d_s[at.clone()], &mut s_s[at]);
                        let m = sum_by(width, |i| p[i] * d[i]);
                        let t_m = sum_by(width, |i| t_p[i] * d[i] + p[i] * s[i]);
                        for i in 0..width {
                            s[i] = t_p[i] * (d[i] - m) + p[i] * (s[i] - t_m);
                            d[i] = p[i] * (d[i] - m);
                        }
                    }
                });
                let out = task.part(&mut s_q, &block);
                task.mix(out, &block, false, shape.scale, &s_s, &k);
                task.mix(out, &block, true, shape.scale, &d_s, &t_k);
                task.spread(&mut own_s_k, &block, shape.scale, &s_s, &q);
                task.spread(&mut own_s_k, &block, shape.scale, &d_s, &t_q);
            }
            task.scatter(&mut s_k, segment, &own_s_k);
            task.scatter(&mut s_v, segment, &own_s_v);
        }
        (s_q, s_k, s_v)
    });
    place(s_q, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * d);
    place_keys(s_k, &tasks, results.iter().map(|r| &r.1[..]));
    place_keys(s_v, &tasks, results.iter().map(|r| &r.2[..]));
}
