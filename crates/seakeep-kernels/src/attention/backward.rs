//! Attention: backward, and the tangent of backward. Probabilities are recomputed block by block.

use super::forward::probabilities_with_tangent;
use super::{Layout, Shape, blocks, place, run, tasks};
use crate::simd::{dispatch, sum_by};

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
    let results = run(&tasks, |task| {
        let (d, heads) = (shape.head_dim, shape.per_kv());
        let mut d_q = vec![0.0; task.rows * heads * d];
        let (mut d_k, mut d_v) = (vec![0.0; task.rows * d], vec![0.0; task.rows * d]);
        let (mut p, mut d_s) = (Vec::new(), Vec::new());
        for block in task.segments.iter().flat_map(blocks) {
            let width = block.columns();
            p.resize(block.rows * width, 0.0);
            d_s.resize(block.rows * width, 0.0);
            for (i, head) in task.heads().enumerate() {
                let d_out = task.query(d_o, &block, head);
                task.probabilities(&mut p, &block, q, k, lse, head);
                task.spread(&mut d_v, &block, 1.0, &p, d_out);
                task.products(&mut d_s, &block, false, 1.0, d_out, v);
                dispatch(|| {
                    for (p, d) in p.chunks_exact(width).zip(d_s.chunks_exact_mut(width)) {
                        let mean = sum_by(width, |i| p[i] * d[i]);
                        for i in 0..width {
                            d[i] = p[i] * (d[i] - mean);
                        }
                    }
                });
                let out = &mut d_q[((block.row - task.first) * heads + i) * d..];
                task.mix(out, heads * d, &block, false, shape.scale, &d_s, k);
                task.spread(&mut d_k, &block, shape.scale, &d_s, task.query(q, &block, head));
            }
        }
        (d_q, d_k, d_v)
    });
    let d = shape.head_dim;
    place(d_q, &tasks, results.iter().map(|r| r.0.as_slice()), shape.per_kv() * d);
    place(d_k, &tasks, results.iter().map(|r| r.1.as_slice()), d);
    place(d_v, &tasks, results.iter().map(|r| r.2.as_slice()), d);
}

/// What [`backward_tangent`] writes: the gradients of [`backward`] and their tangents.
pub struct DualGradients<'a> {
    /// `d_q` and `td_q`, `[T, H, D]`.
    pub q: (&'a mut [f32], &'a mut [f32]),
    /// `d_k` and `td_k`, `[T, J, D]`.
    pub k: (&'a mut [f32], &'a mut [f32]),
    /// `d_v` and `td_v`, `[T, J, D]`.
    pub v: (&'a mut [f32], &'a mut [f32]),
}

/// [`backward`] and its tangent, sharing the probabilities. With
/// `td_p = td_o v^T + d_o t_v^T`, `m = sum p d_p`, `t_m = sum(t_p d_p + p td_p)`:
/// `td_s = t_p (d_p - m) + p (td_p - t_m)`,
/// `td_q = scale (td_s k + d_s t_k)`, `td_k = scale (td_s^T q + d_s^T t_q)`, `td_v = t_p^T d_o + p^T td_o`.
pub fn backward_tangent(
    out: DualGradients,
    (d_o, td_o): (&[f32], &[f32]),
    (q, k, v): (&[f32], &[f32], &[f32]),
    (t_q, t_k, t_v): (&[f32], &[f32], &[f32]),
    lse: &[f32],
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let results = run(&tasks, |task| {
        let (d, heads) = (shape.head_dim, shape.per_kv());
        let of_q = || vec![0.0; task.rows * heads * d];
        let of_kv = || vec![0.0; task.rows * d];
        let (mut d_q, mut td_q) = (of_q(), of_q());
        let (mut d_k, mut td_k, mut d_v, mut td_v) = (of_kv(), of_kv(), of_kv(), of_kv());
        let mut scratch: [Vec<f32>; 4] = Default::default();
        for block in task.segments.iter().flat_map(blocks) {
            let width = block.columns();
            scratch.iter_mut().for_each(|s| s.resize(block.rows * width, 0.0));
            let [p, t_p, d_s, td_s] = &mut scratch;
            for (i, head) in task.heads().enumerate() {
                let (d_out, td_out) = (task.query(d_o, &block, head), task.query(td_o, &block, head));
                probabilities_with_tangent(task, &block, head, (p, t_p), (q, k), (t_q, t_k), lse);
                task.spread(&mut d_v, &block, 1.0, p, d_out);
                task.spread(&mut td_v, &block, 1.0, t_p, d_out);
                task.spread(&mut td_v, &block, 1.0, p, td_out);
                task.products(d_s, &block, false, 1.0, d_out, v);
                task.products(td_s, &block, false, 1.0, td_out, v);
                task.products(td_s, &block, true, 1.0, d_out, t_v);
                dispatch(|| {
                    for r in 0..block.rows {
                        let at = r * width..(r + 1) * width;
                        let (p, t_p) = (&p[at.clone()], &t_p[at.clone()]);
                        let (d, td) = (&mut d_s[at.clone()], &mut td_s[at]);
                        let m = sum_by(width, |i| p[i] * d[i]);
                        let t_m = sum_by(width, |i| t_p[i] * d[i] + p[i] * td[i]);
                        for i in 0..width {
                            td[i] = t_p[i] * (d[i] - m) + p[i] * (td[i] - t_m);
                            d[i] = p[i] * (d[i] - m);
                        }
                    }
                });
                let at = ((block.row - task.first) * heads + i) * d;
                task.mix(&mut d_q[at..], heads * d, &block, false, shape.scale, d_s, k);
                task.mix(&mut td_q[at..], heads * d, &block, false, shape.scale, td_s, k);
                task.mix(&mut td_q[at..], heads * d, &block, true, shape.scale, d_s, t_k);
                let (query, t_query) = (task.query(q, &block, head), task.query(t_q, &block, head));
                task.spread(&mut d_k, &block, shape.scale, d_s, query);
                task.spread(&mut td_k, &block, shape.scale, td_s, query);
                task.spread(&mut td_k, &block, shape.scale, d_s, t_query);
            }
        }
        [d_q, td_q, d_k, td_k, d_v, td_v]
    });
    let d = shape.head_dim;
    let of_q = shape.per_kv() * d;
    let each = [(out.q.0, of_q), (out.q.1, of_q), (out.k.0, d), (out.k.1, d), (out.v.0, d), (out.v.1, d)];
    for (i, (to, width)) in each.into_iter().enumerate() {
        place(to, &tasks, results.iter().map(|r| r[i].as_slice()), width);
    }
}
