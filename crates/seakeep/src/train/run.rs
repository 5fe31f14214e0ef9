//! A training run from options to a saved model.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};

use super::cost::of_step;
use super::data::Visits;
use super::log::MetricsLog;
use super::machine::{Speed, measured_ceiling};
use super::prepare::Inputs;
use super::step::{GlobalBatch, Gradients, StepOutput, gradient};
use super::{Every, TrainOptions, prepare};
use seakeep_kernels::{buffer, dropout::mix};

use crate::checkpoint::{
    self, Interval, ReferenceRow, ReferenceRows, ReferenceScores, RunState, TrainerState,
};
use crate::data::{Rows, TokenizedPair};
use crate::environments::Environments;
use crate::eval::evaluate;
use crate::formats::ModelSource;
use crate::logps::{BranchLogps, Facts};
use crate::model::{Model, Sizes};
use crate::objective::{Context, Groups, Scored};
use crate::optim::{AdamWState, clipping};
use crate::progress::{Progress, Silent};
use crate::reference::{self, Known, Reference};
use crate::scoring::{PairLayout, check_lengths, score_rows};
use crate::{Error, Result};

/// What a run came to.
#[derive(Clone, Debug)]
pub struct TrainSummary {
    /// Optimizer steps done, over all sessions of the run.
    pub steps: usize,
    /// The last logged values.
    pub metrics: Vec<(String, f64)>,
    /// Wall-clock seconds of this session.
    pub seconds: f64,
    /// How fast its steps were.
    pub speed: Speed,
}

/// Trains as `options` say: reads and checks everything first, then scores the rows it will visit under the
/// reference, then steps.
///
/// # Errors
/// Whatever is wrong with model, data, settings or checkpoint, before anything is written; later, a loss or gradient
/// that is not finite, and the file system's.
pub fn run(options: &TrainOptions, progress: &mut dyn Progress) -> Result<TrainSummary> {
    let started = Instant::now();
    let Inputs { source, tokenizer, train, eval, .. } = prepare::inputs(options, progress)?;
    prepare::note_overlap(&train, &eval, progress);
    let settings = prepare::settings(options, &tokenizer, &train);

    let mut run = Run::start(options, &source, &train, &eval, settings, progress)?;
    prepare::check_later(&options.output_dir, run.state.step, options.overwrite_output_dir)?;
    run.score_reference(progress)?;
    run.add_adapters(progress)?;
    let _ours = prepare::take_output(&options.output_dir, run.state.step, options.overwrite_output_dir)?;
    let mut log = MetricsLog::open(&options.output_dir, run.state.step, options.tensorboard)?;
    let (metrics, speed) = run.steps(&mut log, progress)?;
    let save = |dtype| checkpoint::save_model(&options.output_dir, &run.model, &source, dtype);
    checkpoint::save_or_in_f32(options.save_dtype, progress, save)?;
    let seconds = started.elapsed().as_secs_f64();
    checkpoint::save_settings(&options.output_dir, &run.state.settings, seconds)?;
    Ok(TrainSummary { steps: run.state.step, metrics, seconds, speed })
}

/// A run in progress.
struct Run<'a> {
    options: &'a TrainOptions,
    source: &'a ModelSource,
    train: &'a Rows,
    eval: &'a Rows,
    visits: Visits,
    sizes: Sizes,
    model: Model,
    optimizer: AdamWState,
    state: TrainerState,
    reference: ReferenceScores,
}

impl<'a> Run<'a> {
    /// From the beginning, or from a checkpoint.
    fn start(
        options: &'a TrainOptions,
        source: &'a ModelSource,
        train: &'a Rows,
        eval: &'a Rows,
        settings: Map<String, Value>,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let visits = Visits::of(options, train.len());
        let (total_steps, eval_rows) = (visits.total(options), Some(eval.fingerprint().to_string()));
        let RunState { mut model, optimizer, mut state, mut reference } =
            match prepare::checkpoint_of(options)? {
                Some(path) => from_checkpoint(&path, options, source, &settings, total_steps, progress)?,
                None => {
                    let groups = Groups::of((0..train.len()).map(|i| train.group(i).map(str::to_string)));
                    anew(options, source, groups, settings)?
                }
            };
        if state.eval_rows != eval_rows {
            reference.eval = ReferenceRows::default();
        }
        (state.total_steps, state.eval_rows) = (total_steps, eval_rows);
        if let Some(kept) = model.weights.kept(options.numbers.keep) {
            progress.note(&kept);
        }
        let sizes = Sizes::of(&model.config, options.lora.as_ref())?;
        model.gradient_checkpointing = options.gradient_checkpointing;
        Ok(Run { options, source, train, eval, visits, sizes, model, optimizer, state, reference })
    }

