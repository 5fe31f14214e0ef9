//! Vocabulary projection and log-softmax as one operation over the predicting rows only:
//! `logp[n] = z[n, target n] - log sum_v exp z[n, v]`, `z = x w^T`; `x` is `[N, C]`, `w` is `[V, C]`.
//!
//! Rows are taken in chunks, so that no more than `[CHUNK, V]` logits exist at a time, in any pass.

use rayon::prelude::*;

use crate::gemm::{Mat, Threads, gemm};
use crate::simd::{dispatch, dot, exp, max, sum_by};

/// Rows per chunk: 128 rows of 49,152 logits are 25 MB.
pub const CHUNK: usize = 128;

/// What the forward pass gives for one predicted token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Predicted {
    /// Log-probability of the target, nats.
    pub logp: f32,
    /// The largest logit; with `log_total` the backward passes give probabilities back.
    top: f32,
    /// Log of the sum of `exp(z - top)`. Apart from `top`, which is large and would round it off.
    log_total: f32,
    /// Entropy of the distribution, nats.
    pub entropy: f32,
    /// Mean of the logits over the vocabulary.
    pub mean_logit: f32,
    /// Whether no token is likelier than the target.
    pub is_top1: bool,
}

impl Predicted {
    /// The probability of a token with logit `z`.
    #[inline(always)]
    fn probability(&self, z: f32) -> f32 {
        exp((z - self.top) - self.log_total)
    }
}

/// A view of the rows `first..first + rows` of the operation's inputs.
struct Chunk<'a> {
    x: &'a [f32],
    first: usize,
    rows: usize,
}

fn chunks<'a>(x: &'a [f32], channels: usize) -> impl Iterator<Item = Chunk<'a>> {
    x.chunks(CHUNK * channels).enumerate().map(move |(i, x)| Chunk {
        x,
        first: i * CHUNK,
        rows: x.len() / channels,
    })
}

/// `z = x w^T`, `[rows, V]`.
fn logits<'z>(z: &'z mut [f32], x: &[f32], w: &[f32], rows: usize, channels: usize) -> &'z mut [f32] {
    let v = w.len() / channels;
    let z = &mut z[..rows * v];
    gemm(
        (rows, v, channels),
        z,
        v,
        false,
        1.0,
        Mat::new(x, channels),
        Mat::new(w, channels).t(),
        Threads::All,
    );
    z
}

fn buffer(n: usize, vocab: usize) -> Vec<f32> {
    vec![0.0; n.min(CHUNK) * vocab]
}

/// Log-probabilities of `targets` (`[N]`).
///
/// # Panics
/// If a target lies outside the vocabulary.
pub fn forward(x: &[f32], w: &[f32], targets: &[u32], channels: usize) -> Vec<Predicted> {
    let v = w.len() / channels;
    let mut z = buffer(targets.len(), v);
    let mut out = vec![Predicted::default(); targets.len()];
    for chunk in chunks(x, channels) {
        let z = logits(&mut z, chunk.x, w, chunk.rows, channels);
        let at = chunk.first..chunk.first + chunk.rows;
        let rows = out[at.clone()].par_iter_mut().zip(z.par_chunks_mut(v)).zip(&targets[at]);
        rows.for_each(|((out, z), &target)| *out = dispatch(|| predict(z, target as usize)));
    }
    out
}

#[inline(always)]
fn predict(z: &[f32], target: usize) -> Predicted {
    let n = z.len();
    let top = max(z);
    let total = sum_by(n, |i| exp(z[i] - top));
    let shifted = sum_by(n, |i| exp(z[i] - top) * (z[i] - top));
    let log_total = (total as f64).ln() as f32;
    Predicted {
        // Differences first: z and its maximum are of one size, their distance is what matters.
        logp: (z[target] - top) - log_total,
        top,
        log_total,
        entropy: log_total - shifted / total,
        mean_logit: sum_by(n, |i| z[i]) / n as f32,
        is_top1: z[target] >= top,
    }
}

