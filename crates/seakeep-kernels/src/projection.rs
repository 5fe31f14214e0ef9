//! Vocabulary projection and log-softmax as one operation over the predicting rows only:
//! `logp[n] = z[n, target n] - log sum_v exp z[n, v]`, `z = x w^T`; `x` is `[N, C]`, `w` is `[V, C]`.
//!
//! Rows are taken in chunks, so that no more than `[CHUNK, V]` logits exist at a time (with curvature as many of their tangents), or
//! `[KEPT, V]` where the caller would rather keep what few rows have than compute it again.

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::gemm::{Mat, Product, Weight, multiply};
use crate::linear::{Map, Sum};
use crate::simd::{LANES, dot, exp, max, sums_of};
use crate::vectorise;

/// Most rows of a chunk: 256 rows of 49,152 logits are 50 MB.
pub const CHUNK: usize = 256;
/// Most rows of which a forward pass keeps `onehot - p`.
pub const KEPT: usize = 3 * CHUNK;

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

/// Chunks of `each` rows.
fn chunks<'a>(x: &'a [f32], channels: usize, each: usize) -> impl Iterator<Item = Chunk<'a>> {
    x.chunks(each * channels).enumerate().map(move |(i, x)| Chunk {
        x,
        first: i * each,
        rows: x.len() / channels,
    })
}

/// Rows of a chunk where there are `n`: as few chunks as may be, of one size. A product packs the whole weight for each.
fn chunk_rows(n: usize) -> usize {
    n.div_ceil(n.div_ceil(CHUNK).max(1)).max(1)
}

/// Floats from a row of logits to the next: an odd number of cache lines. A product reads and writes pieces of many rows at once; 49,152
/// floats apart, which are whole pages, all would want the same few places of the first-level cache (a tenth of the time).
fn stride(vocab: usize) -> usize {
    const LINE: usize = 16;
    LINE * (vocab.div_ceil(LINE) | 1)
}

/// Rows of logits.
fn buffer(rows: usize, vocab: usize) -> Buffer {
    Buffer::new(rows * stride(vocab), stride(vocab))
}

/// `z = x w^T`, `[rows, V]`, rows a [`stride`] apart as everywhere below.
fn logits<'z>(z: &'z mut [f32], x: &[f32], head: Map) -> &'z mut [f32] {
    let (v, c, rows) = (head.outputs, head.inputs, x.len() / head.inputs);
    let z = &mut z[..rows * stride(v)];
    let product = Product::whole(stride(v), false, head.precision);
    multiply((rows, v, c), z, product, Mat::new(x, c), Weight::new(head.w, c).t());
    z
}

/// `d_x = d_z w`.
fn backward_input(d_x: &mut [f32], d_z: &[f32], head: Map) {
    let (v, c, rows) = (head.outputs, head.inputs, d_x.len() / head.inputs);
    let product = Product::whole(c, false, head.precision);
    multiply((rows, c, v), d_x, product, Mat::new(d_z, stride(v)), Weight::new(head.w, c));
}

/// Adds `d_w += d_z^T x`.
fn add_weight(d_w: Sum, d_z: &[f32], x: &[f32], head: Map) {
    let (v, c, rows) = (head.outputs, head.inputs, x.len() / head.inputs);
    let product = Product::whole(c, d_w.add, head.precision);
    multiply((v, c, rows), d_w.to, product, Mat::new(d_z, stride(v)).t(), Mat::new(x, c));
}

/// Log-probabilities of `targets` (`[N]`).
///
/// # Panics
/// If a target lies outside the vocabulary.
pub fn forward(x: &[f32], head: Map, targets: &[u32]) -> Vec<Predicted> {
    forward_to(None, x, head, targets, false).0
}

/// [`forward`], and while the logits are there writes `g[n] = d logp[n] / d x[n] = (onehot - p) w` (`[N, C]`), which times
/// `d_logp[n]` is `d_x[n]`. With `keep`, and if there are no more than [`KEPT`] rows, also returns `onehot - p`, `[N, V]`, for [`backward_weight`].
///
/// # Panics
/// As [`forward`].
pub fn forward_with_gradient(
    g: &mut [f32],
    x: &[f32],
    head: Map,
    targets: &[u32],
    keep: bool,
) -> (Vec<Predicted>, Option<Buffer>) {
    forward_to(Some(g), x, head, targets, keep && targets.len() <= KEPT)
}

fn forward_to(
    mut g: Option<&mut [f32]>,
    x: &[f32],
    head: Map,
    targets: &[u32],
    keep: bool,
) -> (Vec<Predicted>, Option<Buffer>) {
    let (v, c, with_gradient) = (head.outputs, head.inputs, g.is_some());
    // What is kept is there all at once anyway.
    let each = if keep { targets.len().max(1) } else { chunk_rows(targets.len()) };
    let mut memory = buffer(each, v);
    let mut out = vec![Predicted::default(); targets.len()];
    for chunk in chunks(x, c, each) {
        let z = logits(&mut memory, chunk.x, head);
        let at = chunk.first..chunk.first + chunk.rows;
        let rows = out[at.clone()].par_iter_mut().zip(z.par_chunks_mut(stride(v))).zip(&targets[at]);
        rows.for_each(|((out, z), &target)| {
            let z = &mut z[..v];
            *out = vectorise!(predict(z, target as usize));
            if with_gradient {
                surprise(z, out, target as usize);
            }
        });
        if let Some(g) = g.as_deref_mut() {
            backward_input(&mut g[chunk.first * c..][..chunk.x.len()], z, head);
        }
    }
    (out, keep.then_some(memory))
}

