//! Completions of prompts: drawn from a policy, or read from a file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Judge;
use super::summary::unknown;
use crate::batch::{Batch, Sharing};
use crate::data::pair::parse_text;
use crate::data::{self, Text, prompt_key, read_rows, template_variables};
use crate::formats::{Fingerprint, Tokenizer};
use crate::generate::{GenerateOptions, encode_prompt, generate_ids};
use crate::model::Model;
use crate::policy_record::{Column, SampleText, Samples, Shift};
use crate::preferences::{self, Form, read_samples};
use crate::progress::Progress;
use crate::{Error, Result};

/// Completions that a record keeps to read: the first of as many prompts.
const TEXTS: usize = 40;

/// A prompt and its group.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The prompt.
    pub asked: data::Prompt,
    /// Its group, where the data name one.
    pub group: Option<String>,
}

impl Deref for Prompt {
    type Target = data::Prompt;
    fn deref(&self) -> &data::Prompt {
        &self.asked
    }
}

/// The prompts of a data file, as [`data::read_prompts`] reads them, each once (intervals are over prompts), with the groups that
/// `group_column` names.
///
/// # Errors
/// As [`data::read_prompts`]; a row without its group.
pub fn read_prompts(
    spec: &str,
    group_column: Option<&str>,
    progress: &mut dyn Progress,
) -> Result<Vec<Prompt>> {
    let prompts = data::read_prompts(spec)?;
    let groups = match group_column {
        None => vec![None; prompts.len()],
        Some(key) => read_rows(spec, |file, row, columns| group(&file, row, key, &columns).map(Some))?,
    };
    let (rows, mut seen) = (prompts.len(), HashSet::new());
    let all = prompts.into_iter().zip(groups).map(|(asked, group)| Prompt { asked, group });
    let mut once = Vec::with_capacity(rows);
    for prompt in all {
        let more = template_variables(&prompt.file, prompt.row, &prompt.columns)?;
        if seen.insert((prompt_key(&prompt.text.to_json()), Value::from(more).to_string())) {
            once.push(prompt);
        }
    }
    if once.len() < rows {
        let what = format!(
            "{} different prompts in {rows} rows; each is asked once, in its first row's group",
            once.len()
        );
        progress.note(&format!("{spec}: {what}"));
    }
    Ok(once)
}

/// A name for prompts: their texts, in their order.
pub fn prompts_fingerprint(prompts: &[Prompt]) -> String {
    let add = |print: Fingerprint, prompt: &Prompt| print.field(prompt.text.to_json().to_string().as_bytes());
    prompts.iter().fold(Fingerprint::new(), add).hex()
}

/// The name of a row's group.
pub(super) fn group(file: &Path, row: usize, key: &str, columns: &Map<String, Value>) -> Result<String> {
    match columns.get(key) {
        Some(Value::String(name)) => Ok(name.clone()),
        Some(plain @ (Value::Number(_) | Value::Bool(_))) => Ok(plain.to_string()),
        found => {
            let found = found.map_or("missing".to_string(), Value::to_string);
            let known = crate::error::nearest(key, columns.keys().map(String::as_str));
            let hint =
                known.filter(|k| *k != key).map(|k| format!("; did you mean `{k}`?")).unwrap_or_default();
            let what = format!("{found}, expected the name of a group (text, number or boolean){hint}");
            Err(Error::row(file, row, key, what))
        }
    }
}

/// A completion as it was drawn.
#[derive(Clone, Debug, Default, PartialEq)]
struct Completion {
    text: String,
    /// With the token that ended it, if one did.
    tokens: Vec<u32>,
    scores: BTreeMap<String, f64>,
}

/// Prompts, the same number of completions of each, and what is known of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    prompts: Vec<Prompt>,
    /// Tokens of each prompt as the model continues it.
    ids: Vec<Vec<u32>>,
    per_prompt: usize,
    /// `[prompts * per_prompt]`
    completions: Vec<Completion>,
    generation: Map<String, Value>,
    judge: Option<String>,
}

/// A prompt's tokens: a user's message in the chat template (by default where there is one), or plain text.
fn prompt_ids(prompts: &[Prompt], tokenizer: &Tokenizer, template: Option<bool>) -> Result<Vec<Vec<u32>>> {
    let ids = |prompt: &Prompt| encode_prompt(tokenizer, prompt, template, None);
    let named = |prompt: &Prompt| match ids(prompt)? {
        none if none.is_empty() => {
            Err(Error::row(&prompt.file, prompt.row, "prompt", "no token; expected a text"))
        }
        some => Ok(some),
    };
    prompts.iter().map(named).collect()
}