/// From `d_logp` (`[N]`): writes `d_x` (`[N, C]`) and, if given, adds to `d_w` (`[V, C]`).
/// `d_z = d_logp (onehot - p)`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    d_x: &mut [f32],
    mut d_w: Option<&mut [f32]>,
    d_logp: &[f32],
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    predicted: &[Predicted],
    channels: usize,
) {
    let v = w.len() / channels;
    let mut z = buffer(targets.len(), v);
    for chunk in chunks(x, channels) {
        let z = logits(&mut z, chunk.x, w, chunk.rows, channels);
        z.par_chunks_mut(v).enumerate().for_each(|(r, z)| {
            let n = chunk.first + r;
            let (d, p) = (d_logp[n], &predicted[n]);
            dispatch(|| z.iter_mut().for_each(|z| *z = -d * p.probability(*z)));
            z[targets[n] as usize] += d;
        });
        let d_x = &mut d_x[chunk.first * channels..][..chunk.rows * channels];
        pull_back(z, d_x, w, chunk.rows, channels);
        if let Some(d_w) = d_w.as_deref_mut() {
            push_weight(z, d_w, chunk.x, chunk.rows, channels);
        }
    }
}

/// `d_x = d_z w`.
fn pull_back(d_z: &[f32], d_x: &mut [f32], w: &[f32], rows: usize, channels: usize) {
    let v = w.len() / channels;
    gemm(
        (rows, channels, v),
        d_x,
        channels,
        false,
        1.0,
        Mat::new(d_z, v),
        Mat::new(w, channels),
        Threads::All,
    );
}

/// `d_w += d_z^T x`.
fn push_weight(d_z: &[f32], d_w: &mut [f32], x: &[f32], rows: usize, channels: usize) {
    let v = d_w.len() / channels;
    gemm(
        (v, channels, rows),
        d_w,
        channels,
        true,
        1.0,
        Mat::new(d_z, v).t(),
        Mat::new(x, channels),
        Threads::All,
    );
}

/// `t_logp = t_z[target] - sum_v p_v t_z[v]`, `t_z = t_x w^T`.
pub fn tangent(
    x: &[f32],
    t_x: &[f32],
    w: &[f32],
    targets: &[u32],
    predicted: &[Predicted],
    channels: usize,
) -> Vec<f32> {
    let v = w.len() / channels;
    let (mut z, mut t_z) = (buffer(targets.len(), v), buffer(targets.len(), v));
    let mut out = vec![0.0; targets.len()];
    for (chunk, t_chunk) in chunks(x, channels).zip(chunks(t_x, channels)) {
        let z = logits(&mut z, chunk.x, w, chunk.rows, channels);
        let t_z = logits(&mut t_z, t_chunk.x, w, chunk.rows, channels);
        let rows = z.par_chunks(v).zip(t_z.par_chunks(v)).enumerate();
        let values: Vec<f32> = rows
            .map(|(r, (z, t_z))| {
                let n = chunk.first + r;
                let p = &predicted[n];
                t_z[targets[n] as usize] - dispatch(|| sum_by(v, |i| p.probability(z[i]) * t_z[i]))
            })
            .collect();
        out[chunk.first..chunk.first + chunk.rows].copy_from_slice(&values);
    }
    out
}

