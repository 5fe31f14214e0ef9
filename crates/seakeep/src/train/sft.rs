//! Supervised fine-tuning on completions: the mean negative log-likelihood of their tokens. The start that
//! preference tuning sets out from.

use crate::batch::{Batch, Sharing};
use crate::model::{Model, Tensors};
use crate::optim::{AdamW, AdamWState, Schedule, Warmup, clipping};
use crate::progress::Progress;
use crate::train::data::Visits;
use crate::{Error, Result};

/// A text: a prompt and the completion to learn, as token ids.
pub type Text = (Vec<u32>, Vec<u32>);

/// How to fine-tune.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SftOptions {
    /// Optimizer steps.
    pub steps: usize,
    /// Texts of a step.
    pub batch_size: usize,
    /// Peak learning rate; linear warm-up over a tenth of the steps, then linear to 0.
    pub learning_rate: f64,
    /// Seed of the order of texts.
    pub seed: u64,
}

/// Fine-tunes `model` on `texts`. Returns each step's loss, nats per completion token.
///
/// # Errors
/// A token or length the model does not have; a loss that is not finite.
pub fn sft(
    model: &mut Model,
    texts: &[Text],
    options: &SftOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<f64>> {
    let visits = Visits { rows: texts.len(), batch: options.batch_size, shuffle: true, seed: options.seed };
    let adamw = AdamW::default();
    let mut state = AdamWState::new(&model.map, &adamw);
    let mut grads = Tensors::zeros(&model.map);
    let mut losses = Vec::with_capacity(options.steps);
    progress.start("supervised fine-tuning", options.steps as u64);
    for (step, rows) in visits.steps(0, options.steps).enumerate() {
        let mut batch = Batch::default();
        for (prompt, completion) in rows.iter().map(|&i| &texts[i]) {
            batch.push(prompt, &[completion], Sharing::Shared);
        }
        model.check(&batch)?;
        let activations = model.forward_to_train(&batch);
        let tokens = batch.predictions.len() as f64;
        let loss = -activations.branch_logps(&batch).iter().sum::<f64>() / tokens;
        if !loss.is_finite() {
            return Err(Error::NonFinite(format!("step {}: the loss is {loss}", step + 1)));
        }
        grads.forget();
        model.backward(&batch, &activations, &vec![-1.0 / tokens; batch.branches], &mut grads);
        grads.settle();
        let lr =
            options.learning_rate * Schedule::Linear.factor(Warmup::Ratio(0.1), step + 1, options.steps + 1);
        adamw.step(&model.map, &mut model.weights, (&grads, clipping(grads.norm(), 1.0)), &mut state, lr);
        losses.push(loss);
        progress.advance(1, &format!("loss {loss:.3}"));
    }
    progress.finish();
    Ok(losses)
}
