//! Attention: backward, and how it changes along a tangent. Probabilities are made again, piece by piece of the columns.

use super::task::{Block, Piece, Task, place, place_keys, run, tasks};
use super::{Layout, Made, Shape};
use crate::buffer::Buffer;
use crate::vectorise;

/// Writes `d_q`, `d_k`, `d_v` from `d_o` and what [`forward`](super::forward) made. With `d_p = d_o v^T` and
/// `m = sum p d_p = d_o o` (`o` being `p v`):
/// `d_s = p (d_p - m)`, `d_q = scale d_s k`, `d_k = scale d_s^T q`, `d_v = p^T d_o`.
pub fn backward(
    (d_q, d_k, d_v): (&mut [f32], &mut [f32], &mut [f32]),
    d_o: &[f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    (o, lse): Made,
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let d = shape.head_dim;
    let results = run(&tasks, |task| {
        let (mut d_q, mut d_k, mut d_v) = (task.own(d), task.key_gradients(), task.key_gradients());
        let (mut p, mut d_s) = (task.scores(), task.scores());
        let [k, v] = [k, v].map(|x| task.keys(x));
        let (k, k_t, v_t) = (task.rows_of(&k), task.columns_of(&k), task.columns_of(&v));
        for block in task.blocks() {
            let (m, lse) = (task.dots(d_o, o, &block), task.queries(lse, &block, 2));
            let [q, d_o] = [q, d_o].map(|x| task.queries(x, &block, d));
            let (right_q, right_d_o) = (task.right(&q), task.right(&d_o));
            let d_q = task.part(&mut d_q, &block, d);
            for piece in block.pieces() {
                let at = (&block, &piece);
                task.probabilities(&mut p, at, &q, &k_t, &lse);
                task.spread(&mut d_v, at, 1.0, &p, &right_d_o);
                task.products(&mut d_s, at, (false, 1.0), &d_o, &v_t);
                task.clear(&mut d_s, at);
                score_gradients(task, &piece, &mut d_s, &p, &m);
                task.mix(d_q, at, (!piece.first, shape.scale), &d_s, &k);
                task.spread(&mut d_k, at, shape.scale, &d_s, &right_q);
            }
        }
        (d_q, d_k, d_v)
    });
    place(d_q, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * d);
    place_keys(d_k, &tasks, results.iter().map(|r| &r.1[..]));
    place_keys(d_v, &tasks, results.iter().map(|r| &r.2[..]));
}

/// `d = p (d - m)`.
fn score_gradients(task: &Task, piece: &Piece, d: &mut [f32], p: &[f32], m: &[f32]) {
    let (stride, width) = (task.width(), piece.width());
    vectorise!({
        for ((d, p), m) in d.chunks_exact_mut(stride).zip(p.chunks_exact(stride)).zip(m) {
            d[..width].iter_mut().zip(&p[..width]).for_each(|(d, p)| *d = p * (*d - m));
        }
    });
}

/// How [`backward`] changes along the tangents, `d_o` held, from what [`forward`](super::forward) and [`tangent`](super::tangent) made:
/// writes `s_q`, `s_k`, `s_v`. With `t_p = p (t_s - t_lse)`, `t_dp = d_o t_v^T`, `m = d_o o` and
/// `t_m = sum(t_p d_p + p t_dp) = d_o t_o`: `s_s = t_p (d_p - m) + p (t_dp - t_m)`,
/// `s_q = scale (s_s k + d_s t_k)`, `s_k = scale (s_s^T q + d_s^T t_q)`, `s_v = t_p^T d_o`.
pub fn curvature(
    (s_q, s_k, s_v): (&mut [f32], &mut [f32], &mut [f32]),
    d_o: &[f32],
    (q, k, v): (&[f32], &[f32], &[f32]),
    (t_q, t_k, t_v): (&[f32], &[f32], &[f32]),
    ((o, lse), (t_o, t_lse)): (Made, Made),
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let d = shape.head_dim;
    let results = run(&tasks, |task| {
        let (mut s_q, mut s_k, mut s_v) = (task.own(d), task.key_gradients(), task.key_gradients());
        let [mut p, mut t_p, mut d_s, mut s_s]: [Buffer; 4] = std::array::from_fn(|_| task.scores());
        let [k, t_k, v, t_v] = [k, t_k, v, t_v].map(|x| task.keys(x));
        let [k_t, t_k_t, v_t, t_v_t] = [&k, &t_k, &v, &t_v].map(|x| task.columns_of(x));
        let [k, t_k] = [&k, &t_k].map(|x| task.rows_of(x));
        for block in task.blocks() {
            let (lse, t_lse) = (task.queries(lse, &block, 2), task.queries(t_lse, &block, 1));
            let means = [&task.dots(d_o, o, &block)[..], &task.dots(d_o, t_o, &block), &t_lse];
            let [q, t_q, d_o] = [q, t_q, d_o].map(|x| task.queries(x, &block, d));
            let [right_q, right_t_q, right_d_o] = [&q, &t_q, &d_o].map(|x| task.right(x));
            let s_q = task.part(&mut s_q, &block, d);
            for piece in block.pieces() {
                let at = (&block, &piece);
                task.probabilities(&mut p, at, &q, &k_t, &lse);
                task.score_tangents(&mut t_p, at, (&q, &t_q), (&k_t, &t_k_t));
                task.products(&mut d_s, at, (false, 1.0), &d_o, &v_t);
                task.products(&mut s_s, at, (false, 1.0), &d_o, &t_v_t);
                task.clear(&mut d_s, at);
                task.clear(&mut s_s, at);
                curvature_of_scores(task, at, &p, [&mut t_p, &mut d_s, &mut s_s], means);
                task.spread(&mut s_v, at, 1.0, &t_p, &right_d_o);
                task.mix(s_q, at, (!piece.first, shape.scale), &s_s, &k);
                task.mix(s_q, at, (true, shape.scale), &d_s, &t_k);
                task.spread(&mut s_k, at, shape.scale, &s_s, &right_q);
                task.spread(&mut s_k, at, shape.scale, &d_s, &right_t_q);
            }
        }
        (s_q, s_k, s_v)
    });
    place(s_q, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * d);
    place_keys(s_k, &tasks, results.iter().map(|r| &r.1[..]));
    place_keys(s_v, &tasks, results.iter().map(|r| &r.2[..]));
}

/// Makes `t_p` of the scores' tangents, `d_s` of `d_p` and `s_s` of `t_dp`, in place.
fn curvature_of_scores(
    task: &Task,
    (block, piece): (&Block, &Piece),
    p: &[f32],
    [t_p, d_s, s_s]: [&mut [f32]; 3],
    [m, t_m, t_lse]: [&[f32]; 3],
) {
    vectorise!({
        for r in 0..block.scores() {
            let at = r * task.width()..r * task.width() + piece.width();
            let (p, t, d, s) = (&p[at.clone()], &mut t_p[at.clone()], &mut d_s[at.clone()], &mut s_s[at]);
            let (m, t_m, t_lse) = (m[r], t_m[r], t_lse[r]);
            for (((p, t), d), s) in p.iter().zip(t).zip(d).zip(s) {
                *t = p * (*t - t_lse);
                *s = *t * (*d - m) + p * (*s - t_m);
                *d = p * (*d - m);
            }
        }
    });
}