    /// What the reference says of all rows the run will visit, those that a checkpoint did not bring.
    fn score_reference(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let missing = |known: &ReferenceRows, rows: Vec<usize>| -> Vec<usize> {
            rows.into_iter().filter(|&i| known.get(i).is_none()).collect()
        };
        let train = missing(&self.reference.train, self.visits.visited(self.state.total_steps));
        let eval = missing(&self.reference.eval, (0..self.eval.len()).collect());
        if train.is_empty() && eval.is_empty() {
            return Ok(());
        }
        if !self.options.objective.needs_reference() {
            // Scoring a reference would have found these before the first step.
            check_lengths(&self.model.config, self.train, &train)?;
            return check_lengths(&self.model.config, self.eval, &eval);
        }
        // The policy serves as its own reference only before its first step.
        let fresh = match &self.options.ref_model_name_or_path {
            Some(path) => Some(Model::load_in(&ModelSource::open(path)?, self.options.numbers)?),
            None if self.state.step > 0 => Some(Model::load_in(self.source, self.options.numbers)?),
            None => None,
        };
        let model = fresh.as_ref().unwrap_or(&self.model);
        let options = self.options;
        let how = (PairLayout::to_score(&options.objective), options.environments.is_some());
        let (cache, size) = (options.reference_cache_dir.as_deref(), options.per_device_eval_batch_size);
        let mut reference = Reference::open(model, how, cache, size)?;
        let weights = reference.weights();
        if self.state.reference.as_ref().is_some_and(|before| *before != weights) {
            let path = options.ref_model_name_or_path.as_ref().unwrap_or(&options.model_name_or_path);
            let what = "the reference has other weights than when the run began, and there are rows that it has not scored yet; give it those \
                        again, or start anew";
            return Err(Error::format(path, what));
        }
        self.state.reference = Some(weights);
        progress.start("reference log-probabilities", (train.len() + eval.len()) as u64);
        let found =
            [(train, self.train, &mut self.reference.train), (eval, self.eval, &mut self.reference.eval)];
        let environments = &mut self.reference.environments;
        for (visited, rows, known) in found {
            let Some(k) = options.environments else {
                reference.score(rows, &visited, progress, &mut |i, Known { logps, .. }| {
                    known.insert(visited[i], ReferenceRow { logps: &logps, environments: &[] });
                })?;
                continue;
            };
            let found = reference.known(rows, &visited, progress)?;
            // The environments are found once, among the first rows that come.
            if environments.is_none() && !visited.is_empty() {
                let features: Vec<Vec<f32>> = found.iter().map(|f| f.features.clone()).collect();
                *environments = Some(Environments::find(&features, k, options.seed)?);
            }
            for (row, Known { logps, features }) in visited.iter().zip(found) {
                let environments = environments.as_ref().map(|e| e.of(&features)).unwrap_or_default();
                known.insert(*row, ReferenceRow { logps: &logps, environments: &environments });
            }
        }
        progress.finish();
        // Training has batches of another size.
        buffer::release();
        Ok(())
    }

    /// Gives the model its adapters, if it is to have some and no checkpoint brought them: after the reference has been computed,
    /// which is the model without them.
    fn add_adapters(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let Some(lora) = &self.options.lora else { return Ok(()) };
        if self.model.adapters.is_none() {
            self.model.add_adapters(lora, self.options.seed)?;
            self.optimizer = AdamWState::new(&self.model.map, &self.options.optimizer);
        }
        let (trained, all) = (self.model.map.trainable(), self.model.map.count());
        progress.note(&format!("adapters: {trained} of {all} parameters are trained"));
        Ok(())
    }

    /// One optimizer step on `rows`.
    fn step(&mut self, rows: &[usize], grads: &mut Gradients) -> Result<Stepped> {
        let options = self.options;
        let fetched = self.train.several(rows)?;
        let pairs: Vec<&TokenizedPair> = fetched.iter().collect();
        let (facts, reference) = known(
            &PairLayout::of(&options.objective),
            pairs.iter().copied().zip(rows),
            self.known_of(&self.reference.train),
        );
        let global = GlobalBatch {
            pairs: &pairs,
            facts: &facts,
            reference: &reference,
            progress: self.progress(),
            groups: self.state.groups.clone(),
            dropout: self.dropout(),
        };
        let out =
            gradient(&self.model, &options.objective, &global, options.per_device_train_batch_size, grads)?;
        let grad_norm = finite(grads.total.norm())?;
        let factor = options.schedule.factor(options.warmup, self.state.step, self.state.total_steps);
        let learning_rate = options.learning_rate * factor;
        let (map, weights, optimizer) = (&self.model.map, &mut self.model.weights, &mut self.optimizer);
        let clipped = (&grads.total, clipping(grad_norm, options.max_grad_norm));
        options.optimizer.step(map, weights, clipped, optimizer, learning_rate);
        if let Some(groups) = &out.groups {
            self.state.groups = groups.clone();
        }
        let operations = of_step(&pairs, &options.objective, &self.sizes).total();
        Ok(Stepped { out, grad_norm, learning_rate, operations })
    }

