//! Work in stages, each a command of this program, that goes on after an interruption where it was.
//!
//! A stage leaves a mark when it begins and completes it when it is done: its flags and the fingerprints of the files that
//! they name. On the next start a stage that is done is passed over; where flags or files are no longer those of the
//! mark, that is an error that says which, because results of different settings would stand side by side. A stage whose output is
//! gone is not done: it is done again, and those that read it stay done if it comes out as it was. Only what a mark
//! says a stage has begun to write is ever removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use clap::ArgMatches;
use seakeep::data::read::data_files;
use seakeep::formats::Fingerprint;
use seakeep::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::keys;
use crate::config::kind::Kind;
use crate::{commands, output};

/// A command with its flags, under a name of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// What it is called, also the name of its mark.
    pub name: String,
    /// The subcommand and its flags, as on the command line.
    pub args: Vec<String>,
}

/// What a stage leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The subcommand and its flags.
    pub args: Vec<String>,
    /// The files and directories that they name, with the fingerprint of what was in them.
    pub inputs: BTreeMap<String, String>,
    /// Wall-clock time, seconds; none for a stage that has begun and is not done.
    pub seconds: Option<f64>,
}

impl Stage {
    /// A stage out of a table of flags.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value that is no flag's, such as a table.
    pub fn new(
        name: &str,
        command: &str,
        flags: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Stage> {
        let mut args: Vec<String> = command.split(' ').map(str::to_string).collect();
        for (key, value) in flags {
            args.extend(flag(key, value).map_err(|what| Error::Usage(format!("stage `{name}`: {what}")))?);
        }
        Ok(Stage { name: name.to_string(), args })
    }

    /// The command line as the program understands it.
    ///
    /// # Errors
    /// [`Error::Usage`] with the parser's words where it does not.
    pub fn matches(&self) -> Result<ArgMatches> {
        let args = std::iter::once("seakeep").chain(self.args.iter().map(String::as_str));
        commands::cli().try_get_matches_from(args).map_err(|e| {
            // Up to the command's usage: what is wrong, and what is like it.
            let text = e.render().to_string();
            let lines = text.lines().take_while(|line| !line.starts_with("Usage:")).map(str::trim);
            let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
            let said = said.join(" ");
            let said = said.trim_start_matches("error: ");
            Error::Usage(format!("stage `{}` ({}): {said}", self.name, self.args[0]))
        })
    }

    /// The value of a flag.
    pub fn value(&self, flag: &str) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg.strip_prefix("--") == Some(flag))?;
        self.args.get(at + 1).map(String::as_str)
    }

    /// Where it writes: the value of `--output_dir`, `--output` or `--policy_record`.
    pub fn output(&self) -> Option<PathBuf> {
        ["output_dir", "output", "policy_record"]
            .into_iter()
            .find_map(|flag| self.value(flag))
            .map(PathBuf::from)
    }

    /// Whether it goes on by itself where it was interrupted.
    fn is_resumable(&self) -> bool {
        matches!(self.args[0].as_str(), "generate" | "sweep")
    }

    /// The command, to be typed.
    pub fn command_line(&self) -> String {
        let word =
            |arg: &String| match arg.chars().all(|c| c.is_ascii_alphanumeric() || "_-./=,:{}".contains(c)) {
                true => arg.clone(),
                false => format!("'{}'", arg.replace('\'', r"'\''")),
            };
        format!("seakeep {}", self.args.iter().map(word).collect::<Vec<_>>().join(" "))
    }
}

/// A key and its value as flags: a list is one flag with several values.
fn flag(key: &str, value: &serde_json::Value) -> std::result::Result<Vec<String>, String> {
    use serde_json::Value;
    let word = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => {
            Err(format!("`{key}` is {other}; expected a text, a number, true, false, or a list of these"))
        }
    };
    let name = format!("--{key}");
    match value {
        // A switch that is off is a flag not given.
        Value::Bool(true) => Ok(vec![name]),
        // Keys take their lists in one word, other flags in several.
        Value::Array(values)
            if keys::find(key)
                .is_some_and(|k| matches!(k.kind, Kind::Choices(_) | Kind::Numbers | Kind::Words)) =>
        {
            Ok(vec![name, values.iter().map(word).collect::<std::result::Result<Vec<_>, _>>()?.join(",")])
        }
        Value::Array(values) => std::iter::once(Ok(name)).chain(values.iter().map(word)).collect(),
        value => Ok(vec![name, word(value)?]),
    }
}

