//! Rows of Seakeep's out of files that are laid out otherwise: texts with labels, judged pairs of answers.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::read::{Columns, read_rows, read_text};
use crate::error::{Error, Result};

/// How a foreign file is laid out.
#[derive(Clone, Debug, PartialEq)]
pub enum Layout {
    /// A row a line, its columns between separators, such as `text;label`. The last column takes what is left.
    Delimited {
        /// What stands between columns.
        separator: String,
        /// Their names.
        columns: Vec<String>,
    },
    /// LLMBar (Zeng et al., arXiv 2310.07641): `input`, `output_1`, `output_2`, and which is better, `label`.
    LlmBar,
    /// PandaLM's test set (Wang et al., arXiv 2306.05087): `instruction`, `input`, `response1`, `response2`, and three
    /// annotators who say 1, 2 or 0 (a tie).
    PandaLm,
    /// Rows that Seakeep reads already.
    Own,
}

/// The rows of a file (for the layouts in JSON: of a file, directory or pattern), in its order. Pairs on which annotators are
/// split evenly or of which an answer is empty are left out (PandaLM); how many, is told with the rows.
///
/// # Errors
/// A file that cannot be read; [`Error::Row`] for a row that is not laid out so.
pub fn read_foreign(spec: &str, layout: &Layout) -> Result<(Vec<Columns>, usize)> {
    let rows = match layout {
        Layout::Delimited { separator, columns } => {
            return Ok((delimited(Path::new(spec), separator, columns)?, 0));
        }
        Layout::Own => return Ok((read_rows(spec, |_, _, columns| Ok(columns))?, 0)),
        Layout::LlmBar => {
            read_rows(spec, |file, row, columns| llmbar(&Row { file, row, columns }).map(Some))?
        }
        Layout::PandaLm => read_rows(spec, |file, row, columns| pandalm(&Row { file, row, columns }))?,
    };
    let read = rows.len();
    let rows: Vec<Columns> = rows.into_iter().flatten().collect();
    let left_out = read - rows.len();
    Ok((rows, left_out))
}

fn delimited(path: &Path, separator: &str, names: &[String]) -> Result<Vec<Columns>> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            // From the end: a text may hold the separator, a label does not.
            let mut parts: Vec<&str> = line.rsplitn(names.len(), separator).collect();
            parts.reverse();
            if parts.len() != names.len() {
                let what = format!(
                    "{} columns at `{separator}`, expected {} ({})",
                    parts.len(),
                    names.len(),
                    names.join(", ")
                );
                return Err(Error::row(path, at + 1, "", what));
            }
            Ok(names.iter().cloned().zip(parts.into_iter().map(Value::from)).collect())
        })
        .collect()
}

/// A row on its way.
struct Row {
    file: Arc<Path>,
    row: usize,
    columns: Columns,
}

impl Row {
    /// A text; PandaLM has answers that its makers' program took for numbers and truths.
    fn text(&self, key: &str) -> Result<String> {
        match self.columns.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(plain @ (Value::Bool(_) | Value::Number(_))) => Ok(plain.to_string()),
            _ => Err(self.error(key, "a text")),
        }
    }

    /// A whole number up to `most`.
    fn choice(&self, key: &str, least: u64, most: u64) -> Result<u64> {
        let found = self.columns.get(key).and_then(Value::as_u64).filter(|n| (least..=most).contains(n));
        found.ok_or_else(|| self.error(key, &format!("a number from {least} to {most}")))
    }

    fn error(&self, key: &str, expected: &str) -> Error {
        let found = self.columns.get(key).map_or("missing".to_string(), Value::to_string);
        Error::row(&self.file, self.row, key, format!("{found}, expected {expected}"))
    }
}

fn pair(prompt: &str, answers: [String; 2], best: usize) -> Columns {
    let said = |role: &str, content: &str| json!([{"role": role, "content": content}]);
    Map::from_iter([
        ("prompt".to_string(), said("user", prompt)),
        ("chosen".to_string(), said("assistant", &answers[best])),
        ("rejected".to_string(), said("assistant", &answers[1 - best])),
    ])
}

