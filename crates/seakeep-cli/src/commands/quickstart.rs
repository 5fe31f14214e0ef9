//! `seakeep quickstart`: robust alignment on a small world with a known truth, from nothing.

use std::path::PathBuf;

use clap::{ArgMatches, Command, value_parser};
use seakeep::Result;
use seakeep::quickstart::{self, QuickstartOptions};
use seakeep::report;

use crate::config::Settings;
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "quickstart",
        "See it work: tune and judge a tiny model under shifting preferences (minutes, no download)",
        "seakeep quickstart --seeds 5 --output_dir quickstart-5",
    );
    // All of it has defaults.
    let command = command.arg_required_else_help(false);
    args::keyed(command, &["num_threads"]).args([
        args::spelled("output_dir")
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .default_value("quickstart")
            .help("Where data, models, runs, eval.json and report.html go; an earlier quickstart there is replaced"),
        args::spelled("seed")
            .value_name("N")
            .value_parser(value_parser!(u64))
            .default_value("0")
            .help("Seed of the world, its texts and the model"),
        args::spelled("seeds")
            .value_name("N")
            .value_parser(value_parser!(u64).range(1..=100))
            .default_value("3")
            .help("Runs of each method, each with training pairs of its own"),
    ])
}

/// Runs it and prints the table.
pub fn run(matches: &ArgMatches) -> Result<()> {
    super::set_threads(&Settings::read(matches)?)?;
    let output_dir = matches.get_one::<PathBuf>("output_dir").cloned().unwrap_or_default();
    let number = |name: &str| matches.get_one::<u64>(name).copied().unwrap_or_default();
    let options = QuickstartOptions {
        output_dir: output_dir.clone(),
        seed: number("seed"),
        seeds: number("seeds") as usize,
        command_line: std::env::args().collect::<Vec<_>>().join(" "),
    };
    let record = quickstart::run(&options, &mut *progress::on_stderr())?;
    let report = output_dir.join("report.html");
    output::print(&format!(
        "{}\nThe curves: {}\n",
        report::table(&report::of_eval(&record)).trim_end(),
        report.display()
    ))
}
