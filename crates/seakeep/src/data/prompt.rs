//! Prompts without completions: what `generate` completes.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::pair::{Pair, Text, parse_text};
use super::read::{Columns, read_rows};
use crate::error::{Error, Result};

/// A prompt of a data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The file it is from.
    pub file: Arc<Path>,
    /// Its row there (see [`Pair::row`]).
    pub row: usize,
    /// What is asked.
    pub text: Text,
    /// Every other column, but the completions of preference rows.
    pub columns: Columns,
}

/// The prompts of `spec` (see [`read_pairs`](super::read_pairs)): the column `prompt`, or of preference rows
/// without one what both completions begin with.
///
/// # Errors
/// As [`read_pairs`](super::read_pairs), but completions are needed only where there is no `prompt`.
pub fn read_prompts(spec: &str) -> Result<Vec<Prompt>> {
    read_rows(spec, from_columns)
}

fn from_columns(file: Arc<Path>, row: usize, mut columns: Columns) -> Result<Prompt> {
    let whole = columns.contains_key("chosen") && columns.contains_key("rejected");
    let missing =
        || Error::row(&file, row, "prompt", "missing or null; expected a string or a list of messages");
    let text = if whole {
        let rest = others(&columns);
        // Also where there is a `prompt`: a pair knows which of its columns count.
        let row_columns = std::mem::replace(&mut columns, rest);
        Pair::from_columns(file.clone(), row, row_columns)?.split()?.prompt.ok_or_else(missing)?
    } else {
        let value = columns.remove("prompt").filter(|v| !v.is_null()).ok_or_else(missing)?;
        parse_text(&file, row, "prompt", value)?
    };
    if matches!(&text, Text::Chat(messages) if messages.is_empty()) {
        return Err(Error::row(&file, row, "prompt", "an empty list; expected at least one message"));
    }
    Ok(Prompt { file, row, text, columns })
}

/// What a row hands to the chat template besides its messages, in the columns that TRL knows: `tools` (a list, or JSON text) and
/// `chat_template_kwargs`.
///
/// # Errors
/// [`Error::Row`] for columns that hold something else.
pub fn template_variables(file: &Path, row: usize, columns: &Columns) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    match columns.get("tools") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => {
            let tools = serde_json::from_str(text)
                .map_err(|e| Error::row(file, row, "tools", format!("text that is not JSON: {e}")))?;
            variables.insert("tools".into(), tools);
        }
        Some(tools) => drop(variables.insert("tools".into(), tools.clone())),
    }
    match columns.get("chat_template_kwargs") {
        None | Some(Value::Null) => {}
        Some(Value::Object(more)) => variables.extend(more.clone()),
        Some(_) => {
            let what = "not an object, expected names and values";
            return Err(Error::row(file, row, "chat_template_kwargs", what));
        }
    }
    Ok(variables)
}

/// What two prompts have in common where they are one: their text, whatever the order of a message's keys.
pub fn prompt_key(prompt: &Value) -> String {
    fn ordered(value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(ordered).collect(),
            Value::Object(map) => {
                let mut all: Vec<(String, Value)> =
                    map.iter().map(|(k, v)| (k.clone(), ordered(v))).collect();
                // As messages are mostly written, and everything else by name.
                let place = |key: &str| ["role", "content"].iter().position(|own| *own == key).unwrap_or(2);
                all.sort_by(|(a, _), (b, _)| (place(a), a).cmp(&(place(b), b)));
                Value::Object(all.into_iter().collect())
            }
            other => other.clone(),
        }
    }
    ordered(prompt).to_string()
}

/// The columns of a preference row that are neither its prompt nor its completions.
fn others(columns: &Columns) -> Columns {
    let kept = columns.iter().filter(|(name, _)| !["prompt", "chosen", "rejected"].contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_makes_no_other_prompt() {
        let key = |text: &str| prompt_key(&serde_json::from_str(text).unwrap());
        let usual = r#"[{"role":"user","content":"a","x":{"b":1,"c":2}}]"#;
        assert_eq!(key(usual), usual);
        assert_eq!(key(r#"[{"x":{"c":2,"b":1},"content":"a","role":"user"}]"#), usual);
        assert_ne!(key(r#"[{"role":"user","content":"b"}]"#), key(r#"[{"role":"user","content":"a"}]"#));
    }

    fn read(text: &str) -> Result<Vec<Prompt>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        read_prompts(path.to_str().unwrap())
    }

    #[test]
    fn prompts_stand_alone_or_in_pairs() {
        let prompts = read(concat!(
            "{\"prompt\": \"alone\"}\n",
            "{\"prompt\": \"given\", \"chosen\": \"a\", \"rejected\": \"b\"}\n",
            "{\"chosen\": \"Q: x A: y\", \"rejected\": \"Q: x A: z\"}\n",
            "{\"prompt\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n",
        ));
        let texts: Vec<Text> = prompts.unwrap().into_iter().map(|p| p.text).collect();
        let plain = |text: &str| Text::Standard(text.into());
        assert_eq!(texts[..3], [plain("alone"), plain("given"), plain("Q: x A:")]);
        assert!(matches!(&texts[3], Text::Chat(messages) if messages[0].text() == Some("hi")));
    }

    #[test]
    fn a_row_without_a_prompt_is_named() {
        let error = read("{\"prompt\": \"a\"}\n{\"question\": \"b\"}\n").unwrap_err().to_string();
        assert!(error.contains("row 2, key `prompt`: missing"), "{error}");
    }
}
