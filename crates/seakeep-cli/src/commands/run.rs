//! `seakeep run`: a recipe, an experiment of several stages, from its file to its report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use seakeep::formats::Claim;
use seakeep::{Error, Result, error};
use serde_json::{Map, Value};

use crate::config::settings;
use crate::stages::{Marks, Stage};
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    args::command(
        "run",
        "Run a recipe: an experiment of several stages; started again it goes on where it was",
        "seakeep run recipes/emotion-small.toml --set seeds=3",
    )
    .args([
        Arg::new("recipe")
            .value_name("FILE")
            .required(true)
            .help("A recipe: .toml, .yaml or .json (see recipes/)"),
        args::spelled("output_dir")
            .value_name("PATH")
            .help("Where everything goes, in place of the recipe's `output_dir`"),
        args::spelled("set")
            .value_name("NAME=VALUE")
            .action(ArgAction::Append)
            .help("Gives a variable of the recipe another value; may be given several times"),
        args::spelled("from").value_name("STAGE").help("Does this stage and all after it again"),
        args::spelled("until").value_name("STAGE").help("Stops after this stage"),
        Arg::new("list")
            .long("list")
            .action(ArgAction::SetTrue)
            .help("Prints the stages as commands, and runs none"),
    ])
}

/// An experiment as its file has it, with its variables in their places.
struct Recipe {
    title: String,
    output_dir: PathBuf,
    stages: Vec<Stage>,
    /// Configurations that stand within the recipe, by the file that they are written to.
    files: BTreeMap<PathBuf, Value>,
}

/// Runs what is not done yet.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| args::texts(matches, name).pop();
    let path = PathBuf::from(text("recipe").unwrap_or_default());
    let recipe = Recipe::read(&path, text("output_dir"), &args::texts(matches, "set"))?;
    let place = |name: &str| text(name).map(|stage| recipe.place(&stage)).transpose();
    let (from, until) = (place("from")?, place("until")?);
    if let (Some(from), Some(until)) = (from, until)
        && until < from
    {
        let [until, from] = [until, from].map(|place| recipe.stages[place].name.as_str());
        return Err(Error::Usage(format!("stage `{until}` comes before `{from}`: nothing is left to do")));
    }
    recipe.stages.iter().try_for_each(Stage::check)?;
    if matches.get_flag("list") {
        let lines: String =
            recipe.stages.iter().map(|s| format!("# {}\n{}\n", s.name, s.command_line())).collect();
        return output::print(&lines);
    }
    recipe.go(from, until)
}

impl Recipe {
    fn read(path: &Path, output_dir: Option<String>, set: &[String]) -> Result<Recipe> {
        let bad = |what: String| Error::Usage(format!("{}: {what}", path.display()));
        let mut file = settings::read_file(path)?;
        let mut variables = variables(file.remove("variables"), set).map_err(bad)?;
        let mut text = |name: &str| match file.remove(name) {
            Some(Value::String(text)) => Ok(Some(text)),
            None => Ok(None),
            Some(other) => Err(bad(format!("`{name}` is {other}; expected a text"))),
        };
        let title = text("title")?.unwrap_or_else(|| path.display().to_string());
        for (name, value) in [("title", Some(title.clone())), ("question", text("question")?)] {
            variables.insert(name.into(), Value::from(value.unwrap_or_default()));
        }
        let output_dir = match (output_dir, text("output_dir")?) {
            (Some(given), _) => given,
            (None, Some(own)) => filled(&own, &variables).map_err(bad)?,
            (None, None) => return Err(bad("no `output_dir`; expected where everything goes".into())),
        };
        variables.insert("out".into(), Value::from(output_dir.as_str()));
        let stages = match file.remove("stages") {
            Some(Value::Array(stages)) if !stages.is_empty() => stages,
            _ => return Err(bad("no [[stages]]; expected tables with `name`, `command` and flags".into())),
        };
        if let Some(key) = file.keys().next() {
            return Err(bad(format!(
                "`{key}` is not a key of a recipe; it has title, question, output_dir, [variables] and [[stages]]"
            )));
        }
        let output_dir = PathBuf::from(output_dir);
        let mut recipe = Recipe { title, output_dir, stages: Vec::new(), files: BTreeMap::new() };
        for (at, stage) in stages.into_iter().enumerate() {
            recipe.add(at + 1, fill(stage, &variables).map_err(bad)?).map_err(bad)?;
        }
        Ok(recipe)
    }

