//! Many prompts through one batch. Each round every running text gets one token; a text that stops gives its
//! place to the next one waiting. A prompt is computed once, whatever the number of its samples; and what all prompts begin
//! with, as a chat template's system prompt, once for all of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::gemm::Screen;
use serde::{Deserialize, Serialize};

use super::sample::{adjust, next_token, stream};
use super::{FinishReason, GenerateOptions, Stop};
use crate::model::{KvCache, Model, Prefix};
use crate::progress::Progress;
use crate::{Error, Result};

/// Prompt tokens computed in one pass: enough to keep the matrix products busy, few enough that their
/// activations stay small beside the weights.
const PREFILL_ROWS: usize = 4096;
/// Tokens in common from which on a pass of their own pays.
const COMMON: usize = 8;

/// Tokens from which on a [`Screen`] pays, which is made of the whole vocabulary.
const SCREENED: usize = 256;

/// A prompt to complete.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its place among all prompts: what its randomness belongs to. Another prompt before or after it in the list, or
    /// one that is missing, changes nothing.
    pub row: usize,
    /// Its tokens.
    pub prompt: Vec<u32>,
}

/// A completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The generated tokens, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: FinishReason,
}

/// Completes `prompts` (token ids). Returns the generated tokens alone, `num_return_sequences` texts for each
/// prompt in turn; a text ends with a token of `eos`, or after `max_new_tokens`, or where the model's
/// positions end.
///
/// # Errors
/// As [`generate_each`].
pub fn generate_ids(
    model: &Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    eos: &[u32],
    progress: &mut dyn Progress,
) -> Result<Vec<Vec<u32>>> {
    let jobs: Vec<Job> =
        prompts.iter().cloned().enumerate().map(|(row, prompt)| Job { row, prompt }).collect();
    let mut texts = vec![Vec::new(); jobs.len()];
    generate_each(model, &jobs, options, Stop::at(eos), progress, &mut |row, samples| {
        texts[row] = samples;
        Ok(())
    })?;
    Ok(texts.into_iter().flatten().map(|sample| sample.tokens).collect())
}

/// Completes the prompts of `jobs` and hands the samples of each to `done`, with its `row`, as soon as the last of
/// them has ended: about in the order of the jobs, but not quite.
///
/// # Errors
/// [`Error::Usage`] for options out of range, an empty prompt, one that fills all the model's positions, or a
/// token outside the vocabulary; [`Error::NonFinite`] for a model whose logits are not numbers; whatever `done` says.
pub fn generate_each(
    model: &Model,
    jobs: &[Job],
    options: &GenerateOptions,
    stop: Stop,
    progress: &mut dyn Progress,
    done: &mut dyn FnMut(usize, Vec<Sample>) -> Result<()>,
) -> Result<()> {
    options.check()?;
    for job in jobs {
        if let Some(what) = refusal(model, &job.prompt) {
            return Err(Error::Usage(format!("prompt {} {what}", job.row + 1)));
        }
        model.check_tokens(&job.prompt)?;
    }
    let texts = jobs.len() * options.num_return_sequences;
    let mut engine = Engine {
        model,
        jobs,
        options,
        stop,
        waiting: 0..texts,
        common: KvCache::new(&model.config).into_prefix(),
        prefixes: BTreeMap::new(),
        running: Vec::new(),
        hidden: Buffer::new(0, 1),
        screen: None,
        ended: BTreeMap::new(),
        texts: 0,
        tokens: 0,
        begun: Instant::now(),
    };
    let cut = jobs.iter().filter(|job| engine.limit(job) < options.max_new_tokens).count();
    if cut > 0 {
        progress.note(&format!(
            "{cut} of {} prompts leave room for fewer than `max_new_tokens` = {} tokens of the model's {} positions",
            jobs.len(),
            options.max_new_tokens,
            model.config.max_positions
        ));
    }
    progress.start("generate", (texts * options.max_new_tokens) as u64);
    if greedy_alone(options) && texts * options.max_new_tokens >= SCREENED {
        engine.screen = model.screen();
    }
    engine.begin()?;
    while engine.admit()? {
        engine.choose()?;
        engine.retire(progress, done)?;
        engine.step()?;
    }
    progress.finish();
    Ok(())
}

/// Whether the next token is the largest logit of those allowed, and nothing else about logits matters.
fn greedy_alone(options: &GenerateOptions) -> bool {
    !options.do_sample && options.repetition_penalty == 1.0
}

/// What is wrong with the length of a prompt (to be said after its name), if anything.
pub fn refusal(model: &Model, prompt: &[u32]) -> Option<String> {
    let room = model.config.max_positions;
    if prompt.is_empty() {
        return Some("is empty; expected at least one token".into());
    }
    (prompt.len() >= room).then(|| {
        format!(
            "has {} tokens; expected at most {}, so that the model's {room} positions leave room to answer",
            prompt.len(),
            room - 1
        )
    })
}