/// The marks of stages, in a directory.
pub struct Marks {
    directory: PathBuf,
    /// A directory whose files are not watched: a sweep's own, which removes the models that it has judged.
    unwatched: Option<PathBuf>,
}

impl Marks {
    /// Marks in `directory`; changes of files in `unwatched` do not matter.
    pub fn new(directory: PathBuf, unwatched: Option<PathBuf>) -> Marks {
        Marks { directory, unwatched }
    }

    fn path(&self, stage: &Stage) -> PathBuf {
        self.directory.join(format!("{}.mark.json", stage.name))
    }

    fn read(&self, stage: &Stage) -> Result<Option<Mark>> {
        let path = self.path(stage);
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::io("read", &path))?,
        };
        let broken =
            |e| format!("not the mark of a stage ({e}); remove it and what the stage wrote, to do it again");
        serde_json::from_str(&text).map(Some).map_err(|e| Error::format(&path, broken(e)))
    }

    fn write(&self, stage: &Stage, mark: &Mark) -> Result<()> {
        let text = serde_json::to_string_pretty(mark).expect("a mark is JSON");
        output::emit(Some(&self.path(stage)), &text)
    }

    /// The mark of a stage that is done, and whose output is still there.
    ///
    /// # Errors
    /// [`Error::Usage`] where it was done with other flags or files.
    pub fn done(&self, stage: &Stage) -> Result<Option<Mark>> {
        let Some(mark) = self.read(stage)?.filter(|mark| mark.seconds.is_some()) else { return Ok(None) };
        if let Some(output) = stage.output().filter(|output| self.is_watched(output))
            && (!output.try_exists().map_err(Error::io("look at", &output))? || is_empty(&output))
        {
            return Ok(None);
        }
        match self.difference(stage, &mark) {
            None => Ok(Some(mark)),
            // It has marks of its own, and does what is not done.
            Some(_) if stage.args[0] == "sweep" && stage.args == mark.args => Ok(None),
            Some(what) => Err(Error::Usage(format!("stage `{}` was done before, but {what}", stage.name))),
        }
    }

    fn is_watched(&self, path: &Path) -> bool {
        !self.unwatched.as_ref().is_some_and(|place| path.starts_with(place))
    }

    fn difference(&self, stage: &Stage, mark: &Mark) -> Option<String> {
        if stage.args != mark.args {
            let (was, is) = (without(&mark.args, &stage.args), without(&stage.args, &mark.args));
            return Some(format!("with {was} where now it is {is}"));
        }
        let now = self.inputs(stage);
        let changed = mark.inputs.iter().find(|(path, print)| now.get(*path) != Some(print));
        changed.map(|(path, _)| match Path::new(path).exists() || path.contains('*') {
            true => format!("{path} has changed since"),
            false => format!("{path} is gone, which it read"),
        })
    }

    /// Forgets that a stage was begun or done, and removes what it wrote.
    pub fn forget(&self, stage: &Stage) -> Result<()> {
        if self.read(stage)?.is_some() {
            stage.output().map_or(Ok(()), |output| remove(&output))?;
            remove(&self.path(stage))?;
        }
        Ok(())
    }

    /// The files and directories that a stage's flags name, all but what it writes, and the fingerprints of their content.
    fn inputs(&self, stage: &Stage) -> BTreeMap<String, String> {
        let own = stage.output();
        let named =
            stage.args.iter().skip(1).map(|arg| arg.split_once('=').map_or(arg.as_str(), |(_, path)| path));
        let watched = |arg: &&str| {
            let is_own = own.as_ref().is_some_and(|own| Path::new(arg).starts_with(own));
            !is_own && self.is_watched(Path::new(arg)) && (arg.contains('*') || Path::new(arg).exists())
        };
        named.filter(watched).filter_map(|path| Some((path.to_string(), content(path)?))).collect()
    }

    /// Runs a stage that is not done, and marks it. What an interrupted attempt left is resumed or removed.
    ///
    /// # Errors
    /// What stands in the stage's way and is not its own; what the command refuses or fails at, after the name of the stage.
    pub fn run(&self, stage: &Stage) -> Result<Mark> {
        let (started, mut attempt) = (Instant::now(), stage.clone());
        let begun = self.read(stage)?.is_some();
        if let Some(output) = stage.output().filter(|output| holds_something(output)) {
            if !begun {
                return Err(Error::Usage(format!(
                    "stage `{}` writes {}, which is there already and not its own; move it away, or choose another place",
                    stage.name,
                    output.display()
                )));
            }
            if !seakeep::checkpoint::list(&output).is_empty() {
                attempt.args.extend(["--resume_from_checkpoint", "true"].map(String::from));
            } else if !stage.is_resumable() {
                remove(&output)?;
            }
        }
        let mut mark = Mark { args: stage.args.clone(), inputs: self.inputs(stage), seconds: None };
        self.write(stage, &mark)?;
        let matches = attempt.matches()?;
        commands::on_threads(stage.value("num_threads"), || commands::run(&matches))
            .map_err(|e| named(e, &stage.name))?;
        mark.seconds = Some(started.elapsed().as_secs_f64());
        self.write(stage, &mark)?;
        Ok(mark)
    }
}

