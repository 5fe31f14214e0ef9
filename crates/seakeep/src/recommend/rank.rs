//! Candidates ranked by their log-probability as completions of the prompt.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::data::pair::parse_text;
use crate::data::{
    Completion, Pair, PromptMismatch, Role, Text, TokenizeOptions, TokenizedPair,
    read_rows as read_data_rows, tokenize_pairs,
};
use crate::formats::{Message, Tokenizer};
use crate::model::Model;
use crate::progress::Progress;
use crate::scoring::{self, PairLayout, Scores};
use crate::{Error, Result};

/// What to do with a row whose target is not among its candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingTarget {
    /// An error that names the row.
    #[default]
    Error,
    /// It counts as a miss, and against the valid ratio.
    Miss,
}

/// A row to rank.
#[derive(Clone, Debug, PartialEq)]
pub struct RankRow {
    /// Its prompt and, as completions, its candidates; the target has the role `Chosen`.
    pub pair: Pair,
    /// Which candidate was chosen; `None`: none of them.
    pub target: Option<usize>,
    /// Whose row it is.
    pub user: String,
    /// The user's group.
    pub group: Option<String>,
}

/// The rows of `spec` (a file, directory or pattern): `prompt` (a text or messages), `candidates` (texts, exactly as they
/// complete the prompt), `target` (one of them), perhaps `user` (otherwise every row is a user) and `group`.
///
/// # Errors
/// [`Error::Row`] for what is missing or of another type, an empty or repeated candidate, and a target that is no candidate
/// (unless that counts as a miss).
pub fn read_rows(spec: &str, missing: MissingTarget) -> Result<Vec<RankRow>> {
    read_data_rows(spec, |file, row, columns| from_columns(file, row, columns, missing))
}

fn from_columns(
    file: Arc<Path>,
    row: usize,
    mut columns: Map<String, Value>,
    missing: MissingTarget,
) -> Result<RankRow> {
    let wrong = |key: &str, what: String| Error::row(&file, row, key, what);
    let absent = |key: &str| {
        wrong(key, "missing or null; a row to rank needs `prompt`, `candidates` and `target`".into())
    };
    let mut take = |key: &str| columns.remove(key).filter(|v| !v.is_null());
    let prompt = parse_text(&file, row, "prompt", take("prompt").ok_or_else(|| absent("prompt"))?)?;
    let candidates = match take("candidates").ok_or_else(|| absent("candidates"))? {
        Value::Array(candidates) if candidates.len() >= 2 => candidates,
        other => return Err(wrong("candidates", format!("{other}, expected a list of at least two texts"))),
    };
    let target = match take("target").ok_or_else(|| absent("target"))? {
        Value::String(text) => text,
        other => return Err(wrong("target", format!("{other}, expected a text"))),
    };
    let name = |key: &str, value: Option<Value>| match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(plain @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(plain.to_string())),
        Some(other) => Err(wrong(key, format!("{other}, expected a name (text or number)"))),
    };
    let user = name("user", take("user"))?.unwrap_or_else(|| format!("{}:{row}", file.display()));
    let group = name("group", take("group"))?;
    let mut seen = BTreeSet::new();
    let mut completions = Vec::with_capacity(candidates.len());
    for (i, candidate) in candidates.into_iter().enumerate() {
        let key = format!("candidates[{i}]");
        let Value::String(title) = candidate else {
            return Err(wrong(&key, format!("{candidate}, expected a text")));
        };
        if title.trim().is_empty() {
            return Err(wrong(&key, "empty: there is nothing to recommend".into()));
        }
        if !seen.insert(title.clone()) {
            return Err(wrong(&key, format!("`{title}` a second time; each candidate may stand there once")));
        }
        let role = if title == target { Role::Chosen } else { Role::Rejected };
        let text = match &prompt {
            Text::Standard(_) => Text::Standard(title),
            Text::Chat(_) => Text::Chat(vec![Message::new("assistant", title)]),
        };
        completions.push(Completion { key, role, text });
    }
    let place = completions.iter().position(|c| c.role == Role::Chosen);
    if place.is_none() && missing == MissingTarget::Error {
        let what = format!(
            "`{target}` is not among the candidates (spaces count); correct the row, or count such rows as misses with \
             --missing_target miss"
        );
        return Err(wrong("target", what));
    }
    let pair = Pair { file, row, prompt: Some(prompt), completions, extra: columns };
    Ok(RankRow { pair, target: place, user, group })
}

