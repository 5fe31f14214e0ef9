//! The low-rank path beside a linear map (LoRA, Hu et al., arXiv 2106.09685, section 4.1): `y += s (x a^T) b^T`.
//!
//! `x` is `[T, I]`, `a` is `[R, I]`, `b` is `[O, R]`, `y` is `[T, O]`; `s` is a number. With `u = s x a^T`, `[T, R]`, hence
//! `y += u b^T`:
//!
//! ```text
//! backward    d_u = s d_y b;   d_x += d_u a;   d_a += d_u^T x;   d_b += d_y^T u
//! tangent     t_u = s t_x a^T;   t_y += t_u b^T
//! curvature   d_a += d_u^T t_x;   d_b += d_y^T t_u
//! ```
//! With dropout `x` is what is left of it, in all of these, and `d_x` goes back through the same mask.
//!
//! Everything is added to what the linear map itself has written. `u` is computed again where it is needed: it costs `R / O`
//! of the map. All of it is in f32, whatever the map is computed in.

use crate::buffer::Buffer;
use crate::dropout::Dropout;
use crate::gemm::{Mat, Precision, Threads, gemm};
use crate::linear::{self, Map, Sum};

/// The two matrices and the factor.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// `[R, I]`
    pub a: &'a [f32],
    /// `[O, R]`
    pub b: &'a [f32],
    /// The factor `s`.
    pub scale: f32,
    /// `I`
    pub inputs: usize,
    /// `O`
    pub outputs: usize,
    /// `R`
    pub rank: usize,
    /// Of the path's input, in training.
    pub dropout: Option<Dropout<'a>>,
}

/// The buffers of `d_a` and `d_b`.
pub type Pair<'a> = (&'a mut [f32], &'a mut [f32]);

