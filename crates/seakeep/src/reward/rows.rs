//! Rows to train and judge reward models on: a text with labels, or a preferred and a rejected text.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::loss::{Problem, Target};
use crate::data::{Columns, Message, Pair, Text, parse_text, read_rows, template_variables};
use crate::error::{Error, Result, nearest};

/// A row: one text with labels, or two with the preferred one first.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardRow {
    /// The file it is from.
    pub file: Arc<Path>,
    /// Its row, from 1.
    pub row: usize,
    /// What is scored, whole: prompt and completion together.
    pub texts: Vec<Text>,
    /// What the row hands to the chat template besides.
    pub variables: Map<String, Value>,
    /// What is known of it. Values of labels stand in the order of [`LabelNames`].
    pub target: Target,
}

impl RewardRow {
    /// An error about this row.
    pub fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::row(&self.file, self.row, key, what)
    }
}

/// Which labels a model has, in their order.
pub type LabelNames = Vec<String>;

/// The label of a model that is trained on pairs.
const REWARD: &str = "reward";

/// What is scored of a row: `text`, or `prompt` and `completion` together. Takes these columns out.
///
/// # Errors
/// [`Error::Row`] where they are missing or do not go together.
pub fn content_of(file: &Path, row: usize, columns: &mut Columns) -> Result<Text> {
    let mut take = |key: &str| match columns.shift_remove(key).filter(|v| !v.is_null()) {
        Some(value) => parse_text(file, row, key, value).map(Some),
        None => Ok(None),
    };
    match (take("text")?, take("prompt")?, take("completion")?) {
        (Some(text), None, None) => Ok(text),
        (None, Some(prompt), Some(completion)) => joined(prompt, completion)
            .ok_or_else(|| Error::row(file, row, "completion", "messages after a prompt that is a string")),
        (None, None, Some(completion)) => Ok(completion),
        (Some(_), ..) => Err(Error::row(
            file,
            row,
            "text",
            "a row has `text`, or `prompt` and `completion`; this one has both",
        )),
        _ => Err(Error::row(
            file,
            row,
            "completion",
            "missing or null; a row needs `text`, or `prompt` and `completion`",
        )),
    }
}

/// A prompt with its completion: texts end to end exactly as they are, messages in one conversation; a text after messages is
/// the assistant's. `None` for messages after a text.
pub(super) fn joined(prompt: Text, completion: Text) -> Option<Text> {
    match (prompt, completion) {
        (Text::Standard(prompt), Text::Standard(completion)) => Some(Text::Standard(prompt + &completion)),
        (Text::Chat(mut prompt), Text::Chat(completion)) => {
            prompt.extend(completion);
            Some(Text::Chat(prompt))
        }
        (Text::Chat(mut prompt), Text::Standard(completion)) => {
            prompt.push(Message::new("assistant", completion));
            Some(Text::Chat(prompt))
        }
        (Text::Standard(_), Text::Chat(_)) => None,
    }
}

/// Reads the rows of a data file, directory or pattern for a problem, their labels by `names`.
///
/// A row has `text`, or `prompt` and `completion`, and `labels`: an object of numbers, in which a label that is null or not
/// there is not known; or the names of the labels that hold (a list, or one name), the others being 0. For Bradley-Terry
/// it has `chosen` and `rejected` and may have `prompt` and `margin`. Labels that `names` does not have are ignored.
///
/// # Errors
/// As [`read_pairs`](crate::data::read_pairs); [`Error::Row`] for labels that the problem cannot take; rows of which no label is known.
pub fn read_rewards(spec: &str, problem: Problem, names: &LabelNames) -> Result<Vec<RewardRow>> {
    let rows = read_rows(spec, |file, row, columns| match problem {
        Problem::BradleyTerry => pair_row(file, row, columns),
        _ => labelled_row(file, row, columns, problem, names),
    })?;
    let is_known = |row: &RewardRow| match &row.target {
        Target::Labels(values) => values.iter().any(Option::is_some),
        Target::Pair { .. } => true,
    };
    if !rows.is_empty() && !rows.iter().any(is_known) {
        let what =
            format!("no row has one of the labels {}; are they called otherwise there?", names.join(", "));
        return Err(Error::format(spec, what));
    }
    Ok(rows)
}

