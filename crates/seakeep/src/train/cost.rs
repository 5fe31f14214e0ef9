//! What a run will cost, before it starts: tokens, steps, operations, memory and time. Nothing is trained or written.

use seakeep_kernels::gemm::Precision;

use super::data::Visits;
use super::machine::{measured_ceiling, memory};
use super::prepare::Inputs;
use super::step::{kept, most_room, runs};
use super::{Every, TrainOptions, prepare};
use crate::Result;
use crate::batch::Batch;
use crate::checkpoint::{self, TrainerState};
use crate::data::{Rows, TokenizedPair};
use crate::formats::ModelSource;
use crate::model::{Keep, Operations, Sizes, room};
use crate::objective::Objective;
use crate::progress::Progress;
use crate::scoring::{PairLayout, begin, check_lengths};

/// Share of the machine's best product that a step reaches as a whole, within which expected times lie. Measured:
/// docs/PERFORMANCE.md.
pub const SHARES: [f64; 2] = [0.5, 0.9];
/// Epochs whose steps are counted one by one.
const COUNTED_EPOCHS: usize = 20;
/// The program, a tokenizer, and buffers of products.
const PROGRAM: usize = 100 << 20;
/// In memory of a row: its entry, and what the reference says of it.
const ROW: usize = 84;

/// What a run costs.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Rows to train on.
    pub rows: usize,
    /// Rows left out by tokenising.
    pub left_out: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Steps of a pass over the data.
    pub steps_per_epoch: usize,
    /// Tokens of the training rows.
    pub tokens: Tokens,
    /// Of the mean step.
    pub step: Operations,
    /// Of all steps.
    pub run: Operations,
    /// Of what is computed more than once, in all steps: the pairs of a step are coupled, or activations are not kept.
    pub again: f64,
    /// Of the reference, once: all rows that are visited and that no checkpoint brings, as if none of them were known from before.
    pub reference: f64,
    /// Of all evaluations.
    pub evaluation: f64,
    /// What memory is needed for when it is fullest.
    pub memory: Vec<(&'static str, usize)>,
    /// Bytes of memory that there are, where the system says.
    pub available: Option<u64>,
    /// Operations a second of the machine's best f32 product.
    pub ceiling: f64,
}

/// Tokens of rows, once each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Of prompts, each counted once.
    pub prompts: usize,
    /// Of completions.
    pub completions: usize,
    /// That are predicted.
    pub predicted: usize,
    /// That are computed: each prompt once, or for objectives that need it so once for each completion.
    pub computed: usize,
}

impl Cost {
    /// Bytes of memory at the fullest moment.
    pub fn peak(&self) -> usize {
        self.memory.iter().map(|part| part.1).sum()
    }

    /// Operations that are done, necessary or not.
    pub fn operations(&self) -> f64 {
        self.run.total() + self.again + self.reference + self.evaluation
    }

    /// Shortest and longest seconds that the run is expected to take.
    pub fn seconds(&self) -> [f64; 2] {
        let [least, most] = SHARES.map(|share| self.operations() / (self.ceiling * share));
        [most, least]
    }
}

/// What one row costs.
struct RowCost {
    operations: Operations,
    computed: usize,
    predictions: usize,
}

/// What rows cost.
struct RowCosts {
    /// Each by itself.
    each: Vec<RowCost>,
    /// What all of them begin with, which stands once in a batch.
    opening: RowCost,
}

impl RowCosts {
    /// Operations of a forward pass over `rows`, so many at a time; `whole` if each is computed with its opening.
    fn forward(&self, rows: &[usize], batch: usize, whole: bool) -> f64 {
        let known = if whole { 0 } else { rows.len() - rows.len().div_ceil(batch) };
        let sum: f64 = rows.iter().map(|&i| self.each[i].operations.forward).sum();
        sum - known as f64 * self.opening.operations.forward
    }

    /// Rows of the batch with the most rows, and predictions of the one with the most predictions, of so many at a time: buffers are kept
    /// for each.
    fn largest(&self, rows: &[usize], batch: usize) -> (usize, usize) {
        let sum = |part: &[usize], of: fn(&RowCost) -> usize| {
            part.iter().map(|&i| of(&self.each[i])).sum::<usize>()
        };
        let of = |part: &[usize]| {
            let computed = sum(part, |c| c.computed) - (part.len() - 1) * self.opening.computed;
            (computed, sum(part, |c| c.predictions))
        };
        rows.chunks(batch).map(of).fold((0, 0), most_of_each)
    }
}

