//! `y = x w^T + b`: `x` is `[T, I]`, `w` is `[O, I]`, `b` is `[O]`, `y` is `[T, O]`.

use rayon::prelude::*;

use crate::gemm::{
    Elements, Mat, Own, Precision, Product, Weight, multiply, multiply_by_each, multiply_each_by,
};
use crate::rows;

/// The map without its bias.
#[derive(Clone, Copy)]
pub struct Map<'a> {
    /// `w`, `[O, I]`, as it is stored.
    pub w: Elements<'a>,
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// What products are computed in.
    pub precision: Precision,
}

impl<'a> Map<'a> {
    /// A map in f32.
    pub fn f32(w: &'a [f32], inputs: usize, outputs: usize) -> Self {
        Map { w: w.into(), inputs, outputs, precision: Precision::F32 }
    }

    /// Writes `y = x w^T + b`; without `b` also `t_y` from `t_x`.
    pub fn forward(&self, y: &mut [f32], x: &[f32], b: Option<&[f32]>) {
        let (i, o) = (self.inputs, self.outputs);
        let size = (x.len() / i, o, i);
        let product = Product::whole(o, begin(y, b), self.precision);
        multiply(size, y, product, Mat::new(x, i), Weight::new(self.w, i).t());
    }

    /// Writes (or with `accumulate` adds) `d_x = d_y w`.
    pub fn backward_input(&self, d_x: &mut [f32], d_y: &[f32], accumulate: bool) {
        let (i, o) = (self.inputs, self.outputs);
        let size = (d_y.len() / o, i, o);
        let w = Weight::new(self.w, i);
        multiply(size, d_x, Product::whole(i, accumulate, self.precision), Mat::new(d_y, o), w);
    }
}

/// Writes the bias to each row, if there is one; whether there is.
fn begin(y: &mut [f32], b: Option<&[f32]>) -> bool {
    if let Some(b) = b {
        y.chunks_exact_mut(b.len()).for_each(|row| row.copy_from_slice(b));
    }
    b.is_some()
}

/// [`Map::forward`] by several maps of the same `x` (and one precision): to the bit the same, but `x` is packed once.
pub fn forward_each<'a, const N: usize>(
    maps: [Map<'a>; N],
    ys: [&'a mut [f32]; N],
    x: &[f32],
    biases: [Option<&[f32]>; N],
) {
    let Some(&Map { inputs, precision, .. }) = maps.first() else { return };
    let each = maps.into_iter().zip(ys).zip(biases);
    // One product alone chooses its side by what packs less.
    if N == 1 {
        return each.for_each(|((map, y), b)| map.forward(y, x, b));
    }
    let own = |((map, y), b): ((Map<'a>, &'a mut [f32]), _)| {
        let accumulate = begin(y, b);
        Own { operand: Weight::new(map.w, inputs).t().into(), size: map.outputs, c: y, accumulate }
    };
    multiply_by_each(Mat::new(x, inputs), (x.len() / inputs, inputs), each.map(own).collect(), precision);
}

/// Where a sum of gradients is.
pub struct Sum<'a> {
    /// The elements.
    pub to: &'a mut [f32],
    /// Whether it has begun; otherwise anything may stand there, to be overwritten.
    pub add: bool,
}

impl<'a> Sum<'a> {
    /// A sum that has begun.
    pub fn begun(to: &'a mut [f32]) -> Self {
        Sum { to, add: true }
    }

    /// The elements, to be added to.
    pub fn adding(self) -> &'a mut [f32] {
        if !self.add {
            self.to.par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
        }
        self.to
    }

    /// For one of several terms.
    pub fn term(&mut self) -> Sum<'_> {
        Sum { to: self.to, add: std::mem::replace(&mut self.add, true) }
    }
}

/// Adds `d_w += d_y^T x` for each `(d_w, d_y)` of maps of the same `x`, which is packed once. With `t_x` for `x` it is the curvature: how the
/// gradient changes along `t_x`, `d_y` held.
pub fn backward_weights<'a>(each: Vec<(Sum<'a>, &'a [f32])>, x: &[f32], inputs: usize, precision: Precision) {
    let own = |(Sum { to: c, add: accumulate }, d_y): (Sum<'a>, &'a [f32])| {
        let outputs = c.len() / inputs;
        Own { operand: Mat::new(d_y, outputs).t().into(), size: outputs, c, accumulate }
    };
    let each = each.into_iter().map(own).collect();
    multiply_each_by(each, Mat::new(x, inputs), (inputs, x.len() / inputs), precision);
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
        Map::f32(&w, I, O).forward(&mut y, &x, Some(&b));
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
                Map::f32(&w, I, O).forward(&mut y, &x, Some(&b));
                y
            },
            backward: &|all, d_y| {
                let (x, w, _) = split(all);
                let (mut d_x, mut d_w, mut d_b) = (vec![0.0; T * I], vec![0.0; O * I], vec![0.0; O]);
                Map::f32(&w, I, O).backward_input(&mut d_x, d_y, false);
                backward_weights(vec![(Sum::begun(&mut d_w), d_y)], &x, I, Precision::F32);
                backward_bias(&mut d_b, d_y);
                [d_x, d_w, d_b].concat()
            },
            tangent: &|all, t| {
                let mut t_y = vec![0.0; T * O];
                Map::f32(&split(all).1, I, O).forward(&mut t_y, &t[..T * I], None);
                t_y
            },
            curvature: &|_, t, d_y| {
                let mut d_w = vec![0.0; O * I];
                backward_weights(vec![(Sum::begun(&mut d_w), d_y)], &t[..T * I], I, Precision::F32);
                [vec![0.0; T * I], d_w, vec![0.0; O]].concat()
            },
            moving: T * I,
        };
        check(&op, &random(T * I + O * I + O, 9), T * O, 1e-2, 2e-4);
    }
}