fn pair_row(file: Arc<Path>, row: usize, columns: Columns) -> Result<RewardRow> {
    let margin = match columns.get("margin") {
        None | Some(Value::Null) => 0.0,
        Some(value) => value.as_f64().filter(|m| m.is_finite()).ok_or_else(|| {
            Error::row(
                &file,
                row,
                "margin",
                format!("{value}, expected a number: how much better `chosen` is"),
            )
        })?,
    };
    let pair = Pair::from_columns(file.clone(), row, columns)?;
    if pair.completions.len() != 2 {
        return Err(pair.error("rejected", "a row needs one `chosen` and one `rejected`"));
    }
    let text = |c: &crate::data::Completion| match &pair.prompt {
        // Without a prompt both are whole.
        None => Ok(c.text.clone()),
        Some(prompt) => joined(prompt.clone(), c.text.clone())
            .ok_or_else(|| pair.error(&c.key, "not of the same kind as the prompt")),
    };
    let texts = pair.completions.iter().map(text).collect::<Result<Vec<_>>>()?;
    let variables = variables_of(&file, row, &texts, &pair.extra)?;
    Ok(RewardRow { file, row, texts, variables, target: Target::Pair { margin } })
}

fn labelled_row(
    file: Arc<Path>,
    row: usize,
    mut columns: Columns,
    problem: Problem,
    names: &LabelNames,
) -> Result<RewardRow> {
    let labels = columns.remove("labels").unwrap_or_default();
    let wrong = |what: String| Error::row(&file, row, "labels", what);
    let values = values(&labels, names).map_err(&wrong)?;
    if let Some(value) = values.iter().flatten().find(|v| !fits(problem, **v)) {
        return Err(wrong(format!("{value}; {} takes numbers from 0 to 1", problem.name())));
    }
    let sum: f64 = values.iter().flatten().sum();
    if problem == Problem::SingleLabel && (sum - 1.0).abs() > 1e-6 {
        let what = format!("{labels}: the values of the labels {} add up to {sum}", names.join(", "));
        return Err(wrong(format!(
            "{what}; single_label_classification needs one label, or shares that make 1"
        )));
    }
    let text = content_of(&file, row, &mut columns)?;
    let texts = vec![text];
    let variables = variables_of(&file, row, &texts, &columns)?;
    Ok(RewardRow { file, row, texts, variables, target: Target::Labels(values) })
}

/// What a row hands to the chat template, if its texts go through it.
///
/// # Errors
/// As [`template_variables`].
pub fn variables_of(
    file: &Path,
    row: usize,
    texts: &[Text],
    columns: &Columns,
) -> Result<Map<String, Value>> {
    match texts.iter().any(|text| matches!(text, Text::Chat(_))) {
        true => template_variables(file, row, columns),
        false => Ok(Map::new()),
    }
}

fn fits(problem: Problem, value: f64) -> bool {
    problem == Problem::Regression || (0.0..=1.0).contains(&value)
}

/// The value of each label of `names` in a row's `labels`.
fn values(labels: &Value, names: &LabelNames) -> Result<Vec<Option<f64>>, String> {
    let held = named(labels)?;
    let value = |name: &String| match (labels, held.iter().find(|(held, _)| held == name)) {
        (Value::Object(_), found) => found.and_then(|(_, value)| *value),
        (_, found) => Some(f64::from(u8::from(found.is_some()))),
    };
    Ok(names.iter().map(value).collect())
}

