//! `seakeep merge`: an adapter and the model below it become one model.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use seakeep::formats::{AtomicDir, ModelSource};
use seakeep::model::Model;
use seakeep::{Error, Result, checkpoint};

use super::{grouped, train};
use crate::config::{Settings, plan};
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "merge",
        "Merge an adapter into the model below it, as a model of its own",
        "seakeep merge --model_name_or_path runs/hh-lora --output_dir models/hh-lora",
    );
    args::keyed(command, &["model_name_or_path", "output_dir", "save_dtype", "num_threads"])
        .mut_arg("model_name_or_path", |arg| {
            arg.help("The adapter: a directory with adapter_config.json and adapter_model.safetensors, Seakeep's or PEFT's")
        })
        .mut_arg("output_dir", |arg| arg.help("Where the model goes: a directory that does not exist, or is empty"))
}

/// Writes it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let path: PathBuf = settings.required("model_name_or_path")?.into();
    let directory: PathBuf = settings.required("output_dir")?.into();
    if !is_free(&directory) {
        return Err(Error::Usage(format!(
            "output_dir {} holds files; choose a directory that does not exist, or is empty",
            directory.display()
        )));
    }
    super::set_threads(&settings)?;
    let source = ModelSource::open(&path)?;
    let Some(adapter) = &source.adapter else {
        return Err(Error::Usage(format!(
            "{} is a whole model: there is nothing to merge; expected a directory with adapter_config.json",
            path.display()
        )));
    };
    train::check_places(&[&path], &directory)?;
    let model = Model::load(&source)?;
    let to = AtomicDir::new(&directory)?;
    checkpoint::save_model(to.path(), &model, &source, plan::save_dtype(&settings))?;
    to.replace()?;
    let (rank, parameters) = (adapter.config.r, grouped(model.map.count()));
    output::print(&format!(
        "{}: {parameters} parameters, an adapter of rank {rank} merged\n",
        directory.display()
    ))
}

/// Whether there is nothing in a directory that would be replaced.
fn is_free(directory: &Path) -> bool {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => !directory.exists(),
    }
}
