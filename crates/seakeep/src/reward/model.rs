//! A reward model: a decoder with a head of labels, its tokenizer, and what its labels are called.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::gating::{Gating, SCORE, objective_names};
use super::loss::{Problem, sigmoid, softmax};
use super::rows::{LabelNames, joined};
use crate::batch::Batch;
use crate::data::Text;
use crate::formats::{ModelSource, SaveDtype, Tokenizer};
use crate::model::{Family, GATED_HEAD, LABEL_HEAD, Model, ModelConfig};
use crate::progress::Progress;
use crate::{Error, Result};

/// A reward model.
pub struct RewardModel {
    /// The decoder and its head.
    pub model: Model,
    /// What it was trained for.
    pub problem: Problem,
    pub(super) labels: LabelNames,
    gating: Option<Gating>,
    tokenizer: Arc<Tokenizer>,
    /// `config.json`, as it is saved.
    config: Value,
    path: PathBuf,
}

impl RewardModel {
    /// Reads a checkpoint of transformers' `*ForSequenceClassification`, saved by whatever program, or of ArmoRM's
    /// `LlamaForRewardModelWithGating`, whose labels are its objectives and, last, `score`.
    ///
    /// Without `problem_type` in its `config.json` its scores are taken as numbers, and with one label as rewards.
    ///
    /// # Errors
    /// A checkpoint without a head of labels, and whatever [`Model::load`] and [`ModelSource::tokenizer`] refuse.
    pub fn load(source: &ModelSource) -> Result<RewardModel> {
        let head = [LABEL_HEAD, GATED_HEAD].into_iter().find_map(|name| source.weights.shape(name));
        let Some(shape) = head else {
            return Err(Error::format(
                &source.path,
                format!(
                    "no tensor `{LABEL_HEAD}`: not a reward model (transformers' *ForSequenceClassification); \
                     `seakeep reward train` makes one of a language model"
                ),
            ));
        };
        let outputs = shape.first().copied().unwrap_or_default();
        let model = Model::load_with_labels(source, outputs, None)?;
        let gating = Gating::load(source, model.config.hidden, outputs)?;
        let mut labels = match (label_names(&source.config, outputs), &gating) {
            (Ok(labels), None) => labels,
            (Err(what), None) => return Err(Error::format(&source.path, what)),
            (Ok(labels), Some(_)) if source.config.get("id2label").is_some() => labels,
            (_, Some(_)) => objective_names(outputs),
        };
        if gating.is_some() {
            labels.push(SCORE.into());
        }
        let problem = match source.config.get("problem_type").and_then(Value::as_str) {
            Some(name) => Problem::parse(name).ok_or_else(|| {
                Error::format(
                    &source.path,
                    format!("config.json: `problem_type` is `{name}`, which is not known"),
                )
            })?,
            None if labels.len() == 1 => Problem::BradleyTerry,
            None => Problem::Regression,
        };
        let (tokenizer, config) = (source.tokenizer()?, source.config.clone());
        Ok(RewardModel { model, problem, labels, gating, tokenizer, config, path: source.path.clone() })
    }

