//! The configuration file and the flags, checked against the tables of keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use seakeep::{Error, Result, error};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::foreign::{self, FOREIGN};
use super::keys::{self, KEYS, Key};
use super::kind::Kind;
use super::methods::{self, Method};
use crate::flags;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq)]
enum Source {
    Flag,
    File(PathBuf),
}

impl Source {
    /// The key and where it stands, to begin an error with.
    fn place(&self, name: &str) -> String {
        match self {
            Source::Flag => format!("--{name}"),
            Source::File(path) => format!("{}: `{name}`", path.display()),
        }
    }
}

/// Checked values by key. What was not given has its default.
#[derive(Debug, Default)]
pub struct Settings {
    /// With where it was given, and under what name: a key has aliases.
    given: BTreeMap<&'static str, (Value, Source, String)>,
    /// What a command has in place of the table's defaults, as flags would spell the values.
    defaults: &'static [(&'static str, &'static str)],
    /// Values, by key, that ask for what the command does anyway: another program's words for it.
    words: &'static [(&'static str, &'static str)],
}

impl Settings {
    /// From the flags of a command and the file that its `--config` names; flags win.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown key, a value of the wrong type or out of range, or a key that asks for
    /// something Seakeep does not do; [`Error::Io`] where the file cannot be read.
    pub fn read(matches: &ArgMatches) -> Result<Settings> {
        Settings::read_with(matches, &[], &[])
    }

    /// As [`read`](Self::read), for a command that has `defaults` of its own, and takes `words` for what it does anyway.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with(
        matches: &ArgMatches,
        defaults: &'static [(&'static str, &'static str)],
        words: &'static [(&'static str, &'static str)],
    ) -> Result<Settings> {
        let mut settings = Settings { defaults, words, ..Settings::default() };
        if let Some(path) = flag(matches, "config") {
            let path = Path::new(path);
            let source = Source::File(path.to_path_buf());
            for (name, value) in read_file(path)? {
                // A flag of the command's own is on the command line by now (`flags::with_file`), unless it asks for nothing.
                let own = name.replace('-', "_");
                let is_read = matches.ids().any(|id| *id == own)
                    || flags::asks_for_nothing(&value)
                        && flags::is_known(&own)
                        && foreign::find(&name).is_none();
                // So is a list in place of a key's one path.
                let of_paths = value.is_array()
                    && keys::find(&name).is_some_and(|key| matches!(key.kind, Kind::Path))
                    && flag(matches, &own).is_some();
                if !of_paths && (keys::find(&name).is_some() || !is_read) {
                    settings.set(&name, &value, &source)?;
                }
            }
        }
        for key in KEYS {
            if let Some(text) = flag(matches, key.name) {
                settings.set(key.name, &key.kind.of_flag(text), &Source::Flag)?;
            }
        }
        for key in FOREIGN {
            if let Some(text) = flag(matches, key.name) {
                settings.set(key.name, &Value::from(text), &Source::Flag)?;
            }
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &Value, source: &Source) -> Result<()> {
        let place = source.place(name);
        if let Some(key) = keys::find(name) {
            let checked = key.kind.check(value);
            // An empty value in YAML (`eval_steps:`) is a key not given; null where it means "no limit" is a value.
            let own = |(of, word): &(&str, &str)| *of == key.name && value == *word;
            if checked.is_none() && (value.is_null() || self.words.iter().any(own)) {
                return Ok(());
            }
            let checked = checked.ok_or_else(|| {
                Error::Usage(format!("{place} is {value}; expected {}", key.kind.expectation()))
            })?;
            if let (Some((before, Source::File(_), spelled)), Source::File(_)) =
                (self.given.get(key.name), source)
                && *before != checked
            {
                let what = if spelled == name { "is given twice" } else { "is another name of it" };
                return Err(Error::Usage(format!("{}: {place} {what}; give it once", source.place(spelled))));
            }
            self.given.insert(key.name, (checked, source.clone(), name.to_string()));
            return Ok(());
        }
        match foreign::find(name) {
            Some(key) if key.accepts(value) => Ok(()),
            Some(key) => Err(Error::Usage(key.refusal(&place, value))),
            None => Err(Error::Usage(format!("{place} is not a key of Seakeep; {}", nearest(name)))),
        }
    }

    /// The keys that were given.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        self.given.keys().copied()
    }

    /// Whether the key was given, by flag or file.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(key(name).name)
    }

    /// Whether a key that was given has the value it would have without.
    pub fn is_default(&self, name: &str) -> bool {
        let key = key(name);
        let default = self.default_of(key).and_then(|d| key.kind.check(&key.kind.of_flag(d)));
        let given = self.given.get(key.name).map(|(value, ..)| value);
        match (given.and_then(Value::as_f64), default.as_ref().and_then(Value::as_f64)) {
            (Some(given), Some(default)) => given == default,
            _ => given == default.as_ref(),
        }
    }

    /// Takes a value out: a command that reads the key in its own way leaves it to nobody else.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.given.remove(key(name).name).map(|(value, ..)| value)
    }

    /// The key and where it was given, to begin an error with; a key not given is named as its flag.
    pub fn place(&self, name: &str) -> String {
        match self.given.get(name) {
            Some((_, source, spelled)) => source.place(spelled),
            None => Source::Flag.place(name),
        }
    }

    /// The default of this command, or of the table.
    fn default_of(&self, key: &Key) -> Option<&'static str> {
        self.defaults.iter().find(|(name, _)| *name == key.name).map(|d| d.1).or(key.default)
    }

    /// The value: given, or what the method sets, or the default; null where there is none of them.
    fn value(&self, name: &str) -> Value {
        let key = key(name);
        match (self.given.get(name), self.method().sets(name).or(self.default_of(key))) {
            (Some((value, ..)), _) => value.clone(),
            (None, Some(default)) => key.kind.check(&key.kind.of_flag(default)).unwrap_or_default(),
            (None, None) => Value::Null,
        }
    }

    /// The method in force.
    pub fn method(&self) -> &'static Method {
        let given = self.given.get("method").and_then(|(name, ..)| name.as_str());
        given.and_then(methods::find).unwrap_or(&methods::METHODS[0])
    }

    /// A text, a path or a choice.
    pub fn text(&self, name: &str) -> Option<String> {
        self.value(name).as_str().map(str::to_string)
    }

    /// A path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// A text that the command cannot do without.
    ///
    /// # Errors
    /// [`Error::Usage`] where it is not given.
    pub fn required(&self, name: &str) -> Result<String> {
        self.text(name).ok_or_else(|| {
            Error::Usage(format!("no `{name}`: give --{name}, or `{name} = \"...\"` in the file of --config"))
        })
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.value(name).as_f64()
    }

    /// A number of things; `None` for no limit.
    pub fn count(&self, name: &str) -> Option<usize> {
        self.value(name).as_u64().and_then(|n| usize::try_from(n).ok())
    }

    /// A number of 64 bits.
    pub fn seed(&self, name: &str) -> u64 {
        self.value(name).as_u64().unwrap_or_default()
    }

    /// True or false; a path where one may stand in its place is neither.
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.value(name).as_bool()
    }

    /// The numbers of a list.
    pub fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        let list = self.value(name);
        list.as_array().map(|list| list.iter().filter_map(Value::as_f64).collect())
    }

    /// The words of a list.
    pub fn words(&self, name: &str) -> Vec<String> {
        let list = self.value(name);
        list.as_array().into_iter().flatten().filter_map(|w| w.as_str().map(str::to_string)).collect()
    }
}

