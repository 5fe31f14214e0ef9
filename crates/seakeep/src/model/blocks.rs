//! The two building blocks with weights: linear maps, perhaps with an adapter, and norms, each with its four passes.
//! Shapes as in `seakeep_kernels`; results are in buffers of their own. What is not trained gets no gradient.

use std::ops::Deref;

use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::dropout::Dropout;
use seakeep_kernels::embedding::gather;
use seakeep_kernels::{dora, layernorm, linear, lora, rmsnorm};

use super::tensors::{ParamId, Tensors};
use super::weights::Weights;
use crate::batch;

/// What a pass reads: the weights, and in training the dropout of what goes into adapters.
#[derive(Clone, Copy)]
pub(super) struct Params<'a> {
    pub weights: &'a Weights,
    pub dropout: Option<&'a batch::Dropout>,
}

impl<'a> Params<'a> {
    /// Without dropout.
    pub fn plain(weights: &'a Weights) -> Self {
        Params { weights, dropout: None }
    }
}

impl Deref for Params<'_> {
    type Target = Weights;
    fn deref(&self) -> &Weights {
        self.weights
    }
}

/// The low-rank path beside a linear map, `s (x a^T) b^T`: [`seakeep_kernels::lora`]; with a magnitude
/// [`seakeep_kernels::dora`].
#[derive(Clone, Copy, Debug)]
pub struct Adapter {
    /// `[rank, inputs]`; maps that are fused on disk share it.
    pub a: ParamId,
    /// `[outputs, rank]`
    pub b: ParamId,
    /// Width between the two.
    pub rank: usize,
    /// The factor `s`.
    pub scale: f32,
    /// `[outputs]`: the lengths that the sum's rows are given, where they are.
    pub magnitude: Option<ParamId>,
}

/// What a magnitude makes of a map's outputs.
struct Rescaled {
    /// `[outputs]`
    factors: Vec<f32>,
    /// Lengths of the rows of the weight with its path, `[outputs]`.
    lengths: Vec<f32>,
    magnitude: ParamId,
}

/// `y = x w^T + b`, with an adapter `y = x w^T + b + s (x a^T) b^T`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[outputs, inputs]`
    pub weight: ParamId,
    /// `[outputs]`
    pub bias: Option<ParamId>,
    /// Width of `x`.
    pub inputs: usize,
    /// Width of `y`.
    pub outputs: usize,
    /// The low-rank path, where there is one.
    pub adapter: Option<Adapter>,
}

impl Linear {
    fn rows(&self, x: &[f32]) -> usize {
        x.len() / self.inputs
    }