    /// A model to be trained: a checkpoint with a head of these labels as it is (for pairs: with a head of one label, whatever it
    /// is called), anything else with a new random head (`seed`; normal with `initializer_range`), which is said where there was
    /// another.
    ///
    /// # Errors
    /// As [`load`](Self::load), but a head is not needed.
    pub fn start(
        source: &ModelSource,
        problem: Problem,
        labels: &LabelNames,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> Result<RewardModel> {
        let there = source.weights.shape(LABEL_HEAD).and_then(|shape| shape.first().copied());
        let alike = |n: usize| match problem {
            Problem::BradleyTerry => n == 1,
            _ => label_names(&source.config, n).as_ref() == Ok(labels),
        };
        let same = there.is_some_and(alike);
        if let (Some(n), false) = (there, same) {
            let names = label_names(&source.config, n)
                .map_or_else(|_| format!("{n} labels"), |names| names.join(", "));
            progress.note(&format!(
                "{}: its head is of {names}; a new one is begun, of {}",
                source.path.display(),
                labels.join(", ")
            ));
        }
        let new_head = (!same).then_some(seed);
        let mut model = Model::load_with_labels(source, labels.len(), new_head)?;
        let tokenizer = source.tokenizer()?;
        let config = classifier_config(&source.config, &model.config, problem, labels, &tokenizer);
        model.config = ModelConfig { labels: Some(labels.len()), ..ModelConfig::from_json(&config)? };
        Ok(RewardModel {
            model,
            problem,
            labels: labels.clone(),
            gating: None,
            tokenizer,
            config,
            path: source.path.clone(),
        })
    }

    /// Names of the labels, in the order of scores.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens that are scored of a prompt and its completion: strings end to end exactly, with what the tokenizer itself
    /// puts around a text (BOS), and where the model was trained on pairs the end-of-sequence token after it, as TRL has it;
    /// messages through the chat template. A text after messages is the assistant's.
    ///
    /// # Errors
    /// Messages after a string; a tokenizer without chat template; a text without tokens.
    pub fn tokens(&self, prompt: &Text, completion: &Text) -> Result<Vec<u32>> {
        let whole = joined(prompt.clone(), completion.clone());
        let whole = whole.ok_or_else(|| Error::Usage("messages after a prompt that is a string".into()))?;
        self.encode(&whole, &Map::new())
    }

    /// As [`tokens`](Self::tokens), of a whole text; `variables` are the chat template's.
    ///
    /// # Errors
    /// A tokenizer without chat template; a text without tokens.
    pub fn encode(&self, text: &Text, variables: &Map<String, Value>) -> Result<Vec<u32>> {
        let end = self.tokenizer.eos_token().filter(|_| self.problem == Problem::BradleyTerry);
        let tokens = match (text, end) {
            (Text::Standard(text), Some(end)) if !text.ends_with(end) => {
                self.tokenizer.encode_open(&format!("{text}{end}"))?
            }
            (Text::Standard(text), Some(_)) => self.tokenizer.encode_open(text)?,
            (Text::Standard(text), None) => self.tokenizer.encode(text, true)?,
            // The template has written the special tokens itself.
            (Text::Chat(messages), _) => {
                let rendered = self.tokenizer.apply_chat_template_with(messages, false, variables)?;
                self.tokenizer.encode(&rendered, false)?
            }
        };
        match tokens.is_empty() {
            true => Err(Error::Usage("a text without any token: there is nothing to score".into())),
            false => Ok(tokens),
        }
    }

    /// Cuts tokens at their end to `max_length` and to what the model can hold; says whether it had to.
    pub fn truncate(&self, tokens: &mut Vec<u32>, max_length: Option<usize>) -> bool {
        let limit = max_length.unwrap_or(usize::MAX).min(self.model.config.max_positions);
        let long = tokens.len() > limit;
        tokens.truncate(limit);
        long
    }

    /// The tokens up to the one whose hidden state is scored: the last that is not the padding token, as transformers
    /// has it. Later ones change nothing.
    pub(super) fn scored<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        let pad = self.config.get("pad_token_id").and_then(Value::as_u64);
        let is_pad = |t: &u32| Some(u64::from(*t)) == pad;
        if self.gating.is_some() {
            // ArmoRM's own code looks for the first padding token instead.
            let first = tokens.iter().position(is_pad).filter(|&i| i > 0);
            return &tokens[..first.unwrap_or(tokens.len())];
        }
        let last = tokens.iter().rposition(|t| !is_pad(t));
        &tokens[..=last.unwrap_or(0)]
    }

    /// Scores of texts, `[texts][labels]`, in the form that the problem has them: probabilities of labels (the sigmoid of each
    /// logit, or the softmax over them), the logits themselves for regression and for models of pairs. `batch_size` texts are computed at a time, which does
    /// not change the scores.
    ///
    /// # Errors
    /// An empty text; a token or a length that the model does not have.
    pub fn score(
        &self,
        texts: &[Vec<u32>],
        batch_size: usize,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let logits = self.logits(texts, batch_size, progress)?;
        Ok(logits.iter().map(|logits| self.natural(logits)).collect())
    }

