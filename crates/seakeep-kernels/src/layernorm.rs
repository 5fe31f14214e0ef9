//! `y = g z + b`, `z = (x - mean x) r`, `r = (var x + eps)^(-1/2)` over each row of `C` channels.
//! (Ba et al., arXiv 1607.06450.) `g` and `b` are `[C]`.

use crate::rows::{for_pieces, for_pieces_summing};
use crate::simd::sum_by;
use crate::vectorise;

/// Mean and `r` of a row.
#[inline(always)]
fn stats(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum_by(x.len(), |i| x[i]) / n;
    let var = sum_by(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, (var + eps).sqrt().recip())
}

/// Writes `z` and its tangent `t_z = (t_x - mean t_x) r + (x - mean x) t_r`,
/// `t_r = -r^3 mean((x - mean x) t_x)`; returns `(r, t_r)`.
#[inline(always)]
fn normalised(z: &mut [f32], t_z: &mut [f32], x: &[f32], t: &[f32], eps: f32) -> (f32, f32) {
    let c = x.len();
    let (mean, r) = stats(x, eps);
    let t_mean = sum_by(c, |i| t[i]) / c as f32;
    let t_r = -r * r * r * sum_by(c, |i| (x[i] - mean) * (t[i] - t_mean)) / c as f32;
    for i in 0..c {
        z[i] = (x[i] - mean) * r;
        t_z[i] = (t[i] - t_mean) * r + (x[i] - mean) * t_r;
    }
    (r, t_r)
}

/// Writes `y` (`[T, C]`).
pub fn forward(y: &mut [f32], x: &[f32], g: &[f32], b: &[f32], eps: f32) {
    let c = g.len();
    for_pieces(y, c, |first, piece| {
        vectorise!({
            for (y, x) in piece.chunks_exact_mut(c).zip(x[first * c..].chunks_exact(c)) {
                let (mean, r) = stats(x, eps);
                for i in 0..c {
                    y[i] = g[i] * (x[i] - mean) * r + b[i];
                }
            }
        })
    });
}

/// Writes `t_y = g t_z`.
pub fn tangent(t_y: &mut [f32], x: &[f32], t_x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces(t_y, c, |first, piece| {
        let mut z = vec![0.0; c];
        let (x, t_x) = (&x[first * c..], &t_x[first * c..]);
        vectorise!({
            for ((y, x), t) in piece.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(t_x.chunks_exact(c)) {
                normalised(&mut z, y, x, t, eps);
                for i in 0..c {
                    y[i] *= g[i];
                }
            }
        })
    });
}

/// Writes `d_x = r (a - mean a - z mean(a z))` with `a = g d_y`; adds `d_g += sum d_y z`, `d_b += sum d_y`.
/// `d_gb` is `[2, C]`: `d_g`, then `d_b`.
pub fn backward(d_x: &mut [f32], d_gb: &mut [f32], d_y: &[f32], x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces_summing(d_x, c, d_gb, |first, piece, d_gb| {
        let (d_g, d_b) = d_gb.split_at_mut(c);
        let (x, d_y) = (&x[first * c..], &d_y[first * c..]);
        vectorise!({
            for ((out, x), d) in piece.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(d_y.chunks_exact(c)) {
                let n = c as f32;
                let (mean, r) = stats(x, eps);
                let mean_a = sum_by(c, |i| g[i] * d[i]) / n;
                let mean_az = sum_by(c, |i| g[i] * d[i] * (x[i] - mean) * r) / n;
                for i in 0..c {
                    let z = (x[i] - mean) * r;
                    out[i] = r * (g[i] * d[i] - mean_a - z * mean_az);
                    d_g[i] += d[i] * z;
                    d_b[i] += d[i];
                }
            }
        })
    });
}

/// How [`backward`] changes along `t_x`, `d_y` held. With `a = g d_y`, `m = mean(a z)`, `t_m = mean(a t_z)`: writes
/// `s_x = t_r (a - mean a - z m) - r (t_z m + z t_m)`; adds `d_g += sum d_y t_z`. `d_b` does not change.
pub fn curvature(s_x: &mut [f32], d_g: &mut [f32], d_y: &[f32], x: &[f32], t_x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces_summing(s_x, c, d_g, |first, piece, d_g| {
        let (mut z, mut t_z) = (vec![0.0; c], vec![0.0; c]);
        vectorise!({
            for (row, out) in piece.chunks_exact_mut(c).enumerate() {
                let at = (first + row) * c..(first + row + 1) * c;
                let d = &d_y[at.clone()];
                let (r, t_r) = normalised(&mut z, &mut t_z, &x[at.clone()], &t_x[at], eps);
                let n = c as f32;
                let mean_a = sum_by(c, |i| g[i] * d[i]) / n;
                let m = sum_by(c, |i| g[i] * d[i] * z[i]) / n;
                let t_m = sum_by(c, |i| g[i] * d[i] * t_z[i]) / n;
                for i in 0..c {
                    out[i] = t_r * (g[i] * d[i] - mean_a - z[i] * m) - r * (t_z[i] * m + z[i] * t_m);
                    d_g[i] += d[i] * t_z[i];
                }
            }
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Op, check, close, random};

    const T: usize = 35;
    const C: usize = 9;
    const EPS: f32 = 1e-3;

    #[test]
    fn forward_equals_the_formula() {
        let (x, g, b) = (random(T * C, 1), random(C, 2), random(C, 3));
        let mut y = vec![0.0; T * C];
        forward(&mut y, &x, &g, &b, EPS);
        let want: Vec<f32> = (0..T * C)
            .map(|n| {
                let row: Vec<f64> = x[n / C * C..(n / C + 1) * C].iter().map(|&v| v as f64).collect();
                let mean = row.iter().sum::<f64>() / C as f64;
                let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / C as f64;
                (g[n % C] as f64 * (x[n] as f64 - mean) / (var + EPS as f64).sqrt() + b[n % C] as f64) as f32
            })
            .collect();
        close(&y, &want, 2e-6, "layernorm");
    }

    #[test]
    fn derivatives() {
        let (gs, bs) = (T * C, T * C + C);
        let op = Op {
            forward: &|all| {
                let mut y = vec![0.0; T * C];
                forward(&mut y, &all[..gs], &all[gs..bs], &all[bs..], EPS);
                y
            },
            backward: &|all, d_y| {
                let (mut d_x, mut d_gb) = (vec![0.0; T * C], vec![0.0; 2 * C]);
                backward(&mut d_x, &mut d_gb, d_y, &all[..gs], &all[gs..bs], EPS);
                [d_x, d_gb].concat()
            },
            tangent: &|all, t| {
                let mut y = vec![0.0; T * C];
                tangent(&mut y, &all[..gs], &t[..gs], &all[gs..bs], EPS);
                y
            },
            curvature: &|all, t, d_y| {
                let (mut s_x, mut d_g) = (vec![0.0; T * C], vec![0.0; C]);
                curvature(&mut s_x, &mut d_g, d_y, &all[..gs], &t[..gs], &all[gs..bs], EPS);
                [s_x, d_g, vec![0.0; C]].concat()
            },
            moving: T * C,
        };
        check(&op, &random(T * C + 2 * C, 5), T * C, 2e-3, 2e-3);
    }
}
