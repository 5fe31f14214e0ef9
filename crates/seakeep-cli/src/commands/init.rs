//! `seakeep init`: a model with random weights.

use clap::{Arg, ArgMatches, Command};
use seakeep::formats::{AtomicDir, Tokenizer};
use seakeep::model::Model;
use seakeep::{Error, Result};
use serde_json::Value;

use super::grouped;
use crate::config::{Settings, plan};
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "init",
        "Make a model with random weights from a config.json",
        "seakeep init --config_json config.json --tokenizer models/m --seed 1 --output_dir models/random",
    );
    let path =
        |name: &'static str, help: &'static str| -> Arg { args::spelled(name).value_name("PATH").help(help) };
    args::keyed(command, &["output_dir", "seed", "save_dtype", "num_threads"])
        .mut_arg("seed", |arg| arg.help("Seed of the weights [default: 42]"))
        .mut_arg("output_dir", |arg| arg.help("Where the model goes: a new directory"))
        .arg(path("config_json", "The architecture: a Hugging Face config.json").required(true))
        .arg(path("tokenizer", "A directory whose tokenizer is copied beside the model"))
}

/// Makes it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    super::set_threads(&settings)?;
    let target = settings.required("output_dir")?;
    let config_path = args::texts(matches, "config_json").pop().unwrap_or_default();
    let bytes = std::fs::read(&config_path).map_err(Error::io("read", &config_path))?;
    let config: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::format(&config_path, format!("not JSON: {e}")))?;
    let tokenizer =
        args::texts(matches, "tokenizer").pop().map(|path| super::logps::tokenizer(&path)).transpose()?;
    let model = Model::random(&config, settings.seed("seed"))?;
    if let Some(tokenizer) = &tokenizer {
        check_vocabulary(tokenizer, &model)?;
    }
    let directory = AtomicDir::new(&target)?;
    model.save(directory.path(), &config, plan::save_dtype(&settings))?;
    if let Some(tokenizer) = &tokenizer {
        tokenizer.save(directory.path())?;
    }
    directory.commit()?;
    output::print(&format!("{target}: {} parameters\n", grouped(model.map.count())))
}

/// A token without an embedding would only be found in the middle of a run.
fn check_vocabulary(tokenizer: &Tokenizer, model: &Model) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocab_size(), model.config.vocab_size);
    if tokens <= rows {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--tokenizer has {tokens} tokens, but `vocab_size` in --config_json is {rows}; expected at least as many"
    )))
}
