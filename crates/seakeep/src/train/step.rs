//! The training step: the loss of a global batch, and its exact gradient.

use std::ops::Range;

use seakeep_kernels::buffer::Buffer;

use crate::batch::Batch;
use crate::data::TokenizedPair;
use crate::logps::{BranchLogps, Facts, Role};
use crate::model::{Activations, Model, Tensors, room};
use crate::objective::wdpo::Penalty;
use crate::objective::{Context, Evaluation, Groups, Loss, Objective, Scored};
use crate::scoring::{PairLayout, TokenStats};
use crate::{Error, Result};

/// The buffers a step fills.
pub struct Gradients {
    /// Gradient of the whole loss with respect to every parameter that is trained.
    pub total: Tensors,
    /// `sum_i w_i d/d eps [d l_i / d theta at e_i + eps v_i]`, where it must be kept apart until the factor on it is known.
    penalty: Option<Tensors>,
}

impl Gradients {
    /// Buffers for a model.
    pub fn new(model: &Model) -> Self {
        Gradients { total: Tensors::of_trainable(&model.map), penalty: None }
    }
}

/// A global batch: the pairs of one optimizer step.
pub struct GlobalBatch<'a> {
    /// The pairs, `[n]`.
    pub pairs: &'a [&'a TokenizedPair],
    /// What the objective may know of them, `[n]`.
    pub facts: &'a [Facts],
    /// Their log-probabilities under the reference, `[n]`.
    pub reference: &'a BranchLogps,
    /// Share of the optimizer steps done.
    pub progress: f64,
    /// The groups as they stand.
    pub groups: Groups,
    /// Dropout of what goes into adapters: its probability, and what sets this step's masks apart from others'.
    pub dropout: Option<(f32, u32)>,
}

/// What a step found.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// The loss of the global batch, the penalty included, nats.
    pub loss: f64,
    /// What to log, by name.
    pub metrics: Vec<(String, f64)>,
    /// Tokens of all prompts and completions, prompts counted for each branch, as TRL counts `num_tokens`.
    pub tokens: usize,
    /// The groups after this step, for rules that follow them.
    pub groups: Option<Groups>,
}

/// Computes the loss of a global batch and, into `grads`, its gradient. At most `micro_batch` pairs are run at a time, which
/// does not change the result.
///
/// # Errors
/// A token or length the model does not have; a loss that is not finite.
pub fn gradient(
    model: &Model,
    objective: &Objective,
    global: &GlobalBatch,
    micro_batch: usize,
    grads: &mut Gradients,
) -> Result<StepOutput> {
    // The factor on the penalty's gradient is known in time where it is a constant, or where this is the only micro-batch.
    let is_constant = objective.penalty.is_some_and(|p| p.is_linear());
    let at_once = is_constant || global.pairs.len() <= micro_batch;
    // On a thread of the pool: from outside, each of some thousand parallel loops would be handed over and waited for.
    rayon::scope(|_| gradient_with(model, objective, global, micro_batch, at_once, grads))
}

/// [`gradient`]; `at_once` as in [`Step`].
fn gradient_with(
    model: &Model,
    objective: &Objective,
    global: &GlobalBatch,
    micro_batch: usize,
    at_once: bool,
    grads: &mut Gradients,
) -> Result<StepOutput> {
    let context = Context::of(global.facts, global.progress, global.groups.clone());
    let of_objective = PairLayout::of(objective);
    let mut step = Step {
        model,
        objective,
        // Rows that pairs share would need the dropout masks of all of them.
        layout: PairLayout { opening: of_objective.opening && global.dropout.is_none(), ..of_objective },
        stats: TokenStats::default(),
        at_once,
        mean_square: 0.0,
    };
    let mut out = StepOutput { tokens: tokens(global.pairs), ..StepOutput::default() };
    grads.total.forget();
    grads.penalty.iter_mut().for_each(Tensors::forget);

    let room = |pair: &&TokenizedPair| {
        let alone = step.layout.lay_out([*pair]);
        let kept = kept(objective, model.adapters.is_some(), alone.predictions.len());
        room(&model.config, alone.rows(), kept)
    };
    let rooms: Vec<usize> = global.pairs.iter().map(room).collect();
    let opening = step.layout.opening(global.pairs).len();
    let most = most_room(model.weights.are_plain(), model.adapters.is_some());
    let runs = runs(objective, micro_batch, (&rooms, opening), most);
    // Pairs that are coupled must all be seen before any backward pass.
    let together = if objective.couples_pairs() { runs.len() } else { 1 };
    for runs in runs.chunks(together.max(1)) {
        let of_run = |run: &Range<usize>| &global.pairs[run.clone()];
        let lay_out = |run: &Range<usize>| {
            let mut batch = step.layout.lay_out(of_run(run).iter().copied());
            if let Some((p, key)) = global.dropout {
                batch.drop_out(p, key, run.start);
            }
            batch
        };
        let batches: Vec<Batch> = runs.iter().map(lay_out).collect();
        let (policy, mut kept) = step.forward(&runs.iter().map(of_run).collect::<Vec<_>>(), &batches)?;
        let all = runs[0].start..runs[runs.len() - 1].end;
        let (reference, facts) = (&global.reference.slice(all.clone()), &global.facts[all.clone()]);
        let evaluation = objective.evaluate(&Scored { policy: &policy, reference, facts }, &context);
        for (batch, run) in batches.iter().zip(runs) {
            let activations = kept.take().unwrap_or_else(|| step.activations(batch));
            let range = run.start - all.start..run.end - all.start;
            step.backward(batch, &activations, &Part::of(&evaluation, range), grads);
        }
        out.add(evaluation);
    }
    grads.total.settle();
    grads.penalty.iter_mut().for_each(Tensors::settle);
    step.add_penalty(grads, &mut out);
    out.metrics.extend(step.stats.metrics(objective));
    if out.loss.is_finite() {
        Ok(out)
    } else {
        Err(Error::NonFinite(format!(
            "the loss is {}: lower `learning_rate`, or look at the data with `inspect data`",
            out.loss
        )))
    }
}

