//! The two building blocks with weights: linear maps, perhaps with an adapter, and norms, each with its four passes.
//! Shapes as in `seakeep_kernels`; every function returns a fresh buffer. What is not trained gets no gradient.

use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::{layernorm, linear, lora, rmsnorm};

use super::tensors::{ParamId, Tensors};
use super::weights::Weights;

/// The low-rank path beside a linear map, `s (x a^T) b^T`: [`seakeep_kernels::lora`].
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

    /// The low-rank path and the places of its two matrices.
    pub(super) fn lora<'a>(&self, w: &'a Weights) -> Option<(lora::Lora<'a>, Adapter)> {
        let of = |adapter: Adapter| {
            let (a, b, scale, rank) = (&w[adapter.a], &w[adapter.b], adapter.scale, adapter.rank);
            (lora::Lora { a, b, scale, inputs: self.inputs, outputs: self.outputs, rank }, adapter)
        };
        self.adapter.map(of)
    }

    pub(super) fn forward(&self, w: &Weights, x: &[f32]) -> Buffer {
        let mut y = Buffer::new(self.rows(x) * self.outputs, self.outputs);
        self.map(w).forward(&mut y, x, self.bias.map(|b| &w[b]));
        if let Some((lora, _)) = self.lora(w) {
            lora.forward(&mut y, x);
        }
        y
    }

    pub(super) fn tangent(&self, w: &Weights, t_x: &[f32]) -> Buffer {
        let mut t_y = Buffer::new(self.rows(t_x) * self.outputs, self.outputs);
        self.map(w).tangent(&mut t_y, t_x);
        if let Some((lora, _)) = self.lora(w) {
            lora.forward(&mut t_y, t_x);
        }
        t_y
    }

    /// Returns `d_x`; adds to `grads`.
    pub(super) fn backward(&self, w: &Weights, grads: &mut Tensors, d_y: &[f32], x: &[f32]) -> Buffer {
        let mut d_x = Buffer::new(d_y.len() / self.outputs * self.inputs, self.inputs);
        self.backward_to(w, grads, d_y, x, (&mut d_x, false));
        d_x
    }

    /// As [`backward`](Self::backward), but adds to `d_x`, the gradient that other maps of the same input gave.
    pub(super) fn backward_adding(
        &self,
        w: &Weights,
        grads: &mut Tensors,
        d_y: &[f32],
        x: &[f32],
        d_x: &mut [f32],
    ) {
        self.backward_to(w, grads, d_y, x, (d_x, true));
    }

    fn backward_to(
        &self,
        w: &Weights,
        grads: &mut Tensors,
        d_y: &[f32],
        x: &[f32],
        (d_x, adding): (&mut [f32], bool),
    ) {
        if let Some(to) = grads.trained(self.weight) {
            linear::backward_weight(to, d_y, x, self.inputs, self.outputs, w.precision);
        }
        if let Some(to) = self.bias.and_then(|b| grads.trained(b)) {
            linear::backward_bias(to, d_y);
        }
        self.map(w).backward_input(d_x, d_y, adding);
        if let Some((lora, at)) = self.lora(w) {
            lora.backward(d_x, grads.both_trained(at.a, at.b), d_y, x);
        }
    }

    /// Adds how [`backward`](Self::backward) changes the gradients along `t_x`, `d_y` held. `d_x` and the bias' gradient do
    /// not change: the map is linear.
    pub(super) fn curvature(&self, w: &Weights, grads: &mut Tensors, d_y: &[f32], t_x: &[f32]) {
        if let Some(to) = grads.trained(self.weight) {
            linear::backward_weight(to, d_y, t_x, self.inputs, self.outputs, w.precision);
        }
        if let Some((lora, at)) = self.lora(w)
            && let Some(to) = grads.both_trained(at.a, at.b)
        {
            lora.curvature(to, d_y, t_x);
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

/// `to += from`.
pub(super) fn add(to: &mut [f32], from: &[f32]) {
    use rayon::prelude::*;
    const PIECE: usize = 1 << 15;
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
    });
}