    /// The map without bias and adapter.
    pub(super) fn map<'a>(&self, w: &'a Weights) -> linear::Map<'a> {
        let (w, precision) = (w.matrix(self.weight), w.precision);
        linear::Map { w, inputs: self.inputs, outputs: self.outputs, precision }
    }

    /// The low-rank path and the places of its tensors.
    pub(super) fn lora<'a>(&self, w: Params<'a>) -> Option<(lora::Lora<'a>, Adapter)> {
        let of = |adapter: Adapter| {
            let Adapter { a, b, scale, rank, .. } = adapter;
            let dropout =
                w.dropout.map(|dropout| Dropout { p: dropout.p, rows: &dropout.rows, module: a.0 as u32 });
            let (a, b) = (&w.weights[a], &w.weights[b]);
            (lora::Lora { a, b, scale, inputs: self.inputs, outputs: self.outputs, rank, dropout }, adapter)
        };
        self.adapter.map(of)
    }

    /// The lengths of the rows of weight and path, if it has an adapter, `[outputs]`.
    pub(super) fn lengths(&self, w: Params) -> Option<Vec<f32>> {
        self.lora(w).map(|(lora, _)| dora::lengths(&self.map(w.weights), &lora))
    }

    /// What its magnitude makes of its outputs, if it has one.
    fn rescaled(&self, w: Params) -> Option<Rescaled> {
        let magnitude = self.adapter?.magnitude?;
        let lengths = self.lengths(w)?;
        let factors = w.weights[magnitude]
            .iter()
            .zip(&lengths)
            .map(|(m, n)| if *n > 0.0 { m / n } else { 1.0 })
            .collect();
        Some(Rescaled { factors, lengths, magnitude })
    }

    /// The factors on its outputs that a magnitude comes to, if it has one, `[outputs]`.
    pub(super) fn factors(&self, w: Params) -> Option<Vec<f32>> {
        self.rescaled(w).map(|rescaled| rescaled.factors)
    }

    /// Weight and path and this bias, without magnitude, for each of several maps of the same rows.
    fn directions<const N: usize>(
        maps: [&Linear; N],
        w: Params,
        x: &[f32],
        biases: [Option<&[f32]>; N],
    ) -> [Buffer; N] {
        let mut ys = maps.map(|map| Buffer::new(map.rows(x) * map.outputs, map.outputs));
        linear::forward_each(
            maps.map(|map| map.map(w.weights)),
            ys.each_mut().map(|y| &mut y[..]),
            x,
            biases,
        );
        for (map, y) in maps.iter().zip(&mut ys) {
            if let Some((lora, _)) = map.lora(w) {
                lora.forward(y, x);
            }
        }
        ys
    }

    pub(super) fn forward(&self, w: Params, x: &[f32]) -> Buffer {
        let [y] = Linear::forward_each([self], w, x);
        y
    }

    /// [`forward`](Self::forward) by several maps of the same rows.
    pub(super) fn forward_each<const N: usize>(maps: [&Linear; N], w: Params, x: &[f32]) -> [Buffer; N] {
        let rescaled = maps.map(|map| map.factors(w));
        let bias = |i: usize| maps[i].bias.map(|b| &w.weights[b]);
        // With a magnitude the bias comes after it.
        let first = std::array::from_fn(|i| bias(i).filter(|_| rescaled[i].is_none()));
        let mut ys = Linear::directions(maps, w, x, first);
        for (i, (y, factors)) in ys.iter_mut().zip(&rescaled).enumerate() {
            let Some(factors) = factors else { continue };
            dora::scale(y, factors);
            if let Some(bias) = bias(i) {
                y.chunks_exact_mut(maps[i].outputs).for_each(|y| add(y, bias));
            }
        }
        ys
    }

    pub(super) fn tangent(&self, w: Params, t_x: &[f32]) -> Buffer {
        let [t_y] = Linear::tangent_each([self], w, t_x);
        t_y
    }

    /// [`tangent`](Self::tangent) of several maps of the same rows.
    pub(super) fn tangent_each<const N: usize>(maps: [&Linear; N], w: Params, t_x: &[f32]) -> [Buffer; N] {
        let mut t_ys = Linear::directions(maps, w, t_x, [None; N]);
        for (map, t_y) in maps.iter().zip(&mut t_ys) {
            if let Some(factors) = map.factors(w) {
                dora::scale(t_y, &factors);
            }
        }
        t_ys
    }

    /// Returns `d_x`; adds to `grads`.
    pub(super) fn backward(&self, w: Params, grads: &mut Tensors, d_y: &[f32], x: &[f32]) -> Buffer {
        Linear::backward_each([self], w, grads, [d_y], x)
    }

    /// [`backward`](Self::backward) of several maps of the same rows: the sum of their `d_x`.
    pub(super) fn backward_each<const N: usize>(
        maps: [&Linear; N],
        w: Params,
        grads: &mut Tensors,
        d_ys: [&[f32]; N],
        x: &[f32],
    ) -> Buffer {
        for (map, d_y) in maps.iter().zip(d_ys) {
            if let Some(to) = map.bias.and_then(|b| grads.trained(b)) {
                linear::backward_bias(to, d_y);
            }
        }
        let before: [_; N] = std::array::from_fn(|i| maps[i].before_magnitude(w, grads, d_ys[i], x));
        let d_ys: [&[f32]; N] = std::array::from_fn(|i| before[i].as_deref().unwrap_or(d_ys[i]));
        let mut d_x = Buffer::new(x.len(), maps[0].inputs);
        // Beside each other: threads that wait at the end of one find work in the other.
        rayon::join(
            || {
                for (i, (map, d_y)) in maps.iter().zip(d_ys).enumerate() {
                    map.map(w.weights).backward_input(&mut d_x, d_y, i > 0);
                }
            },
            || Linear::backward_weights(maps, w, grads, d_ys, x),
        );
        for (map, d_y) in maps.iter().zip(d_ys) {
            if let Some((lora, at)) = map.lora(w) {
                lora.backward(&mut d_x, grads.both_trained(at.a, at.b), d_y, x);
            }
        }
        d_x
    }

    /// Adds the gradients of weights from those before magnitudes and the input `x` (or its tangent).
    fn backward_weights<const N: usize>(
        maps: [&Linear; N],
        w: Params,
        grads: &mut Tensors,
        d_ys: [&[f32]; N],
        x: &[f32],
    ) {
        let to = grads.sums(maps.map(|map| map.weight)).into_iter().zip(d_ys);
        let each = to.filter_map(|(to, d_y)| Some((to?, d_y)));
        linear::backward_weights(each.collect(), x, maps[0].inputs, w.precision);
    }

    /// Where there is a magnitude, the gradient before it; adds the magnitude's own, from the input `x` (or its tangent).
    fn before_magnitude(&self, w: Params, grads: &mut Tensors, d_y: &[f32], x: &[f32]) -> Option<Buffer> {
        let Rescaled { factors, lengths, magnitude } = self.rescaled(w)?;
        if let Some(to) = grads.trained(magnitude) {
            let [directions] = Linear::directions([self], w, x, [None]);
            dora::backward_magnitude(to, d_y, directions, &lengths);
        }
        let mut before = Buffer::new(d_y.len(), self.outputs);
        before.copy_from_slice(d_y);
        dora::scale(&mut before, &factors);
        Some(before)
    }

    /// Adds how [`backward_each`](Self::backward_each) changes the gradients along `t_x`, `d_ys` held. `d_x` and the biases' gradients do
    /// not change: the maps are linear.
    pub(super) fn curvature_each<const N: usize>(
        maps: [&Linear; N],
        w: Params,
        grads: &mut Tensors,
        d_ys: [&[f32]; N],
        t_x: &[f32],
    ) {
        let before: [_; N] = std::array::from_fn(|i| maps[i].before_magnitude(w, grads, d_ys[i], t_x));
        let d_ys: [&[f32]; N] = std::array::from_fn(|i| before[i].as_deref().unwrap_or(d_ys[i]));
        Linear::backward_weights(maps, w, grads, d_ys, t_x);
        for (map, d_y) in maps.iter().zip(d_ys) {
            if let Some((lora, at)) = map.lora(w)
                && let Some(to) = grads.both_trained(at.a, at.b)
            {
                lora.curvature(to, d_y, t_x);
            }
        }
    }
}