    fn add(&mut self, number: usize, stage: Value) -> std::result::Result<(), String> {
        let Value::Object(mut flags) = stage else {
            return Err(format!("stage {number} is {stage}; expected a table"));
        };
        let mut word = |key: &str| match flags.shift_remove(key) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(format!("stage {number} has no `{key}`; expected a text")),
        };
        let (name, command) = (word("name")?, word("command")?);
        if self.stages.iter().any(|s| s.name == name) {
            return Err(format!("two stages are called `{name}`"));
        }
        if command == "run" {
            return Err(format!("stage `{name}`: a recipe cannot run a recipe"));
        }
        // Tables are for a configuration file.
        if flags
            .values()
            .any(|v| v.is_object() || matches!(v, Value::Array(a) if a.iter().any(Value::is_object)))
        {
            let file = self.output_dir.join(format!("{name}.json"));
            let config = std::mem::take(&mut flags);
            flags.insert("config".into(), Value::from(file.to_string_lossy()));
            // Also as a flag: it says what the stage writes.
            flags.extend(config.get("output_dir").map(|dir| ("output_dir".to_string(), dir.clone())));
            self.files.insert(file, Value::Object(config));
        }
        let stage = Stage::new(&name, &command, &flags).map_err(|e| e.to_string())?;
        let same = |other: &&Stage| other.outputs().any(|output| stage.outputs().any(|own| own == output));
        if let Some(other) = self.stages.iter().find(same) {
            return Err(format!("stages `{}` and `{name}` write the same output", other.name));
        }
        self.stages.push(stage);
        Ok(())
    }

    fn place(&self, stage: &str) -> Result<usize> {
        let names = || self.stages.iter().map(|s| s.name.as_str());
        names().position(|name| name == stage).ok_or_else(|| {
            let near =
                error::nearest(stage, names()).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
            Error::Usage(format!(
                "no stage `{stage}`; {near}The recipe has: {}",
                names().collect::<Vec<_>>().join(", ")
            ))
        })
    }

    fn go(&self, from: Option<usize>, until: Option<usize>) -> Result<()> {
        let place = self.output_dir.join("stages");
        std::fs::create_dir_all(&place).map_err(Error::io("create", &place))?;
        let _claim = Claim::on("the recipe's", &place)?;
        let marks = Marks::new(place, None);
        let last = until.map_or(self.stages.len(), |until| until + 1);
        if let Some(from) = from {
            self.stages[from..last].iter().try_for_each(|stage| marks.forget(stage))?;
        }
        self.write_files()?;
        let mut seconds = 0.0;
        for (number, stage) in self.stages.iter().enumerate().take(last) {
            let done = marks.done(stage).map_err(|e| match e {
                Error::Usage(what) => {
                    Error::Usage(format!("{what}; `--from {}` does it and what follows again", stage.name))
                }
                other => other,
            })?;
            let head = format!("[{}/{}] {}", number + 1, self.stages.len(), stage.name);
            let mark = match done {
                Some(mark) => {
                    eprintln!("{head}: done before, in {:.0} s", mark.seconds.unwrap_or_default());
                    mark
                }
                None => {
                    eprintln!("{head}: {}", stage.command_line());
                    marks.run(stage)?
                }
            };
            seconds += mark.seconds.unwrap_or_default();
        }
        output::print(&format!(
            "{}: {last} stages, {seconds:.0} s; all of it is in {}\n",
            self.title,
            self.output_dir.display()
        ))
    }

    /// Writes the configurations that stand within the recipe; an unchanged one is left as it is.
    fn write_files(&self) -> Result<()> {
        for (path, config) in &self.files {
            let text = format!("{config:#}\n");
            if std::fs::read_to_string(path).ok().as_deref() != Some(text.as_str()) {
                output::emit(Some(path), &text)?;
            }
        }
        Ok(())
    }
}