    /// What the reference says of rows, for an objective that asks for one.
    fn known_of<'r>(&self, rows: &'r ReferenceRows) -> Option<&'r ReferenceRows> {
        self.options.objective.needs_reference().then_some(rows)
    }

    /// Dropout of this step.
    fn dropout(&self) -> Option<(f32, u32)> {
        let p = self.options.lora.as_ref().map_or(0.0, |lora| lora.lora_dropout);
        let seed = self.options.seed;
        let key = mix(self.state.step as u32 ^ mix(seed as u32 ^ mix((seed >> 32) as u32)));
        (p > 0.0).then_some((p as f32, key))
    }

    /// Share of the optimizer steps done.
    fn progress(&self) -> f64 {
        self.state.step as f64 / self.state.total_steps.max(1) as f64
    }

    /// All remaining optimizer steps, and what is due after each.
    fn steps(
        &mut self,
        log: &mut MetricsLog,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<(String, f64)>, Speed)> {
        let (options, first, total) = (self.options, self.state.step, self.state.total_steps);
        let mut grads = Gradients::new(&self.model);
        let (mut logged, mut speed) = (Vec::new(), Speed::new(measured_ceiling(options.numbers.precision)));
        progress.start("training", (total.saturating_sub(first)) as u64);
        for rows in self.visits.steps(first, total) {
            let begun = Instant::now();
            let stepped = self.step(&rows, &mut grads).map_err(|e| self.at_step(e, &rows))?;
            speed.add(stepped.operations, stepped.out.tokens, begun.elapsed());
            self.state.step += 1;
            self.state.num_tokens += stepped.out.tokens;
            self.state.epoch = self.visits.epochs(self.state.step, options.per_device_train_batch_size);
            progress.advance(1, &format!("loss {:.4}, {speed}", stepped.out.loss));
            self.state.pending.add(stepped.out.loss, &stepped.out.metrics);

            if self.due_exactly(options.logging) || self.state.step == 1 || self.state.step == total {
                logged = self.state.pending.take(&[
                    ("grad_norm", stepped.grad_norm),
                    ("learning_rate", stepped.learning_rate),
                    ("num_tokens", self.state.num_tokens as f64),
                ]);
                log.write(self.state.step, self.state.epoch, &logged)?;
            }
            if self.due(options.eval) {
                let found = self.evaluate()?;
                progress.note(&told(self.state.step, &found));
                log.write(self.state.step, self.state.epoch, &found)?;
            }
            if self.due_exactly(options.save) {
                let policy = (&self.model, self.source);
                checkpoint::save(&options.output_dir, policy, &self.optimizer, &self.state, &self.reference)?;
                checkpoint::prune(&options.output_dir, options.save_total_limit)?;
            }
        }
        progress.finish();
        Ok((logged, speed))
    }

    /// Says at which step, and on which rows of which file, a number stopped being finite.
    fn at_step(&self, error: Error, rows: &[usize]) -> Error {
        match error {
            Error::NonFinite(what) => {
                let places: Vec<_> = rows.iter().map(|&i| self.train.place(i)).collect();
                let of_file = |places: &[(&Arc<Path>, usize)]| {
                    let lines: Vec<String> = places.iter().map(|place| place.1.to_string()).collect();
                    format!("rows {} of {}", lines.join(", "), places[0].0.display())
                };
                let files: Vec<String> = places.chunk_by(|a, b| a.0 == b.0).map(of_file).collect();
                Error::NonFinite(format!("step {} ({}): {what}", self.state.step + 1, files.join("; ")))
            }
            other => other,
        }
    }

    fn due_exactly(&self, every: Every) -> bool {
        let steps = every.steps(self.visits.per_epoch(), self.state.total_steps);
        steps.is_some_and(|steps| self.state.step.is_multiple_of(steps))
    }

    /// As [`due_exactly`](Self::due_exactly), and at the last step.
    fn due(&self, every: Every) -> bool {
        self.due_exactly(every) || (every != Every::No && self.state.step == self.state.total_steps)
    }

    fn evaluate(&self) -> Result<Vec<(String, f64)>> {
        let all: Vec<usize> = (0..self.eval.len()).collect();
        let (objective, size) = (&self.options.objective, self.options.per_device_eval_batch_size);
        let layout = PairLayout::to_score(objective);
        // Buffers of training and of scoring are of different sizes: there is no need for both at once.
        buffer::release();
        let scores = score_rows(&self.model, (self.eval, &all), layout, false, size, &mut Silent)?;
        buffer::release();
        let (mut facts, mut reference) = (Vec::new(), BranchLogps::default());
        for (i, pair) in self.eval.iter().enumerate() {
            let (of_row, logps) =
                known(&layout, [(&pair?, &i)].into_iter(), self.known_of(&self.reference.eval));
            facts.extend(of_row);
            reference.extend(logps);
        }
        let scored = Scored { policy: &scores.logps, reference: &reference, facts: &facts };
        let context = Context::of(&facts, self.progress(), self.state.groups.clone());
        let mut metrics = evaluate(&scored, &context, objective);
        metrics.extend(scores.stats.metrics(objective));
        Ok(metrics.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect())
    }
}

