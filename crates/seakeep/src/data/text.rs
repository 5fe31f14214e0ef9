//! Rows to be learnt as they are: what supervised fine-tuning reads, as TRL 1.16's `SFTTrainer` does. A row is
//!
//! - `text`: a text, all of whose tokens are learnt;
//! - `messages`: a conversation, all of whose tokens are learnt;
//! - `prompt` and `completion`, both texts or both messages: the completion is learnt.
//!
//! A [`Pair`] with one completion, which has no label; of the first two kinds also without a prompt.

use std::path::Path;
use std::sync::Arc;

use super::labels::Role;
use super::pair::{Completion, Pair, Text, parse_text};
use super::read::{Columns, read_rows};
use crate::error::{Error, Result};

/// The rows of `spec` (as [`read_pairs`](super::read_pairs) takes it), whose texts stand in the column `field`.
///
/// # Errors
/// As [`Pair::learnt_from_columns`], and whatever is wrong with the files.
pub fn read_texts(spec: &str, field: &str) -> Result<Vec<Pair>> {
    read_rows(spec, |file, row, columns| Pair::learnt_from_columns(file, row, columns, field))
}

impl Pair {
    /// Makes a row to be learnt out of its columns; `field` is the one that holds a text (`text`).
    ///
    /// # Errors
    /// [`Error::Row`] for a row that is none of the three kinds or may be two of them, a wrong type, or an empty text.
    pub fn learnt_from_columns(
        file: Arc<Path>,
        row: usize,
        mut columns: Columns,
        field: &str,
    ) -> Result<Pair> {
        let found = columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        let mut take = |key: &str| columns.remove(key).filter(|v| !v.is_null());
        let bad = |key: &str, what: String| Err(Error::row(&file, row, key, what));
        let (completion, messages, text) = (take("completion"), take("messages"), take(field));
        let (key, value) = match (completion, messages, text) {
            (Some(value), None, None) => ("completion", value),
            (None, Some(value), None) => ("messages", value),
            (None, None, Some(value)) => (field, value),
            (None, None, None) => {
                let expected = format!("`{field}`, `messages`, or `prompt` and `completion`");
                let key = if columns.contains_key("prompt") { "completion" } else { field };
                return bad(
                    key,
                    format!("missing or null; a text to learn is {expected}; found: {}", or_none(found)),
                );
            }
            (completion, messages, text) => {
                let there = [("completion", completion), ("messages", messages), (field, text)];
                let there = there.iter().filter(|t| t.1.is_some()).map(|t| format!("`{}`", t.0));
                let there = there.collect::<Vec<_>>().join(" and ");
                return bad("", format!("has {there}: which is to be learnt? keep one of them"));
            }
        };
        let text = parse_text(&file, row, key, value)?;
        let only = match (key, &text) {
            ("messages", Text::Standard(_)) => Some("a string, expected a list of messages"),
            (_, Text::Chat(_)) if key == field => {
                Some("a list, expected a string; a conversation is called `messages`")
            }
            _ => None,
        };
        if let Some(what) = only {
            return bad(key, what.into());
        }
        if text.is_empty() {
            return bad(key, "an empty text: there is nothing to learn; remove the row".into());
        }
        // Beside a text or a conversation, `prompt` is a column like any other (UltraChat repeats the first message there).
        let prompt = match key {
            "completion" => {
                let prompt =
                    take("prompt").map(|value| parse_text(&file, row, "prompt", value)).transpose()?;
                if prompt.is_none() {
                    let what = "missing or null; a `completion` follows a `prompt`";
                    return bad("prompt", format!("{what}; a text that stands alone is called `{field}`"));
                }
                prompt
            }
            _ => None,
        };
        let completions = vec![Completion { key: key.into(), role: Role::Chosen, text }];
        let pair = Pair { file, row, prompt, completions, extra: columns };
        if pair.prompt.is_some() { pair.checked() } else { Ok(pair) }
    }

    /// Everything that is said in the row, in order: texts, and the contents of messages.
    pub fn said(&self) -> Vec<&str> {
        let texts = self.prompt.iter().chain(self.completions.iter().map(|c| &c.text));
        let said = texts.flat_map(|text| match text {
            Text::Standard(text) => vec![text.as_str()],
            Text::Chat(messages) => messages.iter().filter_map(|m| m.text()).collect(),
        });
        said.collect()
    }
}

fn or_none(found: String) -> String {
    if found.is_empty() { "none".into() } else { found }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
