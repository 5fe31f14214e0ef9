//! `seakeep train`: tune a model on preference pairs. And how any training run is started and closed.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use seakeep::checkpoint;
use seakeep::formats::AdapterFiles;
use seakeep::train::{TrainOptions, TrainSummary};
use seakeep::{Error, Result};

use super::dry_run;
use crate::config::{Settings, plan};
use crate::{args, output, progress};

/// What the closing line says of the last logged step, as far as it was logged.
const TOLD: [&str; 4] = ["loss", "rewards/accuracies", "rewards/margins", "grad_norm"];

/// The command line.
pub fn command() -> Command {
    args::all_keyed(args::command(
        "train",
        "Tune a model on preference pairs, with DPO or one of its robust kin",
        "seakeep train --config recipes/hh-smollm2.toml --method kldpo --output_dir runs/hh-kldpo",
    ))
    .arg(dry_run::flag())
}

/// Plans the run, then runs it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    execute(matches, &settings, plan::plan(&settings)?)
}

/// Runs a planned training run, or says what it would cost.
pub fn execute(matches: &ArgMatches, settings: &Settings, options: TrainOptions) -> Result<()> {
    if dry_run::is_asked(matches) {
        super::set_threads(settings)?;
        return dry_run::run(TrainOptions { dry_run: true, ..options });
    }
    let options = &options;
    let models = [Some(&options.model_name_or_path), options.ref_model_name_or_path.as_ref()];
    check_places(&models.into_iter().flatten().collect::<Vec<_>>(), &options.output_dir)?;
    super::set_threads(settings)?;
    let summary = seakeep::train::run(options, &mut *progress::on_stderr())?;
    output::print(&closing(options, &summary))
}

/// The trained model must not be written over one that it is read from, nor may one be removed with an earlier run's checkpoints.
pub(super) fn check_places(models: &[&PathBuf], output_dir: &Path) -> Result<()> {
    // An adapter is read together with the model below it.
    let below =
        |path: &Path| AdapterFiles::are_in(path).then(|| AdapterFiles::open(path)?.base()).transpose();
    let mut all: Vec<PathBuf> = Vec::new();
    for path in models {
        all.push(path.to_path_buf());
        all.extend(below(path)?);
    }
    let checkpoints = checkpoint::list(output_dir);
    for model in all.iter().filter(|path| path.exists()) {
        let what = if output::is_same_place(model, output_dir) {
            format!("is the model {} itself, which the trained model would replace", model.display())
        } else if checkpoints.iter().any(|(_, path)| output::is_same_place(model, path)) {
            format!(
                "holds the model {} among its checkpoints, which this run may replace or remove",
                model.display()
            )
        } else {
            continue;
        };
        return Err(Error::Usage(format!(
            "output_dir {} {what}; choose another output_dir",
            output_dir.display()
        )));
    }
    Ok(())
}

fn closing(options: &TrainOptions, summary: &TrainSummary) -> String {
    let told: String = TOLD
        .iter()
        .filter_map(|name| summary.metrics.iter().find(|(known, _)| known == name))
        .map(|(name, value)| format!(", {name} {value:.4}"))
        .collect();
    let TrainSummary { steps, seconds, speed, .. } = summary;
    format!("{}: {steps} steps, {seconds:.1} s, {speed}{told}\n", options.output_dir.display())
}
