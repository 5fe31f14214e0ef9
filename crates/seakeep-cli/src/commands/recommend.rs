//! `seakeep recommend`: from interactions to rows, from a model to rankings.

use clap::{ArgMatches, Command};
use seakeep::Result;

use super::{recommend_prepare, recommend_rank, recommend_world};

/// The command line.
pub fn command() -> Command {
    Command::new("recommend")
        .about("Recommendation under shift: rows out of interactions, candidates ranked by a model")
        .after_help(
            "Example:\n  seakeep recommend world --users 500 --items 60 --seed 1 --output interactions.csv\n  \
             seakeep recommend prepare --interactions interactions.csv --shifted east --output_dir data/rec\n  \
             seakeep train --method sdpo --model_name_or_path models/m --dataset_name data/rec/train.jsonl --output_dir runs/rec\n  \
             seakeep recommend rank --model_name_or_path runs/rec --dataset_name familiar=data/rec/test.jsonl \
             shifted=data/rec/test_shifted.jsonl",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([recommend_prepare::command(), recommend_rank::command(), recommend_world::command()])
}

/// Runs the one that was asked for.
pub fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("prepare", matches)) => recommend_prepare::run(matches),
        Some(("rank", matches)) => recommend_rank::run(matches),
        Some(("world", matches)) => recommend_world::run(matches),
        other => unreachable!("clap lets no other command through: {other:?}"),
    }
}