/// RMS norm (no bias) or layer norm (with bias) over rows as wide as the gain.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[C]`
    pub gain: ParamId,
    /// `[C]`; its presence makes it a layer norm.
    pub bias: Option<ParamId>,
    /// Added to the mean square (or variance).
    pub eps: f32,
}

impl Norm {
    pub(super) fn forward(&self, w: &Weights, x: &[f32]) -> Buffer {
        let mut y = Buffer::new(x.len(), w[self.gain].len());
        match self.bias {
            None => rmsnorm::forward(&mut y, x, &w[self.gain], self.eps),
            Some(b) => layernorm::forward(&mut y, x, &w[self.gain], &w[b], self.eps),
        }
        y
    }

    pub(super) fn tangent(&self, w: &Weights, x: &[f32], t_x: &[f32]) -> Buffer {
        let mut t_y = Buffer::new(x.len(), w[self.gain].len());
        match self.bias {
            None => rmsnorm::tangent(&mut t_y, x, t_x, &w[self.gain], self.eps),
            Some(_) => layernorm::tangent(&mut t_y, x, t_x, &w[self.gain], self.eps),
        }
        t_y
    }

    /// Returns `d_x`; adds to `grads`.
    pub(super) fn backward(&self, w: &Weights, grads: &mut Tensors, d_y: &[f32], x: &[f32]) -> Buffer {
        let mut d_x = Buffer::new(x.len(), w[self.gain].len());
        let gain = &w[self.gain];
        match self.bias {
            None => {
                let mut unused = Vec::new();
                let to = or_aside(grads.trained(self.gain), &mut unused, gain.len());
                rmsnorm::backward(&mut d_x, to, d_y, x, gain, self.eps);
            }
            Some(b) => {
                let mut both = vec![0.0; 2 * gain.len()];
                layernorm::backward(&mut d_x, &mut both, d_y, x, gain, self.eps);
                add_both(grads, self.gain, b, &both);
            }
        }
        d_x
    }

    /// How [`backward`](Self::backward) changes along `t_x`, `d_y` held: returns the change of `d_x`, adds that of the gradients.
    pub(super) fn curvature(
        &self,
        w: &Weights,
        grads: &mut Tensors,
        d_y: &[f32],
        (x, t_x): (&[f32], &[f32]),
    ) -> Buffer {
        let mut s_x = Buffer::new(x.len(), w[self.gain].len());
        let (gain, mut unused) = (&w[self.gain], Vec::new());
        let to = or_aside(grads.trained(self.gain), &mut unused, gain.len());
        match self.bias {
            None => rmsnorm::curvature(&mut s_x, to, d_y, x, t_x, gain, self.eps),
            Some(_) => layernorm::curvature(&mut s_x, to, d_y, x, t_x, gain, self.eps),
        }
        s_x
    }
}

fn add_both(grads: &mut Tensors, gain: ParamId, bias: ParamId, both: &[f32]) {
    let (g, b) = both.split_at(both.len() / 2);
    for (id, from) in [(gain, g), (bias, b)] {
        if let Some(to) = grads.trained(id) {
            add(to, from);
        }
    }
}

/// Where a kernel that always computes a gain's gradient may put it: to the others, or aside where it is not trained.
fn or_aside<'a>(trained: Option<&'a mut [f32]>, aside: &'a mut Vec<f32>, len: usize) -> &'a mut [f32] {
    trained.unwrap_or_else(|| {
        aside.resize(len, 0.0);
        aside
    })
}

/// Some rows of `x`, each of `width`.
pub(super) fn rows_of(x: &[f32], rows: &[u32], width: usize) -> Buffer {
    let mut out = Buffer::new(rows.len() * width, width);
    gather(&mut out, x, rows, width);
    out
}

/// `to += from`.
pub(super) fn add(to: &mut [f32], from: &[f32]) {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 15;
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    });
}
