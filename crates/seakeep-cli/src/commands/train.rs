//! `seakeep train`: tune a model on preference pairs.

use clap::{ArgMatches, Command};
use seakeep::Result;

use crate::config::{Settings, plan};
use crate::{args, progress};

/// The command line.
pub fn command() -> Command {
    args::all_keyed(args::command(
        "train",
        "Tune a model on preference pairs with DPO, KLDPO or WDPO",
        "seakeep train --config recipes/hh-smollm2.toml --method kldpo --output_dir runs/hh-kldpo",
    ))
}

/// Plans the run, then runs it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let options = plan::plan(&settings)?;
    super::set_threads(&settings)?;
    let _ = (options, progress::on_stderr());
    todo!()
}
