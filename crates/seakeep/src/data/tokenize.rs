//! From [`Pair`]s to tokens, as TRL 1.16's `DPOTrainer._prepare_dataset` and its collator make them.
//!
//! The prompt and prompt + completion are tokenised apart (conversations through the chat template),
//! and the completion starts where the two token sequences diverge. Where that is *before* the end of
//! the prompt, the boundary in the data is no boundary between tokens: TRL warns once and moves it;
//! here it is an error unless asked for ([`PromptMismatch`]).

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::pair::{Pair, SplitPair, Text};
use super::report::{Counts, TokenizeReport};
use crate::error::{Error, Result};
use crate::formats::Tokenizer;

/// Which end of a sequence longer than `max_length` is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TruncationMode {
    /// The beginning: completions lose their end.
    #[default]
    KeepStart,
    /// The end: prompts lose their beginning, each branch by itself.
    KeepEnd,
}

/// What to do where the tokens of an explicit prompt are no prefix of those of prompt + completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptMismatch {
    /// An error that names the row and shows the tokens.
    #[default]
    Error,
    /// TRL's rule: the completion starts where the tokens diverge.
    Diverge,
    /// The row is left out, and counted.
    Drop,
}

/// What to do where truncation leaves no token of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TruncatedCompletion {
    /// An error that names the row.
    #[default]
    Error,
    /// TRL's rule: the row is left out; here it is counted too.
    Drop,
}

/// How to tokenise.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenizeOptions {
    /// Most tokens of a sequence (prompt and completion together); `None` for no limit.
    pub max_length: Option<usize>,
    /// Which end is kept.
    pub truncation_mode: TruncationMode,
    /// For prompts given in the data. A prompt found as the common beginning of two strings is cut by
    /// us and not by the user, so there TRL's rule always applies, and is counted.
    pub prompt_mismatch: PromptMismatch,
    /// For rows whose prompt alone fills `max_length`.
    pub truncated_completion: TruncatedCompletion,
}

/// One completion of a pair, after truncation.
///
/// Its sequence is `prompt[prompt_skip..]` followed by `completion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Tokens of the completion that are kept; not empty.
    pub completion: Vec<u32>,
    /// Leading tokens of the prompt that this branch lost to `keep_end` (0 with `keep_start`).
    pub prompt_skip: usize,
    /// Tokens that the branch lost to truncation, prompt tokens included.
    pub truncated: usize,
}

/// A pair as token ids: one prompt, two branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedPair {
    /// The file it is from.
    pub file: Arc<Path>,
    /// Its row there (see [`Pair::row`]).
    pub row: usize,
    /// Its position in the data as read, before any row was left out; from 0.
    pub index: usize,
    /// Tokens of the prompt, before truncation.
    pub prompt: Vec<u32>,
    /// The preferred completion.
    pub chosen: Branch,
    /// The other one.
    pub rejected: Branch,
    /// Tokens at the end of the prompt that were given up because the tokens diverge before its end.
    pub backed_off: usize,
}

impl TokenizedPair {
    /// The prompt tokens that `branch` keeps. May be empty, and then the first token of the completion
    /// has nothing before it and is not predicted (as in TRL, which shifts the whole sequence).
    pub fn prompt_of(&self, branch: &Branch) -> &[u32] {
        &self.prompt[branch.prompt_skip..]
    }

    /// The prompt that both branches keep, where they keep the same (always with `keep_start`).
    pub fn shared_prompt(&self) -> Option<&[u32]> {
        (self.chosen.prompt_skip == self.rejected.prompt_skip).then(|| self.prompt_of(&self.chosen))
    }

    /// Number of tokens of `branch` that are predicted: all of the completion, or one fewer where no
    /// prompt is left before it.
    pub fn predicted(&self, branch: &Branch) -> usize {
        branch.completion.len() - usize::from(self.prompt_of(branch).is_empty())
    }
}

