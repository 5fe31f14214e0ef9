//! A training run from options to a saved model.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::data::{self, Visits};
use super::log::MetricsLog;
use super::step::{Gradients, StepOutput, gradient};
use super::{Every, Resume, TrainOptions};
use crate::checkpoint::{self, ReferenceLogps, TrainerState};
use crate::data::TokenizedPair;
use crate::eval::evaluate;
use crate::formats::{AtomicDir, Fingerprint, ModelSource, Tokenizer};
use crate::logps::BranchLogps;
use crate::model::Model;
use crate::optim::{AdamWState, clip};
use crate::progress::{Progress, Silent};
use crate::scoring::score;
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
}

/// Trains as `options` say: reads and checks everything first, then scores the rows it will visit under the
/// reference, then steps.
///
/// # Errors
/// Whatever is wrong with model, data, settings or checkpoint, before anything is written; later, a loss or gradient
/// that is not finite, and the file system's.
pub fn run(options: &TrainOptions, progress: &mut dyn Progress) -> Result<TrainSummary> {
    let started = Instant::now();
    check_output(options)?;
    let source = ModelSource::open(&options.model_name_or_path)?;
    let tokenizer = source.tokenizer()?;
    let train = data::load(
        &options.dataset_name,
        &options.dataset_train_split,
        &tokenizer,
        &options.tokenize,
        progress,
    )?;
    let eval = eval_rows(options, &tokenizer, progress)?;
    check_reference(options, &tokenizer, &train, progress)?;
    let settings = settings(options, &tokenizer, &train);

    let mut run = Run::start(options, &source, &train, &eval, settings)?;
    run.score_reference(progress)?;
    clear_output(options)?;
    let mut log = MetricsLog::open(&options.output_dir, run.state.step, options.tensorboard)?;
    let metrics = run.steps(&mut log, progress)?;
    checkpoint::save_model(&options.output_dir, &run.model, &source, options.save_dtype)?;
    Ok(TrainSummary { steps: run.state.step, metrics, seconds: started.elapsed().as_secs_f64() })
}

