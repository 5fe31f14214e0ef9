//! From [`Pair`]s to tokens, as TRL 1.16's `DPOTrainer._prepare_dataset` and its collator make them, and
//! `SFTTrainer._prepare_dataset` those of texts that are learnt as they are.
//!
//! The prompt and prompt + completion are tokenised apart (conversations through the chat template),
//! and the completion starts where the two token sequences diverge. Where that is *before* the end of
//! the prompt, the boundary in the data is no boundary between tokens: TRL warns once and moves it;
//! here it is an error unless asked for ([`PromptMismatch`]).

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::labels::{LabelColumns, Labels, Role};
use super::pair::{Completion, Pair, SplitPair, Text};
use super::prompt::template_variables;
use super::report::{Counts, TokenizeReport};
use crate::error::{Error, Result};
use crate::formats::{Fingerprint, Tokenizer};

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
#[derive(Clone, Debug, Default)]
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
    /// Supervised fine-tuning: whether the tokens of prompts are learnt as those of completions are (TRL's
    /// `completion_only_loss = false`). Then the whole is the completion.
    pub learn_prompts: bool,
    /// Whether completions keep what `keep_start` cuts off their end ([`Branch::cut`]): for objectives that set them beside other
    /// prompts.
    pub keep_cut: bool,
    /// The columns that the objective asks for.
    pub labels: LabelColumns,
}

impl TokenizeOptions {
    /// Refuses what leaves nothing of any row.
    pub(super) fn check(&self) -> Result<()> {
        match self.max_length {
            Some(0) => Err(Error::Usage("`max_length` is 0, expected at least 2 (or none)".into())),
            _ => Ok(()),
        }
    }
}

/// One completion of a pair, after truncation.
///
/// Its sequence is `prompt[prompt_skip..]` followed by `completion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The part it plays.
    pub role: Role,
    /// Tokens of the completion that are kept; not empty.
    pub completion: Vec<u32>,
    /// Leading tokens of the prompt that this branch lost to `keep_end` (0 with `keep_start`).
    pub prompt_skip: usize,
    /// Tokens that the branch lost to truncation, prompt tokens included.
    pub truncated: usize,
    /// What `keep_start` took off its end, if that was to be kept: beside a shorter prompt, as another row's mismatched completion, there is room
    /// for it.
    pub cut: Vec<u32>,
}

/// A pair as token ids: one prompt and its branches.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizedPair {
    /// The file it is from.
    pub file: Arc<Path>,
    /// Its row there (see [`Pair::row`]).
    pub row: usize,
    /// Its position in the data as read, before any row was left out; from 0.
    pub index: usize,
    /// Tokens of the prompt, before truncation.
    pub prompt: Vec<u32>,
    /// The completions: the chosen one, then those rejected; or a labelled one (and, with
    /// [`add_mismatched`], another row's).
    pub branches: Vec<Branch>,
    /// What the row says besides its texts.
    pub labels: Labels,
    /// Tokens at the end of the prompt that were given up because the tokens diverge before its end.
    pub backed_off: usize,
}

impl TokenizedPair {
    /// The prompt tokens that `branch` keeps. May be empty, and then the first token of the completion
    /// has nothing before it and is not predicted (as in TRL, which shifts the whole sequence).
    pub fn prompt_of(&self, branch: &Branch) -> &[u32] {
        &self.prompt[branch.prompt_skip..]
    }

    /// The prompt that all branches keep, where they keep the same (always with `keep_start`).
    pub fn shared_prompt(&self) -> Option<&[u32]> {
        let first = &self.branches[0];
        self.branches.iter().all(|b| b.prompt_skip == first.prompt_skip).then(|| self.prompt_of(first))
    }

    /// Of the tokens of every branch, the prompt that it keeps apart from its completion.
    pub fn fingerprint(&self) -> Fingerprint {
        let add = |print: Fingerprint, tokens: &[u32]| {
            print.words([tokens.len() as u32]).words(tokens.iter().copied())
        };
        let branch = |print, branch: &Branch| add(add(print, self.prompt_of(branch)), &branch.completion);
        self.branches.iter().fold(Fingerprint::new(), branch)
    }

    /// Adds another row's completion, as much of it as `max_length` leaves room for.
    pub(super) fn mismatch(&mut self, other: &Branch, max_length: Option<usize>) {
        let own = self.chosen();
        let (prompt_skip, prompt) = (own.prompt_skip, self.prompt_of(own).len());
        let room = max_length.unwrap_or(usize::MAX).saturating_sub(prompt).max(1);
        let mut completion = [&other.completion[..], &other.cut].concat();
        let truncated = completion.len().saturating_sub(room);
        completion.truncate(room);
        self.branches.push(Branch {
            role: Role::Mismatched,
            completion,
            prompt_skip,
            truncated,
            cut: Vec::new(),
        });
    }

