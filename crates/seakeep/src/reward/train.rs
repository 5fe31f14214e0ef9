//! A training run of a reward model, from options to a saved model.

use std::path::PathBuf;
use std::time::Instant;

use super::loss::{Given, Objective, Problem, Target};
use super::measures::{Measures, measure};
use super::model::RewardModel;
use super::rows::{LabelNames, RewardRow, label_names, read_rewards};
use super::step::{Example, StepOutput, gradient};
use super::texts::Texts;
use crate::checkpoint::{Interval, save_or_in_f32};
use crate::data::split;
use crate::formats::{ModelSource, SaveDtype};
use crate::model::Tensors;
use crate::optim::{AdamW, AdamWState, Schedule, Warmup, clipping};
use crate::progress::{Progress, Silent};
use crate::train::data::Visits;
use crate::train::log::MetricsLog;
use crate::train::{Every, check_output, take_output};
use crate::{Error, Result};

/// What of a step's measures is logged.
const LOGGED: [&str; 7] =
    ["accuracy", "exact_match", "mse", "margin", "min_reward", "mean_reward", "max_reward"];

/// A validated training run. Names are those of Hugging Face's `TrainingArguments` and TRL's `RewardConfig` where such a
/// key exists.
#[derive(Clone, Debug)]
pub struct RewardOptions {
    /// Where to start from: a language model, whose vocabulary projection is left out, or a reward model.
    pub model_name_or_path: PathBuf,
    /// Rows to train on: file, directory or pattern.
    pub dataset_name: String,
    /// Which of them, such as `train[:1000]`.
    pub dataset_train_split: String,
    /// Which rows to judge on, of `eval_dataset_name` or else of `dataset_name`.
    pub dataset_test_split: Option<String>,
    /// Rows to judge on.
    pub eval_dataset_name: Option<String>,
    /// Where the trained model and `metrics.jsonl` go.
    pub output_dir: PathBuf,
    /// Whether an earlier run in `output_dir` may be replaced.
    pub overwrite_output_dir: bool,
    /// The kind of problem; `None`: pairs where the rows are pairs, else labels each by itself.
    pub problem: Option<Problem>,
    /// The labels in their order; `None`: those of the data, sorted.
    pub labels: Option<LabelNames>,
    /// See [`Objective::center_rewards`].
    pub center_rewards: Option<f64>,
    /// A training text is up to this many texts, one after another, with their labels merged; drawn anew every epoch.
    pub concatenate: usize,
    /// Longest text in tokens; longer ones lose their end.
    pub max_length: Option<usize>,
    /// Whether each epoch visits the rows in a new random order (a function of `seed` and the epoch).
    pub shuffle_dataset: bool,
    /// Rows per forward and backward pass. Does not change the result.
    pub per_device_train_batch_size: usize,
    /// Texts per forward pass in evaluation. Does not change the result.
    pub per_device_eval_batch_size: usize,
    /// Passes per optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Whether activations are computed again in the backward pass rather than kept. Does not change the result.
    pub gradient_checkpointing: bool,
    /// Passes over the data; may be a fraction.
    pub num_train_epochs: f64,
    /// Optimizer steps; overrides the epochs.
    pub max_steps: Option<usize>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// How it starts.
    pub warmup: Warmup,
    /// Optimizer.
    pub optimizer: AdamW,
    /// Gradients longer than this are shortened to it; 0: never.
    pub max_grad_norm: f64,
    /// When a line of `metrics.jsonl` is written (the first and the last step always have one).
    pub logging: Every,
    /// When to evaluate; with `eval_dataset_name` also after the last step.
    pub eval: Every,
    /// Seed of a new head, of the order of rows and of concatenation.
    pub seed: u64,
    /// Whether TensorBoard event files are written.
    pub tensorboard: bool,
    /// Number format of the saved model.
    pub save_dtype: SaveDtype,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct RewardSummary {
    /// Optimizer steps done.
    pub steps: usize,
    /// The last logged values.
    pub metrics: Measures,
    /// The last evaluation, if there was one; names begin with `eval_`.
    pub eval: Option<Measures>,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// Trains as `options` say. Everything is read and checked before anything is written.
///
/// # Errors
/// Whatever is wrong with model, data or settings; later, a loss or gradient that is not finite, and the file system's.
pub fn run(options: &RewardOptions, progress: &mut dyn Progress) -> Result<RewardSummary> {
    let started = Instant::now();
    check_output(&options.output_dir, false, options.overwrite_output_dir)?;
    let source = ModelSource::open(&options.model_name_or_path)?;
    let (problem, labels) = label_names(&options.dataset_name, options.problem, options.labels.as_ref())?;
    let objective = Objective { problem, center_rewards: options.center_rewards };
    check(options, problem)?;
    let of_split = |spec: &str, split: &str| {
        split::select(read_rewards(spec, problem, &labels)?, |row| &row.file, spec, split)
    };
    let mut rows = of_split(&options.dataset_name, &options.dataset_train_split)?;
    let mut eval_rows = match options.judged_on() {
        Some((spec, split)) => of_split(spec, split)?,
        None => Vec::new(),
    };
    let mut model = RewardModel::start(&source, problem, &labels, options.seed, progress)?;
    model.model.gradient_checkpointing = options.gradient_checkpointing;
    progress.note(&format!(
        "{}: {} rows; {} of {}",
        options.dataset_name,
        rows.len(),
        problem.name(),
        labels.join(", ")
    ));
    let texts = Texts::new(&model, &mut rows, options, progress)?;
    let eval = examples(&model, &mut eval_rows, options.max_length, progress)?;
    let _ours = take_output(&options.output_dir, 0, options.overwrite_output_dir)?;
    let log = MetricsLog::open(&options.output_dir, 0, options.tensorboard)?;
    let mut run = Run { options, objective, model, eval, log, evaluation: None };
    let (steps, metrics) = run.steps(&rows, &texts, progress)?;
    let save = |dtype| run.model.save(&options.output_dir, dtype);
    save_or_in_f32(options.save_dtype, progress, save)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(RewardSummary { steps, metrics, eval: run.evaluation, seconds })
}

fn check(options: &RewardOptions, problem: Problem) -> Result<()> {
    if options.concatenate > 1 && problem != Problem::MultiLabel {
        return Err(Error::Usage(format!(
            "concatenate merges labels, which {} has none of to merge; leave it out",
            problem.name()
        )));
    }
    if options.center_rewards.is_some() && problem != Problem::BradleyTerry {
        return Err(Error::Usage(format!(
            "center_rewards_coefficient is for pairs (bradley_terry); the problem is {}",
            problem.name()
        )));
    }
    if options.eval != Every::No && options.judged_on().is_none() {
        return Err(Error::Usage(
            "eval_strategy needs rows: give eval_dataset_name or dataset_test_split".into(),
        ));
    }
    Ok(())
}

impl RewardOptions {
    /// The rows to judge on: data set and split.
    pub fn judged_on(&self) -> Option<(&str, &str)> {
        let split = self.dataset_test_split.as_deref();
        match &self.eval_dataset_name {
            Some(spec) => Some((spec, split.unwrap_or_default())),
            None => Some((&self.dataset_name, split?)),
        }
    }
}

/// Rows as the model sees them. Pairs of which a text is too long are left out of `rows`, as TRL does; texts with labels lose
/// their end. How many is said.
///
/// # Errors
/// [`Error::Row`] for a text that cannot be tokenised; no pair that is left.
pub fn examples(
    model: &RewardModel,
    rows: &mut Vec<RewardRow>,
    max_length: Option<usize>,
    progress: &mut dyn Progress,
) -> Result<Vec<Example>> {
    let mut tokenized = super::texts::tokenized(model, rows, max_length)?;
    if model.problem == Problem::BradleyTerry {
        let (before, mut each) = (rows.len(), tokenized.iter());
        rows.retain(|_| each.next().is_some_and(|(_, cut)| *cut == 0));
        tokenized.retain(|(_, cut)| *cut == 0);
        if rows.len() < before {
            progress.note(&format!(
                "{} of {before} pairs are left out: a text is too long (max_length, or the model's positions)",
                before - rows.len()
            ));
        }
        if before > 0 && rows.is_empty() {
            return Err(Error::Usage("no pair is left: all are too long; raise `max_length`".into()));
        }
    }
    let (found, cut): (Vec<Example>, Vec<usize>) = tokenized.into_iter().unzip();
    let cut: usize = cut.iter().sum();
    if cut > 0 {
        progress.note(&format!(
            "{cut} texts were too long and lost their end (max_length, or the model's positions)"
        ));
    }
    Ok(found)
}

/// The loss on `examples` as one batch, then their [`measure`]s.
///
/// # Errors
/// As [`RewardModel::score`].
pub fn evaluate(
    model: &RewardModel,
    objective: &Objective,
    examples: &[Example],
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<Measures> {
    let texts: Vec<Vec<u32>> = examples.iter().flat_map(|e| e.texts.iter().cloned()).collect();
    let mut flat = model.logits(&texts, batch_size, progress)?.into_iter();
    let logits: Vec<Given> = examples.iter().map(|e| flat.by_ref().take(e.texts.len()).collect()).collect();
    let terms: usize = examples.iter().map(|e| objective.terms(&e.target)).sum();
    let sum: f64 = logits.iter().zip(examples).map(|(l, e)| objective.evaluate(l, &e.target).0).sum();
    let mut measures = vec![("loss".to_string(), sum / terms.max(1) as f64)];
    measures.extend(measured(model, objective, &logits, examples));
    Ok(measures)
}

fn measured(model: &RewardModel, objective: &Objective, logits: &[Given], examples: &[Example]) -> Measures {
    let natural = |text: &Vec<f64>| model.natural(text);
    let scores: Vec<Given> = logits.iter().map(|row| row.iter().map(natural).collect()).collect();
    let targets: Vec<&Target> = examples.iter().map(|e| &e.target).collect();
    measure(objective.problem, model.labels(), (logits, &scores), &targets)
}

struct Run<'a> {
    options: &'a RewardOptions,
    objective: Objective,
    model: RewardModel,
    eval: Vec<Example>,
    log: MetricsLog,
    evaluation: Option<Measures>,
}

impl Run<'_> {
    /// All optimizer steps, and what is due after each; the number of steps and the last logged values.
    fn steps(
        &mut self,
        rows: &[RewardRow],
        texts: &Texts,
        progress: &mut dyn Progress,
    ) -> Result<(usize, Measures)> {
        let options = self.options;
        let batch = options.per_device_train_batch_size * options.gradient_accumulation_steps;
        let visits = Visits { rows: rows.len(), batch, shuffle: options.shuffle_dataset, seed: options.seed };
        let per_epoch = visits.per_epoch();
        let total =
            options.max_steps.unwrap_or((options.num_train_epochs * per_epoch as f64).ceil() as usize);
        let mut grads = Tensors::zeros(&self.model.model.map);
        let mut optimizer = AdamWState::new(&self.model.model.map, &options.optimizer);
        let (mut pending, mut logged, mut tokens) = (Interval::default(), Vec::new(), 0);
        progress.start("training", total as u64);
        for (i, visited) in visits.steps(0, total).enumerate() {
            let step = i + 1;
            let epoch = visits.epochs(step, options.per_device_train_batch_size);
            let examples = texts.examples(&self.model, rows, &visited, i / per_epoch)?;
            let stepped = self.step(&examples, &mut grads, &mut optimizer, (i, total));
            let (out, grad_norm, learning_rate) = stepped.map_err(|e| at_step(e, step, rows, &visited))?;
            tokens += out.tokens;
            progress.advance(1, &format!("loss {:.4}", out.loss));
            let measures = measured(&self.model, &self.objective, &out.logits, &examples);
            let measures: Measures =
                measures.into_iter().filter(|(name, _)| LOGGED.contains(&name.as_str())).collect();
            pending.add(out.loss, &measures);
            let due = |every: Every| every.steps(per_epoch, total).is_some_and(|n| step.is_multiple_of(n));
            if due(options.logging) || step == 1 || step == total {
                let more = [
                    ("grad_norm", grad_norm),
                    ("learning_rate", learning_rate),
                    ("num_tokens", tokens as f64),
                ];
                logged = pending.take(&more);
                self.log.write(step, epoch, &logged)?;
            }
            if !self.eval.is_empty() && (due(options.eval) || step == total) {
                let found = self.evaluate()?;
                progress.note(&told(step, &found));
                self.log.write(step, epoch, &found)?;
                self.evaluation = Some(found);
            }
        }
        progress.finish();
        Ok((total, logged))
    }

    /// One optimizer step; its length of gradient and learning rate besides.
    fn step(
        &mut self,
        examples: &[Example],
        grads: &mut Tensors,
        optimizer: &mut AdamWState,
        (step, total): (usize, usize),
    ) -> Result<(StepOutput, f64, f64)> {
        let options = self.options;
        grads.forget();
        let (model, objective) = (&self.model, &self.objective);
        // On a thread of the pool, as in `train::step`.
        let out = rayon::scope(|_| {
            gradient(model, objective, examples, options.per_device_train_batch_size, grads)
        })?;
        grads.settle();
        let norm = grads.norm();
        if !norm.is_finite() {
            return Err(Error::NonFinite(format!("the gradient's length is {norm}")));
        }
        let learning_rate = options.learning_rate * options.schedule.factor(options.warmup, step, total);
        let model = &mut self.model.model;
        let clipped = (&*grads, clipping(norm, options.max_grad_norm));
        options.optimizer.step(&model.map, &mut model.weights, clipped, optimizer, learning_rate);
        Ok((out, norm, learning_rate))
    }

    fn evaluate(&self) -> Result<Measures> {
        let size = self.options.per_device_eval_batch_size;
        let found = evaluate(&self.model, &self.objective, &self.eval, size, &mut Silent)?;
        Ok(found.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect())
    }
}

/// Says at which step, and on which rows, a number stopped being finite.
fn at_step(error: Error, step: usize, rows: &[RewardRow], visited: &[usize]) -> Error {
    match error {
        Error::NonFinite(what) => {
            let lines: Vec<String> = visited.iter().map(|&i| rows[i].row.to_string()).collect();
            let file = rows[visited[0]].file.display();
            Error::NonFinite(format!("step {step} (rows {} of {file}): {what}", lines.join(", ")))
        }
        other => other,
    }
}

/// An evaluation in a line.
fn told(step: usize, metrics: &Measures) -> String {
    let shown: Vec<String> = metrics
        .iter()
        .filter(|m| !m.0.contains('/'))
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    format!("step {step}: {}", shown.join(", "))
}
