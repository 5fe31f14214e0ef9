//! Many prompts through one batch. Each round every running text gets one token; a text that stops gives its
//! place to the next one waiting. A prompt is computed once, whatever the number of its samples.

use std::collections::BTreeMap;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::GenerateOptions;
use super::sample::{next_token, stream};
use crate::model::{KvCache, Model};
use crate::progress::Progress;
use crate::{Error, Result};

/// Prompt tokens computed in one pass: enough to keep the matrix products busy, few enough that their
/// activations stay small beside the weights.
const PREFILL_ROWS: usize = 4096;

/// Completes `prompts` (token ids). Returns the generated tokens alone, `num_return_sequences` texts for each
/// prompt in turn; a text ends with a token of `eos`, or after `max_new_tokens`, or where the model's
/// positions end.
///
/// # Errors
/// [`Error::Usage`] for options out of range, an empty prompt, one that fills all the model's positions, or a
/// token outside the vocabulary; [`Error::NonFinite`] for a model whose logits are not numbers.
pub fn generate_ids(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    eos: &[u32],
    progress: &mut dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    options.check()?;
    for (i, prompt) in prompts.iter().enumerate() {
        check_prompt(model, i + 1, prompt)?;
    }
    let texts = prompts.len() * options.num_return_sequences;
    let mut engine = Engine {
        model,
        prompts,
        options,
        eos,
        waiting: 0..texts,
        prefixes: BTreeMap::new(),
        running: Vec::new(),
        done: vec![Vec::new(); texts],
    };
    let cut = prompts.iter().filter(|p| engine.limit(p) < options.max_new_tokens).count();
    if cut > 0 {
        progress.note(&format!(
            "{cut} of {} prompts leave room for fewer than `max_new_tokens` = {} tokens of the model's {} positions",
            prompts.len(),
            options.max_new_tokens,
            model.config.max_positions
        ));
    }
    progress.start("generate", (texts * options.max_new_tokens) as u64);
    while engine.admit()? {
        engine.choose()?;
        engine.retire(progress);
        engine.step()?;
    }
    progress.finish();
    Ok(engine.done)
}

fn check_prompt(model: &Model, number: usize, prompt: &[u32]) -> Result<()> {
    let room = model.config.max_positions;
    if prompt.is_empty() {
        return Err(Error::Usage(format!("prompt {number} is empty; expected at least one token")));
    }
    if prompt.len() >= room {
        return Err(Error::Usage(format!(
            "prompt {number} has {} tokens; expected at most {}, so that the model's {room} positions leave room to \
             answer",
            prompt.len(),
            room - 1
        )));
    }
    model.check_tokens(prompt)
}

/// A computed prompt, kept while samples of it are still to start.
struct Prefix {
    cache: KvCache,
    /// Of the first completion token, `[V]`.
    logits: Vec<f32>,
}

/// A text under way.
struct Running {
    /// Its place in the result.
    text: usize,
    cache: KvCache,
    /// Generated so far.
    tokens: Vec<u32>,
    /// Of the next token, `[V]`.
    logits: Vec<f32>,
    rng: ChaCha8Rng,
}

struct Engine<'a> {
    model: &'a Model,
    prompts: &'a [Vec<u32>],
    options: &'a GenerateOptions,
    eos: &'a [u32],
    /// Texts not yet started, in order of prompts.
    waiting: Range<usize>,
    /// By prompt.
    prefixes: BTreeMap<usize, Prefix>,
    running: Vec<Running>,
    done: Vec<Vec<u32>>,
}

impl Engine<'_> {
    /// The longest completion of a prompt, tokens.
    fn limit(&self, prompt: &[u32]) -> usize {
        self.options.max_new_tokens.min(self.model.config.max_positions - prompt.len())
    }

    /// Starts waiting texts on free places; whether anything runs.
    fn admit(&mut self) -> Result<bool> {
        let samples = self.options.num_return_sequences;
        let free = self.options.batch_size - self.running.len();
        let starting: Vec<usize> = self.waiting.by_ref().take(free).collect();
        let mut needed: Vec<usize> = starting.iter().map(|text| text / samples).collect();
        needed.dedup();
        needed.retain(|prompt| !self.prefixes.contains_key(prompt));
        self.prefill(&needed)?;
        for text in starting {
            let (prompt, sample) = (text / samples, text % samples);
            let prefix = &self.prefixes[&prompt];
            self.running.push(Running {
                text,
                cache: prefix.cache.clone(),
                tokens: Vec::new(),
                logits: prefix.logits.clone(),
                rng: stream(self.options.seed, prompt, sample),
            });
            if sample + 1 == samples {
                self.prefixes.remove(&prompt);
            }
        }
        Ok(!self.running.is_empty())
    }

    fn prefill(&mut self, mut needed: &[usize]) -> Result<()> {
        while !needed.is_empty() {
            let mut rows = 0;
            let fits = |prompt: &&usize| {
                rows += self.prompts[**prompt].len();
                rows <= PREFILL_ROWS
            };
            let (now, later) = needed.split_at(needed.iter().take_while(fits).count().max(1));
            let mut caches = vec![KvCache::new(&self.model.config); now.len()];
            let tokens: Vec<&[u32]> = now.iter().map(|&prompt| self.prompts[prompt].as_slice()).collect();
            let logits = self.model.extend(&mut caches.iter_mut().collect::<Vec<_>>(), &tokens)?;
            let each = logits.chunks_exact(self.model.config.vocab_size);
            for ((&prompt, cache), logits) in now.iter().zip(caches).zip(each) {
                self.prefixes.insert(prompt, Prefix { cache, logits: logits.to_vec() });
            }
            needed = later;
        }
        Ok(())
    }

    /// One more token for every running text.
    fn choose(&mut self) -> Result<()> {
        self.running.par_iter_mut().try_for_each(|text| {
            text.tokens.push(next_token(&text.logits, self.options, &mut text.rng)?);
            Ok(())
        })
    }

    /// Takes the texts out that have ended.
    fn retire(&mut self, progress: &mut dyn Progress) {
        let all = self.running.len();
        let (ended, running): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(|text| {
                let prompt = &self.prompts[text.text / self.options.num_return_sequences];
                let last = text.tokens.last().expect("a token was just chosen");
                text.tokens.len() == self.limit(prompt) || self.eos.contains(last)
            });
        self.running = running;
        // A text that stops early brings the bar the tokens it will never have.
        let spared: usize = ended.iter().map(|text| self.options.max_new_tokens - text.tokens.len()).sum();
        for text in ended {
            self.done[text.text] = text.tokens;
        }
        let left = self.waiting.len() + self.running.len();
        progress.advance(
            (all + spared) as u64,
            &format!("{} of {} texts", self.done.len() - left, self.done.len()),
        );
    }

    /// Feeds every running text its last token.
    fn step(&mut self) -> Result<()> {
        let tokens: Vec<[u32; 1]> =
            self.running.iter().map(|text| [text.tokens[text.tokens.len() - 1]]).collect();
        let tokens: Vec<&[u32]> = tokens.iter().map(|token| token.as_slice()).collect();
        let mut caches: Vec<&mut KvCache> = self.running.iter_mut().map(|text| &mut text.cache).collect();
        let logits = self.model.extend(&mut caches, &tokens)?;
        for (text, logits) in self.running.iter_mut().zip(logits.chunks_exact(self.model.config.vocab_size)) {
            text.logits.copy_from_slice(logits);
        }
        Ok(())
    }
}