    /// The longest prompt that a branch keeps.
    pub fn longest_prompt(&self) -> &[u32] {
        let skip = self.branches.iter().map(|b| b.prompt_skip).min().unwrap_or(0);
        &self.prompt[skip..]
    }

    /// The first branch: the chosen completion of a pair.
    pub fn chosen(&self) -> &Branch {
        &self.branches[0]
    }

    /// The second branch: the (first) rejected completion of a pair.
    ///
    /// # Panics
    /// If the row has one completion.
    pub fn rejected(&self) -> &Branch {
        &self.branches[1]
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
    options.check()?;
    let work = |pair: &Pair| tokenize_row(pair, tokenizer, options);
    let outcomes: Vec<Result<Outcome>> = pairs.par_iter().map(work).collect();
    let mut counts = Counts::default();
    let mut kept = Vec::with_capacity(pairs.len());
    for outcome in outcomes {
        kept.extend(counts.count(outcome?));
    }
    Ok((kept, counts.into_report()))
}

/// One row as tokens; its `index` is for the caller to set.
pub(super) fn tokenize_row(pair: &Pair, tokenizer: &Tokenizer, options: &TokenizeOptions) -> Result<Outcome> {
    Row { pair, tokenizer, options }.run()
}

/// Gives every row, after its own completion, that of the nearest row before it with another prompt (the data taken as a
/// ring): the mismatched pairs `(x, y')` on which KTO estimates its reference point. TRL cycles them within a batch; over the
/// whole data they do not depend on how it is split.
///
/// # Errors
/// [`Error::Format`] for rows that all have the same prompt.
pub fn add_mismatched(rows: &mut [TokenizedPair], options: &TokenizeOptions) -> Result<()> {
    let n = rows.len();
    let mut partners = Vec::with_capacity(n);
    for i in 0..n {
        let other = (1..n).map(|back| (i + n - back) % n).find(|&j| rows[j].prompt != rows[i].prompt);
        let other = other.ok_or_else(|| Error::format(&rows[i].file, SAME_PROMPTS))?;
        partners.push(rows[other].chosen().clone());
    }
    rows.iter_mut().zip(partners).for_each(|(row, other)| row.mismatch(&other, options.max_length));
    Ok(())
}

/// Why no row can be given another's completion.
pub(super) const SAME_PROMPTS: &str =
    "all rows have the same prompt; KTO compares with the completions of other prompts";

/// Lengths before truncation: of the prompt, and of each completion with the part it plays.
pub(super) type Lengths = (usize, Vec<(Role, usize)>);

/// What became of a row.
pub(super) enum Outcome {
    /// It is kept.
    Kept(Lengths, TokenizedPair),
    /// It is left out: its prompt is no prefix, by tokens.
    Mismatch,
    /// It is left out: its prompt alone fills `max_length`.
    Truncated,
}

/// One row on its way.
struct Row<'a> {
    pair: &'a Pair,
    tokenizer: &'a Tokenizer,
    options: &'a TokenizeOptions,
}

