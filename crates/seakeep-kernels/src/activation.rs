//! Activation functions, plain (`y = f(x)`) and gated (`y = f(g) u`, as in SwiGLU, arXiv 2002.05202).
//! Element-wise: shapes do not matter as long as they agree.

use rayon::prelude::*;

use crate::simd::{erf, exp, sigmoid, tanh};
use crate::vectorise;

/// The functions that checkpoints name in `hidden_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x Phi(x)`, `Phi` the normal distribution function
    Gelu,
}

/// Value, first and second derivative at a point.
#[derive(Clone, Copy)]
struct Jet(f32, f32, f32);

#[inline(always)]
fn silu(x: f32) -> Jet {
    let s = sigmoid(x);
    let c = 1.0 - s;
    Jet(x * s, s * (1.0 + x * c), s * c * (2.0 + x * (c - s)))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> Jet {
    const K: f32 = 0.797_884_6; // sqrt(2 / pi)
    const A: f32 = 0.044_715;
    let t = tanh(K * (x + A * x * x * x));
    let du = K * (1.0 + 3.0 * A * x * x);
    let ddu = 6.0 * K * A * x;
    let dt = (1.0 - t * t) * du;
    let ddt = (1.0 - t * t) * ddu - 2.0 * t * dt * du;
    Jet(0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * dt, dt + 0.5 * x * ddt)
}

#[inline(always)]
fn gelu(x: f32) -> Jet {
    let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    let pdf = 0.398_942_3 * exp(-0.5 * x * x);
    Jet(x * cdf, cdf + x * pdf, pdf * (2.0 - x * x))
}

/// Elements per parallel piece.
const PIECE: usize = 1 << 14;

/// Calls the body once with `f` bound to the chosen function, so that each loop is compiled for it.
macro_rules! with {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            Activation::Silu => vectorise!({
                let $f = silu;
                $body
            }),
            Activation::GeluTanh => vectorise!({
                let $f = gelu_tanh;
                $body
            }),
            Activation::Gelu => vectorise!({
                let $f = gelu;
                $body
            }),
        }
    };
}

/// Runs `each(range, piece_of_out)` over fixed pieces in parallel.
fn pieces(out: &mut [f32], each: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync) {
    out.par_chunks_mut(PIECE).enumerate().for_each(|(p, out)| each(p * PIECE..p * PIECE + out.len(), out));
}

/// Two outputs of the same shape, cut alike.
fn pieces2(
    a: &mut [f32],
    b: &mut [f32],
    each: impl Fn(std::ops::Range<usize>, &mut [f32], &mut [f32]) + Sync,
) {
    a.par_chunks_mut(PIECE)
        .zip(b.par_chunks_mut(PIECE))
        .enumerate()
        .for_each(|(p, (a, b))| each(p * PIECE..p * PIECE + a.len(), a, b));
}

/// Writes `y = f(x)`.
pub fn forward(act: Activation, y: &mut [f32], x: &[f32]) {
    pieces(y, |at, y| with!(act, f => y.iter_mut().zip(&x[at]).for_each(|(y, &x)| *y = f(x).0)));
}

/// Writes `t_y = f'(x) t_x`; with `d_y` for `t_x` it is also `d_x`: the derivative is diagonal.
pub fn tangent(act: Activation, t_y: &mut [f32], x: &[f32], t_x: &[f32]) {
    pieces(t_y, |at, out| {
        let (x, t_x) = (&x[at.clone()], &t_x[at]);
        with!(act, f => for i in 0..out.len() { out[i] = f(x[i]).1 * t_x[i]; })
    });
}

/// Writes `d_x = f'(x) d_y`.
pub fn backward(act: Activation, d_x: &mut [f32], d_y: &[f32], x: &[f32]) {
    tangent(act, d_x, x, d_y);
}

/// Writes `s_x = f''(x) t_x d_y`: how [`backward`] changes along `t_x`, `d_y` held.
pub fn curvature(act: Activation, s_x: &mut [f32], d_y: &[f32], x: &[f32], t_x: &[f32]) {
    pieces(s_x, |at, out| {
        let (x, t_x, d_y) = (&x[at.clone()], &t_x[at.clone()], &d_y[at]);
        with!(act, f => for i in 0..out.len() { out[i] = f(x[i]).2 * t_x[i] * d_y[i]; })
    });
}

/// Writes `y = f(g) u`.
pub fn gated_forward(act: Activation, y: &mut [f32], g: &[f32], u: &[f32]) {
    pieces(y, |at, y| {
        let (g, u) = (&g[at.clone()], &u[at]);
        with!(act, f => for i in 0..y.len() { y[i] = f(g[i]).0 * u[i]; })
    });
}

