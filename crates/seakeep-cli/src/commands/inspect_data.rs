//! `seakeep inspect data`: what training would see of a data set, row by row if asked.

use std::io::IsTerminal;

use clap::{ArgMatches, Command};
use rayon::prelude::*;
use seakeep::data::{
    Branch, Pair, Quantiles, TokenizeOptions, TokenizeReport, TokenizedPair, read_pairs, tokenize_pairs,
};
use seakeep::formats::Tokenizer;
use seakeep::train::data::select;
use seakeep::{Error, Result};

use super::grouped;
use crate::config::{Settings, plan};
use crate::{args, output};

/// Rows that cannot be used are shown up to this many.
const SHOWN_ERRORS: usize = 5;

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "data",
        "Count rows and tokens, show what is cut or left out, and the exact tokens of a row",
        "seakeep inspect data --model_name_or_path models/m --dataset_name pairs.jsonl --max_length 512 --row 3",
    );
    let keys = [args::DATA_KEYS, &["model_name_or_path", "dataset_train_split"]].concat();
    let command = args::keyed(command, &keys).arg(
        args::spelled("row")
            .value_name("N")
            .value_parser(clap::value_parser!(usize))
            .help("Show the tokens of this row (line of a JSON Lines file, from 1)"),
    );
    args::accepting_the_rest(command)
}

/// Prints the counts, or the row.
///
/// # Errors
/// The first row that training would stop at, after everything is printed.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let spec = settings.required("dataset_name")?;
    let tokenizer = super::logps::tokenizer(&settings.required("model_name_or_path")?)?;
    let options = plan::tokens(&settings);
    let split = settings.required("dataset_train_split")?;
    let mut pairs = select(read_pairs(&spec)?, &spec, &split)?;
    if let Some(&row) = matches.get_one::<usize>("row") {
        pairs.retain(|pair| pair.row == row);
        if pairs.is_empty() {
            return Err(Error::Usage(format!("--row {row}: `{split}` of {spec} has no such row")));
        }
        return show_rows(&pairs, &tokenizer, &options);
    }
    let read = pairs.len();
    let errors = remove_unusable(&mut pairs, &tokenizer, &options)?;
    let (_, report) = tokenize_pairs(&pairs, &tokenizer, &options)?;
    let mut text = summary(&spec, &report, &options);
    if !errors.is_empty() {
        text += &format!("\n{} of {} rows stop training:\n", grouped(errors.len()), grouped(read));
        text += &errors.iter().take(SHOWN_ERRORS).map(|e| format!("  {e}\n")).collect::<String>();
    }
    output::print(&text)?;
    match errors.into_iter().next() {
        Some(first) => Err(first),
        None => Ok(()),
    }
}

/// Takes out the rows that tokenising refuses, and says why.
///
/// # Errors
/// What is wrong with the tokenizer rather than with rows.
fn remove_unusable(
    pairs: &mut Vec<Pair>,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<Vec<Error>> {
    let verdict = |pair: &Pair| tokenize_pairs(std::slice::from_ref(pair), tokenizer, options).err();
    let verdicts: Vec<Option<Error>> = pairs.par_iter().map(verdict).collect();
    let mut usable = verdicts.iter().map(Option::is_none);
    pairs.retain(|_| usable.next().unwrap_or(false));
    let (rows, others): (Vec<Error>, Vec<Error>) =
        verdicts.into_iter().flatten().partition(|error| matches!(error, Error::Row { .. }));
    match others.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(rows),
    }
}