impl Row<'_> {
    fn run(&self) -> Result<Outcome> {
        let split = self.pair.split()?;
        let (prompt, wholes) = self.encode(&split)?;
        let (prompt, boundary) = match self.options.learn_prompts {
            true => (Vec::new(), 0),
            false => {
                let boundary = wholes.iter().map(|whole| common_prefix(&prompt, whole)).min().unwrap_or(0);
                (prompt, boundary)
            }
        };
        let backed_off = prompt.len() - boundary;
        let ours = split.implicit && matches!(split.prompt, Some(Text::Standard(_)));
        if backed_off > 0 && !ours {
            match self.options.prompt_mismatch {
                PromptMismatch::Error => {
                    return Err(self.mismatch(&prompt, &split.completions, &wholes, boundary));
                }
                PromptMismatch::Drop => return Ok(Outcome::Mismatch),
                PromptMismatch::Diverge => {}
            }
        }
        let completions = || split.completions.iter().zip(&wholes);
        if let Some((completion, _)) = completions().find(|(_, whole)| whole.len() == boundary) {
            let what = "an empty completion: no token follows the prompt; remove the row or correct the chat template";
            return Err(self.pair.error(&completion.key, what));
        }
        let lengths = (boundary, completions().map(|(c, whole)| (c.role, whole.len() - boundary)).collect());
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
            index: 0,
            prompt: wholes[0][..boundary].to_vec(),
            branches: completions().map(|(c, whole)| self.truncate(c.role, boundary, whole)).collect(),
            labels: self.options.labels.labels(self.pair)?,
            backed_off,
        };
        for (completion, branch) in split.completions.iter().zip(&tokenized.branches) {
            if tokenized.predicted(branch) == 0 {
                let what = "a single token with no prompt before it: nothing is predicted; give the row a prompt or raise \
                            `max_length`";
                return Err(self.pair.error(&completion.key, what));
            }
        }
        Ok(Outcome::Kept(lengths, tokenized))
    }

    /// Token ids of the prompt (none where there is none), and of prompt + completion for every completion.
    fn encode(&self, split: &SplitPair) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
        let nothing = match &split.completions[0].text {
            Text::Standard(_) => Text::Standard(String::new()),
            Text::Chat(_) => Text::Chat(Vec::new()),
        };
        let tokens_of_prompt = |encode: &dyn Fn() -> Result<Vec<u32>>| match &split.prompt {
            Some(_) => encode(),
            None => Ok(Vec::new()),
        };
        match split.prompt.as_ref().unwrap_or(&nothing) {
            Text::Standard(prompt) => {
                let eos = self.tokenizer.eos_token().ok_or_else(|| {
                    Error::format(
                        self.tokenizer.path(),
                        "the tokenizer names no `eos_token`, which has to end every completion (or text) of plain-string data; \
                         name it in tokenizer_config.json",
                    )
                })?;
                let whole = |c: &Completion| match &c.text {
                    Text::Standard(completion) => {
                        let end = if completion.ends_with(eos) { "" } else { eos };
                        self.tokenizer.encode_open(&format!("{prompt}{completion}{end}"))
                    }
                    Text::Chat(_) => Err(self.mixed(c)),
                };
                let wholes = split.completions.iter().map(whole).collect::<Result<_>>()?;
                Ok((tokens_of_prompt(&|| self.tokenizer.encode_open(prompt))?, wholes))
            }
            Text::Chat(prompt) => {
                let Pair { file, row, extra, .. } = self.pair;
                let variables = template_variables(file, *row, extra)?;
                let render = |key: &str, completion: &[_]| {
                    let messages = [prompt.as_slice(), completion].concat();
                    let text =
                        self.tokenizer.apply_chat_template_with(&messages, key == "prompt", &variables);
                    let text = text.map_err(|e| self.pair.error(key, e.to_string()))?;
                    // The template has written the special tokens itself.
                    self.tokenizer.encode(&text, false)
                };
                let whole = |c: &Completion| match &c.text {
                    Text::Chat(completion) => render(&c.key, completion),
                    Text::Standard(_) => Err(self.mixed(c)),
                };
                let wholes = split.completions.iter().map(whole).collect::<Result<_>>()?;
                Ok((tokens_of_prompt(&|| render("prompt", &[]))?, wholes))
            }
        }
    }

    /// `Pair::from_columns` has refused this; an error keeps a hand-made Pair honest too.
    fn mixed(&self, completion: &Completion) -> Error {
        self.pair.error(&completion.key, "not of the same kind as the prompt")
    }

    /// Cuts a whole sequence (of which `boundary` tokens are prompt) to the maximal length.
    fn truncate(&self, role: Role, boundary: usize, whole: &[u32]) -> Branch {
        let limit = self.options.max_length.unwrap_or(usize::MAX);
        let truncated = whole.len().saturating_sub(limit);
        match self.options.truncation_mode {
            TruncationMode::KeepStart => Branch {
                role,
                completion: whole[boundary..whole.len() - truncated].to_vec(),
                prompt_skip: 0,
                truncated,
                cut: match self.options.keep_cut {
                    // No more than there could be room for.
                    true => whole[whole.len() - truncated..whole.len().min(boundary.saturating_add(limit))]
                        .to_vec(),
                    false => Vec::new(),
                },
            },
            TruncationMode::KeepEnd => Branch {
                role,
                completion: whole[boundary.max(truncated)..].to_vec(),
                prompt_skip: boundary.min(truncated),
                truncated,
                cut: Vec::new(),
            },
        }
    }

    fn wholly_truncated(&self, prompt: usize, limit: usize) -> Error {
        self.pair.error(
            "prompt",
            format!(
                "{prompt} tokens, and `max_length` is {limit}: truncation would leave no token of the completions; raise \
                 `max_length`, use `truncation_mode = keep_end`, or leave such rows out with `truncated_completion = drop`"
            ),
        )
    }

    fn mismatch(
        &self,
        prompt: &[u32],
        completions: &[Completion],
        wholes: &[Vec<u32>],
        boundary: usize,
    ) -> Error {
        let at = wholes.iter().position(|w| common_prefix(prompt, w) == boundary).unwrap_or(0);
        let (key, whole) = (&completions[at].key, &wholes[at]);
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

/// How many tokens both begin with.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
#[path = "tokenize_tests.rs"]
pub(super) mod tests;