fn most_of_each(a: (usize, usize), b: (usize, usize)) -> (usize, usize) {
    (a.0.max(b.0), a.1.max(b.1))
}

/// The most rows, and the most predictions, of the batches ...
struct Largest {
    /// that are trained on,
    trained: (usize, usize),
    /// that the reference scores,
    scored: (usize, usize),
    /// that are evaluated while the run is on, if any are.
    evaluated: Option<(usize, usize)>,
}

/// Counts what the run that `options` describe will cost: reads and tokenises the data, looks at the model's configuration,
/// measures the machine for less than a second.
///
/// # Errors
/// Whatever is wrong with model, data or settings.
pub fn estimate(options: &TrainOptions, progress: &mut dyn Progress) -> Result<Cost> {
    let Inputs { source, config, train, eval, .. } = prepare::inputs(options, progress)?;
    let state = prepare::checkpoint_of(options)?.map(|path| checkpoint::load_state(&path)).transpose()?;
    let visits = Visits::of(options, train.len());
    // What a run that goes on has done is not done again.
    let (total, first) = (visits.total(options), state.as_ref().map_or(0, |state| state.step));
    let steps = total.saturating_sub(first);
    let (visited, every) = (visits.visited(total), (0..eval.len()).collect::<Vec<usize>>());
    check_lengths(&config, &train, &visited)?;
    check_lengths(&config, &eval, &every)?;
    let (sizes, objective) = (Sizes::of(&config, options.lora.as_ref())?, &options.objective);

    let mut tokens = Tokens::default();
    let (to_train, to_score) = (PairLayout::of(objective), PairLayout::to_score(objective));
    let costs = of_rows(&train, to_train, objective, &sizes, Some(&mut tokens))?;
    let apart = match to_train.sharing == to_score.sharing {
        true => None,
        false => Some(of_rows(&train, to_score, objective, &sizes, None)?),
    };
    let score_costs = apart.as_ref().unwrap_or(&costs);
    let eval_costs = of_rows(&eval, to_score, objective, &sizes, None)?;
    let scored_at_a_time = options.per_device_eval_batch_size;
    let (mut run, mut again, mut largest) = (Operations::default(), 0.0, (0, 0));
    let plain = (options.numbers.keep, options.numbers.precision) == (Keep::F32, Precision::F32);
    // As a step lays pairs out.
    let drops_out = options.lora.as_ref().is_some_and(|lora| lora.lora_dropout > 0.0);
    let whole = !to_train.opening || drops_out;
    let opening = if whole { 0 } else { costs.opening.computed };
    // Epochs cost about the same: of many some are counted.
    let counted = steps.min(COUNTED_EPOCHS * visits.per_epoch());
    for rows in visits.steps(first, first + counted) {
        let micro = options.per_device_train_batch_size;
        let room = |&i: &usize| {
            let RowCost { computed, predictions, .. } = costs.each[i];
            room(&config, computed, kept(objective, options.lora.is_some(), predictions))
        };
        let rooms: Vec<usize> = rows.iter().map(room).collect();
        for part in runs(objective, micro, (&rooms, opening), most_room(plain, options.lora.is_some())) {
            let rows = &rows[part];
            let known = if whole { 0 } else { rows.len() - 1 };
            rows.iter().for_each(|&i| run += costs.each[i].operations);
            run += costs.opening.operations.times(-(known as f64));
            let sum = |of: fn(&RowCost) -> usize| rows.iter().map(|&i| of(&costs.each[i])).sum::<usize>();
            let logits = |n: &usize| sizes.logits_at_a_time(*n, objective.penalty.is_some());
            let (rows, predictions) = (sum(|c| c.computed) - known * opening, sum(|c| c.predictions));
            largest = (largest.0.max(rows), std::cmp::max_by_key(predictions, largest.1, logits));
        }
        let passes = passes_again(options.gradient_checkpointing, objective, rows.len() > micro);
        again += passes as f64 * costs.forward(&rows, micro, whole);
    }
    let all = steps as f64 / counted.max(1) as f64;
    (run, again) = (run.times(all), again * all);
    let step = run.times(1.0 / steps.max(1) as f64);
    // Features of prompts are means over all of their rows.
    let features = options.environments.is_some();
    let (asked, eval_asked) = match objective.needs_reference() {
        true => not_brought(state.as_ref(), &visits, (&visited, &every), eval.fingerprint()),
        false => Default::default(),
    };
    let reference = score_costs.forward(&asked, scored_at_a_time, features)
        + eval_costs.forward(&eval_asked, scored_at_a_time, features);
    let between = |every: Every| every.steps(visits.per_epoch(), total);
    let due = |n: usize| total / n - first.min(total) / n;
    // The last step is evaluated whatever it is.
    let evaluations =
        between(options.eval).map_or(0, |n| due(n) + usize::from(steps > 0 && !total.is_multiple_of(n)));
    let saves = options.lora.is_none() && between(options.save).is_some_and(|n| due(n) > 0);
    let evaluation = evaluations as f64 * eval_costs.forward(&every, scored_at_a_time, false);
    let evaluated = eval_costs.largest(&every, scored_at_a_time);
    let largest = Largest {
        trained: largest,
        scored: most_of_each(
            score_costs.largest(&asked, scored_at_a_time),
            eval_costs.largest(&eval_asked, scored_at_a_time),
        ),
        evaluated: (options.eval != Every::No).then_some(evaluated),
    };
    Ok(Cost {
        rows: train.len(),
        left_out: train.report().dropped(),
        steps,
        steps_per_epoch: visits.per_epoch(),
        tokens,
        step,
        run,
        again,
        reference,
        evaluation,
        memory: peak(options, (&sizes, &source), largest, train.len() + eval.len(), (saves, first > 0)),
        available: memory(),
        ceiling: measured_ceiling(options.numbers.precision),
    })
}