/// A directory with nothing in it.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// A file, or a directory with something in it.
fn holds_something(path: &Path) -> bool {
    path.is_file() || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// The error with the stage's name before it.
fn named(error: Error, stage: &str) -> Error {
    match error {
        Error::Usage(what) => Error::Usage(format!("stage `{stage}`: {what}")),
        Error::NonFinite(what) => Error::NonFinite(format!("stage `{stage}`: {what}")),
        other => other,
    }
}

/// The flags of one that the other has not so.
fn without(args: &[String], others: &[String]) -> String {
    let flags = |args: &[String]| {
        let mut flags: Vec<String> = Vec::new();
        for arg in args {
            match flags.last_mut() {
                Some(last) if !arg.starts_with("--") => *last += &format!(" {arg}"),
                _ => flags.push(arg.clone()),
            }
        }
        flags
    };
    let others = flags(others);
    let own: Vec<String> = flags(args).into_iter().filter(|flag| !others.contains(flag)).collect();
    if own.is_empty() { "without these".into() } else { format!("`{}`", own.join(" ")) }
}

fn remove(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(data) if data.is_dir() => std::fs::remove_dir_all(path).map_err(Error::io("remove", path)),
        Ok(_) => std::fs::remove_file(path).map_err(Error::io("remove", path)),
    }
}

type Known = BTreeMap<(PathBuf, u64, Option<SystemTime>), String>;

/// A fingerprint of a file, of the files directly in a directory, or of those of a pattern. A file's is kept for as long as its
/// length and time stay.
fn content(spec: &str) -> Option<String> {
    static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());
    let path = Path::new(spec);
    let mut names = vec![path.to_path_buf()];
    if spec.contains('*') {
        names = data_files(spec).ok()?;
    } else if path.is_dir() {
        names = std::fs::read_dir(path)
            .ok()?
            .filter_map(|e| Some(e.ok()?.path()))
            // It tells how long the run took: a run that is made again, to the same model, would be another.
            .filter(|p| p.is_file() && !p.ends_with("training_args.json"))
            .collect();
        names.sort();
    }
    let mut all = Fingerprint::new();
    for name in names {
        let data = name.metadata().ok()?;
        let key = (name.clone(), data.len(), data.modified().ok());
        let known = KNOWN.lock().expect("no holder panics").get(&key).cloned();
        let print = match known {
            Some(print) => print,
            None => {
                let print = Fingerprint::of_file(&name).ok()?.hex();
                KNOWN.lock().expect("no holder panics").insert(key, print.clone());
                print
            }
        };
        all = all.field(name.file_name()?.as_encoded_bytes()).field(print.as_bytes());
    }
    Some(all.hex())
}