/// The [`room`] of a run in which products of f32 are about as fast as they become, and what all pairs begin with is computed in few
/// runs: more at a time would need more memory (0.7 MB a row with SmolLM2-135M) and bring little.
const FULL: usize = 620;
/// The same where only adapters are trained: a weight is packed for two products instead of three, and its gradient and moments, which
/// would take most of the memory, are not there.
const FULL_OF_ADAPTERS: usize = 1024;

/// Of how many of a few predictions logits are kept from a forward to its backward pass: of all for the gradient of the vocabulary
/// projection, if it is trained; a penalty has other passes between.
pub(super) fn kept(objective: &Objective, adapters: bool, predictions: usize) -> usize {
    if objective.penalty.is_none() && !adapters { predictions } else { 0 }
}

/// The most [`room`] that is worth taking at a time, if there is a most: weights that are not `plain` are packed or decoded for every run.
pub(super) fn most_room(plain: bool, adapters: bool) -> Option<usize> {
    plain.then_some(if adapters { FULL_OF_ADAPTERS } else { FULL })
}

/// The pairs that go through the model at a time: `micro_batch`, and fewer where [`most_room`] is enough (`rooms` of each pair alone,
/// of which `opening` rows are the same for all) and nothing is lost by it. Where pairs are coupled, the forward pass is made twice unless all of them are one run; where
/// the factor on a penalty's gradient is only known after all of them, it costs a product more.
pub(super) fn runs(
    objective: &Objective,
    micro_batch: usize,
    (rooms, opening): (&[usize], usize),
    most: Option<usize>,
) -> Vec<Range<usize>> {
    let may_be_cut = !objective.couples_pairs() && objective.penalty.is_none_or(|p| p.is_linear());
    let most = most.filter(|_| may_be_cut).unwrap_or(usize::MAX);
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (i, &room) in rooms.iter().enumerate() {
        filled += room - opening;
        match runs.last_mut() {
            Some(run) if run.len() < micro_batch && filled <= most => run.end = i + 1,
            _ => {
                runs.push(i..i + 1);
                filled = room;
            }
        }
    }
    runs
}

fn tokens(pairs: &[&TokenizedPair]) -> usize {
    let of = |p: &&TokenizedPair| {
        let own = p.branches.iter().filter(|b| b.role != Role::Mismatched);
        own.map(|b| p.prompt_of(b).len() + b.completion.len()).sum::<usize>()
    };
    pairs.iter().map(of).sum()
}

impl StepOutput {
    /// Losses and metrics of the parts of a separable objective add up; a coupled one has one part.
    fn add(&mut self, evaluation: Evaluation) {
        self.loss += evaluation.loss;
        self.groups = evaluation.groups;
        for (name, value) in evaluation.metrics {
            match self.metrics.iter_mut().find(|m| m.0 == name) {
                Some(m) => m.1 += value,
                None => self.metrics.push((name, value)),
            }
        }
    }
}

/// The pairs of one micro-batch within an evaluation.
struct Part<'a> {
    pairs: &'a [Loss],
    weights: &'a [f64],
    d_logps: Vec<f64>,
}

impl<'a> Part<'a> {
    fn of(evaluation: &'a Evaluation, range: Range<usize>) -> Self {
        Part {
            pairs: &evaluation.pairs[range.clone()],
            weights: &evaluation.weights[range.clone()],
            d_logps: evaluation.grads.slice(range).branches(),
        }
    }
}

/// What a pair of less weight adds is below the last digit of any sum.
const NO_WEIGHT: f64 = 1e-20;

struct Step<'a> {
    model: &'a Model,
    objective: &'a Objective,
    layout: PairLayout,
    stats: TokenStats,
    /// Whether the penalty's second backward pass adds both gradients to the total, the factor on the penalty's being known.
    at_once: bool,
    /// `sum_i w_i g_i` so far.
    mean_square: f64,
}