/// Refuses texts that are longer than the model.
fn check_room(model: &Model, prompt: &Prompt, tokens: usize, completion: usize) -> Result<()> {
    let room = model.config.max_positions;
    if tokens + completion <= room {
        return Ok(());
    }
    let what = match completion {
        1 => format!("{tokens} tokens, which leaves no room to answer in the model's {room} positions"),
        _ => format!("{tokens} tokens and a completion of {completion}; the model has {room} positions"),
    };
    Err(Error::row(&prompt.file, prompt.row, "prompt", what))
}

/// How completions are drawn, for the record.
pub fn drawn_with(options: &GenerateOptions) -> Map<String, Value> {
    let GenerateOptions { max_new_tokens, do_sample, temperature, top_k, top_p, seed, .. } = *options;
    let generation = json!({
        "max_new_tokens": max_new_tokens, "do_sample": do_sample, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "seed": seed,
    });
    generation.as_object().cloned().unwrap_or_default()
}

impl Drawn {
    /// How they were drawn, or the file they were read from.
    pub fn generation(&self) -> &Map<String, Value> {
        &self.generation
    }

    /// Draws completions from a policy.
    ///
    /// # Errors
    /// A prompt that leaves no room, naming its row; as [`generate_ids`].
    pub fn generate(
        (model, tokenizer, eos): (&Model, &Tokenizer, &[u32]),
        prompts: Vec<Prompt>,
        template: Option<bool>,
        options: &GenerateOptions,
        progress: &mut dyn Progress,
    ) -> Result<Drawn> {
        let ids = prompt_ids(&prompts, tokenizer, template)?;
        for (prompt, ids) in prompts.iter().zip(&ids) {
            check_room(model, prompt, ids.len(), 1)?;
        }
        let completions = generate_ids(model, &ids, options, eos, progress)?
            .into_iter()
            .map(|tokens| {
                Ok(Completion { text: tokenizer.decode(&tokens, true)?, tokens, ..Completion::default() })
            })
            .collect::<Result<_>>()?;
        let generation = drawn_with(options);
        Ok(Drawn {
            prompts,
            ids,
            per_prompt: options.num_return_sequences,
            completions,
            generation,
            judge: None,
        })
    }

    /// Reads completions that were drawn before: rows of `prompt`, `completion` and perhaps `scores` (all rows or none) and `tokens` (the
    /// ids as they were drawn; without them the text is tokenised, and nothing is known of how it ended). Prompts stand in the
    /// order of their first row.
    ///
    /// # Errors
    /// A row without scores that others have, or with one that is no number; prompts with different numbers of completions.
    pub fn read(
        spec: &str,
        group_column: Option<&str>,
        (tokenizer, template): (&Tokenizer, Option<bool>),
        progress: &mut dyn Progress,
    ) -> Result<Drawn> {
        let rows = read_samples(spec)?;
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let (mut prompts, mut groups): (Vec<Prompt>, Vec<Vec<Completion>>) = (Vec::new(), Vec::new());
        let objectives: Vec<String> =
            rows.first().map(|r| r.scores.keys().cloned().collect()).unwrap_or_default();
        let mut texts_only = 0;
        for row in &rows {
            if let Some(more) = row.scores.keys().find(|name| !objectives.contains(name)) {
                let what = format!("a score `{more}` that the first row does not have");
                return Err(row.error("scores", what));
            }
            if row.scores.is_empty() && !objectives.is_empty() {
                return Err(row.error("scores", "missing or null, and other rows have them"));
            }
            objectives.iter().try_for_each(|name| row.score(name).map(drop))?;
            let number = *numbers.entry(prompt_key(&row.prompt)).or_insert(prompts.len());
            if number == prompts.len() {
                let text = parse_text(&row.file, row.row, "prompt", row.prompt.clone())?;
                let group =
                    group_column.map(|key| group(&row.file, row.row, key, &row.columns)).transpose()?;
                let (file, columns) = (row.file.clone(), row.columns.clone());
                prompts.push(Prompt { asked: data::Prompt { file, row: row.row, text, columns }, group });
                groups.push(Vec::new());
            }
            let text = said(row)?;
            let tokens = match row.columns.get("tokens").filter(|ids| !ids.is_null()) {
                Some(ids) => match token_ids(row, ids)? {
                    none if none.is_empty() && !text.is_empty() => {
                        return Err(row.error(
                            "tokens",
                            "no token beside a text; leave the key out, or give its tokens",
                        ));
                    }
                    ids => ids,
                },
                None => {
                    texts_only += 1;
                    tokenizer.encode(&text, false)?
                }
            };
            groups[number].push(Completion { text, tokens, scores: row.scores.clone() });
        }
        if texts_only > 0 {
            progress.note(&format!(
                "{spec}: {texts_only} of {} rows have no `tokens`: their texts are tokenised, without an end token",
                rows.len()
            ));
        }
        let per_prompt = groups.first().map_or(0, Vec::len);
        if let Some(other) = groups.iter().position(|g| g.len() != per_prompt) {
            let data::Prompt { file, row, .. } = &*prompts[other];
            let what = format!(
                "{} completions of this prompt, {per_prompt} of the first; every prompt needs as many",
                groups[other].len()
            );
            return Err(Error::row(file, *row, "prompt", what));
        }
        let ids = prompt_ids(&prompts, tokenizer, template)?;
        let generation = Map::from_iter([("file".to_string(), json!(spec))]);
        Ok(Drawn { prompts, ids, per_prompt, completions: groups.concat(), generation, judge: None })
    }