type Variables = Map<String, Value>;

/// The recipe's variables: `name = value`, or `name = { env = "NAME", default = value }`; those set on the command line win.
fn variables(table: Option<Value>, set: &[String]) -> std::result::Result<Variables, String> {
    let mut variables = match table {
        None => Variables::new(),
        Some(Value::Object(table)) => table,
        Some(other) => return Err(format!("`variables` is {other}; expected a table")),
    };
    for assignment in set {
        let (name, text) =
            assignment.split_once('=').ok_or(format!("--set {assignment}: expected NAME=VALUE"))?;
        let Some(value) = variables.get_mut(name) else {
            let known: Vec<&str> = variables.keys().map(String::as_str).collect();
            return Err(format!("--set {name}: no such variable; the recipe has: {}", known.join(", ")));
        };
        // A number stays a number.
        *value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    }
    for (name, value) in &mut variables {
        if let Value::Object(source) = value {
            let variable = source
                .get("env")
                .and_then(Value::as_str)
                .ok_or(format!("variable `{name}`: expected {{ env = \"NAME\", default = VALUE }}"))?;
            let found = std::env::var(variable).ok().filter(|v| !v.is_empty()).map(Value::from);
            *value = found
                .or(source.get("default").cloned())
                .ok_or(format!("variable `{name}`: ${variable} is not set, and there is no default"))?;
        }
    }
    Ok(variables)
}

/// A value with every `{name}` replaced. A text that is nothing but `{name}` becomes the variable's value, a number or list as
/// it is.
fn fill(value: Value, variables: &Variables) -> std::result::Result<Value, String> {
    Ok(match value {
        Value::String(text) => {
            let whole =
                text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).and_then(|name| variables.get(name));
            match whole {
                Some(value) => value.clone(),
                None => Value::from(filled(&text, variables)?),
            }
        }
        Value::Array(values) => {
            values.into_iter().map(|v| fill(v, variables)).collect::<std::result::Result<_, _>>()?
        }
        Value::Object(table) => {
            let filled = table.into_iter().map(|(k, v)| Ok((k, fill(v, variables)?)));
            Value::Object(filled.collect::<std::result::Result<_, String>>()?)
        }
        other => other,
    })
}

/// The one name that is left for `sweep` to fill.
const LEFT: &str = "seed";

fn filled(text: &str, variables: &Variables) -> std::result::Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out += &rest[..at];
        rest = &rest[at..];
        // Doubled, a brace is one.
        if let Some(after) = rest.strip_prefix("{{").or(rest.strip_prefix("}}")) {
            out += &rest[..1];
            rest = after;
            continue;
        }
        let inner = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, after) =
            inner.ok_or(format!("`{text}`: a brace that has no other; doubled ({{{{) it is a text's own"))?;
        match variables.get(name) {
            Some(Value::String(value)) => out += value,
            Some(value) => out += &value.to_string(),
            None if name == LEFT => out += "{seed}",
            None => {
                let known: Vec<&str> = variables.keys().map(String::as_str).collect();
                return Err(format!(
                    "`{text}`: no variable `{name}`; there are: {}. A brace that is a text's own is doubled: {{{{{name}}}}}",
                    known.join(", ")
                ));
            }
        }
        rest = after;
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_stand_in_texts_and_alone() {
        let variables = variables(
            Some(json!({"n": 3, "dir": "a", "e": {"env": "NO_SUCH_VARIABLE", "default": "d"}})),
            &["dir=b".into()],
        )
        .unwrap();
        let filled =
            fill(json!({"x": "{dir}/{n}.json", "y": "{n}", "z": ["{e}", "{dir}-{seed}", 1.5]}), &variables)
                .unwrap();
        assert_eq!(filled, json!({"x": "b/3.json", "y": 3, "z": ["d", "b-{seed}", 1.5]}));
        assert_eq!(fill(json!("{{n}} {n}"), &variables).unwrap(), json!("{n} 3"));
        assert!(fill(json!("a}"), &variables).unwrap_err().contains("no other"));
        assert!(fill(json!("{nothing}"), &variables).unwrap_err().contains("no variable `nothing`"));
    }
}