/// A computed prompt, kept while samples of it are still to start.
struct Started {
    cache: Prefix,
    /// From which the first completion token follows, `[C]`.
    hidden: Vec<f32>,
    /// The prompt's tokens in order, each once, where there is a penalty on them.
    seen: Vec<u32>,
}

/// A text under way.
struct Running {
    /// Its number: `num_return_sequences` for each job in turn.
    text: usize,
    cache: KvCache,
    /// Generated so far.
    tokens: Vec<u32>,
    /// The longest it may become.
    limit: usize,
    /// As [`Started::seen`], with the text's own.
    seen: Vec<u32>,
    rng: ChaCha8Rng,
    finish: Option<FinishReason>,
}

struct Engine<'a> {
    model: &'a Model,
    jobs: &'a [Job],
    options: &'a GenerateOptions,
    stop: Stop<'a>,
    /// Texts not yet started, in order of jobs.
    waiting: Range<usize>,
    /// What all prompts begin with.
    common: Prefix,
    /// By job.
    prefixes: BTreeMap<usize, Started>,
    running: Vec<Running>,
    /// From which the next token of each running text follows, `[B, C]`.
    hidden: Buffer,
    /// For greedy decoding.
    screen: Option<Screen<'a>>,
    /// Samples that have ended, of jobs some of whose samples have not; by job, then sample.
    ended: BTreeMap<usize, BTreeMap<usize, Sample>>,
    /// How many texts have ended.
    texts: usize,
    /// How many tokens were generated.
    tokens: usize,
    begun: Instant,
}

