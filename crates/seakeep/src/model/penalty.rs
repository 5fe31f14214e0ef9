//! The passes behind a penalty on the gradient at the embeddings `e`: how the gradient of a loss changes as `e` moves along a
//! direction `u`, `d/d eps [dL/d theta at e + eps u]`.
//!
//! | pass | from layer to layer | leaves in each |
//! |---|---|---|
//! | [`Model::forward`] | up: activations | activations |
//! | [`Model::backward_kept`] | down: gradients `d` | gradients |
//! | [`Model::tangent`] | up: tangents `t` of activations, from `u` | sources, made of gradients and tangents |
//! | [`Model::backward_tangent`] | down: gradients again, sources added | nothing |
//!
//! A backward pass is linear in its seeds. So its directional derivative is the backward pass of the seeds' tangents, plus what
//! comes of the activations' tangents with `d` held: the sources, which join it on its way. Start from seeds plus their
//! tangents, and it is gradient and derivative in one, at the price of one.

use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::projection;

use super::blocks::add;
use super::decoder::{Activations, Model, seeds};
use super::recompute::{KeptGradients, KeptSources};
use super::tensors::Tensors;
use crate::batch::Batch;

/// A backward pass, kept for the tangent of it.
pub struct InnerGradients {
    /// In order of layers.
    layers: Vec<KeptGradients>,
    /// The seeds: derivatives with respect to every branch's log-probability.
    d_logps: Vec<f64>,
}

/// The tangent of a forward pass, and how the backward pass changes along it.
pub struct Tangents {
    layers: Vec<KeptSources>,
    /// What the final norm adds at its input, `[N, C]`.
    rows: Buffer,
    /// The tangent of the normalised hidden states, `[N, C]`.
    hidden: Buffer,
    d_logps: Vec<f64>,
    /// Tangent of every branch's log-probability.
    pub branch_logps: Vec<f64>,
}

impl Model {
    /// As [`backward`](Self::backward), and returns what [`tangent`](Self::tangent) needs besides.
    pub fn backward_kept(
        &self,
        batch: &Batch,
        a: &Activations,
        d_logps: &[f64],
        grads: &mut Tensors,
    ) -> (Buffer, InnerGradients) {
        let d_hidden = self.backward_predictions(batch, a, d_logps, grads);
        let mut layers = Vec::with_capacity(self.config.layers);
        let d_x = self.backward_rows(batch, (&a.layers, &a.last, &a.read), &d_hidden, grads, |inside| {
            layers.push(KeptGradients::new(inside, self.gradient_checkpointing));
        });
        layers.reverse();
        (d_x, InnerGradients { layers, d_logps: d_logps.to_vec() })
    }

    /// The forward pass's directional derivative along `t_embed` (`[T, C]`) at the embedding lookup, and the change of the backward
    /// pass that left `d` as far as it does not come from a change of its seeds: adds to `grads` what it is for the
    /// layers' weights.
    pub fn tangent(
        &self,
        batch: &Batch,
        a: &Activations,
        d: InnerGradients,
        t_embed: Buffer,
        grads: &mut Tensors,
    ) -> Tangents {
        let (contexts, w) = (self.contexts(batch, Some(&a.read)), &self.weights);
        let (mut t_x, mut layers) = (t_embed, Vec::with_capacity(self.config.layers));
        for (i, ((layer, kept), d)) in self.params.layers.iter().zip(&a.layers).zip(d.layers).enumerate() {
            let cx = contexts(i);
            let a = kept.activations(layer, &cx);
            let (above, t) = layer.tangent(&cx, &a, t_x);
            layers.push(KeptSources::new(layer, &cx, grads, &a, d, t));
            t_x = above;
        }
        let hidden = self.params.final_norm.tangent(w, &a.last, &t_x);
        let t_logps = projection::tangent(&a.d_predicted, &hidden, self.config.hidden);
        let d_hidden = self.d_hidden(a, &seeds(batch, &d.d_logps));
        let rows = self.params.final_norm.curvature(w, grads, &d_hidden, (&a.last, &t_x));
        let branch_logps = batch.branch_sums(t_logps.into_iter());
        Tangents { layers, rows, hidden, d_logps: d.d_logps, branch_logps }
    }

    /// The rest of what [`tangent`](Self::tangent) began: the backward pass from `e_logps`, with what curvature adds to it on the
    /// way down. With the tangents of the seeds for `e_logps`, `grads` gets the directional derivative of the gradient; with the
    /// seeds added to them, the gradient as well.
    pub fn backward_tangent(
        &self,
        batch: &Batch,
        a: &Activations,
        t: Tangents,
        e_logps: &[f64],
        grads: &mut Tensors,
    ) {
        let head = self.params.head;
        let (d, e) = (seeds(batch, &t.d_logps), seeds(batch, e_logps));
        let (mut e_hidden, [to]) = (Buffer::like(&a.hidden), grads.sums([head]));
        projection::backward_with_curvature(
            &mut e_hidden,
            to,
            (&d, &e),
            (&a.hidden, &t.hidden),
            self.head(),
            &batch.targets(),
            &a.predicted,
        );
        let mut e_x = self.params.final_norm.backward(&self.weights, grads, &e_hidden, &a.last);
        add(&mut e_x, &t.rows);
        let contexts = self.contexts(batch, Some(&a.read));
        let layers = self.params.layers.iter().zip(&a.layers).zip(t.layers);
        for (i, ((layer, kept), sources)) in layers.enumerate().rev() {
            let cx = contexts(i);
            let a = kept.activations(layer, &cx);
            let sources = sources.sources(layer, &cx, grads, &a);
            e_x = layer.backward(&cx, grads, &a, e_x, Some(&sources)).0;
        }
        self.backward_embed(batch, &e_x, grads);
    }
}