/// The key of this name.
///
/// # Panics
/// If the table has no such key: a mistake in this program.
fn key(name: &str) -> &'static Key {
    KEYS.iter().find(|key| key.name == name).unwrap_or_else(|| panic!("`{name}` is not in the table of keys"))
}

/// The text of a flag, where the command has it and it was given. Of several the last counts.
fn flag<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.try_get_many::<String>(name).ok().flatten()?.next_back().map(String::as_str)
}

/// An object of JSON whose keys are given once each; `serde_json` alone would keep the last.
struct Once(Map<String, Value>);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Once;

            fn expecting(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
                to.write_str("keys and values, such as {\"beta\": 0.1}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> std::result::Result<Once, A::Error> {
                let mut values = Map::new();
                while let Some((key, value)) = from.next_entry::<String, Value>()? {
                    if values.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("`{key}` is given twice")));
                    }
                    values.insert(key, value);
                }
                Ok(Once(values))
            }
        }
        from.deserialize_map(Visit)
    }
}

/// The keys and values of a configuration file, in its order.
///
/// # Errors
/// [`Error::Usage`] for a file that is none, [`Error::Io`] where it cannot be read.
pub fn read_file(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let broken = |e: &dyn std::fmt::Display| Error::Usage(format!("{}: {e}", path.display()));
    let values: Value = match path.extension().and_then(|e| e.to_str()) {
        // By way of the formats' own values: YAML's refuse a key given twice, and JSON's would turn `nan` into
        // a key that was not given.
        Some("toml") => {
            let values: toml::Table = toml::from_str(&text).map_err(|e| broken(&e))?;
            if let Some((key, value)) =
                values.iter().find(|(_, v)| v.as_float().is_some_and(|x| !x.is_finite()))
            {
                return Err(broken(&format!("`{key}` is {value}; expected a finite number")));
            }
            serde_json::to_value(values).map_err(|e| broken(&e))?
        }
        Some("yaml" | "yml") => {
            let values: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).map_err(|e| broken(&e))?;
            for (key, value) in values.as_mapping().into_iter().flatten() {
                if value.as_f64().is_some_and(|x| !x.is_finite()) {
                    let key = key.as_str().unwrap_or("?");
                    return Err(broken(&format!("`{key}` is not finite; expected a finite number")));
                }
            }
            serde_yaml_ng::from_value(values).map_err(|e| broken(&e))?
        }
        Some("json") => {
            let Once(values) = serde_json::from_str(&text).map_err(|e| broken(&e))?;
            Value::Object(values)
        }
        _ => {
            return Err(broken(
                &"not a configuration file by its name; expected .toml, .yaml, .yml or .json",
            ));
        }
    };
    match values {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(broken(&"expected keys and values, such as `beta: 0.1`")),
    }
}

/// The known key that is spelled most like `name`.
fn nearest(name: &str) -> String {
    let known = KEYS.iter().map(|k| k.name).chain(FOREIGN.iter().map(|k| k.name));
    match error::nearest(name, known) {
        Some(best) => format!("did you mean `{best}`?"),
        None => "`seakeep help keys` lists them all".to_string(),
    }
}