/// Finds out before any work whether the output directory can be written, without leaving anything behind.
fn check_output(options: &TrainOptions) -> Result<()> {
    let dir = &options.output_dir;
    let used = dir.join("metrics.jsonl").exists() || !checkpoint::list(dir).is_empty();
    if used && options.resume_from_checkpoint.is_none() && !options.overwrite_output_dir {
        return Err(Error::Usage(format!(
            "output_dir {} holds an earlier run; set `resume_from_checkpoint = true` to go on with it, \
             `overwrite_output_dir = true` to replace it, or choose another",
            dir.display()
        )));
    }
    let existing =
        dir.ancestors().find(|p| p.exists() && !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Dropped at once, the temporary directory is gone again.
    AtomicDir::new(existing.join("seakeep-probe"))
        .map(drop)
        .map_err(|e| Error::format(dir, format!("output_dir cannot be written: {e}")))
}

/// With `overwrite_output_dir`, an earlier run's checkpoints go, so that none is taken for this run's.
fn clear_output(options: &TrainOptions) -> Result<()> {
    if options.resume_from_checkpoint.is_none() {
        for (_, path) in checkpoint::list(&options.output_dir) {
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
    }
    std::fs::create_dir_all(&options.output_dir).map_err(Error::io("create", &options.output_dir))
}

/// A reference that tokenises otherwise would be scored on other texts.
fn check_reference(
    options: &TrainOptions,
    tokenizer: &Tokenizer,
    train: &[TokenizedPair],
    progress: &mut dyn Progress,
) -> Result<()> {
    let Some(path) = &options.ref_model_name_or_path else { return Ok(()) };
    let other = ModelSource::open(path)?.tokenizer()?;
    if other.fingerprint() == tokenizer.fingerprint() {
        return Ok(());
    }
    let (spec, split) = (&options.dataset_name, &options.dataset_train_split);
    let rows = data::load(spec, split, &other, &options.tokenize, progress)?;
    match rows.iter().zip(train).find(|(a, b)| a != b) {
        None if rows.len() == train.len() => Ok(()),
        found => Err(Error::format(
            path,
            format!(
                "the reference's tokenizer gives other tokens than the policy's{}; a reference must share the \
                 policy's tokenizer and chat template",
                found.map(|(_, b)| format!(" (row {})", b.row)).unwrap_or_default()
            ),
        )),
    }
}

fn eval_rows(
    options: &TrainOptions,
    tokenizer: &Tokenizer,
    progress: &mut dyn Progress,
) -> Result<Vec<TokenizedPair>> {
    if options.eval == Every::No {
        return Ok(Vec::new());
    }
    let split = match (&options.dataset_test_split, &options.eval_dataset_name) {
        (Some(split), _) => split,
        (None, Some(_)) => "test",
        (None, None) => {
            return Err(Error::Usage(
                "eval_strategy needs rows: set `dataset_test_split` (such as \"train[1000:]\") or `eval_dataset_name`".into(),
            ));
        }
    };
    let spec = options.eval_dataset_name.as_ref().unwrap_or(&options.dataset_name);
    data::load(spec, split, tokenizer, &options.tokenize, progress)
}

/// The settings that decide a run's result, for the record and to recognise its checkpoints.
fn settings(options: &TrainOptions, tokenizer: &Tokenizer, train: &[TokenizedPair]) -> Map<String, Value> {
    let mut rows = Fingerprint::new();
    for pair in train {
        for part in [
            pair.prompt_of(&pair.chosen),
            &pair.chosen.completion,
            pair.prompt_of(&pair.rejected),
            &pair.rejected.completion,
        ] {
            rows = rows.field(&part.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
    let text = |value: &dyn std::fmt::Debug| Value::String(format!("{value:?}"));
    let value = json!({
        "model_name_or_path": options.model_name_or_path,
        "ref_model_name_or_path": options.ref_model_name_or_path,
        "training_rows": rows.hex(),
        "tokenizer": tokenizer.fingerprint(),
        "method": options.method,
        "objective": text(&options.objective),
        "shuffle_dataset": options.shuffle_dataset,
        "seed": options.seed,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "learning_rate": options.learning_rate,
        "lr_scheduler": text(&options.schedule),
        "warmup": text(&options.warmup),
        "optimizer": text(&options.optimizer),
        "max_grad_norm": options.max_grad_norm,
    });
    match value {
        Value::Object(map) => map,
        _ => unreachable!("an object literal"),
    }
}

/// A run in progress.
struct Run<'a> {
    options: &'a TrainOptions,
    source: &'a ModelSource,
    train: &'a [TokenizedPair],
    eval: &'a [TokenizedPair],
    visits: Visits,
    model: Model,
    optimizer: AdamWState,
    state: TrainerState,
    reference: ReferenceLogps,
}

impl<'a> Run<'a> {
    /// From the beginning, or from a checkpoint.
    fn start(
        options: &'a TrainOptions,
        source: &'a ModelSource,
        train: &'a [TokenizedPair],
        eval: &'a [TokenizedPair],
        settings: Map<String, Value>,
    ) -> Result<Self> {
        let batch = options.per_device_train_batch_size * options.gradient_accumulation_steps;
        let visits =
            Visits { rows: train.len(), batch, shuffle: options.shuffle_dataset, seed: options.seed };
        let epochs = (options.num_train_epochs * visits.per_epoch() as f64).ceil() as usize;
        let total_steps = options.max_steps.unwrap_or(epochs);
        let from = match &options.resume_from_checkpoint {
            None => None,
            Some(Resume::From(path)) => Some(path.clone()),
            Some(Resume::Latest) => {
                let newest = checkpoint::list(&options.output_dir).pop();
                Some(newest.map(|(_, path)| path).ok_or_else(|| {
                    Error::Usage(format!(
                        "resume_from_checkpoint: no checkpoint in {}",
                        options.output_dir.display()
                    ))
                })?)
            }
        };
        let (model, optimizer, state, reference) = match from {
            Some(path) => {
                let restored = checkpoint::load(&path, &settings)?;
                let state = TrainerState { total_steps, ..restored.state };
                (restored.model, restored.optimizer, state, restored.reference)
            }
            None => {
                let model = Model::load(source)?;
                let optimizer = AdamWState::new(&model.map);
                let schema_version = checkpoint::SCHEMA_VERSION;
                let state = TrainerState {
                    schema_version,
                    step: 0,
                    total_steps,
                    epoch: 0.0,
                    num_tokens: 0,
                    settings,
                };
                (model, optimizer, state, ReferenceLogps::default())
            }
        };
        Ok(Run { options, source, train, eval, visits, model, optimizer, state, reference })
    }

    /// Log-probabilities under the reference of all rows the run will visit, those that a checkpoint did not bring.
    fn score_reference(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let visited: std::collections::BTreeSet<usize> =
            self.visits.steps(0, self.state.total_steps).flatten().collect();
        let missing = |known: &BTreeMap<usize, (f64, f64)>,
                       rows: &mut dyn Iterator<Item = usize>|
         -> Vec<usize> { rows.filter(|i| !known.contains_key(i)).collect() };
        let train = missing(&self.reference.train, &mut visited.into_iter());
        let eval = missing(&self.reference.eval, &mut (0..self.eval.len()));
        if train.is_empty() && eval.is_empty() {
            return Ok(());
        }
        // The policy serves as its own reference only before its first step.
        let fresh = match &self.options.ref_model_name_or_path {
            Some(path) => Some(Model::load(&ModelSource::open(path)?)?),
            None if self.state.step > 0 => Some(Model::load(self.source)?),
            None => None,
        };
        let model = fresh.as_ref().unwrap_or(&self.model);
        let size = self.options.per_device_eval_batch_size;
        progress.start("reference log-probabilities", (train.len() + eval.len()) as u64);
        for (rows, pairs, known) in
            [(train, self.train, &mut self.reference.train), (eval, self.eval, &mut self.reference.eval)]
        {
            let chosen: Vec<&TokenizedPair> = rows.iter().map(|&i| &pairs[i]).collect();
            let (logps, _) = score(model, &chosen, size, progress)?;
            known.extend(rows.into_iter().zip(logps.chosen.into_iter().zip(logps.rejected)));
        }
        progress.finish();
        Ok(())
    }

    /// All remaining optimizer steps.
    fn steps(&mut self, log: &mut MetricsLog, progress: &mut dyn Progress) -> Result<Vec<(String, f64)>> {
        let (options, first, total) = (self.options, self.state.step, self.state.total_steps);
        let mut grads = Gradients::new(&self.model, &options.objective);
        let mut interval = Interval::default();
        let mut logged = Vec::new();
        progress.start("training", (total.saturating_sub(first)) as u64);
        for rows in self.visits.steps(first, total) {
            let pairs: Vec<&TokenizedPair> = rows.iter().map(|&i| &self.train[i]).collect();
            let reference = known(&self.reference.train, rows.iter().copied());
            let micro_batch = options.per_device_train_batch_size;
            let out = gradient(&self.model, &options.objective, &pairs, &reference, micro_batch, &mut grads)?;
            let norm = grads.total.norm();
            if !norm.is_finite() {
                return Err(Error::NonFinite(format!(
                    "step {}: grad_norm is {norm}; lower `learning_rate`. Rows: {rows:?}",
                    self.state.step + 1
                )));
            }
            let lr = options.learning_rate * options.schedule.factor(options.warmup, self.state.step, total);
            clip(&mut grads.total, norm, options.max_grad_norm);
            options.optimizer.step(
                &self.model.map,
                &mut self.model.weights,
                &grads.total,
                &mut self.optimizer,
                lr,
            );

            self.state.step += 1;
            self.state.num_tokens += out.tokens;
            self.state.epoch = self.state.step as f64 / self.visits.per_epoch() as f64;
            progress.advance(1, &format!("loss {:.4}", out.loss));
            interval.add(&out);
            if self.due(Every::Steps(options.logging_steps)) || self.state.step == 1 {
                let more = [
                    ("grad_norm", norm),
                    ("learning_rate", lr),
                    ("num_tokens", self.state.num_tokens as f64),
                ];
                logged = interval.take(&more);
                log.write(self.state.step, self.state.epoch, &logged)?;
            }
            if self.due(options.eval) {
                let found = self.evaluate()?;
                progress.note(&told(self.state.step, &found));
                log.write(self.state.step, self.state.epoch, &found)?;
            }
            if options.save != Every::No && self.due_exactly(options.save) {
                let policy = (&self.model, self.source);
                checkpoint::save(&options.output_dir, policy, &self.optimizer, &self.state, &self.reference)?;
                checkpoint::prune(&options.output_dir, options.save_total_limit)?;
            }
        }
        progress.finish();
        Ok(logged)
    }

    fn due_exactly(&self, every: Every) -> bool {
        match every {
            Every::No => false,
            Every::Steps(n) => self.state.step.is_multiple_of(n),
            Every::Epoch => self.state.step.is_multiple_of(self.visits.per_epoch()),
        }
    }

    /// As [`due_exactly`](Self::due_exactly), and at the last step.
    fn due(&self, every: Every) -> bool {
        self.due_exactly(every) || (every != Every::No && self.state.step == self.state.total_steps)
    }

    fn evaluate(&self) -> Result<Vec<(String, f64)>> {
        let pairs: Vec<&TokenizedPair> = self.eval.iter().collect();
        let (policy, stats) =
            score(&self.model, &pairs, self.options.per_device_eval_batch_size, &mut Silent)?;
        let reference = known(&self.reference.eval, 0..self.eval.len());
        let mut metrics = evaluate(&policy, &reference, &self.options.objective);
        metrics.extend(stats.metrics().map(|(name, value)| (name.to_string(), value)));
        Ok(metrics.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect())
    }
}

/// An evaluation in a line.
fn told(step: usize, metrics: &[(String, f64)]) -> String {
    let shown = ["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"];
    let of = |name: &&str| metrics.iter().find(|m| m.0 == **name).map(|m| format!("{name} {:.4}", m.1));
    format!("step {step}: {}", shown.iter().filter_map(of).collect::<Vec<_>>().join(", "))
}

fn known(logps: &BTreeMap<usize, (f64, f64)>, rows: impl Iterator<Item = usize>) -> BranchLogps {
    let (chosen, rejected) = rows.map(|i| logps[&i]).unzip();
    BranchLogps { chosen, rejected }
}

/// Means over the steps since the last line of the log.
#[derive(Default)]
struct Interval {
    steps: usize,
    sums: Vec<(String, f64)>,
}

impl Interval {
    fn add(&mut self, out: &StepOutput) {
        self.steps += 1;
        for (name, value) in std::iter::once(("loss", out.loss)).chain(out.metrics.iter().copied()) {
            match self.sums.iter_mut().find(|s| s.0 == name) {
                Some(sum) => sum.1 += value,
                None => self.sums.push((name.to_string(), value)),
            }
        }
    }

    /// The means, with `more` after the loss; starts over.
    fn take(&mut self, more: &[(&str, f64)]) -> Vec<(String, f64)> {
        let Interval { steps, sums } = std::mem::take(self);
        let mut values: Vec<(String, f64)> = sums.into_iter().map(|(n, v)| (n, v / steps as f64)).collect();
        values.splice(1..1, more.iter().map(|(name, value)| (name.to_string(), *value)));
        values
    }
}