fn llmbar(row: &Row) -> Result<Columns> {
    let best = row.choice("label", 1, 2)? as usize - 1;
    Ok(pair(&row.text("input")?, [row.text("output_1")?, row.text("output_2")?], best))
}

/// `None` where annotators are split or an answer is empty. With `votes`: for each annotator 1 where they agree with the label, 0 where not, 0.5 for a tie.
fn pandalm(row: &Row) -> Result<Option<Columns>> {
    let keys = ["annotator1", "annotator2", "annotator3"];
    let votes = keys.map(|key| row.choice(key, 0, 2));
    let votes = votes.into_iter().collect::<Result<Vec<u64>>>()?;
    let count = |answer: u64| votes.iter().filter(|v| **v == answer).count();
    if count(1) == count(2) {
        return Ok(None);
    }
    let best = if count(1) > count(2) { 1 } else { 2 };
    let answers = [row.text("response1")?, row.text("response2")?];
    if answers.iter().any(|answer| answer.trim().is_empty()) {
        return Ok(None);
    }
    let (instruction, input) = (row.text("instruction")?, row.text("input")?);
    let prompt = if input.is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
    let mut columns = pair(&prompt, answers, best as usize - 1);
    let vote = |v: &u64| if *v == 0 { 0.5 } else { f64::from(*v == best) };
    columns.insert("votes".into(), votes.iter().map(vote).collect());
    Ok(Some(columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, layout: &Layout) -> Result<Vec<Columns>> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        let (rows, left_out) = read_foreign(path.to_str().unwrap(), layout)?;
        assert!(left_out == 0 || *layout == Layout::PandaLm);
        Ok(rows)
    }

    #[test]
    fn a_text_may_hold_the_separator() {
        let layout =
            Layout::Delimited { separator: ";".into(), columns: vec!["text".into(), "label".into()] };
        let rows = read("a.txt", "i feel; well;joy\n\nno;anger\n", &layout).unwrap();
        assert_eq!(
            json!(rows),
            json!([{"text": "i feel; well", "label": "joy"}, {"text": "no", "label": "anger"}])
        );
        let error = read("a.txt", "a;b\nnone\n", &layout).unwrap_err().to_string();
        assert!(error.contains("row 2") && error.contains("1 columns"), "{error}");
    }

    #[test]
    fn judged_pairs_become_preferences() {
        let row = json!([{"input": "Q", "output_1": "a", "output_2": "b", "label": 2}]).to_string();
        let rows = read("a.json", &row, &Layout::LlmBar).unwrap();
        assert_eq!(rows[0]["chosen"], json!([{"role": "assistant", "content": "b"}]));
        let error = read("a.json", &row.replace('2', "3"), &Layout::LlmBar).unwrap_err().to_string();
        assert!(error.contains("output_2") || error.contains("label"), "{error}");
    }

    #[test]
    fn annotators_vote_and_a_split_is_left_out() {
        let row = |votes: [u8; 3]| {
            json!({"instruction": "Do", "input": "x", "response1": "a", "response2": "b",
            "annotator1": votes[0], "annotator2": votes[1], "annotator3": votes[2]})
        };
        let mut silent = row([1, 1, 1]);
        silent["response2"] = json!(" ");
        let rows = json!([row([2, 2, 0]), row([1, 2, 0]), silent, row([1, 1, 2])]).to_string();
        let rows = read("a.json", &rows, &Layout::PandaLm).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (&rows[0]["votes"], &rows[1]["votes"]),
            (&json!([1.0, 1.0, 0.5]), &json!([1.0, 1.0, 0.0]))
        );
        assert_eq!(rows[0]["prompt"], json!([{"role": "user", "content": "Do\n\nx"}]));
    }
}
