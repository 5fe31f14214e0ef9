//! `seakeep prepare`: rows out of files that are laid out otherwise; prompts out of texts; rows held out, labels turned.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::{ArgAction, ArgMatches, Command, value_parser};
use seakeep::data::{Layout, prompt_key, read_foreign};
use seakeep::formats::Tokenizer;
use seakeep::train::data::Visits;
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::grouped;
use crate::{args, output, progress};

type Row = Map<String, Value>;

/// The command line.
pub fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        args::spelled(name).value_name(value).value_parser(ValueParser::string()).help(help)
    };
    let whole = || ValueParser::from(value_parser!(usize));
    args::command(
        "prepare",
        "Make rows of files that are laid out otherwise (text;label, LLMBar, PandaLM), prompts of texts, wrong labels on purpose",
        "seakeep prepare --input train.txt --layout delimited --columns text,labels --drop labels=surprise --output train.jsonl",
    )
    .args([
        flag("input", "PATH", "The file").required(true),
        flag("layout", "NAME", "own: rows as everywhere; delimited: a row a line, columns between separators; llmbar, pandalm: \
              judged pairs of answers, which become prompt, chosen, rejected (and votes)")
            .value_parser(["own", "delimited", "llmbar", "pandalm"])
            .default_value("own"),
        flag("columns", "NAME,...", "delimited: the columns; one called `labels` becomes a list").default_value("text"),
        flag("separator", "TEXT", "delimited: what stands between columns, such as `;` or `\\t`").default_value(";"),
        flag("drop", "KEY=VALUE", "Leaves out rows in which a column has, or holds, this value; may be given several times")
            .action(ArgAction::Append),
        flag("add", "KEY=VALUE", "Gives every row a column, such as a group; may be given several times").action(ArgAction::Append),
        flag("prompt_tokens", "N", "Makes prompts: of each `text` its first N tokens, to the end of the word, every prompt once").value_parser(whole()),
        flag("tokenizer", "PATH", "The model whose tokens prompt_tokens counts"),
        flag("sample", "N", "Draws this many rows").value_parser(whole()),
        flag("longest", "N", "Leaves out rows whose prompt, completions or text have more characters together")
            .value_parser(whole()),
        flag("test_share", "X", "This share of the prompts is held out: their rows go to test_output")
            .value_parser(value_parser!(f64)),
        flag("test_output", "PATH", "Where the rows go that are held out, JSON lines").value_parser(value_parser!(PathBuf)),
        flag("flip_rate", "X", "In this share of the rows `chosen` and `rejected` change places (column `flipped`), as wrong \
              labels; rows flipped at a lower rate are among those of a higher one. Not of what is held out")
            .value_parser(value_parser!(f64)),
        flag("seed", "N", "Seed of the draws").value_parser(value_parser!(u64)).default_value("42"),
        flag("output", "PATH", "JSON lines").value_parser(value_parser!(PathBuf)).required(true),
    ])
}

/// Reads, chooses and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| args::texts(matches, name).pop();
    let to = matches.get_one::<PathBuf>("output");
    let test_to = matches.get_one::<PathBuf>("test_output");
    let outputs =
        [("test_output", test_to), ("output", to)].map(|(flag, to)| (flag, to.map(PathBuf::as_path)));
    output::check(&outputs, &[("input", &text("input").unwrap_or_default())])?;
    let test_share = share(matches, "test_share")?;
    let flip_rate = share(matches, "flip_rate")?;
    if test_share.is_some() != test_to.is_some() {
        return Err(Error::Usage("--test_share and --test_output go together".into()));
    }
    let columns: Vec<String> =
        text("columns").unwrap_or_default().split(',').map(|c| c.trim().to_string()).collect();
    let twice =
        columns.iter().enumerate().find(|(at, name)| name.is_empty() || columns[..*at].contains(name));
    if let Some((_, name)) = twice {
        return Err(Error::Usage(format!(
            "--columns: `{name}` is empty or stands twice; expected a name for each column"
        )));
    }
    let layout = match text("layout").as_deref() {
        Some("delimited") => Layout::Delimited {
            separator: text("separator").unwrap_or_default().replace("\\t", "\t"),
            columns,
        },
        Some("llmbar") => Layout::LlmBar,
        Some("pandalm") => Layout::PandaLm,
        _ => Layout::Own,
    };
    if matches!(&layout, Layout::Delimited { separator, .. } if separator.is_empty()) {
        return Err(Error::Usage("--separator is empty; expected what stands between columns".into()));
    }
    let (mut rows, left_out) = read_foreign(&text("input").unwrap_or_default(), &layout)?;
    if left_out > 0 {
        progress::on_stderr().note(&format!(
            "{} rows are left out: their annotators are split evenly, or an answer is empty",
            grouped(left_out)
        ));
    }
    if matches!(layout, Layout::Delimited { .. }) {
        rows.iter_mut().filter_map(|row| row.get_mut("labels")).for_each(|labels| *labels = json!([labels]));
    }
    let read = rows.len() + left_out;
    for (key, value) in assignments(matches, "drop")? {
        let before = rows.len();
        rows.retain(|row| !row.get(&key).is_some_and(|held| holds(held, &value)));
        if rows.len() == before {
            return Err(Error::Usage(format!(
                "--drop {key}={value}: no row has it; is it spelled so in the file?"
            )));
        }
    }
    if let Some(&tokens) = matches.get_one::<usize>("prompt_tokens") {
        let path = text("tokenizer").ok_or_else(|| {
            Error::Usage(
                "--prompt_tokens counts a model's tokens: give --tokenizer, a model's directory".into(),
            )
        })?;
        rows = prompts(rows, tokens, &*super::logps::tokenizer(&path)?)?;
    }
    if let Some(&longest) = matches.get_one::<usize>("longest") {
        rows.retain(|row| characters(row) <= longest);
    }
    for (key, value) in assignments(matches, "add")? {
        rows.iter_mut().for_each(|row| drop(row.insert(key.clone(), Value::from(value.as_str()))));
    }
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or_default();
    if let Some(&sample) = matches.get_one::<usize>("sample") {
        rows = drawn(rows, sample, seed)?;
    }
    let held_out = match test_share {
        Some(share) => held_out(&mut rows, share, seed)?,
        None => Vec::new(),
    };
    if let Some(rate) = flip_rate {
        flip(&mut rows, rate, seed, &text("input").unwrap_or_default())?;
    }
    let files: Vec<(&PathBuf, &[Row])> = [(test_to, &held_out), (to, &rows)]
        .into_iter()
        .filter_map(|(to, rows)| Some((to?, &rows[..])))
        .collect();
    if let Some((to, _)) = files.iter().find(|(_, rows)| rows.is_empty()) {
        return Err(Error::Usage(format!(
            "{}: no row would be in it, of {} read; look at --drop, --longest, --prompt_tokens and --test_share",
            to.display(),
            grouped(read)
        )));
    }
    files.into_iter().try_for_each(|(to, rows)| write(to, rows, read))
}

