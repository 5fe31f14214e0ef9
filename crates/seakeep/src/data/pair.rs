//! One preference: a prompt and its completions. Mostly two, chosen and rejected; one and several rejected; or one
//! alone, with a label that calls it good or bad or (`text.rs`) to be learnt as it is.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::labels::Role;
use crate::error::{Error, Result};
use crate::formats::{Fingerprint, Message};

/// Plain text, or turns of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// "Standard" data: tokenised as it is.
    Standard(String),
    /// "Conversational" data: goes through the chat template.
    Chat(Vec<Message>),
}

impl Text {
    /// Whether nothing is said: no text, or messages without any.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Text::Standard(text) => text.is_empty(),
            Text::Chat(messages) => messages.iter().all(|m| m.text() == Some("") && m.extra.is_empty()),
        }
    }

    /// As it stands in a row.
    pub fn to_json(&self) -> Value {
        let message = |m: &Message| {
            let own = [
                ("role".to_string(), Value::from(m.role.as_str())),
                ("content".to_string(), m.content.clone()),
            ];
            Value::Object(own.into_iter().chain(m.extra.clone()).collect())
        };
        match self {
            Text::Standard(text) => Value::from(text.as_str()),
            Text::Chat(messages) => messages.iter().map(message).collect(),
        }
    }

    /// What is to be read of it: the text; of a conversation what was said last.
    pub fn last_said(&self) -> &str {
        match self {
            Text::Standard(text) => text,
            Text::Chat(messages) => messages.last().and_then(Message::text).unwrap_or_default(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Text::Standard(_) => "a string",
            Text::Chat(_) => "a list of messages",
        }
    }
}

/// A completion and the part it plays.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Where it stands in the row: `chosen`, `rejected`, `rejected[1]`, `completion`.
    pub key: String,
    /// The part it plays.
    pub role: Role,
    /// What it says (after the prompt, or with it if the prompt is implicit).
    pub text: Text,
}

/// A row of a preference file. Prompt and completions are all text or all conversations.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The file it is from.
    pub file: Arc<Path>,
    /// Its row: the line of a JSON Lines file, the element of a JSON array or Parquet file; from 1.
    pub row: usize,
    /// The prompt, where the row has one; otherwise it is the common beginning of its two completions. A single text to
    /// be learnt may stand without.
    pub prompt: Option<Text>,
    /// The chosen one first, then those rejected; or a single one with a label.
    pub completions: Vec<Completion>,
    /// Every other column.
    pub extra: Map<String, Value>,
}

/// A pair whose prompt stands apart from its completions.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitPair {
    /// What the completions follow; `None`: a single text that follows nothing.
    pub prompt: Option<Text>,
    /// In the order of [`Pair::completions`].
    pub completions: Vec<Completion>,
    /// Whether the boundary was found here rather than given in the data.
    pub implicit: bool,
}

impl Pair {
    /// Tells it from others by its texts and the columns that they stand in.
    pub fn fingerprint(&self) -> String {
        let add = |print: Fingerprint, text: Option<&Text>| {
            print.field(text.map(Text::to_json).unwrap_or_default().to_string().as_bytes())
        };
        let print = add(Fingerprint::new(), self.prompt.as_ref());
        self.completions
            .iter()
            .fold(print, |print, c| add(print.field(c.key.as_bytes()), Some(&c.text)))
            .hex()
    }

