//! `seakeep report`: policy records to one page and a table.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use seakeep::data::read::data_files;
use seakeep::policy_record::PolicyRecord;
use seakeep::report::{self, PolicyOptions};
use seakeep::stats::Bootstrap;
use seakeep::{Error, Result};
use serde_json::Value;

use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        args::spelled(name).value_name(value).help(help)
    };
    args::command(
        "report",
        "One self-contained HTML page, and a table here, from the records of many policies",
        "seakeep report --records runs/*/policy.json --data_card data/emotion/card.json --output report.html",
    )
    .args([
        Arg::new("records")
            .long("records")
            .value_name("PATH")
            .num_args(1..)
            .action(ArgAction::Append)
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("Records of `seakeep eval --policy_record`, or a quoted pattern; those with the same label are seeds of one method"),
        text("output", "FILE", "The page").required(true).value_parser(value_parser!(PathBuf)),
        text("data_card", "FILE", "The card.json of `seakeep pairs`, to show").value_parser(value_parser!(PathBuf)),
        text("title", "TEXT", "The page's title"),
        text("question", "TEXT", "The question that the evaluation was made to answer"),
        text("baseline", "LABEL", "The label that others are compared with [default: the first of method dpo]"),
        text("resamples", "N", "Resamples of the bootstrap").default_value("1000").value_parser(value_parser!(usize)),
        text("seed", "N", "Seed of the bootstrap").default_value("0").value_parser(value_parser!(u64)),
    ])
}

/// Reads, computes, writes the page, prints the table.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let path = |name: &str| matches.get_one::<PathBuf>(name);
    let to = path("output").expect("clap requires it");
    let resamples = matches.get_one::<usize>("resamples").copied().unwrap_or_default();
    if !(100..=100_000).contains(&resamples) {
        return Err(Error::Usage(format!("--resamples is {resamples}; expected 100 to 100000")));
    }
    let read = |file: PathBuf| Ok((file.clone(), PolicyRecord::read(&file)?));
    let mut files = Vec::new();
    for given in matches.get_many::<PathBuf>("records").into_iter().flatten() {
        match given.to_str().filter(|text| text.contains('*')) {
            // A recipe has no shell.
            Some(pattern) => files.extend(data_files(pattern)?),
            None => files.push(given.clone()),
        }
    }
    let inputs = files.iter().map(|file| ("records", file.to_string_lossy()));
    let inputs: Vec<_> =
        inputs.chain(path("data_card").map(|file| ("data_card", file.to_string_lossy()))).collect();
    let inputs: Vec<(&str, &str)> = inputs.iter().map(|(flag, file)| (*flag, &**file)).collect();
    output::check(&[("output", Some(to))], &inputs)?;
    let records = files.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let word = |name: &str| args::texts(matches, name).pop();
    let options = PolicyOptions {
        title: word("title"),
        question: word("question"),
        baseline: word("baseline"),
        card: path("data_card").map(|file| json(file)).transpose()?,
        bootstrap: Bootstrap {
            resamples,
            seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
            ..Bootstrap::default()
        },
    };
    let report = report::of_policies(&records, &options)?;
    output::emit(Some(to), &report::render(&report))?;
    output::print(&format!("{}\nThe page: {}\n", report::table(&report).trim_end(), to.display()))
}

fn json(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::format(file, format!("not JSON: {e}; expected a data card")))
}