/// Tokenises `pairs` in parallel; the result is in their order.
///
/// # Errors
/// [`Error::Row`] for the first row (in order) that cannot be used: see [`TokenizeOptions`];
/// [`Error::Format`] where the tokenizer lacks what the data needs (an EOS token, a chat template).
pub fn tokenize_pairs(
    pairs: &[Pair],
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<(Vec<TokenizedPair>, TokenizeReport)> {
    if options.max_length == Some(0) {
        return Err(Error::Usage("`max_length` is 0, expected at least 2 (or none)".into()));
    }
    let work = |(index, pair): (usize, &Pair)| Row { pair, index, tokenizer, options }.run();
    let outcomes: Vec<Result<Outcome>> = pairs.par_iter().enumerate().map(work).collect();
    let mut counts = Counts::default();
    let mut kept = Vec::with_capacity(pairs.len());
    for outcome in outcomes {
        match outcome? {
            Outcome::Kept(lengths, pair) => {
                counts.keep(lengths, &pair);
                kept.push(pair);
            }
            Outcome::Mismatch => counts.dropped_mismatch += 1,
            Outcome::Truncated => counts.dropped_truncated += 1,
        }
    }
    Ok((kept, counts.into_report(pairs.len())))
}

/// Lengths of prompt, chosen and rejected before truncation.
pub(super) type Lengths = [usize; 3];

enum Outcome {
    Kept(Lengths, TokenizedPair),
    Mismatch,
    Truncated,
}

/// One row on its way.
struct Row<'a> {
    pair: &'a Pair,
    index: usize,
    tokenizer: &'a Tokenizer,
    options: &'a TokenizeOptions,
}

