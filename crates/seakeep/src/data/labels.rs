//! What a row says of its completions: which part each plays, and the columns that objectives ask for.

use serde_json::Value;

use super::pair::Pair;
use crate::error::Result;

/// The part a completion plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Preferred, or called good.
    Chosen,
    /// Not preferred, or called bad.
    Rejected,
    /// Another row's completion after this row's prompt: what KTO measures the drift from the reference on.
    Mismatched,
    /// The prompt itself, where an objective has it learnt too (ORPO).
    Prompt,
}

/// What a row says besides its texts. What was not asked for is not there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    /// How sure the data are that the chosen completion is the better one: a probability.
    pub soft: Option<f64>,
    /// The group the row belongs to.
    pub group: Option<String>,
    /// Rewards of the chosen and of the rejected completion.
    pub rewards: Option<[f64; 2]>,
}

/// The columns to read labels from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelColumns {
    /// A probability, or a list of votes.
    pub soft: Option<String>,
    /// A text, number or boolean.
    pub group: Option<String>,
    /// Numbers: of the chosen, of the rejected.
    pub rewards: Option<[String; 2]>,
}

impl LabelColumns {
    /// The labels of a row.
    ///
    /// # Errors
    /// [`Error::Row`](crate::Error::Row) where a column is missing or is not what it should be.
    pub fn labels(&self, pair: &Pair) -> Result<Labels> {
        let soft = self.soft.as_ref().map(|key| soft(pair, key)).transpose()?;
        let group = self.group.as_ref().map(|key| group(pair, key)).transpose()?;
        let rewards = match &self.rewards {
            Some([chosen, rejected]) => Some([number(pair, chosen)?, number(pair, rejected)?]),
            None => None,
        };
        Ok(Labels { soft, group, rewards })
    }
}

fn column<'a>(pair: &'a Pair, key: &str) -> Result<&'a Value> {
    pair.extra.get(key).filter(|v| !v.is_null()).ok_or_else(|| {
        let others = pair.extra.keys().filter(|k| *k != key);
        let found: Vec<String> = others.map(|k| format!("`{k}`")).collect();
        let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
        pair.error(
            key,
            format!("missing or null, and the objective needs it; other columns of the row: {found}"),
        )
    })
}

fn number(pair: &Pair, key: &str) -> Result<f64> {
    let value = column(pair, key)?;
    value
        .as_f64()
        .filter(|x| x.is_finite())
        .ok_or_else(|| pair.error(key, format!("{value}, expected a number")))
}

fn group(pair: &Pair, key: &str) -> Result<String> {
    match column(pair, key)? {
        Value::String(text) => Ok(text.clone()),
        plain @ (Value::Number(_) | Value::Bool(_)) => Ok(plain.to_string()),
        other => {
            Err(pair.error(key, format!("{other}, expected the name of a group (text, number or boolean)")))
        }
    }
}

/// A probability; or votes, whose mean it is.
fn soft(pair: &Pair, key: &str) -> Result<f64> {
    let value = column(pair, key)?;
    match value {
        Value::Number(_) => value.as_f64().filter(|q| (0.0..=1.0).contains(q)).ok_or_else(|| {
            pair.error(key, format!("{value}, expected a probability from 0 to 1 that `chosen` is better"))
        }),
        Value::Array(votes) if !votes.is_empty() => {
            let votes: Option<Vec<f64>> = votes.iter().map(vote).collect();
            let votes = votes.ok_or_else(|| {
                pair.error(
                    key,
                    format!("{value}, expected votes: 1, true or \"chosen\"; 0, false or \"rejected\"; 0.5 or \"tie\""),
                )
            })?;
            Ok(votes.iter().sum::<f64>() / votes.len() as f64)
        }
        other => Err(pair.error(key, format!("{other}, expected a probability or a list of votes"))),
    }
}

fn vote(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
        Value::Number(_) => value.as_f64().filter(|v| (0.0..=1.0).contains(v)),
        Value::String(word) => match word.as_str() {
            "chosen" => Some(1.0),
            "rejected" => Some(0.0),
            "tie" => Some(0.5),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;
    use std::sync::Arc;

    fn labels(columns: &LabelColumns, mut row: Value) -> Result<Labels> {
        for key in ["prompt", "chosen", "rejected"] {
            row[key] = json!(key);
        }
        let row = row.as_object().unwrap().clone();
        columns.labels(&Pair::from_columns(Arc::from(Path::new("d.jsonl")), 3, row)?)
    }

    #[test]
    fn columns_become_labels() {
        let columns = LabelColumns {
            soft: Some("votes".into()),
            group: Some("who".into()),
            rewards: Some(["a".into(), "b".into()]),
        };
        let row = json!({"votes": ["chosen", 0, true, "tie"], "who": 7, "a": 1.5, "b": -2});
        let want = Labels { soft: Some(0.625), group: Some("7".into()), rewards: Some([1.5, -2.0]) };
        assert_eq!(labels(&columns, row).unwrap(), want);
        assert_eq!(labels(&LabelColumns::default(), json!({})).unwrap(), Labels::default());
    }

    #[test]
    fn what_is_no_label_names_row_and_column() {
        let soft = LabelColumns { soft: Some("q".into()), ..LabelColumns::default() };
        let group = LabelColumns { group: Some("q".into()), ..LabelColumns::default() };
        let rewards = LabelColumns { rewards: Some(["q".into(), "q".into()]), ..LabelColumns::default() };
        for (columns, row, part) in [
            (&soft, json!({"p": 1}), "other columns of the row: `p`"),
            (&soft, json!({"q": 1.5}), "from 0 to 1"),
            (&soft, json!({"q": [1, "maybe"]}), "\"tie\""),
            (&soft, json!({"q": []}), "list of votes"),
            (&group, json!({"q": [1]}), "name of a group"),
            (&rewards, json!({"q": "high"}), "expected a number"),
        ] {
            let message = labels(columns, row).unwrap_err().to_string();
            assert!(message.contains("d.jsonl, row 3, key `q`") && message.contains(part), "{message}");
        }
    }
}