    /// An error about this row.
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::row(&self.file, self.row, key, what)
    }

    /// Makes a pair out of a row's columns: `chosen` and `rejected` (a list of strings, or of conversations, for
    /// several), or `completion` and `label`.
    ///
    /// A string `prompt` beside two conversations is ignored, since such datasets (UltraFeedback among
    /// them) repeat it as the first message of both; TRL's `maybe_extract_prompt` does the same.
    ///
    /// # Errors
    /// [`Error::Row`] for a missing column, a wrong type, an empty value, or an implicit prompt that
    /// cannot be found.
    pub fn from_columns(file: Arc<Path>, row: usize, mut columns: Map<String, Value>) -> Result<Pair> {
        let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        let found = if found.is_empty() { "none".to_string() } else { found };
        let unpaired = columns.contains_key("completion") && !columns.contains_key("chosen");
        let mut take = |key: &str| columns.remove(key).filter(|v| !v.is_null());
        let prompt = take("prompt");
        let required = |key: &str, value: Option<Value>| {
            value.ok_or_else(|| {
                Error::row(&file, row, key, format!("missing or null; a preference row needs `chosen` and `rejected`, or `completion` and `label` (and may have `prompt`); found: {found}"))
            })
        };
        let completion = |key: String, role: Role, value: Value| {
            let text = parse_text(&file, row, &key, value)?;
            Ok(Completion { key, role, text })
        };
        let completions = match unpaired {
            true => {
                let value = required("completion", take("completion"))?;
                let role = match required("label", take("label"))? {
                    Value::Bool(true) => Role::Chosen,
                    Value::Bool(false) => Role::Rejected,
                    // As TRL reads them.
                    number if number.as_f64() == Some(1.0) => Role::Chosen,
                    number if number.as_f64() == Some(0.0) => Role::Rejected,
                    other => {
                        let what = format!("{other}, expected true (good) or false (bad), or 1 or 0");
                        return Err(Error::row(&file, row, "label", what));
                    }
                };
                vec![completion("completion".into(), role, value)?]
            }
            false => {
                let chosen = required("chosen", take("chosen"))?;
                let rejected = required("rejected", take("rejected"))?;
                let mut completions = vec![completion("chosen".into(), Role::Chosen, chosen)?];
                for (key, value) in each_rejected(rejected) {
                    completions.push(completion(key, Role::Rejected, value)?);
                }
                completions
            }
        };
        let prompt = prompt.map(|value| parse_text(&file, row, "prompt", value)).transpose()?;
        Pair { file, row, prompt, completions, extra: columns }.checked()
    }

    /// Whether the row is a single completion.
    pub fn is_unpaired(&self) -> bool {
        self.completions.len() == 1
    }

    /// A chosen and a rejected completion as two rows of one labelled completion each, as TRL's KTO takes pairs.
    ///
    /// # Errors
    /// As [`split`](Self::split).
    pub fn unpair(&self) -> Result<Vec<Pair>> {
        let SplitPair { prompt, completions, .. } = self.split()?;
        let alone = |c| Pair {
            prompt: prompt.clone(),
            completions: vec![c],
            extra: self.extra.clone(),
            ..self.clone()
        };
        Ok(completions.into_iter().map(alone).collect())
    }

    pub(super) fn checked(mut self) -> Result<Pair> {
        let (first, others) = self.completions.split_first().expect("a row has a completion");
        if let Some(other) = others.iter().find(|c| c.text.kind() != first.text.kind()) {
            let what = format!(
                "{}, but `chosen` is {}: both must be the same",
                other.text.kind(),
                first.text.kind()
            );
            return Err(self.error(&other.key, what));
        }
        match (&self.prompt, &first.text) {
            (Some(Text::Standard(_)), Text::Chat(_)) if self.completions.len() == 2 => self.prompt = None,
            (Some(prompt), text) if prompt.kind() != text.kind() => {
                let what = format!(
                    "{}, but the completions are {}: all must be the same",
                    prompt.kind(),
                    match text {
                        Text::Standard(_) => "strings",
                        Text::Chat(_) => "lists of messages",
                    }
                );
                return Err(self.error("prompt", what));
            }
            _ => {}
        }
        self.check_said(&self.completions)?;
        if matches!(&self.prompt, Some(Text::Chat(messages)) if messages.is_empty()) {
            return Err(self.error("prompt", "an empty list: a conversation needs at least one message"));
        }
        match (&self.prompt, self.completions.as_slice()) {
            (None, [chosen, rejected]) if chosen.text == rejected.text => Err(self.error(
                "rejected",
                "the same as `chosen`, and there is no `prompt`: where the prompt ends cannot be told; remove the row or \
                 give it a `prompt`",
            )),
            (None, completions) if completions.len() != 2 => Err(self.error(
                "prompt",
                "missing or null; only a row of one chosen and one rejected completion can do without",
            )),
            _ => Ok(self),
        }
    }

    /// A completion without text teaches nothing but to be silent; it is a mistake in the data.
    fn check_said(&self, completions: &[Completion]) -> Result<()> {
        match completions.iter().find(|c| c.text.is_empty()) {
            None => Ok(()),
            Some(c) => Err(self.error(
                &c.key,
                "an empty completion: there is nothing to prefer or to reject; remove the row",
            )),
        }
    }

    /// The pair with its prompt apart: as given, or as TRL's `extract_prompt` finds it.
    ///
    /// # Errors
    /// [`Error::Row`] where two conversations share no first message.
    pub fn split(&self) -> Result<SplitPair> {
        if self.prompt.is_some() || self.is_unpaired() {
            let (prompt, completions) = (self.prompt.clone(), self.completions.clone());
            return Ok(SplitPair { prompt, completions, implicit: false });
        }
        let [chosen, rejected] = &self.completions[..] else {
            return Err(self.error("prompt", "missing or null"));
        };
        let (prompt, texts) = match (&chosen.text, &rejected.text) {
            (Text::Standard(chosen), Text::Standard(rejected)) => {
                let cut = common_text(chosen, rejected);
                let text = |s: &str| Text::Standard(s.to_string());
                (text(&chosen[..cut]), [text(&chosen[cut..]), text(&rejected[cut..])])
            }
            (Text::Chat(chosen), Text::Chat(rejected)) => {
                let cut = common_items(chosen, rejected);
                if cut == 0 {
                    return Err(self.error(
                        "chosen",
                        "shares no first message with `rejected`, and there is no `prompt`: give the row a `prompt`",
                    ));
                }
                let chat = |m: &[Message]| Text::Chat(m.to_vec());
                (chat(&chosen[..cut]), [chat(&chosen[cut..]), chat(&rejected[cut..])])
            }
            // `checked` has refused this; an error keeps a hand-made Pair honest too.
            _ => return Err(self.error("rejected", "not of the same kind as `chosen`")),
        };
        let completions: Vec<Completion> =
            self.completions.iter().zip(texts).map(|(c, text)| Completion { text, ..c.clone() }).collect();
        self.check_said(&completions)?;
        Ok(SplitPair { prompt: Some(prompt), completions, implicit: true })
    }
}

