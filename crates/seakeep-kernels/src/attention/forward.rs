//! Attention: forward and tangent.

use super::task::{Block, Piece, Task, place, run, tasks};
use super::{Layout, Made, Shape};
use crate::simd::{LANES, exp, folded, max, sum_by};
use crate::vectorise;

/// Writes `o` (`[T, H, D]`) and the log-sum-exp of the scores `lse` (`[T, H, 2]`: maximum, and log of the sum of
/// exponentials relative to it. Their sum would round the second off.)
///
/// Over pieces of columns the exponentials are relative to the largest score so far: where a piece has a larger one, `m'` after `m`, what was
/// summed up to there is multiplied by `e^(m - m')`.
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
    let d = shape.head_dim;
    let results = run(&tasks, |task| {
        let (mut o, mut lse, mut p) = (task.own(d), task.own(2), task.scores());
        let (k, v) = (task.columns_of(&task.keys(k)), task.rows_of(&task.keys(v)));
        for block in task.blocks() {
            let q = task.queries(q, &block, d);
            let (o, lse) = (task.part(&mut o, &block, d), task.part(&mut lse, &block, 2));
            lse.as_chunks_mut().0.fill([f32::NEG_INFINITY, 0.0]);
            for piece in block.pieces() {
                task.products(&mut p, (&block, &piece), (false, shape.scale), &q, &k);
                exponentials(task, (&block, &piece), &mut p, o, lse);
                task.mix(o, (&block, &piece), (!piece.first, 1.0), &p, &v);
            }
            for (o, lse) in o.chunks_exact_mut(d).zip(lse.chunks_exact_mut(2)) {
                let inverse = 1.0 / lse[1];
                o.iter_mut().for_each(|o| *o *= inverse);
                lse[1] = lse[1].ln();
            }
        }
        (o, lse)
    });
    place(o, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * d);
    place(lse, &tasks, results.iter().map(|r| &r.1[..]), shape.per_kv() * 2);
}

/// Turns scores into exponentials relative to each row's largest score so far (0 where unseen), takes them into the rows' maxima and sums
/// `lse`, and multiplies `o` by what the larger maximum changes.
fn exponentials(
    task: &Task,
    (block, piece): (&Block, &Piece),
    p: &mut [f32],
    o: &mut [f32],
    lse: &mut [f32],
) {
    let d = task.shape.head_dim;
    vectorise!({
        let rows = p.chunks_exact_mut(task.width()).zip(lse.chunks_exact_mut(2)).zip(o.chunks_exact_mut(d));
        for (r, ((p, lse), o)) in rows.enumerate() {
            let p = &mut p[..piece.width()];
            block.hide(piece, r, p, f32::NEG_INFINITY);
            let (before, here) = (lse[0], max(p));
            let top = if here > before { here } else { before };
            if top == f32::NEG_INFINITY {
                // It sees nothing yet.
                p.fill(0.0);
                continue;
            }
            let mut sums = [0.0; LANES];
            for p in p.as_chunks_mut::<LANES>().0 {
                for l in 0..LANES {
                    p[l] = exp(p[l] - top);
                    sums[l] += p[l];
                }
            }
            let change = exp(before - top);
            if before < top && !piece.first {
                o.iter_mut().for_each(|o| *o *= change);
            }
            let [sum] = folded([sums]);
            (lse[0], lse[1]) = (top, lse[1] * change + sum);
        }
    });
}

/// Writes `t_o = t_p v + p t_v` (`[T, H, D]`) and the tangent of the log-sum-exp, `t_lse = sum p t_s` (`[T, H]`), where
/// `t_s = scale (t_q k^T + q t_k^T)`, from what [`forward`] made. With `t_p = p (t_s - t_lse)`, and `p v` being `o`:
/// `t_o = (p t_s) v + p t_v - t_lse o`, a sum over pieces of columns.
pub fn tangent(
    (t_o, t_lse): (&mut [f32], &mut [f32]),
    (q, k, v): (&[f32], &[f32], &[f32]),
    (t_q, t_k, t_v): (&[f32], &[f32], &[f32]),
    (o, lse): Made,
    layout: &Layout,
    shape: Shape,
) {
    let tasks = tasks(layout, shape);
    let d = shape.head_dim;
    let results = run(&tasks, |task| {
        let (mut t_o, mut t_lse) = (task.own(d), task.own(1));
        let (mut p, mut t_s) = (task.scores(), task.scores());
        let ([k, t_k], [v, t_v]) =
            ([k, t_k].map(|x| task.columns_of(&task.keys(x))), [v, t_v].map(|x| task.rows_of(&task.keys(x))));
        for block in task.blocks() {
            let [q, t_q, o] = [q, t_q, o].map(|x| task.queries(x, &block, d));
            let lse = task.queries(lse, &block, 2);
            let (t_o, t_lse) = (task.part(&mut t_o, &block, d), task.part(&mut t_lse, &block, 1));
            t_lse.fill(0.0);
            for piece in block.pieces() {
                let at = (&block, &piece);
                task.probabilities(&mut p, at, &q, &k, &lse);
                task.score_tangents(&mut t_s, at, (&q, &t_q), (&k, &t_k));
                vectorise!({
                    let rows = p.chunks_exact(task.width()).zip(t_s.chunks_exact_mut(task.width()));
                    for ((p, t), t_lse) in rows.zip(t_lse.iter_mut()) {
                        let (p, t) = (&p[..piece.width()], &mut t[..piece.width()]);
                        p.iter().zip(t.iter_mut()).for_each(|(p, t)| *t *= p);
                        *t_lse += sum_by(t.len(), |i| t[i]);
                    }
                });
                task.mix(t_o, at, (!piece.first, 1.0), &t_s, &v);
                task.mix(t_o, at, (true, 1.0), &p, &t_v);
            }
            for ((t_o, o), t_lse) in t_o.chunks_exact_mut(d).zip(o.chunks_exact(d)).zip(&*t_lse) {
                t_o.iter_mut().zip(o).for_each(|(t, o)| *t -= t_lse * o);
            }
        }
        (t_o, t_lse)
    });
    place(t_o, &tasks, results.iter().map(|r| &r.0[..]), shape.per_kv() * d);
    place(t_lse, &tasks, results.iter().map(|r| &r.1[..]), shape.per_kv());
}