impl Step<'_> {
    /// Log-probabilities of all branches. Activations are kept only where there is but one batch; otherwise they
    /// are computed again when their turn comes, so that memory stays that of a micro-batch.
    fn forward(
        &mut self,
        micro: &[&[&TokenizedPair]],
        batches: &[Batch],
    ) -> Result<(BranchLogps, Option<Activations>)> {
        let mut logps = BranchLogps::default();
        let mut kept = None;
        for (pairs, batch) in micro.iter().zip(batches) {
            self.model.check(batch)?;
            kept = (batches.len() == 1).then(|| self.activations(batch));
            let predicted = match &kept {
                Some(activations) => &activations.predicted,
                None => &self.model.predictions(batch),
            };
            self.stats.add(pairs, self.layout, batch, predicted);
            let branches = batch.branch_sums(predicted.iter().map(|p| p.logp));
            logps.extend(self.layout.logps(pairs, &branches));
        }
        Ok((logps, kept))
    }

    fn activations(&self, batch: &Batch) -> Activations {
        match self.objective.penalty {
            None => self.model.forward_to_train(batch),
            // Between its first backward pass and the projection's last there are others: too long to keep logits.
            Some(_) => self.model.forward(batch),
        }
    }

    fn backward(&mut self, batch: &Batch, a: &Activations, part: &Part, grads: &mut Gradients) {
        match self.objective.penalty {
            None => drop(self.model.backward(batch, a, &part.d_logps, &mut grads.total)),
            Some(penalty) => self.backward_penalised(batch, a, part, penalty, grads),
        }
    }

    /// With the input-gradient penalty: `g_i`, and the derivative of every gradient along `v_i = d l_i / d e_i`, weighted (see
    /// [`objective::wdpo`](crate::objective::wdpo)).
    ///
    /// At once: the first backward pass is for `v_i` alone, the direction carries the factor, and the second pass, from the
    /// sum of the seeds and their tangents, adds both gradients: two products for each weight. Otherwise the first pass adds
    /// the loss's gradient and the second the penalty's, to a buffer of its own: three products.
    fn backward_penalised(
        &mut self,
        batch: &Batch,
        a: &Activations,
        part: &Part,
        penalty: Penalty,
        grads: &mut Gradients,
    ) {
        let model = self.model;
        let (d_embed, inner) = if self.at_once {
            model.backward_kept(batch, a, &part.d_logps, &mut Tensors::none(&model.map))
        } else {
            model.backward_kept(batch, a, &part.d_logps, &mut grads.total)
        };
        let mut v = self.unweighted(batch, d_embed, part.weights);
        let to = if self.at_once {
            let factor = 2.0 * penalty.derivative(self.mean_square);
            v.iter_mut().for_each(|v| *v *= factor as f32);
            &mut grads.total
        } else {
            grads.penalty.get_or_insert_with(|| Tensors::of_trainable(&model.map))
        };
        let t = model.tangent(batch, a, inner, v, to);
        let mut along = t.branch_logps.as_slice();
        let mut seeds = Vec::with_capacity(along.len());
        for (pair, weight) in part.pairs.iter().zip(part.weights) {
            let (own, others) = along.split_at(pair.d.len());
            along = others;
            seeds.extend(pair.d_along(own).iter().map(|td| weight * td));
        }
        if self.at_once {
            seeds.iter_mut().zip(&part.d_logps).for_each(|(seed, d)| *seed += d);
        }
        model.backward_tangent(batch, a, t, &seeds, to);
    }

    /// `v_i` from the `w_i v_i` of a backward pass; counts their squares.
    fn unweighted(&mut self, batch: &Batch, d_embed: Buffer, weights: &[f64]) -> Buffer {
        let mut v = d_embed;
        for (row, &pair) in v.chunks_exact_mut(self.model.config.hidden).zip(&batch.pair_of_row) {
            let weight = weights[pair as usize];
            let scale = if weight > NO_WEIGHT { (1.0 / weight) as f32 } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= scale);
            self.mean_square += weight * row.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
        }
        v
    }

    /// Adds the penalty to the loss and, now that all `g_i` are known, its gradient to the total where it was kept apart:
    /// `dL/d(sum w g) * d(sum w g)/d theta`, `d g_i / d theta = 2 d/d eps [...]`.
    fn add_penalty(&self, grads: &mut Gradients, out: &mut StepOutput) {
        let Some(penalty) = self.objective.penalty else { return };
        if let (Some(t_grads), false) = (&grads.penalty, self.at_once) {
            grads.total.add_scaled(t_grads, (2.0 * penalty.derivative(self.mean_square)) as f32);
        }
        let value = penalty.value(self.mean_square);
        out.loss += value;
        out.metrics.push(("wdpo/penalty".to_string(), value));
        out.metrics.push(("wdpo/input_gradient_norm".to_string(), self.mean_square.sqrt()));
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
