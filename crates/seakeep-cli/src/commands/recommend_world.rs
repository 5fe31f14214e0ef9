//! `seakeep recommend world`: interactions with a known cause and a known confounder.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use seakeep::Result;
use seakeep::recommend::{WorldOptions, interactions_of_world};

use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let whole = |name: &'static str, default: &'static str, help: &'static str| -> Arg {
        args::spelled(name)
            .value_name("N")
            .value_parser(value_parser!(usize))
            .default_value(default)
            .help(help)
    };
    let real = |name: &'static str, default: &'static str, help: &'static str| -> Arg {
        args::spelled(name).value_name("X").value_parser(value_parser!(f64)).default_value(default).help(help)
    };
    args::command(
        "world",
        "Make interactions of a small world: users choose by taste everywhere, and by popularity in the environments north \
         and south but not in east",
        "seakeep recommend world --users 500 --items 60 --seed 1 --output interactions.csv",
    )
    .args([
        whole("users", "500", "Users"),
        whole("items", "60", "Items; 8 to 480"),
        whole("interactions", "12", "Choices of a user on average (two thirds to four thirds of it)"),
        real("taste", "2", "How much taste, which a title's genre meets, decides"),
        real("confounding", "2", "How much popularity decides in north; in south half of it, in east none")
            .allow_negative_numbers(true),
        real("shifted_share", "0.25", "Share of the users in east"),
        args::spelled("seed").value_name("N").value_parser(value_parser!(u64)).default_value("42").help("Seed"),
        args::spelled("output")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("CSV: user,item,timestamp,group. Default: standard output"),
    ])
}

/// Makes and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let whole = |name: &str| matches.get_one::<usize>(name).copied().unwrap_or_default();
    let real = |name: &str| matches.get_one::<f64>(name).copied().unwrap_or_default();
    let to = matches.get_one::<PathBuf>("output").map(PathBuf::as_path);
    output::check(&[("output", to)], &[])?;
    let rows = interactions_of_world(&WorldOptions {
        users: whole("users"),
        items: whole("items"),
        interactions: whole("interactions"),
        taste: real("taste"),
        confounding: real("confounding"),
        shifted_share: real("shifted_share"),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
    })?;
    // Titles of this world are words: nothing to quote.
    let lines = rows.iter().map(|r| format!("{},{},{},{}\n", r.user, r.item, r.timestamp, r.group));
    output::emit(to, &format!("user,item,timestamp,group\n{}", lines.collect::<String>()))
}
