//! `y = x w^T + b`: `x` is `[T, I]`, `w` is `[O, I]`, `b` is `[O]`, `y` is `[T, O]`.

use crate::gemm::{Mat, Threads, gemm};
use crate::rows;

/// Writes `y = x w^T + b`.
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], b: Option<&[f32]>, inputs: usize, outputs: usize) {
    let t = x.len() / inputs;
    if let Some(b) = b {
        y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(b));
    }
    gemm(
        (t, outputs, inputs),
        y,
        outputs,
        b.is_some(),
        1.0,
        Mat::new(x, inputs),
        Mat::new(w, inputs).t(),
        Threads::All,
    );
}

/// Writes `t_y = t_x w^T`.
pub fn tangent(t_y: &mut [f32], t_x: &[f32], w: &[f32], inputs: usize, outputs: usize) {
    forward(t_y, t_x, w, None, inputs, outputs);
}

/// Writes (or with `accumulate` adds) `d_x = d_y w`.
pub fn backward_input(
    d_x: &mut [f32],
    d_y: &[f32],
    w: &[f32],
    inputs: usize,
    outputs: usize,
    accumulate: bool,
) {
    let t = d_y.len() / outputs;
    gemm(
        (t, inputs, outputs),
        d_x,
        inputs,
        accumulate,
        1.0,
        Mat::new(d_y, outputs),
        Mat::new(w, inputs),
        Threads::All,
    );
}

/// Adds `d_w += d_y^T x`. With `t_x` for `x` it is the curvature: how the gradient changes along `t_x`, `d_y` held.
pub fn backward_weight(d_w: &mut [f32], d_y: &[f32], x: &[f32], inputs: usize, outputs: usize) {
    let t = d_y.len() / outputs;
    gemm(
        (outputs, inputs, t),
        d_w,
        inputs,
        true,
        1.0,
        Mat::new(d_y, outputs).t(),
        Mat::new(x, inputs),
        Threads::All,
    );
}

/// Adds `d_b += sum over rows of d_y`.
pub fn backward_bias(d_b: &mut [f32], d_y: &[f32]) {
    let outputs = d_b.len();
    let t = d_y.len() / outputs;
    // A parallel pass over nothing but a sum: one dummy output element per row.
    let mut rows = vec![0.0; t];
    rows::for_pieces_summing(&mut rows, 1, d_b, |first, piece, sums| {
        for r in first..first + piece.len() {
            for (s, d) in sums.iter_mut().zip(&d_y[r * outputs..(r + 1) * outputs]) {
                *s += d;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Op, check, close, random};

    const T: usize = 5;
    const I: usize = 7;
    const O: usize = 3;

    #[test]
    fn forward_equals_the_loops() {
        let (x, w, b) = (random(T * I, 1), random(O * I, 2), random(O, 3));
        let mut y = vec![0.0; T * O];
        forward(&mut y, &x, &w, Some(&b), I, O);
        let want: Vec<f32> = (0..T * O)
            .map(|n| b[n % O] + (0..I).map(|i| x[n / O * I + i] * w[n % O * I + i]).sum::<f32>())
            .collect();
        close(&y, &want, 1e-6, "linear");
    }

    #[test]
    fn derivatives() {
        // x, then w, then b in one vector.
        let split = |all: &[f32]| {
            (all[..T * I].to_vec(), all[T * I..T * I + O * I].to_vec(), all[T * I + O * I..].to_vec())
        };
        let op = Op {
            forward: &|all| {
                let (x, w, b) = split(all);
                let mut y = vec![0.0; T * O];
                forward(&mut y, &x, &w, Some(&b), I, O);
                y
            },
            backward: &|all, d_y| {
                let (x, w, _) = split(all);
                let (mut d_x, mut d_w, mut d_b) = (vec![0.0; T * I], vec![0.0; O * I], vec![0.0; O]);
                backward_input(&mut d_x, d_y, &w, I, O, false);
                backward_weight(&mut d_w, d_y, &x, I, O);
                backward_bias(&mut d_b, d_y);
                [d_x, d_w, d_b].concat()
            },
            tangent: &|all, t| {
                let mut t_y = vec![0.0; T * O];
                tangent(&mut t_y, &t[..T * I], &split(all).1, I, O);
                t_y
            },
            curvature: &|_, t, d_y| {
                let mut d_w = vec![0.0; O * I];
                backward_weight(&mut d_w, d_y, &t[..T * I], I, O);
                [vec![0.0; T * I], d_w, vec![0.0; O]].concat()
            },
            moving: T * I,
        };
        check(&op, &random(T * I + O * I + O, 9), T * O, 1e-2, 2e-4);
    }
}
