//! `seakeep sft`: fine-tune a model on texts.

use clap::{ArgMatches, Command};
use seakeep::Result;

use super::{dry_run, train};
use crate::args;
use crate::config::Settings;
use crate::config::plan::{self, SFT_DEFAULTS, SFT_WORDS};

const DATA: &str = "Texts on this machine: a .jsonl, .json, .txt (also .gz of these) or .parquet file, a directory, or a quoted \
                    glob pattern. Rows have `text`, or `messages`, or `prompt` and `completion` (strings or message lists). \
                    What is learnt of a string ends with the tokenizer's EOS token; a line of a .txt file is a text.";

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "sft",
        "Fine-tune a model on texts, conversations or completions: the likelihood of their tokens",
        "seakeep sft --model_name_or_path models/m --dataset_name texts.jsonl --max_length 512 --output_dir runs/sft",
    );
    let packing = "true or false: no effect. Texts always lie end to end in a batch, without padding, and attend only to \
                   themselves; a step sees as many texts either way";
    args::text_keyed(command)
        .mut_arg("dataset_name", |arg| arg.help(DATA))
        .mut_arg("learning_rate", |arg| arg.help("Peak learning rate. [default: 2e-5]"))
        .arg(dry_run::flag())
        .mut_arg("packing", |arg| arg.hide(false).value_name("BOOL").help_heading("Texts").help(packing))
}

/// Plans the run, then runs it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read_with(matches, SFT_DEFAULTS, SFT_WORDS)?;
    train::execute(matches, &settings, plan::sft(&settings)?)
}
