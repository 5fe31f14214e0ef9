//! `seakeep inspect`: look before training, and after.

use clap::{ArgMatches, Command};
use seakeep::Result;

use super::{inspect_checkpoint, inspect_data, inspect_machine, inspect_model};

/// The command line.
pub fn command() -> Command {
    Command::new("inspect")
        .about("Show what a model, a data file or a checkpoint holds, or what the machine can do")
        .after_help("Example:\n  seakeep inspect data --model_name_or_path models/m --dataset_name pairs.jsonl --row 3")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([
            inspect_model::command(),
            inspect_data::command(),
            inspect_checkpoint::command(),
            inspect_machine::command(),
        ])
}

/// Runs the one that was asked for.
pub fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("model", matches)) => inspect_model::run(matches),
        Some(("data", matches)) => inspect_data::run(matches),
        Some(("checkpoint", matches)) => inspect_checkpoint::run(matches),
        Some(("machine", matches)) => inspect_machine::run(matches),
        other => unreachable!("clap lets no other command through: {other:?}"),
    }
}