/// The rows to train and to evaluate on that the reference is asked for: a checkpoint brings those that its run was to visit.
fn not_brought(
    state: Option<&TrainerState>,
    visits: &Visits,
    (visited, every): (&[usize], &[usize]),
    eval_rows: &str,
) -> (Vec<usize>, Vec<usize>) {
    let brought = state.map(|state| visits.visited(state.total_steps)).unwrap_or_default();
    let same_rows = state.is_some_and(|state| state.eval_rows.as_deref() == Some(eval_rows));
    let asked = visited.iter().copied().filter(|row| brought.binary_search(row).is_err());
    (asked.collect(), if same_rows { Vec::new() } else { every.to_vec() })
}

/// How many more passes through the layers' products there are than are necessary, in forward passes. `accumulates`: a step is several
/// micro-batches.
fn passes_again(checkpointing: bool, objective: &Objective, accumulates: bool) -> usize {
    let penalty = objective.penalty.as_ref();
    // Once before any backward pass, since the pairs of a step wait for each other.
    let coupled = objective.couples_pairs() && accumulates;
    // The gradients of loss and penalty apart, since the penalty's factor comes last.
    let apart = penalty.is_some_and(|penalty| !penalty.is_linear()) && accumulates;
    // A penalty's passes find a layer's inside three times, and before the last its gradients and tangents; inside is three quarters of a layer.
    let recomputed = match (checkpointing, penalty.is_some()) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 4,
    };
    usize::from(coupled) + usize::from(apart) + recomputed
}

/// What each row costs, laid out like this; adds its tokens to `tokens`.
fn of_rows(
    rows: &Rows,
    layout: PairLayout,
    objective: &Objective,
    sizes: &Sizes,
    mut tokens: Option<&mut Tokens>,
) -> Result<RowCosts> {
    let cost = |batch: &Batch| RowCost {
        operations: sizes.operations(batch, objective.penalty.is_some()),
        computed: batch.rows(),
        predictions: batch.predictions.len(),
    };
    let mut opening: Option<Vec<u32>> = None;
    let of = |pair: Result<TokenizedPair>| {
        let pair = pair?;
        let before = opening.get_or_insert_with(|| pair.longest_prompt().to_vec());
        before.truncate(begin(before, &pair).len());
        let batch: Batch = layout.lay_out([&pair]);
        if let Some(tokens) = &mut tokens {
            tokens.prompts += pair.longest_prompt().len();
            tokens.completions += pair.branches.iter().map(|b| b.completion.len()).sum::<usize>();
            tokens.predicted += batch.predictions.len();
            tokens.computed += batch.rows();
        }
        Ok(cost(&batch))
    };
    let each = rows.iter().map(of).collect::<Result<_>>()?;
    let opening = opening.unwrap_or_default();
    Ok(RowCosts { each, opening: cost(&Batch::open(PairLayout::to_score(objective).worth(&opening))) })
}