/// The rejected completions of a row with their keys: one, or each of a list of strings or of conversations.
fn each_rejected(value: Value) -> Vec<(String, Value)> {
    match value {
        Value::Array(items) if items.first().is_some_and(|v| v.is_string() || v.is_array()) => {
            items.into_iter().enumerate().map(|(i, item)| (format!("rejected[{i}]"), item)).collect()
        }
        one => vec![("rejected".into(), one)],
    }
}

/// Where `extract_prompt` cuts two lists: at the first difference; with none, one before the end of
/// the shorter (which keeps both completions from being empty).
fn common_items<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let shorter = a.len().min(b.len());
    (0..shorter).find(|&i| a[i] != b[i]).unwrap_or(shorter.saturating_sub(1))
}

/// Where `extract_prompt` cuts two strings, as a byte offset into both: on characters (Unicode code
/// points), and one space before the difference goes to the completions.
///
/// TRL looks at `chosen[-1]` when the very first characters differ, and then cuts before the *last*
/// character if that is a space. That is an accident of Python's indices; here the prompt is empty.
fn common_text(a: &str, b: &str) -> usize {
    let mut pairs = a.char_indices().zip(b.chars()).peekable();
    let mut before: Option<(usize, char)> = None;
    while let Some(((offset, x), y)) = pairs.next() {
        if x != y {
            return match before {
                Some((space, ' ')) => space,
                _ => offset,
            };
        }
        if pairs.peek().is_none() {
            return offset;
        }
        before = Some((offset, x));
    }
    0
}

/// Text or a conversation, from a column's value.
///
/// # Errors
/// [`Error::Row`] for a value that is neither, or a message without role or content.
pub fn parse_text(file: &Path, row: usize, key: &str, value: Value) -> Result<Text> {
    match value {
        Value::String(text) => Ok(Text::Standard(text)),
        Value::Array(items) => {
            let messages = items
                .into_iter()
                .enumerate()
                .map(|(i, item)| parse_message(file, row, &format!("{key}[{i}]"), item));
            Ok(Text::Chat(messages.collect::<Result<_>>()?))
        }
        other => {
            let what = format!(
                "{}, expected a string or a list of messages {{\"role\", \"content\"}}",
                kind_of(&other)
            );
            Err(Error::row(file, row, key, what))
        }
    }
}

fn parse_message(file: &Path, row: usize, key: &str, value: Value) -> Result<Message> {
    let Value::Object(mut extra) = value else {
        let what = format!("{}, expected a message {{\"role\": ..., \"content\": ...}}", kind_of(&value));
        return Err(Error::row(file, row, key, what));
    };
    let role = match extra.remove("role") {
        Some(Value::String(role)) => role,
        found => {
            let found = found.map_or("missing".to_string(), |v| kind_of(&v).to_string());
            let keys = extra.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            let what = format!("`role` is {found}, expected a string; the message has {keys}");
            return Err(Error::row(file, row, key, what));
        }
    };
    // A key without a value is a key that is not there: Parquet and Arrow write every column of every
    // message, and templates ask whether a key is defined.
    extra.retain(|_, v| !v.is_null());
    let content = extra.shift_remove("content").unwrap_or(Value::Null);
    let known =
        matches!(content, Value::String(_) | Value::Array(_)) || (content.is_null() && !extra.is_empty());
    if !known {
        let what = format!("`content` is {}, expected a string (or a list of blocks)", kind_of(&content));
        return Err(Error::row(file, row, key, what));
    }
    Ok(Message { role, content, extra })
}

/// What a JSON value is, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing or null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