/// Turns logits into `onehot - p`, the derivative of the target's log-probability.
fn surprise(z: &mut [f32], p: &Predicted, target: usize) {
    vectorise!(z.iter_mut().for_each(|z| *z = -p.probability(*z)));
    z[target] += 1.0;
}

#[inline(always)]
fn predict(z: &[f32], target: usize) -> Predicted {
    let top = max(z);
    let [total, shifted, sum] = sums_of(
        z,
        #[inline(always)]
        |z| {
            let (mut p, mut shifted) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                p[l] = exp(z[l] - top);
                shifted[l] = p[l] * (z[l] - top);
            }
            [p, shifted, *z]
        },
    );
    let log_total = (total as f64).ln() as f32;
    Predicted {
        // Differences first: z and its maximum are of one size, their distance is what matters.
        logp: (z[target] - top) - log_total,
        top,
        log_total,
        entropy: log_total - shifted / total,
        mean_logit: sum / z.len() as f32,
        is_top1: z[target] >= top,
    }
}

/// Adds `d_w += (onehot - p)^T (d_logp x)` (`[V, C]`); `kept` is what [`forward_with_gradient`] kept, if it did. `d_x` is `d_logp g`,
/// with `g` from there.
pub fn backward_weight(
    mut d_w: Sum,
    d_logp: &[f32],
    x: &[f32],
    head: Map,
    targets: &[u32],
    predicted: &[Predicted],
    kept: Option<&[f32]>,
) {
    let (v, c) = (head.outputs, head.inputs);
    let mut scaled = Buffer::new(x.len(), c);
    scaled.copy_from_slice(x);
    scale_rows(&mut scaled, d_logp, c);
    if let Some(kept) = kept {
        return add_weight(d_w, kept, &scaled, head);
    }
    let each = chunk_rows(targets.len());
    let mut z = buffer(each, v);
    for (chunk, scaled) in chunks(x, c, each).zip(chunks(&scaled, c, each)) {
        let z = logits(&mut z, chunk.x, head);
        z.par_chunks_mut(stride(v)).enumerate().for_each(|(r, z)| {
            let n = chunk.first + r;
            surprise(&mut z[..v], &predicted[n], targets[n] as usize);
        });
        add_weight(d_w.term(), z, scaled.x, head);
    }
    // Where nothing is predicted, the sum has still not begun.
    d_w.adding();
}