fn write(to: &Path, rows: &[Row], read: usize) -> Result<()> {
    let lines: String = rows.iter().map(|row| format!("{}\n", json!(row))).collect();
    output::emit(Some(to), &lines)?;
    output::print(&format!("{}: {} rows of {} read\n", to.display(), grouped(rows.len()), grouped(read)))
}

fn share(matches: &ArgMatches, flag: &str) -> Result<Option<f64>> {
    match matches.get_one::<f64>(flag) {
        Some(x) if !(0.0..=1.0).contains(x) => {
            Err(Error::Usage(format!("--{flag} is {x}; expected a share from 0 to 1")))
        }
        x => Ok(x.copied()),
    }
}

fn assignments(matches: &ArgMatches, flag: &str) -> Result<Vec<(String, String)>> {
    let pair = |text: String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err(Error::Usage(format!("--{flag} {text}; expected KEY=VALUE"))),
    };
    args::texts(matches, flag).into_iter().map(pair).collect()
}

/// Whether a column has this value, or is a list that holds it.
fn holds(held: &Value, value: &str) -> bool {
    match held {
        Value::Array(list) => list.iter().any(|one| holds(one, value)),
        Value::String(text) => text == value,
        other => serde_json::from_str::<Value>(value).is_ok_and(|value| value == *other),
    }
}

/// Of each row's `text` the first tokens, to the end of the word, as the row's `prompt`; each once, with the row's other
/// columns. Texts that are no longer are left out: nothing would be left to write.
fn prompts(rows: Vec<Row>, tokens: usize, tokenizer: &Tokenizer) -> Result<Vec<Row>> {
    let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
    for (at, mut row) in rows.into_iter().enumerate() {
        let Some(Value::String(text)) = row.remove("text") else {
            return Err(Error::Usage(format!(
                "row {} has no `text`; --prompt_tokens takes the beginning of texts",
                at + 1
            )));
        };
        let ids = tokenizer.encode(&text, false)?;
        if ids.len() > tokens {
            let mut prompt = tokenizer.decode(&ids[..tokens], true)?;
            // To the end of its last word: half a word and its other half would be other tokens together.
            // Where a character or a special token is cut, the text itself says where the tokens end.
            let begin = match text.starts_with(prompt.as_str()) {
                true => prompt.len(),
                false => tokenizer.end_of(&text, tokens)?,
            };
            match text[begin..].find(char::is_whitespace) {
                Some(end) => prompt = text[..begin + end].to_string(),
                None => continue,
            }
            if seen.insert(prompt.clone()) {
                out.push(std::iter::once(("prompt".to_string(), Value::from(prompt))).chain(row).collect());
            }
        }
    }
    Ok(out)
}

