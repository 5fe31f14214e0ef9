//! `seakeep recommend prepare`: interactions to rows for `sft`, `train` and `recommend rank`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use seakeep::formats::{AtomicDir, write_atomic};
use seakeep::recommend::{
    Card, Columns, DEFAULT_TEMPLATE, Part, PrepareOptions, Shift, Sources, TableFormat, Template, prepare,
    read_interactions,
};
use seakeep::{Error, Result};

use super::grouped;
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let flag = |name: &'static str, value: &'static str, help: &'static str| {
        args::spelled(name).value_name(value).value_parser(ValueParser::string()).help(help)
    };
    let whole = |name: &'static str, help: &'static str| -> Arg {
        args::spelled(name).value_name("N").value_parser(value_parser!(usize)).help(help)
    };
    let real = |name: &'static str, help: &'static str| -> Arg {
        args::spelled(name).value_name("X").value_parser(value_parser!(f64)).help(help)
    };
    args::command(
        "prepare",
        "Make prompts of histories, completions of the items chosen next, rejected ones of items drawn at random; users \
         familiar and shifted",
        "seakeep recommend prepare --interactions ml-1m/ratings.dat --separator :: --columns user,item,rating,timestamp \
         --items ml-1m/movies.dat --items_columns item,title,genres --min_rating 4 --shifted_share 0.2 --output_dir data/ml",
    )
    .args([
        flag("interactions", "FILE", "One row for each choice: user, item and perhaps timestamp, rating, group; .csv, .tsv, \
              .jsonl, .json, .parquet, or any text with --separator")
            .required(true),
        flag("items", "FILE", "Titles of items: item, title. Without it an item is its own title"),
        flag("separator", "TEXT", "What stands between columns of text, such as `::` or `\\t` [default: by the file's name]"),
        flag("columns", "NAME,...", "Names of the interactions' columns [default: the file's first line]"),
        flag("items_columns", "NAME,...", "Names of the items' columns [default: the file's first line]"),
        flag("user_column", "NAME", "Who [default: user]"),
        flag("item_column", "NAME", "What, in both files [default: item]"),
        flag("title_column", "NAME", "What it is called, in the items' file [default: title]"),
        flag("timestamp_column", "NAME", "When: a number, or a date (2024-05-01, 2024-05-01T10:30:00+02:00) [default: timestamp if there, \
              else the order of the file]"),
        flag("rating_column", "NAME", "How much it was liked [default: rating]"),
        flag("group_column", "NAME", "The user's environment, which rows keep as `group` [default: group if there]")
            .alias("shift_column").alias("shift-column"),
        real("min_rating", "Leaves out choices that are rated lower"),
        whole("min_interactions", "Leaves out users with fewer choices; at least 3").default_value("5"),
        whole("history", "Most items of a history; the latest are kept").default_value("10"),
        whole("candidates", "Candidates of each choice, the chosen one among them").default_value("20"),
        whole("negatives", "Rejected items of each choice, out of the candidates; several for --method sdpo")
            .default_value("1"),
        whole("positions", "Training rows of each user; the latest are kept [default: all]"),
        flag("shifted", "NAME,...", "Holds out the users of these groups, for test_shifted.jsonl").action(ArgAction::Append),
        real("shifted_share", "Holds out this share of the users: those whose choices are the least popular")
            .conflicts_with("shifted"),
        flag("template", "TEXT", "The prompt, with {history} and perhaps {candidates}").default_value(DEFAULT_TEMPLATE),
        flag("list_separator", "TEXT", "What stands between titles in the prompt").default_value("; "),
        args::spelled("conversational").action(ArgAction::SetTrue).help("Messages in place of plain text, for chat models"),
        args::spelled("seed").value_name("N").value_parser(value_parser!(u64)).default_value("42")
            .help("Seed; what is drawn for a choice depends on it, the user and the position alone"),
        args::spelled("output_dir").value_name("PATH").value_parser(value_parser!(PathBuf)).required(true)
            .help("A new directory for sft.jsonl, train.jsonl, validation.jsonl, test.jsonl, test_shifted.jsonl and card.json"),
    ])
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
    let data = read_interactions(&sources(matches))?;
    let directory = AtomicDir::new(to)?;
    let mut files: BTreeMap<Part, BufWriter<File>> = BTreeMap::new();
    for part in Part::ALL {
        // Users held out have a file only where there are some.
        if part != Part::TestShifted || options.shift != Shift::None {
            let path = directory.path().join(part.file());
            let file = File::create(&path).map_err(Error::io("create", &path))?;
            files.insert(part, BufWriter::new(file));
        }
    }
    let card = prepare(&data, &options, &mut |part, row| match files.get_mut(&part) {
        Some(file) => writeln!(file, "{row}").map_err(Error::io("write", to.join(part.file()))),
        None => Ok(()),
    })?;
    for (part, mut file) in files {
        file.flush().map_err(Error::io("write", to.join(part.file())))?;
    }
    let text = serde_json::to_string_pretty(&card).map_err(|e| Error::format(to, e.to_string()))?;
    write_atomic(directory.path().join("card.json"), text.as_bytes())?;
    directory.commit()?;
    output::print(&told(to, &card))
}

fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    args::texts(matches, name).pop()
}

/// Names between commas, over all times the flag was given.
fn names(matches: &ArgMatches, name: &str) -> Option<Vec<String>> {
    let given = args::texts(matches, name);
    let names = given.iter().flat_map(|list| list.split(',')).map(|name| name.trim().to_string());
    (!given.is_empty()).then(|| names.collect())
}

fn sources(matches: &ArgMatches) -> Sources {
    let text = |name: &str| text(matches, name);
    // A tab is hard to type.
    let separator = text("separator").map(|s| s.replace("\\t", "\t"));
    let format =
        |columns: &str| TableFormat { separator: separator.clone(), columns: names(matches, columns) };
    Sources {
        interactions: text("interactions").unwrap_or_default(),
        items: text("items"),
        format: format("columns"),
        items_format: format("items_columns"),
        columns: Columns {
            user: text("user_column"),
            item: text("item_column"),
            timestamp: text("timestamp_column"),
            rating: text("rating_column"),
            group: text("group_column"),
            title: text("title_column"),
        },
        min_rating: matches.get_one::<f64>("min_rating").copied(),
    }
}

fn options(matches: &ArgMatches) -> Result<PrepareOptions> {
    let whole = |name: &str| matches.get_one::<usize>(name).copied();
    let text = |name: &str| text(matches, name).unwrap_or_default();
    let shift = match (names(matches, "shifted"), matches.get_one::<f64>("shifted_share")) {
        (Some(groups), _) => Shift::Groups(groups),
        (None, Some(&share)) => Shift::Unpopular(share),
        (None, None) => Shift::None,
    };
    Ok(PrepareOptions {
        history: whole("history").unwrap_or_default(),
        candidates: whole("candidates").unwrap_or_default(),
        negatives: whole("negatives").unwrap_or_default(),
        min_interactions: whole("min_interactions").unwrap_or_default(),
        positions: whole("positions"),
        shift,
        template: Template::new(
            &text("template"),
            &text("list_separator"),
            matches.get_flag("conversational"),
        )?,
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
    })
}

/// The card, to read.
fn told(to: &Path, card: &Card) -> String {
    let mut text = format!(
        "{}: {} users, {} items, {} interactions\n",
        to.display(),
        grouped(card.users),
        grouped(card.items),
        grouped(card.interactions)
    );
    let mut line = |name: &str, what: String| text += &format!("  {name:<18} {what}\n");
    let left = [
        (card.short_users, "users with too few interactions"),
        (card.low_rated, "interactions rated too low"),
        (card.merged_ids, "ids that share a title with another (counted as one item)"),
    ];
    for (count, what) in left.into_iter().filter(|(count, _)| *count > 0) {
        line("left out", format!("{} {what}", grouped(count)));
    }
    line(
        "popularity",
        format!("{:.1}% of choices are of a tenth of the items", 100.0 * card.top_tenth_share),
    );
    for part in Part::ALL {
        let rows = card.rows.get(part.file()).copied().unwrap_or_default();
        if rows > 0 || part != Part::TestShifted {
            line(part.file(), format!("{} rows", grouped(rows)));
        }
    }
    for (group, [familiar, shifted]) in &card.groups {
        line(&format!("group {group}"), format!("{familiar} familiar and {shifted} shifted users"));
    }
    text
}