/// `x[n] *= factors[n]`, for rows of `channels`: `d_x` from `g`.
pub fn scale_rows(x: &mut [f32], factors: &[f32], channels: usize) {
    for (x, factor) in x.chunks_exact_mut(channels).zip(factors) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// `t_logp[n] = g[n] t_x[n]`, with `g` from [`forward_with_gradient`].
pub fn tangent(g: &[f32], t_x: &[f32], channels: usize) -> Vec<f32> {
    let rows = g.chunks_exact(channels).zip(t_x.chunks_exact(channels));
    rows.map(|(g, t)| vectorise!(dot(g, t))).collect()
}

/// The backward pass from `e_logp` and the curvature along `t_x` from `d_logp` in one, sharing the logits: writes `e_x = e_z w`, adds
/// `d_w += e_z^T x + d_z^T t_x`, where `e_z = e_logp (onehot - p) - d_logp t_p`, `d_z = d_logp (onehot - p)`,
/// `t_p = p (t_z - sum p t_z)`, `t_z = t_x w^T`.
#[allow(clippy::too_many_arguments)]
pub fn backward_with_curvature(
    e_x: &mut [f32],
    mut d_w: Option<Sum>,
    (d_logp, e_logp): (&[f32], &[f32]),
    (x, t_x): (&[f32], &[f32]),
    head: Map,
    targets: &[u32],
    predicted: &[Predicted],
) {
    let (v, c) = (head.outputs, head.inputs);
    let each = chunk_rows(targets.len());
    let mut both = buffer(2 * each, v);
    for (chunk, t_chunk) in chunks(x, c, each).zip(chunks(t_x, c, each)) {
        let both = logits(&mut both, &[chunk.x, t_chunk.x].concat(), head);
        // In place: z becomes d_z, t_z becomes e_z.
        let (z, t_z) = both.split_at_mut(both.len() / 2);
        let rows = z.par_chunks_mut(stride(v)).zip(t_z.par_chunks_mut(stride(v)));
        rows.enumerate().for_each(|(r, (z, t_z))| {
            let (z, t_z, n) = (&mut z[..v], &mut t_z[..v], chunk.first + r);
            let (d, e) = (d_logp[n], e_logp[n]);
            vectorise!({
                z.iter_mut().for_each(|z| *z = predicted[n].probability(*z));
                let mean = dot(z, t_z);
                for (p, t) in z.iter_mut().zip(t_z.iter_mut()) {
                    *t = -*p * (e + d * (*t - mean));
                    *p *= -d;
                }
            });
            z[targets[n] as usize] += d;
            t_z[targets[n] as usize] += e;
        });
        backward_input(&mut e_x[chunk.first * c..][..chunk.x.len()], t_z, head);
        if let Some(d_w) = &mut d_w {
            add_weight(d_w.term(), both, &[t_chunk.x, chunk.x].concat(), head);
        }
    }
    d_w.map(Sum::adding);
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
        for (n, got) in forward(&x, Map::f32(&w, C, V), &targets()).iter().enumerate() {
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

    fn run_backward(all: &[f32], d: &[f32], keep: bool) -> [Vec<f32>; 2] {
        let (x, w) = all.split_at(N * C);
        let (mut d_x, mut d_w) = (vec![0.0; N * C], vec![0.0; V * C]);
        let w = Map::f32(w, C, V);
        let (predicted, kept) = forward_with_gradient(&mut d_x, x, w, &targets(), keep);
        assert_eq!(kept.is_some(), keep);
        backward_weight(Sum::begun(&mut d_w), d, x, w, &targets(), &predicted, kept.as_deref());
        scale_rows(&mut d_x, d, C);
        [d_x, d_w]
    }

    fn run_with_curvature(all: &[f32], t: &[f32], d: &[f32], e: &[f32]) -> [Vec<f32>; 2] {
        let (x, w) = all.split_at(N * C);
        let (mut e_x, mut d_w) = (vec![0.0; N * C], vec![0.0; V * C]);
        let w = Map::f32(w, C, V);
        let (t_x, predicted) = (&t[..N * C], forward(x, w, &targets()));
        backward_with_curvature(
            &mut e_x,
            Some(Sum::begun(&mut d_w)),
            (d, e),
            (x, t_x),
            w,
            &targets(),
            &predicted,
        );
        [e_x, d_w]
    }

    #[test]
    fn derivatives() {
        let targets = targets();
        let op = Op {
            forward: &|all| {
                forward(&all[..N * C], Map::f32(&all[N * C..], C, V), &targets)
                    .iter()
                    .map(|p| p.logp)
                    .collect()
            },
            backward: &|all, d| run_backward(all, d, false).concat(),
            tangent: &|all, t| {
                let (x, w) = all.split_at(N * C);
                let mut g = vec![0.0; N * C];
                forward_with_gradient(&mut g, x, Map::f32(w, C, V), &targets, false);
                tangent(&g, &t[..N * C], C)
            },
            curvature: &|all, t, d| run_with_curvature(all, t, d, &[0.0; N]).concat(),
            moving: N * C,
        };
        check(&op, &random(N * C + V * C, 9), N, 4e-3, 2e-3);
    }

    #[test]
    fn kept_or_computed_again_is_the_same() {
        let (all, d) = (random(N * C + V * C, 9), random(N, 11));
        let ([d_x, d_w], again) = (run_backward(&all, &d, true), run_backward(&all, &d, false));
        assert_eq!(d_x, again[0]);
        // Sums of 261 f32 terms below 1, in one piece or in two.
        close(&d_w, &again[1], 2e-6, "gradient of the weight");
        let many = vec![0.0; (KEPT + 1) * C];
        let (mut g, w) = (many.clone(), Map::f32(&all[N * C..], C, V));
        assert!(forward_with_gradient(&mut g, &many, w, &[0; KEPT + 1], true).1.is_none(), "too many rows");
    }

    #[test]
    fn a_sum_begins_with_its_first_term_and_is_0_without_any() {
        let w = random(V * C, 2);
        let head = Map::f32(&w, C, V);
        let of = |n: usize, add: bool, keep: bool| {
            let (x, d, targets) = (random(n * C, 1), random(n, 3), &targets()[..n]);
            let (predicted, kept) = forward_with_gradient(&mut vec![0.0; n * C], &x, head, targets, keep);
            let mut d_w = vec![if add { 0.0 } else { f32::NAN }; V * C];
            let sum = Sum { to: &mut d_w, add };
            backward_weight(sum, &d, &x, head, targets, &predicted, kept.as_deref());
            d_w
        };
        for keep in [false, true] {
            assert_eq!(of(N, false, keep), of(N, true, keep));
            assert_eq!(of(0, false, keep), vec![0.0; V * C]);
        }
    }

    #[test]
    fn backward_with_curvature_is_the_sum_of_both() {
        let (all, t) = (random(N * C + V * C, 9), random(N * C, 10));
        let (d, e) = (random(N, 11), random(N, 12));
        let both = run_with_curvature(&all, &t, &d, &e).concat();
        let curvature = run_with_curvature(&all, &t, &d, &[0.0; N]).concat();
        let plain = run_backward(&all, &e, false).concat();
        let sum: Vec<f32> = plain.iter().zip(&curvature).map(|(a, b)| a + b).collect();
        // Sums of 133 f32 terms below 1, in another order.
        close(&both, &sum, 2e-5, "backward with curvature");
    }
}
