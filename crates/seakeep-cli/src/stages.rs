//! Work in stages, each a command of this program, that goes on after an interruption where it was.
//!
//! A stage leaves a mark when it begins and completes it when it is done: its flags and the fingerprints of the files that
//! they name. On the next start a stage that is done is passed over; where flags or files are no longer those of the
//! mark, that is an error that says which, because results of different settings would stand side by side. A stage whose output is
//! gone is not done: it is done again, and those that read it stay done if it comes out as it was. Only what a mark
//! says a stage has begun to write is ever removed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Command};
use seakeep::data::read::data_files;
use seakeep::formats::Fingerprint;
use seakeep::generate::Partial;
use seakeep::{Error, Result, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::settings::read_file;
use crate::named::path_of;
use crate::{commands, flags, output};

/// Flags that say where a command writes; what stands first is what it goes on from.
const WRITTEN: [&str; 5] = ["output_dir", "output", "policy_record", "test_output", "ranks"];

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
    pub fn new(name: &str, command: &str, values: &Map<String, Value>) -> Result<Stage> {
        let mut args: Vec<String> = command.split(' ').map(str::to_string).collect();
        let (command, _) = flags::command_of(command.split(' '));
        for (key, value) in values {
            let words = flags::words(&command, key, value);
            args.extend(words.map_err(|what| Error::Usage(format!("stage `{name}`: {what}")))?);
        }
        Ok(Stage { name: name.to_string(), args })
    }

    /// The command line as the program understands it.
    ///
    /// # Errors
    /// [`Error::Usage`] with the parser's words where it does not; a file of its `--config` that cannot be read.
    pub fn matches(&self) -> Result<ArgMatches> {
        let words = flags::with_file(self.words())?;
        commands::cli().try_get_matches_from(words).map_err(|e| self.refused(&e))
    }

    /// Finds out whether the program understands the command line, as far as it stands here: the file of its `--config` may be made by an
    /// earlier stage.
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn check(&self) -> Result<()> {
        match commands::cli().try_get_matches_from(self.words()) {
            Err(e) if e.kind() != ErrorKind::MissingRequiredArgument || self.value("config").is_none() => {
                Err(self.refused(&e))
            }
            _ => Ok(()),
        }
    }

    fn words(&self) -> Vec<OsString> {
        std::iter::once("seakeep").chain(self.args.iter().map(String::as_str)).map(OsString::from).collect()
    }

    fn refused(&self, error: &clap::Error) -> Error {
        Error::Usage(format!("stage `{}` ({}): {}", self.name, self.args[0], flags::said(error)))
    }

    /// The value of a flag.
    pub fn value(&self, flag: &str) -> Option<&str> {
        let at = self.args.iter().position(|arg| arg.strip_prefix("--") == Some(flag))?;
        self.args.get(at + 1).map(String::as_str)
    }

    /// Where it writes.
    pub fn outputs(&self) -> impl Iterator<Item = PathBuf> {
        WRITTEN.iter().filter_map(|flag| self.value(flag)).map(PathBuf::from)
    }

    /// What its flags name, all but what it writes: files, directories and patterns.
    fn reads(&self) -> Vec<String> {
        let (command, words) = flags::command_of(self.args.iter().map(String::as_str));
        let mut found = Vec::new();
        let mut flag = None;
        for word in &self.args[words..] {
            if let Some(name) = word.strip_prefix("--") {
                let is_read = |arg: &&Arg| flags::is_path(arg) && !is_cache(arg.get_id().as_str());
                flag = flags::find(&command, name).filter(is_read);
            } else if let Some(arg) = flag {
                found.push(path_of(word).to_string());
                if arg.get_id() == "config"
                    && let Ok(mut file) = read_file(Path::new(word))
                {
                    // Flags win.
                    file.retain(|key, _| self.value(key).is_none());
                    named_in(&command, &file, &mut found);
                }
            }
        }
        let written: Vec<PathBuf> = self.outputs().collect();
        found.retain(|path| !written.iter().any(|own| Path::new(path).starts_with(own)));
        found
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

/// The paths in a file of keys, or of tables of keys: of a sweep these are `train`'s and `eval`'s.
fn named_in(command: &Command, table: &Map<String, Value>, found: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Object(inner) => {
                let (inner_command, known) = flags::command_of([key.as_str()].into_iter());
                named_in(if known > 0 { &inner_command } else { command }, inner, found);
            }
            Value::Array(tables) if tables.iter().any(Value::is_object) => {
                let (train, _) = flags::command_of(["train"].into_iter());
                tables.iter().filter_map(Value::as_object).for_each(|table| named_in(&train, table, found));
            }
            _ => {}
        }
        let is_read = !WRITTEN.contains(&key.as_str()) && !is_cache(key);
        if is_read && flags::find(command, key).is_some_and(flags::is_path) {
            let texts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            found.extend(texts.iter().filter_map(Value::as_str).map(|text| path_of(text).to_string()));
        }
    }
}

