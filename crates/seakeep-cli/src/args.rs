//! The command line: flags out of the table of keys.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::foreign::FOREIGN;
use crate::config::keys::{self, ALIASES, KEYS, Key};
use crate::config::kind::Kind;

/// The keys that say which rows there are and how they become tokens.
pub const DATA_KEYS: &[&str] =
    &["dataset_name", "max_length", "truncation_mode", "prompt_mismatch", "truncated_completion"];
/// The help of `--config`.
const CONFIG_HELP: &str = "A file of keys and values: .toml, .yaml or .json. Every key is also a flag, and flags \
                           override the file. Paths in it are taken from the current directory, not from the file's.";

/// A subcommand with its one-line purpose and an example.
pub fn command(name: &'static str, about: &'static str, example: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .after_help(format!("Example:\n  {example}"))
        .args_override_self(true)
        .arg_required_else_help(true)
}

/// `--config` and the flags of these keys.
pub fn keyed(command: Command, names: &[&str]) -> Command {
    let command = command.arg(Arg::new("config").long("config").value_name("FILE").help(CONFIG_HELP));
    let keys = KEYS.iter().filter(|key| names.contains(&key.name));
    command.args(keys.map(flag))
}

/// Whether a command's `--config` is a file of keys: a sweep's is another.
pub fn is_of_keys(config: &Arg) -> bool {
    config.get_help().is_some_and(|help| help.to_string() == CONFIG_HELP)
}

/// `--config` and the flags of every key of a run on preferences, those without an effect hidden.
pub fn all_keyed(command: Command) -> Command {
    all_but(command, &keys::text_keys())
}

/// The same of a run on texts.
pub fn text_keyed(command: Command) -> Command {
    all_but(command, &keys::preference_keys())
}

fn all_but(command: Command, others: &[&str]) -> Command {
    let names: Vec<&str> = KEYS.iter().map(|key| key.name).filter(|name| !others.contains(name)).collect();
    let foreign = FOREIGN.iter().map(|key| {
        spelled(key.name)
            .hide(true)
            .num_args(0..=1)
            .default_missing_value("true")
            .allow_negative_numbers(true)
    });
    keyed(command, &names).args(foreign)
}

/// Accepts, hidden, the flags of the keys that the command does not read, so that one set of flags serves every command.
/// Not the splits, nor other rows to evaluate on: a command that scores all rows of `dataset_name` must not seem to score others.
pub fn accepting_the_rest(command: Command) -> Command {
    let known: Vec<String> = command.get_arguments().map(|a| a.get_id().to_string()).collect();
    let misleads = |name: &str| name.ends_with("_split") || name == "eval_dataset_name";
    let rest = KEYS.iter().filter(|key| !misleads(key.name) && !known.iter().any(|k| k == key.name));
    command.args(rest.map(|key| flag(key).hide(true)))
}

fn flag(key: &Key) -> Arg {
    let default = key.default.map(|d| format!(" [default: {d}]")).unwrap_or_default();
    let mut arg = spelled(key.name)
        .help(format!("{}{default}", key.help))
        .help_heading(key.group)
        .value_name(key.kind.value_name())
        .allow_negative_numbers(true);
    for (alias, _) in ALIASES.iter().filter(|(_, name)| *name == key.name) {
        arg = arg.alias(*alias);
    }
    match key.kind {
        // `--shuffle_dataset` alone means true.
        Kind::Switch | Kind::SwitchOrPath => arg.num_args(0..=1).default_missing_value("true"),
        _ => arg,
    }
}

/// An optional flag that is spelled with underscores or dashes.
pub fn spelled(name: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).action(ArgAction::Set);
    if name.contains('_') { arg.alias(name.replace('_', "-")) } else { arg }
}

/// The texts of a flag, in order.
pub fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).into_iter().flatten().cloned().collect()
}