    /// Has every completion scored.
    ///
    /// # Errors
    /// The judge's; a score that is not finite, naming the prompt's row.
    pub fn judge(&mut self, judge: &mut dyn Judge, progress: &mut dyn Progress) -> Result<()> {
        let n = self.per_prompt;
        self.judge = judge.fingerprint();
        let all = self.completions.iter().enumerate();
        let texts: Vec<(&Text, &str)> =
            all.map(|(i, c)| (&self.prompts[i / n].text, c.text.as_str())).collect();
        let (names, scores) = (judge.objectives(), judge.score(&texts, progress)?);
        for (i, (completion, scores)) in self.completions.iter_mut().zip(scores).enumerate() {
            if let Some(broken) = scores.iter().position(|s| !s.is_finite()) {
                let data::Prompt { file, row, .. } = &*self.prompts[i / n];
                let what = format!(
                    "sample {} was given {} for `{}`, expected a finite number",
                    i % n + 1,
                    scores[broken],
                    names[broken]
                );
                return Err(Error::row(file, *row, "prompt", what));
            }
            completion.scores = names.iter().cloned().zip(scores).collect();
        }
        Ok(())
    }

    /// The objectives that completions were scored for.
    pub fn objectives(&self) -> Vec<&str> {
        self.completions.first().map(|c| c.scores.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    /// Log-probabilities of the completions under a model, nats, summed over their tokens: of the model's own distribution,
    /// whatever temperature they were drawn at. `batch_size` texts at a time.
    ///
    /// # Errors
    /// A text that is longer than the model, naming its prompt's row; a token that the model does not have.
    pub fn logps(&self, model: &Model, batch_size: usize, progress: &mut dyn Progress) -> Result<Vec<f64>> {
        let n = self.completions.len();
        for (i, completion) in self.completions.iter().enumerate() {
            let prompt = i / self.per_prompt;
            let data::Prompt { file, row, .. } = &*self.prompts[prompt];
            let unknown =
                |e: Error| Error::row(file, *row, "tokens", format!("of a completion of this prompt: {e}"));
            model.check_tokens(&completion.tokens).map_err(unknown)?;
            check_room(model, &self.prompts[prompt], self.ids[prompt].len(), completion.tokens.len())?;
        }
        // An empty text has probability 1 and nothing to compute.
        let texts: Vec<usize> = (0..n).filter(|&i| !self.completions[i].tokens.is_empty()).collect();
        let mut logps = vec![0.0; n];
        for part in texts.chunks(batch_size.max(1)) {
            let mut batch = Batch::default();
            // Samples of one prompt stand beside each other and share it.
            for same in part.chunk_by(|a, b| a / self.per_prompt == b / self.per_prompt) {
                let tokens: Vec<&[u32]> =
                    same.iter().map(|&i| self.completions[i].tokens.as_slice()).collect();
                batch.push(&self.ids[same[0] / self.per_prompt], &tokens, Sharing::Shared);
            }
            model.check(&batch)?;
            let sums = batch.branch_sums(model.predictions(&batch).iter().map(|p| p.logp));
            for (&i, logp) in part.iter().zip(sums) {
                if !logp.is_finite() {
                    let data::Prompt { file, row, .. } = &*self.prompts[i / self.per_prompt];
                    let what =
                        format!("a completion has log-probability {logp}: the model's weights are broken");
                    return Err(Error::row(file, *row, "", what));
                }
                logps[i] = logp;
            }
            progress.advance(part.len() as u64, "");
        }
        Ok(logps)
    }

    /// Of every completion the tokens of its prompt and its own, with the one that ended it.
    pub fn tokens(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        let all = self.completions.iter().enumerate();
        all.map(|(i, c)| (self.ids[i / self.per_prompt].as_slice(), c.tokens.as_slice()))
    }

    /// Completions.
    pub fn len(&self) -> usize {
        self.completions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.completions.is_empty()
    }

    /// Distinct n-grams of tokens over all n-grams, for n = 1, 2, 3; 0 where there are none.
    fn distinct(&self) -> Vec<f64> {
        let share = |n: usize| {
            let grams = || self.completions.iter().flat_map(move |c| c.tokens.windows(n));
            let (all, different) = (grams().count(), grams().collect::<std::collections::HashSet<_>>().len());
            if all == 0 { 0.0 } else { different as f64 / all as f64 }
        };
        (1..=3).map(share).collect()
    }

    /// Refuses objectives that were not scored, and scores that a mixture of the shift cannot take.
    ///
    /// # Errors
    /// [`Error::Usage`] with the nearest objective; [`Error::Row`] with the prompt's row.
    pub fn check_shift(&self, shift: &Shift) -> Result<()> {
        let forms: Vec<Form> = shift.mixtures.iter().filter_map(|name| Form::of(name)).collect();
        for name in &shift.objectives {
            if !self.objectives().contains(&name.as_str()) {
                return Err(unknown(name, self.objectives().into_iter(), "samples"));
            }
            let refused = |c: &Completion| forms.iter().any(|form| !form.takes(c.scores[name]));
            if let Some(i) = self.completions.iter().position(refused) {
                let data::Prompt { file, row, .. } = &*self.prompts[i / self.per_prompt];
                let score = self.completions[i].scores[name];
                let what = format!(
                    "`{name}` of one of its completions is {score}; a geometric mixture takes no negative score"
                );
                return Err(Error::row(file, *row, "scores", what));
            }
        }
        Ok(())
    }

    /// Refuses a reference whose tokenizer gives the prompts other tokens or the tokens other texts.
    ///
    /// # Errors
    /// [`Error::Row`] with the first prompt where they differ.
    pub fn check_tokens(&self, own: &Tokenizer, other: &Tokenizer, template: Option<bool>) -> Result<()> {
        let ids = prompt_ids(&self.prompts, other, template)?;
        for (i, completion) in self.completions.iter().enumerate() {
            let number = i / self.per_prompt;
            let same = own.decode(&completion.tokens, false)? == other.decode(&completion.tokens, false)?;
            if ids[number] != self.ids[number] || !same {
                let data::Prompt { file, row, .. } = &*self.prompts[number];
                let what = "the policy's and the reference's tokenizers differ in it, so their log-probabilities cannot be \
                            compared; the reference needs the policy's tokenizer and chat template";
                return Err(Error::row(file, *row, "prompt", what));
            }
        }
        Ok(())
    }

    /// Whether completions have scores.
    pub fn is_scored(&self) -> bool {
        self.completions.iter().any(|completion| !completion.scores.is_empty())
    }

    /// The prompts.
    pub fn prompts(&self) -> &[Prompt] {
        &self.prompts
    }

    /// What a record keeps of them.
    ///
    /// # Panics
    /// If there is not a log-probability for each completion.
    pub fn into_samples(self, logps: Vec<f64>, ref_logps: Vec<f64>) -> Samples {
        assert!(
            logps.len() == self.len() && ref_logps.len() == self.len(),
            "log-probabilities of other texts"
        );
        let scores = |name: &str| Column(self.completions.iter().map(|c| c.scores[name]).collect());
        let text = |(i, prompt): (usize, &Prompt)| {
            let Completion { text, scores, .. } = &self.completions[i * self.per_prompt];
            SampleText {
                prompt: prompt.text.last_said().to_string(),
                completion: text.clone(),
                scores: scores.clone(),
            }
        };
        Samples {
            prompts: self.prompts.len(),
            per_prompt: self.per_prompt,
            prompts_fingerprint: prompts_fingerprint(&self.prompts),
            groups: self.prompts.iter().map(|p| p.group.clone()).collect(),
            scores: self.objectives().into_iter().map(|name| (name.to_string(), scores(name))).collect(),
            tokens: self.completions.iter().map(|c| c.tokens.len() as u32).collect(),
            logps: Column(logps),
            ref_logps: Column(ref_logps),
            distinct: self.distinct(),
            texts: self.prompts.iter().enumerate().take(TEXTS).map(text).collect(),
            generation: self.generation,
            judge: self.judge,
        }
    }
}

/// A completion's text; of messages the last one's.
fn said(row: &preferences::Completion) -> Result<String> {
    match parse_text(&row.file, row.row, "completion", row.completion.clone())? {
        Text::Standard(text) => Ok(text),
        Text::Chat(messages) => messages
            .last()
            .and_then(|m| m.text().map(str::to_string))
            .ok_or_else(|| row.error("completion", "its last message has no text")),
    }
}

fn token_ids(row: &preferences::Completion, ids: &Value) -> Result<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let list = ids.as_array().and_then(|list| list.iter().map(id).collect::<Option<Vec<u32>>>());
    list.ok_or_else(|| row.error("tokens", format!("{ids}, expected a list of token ids")))
}
