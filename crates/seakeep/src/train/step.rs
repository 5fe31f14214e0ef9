//! The training step: the loss of a global batch, and its exact gradient.

use crate::batch::Batch;
use crate::data::TokenizedPair;
use crate::logps::BranchLogps;
use crate::model::{Activations, Model, Tensors};
use crate::objective::{Evaluation, Objective, PairLoss};
use crate::scoring::{TokenStats, lay_out};
use crate::{Error, Result};

/// The buffers a step fills.
pub struct Gradients {
    /// Gradient of the whole loss with respect to every parameter.
    pub total: Tensors,
    /// `sum_i d/d eps [d l_i / d theta at e_i + eps v_i]`, kept apart until the factor on it is known.
    penalty: Option<Tensors>,
}

impl Gradients {
    /// Buffers for an objective on a model.
    pub fn new(model: &Model, objective: &Objective) -> Self {
        let zeros = || Tensors::zeros(&model.map);
        Gradients { total: zeros(), penalty: objective.penalty.map(|_| zeros()) }
    }
}

/// What a step found.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// The loss of the global batch, the penalty included, nats.
    pub loss: f64,
    /// What to log, by name.
    pub metrics: Vec<(&'static str, f64)>,
    /// Tokens of all prompts and completions, prompts counted for each branch, as TRL counts `num_tokens`.
    pub tokens: usize,
}

/// Computes the loss of the global batch `pairs` and, into `grads`, its gradient. `reference` are the pairs' log-
/// probabilities under the reference. `micro_batch` pairs are run at a time, which does not change the result.
///
/// # Errors
/// A token or length the model does not have; a loss that is not finite.
pub fn gradient(
    model: &Model,
    objective: &Objective,
    pairs: &[&TokenizedPair],
    reference: &BranchLogps,
    micro_batch: usize,
    grads: &mut Gradients,
) -> Result<StepOutput> {
    let mut step =
        Step { model, objective, n: pairs.len(), stats: TokenStats::default(), squares: Vec::new() };
    let mut out = StepOutput { tokens: tokens(pairs), ..StepOutput::default() };
    grads.total.clear();
    grads.penalty.iter_mut().for_each(Tensors::clear);

    // Pairs that are coupled must all be seen before any backward pass; others go by micro-batch.
    let together = if objective.couples_pairs() { pairs.len() } else { micro_batch };
    for (i, coupled) in pairs.chunks(together.max(1)).enumerate() {
        let batches: Vec<Batch> =
            coupled.chunks(micro_batch).map(|p| lay_out(p.iter().copied(), objective.sharing())).collect();
        let (logps, mut kept) = step.forward(&batches)?;
        let first = i * together;
        let evaluation = objective.evaluate(&logps, &reference.slice(first..first + coupled.len()), step.n);
        for (b, batch) in batches.iter().enumerate() {
            let activations = kept.take().unwrap_or_else(|| model.forward(batch));
            let range = b * micro_batch..b * micro_batch + batch.branches / 2;
            step.backward(batch, &activations, &Part::of(&evaluation, range), grads)?;
        }
        out.add(&evaluation);
    }
    step.add_penalty(grads, &mut out);
    out.metrics.extend(step.stats.metrics());
    if out.loss.is_finite() {
        Ok(out)
    } else {
        Err(Error::NonFinite(format!(
            "the loss is {}: lower `learning_rate`, or look at the data with `inspect data`",
            out.loss
        )))
    }
}

fn tokens(pairs: &[&TokenizedPair]) -> usize {
    let of = |p: &&TokenizedPair| {
        [&p.chosen, &p.rejected].map(|b| p.prompt_of(b).len() + b.completion.len()).iter().sum::<usize>()
    };
    pairs.iter().map(of).sum()
}

impl StepOutput {
    /// Losses and metrics of the parts of a separable objective add up; a coupled one has one part.
    fn add(&mut self, evaluation: &Evaluation) {
        self.loss += evaluation.loss;
        for &(name, value) in &evaluation.metrics {
            match self.metrics.iter_mut().find(|m| m.0 == name) {
                Some(m) => m.1 += value,
                None => self.metrics.push((name, value)),
            }
        }
    }
}

