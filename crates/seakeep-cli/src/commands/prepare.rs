//! `seakeep prepare`: rows out of files that are laid out otherwise; and prompts out of texts.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{ArgAction, ArgMatches, Command, value_parser};
use seakeep::data::{Layout, read_foreign};
use seakeep::formats::Tokenizer;
use seakeep::train::data::Visits;
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::grouped;
use crate::{args, output};

type Row = Map<String, Value>;

/// The command line.
pub fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        args::spelled(name).value_name(value).value_parser(ValueParser::string()).help(help)
    };
    let whole = || ValueParser::from(value_parser!(usize));
    args::command(
        "prepare",
        "Make rows of files that are laid out otherwise (text;label, LLMBar, PandaLM), and prompts of texts",
        "seakeep prepare --input train.txt --layout delimited --columns text,labels --drop labels=surprise --output train.jsonl",
    )
    .args([
        flag("input", "PATH", "The file").required(true),
        flag("layout", "NAME", "own: rows as everywhere; delimited: a row a line, columns between separators; llmbar, pandalm: \
              judged pairs of answers, which become prompt, chosen, rejected (and votes)")
            .value_parser(["own", "delimited", "llmbar", "pandalm"])
            .default_value("own"),
        flag("columns", "NAME,...", "delimited: the columns; one called `labels` becomes a list").default_value("text"),
        flag("separator", "TEXT", "delimited: what stands between columns").default_value(";"),
        flag("drop", "KEY=VALUE", "Leaves out rows in which a column has, or holds, this value; may be given several times")
            .action(ArgAction::Append),
        flag("add", "KEY=VALUE", "Gives every row a column, such as a group; may be given several times").action(ArgAction::Append),
        flag("prompt_tokens", "N", "Makes prompts: of each `text` its first N tokens, to the end of the word, every prompt once").value_parser(whole()),
        flag("tokenizer", "PATH", "The model whose tokens prompt_tokens counts"),
        flag("sample", "N", "Draws this many rows").value_parser(whole()),
        flag("seed", "N", "Seed of the draw").value_parser(value_parser!(u64)).default_value("42"),
        flag("output", "PATH", "JSON lines").value_parser(value_parser!(PathBuf)).required(true),
    ])
}

/// Reads, chooses and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| args::texts(matches, name).pop();
    let to = matches.get_one::<PathBuf>("output");
    output::check(to.map(PathBuf::as_path))?;
    let columns: Vec<String> =
        text("columns").unwrap_or_default().split(',').map(|c| c.trim().to_string()).collect();
    let layout = match text("layout").as_deref() {
        Some("delimited") => Layout::Delimited { separator: text("separator").unwrap_or_default(), columns },
        Some("llmbar") => Layout::LlmBar,
        Some("pandalm") => Layout::PandaLm,
        _ => Layout::Own,
    };
    if matches!(&layout, Layout::Delimited { separator, .. } if separator.is_empty()) {
        return Err(Error::Usage("--separator is empty; expected what stands between columns".into()));
    }
    let mut rows = read_foreign(&text("input").unwrap_or_default(), &layout)?;
    if matches!(layout, Layout::Delimited { .. }) {
        rows.iter_mut().filter_map(|row| row.get_mut("labels")).for_each(|labels| *labels = json!([labels]));
    }
    let read = rows.len();
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
    for (key, value) in assignments(matches, "add")? {
        rows.iter_mut().for_each(|row| drop(row.insert(key.clone(), Value::from(value.as_str()))));
    }
    if let Some(&sample) = matches.get_one::<usize>("sample") {
        let seed = matches.get_one::<u64>("seed").copied().unwrap_or_default();
        rows = drawn(rows, sample, seed)?;
    }
    let lines: String = rows.iter().map(|row| format!("{}\n", json!(row))).collect();
    output::emit(to.map(PathBuf::as_path), &lines)?;
    let name = to.map(|p| p.display().to_string()).unwrap_or_default();
    output::print(&format!("{name}: {} rows of {} read\n", grouped(rows.len()), grouped(read)))
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
            match text.strip_prefix(prompt.as_str()).and_then(|rest| rest.find(char::is_whitespace)) {
                Some(end) => prompt = text[..prompt.len() + end].to_string(),
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
    let visits = Visits { rows: rows.len(), batch: sample, shuffle: true, seed };
    let chosen: BTreeSet<usize> = visits.steps(0, 1).flatten().collect();
    Ok(rows.into_iter().enumerate().filter(|(i, _)| chosen.contains(i)).map(|(_, row)| row).collect())
}