impl Row<'_> {
    fn run(&self) -> Result<Outcome> {
        let split = self.pair.split()?;
        let (prompt, chosen, rejected) = self.encode(&split)?;
        let boundary = common_prefix(&prompt, &chosen).min(common_prefix(&prompt, &rejected));
        let backed_off = prompt.len() - boundary;
        let ours = split.implicit && matches!(split.prompt, Text::Standard(_));
        if backed_off > 0 && !ours {
            match self.options.prompt_mismatch {
                PromptMismatch::Error => return Err(self.mismatch(&prompt, &chosen, &rejected, boundary)),
                PromptMismatch::Drop => return Ok(Outcome::Mismatch),
                PromptMismatch::Diverge => {}
            }
        }
        for (key, whole) in [("chosen", &chosen), ("rejected", &rejected)] {
            if whole.len() == boundary {
                let what = "an empty completion: no token follows the prompt; remove the row or correct the chat template";
                return Err(self.pair.error(key, what));
            }
        }
        let lengths = [boundary, chosen.len() - boundary, rejected.len() - boundary];
        if let (Some(limit), TruncationMode::KeepStart) =
            (self.options.max_length, self.options.truncation_mode)
            && boundary >= limit
        {
            return match self.options.truncated_completion {
                TruncatedCompletion::Drop => Ok(Outcome::Truncated),
                TruncatedCompletion::Error => Err(self.wholly_truncated(boundary, limit)),
            };
        }
        let tokenized = TokenizedPair {
            file: self.pair.file.clone(),
            row: self.pair.row,
            index: self.index,
            prompt: chosen[..boundary].to_vec(),
            chosen: self.truncate(boundary, &chosen),
            rejected: self.truncate(boundary, &rejected),
            backed_off,
        };
        for (key, branch) in [("chosen", &tokenized.chosen), ("rejected", &tokenized.rejected)] {
            if tokenized.predicted(branch) == 0 {
                let what = "a single token with no prompt before it: nothing is predicted; give the row a prompt or raise \
                            `max_length`";
                return Err(self.pair.error(key, what));
            }
        }
        Ok(Outcome::Kept(lengths, tokenized))
    }

    /// Token ids of the prompt, and of prompt + completion for both branches.
    fn encode(&self, split: &SplitPair) -> Result<(Vec<u32>, Vec<u32>, Vec<u32>)> {
        match (&split.prompt, &split.chosen, &split.rejected) {
            (Text::Standard(prompt), Text::Standard(chosen), Text::Standard(rejected)) => {
                let eos = self.tokenizer.eos_token().ok_or_else(|| {
                    Error::format(
                        self.tokenizer.path(),
                        "the tokenizer names no `eos_token`, which has to end every completion of plain-string data; \
                         name it in tokenizer_config.json",
                    )
                })?;
                let whole = |completion: &str| {
                    let end = if completion.ends_with(eos) { "" } else { eos };
                    self.tokenizer.encode(&format!("{prompt}{completion}{end}"), true)
                };
                Ok((self.tokenizer.encode(prompt, true)?, whole(chosen)?, whole(rejected)?))
            }
            (Text::Chat(prompt), Text::Chat(chosen), Text::Chat(rejected)) => {
                let variables = self.template_variables()?;
                let render = |key: &str, completion: &[_]| {
                    let messages = [prompt.as_slice(), completion].concat();
                    let text =
                        self.tokenizer.apply_chat_template_with(&messages, key == "prompt", &variables);
                    let text = text.map_err(|e| self.pair.error(key, e.to_string()))?;
                    // The template has written the special tokens itself.
                    self.tokenizer.encode(&text, false)
                };
                Ok((render("prompt", &[])?, render("chosen", chosen)?, render("rejected", rejected)?))
            }
            _ => Err(self.pair.error("prompt", "not of the same kind as `chosen` and `rejected`")),
        }
    }

    /// The columns that TRL hands to the template: `tools` (a list, or JSON text) and
    /// `chat_template_kwargs`.
    fn template_variables(&self) -> Result<Map<String, Value>> {
        let mut variables = Map::new();
        match self.pair.extra.get("tools") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                let tools = serde_json::from_str(text)
                    .map_err(|e| self.pair.error("tools", format!("text that is not JSON: {e}")))?;
                variables.insert("tools".into(), tools);
            }
            Some(tools) => drop(variables.insert("tools".into(), tools.clone())),
        }
        match self.pair.extra.get("chat_template_kwargs") {
            None | Some(Value::Null) => {}
            Some(Value::Object(more)) => variables.extend(more.clone()),
            Some(_) => {
                return Err(self
                    .pair
                    .error("chat_template_kwargs", "not an object, expected names and values"));
            }
        }
        Ok(variables)
    }

    /// Cuts a whole sequence (of which `boundary` tokens are prompt) to the maximal length.
    fn truncate(&self, boundary: usize, whole: &[u32]) -> Branch {
        let limit = self.options.max_length.unwrap_or(usize::MAX);
        let truncated = whole.len().saturating_sub(limit);
        match self.options.truncation_mode {
            TruncationMode::KeepStart => Branch {
                completion: whole[boundary..whole.len() - truncated].to_vec(),
                prompt_skip: 0,
                truncated,
            },
            TruncationMode::KeepEnd => Branch {
                completion: whole[boundary.max(truncated)..].to_vec(),
                prompt_skip: boundary.min(truncated),
                truncated,
            },
        }
    }

    fn wholly_truncated(&self, prompt: usize, limit: usize) -> Error {
        self.pair.error(
            "prompt",
            format!(
                "{prompt} tokens, and `max_length` is {limit}: truncation would leave no token of the completions; raise \
                 `max_length`, use `truncation_mode = keep_end`, or let such rows be dropped"
            ),
        )
    }

    fn mismatch(&self, prompt: &[u32], chosen: &[u32], rejected: &[u32], boundary: usize) -> Error {
        let (key, whole) = if common_prefix(prompt, chosen) == boundary {
            ("chosen", chosen)
        } else {
            ("rejected", rejected)
        };
        let (alone, together) = (self.show(prompt, boundary), self.show(whole, boundary));
        self.pair.error(
            "prompt",
            format!(
                "the prompt is not a prefix of prompt + `{key}`, by tokens: they agree on {boundary} of its {} tokens; \
                 then the prompt alone has {alone}, with the completion {together}. End the prompt where a token ends \
                 (for strings: no space at its end, but at the beginning of the completion), use a chat template that \
                 renders the prompt the same way in both cases, or set `prompt_mismatch` to `diverge` (TRL's rule: the \
                 completion starts there) or `drop`",
                prompt.len()
            ),
        )
    }

    /// A few tokens from `start` on, as text.
    fn show(&self, ids: &[u32], start: usize) -> String {
        const SHOWN: usize = 5;
        if start >= ids.len() {
            return "nothing more".into();
        }
        let text = |id: &u32| {
            let token = self.tokenizer.decode(&[*id], false).unwrap_or_default();
            format!("{token:?} ({id})")
        };
        let shown: Vec<String> = ids[start..].iter().take(SHOWN).map(text).collect();
        let more = if ids.len() - start > SHOWN { " ..." } else { "" };
        format!("{}{more}", shown.join(" "))
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
#[path = "tokenize_tests.rs"]
mod tests;