    /// Logits of texts, `[texts][labels]`.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn logits(
        &self,
        texts: &[Vec<u32>],
        batch_size: usize,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        if let Some(i) = texts.iter().position(Vec::is_empty) {
            return Err(Error::Usage(format!("text {} has no tokens: there is nothing to score", i + 1)));
        }
        let begun = Instant::now();
        let mut all: Vec<Vec<f64>> = Vec::with_capacity(texts.len());
        for part in texts.chunks(batch_size.max(1)) {
            let mut batch = Batch::default();
            let (mut rows, mut prompts) = (Vec::with_capacity(part.len()), Vec::new());
            for text in part {
                let (first, text) = (batch.rows(), self.scored(text));
                if let Some(gating) = &self.gating {
                    prompts.push((first + gating.position(text, &self.tokenizer)?) as u32);
                }
                batch.push_whole(text, &[]);
                rows.push(batch.rows() as u32 - 1);
            }
            self.model.check(&batch)?;
            let hidden = self.model.hidden(&batch, &[rows, prompts].concat());
            let (c, outputs) = (self.model.config.hidden, self.model.config.labels.unwrap_or_default());
            let (last, at_prompts) = hidden.split_at(part.len() * c);
            all.extend(rows_of(&self.model.label_logits(last), outputs));
            if let Some(gating) = &self.gating {
                let done = all.len() - part.len();
                for (rewards, prompt) in all[done..].iter_mut().zip(at_prompts.chunks_exact(c)) {
                    rewards.push(gating.score(rewards, prompt));
                }
            }
            let rate = all.len() as f64 / begun.elapsed().as_secs_f64().max(1e-9);
            progress.advance(part.len() as u64, &format!("{rate:.1} rows/s"));
        }
        Ok(all)
    }

    /// The form in which the problem has its scores, of logits.
    pub fn natural(&self, logits: &[f64]) -> Vec<f64> {
        match self.problem {
            Problem::MultiLabel => logits.iter().map(|l| sigmoid(*l)).collect(),
            Problem::SingleLabel => softmax(logits),
            Problem::Regression | Problem::BradleyTerry => logits.to_vec(),
        }
    }

    /// Writes the model into `directory` (which must exist) as transformers loads it, with its tokenizer.
    ///
    /// # Errors
    /// Weights that are not finite; the file system's.
    pub fn save(&self, directory: &Path, dtype: SaveDtype) -> Result<()> {
        if self.gating.is_some() {
            return Err(Error::unsupported(
                "saving a reward model with a gating network",
                "loading it, and scoring",
            ));
        }
        self.tokenizer.save(directory)?;
        self.model.save(directory, &self.config, dtype)
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `[N, L]` as a list for each row, in f64.
pub(super) fn rows_of(logits: &[f32], labels: usize) -> impl Iterator<Item = Vec<f64>> {
    logits.chunks_exact(labels).map(|row| row.iter().map(|&x| f64::from(x)).collect())
}

/// The names in `id2label`, by number; without it transformers' own (`LABEL_0`).
fn label_names(config: &Value, labels: usize) -> Result<LabelNames, String> {
    let Some(named) = config.get("id2label").and_then(Value::as_object) else {
        return Ok((0..labels).map(|i| format!("LABEL_{i}")).collect());
    };
    let name = |i: usize| named.get(&i.to_string()).and_then(Value::as_str).map(str::to_string);
    let names: Option<LabelNames> = (0..labels).map(name).collect();
    names.filter(|names| names.len() == named.len()).ok_or_else(|| {
        format!("config.json: `id2label` has {} labels, `{LABEL_HEAD}` has {labels}", named.len())
    })
}

/// The `config.json` of a language model, made that of a model with this head.
fn classifier_config(
    base: &Value,
    model: &ModelConfig,
    problem: Problem,
    labels: &LabelNames,
    tokenizer: &Tokenizer,
) -> Value {
    let family = match model.family {
        Family::Llama => "Llama",
        Family::Mistral => "Mistral",
        Family::Qwen2 => "Qwen2",
        Family::Qwen3 => "Qwen3",
        Family::Gpt2 => "GPT2",
        Family::GptNeox => "GPTNeoX",
    };
    let mut config = base.clone();
    let ids: Map<String, Value> = labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
    let numbers: Map<String, Value> = labels.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
    config["architectures"] = json!([format!("{family}ForSequenceClassification")]);
    config["num_labels"] = json!(labels.len());
    config["id2label"] = Value::Object(ids);
    config["label2id"] = Value::Object(numbers);
    config["problem_type"] = match problem {
        // Not one of transformers'; TRL leaves it out too.
        Problem::BradleyTerry => Value::Null,
        other => other.name().into(),
    };
    // transformers finds the last token by the padding token, and takes no batch without one. As TRL, the end of text
    // serves where there is none.
    if config.get("pad_token_id").is_none_or(Value::is_null) {
        config["pad_token_id"] = json!(tokenizer.pad_id().or(tokenizer.eos_id()));
    }
    config
}
