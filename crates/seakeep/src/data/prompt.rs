//! Prompts without completions: what `generate` completes.

use std::path::Path;
use std::sync::Arc;

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
    Ok(Prompt { file, row, text, columns })
}

/// The columns of a preference row that are neither its prompt nor its completions.
fn others(columns: &Columns) -> Columns {
    let kept = columns.iter().filter(|(name, _)| !["prompt", "chosen", "rejected"].contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
