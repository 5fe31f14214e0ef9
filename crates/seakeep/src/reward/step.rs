//! The loss of a global batch and its gradient, exact however the batch is cut into micro-batches.

use super::loss::{Given, Objective, Target};
use super::model::{RewardModel, rows_of};
use crate::batch::Batch;
use crate::data::tokenize::common_prefix;
use crate::model::Tensors;
use crate::{Error, Result};

/// An example as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The tokens of its one text or, of a pair, of the preferred and of the rejected one.
    pub texts: Vec<Vec<u32>>,
    /// What is known of it.
    pub target: Target,
}

/// Lays out examples; the rows that are scored, in the order of examples and their texts. What both texts of a pair begin
/// with is computed once.
fn lay_out(model: &RewardModel, examples: &[Example]) -> (Batch, Vec<u32>) {
    let (mut batch, mut rows) = (Batch::default(), Vec::new());
    for example in examples {
        let texts: Vec<&[u32]> = example.texts.iter().map(|text| model.scored(text)).collect();
        if let [a, b] = texts[..] {
            // Each keeps a row of its own, the one that is scored.
            let most = a.len().min(b.len()) - 1;
            let shared = common_prefix(&a[..most], &b[..most]);
            if shared > 0 {
                batch.push_whole(&a[..shared], &[&a[shared..], &b[shared..]]);
                let last = batch.rows() as u32 - 1;
                rows.extend([last - (b.len() - shared) as u32, last]);
                continue;
            }
        }
        for text in texts {
            batch.push_whole(text, &[]);
            rows.push(batch.rows() as u32 - 1);
        }
    }
    (batch, rows)
}

/// What a step found.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// The loss of the global batch.
    pub loss: f64,
    /// Logits of every example's texts, `[examples][texts][labels]`.
    pub logits: Vec<Given>,
    /// Tokens of all texts.
    pub tokens: usize,
}

/// The loss of `examples` as one batch; its gradient is added to `grads`. `micro_batch` examples are computed at a time, which
/// changes nothing but rounding.
///
/// # Errors
/// A token or length that the model does not have; [`Error::NonFinite`] for a loss that is not finite.
pub fn gradient(
    model: &RewardModel,
    objective: &Objective,
    examples: &[Example],
    micro_batch: usize,
    grads: &mut Tensors,
) -> Result<StepOutput> {
    let terms: usize = examples.iter().map(|e| objective.terms(&e.target)).sum();
    let mut out = StepOutput::default();
    let mut sum = 0.0;
    for part in examples.chunks(micro_batch.max(1)) {
        let (batch, rows) = lay_out(model, part);
        model.model.check(&batch)?;
        let activations = model.model.forward_hidden(&batch, &rows);
        let flat = model.model.label_logits(&activations.hidden);
        let mut logits = rows_of(&flat, model.labels.len());
        let mut d_logits = Vec::with_capacity(flat.len());
        for example in part {
            let logits: Vec<Vec<f64>> = logits.by_ref().take(example.texts.len()).collect();
            let (loss, d) = objective.evaluate(&logits, &example.target);
            sum += loss;
            d_logits.extend(d.iter().flatten().map(|d| (d / terms.max(1) as f64) as f32));
            out.tokens += example.texts.iter().map(Vec::len).sum::<usize>();
            out.logits.push(logits);
        }
        let d_hidden = model.model.backward_labels(&activations.hidden, &d_logits, grads);
        model.model.backward_hidden(&batch, &activations, &d_hidden, grads);
    }
    out.loss = sum / terms.max(1) as f64;
    match out.loss.is_finite() {
        true => Ok(out),
        false => Err(Error::NonFinite(format!("the loss is {}", out.loss))),
    }
}
