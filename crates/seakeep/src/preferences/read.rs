//! Scored completions, one a row: `prompt`, `completion`, `scores` (an object of numbers).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::data::read_rows;
use crate::error::{Error, Result, nearest};

/// A completion and what it was given for each objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The file it is from.
    pub file: Arc<Path>,
    /// Its row, from 1.
    pub row: usize,
    /// The prompt: a text, or messages.
    pub prompt: Value,
    /// The completion: a text, or messages.
    pub completion: Value,
    /// Scores by objective.
    pub scores: BTreeMap<String, f64>,
    /// Every other column.
    pub columns: Map<String, Value>,
}

impl Completion {
    /// An error about this row.
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::row(&self.file, self.row, key, what)
    }

    /// What it was given for an objective.
    ///
    /// # Errors
    /// [`Error::Row`] where it has no such score, with the nearest it has.
    pub fn score(&self, objective: &str) -> Result<f64> {
        self.scores.get(objective).copied().ok_or_else(|| {
            let known: Vec<&str> = self.scores.keys().map(String::as_str).collect();
            let near = nearest(objective, known.iter().copied());
            let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            self.error("scores", format!("no score `{objective}`{hint} The row has: {}", known.join(", ")))
        })
    }

    /// Whether nothing is said: no text, or no message with any.
    pub(super) fn is_empty(&self) -> bool {
        match &self.completion {
            Value::Array(messages) => messages.iter().all(|m| m["content"].as_str() == Some("")),
            text => text.as_str() == Some(""),
        }
    }

    /// The completion in the form of its prompt: after messages, a message.
    pub(super) fn answer(&self) -> Value {
        match (&self.prompt, &self.completion) {
            (Value::Array(_), Value::String(text)) => json!([{"role": "assistant", "content": text}]),
            (_, completion) => completion.clone(),
        }
    }

    fn from_columns(file: Arc<Path>, row: usize, mut columns: Map<String, Value>) -> Result<Completion> {
        let mut text = |key: &str| match columns.remove(key) {
            Some(value @ (Value::String(_) | Value::Array(_))) => Ok(value),
            Some(other) if !other.is_null() => {
                Err(Error::row(&file, row, key, format!("{other}, expected a text or a list of messages")))
            }
            _ => Err(Error::row(
                &file,
                row,
                key,
                "missing or null; a row needs `prompt`, `completion` and `scores`",
            )),
        };
        let (prompt, completion) = (text("prompt")?, text("completion")?);
        let scores = match columns.remove("scores") {
            Some(Value::Object(scores)) => scores,
            None | Some(Value::Null) => Map::new(),
            Some(other) => {
                let what = format!("{other}, expected an object such as {{\"helpful\": 0.7}}");
                return Err(Error::row(&file, row, "scores", what));
            }
        };
        let number = |(name, value): (String, Value)| match value.as_f64().filter(|x| x.is_finite()) {
            Some(score) => Ok((name, score)),
            None => Err(Error::row(
                &file,
                row,
                "scores",
                format!("`{name}` is {value}, expected a finite number"),
            )),
        };
        let scores = scores.into_iter().map(number).collect::<Result<_>>()?;
        Ok(Completion { file, row, prompt, completion, scores, columns })
    }
}

/// The rows of `spec`: a file, a directory or a pattern, as for preference data.
///
/// # Errors
/// A file that cannot be read; [`Error::Row`] for a row without prompt, completion or numbers as scores.
pub fn read_completions(spec: &str) -> Result<Vec<Completion>> {
    read_rows(spec, |file, row, columns| {
        let completion = Completion::from_columns(file, row, columns)?;
        if completion.scores.is_empty() {
            return Err(completion.error("scores", "missing or null; expected {\"objective\": number, ...}"));
        }
        Ok(completion)
    })
}

/// The same of rows that may be without scores.
///
/// # Errors
/// Those of [`read_completions`], but for scores that are missing.
pub fn read_samples(spec: &str) -> Result<Vec<Completion>> {
    read_rows(spec, Completion::from_columns)
}