/// The state of a run that begins.
fn anew(
    options: &TrainOptions,
    source: &ModelSource,
    groups: Groups,
    settings: Map<String, Value>,
) -> Result<RunState> {
    let model = Model::load_in(source, options.numbers)?;
    // Adapters come after the reference, and their moments with them: a large model has no room for its own.
    let optimizer = match options.lora {
        None => {
            model.check_trainable()?;
            AdamWState::new(&model.map, &options.optimizer)
        }
        Some(_) => AdamWState::default(),
    };
    let state = TrainerState {
        schema_version: checkpoint::SCHEMA_VERSION,
        step: 0,
        total_steps: 0,
        epoch: 0.0,
        num_tokens: 0,
        pending: Interval::default(),
        groups,
        settings,
        base: options.lora.as_ref().map(|_| reference::weights(&model)),
        reference: None,
        eval_rows: None,
        files: Default::default(),
    };
    Ok(RunState { model, optimizer, state, reference: ReferenceScores::default() })
}

/// Where a checkpoint stood, of a run that is to end at step `total_steps`.
fn from_checkpoint(
    path: &Path,
    options: &TrainOptions,
    source: &ModelSource,
    settings: &Map<String, Value>,
    total_steps: usize,
    progress: &mut dyn Progress,
) -> Result<RunState> {
    let how = (options.numbers, &options.optimizer);
    let restored = checkpoint::load(path, settings, source, how, reference::weights)?;
    let state = &restored.state;
    if state.step > total_steps {
        return Err(Error::Usage(format!(
            "{} is at step {}, and the run ends at step {total_steps}: raise `max_steps` or `num_train_epochs`",
            path.display(),
            state.step
        )));
    }
    if state.total_steps != total_steps {
        progress.note(&format!(
            "the run now ends at step {total_steps}, not {}: the learning rate follows the new end from here on",
            state.total_steps
        ));
    }
    Ok(restored)
}

/// An evaluation in a line.
fn told(step: usize, metrics: &[(String, f64)]) -> String {
    let mut shown = vec!["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"];
    if !metrics.iter().any(|m| shown[1..].contains(&m.0.as_str())) {
        shown.push("eval_mean_token_accuracy");
    }
    let of = |name: &&str| metrics.iter().find(|m| m.0 == **name).map(|m| format!("{name} {:.4}", m.1));
    format!("step {step}: {}", shown.iter().filter_map(of).collect::<Vec<_>>().join(", "))
}

/// What is known of rows before the policy sees them: facts and the reference's log-probabilities, 0 where there is none.
fn known<'a>(
    layout: &PairLayout,
    rows: impl Iterator<Item = (&'a TokenizedPair, &'a usize)>,
    reference: Option<&ReferenceRows>,
) -> (Vec<Facts>, BranchLogps) {
    let of = |(pair, row): (&TokenizedPair, &usize)| {
        let facts = Facts::of(pair, layout.prompts);
        let Some(reference) = reference else { return (facts, layout.no_reference(pair)) };
        let known = reference.get(*row).expect("every row that is visited was scored");
        (Facts { environments: known.environments.to_vec(), ..facts }, known.logps.to_vec())
    };
    let (facts, logps) = rows.map(of).unzip();
    (facts, BranchLogps(logps))
}

/// What a step did.
struct Stepped {
    out: StepOutput,
    /// Length of the gradient before clipping.
    grad_norm: f64,
    learning_rate: f64,
    /// Floating-point operations that it needed.
    operations: f64,
}

fn finite(grad_norm: f64) -> Result<f64> {
    if grad_norm.is_finite() {
        Ok(grad_norm)
    } else {
        Err(Error::NonFinite(format!("grad_norm is {grad_norm}; lower `learning_rate`")))
    }
}
