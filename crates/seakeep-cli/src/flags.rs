//! Flags whose values stand in a file: in the one that `--config` names, or in the stage of a recipe.

use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};
use seakeep::{Error, Result};
use serde_json::Value;

use crate::config::kind::Kind;
use crate::config::settings::read_file;
use crate::config::{foreign, keys};
use crate::{args, commands};

/// The command that a command line begins with (`reward train` of `reward train --input ...`), and of how many words it is.
pub fn command_of<'a>(words: impl Iterator<Item = &'a str>) -> (Command, usize) {
    let (mut command, mut count) = (commands::cli(), 0);
    for word in words {
        let Some(inner) = command.find_subcommand(word) else { break };
        command = inner.clone();
        count += 1;
    }
    (command, count)
}

/// A command's flag of this name.
pub fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| names(arg).any(|own| own == name))
}

/// Whether the flag's value is a path.
pub fn is_path(arg: &Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    names.iter().any(|name| name.contains("PATH") || name.contains("FILE"))
}

/// A key of a file and its value as words of a command line.
///
/// # Errors
/// What is wrong with a value that no flag could have.
pub fn words(command: &Command, key: &str, value: &Value) -> std::result::Result<Vec<String>, String> {
    let word = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => {
            Err(format!("`{key}` is {other}; expected a text, a number, true, false, or a list of these"))
        }
    };
    let (name, arg) = (format!("--{key}"), find(command, key));
    let all =
        |values: &[Value]| values.iter().map(word).collect::<std::result::Result<Vec<String>, String>>();
    // A value that looks like a flag has to stand with its own.
    let given = |value: String| match value.starts_with('-') {
        true => vec![format!("{name}={value}")],
        false => vec![name.clone(), value],
    };
    Ok(match (value, arg) {
        (Value::Bool(true), _) => vec![name.clone()],
        // A flag that takes no value is off where it is not given.
        (Value::Bool(false), Some(arg)) if matches!(arg.get_action(), ArgAction::SetTrue) => Vec::new(),
        (Value::Array(values), Some(arg)) if takes_several(arg) => {
            [vec![name.clone()], all(values)?].concat()
        }
        (Value::Array(values), Some(arg)) if matches!(arg.get_action(), ArgAction::Append) => {
            all(values)?.into_iter().flat_map(given).collect()
        }
        // Lists in one word.
        (Value::Array(values), _) => given(all(values)?.join(",")),
        (value, _) => given(word(value)?),
    })
}

/// A command line with the flags that the file of its `--config` gives and the command has beside the table of keys; the keys are
/// read by `Settings`. Flags on the command line win.
///
/// # Errors
/// [`Error::Usage`] for a value in the file that the flag cannot have; [`Error::Io`] where the file cannot be read.
pub fn with_file(words: Vec<OsString>) -> Result<Vec<OsString>> {
    let texts: Vec<&str> = words.iter().skip(1).filter_map(|word| word.to_str()).collect();
    let (command, _) = command_of(texts.iter().copied());
    // A pipe can be read but once, by `Settings`.
    let Some(path) = config_file(&command, &texts).filter(|path| Path::new(path).is_file()) else {
        return Ok(words);
    };
    let is_typed = |arg: &Arg| names(arg).any(|name| typed(&texts, &name).is_some());
    let mut all = words.clone();
    for (key, value) in read_file(Path::new(path))? {
        let Some(arg) = find(&command, &key).filter(|arg| !is_key(arg) && !is_typed(arg)) else { continue };
        // The file may be that of a training run: its data are not asked for beside a prompt of one's own.
        let is_instead = arg.get_id() == "dataset_name" && find(&command, "prompt").is_some_and(is_typed);
        if asks_for_nothing(&value) || is_instead {
            continue;
        }
        let given = self::words(&command, &key, &value).map_err(|e| Error::Usage(format!("{path}: {e}")))?;
        all.extend(given.into_iter().map(OsString::from));
    }
    if all.len() == words.len() {
        return Ok(words);
    }
    let Err(e) = commands::cli().try_get_matches_from(&all) else { return Ok(all) };
    match commands::cli().try_get_matches_from(&words) {
        // What is wrong with the command line itself is said when it is parsed to be run.
        Err(own) if own.kind() != ErrorKind::MissingRequiredArgument => Ok(words),
        _ => Err(Error::Usage(format!("{path}: {}", said(&e)))),
    }
}

/// The file of keys that `--config` names.
fn config_file<'a>(command: &Command, words: &[&'a str]) -> Option<&'a str> {
    find(command, "config").filter(|arg| args::is_of_keys(arg))?;
    let (at, value) = typed(words, "config")?;
    value.or_else(|| words.get(at + 1).copied())
}