/// The pairs of one micro-batch within an evaluation.
struct Part<'a> {
    pairs: &'a [PairLoss],
    weights: &'a [f64],
}

impl<'a> Part<'a> {
    fn of(evaluation: &'a Evaluation, range: std::ops::Range<usize>) -> Self {
        Part { pairs: &evaluation.pairs[range.clone()], weights: &evaluation.weights[range] }
    }

    /// One number for each branch.
    fn branches(&self, of: impl Fn(usize, &PairLoss) -> [f64; 2]) -> Vec<f64> {
        self.pairs.iter().enumerate().flat_map(|(i, pair)| of(i, pair)).collect()
    }
}

struct Step<'a> {
    model: &'a Model,
    objective: &'a Objective,
    /// Pairs of the global batch.
    n: usize,
    stats: TokenStats,
    /// `g_i`, in order of pairs.
    squares: Vec<f64>,
}

impl Step<'_> {
    /// Log-probabilities of all branches. Activations are kept only where there is but one batch; otherwise they
    /// are computed again when their turn comes, so that memory stays that of a micro-batch.
    fn forward(&mut self, batches: &[Batch]) -> Result<(BranchLogps, Option<Activations>)> {
        let mut branches = Vec::new();
        let mut kept = None;
        for batch in batches {
            self.model.check(batch)?;
            let activations = self.model.forward(batch);
            self.stats.add(batch, &activations.predicted);
            branches.extend(activations.branch_logps(batch));
            kept = (batches.len() == 1).then_some(activations);
        }
        Ok((BranchLogps::from_branches(&branches), kept))
    }

    fn backward(&mut self, batch: &Batch, a: &Activations, part: &Part, grads: &mut Gradients) -> Result<()> {
        let d_logps = part.branches(|i, pair| pair.d.map(|d| part.weights[i] * d));
        let d_embed = self.model.backward(batch, a, &d_logps, &mut grads.total);
        if let Some(t_grads) = &mut grads.penalty {
            self.backward_penalty(batch, a, part, d_embed, t_grads)?;
        }
        Ok(())
    }

    /// The input-gradient penalty's part: `g_i`, and the derivative of every gradient along `v_i = d l_i / d e_i`
    /// (see [`objective::wdpo`](crate::objective::wdpo)).
    fn backward_penalty(
        &mut self,
        batch: &Batch,
        a: &Activations,
        part: &Part,
        d_embed: Vec<f32>,
        t_grads: &mut Tensors,
    ) -> Result<()> {
        if part.weights.contains(&0.0) {
            return Err(Error::Usage(
                "the input-gradient penalty needs every pair to have a weight; use it with the mean".into(),
            ));
        }
        // The backward pass gave w_i v_i.
        let mut v = d_embed;
        let mut squares = vec![0.0f64; part.pairs.len()];
        for (row, &pair) in v.chunks_exact_mut(self.model.config.hidden).zip(&batch.pair_of_row) {
            let scale = (1.0 / part.weights[pair as usize]) as f32;
            row.iter_mut().for_each(|x| *x *= scale);
            squares[pair as usize] += row.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
        }
        self.squares.extend(squares);
        let t = self.model.tangent(batch, a, v);
        let d = part.branches(|_, pair| pair.d);
        let td = part.branches(|i, pair| pair.d_along([t.branch_logps[2 * i], t.branch_logps[2 * i + 1]]));
        self.model.backward_tangent(batch, (a, &t), (&d, &td), t_grads);
        Ok(())
    }

    /// Adds the penalty to the loss and, now that all `g_i` are known, its gradient to the total:
    /// `dL/dg * d g_i / d theta`, `d g_i / d theta = 2 d/d eps [...]`.
    fn add_penalty(&self, grads: &mut Gradients, out: &mut StepOutput) {
        let (Some(penalty), Some(t_grads)) = (self.objective.penalty, &grads.penalty) else { return };
        let value = penalty.value(&self.squares);
        grads.total.add_scaled(t_grads, (2.0 * penalty.derivative(&self.squares)) as f32);
        out.loss += value;
        let mean = self.squares.iter().sum::<f64>() / self.squares.len() as f64;
        out.metrics.push(("wdpo/penalty", value));
        out.metrics.push(("wdpo/input_gradient_norm", mean.sqrt()));
    }
}
