//! The program `seakeep`: from arguments to a validated plan, and from there into the library.

mod args;
mod commands;
mod config;
mod flags;
mod named;
mod output;
mod progress;
mod stages;

use std::error::Error as _;
use std::ffi::OsString;
use std::process::ExitCode;

use seakeep::Error;

fn main() -> ExitCode {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What becomes an error is told as one.
        if !seakeep::formats::guard::is_guarded() {
            tell(panic);
        }
    }));
    let words: Vec<OsString> = std::env::args_os().collect();
    let name = words.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let done =
        flags::with_file(words).and_then(|words| commands::run(&commands::cli().get_matches_from(words)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", explain(&error, &name));
            ExitCode::from(error.exit_code() as u8)
        }
    }
}

/// The error with its causes and, where one helps, a hint.
fn explain(error: &Error, command: &str) -> String {
    let message = error.to_string();
    let mut text = format!("error: {message}\n");
    let mut cause = error.source();
    while let Some(inner) = cause {
        // Most messages end with their cause already.
        if !message.contains(&inner.to_string()) {
            text += &format!("  because: {inner}\n");
        }
        cause = inner.source();
    }
    let hint = match error {
        Error::Usage(_) if ["reward", "recommend", "inspect"].contains(&command) => {
            Some(format!("`seakeep {command} COMMAND --help` lists every flag with its default"))
        }
        Error::Usage(_) => Some(format!("`seakeep help {command}` lists every flag with its default")),
        Error::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => {
                Some("paths are taken from the current directory, also those in a --config file".into())
            }
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotADirectory => {
                Some("choose a place that you may write to".into())
            }
            std::io::ErrorKind::StorageFull => {
                Some("the disk is full: make room, and run the command again (a run of training with overwrite_output_dir)".into())
            }
            _ => None,
        },
        Error::Format { .. } | Error::Row { .. } | Error::Unsupported { .. } | Error::NonFinite(_) => None,
    };
    text + &hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_a_hint_follows() {
        let error = Error::io("read", "a.toml")(std::io::ErrorKind::NotFound.into());
        let text = explain(&error, "train");
        assert_eq!(text.matches("entity not found").count(), 1, "{text}");
        assert!(text.starts_with("error: cannot read a.toml") && text.contains("\nhint: paths"), "{text}");
        let text = explain(&Error::Usage("no".into()), "train");
        assert!(text.contains("seakeep help train"), "{text}");
    }
}