/// Writes `t_y = f'(g) t_g u + f(g) t_u`.
pub fn gated_tangent(act: Activation, t_y: &mut [f32], g: &[f32], u: &[f32], t_g: &[f32], t_u: &[f32]) {
    pieces(t_y, |at, out| {
        let (g, u, t_g, t_u) = (&g[at.clone()], &u[at.clone()], &t_g[at.clone()], &t_u[at]);
        with!(act, f => for i in 0..out.len() {
            let Jet(v, d1, _) = f(g[i]);
            out[i] = d1 * t_g[i] * u[i] + v * t_u[i];
        })
    });
}

/// Writes `d_g = f'(g) u d_y` and `d_u = f(g) d_y`.
pub fn gated_backward(act: Activation, d_g: &mut [f32], d_u: &mut [f32], d_y: &[f32], g: &[f32], u: &[f32]) {
    pieces2(d_g, d_u, |at, d_g, d_u| {
        let (g, u, d_y) = (&g[at.clone()], &u[at.clone()], &d_y[at]);
        with!(act, f => for i in 0..d_g.len() {
            let Jet(v, d1, _) = f(g[i]);
            d_g[i] = d1 * u[i] * d_y[i];
            d_u[i] = v * d_y[i];
        })
    });
}

/// How [`gated_backward`] changes along `t_g` and `t_u`, `d_y` held: writes `s_g = f' t_u d_y + f'' t_g u d_y` and
/// `s_u = f' t_g d_y`.
#[allow(clippy::too_many_arguments)]
pub fn gated_curvature(
    act: Activation,
    s_g: &mut [f32],
    s_u: &mut [f32],
    d_y: &[f32],
    g: &[f32],
    u: &[f32],
    t_g: &[f32],
    t_u: &[f32],
) {
    pieces2(s_g, s_u, |at, s_g, s_u| {
        let (g, u, d_y) = (&g[at.clone()], &u[at.clone()], &d_y[at.clone()]);
        let (t_g, t_u) = (&t_g[at.clone()], &t_u[at]);
        with!(act, f => for i in 0..s_g.len() {
            let Jet(_, d1, d2) = f(g[i]);
            s_g[i] = (d1 * t_u[i] + d2 * t_g[i] * u[i]) * d_y[i];
            s_u[i] = d1 * t_g[i] * d_y[i];
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Op, check, random};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];
    const N: usize = 200;

    fn fresh(n: usize, f: impl Fn(&mut [f32])) -> Vec<f32> {
        let mut out = vec![0.0; n];
        f(&mut out);
        out
    }

    fn wide(n: usize) -> Vec<f32> {
        random(n, 5).iter().map(|x| 4.0 * x).collect()
    }

    #[test]
    fn forward_equals_the_formula() {
        let x = wide(N);
        let y = ALL.map(|act| fresh(N, |y| forward(act, y, &x)));
        for i in 0..N {
            let v = x[i] as f64;
            let silu = v / (1.0 + (-v).exp());
            let tanh =
                0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh());
            assert!((y[0][i] as f64 - silu).abs() < 1e-6);
            assert!((y[1][i] as f64 - tanh).abs() < 1e-6);
            // The tanh form is an approximation of the normal distribution function's, good to 1e-3.
            assert!((y[2][i] as f64 - tanh).abs() < 2e-3);
        }
    }

    #[test]
    fn plain_derivatives() {
        for act in ALL {
            let op = Op {
                forward: &|x| fresh(N, |y| forward(act, y, x)),
                backward: &|x, d| fresh(N, |y| backward(act, y, d, x)),
                tangent: &|x, t| fresh(N, |y| tangent(act, y, x, t)),
                curvature: &|x, t, d| fresh(N, |y| curvature(act, y, d, x, t)),
                moving: N,
            };
            check(&op, &wide(N), N, 4e-3, 1e-3);
        }
    }

    #[test]
    fn gated_derivatives() {
        for act in ALL {
            let op = Op {
                forward: &|x| fresh(N, |y| gated_forward(act, y, &x[..N], &x[N..])),
                backward: &|x, d| {
                    fresh(2 * N, |y| {
                        let (g, u) = y.split_at_mut(N);
                        gated_backward(act, g, u, d, &x[..N], &x[N..]);
                    })
                },
                tangent: &|x, t| fresh(N, |y| gated_tangent(act, y, &x[..N], &x[N..], &t[..N], &t[N..])),
                curvature: &|x, t, d| {
                    fresh(2 * N, |y| {
                        let (g, u) = y.split_at_mut(N);
                        gated_curvature(act, g, u, d, &x[..N], &x[N..], &t[..N], &t[N..]);
                    })
                },
                moving: 2 * N,
            };
            check(&op, &wide(2 * N), N, 4e-3, 2e-3);
        }
    }
}