impl Lora<'_> {
    /// What dropout leaves of `x`, where there is dropout.
    fn dropped(&self, x: &[f32]) -> Option<Buffer> {
        self.dropout.map(|dropout| dropout.apply(x, self.inputs))
    }

    /// `s x a^T`, `[T, R]`, of an `x` after dropout.
    fn down(&self, x: &[f32]) -> Buffer {
        let t = x.len() / self.inputs;
        let mut u = Buffer::new(t * self.rank, self.rank);
        let (x, a) = (Mat::new(x, self.inputs), Mat::new(self.a, self.inputs).t());
        gemm((t, self.rank, self.inputs), &mut u, self.rank, false, self.scale, x, a, Threads::All);
        u
    }

    /// `s d_y b`, `[T, R]`.
    fn d_down(&self, d_y: &[f32]) -> Buffer {
        let t = d_y.len() / self.outputs;
        let mut d_u = Buffer::new(t * self.rank, self.rank);
        let (d_y, b) = (Mat::new(d_y, self.outputs), Mat::new(self.b, self.rank));
        gemm((t, self.rank, self.outputs), &mut d_u, self.rank, false, self.scale, d_y, b, Threads::All);
        d_u
    }

    /// Adds `y += s (x a^T) b^T`. Also serves `t_y` from `t_x`.
    pub fn forward(&self, y: &mut [f32], x: &[f32]) {
        let t = x.len() / self.inputs;
        let dropped = self.dropped(x);
        let u = self.down(dropped.as_deref().unwrap_or(x));
        let (u, b) = (Mat::new(&u, self.rank), Mat::new(self.b, self.rank).t());
        gemm((t, self.outputs, self.rank), y, self.outputs, true, 1.0, u, b, Threads::All);
    }

    /// Adds to `d_x` and, where they are given, to `d_a` and `d_b`.
    pub fn backward(&self, d_x: &mut [f32], d_ab: Option<Pair>, d_y: &[f32], x: &[f32]) {
        let d_u = self.d_down(d_y);
        let down = Map::f32(self.a, self.inputs, self.rank);
        match self.dropout {
            None => down.backward_input(d_x, &d_u, true),
            Some(dropout) => {
                let mut d_dropped = Buffer::new(x.len(), self.inputs);
                down.backward_input(&mut d_dropped, &d_u, false);
                dropout.add(d_x, &d_dropped, self.inputs);
            }
        }
        if let Some(d_ab) = d_ab {
            self.add_gradients(d_ab, (d_y, &d_u), x);
        }
    }

    /// Adds to `d_a` and `d_b` how [`backward`](Self::backward) changes them along `t_x`, `d_y` held.
    pub fn curvature(&self, d_ab: Pair, d_y: &[f32], t_x: &[f32]) {
        self.add_gradients(d_ab, (d_y, &self.d_down(d_y)), t_x);
    }

    fn add_gradients(&self, (d_a, d_b): Pair, (d_y, d_u): (&[f32], &[f32]), x: &[f32]) {
        let dropped = self.dropped(x);
        let x = dropped.as_deref().unwrap_or(x);
        linear::backward_weights(vec![(Sum::begun(d_b), d_y)], &self.down(x), self.rank, Precision::F32);
        linear::backward_weights(vec![(Sum::begun(d_a), d_u)], x, self.inputs, Precision::F32);
    }

    /// Adds the path to the map's weight: `w += s b a`, `[O, I]`.
    pub fn merge(&self, w: &mut [f32]) {
        let (b, a) = (Mat::new(self.b, self.rank), Mat::new(self.a, self.inputs));
        let dims = (self.outputs, self.inputs, self.rank);
        gemm(dims, w, self.inputs, true, self.scale, b, a, Threads::All);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Op, check, close, random};

    const T: usize = 5;
    const I: usize = 7;
    const O: usize = 3;
    const R: usize = 2;
    const ALL: usize = T * I + R * I + O * R;

    /// `x`, then `a`, then `b` in one vector.
    fn split<'a>(all: &'a [f32], dropout: Option<Dropout<'a>>) -> (&'a [f32], Lora<'a>) {
        let (x, rest) = all.split_at(T * I);
        let (a, b) = rest.split_at(R * I);
        (x, Lora { a, b, scale: 1.5, inputs: I, outputs: O, rank: R, dropout })
    }

    fn forward(all: &[f32], dropout: Option<Dropout<'static>>) -> Vec<f32> {
        let (x, lora) = split(all, dropout);
        let mut y = vec![0.0; T * O];
        lora.forward(&mut y, x);
        y
    }

    #[test]
    fn forward_equals_the_loops_and_the_merged_map() {
        let all = random(ALL, 4);
        let (x, lora) = split(&all, None);
        let want: Vec<f32> = (0..T * O)
            .map(|n| {
                let (t, o) = (n / O, n % O);
                let u = |r: usize| (0..I).map(|i| x[t * I + i] * lora.a[r * I + i]).sum::<f32>();
                1.5 * (0..R).map(|r| u(r) * lora.b[o * R + r]).sum::<f32>()
            })
            .collect();
        close(&forward(&all, None), &want, 1e-6, "low-rank path");
        let (w, mut y, mut merged) = (random(O * I, 5), vec![0.0; T * O], vec![0.0; T * O]);
        Map::f32(&w, I, O).forward(&mut y, x, None);
        lora.forward(&mut y, x);
        let mut sum = w.clone();
        lora.merge(&mut sum);
        Map::f32(&sum, I, O).forward(&mut merged, x, None);
        close(&merged, &y, 1e-6, "merged");
    }

    #[test]
    fn derivatives() {
        let dropout = Dropout { p: 0.4, rows: &[3, 1, 4, 1, 5], module: 9 };
        for dropout in [None, Some(dropout)] {
            let op = Op {
                forward: &|all| forward(all, dropout),
                backward: &|all, d_y| {
                    let (x, lora) = split(all, dropout);
                    let (mut d_x, mut d_a, mut d_b) = (vec![0.0; T * I], vec![0.0; R * I], vec![0.0; O * R]);
                    lora.backward(&mut d_x, Some((&mut d_a, &mut d_b)), d_y, x);
                    [d_x, d_a, d_b].concat()
                },
                tangent: &|all, t| {
                    let mut t_y = vec![0.0; T * O];
                    split(all, dropout).1.forward(&mut t_y, &t[..T * I]);
                    t_y
                },
                curvature: &|all, t, d_y| {
                    let (mut d_a, mut d_b) = (vec![0.0; R * I], vec![0.0; O * R]);
                    split(all, dropout).1.curvature((&mut d_a, &mut d_b), d_y, &t[..T * I]);
                    [vec![0.0; T * I], d_a, d_b].concat()
                },
                moving: T * I,
            };
            check(&op, &random(ALL, 9), T * O, 1e-2, 1e-3);
        }
    }
}