/// The rows as tokens: of each the prompt once, and a branch for each candidate. Nothing is cut. With `diverge`, completions
/// begin where their tokens part from the prompt's, wherever that is (TRL's rule); without, that is an error.
///
/// # Errors
/// [`Error::Row`] for a candidate without tokens, one whose tokens do not follow the prompt's, and for a row that is longer
/// than the model has positions.
pub fn tokenize(
    rows: &[RankRow],
    tokenizer: &Tokenizer,
    diverge: bool,
    max_positions: usize,
) -> Result<Vec<TokenizedPair>> {
    let mut tokens: HashMap<&str, bool> = HashMap::new();
    for row in rows {
        for candidate in &row.pair.completions {
            let text = match &candidate.text {
                Text::Standard(text) => text.as_str(),
                Text::Chat(messages) => messages.first().and_then(Message::text).unwrap_or_default(),
            };
            let has_tokens = match tokens.get(text) {
                Some(&known) => known,
                None => *tokens.entry(text).or_insert(!tokenizer.encode(text, false)?.is_empty()),
            };
            if !has_tokens {
                let what =
                    format!("`{text}` has no tokens under this tokenizer, so nothing of it could be scored");
                return Err(row.pair.error(&candidate.key, what));
            }
        }
    }
    let pairs: Vec<Pair> = rows.iter().map(|row| row.pair.clone()).collect();
    let prompt_mismatch = if diverge { PromptMismatch::Diverge } else { PromptMismatch::Error };
    let options = TokenizeOptions { prompt_mismatch, ..TokenizeOptions::default() };
    let (tokenized, _) = tokenize_pairs(&pairs, tokenizer, &options)?;
    for (pair, row) in tokenized.iter().zip(rows) {
        let longest = pair.branches.iter().zip(&row.pair.completions).max_by_key(|(b, _)| b.completion.len());
        let Some((branch, candidate)) = longest else { continue };
        let length = pair.prompt.len() + branch.completion.len();
        if length > max_positions {
            let key = if pair.prompt.len() >= max_positions { "prompt" } else { &candidate.key };
            let what = format!(
                "{length} tokens, {} of them prompt; the model has {max_positions} positions: prepare the data with a \
                 shorter --history or fewer --candidates",
                pair.prompt.len()
            );
            return Err(row.pair.error(key, what));
        }
    }
    Ok(tokenized)
}

/// What ranking finds.
#[derive(Clone, Debug, Default)]
pub struct RankScores {
    /// Of each row the log-probability of every candidate: nats, summed over its tokens, or the mean of them.
    pub candidates: Vec<Vec<f64>>,
    /// Of each row the mean last hidden state over its prompt, `[n][C]`, if asked for.
    pub features: Vec<Vec<f32>>,
}

/// Log-probabilities of all candidates, `batch_size` rows at a time; a row's prompt is computed once.
///
/// # Errors
/// A token that the model does not have; a number that is not finite.
pub fn score(
    model: &Model,
    rows: &[TokenizedPair],
    (length_normalize, with_features): (bool, bool),
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<RankScores> {
    let pairs: Vec<&TokenizedPair> = rows.iter().collect();
    let Scores { logps, features, .. } =
        scoring::score(model, &pairs, PairLayout::PLAIN, with_features, batch_size, progress)?;
    let mut candidates = logps.0;
    if length_normalize {
        for (row, logps) in rows.iter().zip(&mut candidates) {
            logps.iter_mut().zip(&row.branches).for_each(|(l, branch)| *l /= row.predicted(branch) as f64);
        }
    }
    Ok(RankScores { candidates, features })
}

/// The rank of one of some scores, from 1 for the highest. Ties are broken against it: whatever scores the same stands before
/// it, so that a model that cannot tell candidates apart gains nothing.
pub fn rank_of(scores: &[f64], target: usize) -> usize {
    1 + scores.iter().enumerate().filter(|(i, score)| *i != target && **score >= scores[target]).count()
}