/// Rows drawn without replacement, in the order of the file.
fn drawn(rows: Vec<Row>, sample: usize, seed: u64) -> Result<Vec<Row>> {
    if sample == 0 || sample > rows.len() {
        return Err(Error::Usage(format!(
            "--sample is {sample}; expected 1 to {}, since there are so many rows",
            rows.len()
        )));
    }
    let chosen = chosen(rows.len(), sample, seed);
    Ok(rows.into_iter().enumerate().filter(|(i, _)| chosen.contains(i)).map(|(_, row)| row).collect())
}

/// `count` of the numbers below `of`; those of a smaller count are among those of a larger one.
fn chosen(of: usize, count: usize, seed: u64) -> BTreeSet<usize> {
    let visits = Visits { rows: of, batch: of.max(1), shuffle: true, seed };
    visits.steps(0, usize::from(of > 0)).flatten().take(count).collect()
}

/// Takes out the rows of a share of the prompts, all rows of such a prompt. Nothing of what is learnt is then judged.
fn held_out(rows: &mut Vec<Row>, share: f64, seed: u64) -> Result<Vec<Row>> {
    let (mut numbers, mut of_row) = (BTreeMap::new(), Vec::new());
    for (at, row) in rows.iter().enumerate() {
        let Some(prompt) = row.get("prompt") else {
            return Err(Error::Usage(format!("row {} has no `prompt`; --test_share draws prompts", at + 1)));
        };
        let next = numbers.len();
        of_row.push(*numbers.entry(prompt_key(prompt)).or_insert(next));
    }
    let held = chosen(numbers.len(), (share * numbers.len() as f64).round() as usize, seed);
    let (mut test, mut train) = (Vec::new(), Vec::new());
    for (row, number) in rows.drain(..).zip(of_row) {
        if held.contains(&number) { &mut test } else { &mut train }.push(row);
    }
    *rows = train;
    Ok(test)
}

/// Wrong labels: in a share of the rows `chosen` and `rejected` change places.
fn flip(rows: &mut [Row], rate: f64, seed: u64, input: &str) -> Result<()> {
    let flipped = chosen(rows.len(), (rate * rows.len() as f64).round() as usize, seed);
    let no_pair = |at: usize, what: &str| {
        let row = at + 1;
        Error::Usage(format!(
            "{input}: row {row} of those that are kept has {what}; --flip_rate turns pairs round"
        ))
    };
    for (at, row) in rows.iter_mut().enumerate() {
        let sides = ["chosen", "rejected"].map(|side| row.get(side).cloned());
        let [Some(chosen), Some(rejected)] = sides else {
            return Err(no_pair(at, "no `chosen` and `rejected`"));
        };
        let wrong = flipped.contains(&at);
        if wrong && rejected.as_array().is_some_and(|all| !all.iter().all(is_message)) {
            return Err(no_pair(at, "several rejected completions"));
        }
        if wrong {
            row.insert("chosen".into(), rejected);
            row.insert("rejected".into(), chosen);
            turn_companions(row);
        }
        let before = row.get("flipped").and_then(Value::as_bool).unwrap_or_default();
        row.insert("flipped".into(), Value::from(wrong != before));
    }
    Ok(())
}

/// Whether a value is one of a conversation's messages.
fn is_message(value: &Value) -> bool {
    value.get("role").is_some()
}

/// What columns say of a row's two sides (`score_chosen` and `score_rejected`, `chosen_reward` and `rejected_reward`) goes with them, and the
/// probability that the chosen one is better, or votes for it, become those of the other.
fn turn_companions(row: &mut Row) {
    let of_chosen: Vec<String> =
        row.keys().filter(|key| *key != "chosen" && key.contains("chosen")).cloned().collect();
    for key in of_chosen {
        let other = key.replace("chosen", "rejected");
        if let (Some(chosen), Some(rejected)) = (row.get(&key).cloned(), row.get(&other).cloned()) {
            row.insert(key, rejected);
            row.insert(other, chosen);
        }
    }
    for key in ["soft_label", "probability", "votes"] {
        if let Some(value) = row.get_mut(key) {
            turn_vote(value);
        }
    }
}

/// What says that the chosen one is better, in any of the forms that `soft_label_column` takes, says it of the other.
fn turn_vote(value: &mut Value) {
    let turned = match &*value {
        Value::Bool(yes) => json!(!yes),
        Value::Number(share) => json!(1.0 - share.as_f64().unwrap_or(0.5)),
        Value::String(word) if word == "chosen" => json!("rejected"),
        Value::String(word) if word == "rejected" => json!("chosen"),
        Value::Array(votes) => {
            let mut votes = votes.clone();
            votes.iter_mut().for_each(turn_vote);
            Value::Array(votes)
        }
        _ => return,
    };
    *value = turned;
}

/// How many there are in a row's prompt, completions and text.
fn characters(row: &Row) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::String(text) => text.chars().count(),
            Value::Array(list) => list.iter().map(of).sum(),
            Value::Object(message) => message.get("content").map_or(0, of),
            _ => 0,
        }
    }
    ["prompt", "chosen", "rejected", "completion", "text"]
        .iter()
        .filter_map(|key| row.get(*key))
        .map(of)
        .sum()
}
