//! Heads of labels: the passes of a decoder that ends in a linear map of a few chosen rows, mostly the last of each
//! text, instead of the vocabulary projection (`*ForSequenceClassification`).

use seakeep_kernels::buffer::Buffer;

use super::blocks::{Linear, Params};
use super::layer::Read;
use super::recompute::Kept;
use super::{Model, Tensors};
use crate::batch::Batch;

/// A forward pass up to the final norm, kept for its backward pass.
pub struct HiddenActivations {
    layers: Vec<Kept>,
    /// The rows that were asked for.
    read: Read,
    /// The residual stream after the last layer at those, `[N, C]`.
    last: Buffer,
    /// Their hidden states after the final norm, `[N, C]`.
    pub hidden: Buffer,
}

impl Model {
    /// The hidden states of `rows` of a batch after the final norm, `[N, C]`; nothing is kept.
    pub fn hidden(&self, batch: &Batch, rows: &[u32]) -> Buffer {
        self.normalised(&self.last_hidden(batch, Some(&Read::of(batch, rows))))
    }

    /// As [`hidden`](Self::hidden), keeping what [`backward_hidden`](Self::backward_hidden) needs.
    pub fn forward_hidden(&self, batch: &Batch, rows: &[u32]) -> HiddenActivations {
        let read = Read::of(batch, rows);
        let (layers, last) = self.forward_layers(batch, &read);
        let hidden = self.normalised(&last);
        HiddenActivations { layers, read, last, hidden }
    }

    /// From the derivative of a loss with respect to the hidden states, `[N, C]`: adds to `grads`, returns the gradient
    /// at the embedding lookup, `[T, C]`.
    pub fn backward_hidden(
        &self,
        batch: &Batch,
        a: &HiddenActivations,
        d_hidden: &[f32],
        grads: &mut Tensors,
    ) -> Buffer {
        self.backward_rows(batch, (&a.layers, &a.last, &a.read), d_hidden, grads, drop)
    }

    /// The head on hidden states `[N, C]`: logits, `[N, L]`.
    pub fn label_logits(&self, hidden: &[f32]) -> Buffer {
        self.label_head().forward(Params::plain(&self.weights), hidden)
    }

    /// From the derivative of a loss with respect to the logits, `[N, L]`: adds the head's gradient to `grads`, returns
    /// that of the hidden states, `[N, C]`.
    pub fn backward_labels(&self, hidden: &[f32], d_logits: &[f32], grads: &mut Tensors) -> Buffer {
        self.label_head().backward(Params::plain(&self.weights), grads, d_logits, hidden)
    }

    fn label_head(&self) -> Linear {
        let labels =
            self.config.labels.expect("only models with a head of labels are asked for logits of labels");
        let (weight, inputs) = (self.params.head, self.config.hidden);
        Linear { weight, bias: None, inputs, outputs: labels, adapter: None }
    }

    fn normalised(&self, last: &[f32]) -> Buffer {
        self.params.final_norm.forward(&self.weights, last)
    }
}