/// [`backward`] (without its weight gradient) and its tangent, sharing the logits: writes `d_x` and
/// `td_x`, adds `td_w += td_z^T x + d_z^T t_x`, where
/// `td_z = td_logp (onehot - p) - d_logp t_p`, `t_p = p (t_z - sum p t_z)`.
#[allow(clippy::too_many_arguments)]
pub fn backward_tangent(
    d_x: &mut [f32],
    td_x: &mut [f32],
    mut td_w: Option<&mut [f32]>,
    d_logp: &[f32],
    td_logp: &[f32],
    x: &[f32],
    t_x: &[f32],
    w: &[f32],
    targets: &[u32],
    predicted: &[Predicted],
    channels: usize,
) {
    let v = w.len() / channels;
    let (mut z, mut t_z) = (buffer(targets.len(), v), buffer(targets.len(), v));
    for (chunk, t_chunk) in chunks(x, channels).zip(chunks(t_x, channels)) {
        let z = logits(&mut z, chunk.x, w, chunk.rows, channels);
        let t_z = logits(&mut t_z, t_chunk.x, w, chunk.rows, channels);
        // In place: z becomes d_z, t_z becomes td_z.
        z.par_chunks_mut(v).zip(t_z.par_chunks_mut(v)).enumerate().for_each(|(r, (z, t_z))| {
            let n = chunk.first + r;
            let (d, td) = (d_logp[n], td_logp[n]);
            dispatch(|| {
                z.iter_mut().for_each(|z| *z = predicted[n].probability(*z));
                let mean = dot(z, t_z);
                for (p, t) in z.iter_mut().zip(t_z.iter_mut()) {
                    *t = -*p * (td + d * (*t - mean));
                    *p *= -d;
                }
            });
            z[targets[n] as usize] += d;
            t_z[targets[n] as usize] += td;
        });
        let at = chunk.first * channels..(chunk.first + chunk.rows) * channels;
        pull_back(z, &mut d_x[at.clone()], w, chunk.rows, channels);
        pull_back(t_z, &mut td_x[at], w, chunk.rows, channels);
        if let Some(td_w) = td_w.as_deref_mut() {
            push_weight(t_z, td_w, chunk.x, chunk.rows, channels);
            push_weight(z, td_w, t_chunk.x, chunk.rows, channels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Op, check, close, random};

    const N: usize = CHUNK + 5; // more than one chunk
    const C: usize = 6;
    const V: usize = 11;

    fn targets() -> Vec<u32> {
        (0..N as u32).map(|n| (n * 7) % V as u32).collect()
    }

    #[test]
    fn forward_equals_the_formula() {
        let (x, w) = (random(N * C, 1), random(V * C, 2));
        for (n, got) in forward(&x, &w, &targets(), C).iter().enumerate() {
            let z: Vec<f64> = (0..V)
                .map(|v| (0..C).map(|c| x[n * C + c] as f64 * w[v * C + c] as f64).sum::<f64>())
                .collect();
            let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            let entropy = -z.iter().map(|z| (z - lse).exp() * (z - lse)).sum::<f64>();
            let target = targets()[n] as usize;
            let want = [z[target] - lse, lse, entropy, z.iter().sum::<f64>() / V as f64].map(|v| v as f32);
            close(
                &[got.logp, got.top + got.log_total, got.entropy, got.mean_logit],
                &want,
                2e-6,
                "prediction",
            );
            assert_eq!(got.is_top1, z.iter().all(|&other| other <= z[target]));
        }
    }

    #[test]
    fn derivatives() {
        let targets = targets();
        let op = Op {
            forward: &|all| {
                forward(&all[..N * C], &all[N * C..], &targets, C).iter().map(|p| p.logp).collect()
            },
            backward: &|all, d| {
                let (x, w) = all.split_at(N * C);
                let (mut d_x, mut d_w) = (vec![0.0; N * C], vec![0.0; V * C]);
                let predicted = forward(x, w, &targets, C);
                backward(&mut d_x, Some(&mut d_w), d, x, w, &targets, &predicted, C);
                [d_x, d_w].concat()
            },
            tangent: &|all, t| {
                let (x, w) = all.split_at(N * C);
                tangent(x, &t[..N * C], w, &targets, &forward(x, w, &targets, C), C)
            },
            backward_tangent: &|all, t, d, td| {
                let (x, w) = all.split_at(N * C);
                let predicted = forward(x, w, &targets, C);
                let (mut d_x, mut td_x, mut td_w) = (vec![0.0; N * C], vec![0.0; N * C], vec![0.0; V * C]);
                backward_tangent(
                    &mut d_x,
                    &mut td_x,
                    Some(&mut td_w),
                    d,
                    td,
                    x,
                    &t[..N * C],
                    w,
                    &targets,
                    &predicted,
                    C,
                );
                let mut alone = vec![0.0; N * C];
                backward(&mut alone, None, d, x, w, &targets, &predicted, C);
                close(&d_x, &alone, 1e-6, "d_x of both passes");
                [td_x, td_w].concat()
            },
            moving: N * C,
        };
        check(&op, &random(N * C + V * C, 9), N, 4e-3, 2e-3);
    }
}
