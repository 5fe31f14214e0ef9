//! `y = g x r`, `r = (mean x^2 + eps)^(-1/2)` over each row of `C` channels; `g` is `[C]`.
//! (Zhang and Sennrich, arXiv 1910.07467.) With rows of one head it is Qwen3's QK norm.

use crate::rows::{for_pieces, for_pieces_summing};
use crate::simd::{dot, sum_by};
use crate::vectorise;

#[inline(always)]
fn scale(x: &[f32], eps: f32) -> f32 {
    (dot(x, x) / x.len() as f32 + eps).sqrt().recip()
}

/// Writes `y` (`[T, C]`).
pub fn forward(y: &mut [f32], x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces(y, c, |first, piece| {
        vectorise!({
            for (y, x) in piece.chunks_exact_mut(c).zip(x[first * c..].chunks_exact(c)) {
                let r = scale(x, eps);
                for i in 0..c {
                    y[i] = g[i] * x[i] * r;
                }
            }
        })
    });
}

/// Writes `t_y = g (t_x r + x t_r)`, `t_r = -r^3 mean(x t_x)`.
pub fn tangent(t_y: &mut [f32], x: &[f32], t_x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces(t_y, c, |first, piece| {
        let (x, t_x) = (&x[first * c..], &t_x[first * c..]);
        vectorise!({
            for ((y, x), t) in piece.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(t_x.chunks_exact(c)) {
                let r = scale(x, eps);
                let t_r = -r * r * r * dot(x, t) / c as f32;
                for i in 0..c {
                    y[i] = g[i] * (t[i] * r + x[i] * t_r);
                }
            }
        })
    });
}

/// Writes `d_x = r a - x r^3 mean(a x)` with `a = g d_y`, and adds `d_g += sum d_y x r`.
pub fn backward(d_x: &mut [f32], d_g: &mut [f32], d_y: &[f32], x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces_summing(d_x, c, d_g, |first, piece, d_g| {
        let (x, d_y) = (&x[first * c..], &d_y[first * c..]);
        vectorise!({
            for ((out, x), d) in piece.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(d_y.chunks_exact(c)) {
                let r = scale(x, eps);
                let m = sum_by(c, |i| g[i] * d[i] * x[i]) / c as f32;
                let r3m = r * r * r * m;
                for i in 0..c {
                    out[i] = r * g[i] * d[i] - x[i] * r3m;
                    d_g[i] += d[i] * x[i] * r;
                }
            }
        })
    });
}

/// How [`backward`] changes along `t_x`, `d_y` held. With `a = g d_y`, `m = mean(a x)`, `t_m = mean(a t_x)`:
/// writes `s_x = t_r a - t_x r^3 m - 3 x r^2 t_r m - x r^3 t_m` and adds `d_g += sum d_y (t_x r + x t_r)`.
pub fn curvature(s_x: &mut [f32], d_g: &mut [f32], d_y: &[f32], x: &[f32], t_x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for_pieces_summing(s_x, c, d_g, |first, piece, d_g| {
        vectorise!({
            for (row, out) in piece.chunks_exact_mut(c).enumerate() {
                let at = (first + row) * c..(first + row + 1) * c;
                let (x, t, d) = (&x[at.clone()], &t_x[at.clone()], &d_y[at]);
                let n = c as f32;
                let r = scale(x, eps);
                let t_r = -r * r * r * dot(x, t) / n;
                let m = sum_by(c, |i| g[i] * d[i] * x[i]) / n;
                let t_m = sum_by(c, |i| g[i] * d[i] * t[i]) / n;
                let r3m = r * r * r * m;
                let t_r3m = 3.0 * r * r * t_r * m + r * r * r * t_m;
                for i in 0..c {
                    out[i] = t_r * g[i] * d[i] - t[i] * r3m - x[i] * t_r3m;
                    d_g[i] += d[i] * (t[i] * r + x[i] * t_r);
                }
            }
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Op, check, close, random};

    const T: usize = 37;
    const C: usize = 9;
    const EPS: f32 = 1e-3;

    #[test]
    fn forward_equals_the_formula() {
        let (x, g) = (random(T * C, 1), random(C, 2));
        let mut y = vec![0.0; T * C];
        forward(&mut y, &x, &g, EPS);
        let want: Vec<f32> = (0..T * C)
            .map(|n| {
                let row = &x[n / C * C..(n / C + 1) * C];
                let mean = row.iter().map(|&v| (v * v) as f64).sum::<f64>() / C as f64;
                (g[n % C] as f64 * x[n] as f64 / (mean + EPS as f64).sqrt()) as f32
            })
            .collect();
        close(&y, &want, 1e-6, "rmsnorm");
    }

    #[test]
    fn derivatives() {
        let op = Op {
            forward: &|all| {
                let mut y = vec![0.0; T * C];
                forward(&mut y, &all[..T * C], &all[T * C..], EPS);
                y
            },
            backward: &|all, d_y| {
                let (mut d_x, mut d_g) = (vec![0.0; T * C], vec![0.0; C]);
                backward(&mut d_x, &mut d_g, d_y, &all[..T * C], &all[T * C..], EPS);
                [d_x, d_g].concat()
            },
            tangent: &|all, t| {
                let mut y = vec![0.0; T * C];
                tangent(&mut y, &all[..T * C], &t[..T * C], &all[T * C..], EPS);
                y
            },
            curvature: &|all, t, d_y| {
                let (mut s_x, mut d_g) = (vec![0.0; T * C], vec![0.0; C]);
                curvature(&mut s_x, &mut d_g, d_y, &all[..T * C], &t[..T * C], &all[T * C..], EPS);
                [s_x, d_g].concat()
            },
            moving: T * C,
        };
        check(&op, &random(T * C + C, 5), T * C, 2e-3, 2e-3);
    }
}