/// What memory is needed for at the fullest moment: in a step, in an evaluation, or while the reference scores. `saves`: checkpoints of the
/// whole model are written. `resumed`: the policy is no longer its own reference.
fn peak(
    options: &TrainOptions,
    (sizes, source): (&Sizes, &ModelSource),
    largest: Largest,
    rows: usize,
    (saves, resumed): (bool, bool),
) -> Vec<(&'static str, usize)> {
    const F32: usize = 4;
    let weights = sizes.weight_bytes(source, options.numbers.keep);
    let adapters = if options.lora.is_some() { F32 * sizes.trainable } else { 0 };
    // A penalty with a root keeps its gradient apart until the whole batch was seen.
    let apart =
        options.objective.penalty.is_some_and(|p| !p.is_linear()) && options.gradient_accumulation_steps > 1;
    let gradients = F32 * sizes.trainable * if apart { 2 } else { 1 };
    let penalty = options.objective.penalty.is_some();
    let activations = sizes.activation_bytes(largest.trained, penalty, options.gradient_checkpointing);
    let of_training = ("activations of what is run at a time, logits", activations);
    let copy = (
        "a copy of the largest tensor while a checkpoint is written",
        if saves { F32 * sizes.largest } else { 0 },
    );
    let of_scoring = |batch| ("activations of what is scored at a time, logits", sizes.scoring_bytes(batch));
    let common = [("weights", weights + adapters), ("program, tokenizer, rows", PROGRAM + ROW * rows)];
    // In 8 bits with a scale for each block.
    let moments = 2 * sizes.trainable * if options.optimizer.eight_bits { 1 } else { F32 };
    let lasting = [("gradients", gradients), ("AdamW's moments", moments)];
    let training = [&lasting[..], &[of_training, copy]].concat();
    let evaluation = largest.evaluated.map(|batch| [&lasting[..], &[of_scoring(batch)]].concat());
    // A reference of its own is gone before training starts.
    let own = resumed || options.ref_model_name_or_path.is_some();
    let reference = ("the reference, while it scores", if own { weights } else { 0 });
    // Adapters, and the moments of theirs, come after the reference.
    let moments = (lasting[1].0, if options.lora.is_some() { 0 } else { moments });
    let scoring = (largest.scored.0 > 0).then(|| vec![reference, moments, of_scoring(largest.scored)]);
    let phases = [Some(training), evaluation, scoring].into_iter().flatten();
    let bytes = |parts: &Vec<(&str, usize)>| parts.iter().map(|part| part.1).sum::<usize>();
    let fullest = phases.max_by_key(bytes).unwrap_or_default();
    let [weights, rest] = common;
    [vec![weights], fullest, vec![rest]].concat()
}

/// The operations that a step's pairs ask for.
pub(super) fn of_step(pairs: &[&TokenizedPair], objective: &Objective, sizes: &Sizes) -> Operations {
    let batch = PairLayout::of(objective).lay_out(pairs.iter().copied());
    sizes.operations(&batch, objective.penalty.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Rule;
    use crate::objective::rule::Kldpo;
    use crate::objective::wdpo::{Form, Penalty, PromptGradient};

    #[test]
    fn what_is_computed_again_adds_up() {
        let dpo = Objective::dpo(0.1);
        let penalty = |form| Some(Penalty { rho: 0.01, form, prompt_gradient: PromptGradient::Separate });
        let coupled = Objective { rule: Rule::Kldpo(Kldpo::Tau(1.0)), ..Objective::dpo(0.1) };
        let [paper, official] = [Form::Paper, Form::Official]
            .map(|form| Objective { penalty: penalty(form), ..Objective::dpo(0.1) });
        for (objective, accumulates, kept, recomputed) in [
            (&dpo, false, 0, 1),
            (&dpo, true, 0, 1),
            (&coupled, false, 0, 1),
            (&coupled, true, 1, 2),
            (&official, true, 0, 4),
            (&paper, false, 0, 4),
            (&paper, true, 1, 5),
        ] {
            assert_eq!(passes_again(false, objective, accumulates), kept);
            assert_eq!(passes_again(true, objective, accumulates), recomputed);
        }
    }
}