/// The labels that a row names, with their values.
fn named(labels: &Value) -> Result<Vec<(&str, Option<f64>)>, String> {
    let expected = "expected an object of numbers such as {\"joy\": 1, \"anger\": 0.5}, or a list of the labels that hold";
    match labels {
        Value::Object(values) => values
            .iter()
            .map(|(name, value)| match value {
                Value::Null => Ok((name.as_str(), None)),
                Value::Bool(held) => Ok((name.as_str(), Some(f64::from(u8::from(*held))))),
                other => match other.as_f64().filter(|x| x.is_finite()) {
                    Some(number) => Ok((name.as_str(), Some(number))),
                    None => Err(format!("`{name}` is {other}; {expected}")),
                },
            })
            .collect(),
        Value::Array(names) => names
            .iter()
            .map(|name| {
                name.as_str().map(|n| (n, Some(1.0))).ok_or_else(|| format!("{name} in the list; {expected}"))
            })
            .collect(),
        Value::String(name) => Ok(vec![(name.as_str(), Some(1.0))]),
        Value::Null => Err(format!("missing or null; {expected}")),
        other => Err(format!("{other}; {expected}")),
    }
}

/// Whether the rows of `spec` are pairs, and the labels that occur in them, sorted. `wanted`, if given, are the labels to
/// have, in this order.
///
/// # Errors
/// Data that cannot be read; [`Error::Usage`] for a wanted label that no row has.
pub fn label_names(
    spec: &str,
    problem: Option<Problem>,
    wanted: Option<&LabelNames>,
) -> Result<(Problem, LabelNames)> {
    let rows = read_rows(spec, |file, row, columns| {
        if columns.contains_key("chosen") && columns.contains_key("rejected") {
            return Ok(None);
        }
        let labels = columns.get("labels").unwrap_or(&Value::Null);
        let named = named(labels).map_err(|what| Error::row(&file, row, "labels", what))?;
        Ok(Some(named.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()))
    })?;
    let pairs = rows.iter().any(Option::is_none);
    let found: std::collections::BTreeSet<String> = rows.into_iter().flatten().flatten().collect();
    let problem = problem.unwrap_or(if pairs { Problem::BradleyTerry } else { Problem::MultiLabel });
    if problem == Problem::BradleyTerry {
        return Ok((problem, vec![wanted.and_then(|names| names.first().cloned()).unwrap_or(REWARD.into())]));
    }
    let names: LabelNames = match wanted {
        Some(wanted) => wanted.clone(),
        None => found.iter().cloned().collect(),
    };
    if let Some(unknown) = names.iter().find(|name| !found.contains(*name)) {
        let near = nearest(unknown, found.iter().map(String::as_str));
        let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        let known: Vec<&str> = found.iter().map(String::as_str).collect();
        return Err(Error::Usage(format!(
            "no row of {spec} has the label `{unknown}`{hint} The data has: {}",
            known.join(", ")
        )));
    }
    match names.is_empty() {
        true => Err(Error::Usage(format!("no row of {spec} has a label"))),
        false => Ok((problem, names)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        let spec = path.to_str().unwrap().to_string();
        (directory, spec)
    }

    fn read(text: &str, problem: Problem, names: &[&str]) -> Result<Vec<RewardRow>> {
        let (_directory, spec) = spec(text);
        read_rewards(&spec, problem, &names.iter().map(|n| n.to_string()).collect())
    }

    #[test]
    fn labels_come_as_numbers_or_names() {
        let rows = read(
            concat!(
                "{\"text\": \"a\", \"labels\": {\"joy\": 1, \"fear\": 0.5, \"anger\": null, \"other\": 1}}\n",
                "{\"prompt\": \"a\", \"completion\": \" b\", \"labels\": [\"fear\", \"other\"]}\n",
                "{\"text\": \"a\", \"labels\": \"other\"}\n",
            ),
            Problem::MultiLabel,
            &["anger", "fear", "joy", "love"],
        )
        .unwrap();
        let values = |row: &RewardRow| match &row.target {
            Target::Labels(values) => values.clone(),
            Target::Pair { .. } => unreachable!(),
        };
        assert_eq!(values(&rows[0]), [None, Some(0.5), Some(1.0), None]);
        assert_eq!(values(&rows[1]), [Some(0.0), Some(1.0), Some(0.0), Some(0.0)]);
        assert_eq!(values(&rows[2]), [Some(0.0); 4]);
        assert_eq!(rows[1].texts, [Text::Standard("a b".into())]);
    }

    #[test]
    fn pairs_keep_their_prompt_and_margin() {
        let text = concat!(
            "{\"prompt\": \"p\", \"chosen\": \" a\", \"rejected\": \" b\", \"margin\": 0.5}\n",
            "{\"prompt\": [{\"role\": \"user\", \"content\": \"p\"}], \"chosen\": [{\"role\": \"assistant\", ",
            "\"content\": \"a\"}], \"rejected\": [{\"role\": \"assistant\", \"content\": \"b\"}]}\n",
        );
        let rows = read(text, Problem::BradleyTerry, &[]).unwrap();
        assert_eq!(rows[0].texts, [Text::Standard("p a".into()), Text::Standard("p b".into())]);
        assert_eq!(rows[0].target, Target::Pair { margin: 0.5 });
        assert!(matches!(&rows[1].texts[0], Text::Chat(messages) if messages.len() == 2));
        let (_directory, spec) = spec(text);
        assert_eq!(
            label_names(&spec, None, None).unwrap(),
            (Problem::BradleyTerry, vec!["reward".to_string()])
        );
    }

    #[test]
    fn names_are_those_of_the_data_sorted_or_those_wanted() {
        let (_directory, spec) = spec(
            "{\"text\": \"a\", \"labels\": [\"joy\", \"fear\"]}\n{\"text\": \"b\", \"labels\": {\"anger\": null}}\n",
        );
        assert_eq!(label_names(&spec, None, None).unwrap().1, ["anger", "fear", "joy"]);
        let wanted = vec!["joy".to_string(), "anger".to_string()];
        assert_eq!(label_names(&spec, None, Some(&wanted)).unwrap().1, wanted);
        let message = label_names(&spec, None, Some(&vec!["joyy".to_string()])).unwrap_err().to_string();
        assert!(message.contains("`joyy`; did you mean `joy`?"), "{message}");
    }

    #[test]
    fn what_is_no_label_names_row_and_key() {
        for (row, problem, part) in [
            ("{\"text\": \"a\"}", Problem::MultiLabel, "key `labels`: missing or null"),
            (
                "{\"text\": \"a\", \"labels\": {\"x\": 2}}",
                Problem::MultiLabel,
                "key `labels`: 2; multi_label_classification",
            ),
            ("{\"text\": \"a\", \"labels\": {\"x\": \"y\"}}", Problem::Regression, "`x` is \"y\""),
            ("{\"text\": \"a\", \"labels\": [1]}", Problem::MultiLabel, "1 in the list"),
            ("{\"text\": \"a\", \"labels\": [\"x\", \"y\"]}", Problem::SingleLabel, "add up to 2"),
            ("{\"labels\": [\"x\"]}", Problem::MultiLabel, "key `completion`: missing or null"),
            (
                "{\"text\": \"a\", \"prompt\": \"b\", \"labels\": [\"x\"]}",
                Problem::MultiLabel,
                "this one has both",
            ),
            (
                "{\"chosen\": \"pa\", \"rejected\": \"pb\", \"margin\": \"x\"}",
                Problem::BradleyTerry,
                "key `margin`",
            ),
        ] {
            let message = read(&format!("{row}\n"), problem, &["x", "y"]).unwrap_err().to_string();
            assert!(message.contains("a.jsonl, row 1") && message.contains(part), "{message}");
        }
    }
}
