//! `seakeep pairs`: scored completions to preference data.

use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use seakeep::formats::{AtomicDir, write_atomic};
use seakeep::preferences::{Card, Form, Labels, PairOptions, Spread, make_pairs, read_completions};
use seakeep::{Error, Result};
use serde_json::Value;

use super::grouped;
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, parser: ValueParser, help: &'static str| {
        args::spelled(name).value_name(value).value_parser(parser).help(help)
    };
    let choice = |words: &'static [&'static str]| ValueParser::from(words.to_vec());
    let (real, whole) = (ValueParser::from(value_parser!(f64)), ValueParser::from(value_parser!(usize)));
    args::command(
        "pairs",
        "Make preference data of scored completions: mixtures of objectives, Bradley-Terry labels, filters, a data card",
        "seakeep pairs --input scored.jsonl --weights anger=0.1,fear=0.9 --test_share 0.1 --output_dir data/emotion",
    )
    .args([
        flag("input", "PATH", ValueParser::string(), "Rows with `prompt`, `completion` and `scores` ({\"objective\": \
              number, ...}): a file, directory or quoted pattern, .jsonl, .json (also .gz) or .parquet")
            .required(true),
        flag("weights", "NAME=X,...", ValueParser::string(), "Objectives and their weights in the mixture; with two, \
              weights of alpha and 1 - alpha are the papers' mixture at alpha")
            .required(true),
        flag("mixture", "convex|geometric", choice(&["convex", "geometric"]), "Weighted sum, or weighted product of \
              scores that are not negative").default_value("convex"),
        flag("labels", "NAME", choice(&["bradley_terry", "higher", "best_worst"]), "bradley_terry: drawn pairs, won \
              with probability sigmoid(scale times the difference of rewards); higher: drawn pairs, won by the higher \
              reward; best_worst: of each prompt its best completion against its worst").default_value("bradley_terry"),
        flag("scale", "X", real.clone(), "Bradley-Terry's factor on the difference").default_value("1"),
        flag("pairs_per_prompt", "N", whole, "Pairs drawn of each prompt; 0: all there are").default_value("1"),
        flag("min_margin", "X", real.clone(), "Pairs whose rewards differ by less are left out").default_value("0"),
        flag("max_margin", "X", real.clone(), "Pairs whose rewards differ by more are left out"),
        flag("flip_rate", "X", real.clone(), "Share of the labels that are turned in the end (column `flipped`)")
            .default_value("0"),
        flag("test_share", "X", real, "Share of the prompts whose pairs go to test.jsonl").default_value("0"),
        flag("keep", "NAME,...", ValueParser::string(), "Columns that pairs keep, such as a group")
            .action(ArgAction::Append),
        flag("seed", "N", value_parser!(u64).into(), "Seed; what becomes of a prompt depends on it, the prompt and the order of its completions alone")
            .default_value("42"),
        output_dir(),
    ])
}

fn output_dir() -> Arg {
    args::spelled("output_dir")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .required(true)
        .help("A new directory for train.jsonl, test.jsonl (with test_share) and card.json")
}

/// Reads, makes and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let options = options(matches)?;
    let to = matches.get_one::<PathBuf>("output_dir").expect("clap requires it");
    if std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Usage(format!(
            "output_dir {} exists and is not empty; choose another",
            to.display()
        )));
    }
    let input = args::texts(matches, "input").pop().unwrap_or_default();
    let made = make_pairs(&read_completions(&input)?, &options)?;
    let directory = AtomicDir::new(to)?;
    let write = |name: &str, rows: &[Value]| {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        write_atomic(directory.path().join(name), text.as_bytes())
    };
    write("train.jsonl", &made.train)?;
    if options.test_share > 0.0 {
        write("test.jsonl", &made.test)?;
    }
    let card = serde_json::to_string_pretty(&made.card).map_err(|e| Error::format(to, e.to_string()))?;
    write_atomic(directory.path().join("card.json"), card.as_bytes())?;
    directory.commit()?;
    output::print(&told(to, &made.card))
}

