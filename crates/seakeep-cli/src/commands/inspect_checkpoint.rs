//! `seakeep inspect checkpoint`: how far a run had come, and with which settings.

use std::path::Path;

use clap::{Arg, ArgMatches, Command};
use seakeep::checkpoint::{self, TrainerState};
use seakeep::{Error, Result};

use super::grouped;
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    args::command(
        "checkpoint",
        "Show a checkpoint's step, settings and files; of a run's directory, its checkpoints",
        "seakeep inspect checkpoint runs/hh-smollm2/checkpoint-50",
    )
    .arg(
        Arg::new("directory")
            .value_name("DIR")
            .required(true)
            .help("A checkpoint, or an output_dir that holds some"),
    )
}

/// Prints it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let name = args::texts(matches, "directory").pop().unwrap_or_default();
    let directory = Path::new(&name);
    if !directory.is_dir() {
        return Err(Error::format(directory, "no such directory"));
    }
    let found = checkpoint::list(directory);
    if found.is_empty() {
        let state = checkpoint::load_state(directory)?;
        output::print(&format!("{}\nfiles\n{}", describe(&state), files(directory)?))?;
        return checkpoint::check_files(directory, &state);
    }
    let mut text = String::new();
    for (_, path) in found {
        let state = checkpoint::load_state(&path)?;
        text += &format!(
            "{}  step {} of {}, epoch {:.2}, {} tokens\n",
            path.display(),
            state.step,
            state.total_steps,
            state.epoch,
            grouped(state.num_tokens)
        );
    }
    output::print(&text)
}

fn describe(state: &TrainerState) -> String {
    let mut text = format!(
        "step               {} of {}\nepoch              {:.4}\ntokens             {}\n\nsettings\n",
        state.step,
        state.total_steps,
        state.epoch,
        grouped(state.num_tokens)
    );
    for (key, value) in &state.settings {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        text += &format!("  {key:<28} {shown}\n");
    }
    text
}

fn files(directory: &Path) -> Result<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let size = entry.metadata().map_err(Error::io("read", entry.path()))?.len();
        lines.push(format!(
            "  {:<28} {:>16} bytes\n",
            entry.file_name().to_string_lossy(),
            grouped(size as usize)
        ));
    }
    lines.sort();
    Ok(lines.concat())
}