impl Engine<'_> {
    /// The longest completion of a prompt, tokens.
    fn limit(&self, job: &Job) -> usize {
        self.options.max_new_tokens.min(self.model.config.max_positions - job.prompt.len())
    }

    /// Computes what all prompts begin with. Each keeps a token of its own, whose hidden state is asked for.
    fn begin(&mut self) -> Result<()> {
        let [first, others @ ..] = self.jobs else { return Ok(()) };
        let shared = |len: usize, job: &Job| {
            let most = len.min(job.prompt.len() - 1);
            (0..most).take_while(|&i| job.prompt[i] == first.prompt[i]).count()
        };
        let common = others.iter().fold(first.prompt.len() - 1, shared);
        if !others.is_empty() && common >= COMMON {
            let mut cache = KvCache::new(&self.model.config);
            self.model.extend(&mut [&mut cache], &[&first.prompt[..common]])?;
            self.common = cache.into_prefix();
        }
        Ok(())
    }

    /// Starts waiting texts on free places; whether anything runs.
    fn admit(&mut self) -> Result<bool> {
        let samples = self.options.num_return_sequences;
        let free = self.options.batch_size - self.running.len();
        let starting: Vec<usize> = self.waiting.by_ref().take(free).collect();
        let mut needed: Vec<usize> = starting.iter().map(|text| text / samples).collect();
        needed.dedup();
        needed.retain(|job| !self.prefixes.contains_key(job));
        self.prefill(&needed)?;
        if !starting.is_empty() {
            let (before, c) = (self.hidden.len(), self.model.config.hidden);
            let mut hidden = Buffer::new(before + starting.len() * c, c);
            hidden[..before].copy_from_slice(&self.hidden);
            for (text, to) in starting.iter().zip(hidden[before..].chunks_exact_mut(c)) {
                to.copy_from_slice(&self.prefixes[&(text / samples)].hidden);
            }
            self.hidden = hidden;
        }
        for text in starting {
            let (at, sample) = (text / samples, text % samples);
            let (job, prefix) = (&self.jobs[at], &self.prefixes[&at]);
            let limit = self.limit(job);
            self.running.push(Running {
                text,
                cache: KvCache::after(&prefix.cache, limit),
                tokens: Vec::with_capacity(limit),
                limit,
                seen: prefix.seen.clone(),
                rng: stream(self.options.seed, job.row, sample),
                finish: None,
            });
            if sample + 1 == samples {
                self.prefixes.remove(&at);
            }
        }
        Ok(!self.running.is_empty())
    }

    fn prefill(&mut self, mut needed: &[usize]) -> Result<()> {
        while !needed.is_empty() {
            let mut rows = 0;
            let common = self.common.len();
            let fits = |job: &&usize| {
                rows += self.jobs[**job].prompt.len() - common;
                rows <= PREFILL_ROWS
            };
            let (now, later) = needed.split_at(needed.iter().take_while(fits).count().max(1));
            let tokens: Vec<&[u32]> = now.iter().map(|&job| &self.jobs[job].prompt[common..]).collect();
            let mut caches: Vec<KvCache> =
                tokens.iter().map(|new| KvCache::after(&self.common, new.len())).collect();
            let hidden = self.model.extend(&mut caches.iter_mut().collect::<Vec<_>>(), &tokens)?;
            let each = hidden.chunks_exact(self.model.config.hidden);
            for ((&job, cache), hidden) in now.iter().zip(caches).zip(each) {
                let mut seen = Vec::new();
                if self.options.repetition_penalty != 1.0 {
                    seen.clone_from(&self.jobs[job].prompt);
                    seen.sort_unstable();
                    seen.dedup();
                }
                let started = Started { cache: cache.into_prefix(), hidden: hidden.to_vec(), seen };
                self.prefixes.insert(job, started);
            }
            needed = later;
        }
        Ok(())
    }

    /// The next token of every running text.
    fn next_tokens(&mut self) -> Result<Vec<u32>> {
        let (options, stop) = (self.options, self.stop);
        let forbidden = |text: &Running| -> &[u32] {
            if text.tokens.len() < options.min_new_tokens { stop.tokens } else { &[] }
        };
        if let Some(screen) = &self.screen {
            let forbidden: Vec<&[u32]> = self.running.iter().map(forbidden).collect();
            if let Some(tokens) = screen.largest(&self.hidden, &forbidden) {
                return Ok(tokens);
            }
            // Something is not finite: the logits will say what.
        }
        let mut logits = self.model.logits(&self.hidden);
        let each = logits.par_chunks_exact_mut(self.model.config.vocab_size);
        let next = |scratch: &mut Vec<f32>, (text, logits): (&mut Running, &mut [f32])| {
            adjust(logits, &text.seen, forbidden(text), options)?;
            next_token(logits, options, &mut text.rng, scratch)
        };
        self.running.par_iter_mut().zip(each).map_init(Vec::new, next).collect()
    }

    /// One more token for every running text, and whether it is the last.
    fn choose(&mut self) -> Result<()> {
        let tokens = self.next_tokens()?;
        let (options, stop) = (self.options, self.stop);
        self.running.par_iter_mut().zip(tokens).try_for_each(|(text, token)| {
            text.tokens.push(token);
            if options.repetition_penalty != 1.0
                && let Err(at) = text.seen.binary_search(&token)
            {
                text.seen.insert(at, token);
            }
            if text.tokens.len() >= options.min_new_tokens
                && stop.ends(&text.tokens, options.min_new_tokens)?
            {
                text.finish = Some(FinishReason::Stop);
            } else if text.tokens.len() == text.limit {
                text.finish = Some(FinishReason::Length);
            }
            Ok(())
        })
    }

    /// Takes the texts out that have ended, and hands on the jobs that have.
    fn retire(
        &mut self,
        progress: &mut dyn Progress,
        done: &mut dyn FnMut(usize, Vec<Sample>) -> Result<()>,
    ) -> Result<()> {
        let samples = self.options.num_return_sequences;
        let mut steps = self.running.len();
        self.tokens += steps;
        let (ended, running): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.running).into_iter().partition(|text| text.finish.is_some());
        self.running = running;
        self.texts += ended.len();
        for text in ended {
            // A text that stops early brings the bar the tokens it will never have.
            steps += self.options.max_new_tokens - text.tokens.len();
            let (job, finish) = (text.text / samples, text.finish.expect("it has ended"));
            let of_job = self.ended.entry(job).or_default();
            of_job.insert(text.text % samples, Sample { tokens: text.tokens, finish });
            if of_job.len() == samples {
                let all = self.ended.remove(&job).expect("just there");
                done(self.jobs[job].row, all.into_values().collect())?;
            }
        }
        let speed = self.tokens as f64 / self.begun.elapsed().as_secs_f64();
        let all = self.jobs.len() * samples;
        progress.advance(steps as u64, &format!("{} of {all} texts, {speed:.0} tokens/s", self.texts));
        Ok(())
    }

    /// Feeds every running text its last token.
    fn step(&mut self) -> Result<()> {
        if self.running.is_empty() {
            self.hidden = Buffer::new(0, 1);
            return Ok(());
        }
        let tokens: Vec<[u32; 1]> =
            self.running.iter().map(|text| [text.tokens[text.tokens.len() - 1]]).collect();
        let tokens: Vec<&[u32]> = tokens.iter().map(|token| token.as_slice()).collect();
        let mut caches: Vec<&mut KvCache> = self.running.iter_mut().map(|text| &mut text.cache).collect();
        self.hidden = self.model.extend(&mut caches, &tokens)?;
        Ok(())
    }
}