fn options(matches: &ArgMatches) -> Result<PairOptions> {
    let real = |name: &str| matches.get_one::<f64>(name).copied();
    let word = |name: &str| args::texts(matches, name).pop().unwrap_or_default();
    let within = |name: &str, range: std::ops::RangeInclusive<f64>| {
        let value = real(name).unwrap_or_default();
        let expected = format!("expected a number from {} to {}", range.start(), range.end());
        match range.contains(&value) {
            true => Ok(value),
            false => Err(Error::Usage(format!("--{name} is {value}; {expected}"))),
        }
    };
    let keep = args::texts(matches, "keep");
    let pairs = matches.get_one::<usize>("pairs_per_prompt").copied().unwrap_or(1);
    if word("labels") == "best_worst"
        && matches.value_source("pairs_per_prompt") != Some(ValueSource::DefaultValue)
    {
        return Err(Error::Usage(
            "--pairs_per_prompt without effect: --labels best_worst makes one pair of each prompt".into(),
        ));
    }
    let options = PairOptions {
        weights: weights(&word("weights"))?,
        form: if word("mixture") == "geometric" { Form::Geometric } else { Form::Convex },
        labels: match word("labels").as_str() {
            "higher" => Labels::Higher,
            "best_worst" => Labels::BestWorst,
            _ => Labels::BradleyTerry,
        },
        scale: within("scale", 0.0..=f64::MAX)?,
        pairs_per_prompt: (pairs > 0).then_some(pairs),
        min_margin: within("min_margin", 0.0..=f64::MAX)?,
        max_margin: real("max_margin").unwrap_or(f64::INFINITY),
        flip_rate: within("flip_rate", 0.0..=1.0)?,
        test_share: within("test_share", 0.0..=1.0)?,
        keep: keep.iter().flat_map(|names| names.split(',')).map(|name| name.trim().to_string()).collect(),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
    };
    if options.max_margin < options.min_margin || options.max_margin.is_nan() {
        return Err(Error::Usage(format!(
            "--max_margin is {}; expected at least --min_margin, {}",
            options.max_margin, options.min_margin
        )));
    }
    Ok(options)
}

/// `name=x,name=x`.
fn weights(text: &str) -> Result<Vec<(String, f64)>> {
    let wrong = |part: &str| {
        Error::Usage(format!(
            "--weights: `{part}`; expected objectives and numbers, such as anger=0.1,fear=0.9"
        ))
    };
    let mut weights: Vec<(String, f64)> = Vec::new();
    for part in text.split(',') {
        let (name, weight) = part.split_once('=').ok_or_else(|| wrong(part))?;
        let weight = weight.trim().parse().ok().filter(|w: &f64| w.is_finite()).ok_or_else(|| wrong(part))?;
        if weights.iter().any(|(known, _)| known == name.trim()) {
            return Err(Error::Usage(format!("--weights names `{}` twice", name.trim())));
        }
        weights.push((name.trim().to_string(), weight));
    }
    Ok(weights)
}

/// The card, to read.
fn told(to: &Path, card: &Card) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let spread =
        |s: &Spread| format!("mean {:.3}, 10% {:.3}, median {:.3}, 90% {:.3}", s.mean, s.p10, s.p50, s.p90);
    let mut text = format!(
        "{}: {} training and {} test pairs\n",
        to.display(),
        grouped(card.train_pairs),
        grouped(card.test_pairs)
    );
    let mut line = |name: &str, what: String| text += &format!("  {name:<22} {what}\n");
    line("completions", format!("{} of {} prompts", grouped(card.completions), grouped(card.prompts)));
    let left = [
        (card.lone_prompts, "prompts with one completion only"),
        (card.duplicates, "completions a second time"),
        (card.empty, "completions that say nothing"),
        (card.filtered, "pairs outside the margins"),
    ];
    for (count, what) in left.into_iter().filter(|(count, _)| *count > 0) {
        line("left out", format!("{} {what}", grouped(count)));
    }
    let share = |of: Option<f64>| of.map_or("none that could".to_string(), percent);
    line(
        "labels",
        format!("{} go to the higher reward; {} turned", share(card.agreement), grouped(card.flipped)),
    );
    line("margin", spread(&card.margins));
    line("chosen, characters", spread(&card.chosen_characters));
    line("rejected, characters", spread(&card.rejected_characters));
    for (name, scores) in &card.scores {
        let agreement = card.objective_agreement.get(name).copied().flatten();
        line(name, format!("{}; labels agree in {}", spread(scores), share(agreement)));
    }
    for (a, row) in &card.correlations {
        for (b, correlation) in row.iter().filter(|(b, _)| a < *b) {
            if let Some(correlation) = correlation {
                line(&format!("{a}, {b}"), format!("correlation {correlation:.3}"));
            }
        }
    }
    text
}
