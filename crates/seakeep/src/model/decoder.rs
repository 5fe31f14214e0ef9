//! The decoder-only transformer and its passes over a [`Batch`]: embeddings, layers, final norm,
//! vocabulary projection at the predicting rows.

use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::embedding::{gather, scatter_add};
use seakeep_kernels::linear;
use seakeep_kernels::projection::{self, Predicted};
use seakeep_kernels::rope::Table;

use super::blocks::{Params, add, rows_of};
use super::config::{ModelConfig, Positions};
use super::families::{self, DecoderParams};
use super::layer::{Context, LayerActivations, LayerGradients, Read};
use super::lora::Adapters;
use super::recompute::Kept;
use super::tensors::{TensorMap, Tensors};
use super::weights::{Stored, Weights};
use crate::batch::Batch;
use crate::{Error, Result};

/// A model: configuration, the map of its tensors, and their values.
pub struct Model {
    /// What the decoder is.
    pub config: ModelConfig,
    /// Its tensors, in memory and on disk.
    pub map: TensorMap,
    /// The weights; adapters' after the model's own.
    pub weights: Weights,
    /// The adapters that are trained in place of the weights, if any.
    pub adapters: Option<Adapters>,
    /// Whether passes keep only what flows from layer to layer, and compute the rest again for the passes that follow: less memory,
    /// more time, the same bits.
    pub gradient_checkpointing: bool,
    pub(super) params: DecoderParams,
    rope: Option<Table>,
}

/// A forward pass over a batch, kept for the passes that follow it.
pub struct Activations {
    pub(super) layers: Vec<Kept>,
    /// The rows that predict.
    pub(super) read: Read,
    /// The residual stream after the last layer at those, `[N, C]`.
    pub(super) last: Buffer,
    /// The normalised predicting rows, `[N, C]`.
    pub(super) hidden: Buffer,
    /// Derivatives of the predictions' log-probabilities with respect to those, `[N, C]`.
    pub(super) d_predicted: Buffer,
    /// Targets less probabilities, where the vocabulary projection keeps them for the gradient of its weight.
    pub(super) surprise: Option<Buffer>,
    /// What was predicted, `[N]`.
    pub predicted: Vec<Predicted>,
}

impl Activations {
    /// Log-probability of every branch, nats, summed over its predicted tokens in f64.
    pub fn branch_logps(&self, batch: &Batch) -> Vec<f64> {
        batch.branch_sums(self.predicted.iter().map(|p| p.logp))
    }
}

/// One seed for each prediction from one for each branch: a branch's log-probability is a weighted sum.
pub(super) fn seeds(batch: &Batch, branches: &[f64]) -> Vec<f32> {
    batch.predictions.iter().map(|p| (branches[p.branch as usize] * p.weight as f64) as f32).collect()
}

impl Model {
    /// A model with these weights.
    pub(super) fn with_weights(config: ModelConfig, weights: Weights) -> Self {
        let (map, params) = families::tensors(&config);
        let rope = match &config.positions {
            Positions::Rotary { inverse_frequencies } => {
                Some(Table::new(inverse_frequencies, config.max_positions))
            }
            Positions::Learned => None,
        };
        Model { config, map, weights, adapters: None, gradient_checkpointing: false, params, rope }
    }