/// Where a flag stands last among the words, and its value if that stands with it.
fn typed<'a>(words: &[&'a str], name: &str) -> Option<(usize, Option<&'a str>)> {
    let value = |word: &&'a str| match word.strip_prefix("--")?.strip_prefix(name)? {
        "" => Some(None),
        rest => rest.strip_prefix('=').map(Some),
    };
    words.iter().enumerate().rev().find_map(|(at, word)| Some((at, value(word)?)))
}

/// The names under which a flag may be given.
fn names(arg: &Arg) -> impl Iterator<Item = String> {
    let aliases = arg.get_all_aliases().unwrap_or_default();
    std::iter::once(arg.get_id().to_string()).chain(aliases.into_iter().map(String::from))
}

/// Whether a value in a file is that of a key not given.
pub fn asks_for_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Whether some command has a flag of this name.
pub fn is_known(name: &str) -> bool {
    fn has(command: &Command, name: &str) -> bool {
        find(command, name).is_some() || command.get_subcommands().any(|inner| has(inner, name))
    }
    has(&commands::cli(), name)
}

/// What the parser says is wrong, in a line: up to the command's usage, or where more is to be had.
pub fn said(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let is_about_it =
        |line: &&str| !["Usage:", "For more information"].iter().any(|end| line.starts_with(end));
    let lines = text.lines().take_while(is_about_it).map(str::trim);
    let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    said.join(" ").trim_start_matches("error: ").to_string()
}

/// Whether a flag is made of the tables of keys, and not the command's own; what has several values where a key has one is its own.
fn is_key(arg: &Arg) -> bool {
    let name = arg.get_id().as_str();
    let of_table = keys::find(name).is_some_and(|key| arg.get_help_heading() == Some(key.group));
    (of_table && !takes_several(arg)) || foreign::find(name).is_some() && arg.is_hide_set()
}

fn takes_several(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.max_values() > 1)
}

/// Whether a key takes a list, so that a list is one value of it.
pub fn takes_list(key: &str) -> bool {
    keys::find(key).is_some_and(|k| matches!(k.kind, Kind::Choices(_) | Kind::Numbers | Kind::Words))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(line: &str, key: &str, value: Value) -> Vec<String> {
        words(&command_of(line.split(' ')).0, key, &value).unwrap()
    }

    #[test]
    fn values_are_words_as_the_flag_takes_them() {
        assert_eq!(of("train", "beta", json!(0.1)), ["--beta", "0.1"]);
        assert_eq!(of("train", "loss_type", json!(["sigmoid", "sft"])), ["--loss_type", "sigmoid,sft"]);
        assert_eq!(of("prepare", "drop", json!(["a=1", "b=2"])), ["--drop", "a=1", "--drop", "b=2"]);
        assert_eq!(of("report", "records", json!(["a", "b"])), ["--records", "a", "b"]);
        assert_eq!(of("generate", "do_sample", json!(false)), ["--do_sample", "false"]);
        assert_eq!(
            of("generate", "eos_token_id", json!([1, 2])),
            ["--eos_token_id", "1", "--eos_token_id", "2"]
        );
        let none: [&str; 0] = [];
        assert_eq!(of("run", "list", json!(false)), none);
        assert_eq!(command_of("reward train --x train".split(' ')).1, 2);
    }

    #[test]
    fn a_file_gives_flags_that_the_command_line_does_not() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("k.toml");
        let file = file.to_str().unwrap();
        std::fs::write(file, "seed = 7\ntemperature = 0.5\nbeta = 0.2\nprompt = ['a', 'b']\n").unwrap();
        let line = |rest: &str| format!("seakeep generate --config {file} {rest}");
        let all = |line: &str| with_file(line.split_whitespace().map(OsString::from).collect());
        let found = all(&line("--temperature 0.9")).unwrap();
        let added = found[6..].join(std::ffi::OsStr::new(" "));
        assert_eq!(added.to_str().unwrap(), "--seed 7 --prompt a --prompt b");
        std::fs::write(file, "dataset_name = 'pairs.jsonl'").unwrap();
        assert_eq!(all(&line("")).unwrap().len(), 6);
        assert_eq!(all(&line("--prompt x")).unwrap().len(), 6);
        std::fs::write(file, "temperature = 'hot'").unwrap();
        let error = all(&line("")).unwrap_err().to_string();
        assert!(error.contains("k.toml: invalid value 'hot' for '--temperature <X>'"), "{error}");
        assert!(!error.contains("--help"), "{error}");
        // Flags that need each other, or that the command needs, and none that ask for nothing.
        std::fs::write(file, "nominal_alpha = 0.1\nobjectives = 'a,b'\nsamples = 's'\nlabel = []").unwrap();
        let line = |command: &str| format!("seakeep {command} --config={file}");
        assert_eq!(all(&line("eval --model_name_or_path m")).unwrap().len(), 5 + 6);
        std::fs::write(file, "input = '- x'").unwrap();
        assert_eq!(all(&line("reward score --model_name_or_path m")).unwrap()[6], "--input=- x");
    }
}