/// Whether a key names what is kept from run to run, and changes no result.
fn is_cache(key: &str) -> bool {
    key.ends_with("_cache_dir")
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
        // A directory that is not watched may have been emptied when it had served.
        for output in stage.outputs().filter(|output| self.is_watched(output) || !output.is_dir()) {
            if !output.try_exists().map_err(Error::io("look at", &output))? || is_empty(&output) {
                return Ok(None);
            }
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
        let read = stage.reads();
        // Marks of earlier versions also have what is not read.
        let mut inputs = mark.inputs.iter().filter(|(path, _)| read.contains(path));
        let changed = inputs.find(|(path, print)| content(path).as_ref() != Some(print));
        changed.map(|(path, _)| match Path::new(path).exists() || path.contains(['*', '?', '[']) {
            true => format!("{path} has changed since"),
            false => format!("{path} is gone, which it read"),
        })
    }

    /// Forgets that a stage was begun or done, and removes what it wrote.
    pub fn forget(&self, stage: &Stage) -> Result<()> {
        let path = self.path(stage);
        if path.exists() {
            for output in stage.outputs() {
                remove(&output)?;
                remove(&Partial::path(&output))?;
            }
            remove(&path)?;
        }
        Ok(())
    }

    /// What a stage reads, with the fingerprints of the content.
    fn inputs(&self, stage: &Stage) -> BTreeMap<String, String> {
        let watched = stage.reads().into_iter().filter(|path| self.is_watched(Path::new(path)));
        watched.filter_map(|path| Some((path.clone(), content(&path)?))).collect()
    }

    /// Runs a stage that is not done, and marks it. What an interrupted attempt left is resumed or removed.
    ///
    /// # Errors
    /// What stands in the stage's way and is not its own; what the command refuses or fails at, after the name of the stage.
    pub fn run(&self, stage: &Stage) -> Result<Mark> {
        let (started, mut attempt) = (Instant::now(), stage.clone());
        let begun = self.read(stage)?;
        // A sweep looks at its runs itself.
        if let Some(mark) = begun.as_ref().filter(|mark| mark.seconds.is_none())
            && stage.args[0] == "generate"
            && stage.outputs().any(|output| holds_something(&output) || Partial::path(&output).exists())
            && let Some(what) = self.difference(stage, mark)
        {
            return Err(Error::Usage(format!(
                "stage `{}` was begun before, but {what}; `--from {}` begins it again",
                stage.name, stage.name
            )));
        }
        for output in stage.outputs().filter(|output| holds_something(output)) {
            if begun.is_none() {
                return Err(Error::Usage(format!(
                    "stage `{}` writes {}, which is there already and not its own; move it away, or choose another place",
                    stage.name,
                    output.display()
                )));
            }
            if !checkpoint::list(&output).is_empty() {
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

/// A fingerprint of a file, of the files directly in a directory and, where it is no model's, the data files below it, or of those of a
/// pattern; none where nothing is there. A file's is kept for as long as its length and time stay.
fn content(spec: &str) -> Option<String> {
    static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());
    let path = Path::new(spec);
    let mut names = Vec::new();
    if path.is_dir() {
        names.extend(std::fs::read_dir(path).ok()?.filter_map(|e| Some(e.ok()?.path())));
        // It tells how long the run took: a run that is made again, to the same model, would be another.
        names.retain(|p| p.is_file() && !p.ends_with("training_args.json"));
        if !["config.json", "adapter_config.json"].iter().any(|name| path.join(name).exists()) {
            names.extend(data_files(spec).unwrap_or_default());
        }
        names.sort();
        names.dedup();
    } else {
        names.extend(data_files(spec).ok()?);
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
        let below = name.strip_prefix(path).ok().filter(|below| !below.as_os_str().is_empty());
        let name = below.unwrap_or(Path::new(name.file_name()?));
        all = all.field(name.as_os_str().as_encoded_bytes()).field(print.as_bytes());
    }
    Some(all.hex())
}