fn summary(spec: &str, report: &TokenizeReport, options: &TokenizeOptions) -> String {
    let limit = options.max_length.map_or("none".to_string(), grouped);
    let tokens = report.prompt_tokens + report.chosen_tokens + report.rejected_tokens;
    let rows = [
        ("data", spec.to_string()),
        ("rows usable", grouped(report.rows)),
        ("rows kept", grouped(report.kept)),
        (
            "left out",
            format!(
                "{} (prompt not a prefix), {} (prompt fills max_length)",
                report.dropped_mismatch, report.dropped_truncated
            ),
        ),
        ("max_length", limit),
        (
            "truncated",
            format!(
                "{} chosen, {} rejected; {} tokens lost",
                report.truncated_chosen,
                report.truncated_rejected,
                grouped(report.truncated_tokens)
            ),
        ),
        (
            "boundary moved",
            format!(
                "{} rows, {} tokens (tokens merge across the prompt's end)",
                report.backed_off, report.backed_off_tokens
            ),
        ),
        (
            "tokens kept",
            format!(
                "{} ({} prompt, {} chosen, {} rejected)",
                grouped(tokens),
                grouped(report.prompt_tokens),
                grouped(report.chosen_tokens),
                grouped(report.rejected_tokens)
            ),
        ),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect();
    text +=
        &format!("\n{:<16} {:>7} {:>7} {:>7} {:>7}\n", "length, tokens", "median", "90%", "99%", "longest");
    for (name, q) in [
        ("prompt", report.prompt_lengths),
        ("chosen", report.chosen_lengths),
        ("rejected", report.rejected_lengths),
    ] {
        let Quantiles { p50, p90, p99, max } = q;
        text += &format!("{name:<16} {p50:>7} {p90:>7} {p99:>7} {max:>7}\n");
    }
    text
}

fn show_rows(pairs: &[Pair], tokenizer: &Tokenizer, options: &TokenizeOptions) -> Result<()> {
    let (tokenized, _) = tokenize_pairs(pairs, tokenizer, options)?;
    if tokenized.is_empty() {
        return output::print(
            "the row is left out under these settings (prompt_mismatch, truncated_completion)\n",
        );
    }
    let colour = std::io::stdout().is_terminal();
    let text: Result<Vec<String>> = tokenized.iter().map(|pair| show(pair, tokenizer, colour)).collect();
    output::print(&text?.join("\n"))
}

/// A part of a pair, and how its tokens are coloured.
#[derive(Clone, Copy)]
struct Role {
    name: &'static str,
    /// ANSI colour.
    colour: &'static str,
}

const PROMPT: Role = Role { name: "prompt", colour: "\x1b[34m" };
const CHOSEN: Role = Role { name: "chosen", colour: "\x1b[32m" };
const REJECTED: Role = Role { name: "rejected", colour: "\x1b[31m" };
const SPECIAL: &str = "\x1b[1;35m";
const PLAIN: &str = "\x1b[0m";

/// Every token of a pair on its own line: position in its sequence, id, role, text.
fn show(pair: &TokenizedPair, tokenizer: &Tokenizer, colour: bool) -> Result<String> {
    let mut text = format!("{}, row {}\n", pair.file.display(), pair.row);
    if pair.backed_off > 0 {
        text += &format!(
            "the completions begin {} tokens before the prompt's end, where tokens merge\n",
            pair.backed_off
        );
    }
    text += &lines(PROMPT, 0, &pair.prompt, tokenizer, colour)?;
    for branch in &pair.branches {
        let role = if branch.role == seakeep::data::Role::Chosen { CHOSEN } else { REJECTED };
        let Branch { completion, prompt_skip, truncated, .. } = branch;
        if *truncated > 0 {
            text += &format!(
                "{}: {truncated} tokens cut, {prompt_skip} of them from the prompt's beginning\n",
                role.name
            );
        }
        text += &lines(role, pair.prompt.len() - prompt_skip, completion, tokenizer, colour)?;
    }
    Ok(text)
}

fn lines(role: Role, first: usize, ids: &[u32], tokenizer: &Tokenizer, colour: bool) -> Result<String> {
    let mut text = String::new();
    for (position, &id) in (first..).zip(ids) {
        let special =
            tokenizer.decode(&[id], true)?.is_empty() && !tokenizer.decode(&[id], false)?.is_empty();
        let mut shown = tokenizer.decode(&[id], false)?;
        // Part of a character: the vocabulary's own spelling says more.
        if shown.is_empty() || shown.contains('\u{fffd}') {
            shown = tokenizer.token(id).unwrap_or_default();
        }
        let mark = if special { "special" } else { "" };
        let line = format!("{position:>6} {id:>7}  {:<8} {mark:<7} {shown:?}", role.name);
        text += &match (colour, special) {
            (false, _) => line,
            (true, false) => format!("{}{line}{PLAIN}", role.colour),
            (true, true) => format!("{SPECIAL}{line}{PLAIN}"),
        };
        text.push('\n');
    }
    Ok(text)
}