    /// The context of each layer's passes over a batch, by the layer's number; of the last layer's output `read` is read, or all.
    pub(super) fn contexts<'a>(
        &'a self,
        batch: &'a Batch,
        read: Option<&'a Read>,
    ) -> impl Fn(usize) -> Context<'a> {
        move |layer| {
            let context = self.context_at(&batch.positions, &batch.layout);
            let weights = Params { dropout: batch.dropout.as_ref(), ..context.weights };
            Context { weights, read: read.filter(|_| layer + 1 == self.config.layers), ..context }
        }
    }

    /// What every pass reads besides activations, for rows that are no batch: generation's.
    pub(super) fn context_at<'a>(
        &'a self,
        positions: &'a [u32],
        layout: &'a seakeep_kernels::attention::Layout,
    ) -> Context<'a> {
        let weights = Params::plain(&self.weights);
        Context { config: &self.config, weights, rope: self.rope.as_ref(), positions, layout, read: None }
    }

    /// Checks that every token and position of a batch exists in this model.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a text longer than the model's positions.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        self.check_batch_tokens(batch)?;
        if let Some(position) = batch.positions.iter().find(|&&p| p as usize >= self.config.max_positions) {
            return Err(Error::Usage(format!(
                "a text of more than {position} tokens is longer than the model's {} positions; set `max_length` to {} or less",
                self.config.max_positions, self.config.max_positions
            )));
        }
        Ok(())
    }

    /// Checks that everything that is to be trained can be.
    ///
    /// # Errors
    /// A quantised weight.
    pub fn check_trainable(&self) -> Result<()> {
        let quantised = |stored: &Stored| matches!(stored, Stored::Blocks(_));
        match self
            .map
            .params
            .iter()
            .zip(self.weights.iter())
            .find(|(p, stored)| p.trainable && quantised(stored))
        {
            None => Ok(()),
            Some((param, _)) => Err(Error::Usage(format!(
                "`{}` is quantised and cannot be trained; add `use_peft = true` to train adapters on it, or leave `dtype` at float32",
                param.name
            ))),
        }
    }

    /// Checks that every token of a batch is in the vocabulary, those too that are predicted and not read.
    pub(crate) fn check_batch_tokens(&self, batch: &Batch) -> Result<()> {
        self.check_tokens(&batch.tokens)?;
        self.check_tokens(&batch.targets())
    }

    /// Checks that every token is in the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&t| t as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(token) => Err(Error::Usage(format!(
                "token {token} does not exist in a model with {} embeddings: the tokenizer and the model do not belong together",
                self.config.vocab_size
            ))),
        }
    }

    /// The embeddings of tokens (plus learned positions), `[T, C]`.
    pub(super) fn embed(&self, tokens: &[u32], positions: &[u32]) -> Buffer {
        let c = self.config.hidden;
        let mut x = Buffer::new(tokens.len() * c, c);
        gather(&mut x, self.weights.matrix(self.params.embed), tokens, c);
        if let Some(table) = self.params.positions {
            let mut p = Buffer::like(&x);
            gather(&mut p, &self.weights[table], positions, c);
            add(&mut x, &p);
        }
        x
    }

    /// The vocabulary projection.
    pub(super) fn head(&self) -> linear::Map<'_> {
        let (w, precision) = (self.weights.matrix(self.params.head), self.weights.precision);
        linear::Map { w, inputs: self.config.hidden, outputs: self.config.vocab_size, precision }
    }

    /// All layers: what they keep for the other passes, and of the residual stream after the last what is read, `[N, C]`.
    pub(super) fn forward_layers(&self, batch: &Batch, read: &Read) -> (Vec<Kept>, Buffer) {
        let mut layers = Vec::with_capacity(self.config.layers);
        let last = self
            .through_layers(batch, Some(read), |a| layers.push(Kept::new(a, self.gradient_checkpointing)));
        (layers, last)
    }

    /// The residual stream after the last layer: `[N, C]` if certain rows are read, otherwise `[T, C]`. What is inside each layer is handed to
    /// `keep`.
    fn through_layers(
        &self,
        batch: &Batch,
        read: Option<&Read>,
        mut keep: impl FnMut(LayerActivations),
    ) -> Buffer {
        let (contexts, mut x) = (self.contexts(batch, read), self.embed(&batch.tokens, &batch.positions));
        for (i, layer) in self.params.layers.iter().enumerate() {
            let (out, inside) = layer.forward(&contexts(i), x);
            keep(inside);
            x = out;
        }
        x
    }

    /// The forward pass, keeping what the others need.
    pub fn forward(&self, batch: &Batch) -> Activations {
        self.forward_keeping(batch, false)
    }

    /// [`forward`](Self::forward) for a [`backward`](Self::backward) pass that follows at once: where the vocabulary projection is
    /// trained and few rows predict, also what it would compute again.
    pub fn forward_to_train(&self, batch: &Batch) -> Activations {
        self.forward_keeping(batch, self.map.params[self.params.head.0].trainable)
    }

    fn forward_keeping(&self, batch: &Batch, surprise: bool) -> Activations {
        let read = Read::of(batch, &batch.predicting_rows());
        let (layers, last) = self.forward_layers(batch, &read);
        let hidden = self.params.final_norm.forward(&self.weights, &last);
        let mut d_predicted = Buffer::like(&hidden);
        let (head, targets) = (self.head(), batch.targets());
        let (predicted, surprise) =
            projection::forward_with_gradient(&mut d_predicted, &hidden, head, &targets, surprise);
        Activations { layers, read, last, hidden, d_predicted, surprise, predicted }
    }

    /// The forward pass alone: what is predicted, nothing kept.
    pub fn predictions(&self, batch: &Batch) -> Vec<Predicted> {
        let read = Read::of(batch, &batch.predicting_rows());
        self.predict(batch, &self.last_hidden(batch, Some(&read)))
    }

    /// What is predicted, and for each range of rows the mean of the last hidden states (after the final norm, as
    /// transformers' `hidden_states[-1]`), `[C]`.
    pub fn predictions_and_means(
        &self,
        batch: &Batch,
        rows: &[std::ops::Range<usize>],
    ) -> (Vec<Predicted>, Vec<Vec<f32>>) {
        if rows.is_empty() {
            return (self.predictions(batch), Vec::new());
        }
        let (last, c) = (self.last_hidden(batch, None), self.config.hidden);
        let mean = |rows: &std::ops::Range<usize>| {
            let normalised =
                self.params.final_norm.forward(&self.weights, &last[rows.start * c..rows.end * c]);
            let mut sums = vec![0.0f64; c];
            for row in normalised.chunks_exact(c) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x as f64);
            }
            sums.iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
        };
        let means = rows.iter().map(mean).collect();
        (self.predict(batch, &rows_of(&last, &batch.predicting_rows(), c)), means)
    }

    /// The residual stream after the last layer: `[N, C]` if certain rows are read, otherwise `[T, C]`.
    pub(super) fn last_hidden(&self, batch: &Batch, read: Option<&Read>) -> Buffer {
        self.through_layers(batch, read, drop)
    }

    /// What is predicted, from the residual stream after the last layer at the rows that predict, `[N, C]`.
    fn predict(&self, batch: &Batch, last: &[f32]) -> Vec<Predicted> {
        let hidden = self.params.final_norm.forward(&self.weights, last);
        projection::forward(&hidden, self.head(), &batch.targets())
    }

    /// From the derivative of a loss with respect to every branch's log-probability: adds to `grads`, returns
    /// the gradient at the embedding lookup, `[T, C]`.
    pub fn backward(&self, batch: &Batch, a: &Activations, d_logps: &[f64], grads: &mut Tensors) -> Buffer {
        let d_hidden = self.backward_predictions(batch, a, d_logps, grads);
        self.backward_rows(batch, (&a.layers, &a.last, &a.read), &d_hidden, grads, drop)
    }

    /// The gradient at the normalised predicting rows, `[N, C]`; adds the head's to `grads`.
    pub(super) fn backward_predictions(
        &self,
        batch: &Batch,
        a: &Activations,
        d_logps: &[f64],
        grads: &mut Tensors,
    ) -> Buffer {
        let (head, seeds) = (self.params.head, seeds(batch, d_logps));
        if let [Some(to)] = grads.sums([head]) {
            let (targets, kept) = (batch.targets(), a.surprise.as_deref());
            projection::backward_weight(to, &seeds, &a.hidden, self.head(), &targets, &a.predicted, kept);
        }
        self.d_hidden(a, &seeds)
    }

    /// The gradient at the normalised predicting rows, `[N, C]`.
    pub(super) fn d_hidden(&self, a: &Activations, seeds: &[f32]) -> Buffer {
        let mut d_hidden = a.d_predicted.clone();
        projection::scale_rows(&mut d_hidden, seeds, self.config.hidden);
        d_hidden
    }

    /// From the derivative with respect to the normalised hidden states of the rows that are read, `[N, C]`, down to the embedding
    /// lookup: adds to `grads`, returns the gradient there, `[T, C]`. What is inside each layer, from the last on, is handed to `keep`.
    pub(super) fn backward_rows(
        &self,
        batch: &Batch,
        (layers, last, read): (&[Kept], &[f32], &Read),
        d_hidden: &[f32],
        grads: &mut Tensors,
        mut keep: impl FnMut(LayerGradients),
    ) -> Buffer {
        let contexts = self.contexts(batch, Some(read));
        let mut d_x = self.params.final_norm.backward(&self.weights, grads, d_hidden, last);
        for (i, (layer, kept)) in self.params.layers.iter().zip(layers).enumerate().rev() {
            let cx = contexts(i);
            let (below, inside) = layer.backward(&cx, grads, &kept.activations(layer, &cx), d_x, None);
            keep(inside);
            d_x = below;
        }
        self.backward_embed(batch, &d_x, grads);
        d_x
    }

    pub(super) fn backward_embed(&self, batch: &Batch, d_x: &[f32], grads: &mut Tensors) {
        let c = self.config.hidden;
        if let Some(table) = grads.trained(self.params.embed) {
            for (token, d_x) in batch.tokens.iter().zip(d_x.chunks_exact(c)) {
                if Some(*token) != self.config.padding_token {
                    scatter_add(table, d_x, std::slice::from_ref(token), c);
                }
            }
        }
        if let Some(table) = self.params.positions.and_then(|table| grads.trained(table)) {
            scatter_add(table, d_x, &batch.positions, self.config.hidden);
        }
    }
}
