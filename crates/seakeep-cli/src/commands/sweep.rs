//! `seakeep sweep`: methods times knobs times seeds, each trained and judged, to one table.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use seakeep::formats::Claim;
use seakeep::{Error, Result};
use serde_json::{Map, Value};

use super::{eval, sweep_results};
use crate::config::keys::objective_keys;
use crate::config::{Settings, plan, settings};
use crate::flags::takes_list;
use crate::stages::{Marks, Stage};
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    args::command(
        "sweep",
        "Train and judge methods x knobs x seeds; started again it goes on where it was",
        "seakeep sweep --config sweep.toml --jobs 2",
    )
    .args([
        args::spelled("config").value_name("FILE").required(true).help(
            "output_dir, seeds, [train] (keys of `train`), [eval] (flags of `eval`), [[methods]] (keys of `train`; a list is \
             several runs); `{seed}` in a text is the run's seed",
        ),
        args::spelled("output_dir").value_name("PATH").help("In place of the file's output_dir"),
        args::spelled("jobs").value_name("N").value_parser(value_parser!(u64).range(1..=64)).help(
            "Runs at a time, each with its share of the threads; small models are faster so. Does not change any result",
        ),
        Arg::new("list").long("list").action(ArgAction::SetTrue).help("Prints the runs as commands, and runs none"),
    ])
}

/// Trains, judges, and writes the table.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let text = |name: &str| args::texts(matches, name).pop();
    let path = PathBuf::from(text("config").unwrap_or_default());
    let mut sweep = Sweep::read(&path, text("output_dir"))?;
    if let Some(jobs) = matches.get_one::<u64>("jobs") {
        sweep.jobs = *jobs as usize;
    }
    let cells = sweep.cells()?;
    cells.iter().try_for_each(Cell::check)?;
    if matches.get_flag("list") {
        let lines = cells.iter().flat_map(|c| &c.stages).map(|s| format!("{}\n", s.command_line()));
        return output::print(&lines.collect::<String>());
    }
    sweep.go(&cells)?;
    let records: Vec<PathBuf> = cells.iter().map(|cell| cell.record.clone()).collect();
    let table = sweep_results::write(&sweep.output_dir, &records)?;
    output::print(&table)
}

/// Keys of `train` that every run has of its own.
const OWN_TRAIN: [&str; 4] = ["seed", "output_dir", "overwrite_output_dir", "resume_from_checkpoint"];
/// Flags of `eval` that every run has of its own.
const OWN_EVAL: [&str; 7] = [
    "model_name_or_path",
    "ref_model_name_or_path",
    "label",
    "policy_method",
    "policy_seed",
    "policy_record",
    "output",
];

/// What the file asks for.
struct Sweep {
    path: PathBuf,
    output_dir: PathBuf,
    seeds: Vec<u64>,
    jobs: usize,
    keep_models: bool,
    train: Map<String, Value>,
    eval: Map<String, Value>,
    methods: Vec<Map<String, Value>>,
}

/// One run: a policy trained and judged, or the reference judged.
struct Cell {
    label: String,
    seed: u64,
    /// Where its model is, to be removed once it is judged; none for the reference.
    model: Option<PathBuf>,
    record: PathBuf,
    stages: Vec<Stage>,
}

impl Cell {
    /// Whether every setting is one of `train`'s and goes with the others, before anything is run.
    fn check(&self) -> Result<()> {
        for stage in &self.stages {
            let matches = stage.matches()?;
            let matches = matches.subcommand().expect("the stage has a command").1;
            let named = |e: Error| {
                Error::Usage(format!("{}: {}", stage.name, e.to_string().trim_start_matches("usage: ")))
            };
            let settings = Settings::read(matches).map_err(named)?;
            match stage.args[0].as_str() {
                "train" => drop(plan::plan(&settings).map_err(named)?),
                _ => eval::check(matches).map_err(named)?,
            }
        }
        Ok(())
    }
}

impl Sweep {
    fn read(path: &Path, output_dir: Option<String>) -> Result<Sweep> {
        let bad = |what: String| Error::Usage(format!("{}: {what}", path.display()));
        let mut file = settings::read_file(path)?;
        let mut table = |name: &str| match file.remove(name) {
            Some(Value::Object(table)) => Ok(table),
            None => Err(bad(format!("no [{name}]; expected the keys of `seakeep {name}`"))),
            Some(other) => Err(bad(format!("`{name}` is {other}; expected a table"))),
        };
        let (train, eval) = (table("train")?, table("eval")?);
        let methods = match file.remove("methods") {
            Some(Value::Array(methods)) if !methods.is_empty() => methods.into_iter().map(|m| match m {
                Value::Object(m) => Ok(m),
                other => Err(bad(format!("`methods` has {other}; expected tables"))),
            }),
            _ => {
                return Err(bad(
                    "no [[methods]]; expected tables such as method = \"dpo\", beta = [0.1, 0.3]".into(),
                ));
            }
        };
        let methods: Vec<Map<String, Value>> = methods.collect::<Result<_>>()?;
        let seeds = match file.remove("seeds") {
            None => vec![0],
            Some(Value::Number(n)) if n.as_u64().is_some_and(|n| (1..=1000).contains(&n)) => {
                (0..n.as_u64().unwrap_or(1)).collect()
            }
            Some(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_u64) => {
                list.iter().filter_map(Value::as_u64).collect()
            }
            Some(other) => {
                return Err(bad(format!(
                    "`seeds` is {other}; expected how many, or a list of whole numbers"
                )));
            }
        };
        let jobs = match file.remove("jobs") {
            None => 1,
            Some(n) => {
                n.as_u64()
                    .filter(|n| (1..=64).contains(n))
                    .ok_or_else(|| bad(format!("`jobs` is {n}; expected 1 to 64")))? as usize
            }
        };
        let keep_models = match file.remove("keep_models") {
            None => true,
            Some(keep) => keep
                .as_bool()
                .ok_or_else(|| bad(format!("`keep_models` is {keep}; expected true or false")))?,
        };
        let own = file.remove("output_dir").and_then(|d| d.as_str().map(PathBuf::from));
        let output_dir = output_dir
            .map(PathBuf::from)
            .or(own)
            .ok_or_else(|| bad("no `output_dir`; expected a path".into()))?;
        if let Some(key) = file.keys().next() {
            return Err(bad(format!(
                "`{key}` is not a key of a sweep; it has output_dir, seeds, jobs, keep_models, [train], [eval], [[methods]]"
            )));
        }
        if let Some((key, _)) =
            methods.iter().flatten().find(|(_, v)| v.as_array().is_some_and(Vec::is_empty))
        {
            return Err(bad(format!(
                "`{key}` in [[methods]] is an empty list; expected a value, or a list of several"
            )));
        }
        let trained = std::iter::once(("train", &train)).chain(methods.iter().map(|m| ("methods", m)));
        for (given, table) in trained.chain([("eval", &eval)]) {
            let own: &[&str] = if given == "eval" { &OWN_EVAL } else { &OWN_TRAIN };
            if let Some(key) = table.keys().find(|key| own.contains(&key.as_str())) {
                return Err(bad(format!("`{key}` in [{given}]: the sweep gives every run its own")));
            }
        }
        Ok(Sweep { path: path.to_path_buf(), output_dir, seeds, jobs, keep_models, train, eval, methods })
    }

    /// The reference, then every method, every value of its knobs, every seed.
    fn cells(&self) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for &seed in &self.seeds {
            let cell = self.reference(seed)?;
            // One is enough, unless it, or something of the evaluation, depends on the seed.
            let named = |value: &Value| value.to_string().contains("{seed}");
            if cells.is_empty() || self.eval.values().chain(base(&self.train)).any(named) {
                cells.push(cell);
            }
        }
        for method in &self.methods {
            for (label, knobs) in combinations(method, &self.train) {
                for &seed in &self.seeds {
                    cells.push(self.policy(&label, &knobs, seed)?);
                }
            }
        }
        let twice = cells.iter().enumerate().find(|(i, c)| cells[..*i].iter().any(|o| o.record == c.record));
        match twice {
            None => Ok(cells),
            Some((_, cell)) => Err(Error::Usage(format!(
                "{}: `{}` stands twice: name each method, each value of its knobs and each of `seeds` once",
                self.path.display(),
                cell.label
            ))),
        }
    }

    fn reference(&self, seed: u64) -> Result<Cell> {
        let directory = self.output_dir.join("reference").join(format!("seed{seed}"));
        let mut flags = seeded(&self.eval, seed);
        let train = seeded(&self.train, seed);
        let model = base(&train).cloned().ok_or_else(|| {
            Error::Usage(format!("{}: [train] has no model_name_or_path", self.path.display()))
        })?;
        flags.insert("model_name_or_path".into(), model.clone());
        flags.insert("ref_model_name_or_path".into(), model);
        take(&mut flags, [], &train);
        let record = directory.join("policy.json");
        flags.insert("label".into(), Value::from("reference"));
        flags.insert("policy_method".into(), Value::from("reference"));
        flags.insert("policy_seed".into(), Value::from(seed));
        flags.insert("policy_record".into(), path_value(&record));
        let stages = vec![Stage::new(&format!("reference/seed{seed}/eval"), "eval", &flags)?];
        Ok(Cell { label: "reference".into(), seed, model: None, record, stages })
    }

    fn policy(&self, label: &str, knobs: &Map<String, Value>, seed: u64) -> Result<Cell> {
        let name = format!("{}/seed{seed}", slug(label));
        let directory = self.output_dir.join(&name);
        let (model, record) = (directory.join("model"), directory.join("policy.json"));
        let mut train = Map::from_iter([
            ("save_strategy".to_string(), Value::from("no")),
            ("report_to".to_string(), Value::from("none")),
        ]);
        train.extend(seeded(&self.train, seed));
        train.extend(seeded(knobs, seed));
        train.insert("seed".into(), Value::from(seed));
        let mut eval = seeded(&self.eval, seed);
        take(&mut eval, objective_keys(), &train);
        eval.insert("ref_model_name_or_path".into(), base(&train).cloned().unwrap_or_default());
        eval.insert("model_name_or_path".into(), path_value(&model));
        eval.insert("label".into(), Value::from(label));
        eval.insert("policy_seed".into(), Value::from(seed));
        eval.insert("policy_record".into(), path_value(&record));
        train.insert("output_dir".into(), path_value(&model));
        let stages = vec![
            Stage::new(&format!("{name}/train"), "train", &train)?,
            Stage::new(&format!("{name}/eval"), "eval", &eval)?,
        ];
        Ok(Cell { label: label.into(), seed, model: Some(model), record, stages })
    }

    /// Runs what is not done, several at a time.
    fn go(&self, cells: &[Cell]) -> Result<()> {
        // In the directory of each run, so that removing one forgets it.
        std::fs::create_dir_all(&self.output_dir).map_err(Error::io("create", &self.output_dir))?;
        let _claim = Claim::on("the sweep's output_dir", &self.output_dir)?;
        let marks = Marks::new(self.output_dir.clone(), Some(self.output_dir.clone()));
        let mut waiting = VecDeque::new();
        for cell in cells {
            let done = cell.stages.iter().map(|s| marks.done(s)).collect::<Result<Vec<_>>>().map_err(
                |e| match e {
                    Error::Usage(what) => Error::Usage(format!(
                        "{what}; remove {} to do it again",
                        cell.record.parent().unwrap_or(&cell.record).display()
                    )),
                    other => other,
                },
            )?;
            if done.iter().any(Option::is_none) {
                waiting.push_back(cell);
            }
        }
        let mut progress = progress::on_stderr();
        if waiting.len() < cells.len() {
            progress.note(&format!(
                "{} of {} runs are done from before",
                cells.len() - waiting.len(),
                cells.len()
            ));
        }
        progress.start("sweep", waiting.len() as u64);
        let (total, started) = (waiting.len(), Instant::now());
        let shared = Mutex::new((waiting, 0, None::<Error>, progress));
        let threads = (rayon::current_num_threads() / self.jobs).max(1);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(total) {
                scope.spawn(|| {
                    let take = || {
                        let mut shared = shared.lock().expect("no holder panics");
                        // After a failure nothing new begins.
                        if shared.2.is_some() { None } else { shared.0.pop_front() }
                    };
                    while let Some(cell) = take() {
                        let done = self.cell(cell, &marks, threads);
                        let mut shared = shared.lock().expect("no holder panics");
                        match done {
                            Ok(()) => {
                                shared.1 += 1;
                                let left = started.elapsed().as_secs_f64() / shared.1 as f64
                                    * (total - shared.1) as f64;
                                let line = format!(
                                    "{} seed {} done, about {} left",
                                    cell.label,
                                    cell.seed,
                                    time(left)
                                );
                                shared.3.advance(1, &line);
                            }
                            Err(e) => shared.2 = shared.2.take().or(Some(e)),
                        }
                    }
                });
            }
        });
        let (_, _, failure, mut progress) = shared.into_inner().expect("no holder panicked");
        progress.finish();
        failure.map_or(Ok(()), Err)
    }

    /// One run, with everything that its commands say in its own log.
    fn cell(&self, cell: &Cell, marks: &Marks, threads: usize) -> Result<()> {
        let directory = cell.record.parent().expect("a file in a directory");
        std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let path = directory.join("log.txt");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::Usage(format!("{threads} threads: {e}")))?;
        let stages = || -> Result<()> {
            // To be judged again, a policy whose weights were removed is trained again.
            if let (Some(model), [train, eval]) = (&cell.model, &cell.stages[..])
                && !self.keep_models
                && marks.done(eval)?.is_none()
                && !has_weights(model)
            {
                marks.forget(train)?;
            }
            for stage in &cell.stages {
                if marks.done(stage)?.is_none() {
                    marks.run(stage)?;
                }
            }
            Ok(())
        };
        pool.install(|| output::logged(log, stages))?;
        match &cell.model {
            Some(model) if !self.keep_models => remove_weights(model),
            _ => Ok(()),
        }
    }
}

/// The model that policies start from and are compared with.
fn base(train: &Map<String, Value>) -> Option<&Value> {
    train.get("ref_model_name_or_path").or(train.get("model_name_or_path"))
}

/// Removes the weights of a judged policy; what its training logged stays.
fn remove_weights(model: &Path) -> Result<()> {
    weights(model).try_for_each(|path| std::fs::remove_file(&path).map_err(Error::io("remove", &path)))
}

fn has_weights(model: &Path) -> bool {
    weights(model).next().is_some()
}

fn weights(model: &Path) -> impl Iterator<Item = PathBuf> {
    let files = std::fs::read_dir(model).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
}

fn path_value(path: &Path) -> Value {
    Value::from(path.to_string_lossy())
}

/// In what form a model is kept.
const FORM: [&str; 3] = ["dtype", "load_in_8bit", "load_in_4bit"];

/// Gives `eval` what it does not say itself and `train` does, of `keys` and of the numbers that a model is made of: adapters are judged on
/// the base that they were trained on.
fn take<'k>(
    eval: &mut Map<String, Value>,
    keys: impl IntoIterator<Item = &'k str>,
    train: &Map<String, Value>,
) {
    let form: &[&str] = if FORM.iter().any(|key| eval.contains_key(*key)) { &[] } else { &FORM };
    for key in keys.into_iter().chain(["bf16"]).chain(form.iter().copied()) {
        if let Some(value) = train.get(key) {
            eval.entry(key).or_insert(value.clone());
        }
    }
}

/// The flags with `{seed}` replaced.
fn seeded(flags: &Map<String, Value>, seed: u64) -> Map<String, Value> {
    fn fill(value: &Value, seed: &str) -> Value {
        match value {
            Value::String(text) => Value::from(text.replace("{seed}", seed)),
            Value::Array(list) => list.iter().map(|v| fill(v, seed)).collect(),
            other => other.clone(),
        }
    }
    flags.iter().map(|(k, v)| (k.clone(), fill(v, &seed.to_string()))).collect()
}

/// Every combination of the values of a method's knobs, each with its label: the method (its own or that of `train`) and the knobs given.
fn combinations(
    method: &Map<String, Value>,
    train: &Map<String, Value>,
) -> Vec<(String, Map<String, Value>)> {
    let mut all = vec![Map::new()];
    for (key, value) in method.iter().filter(|(key, _)| *key != "label") {
        // Of a key that takes a list, only a list of lists is several values.
        let values = match value {
            Value::Array(list) if !takes_list(key) || list.iter().all(Value::is_array) => list.clone(),
            one => vec![one.clone()],
        };
        let with = |map: &Map<String, Value>, value: &Value| {
            let mut map = map.clone();
            map.insert(key.clone(), value.clone());
            map
        };
        all = all.iter().flat_map(|map| values.iter().map(move |value| with(map, value))).collect();
    }
    let given = method.get("label").and_then(Value::as_str);
    let several = all.len() > 1;
    let named = |knobs: &Map<String, Value>| {
        let method = knobs.get("method").or(train.get("method")).and_then(Value::as_str);
        label(given, method.unwrap_or("dpo"), knobs, several)
    };
    all.into_iter().map(|knobs| (named(&knobs), knobs)).collect()
}

/// `dpo beta 0.1`, `kldpo beta 0.1 tau 0.5`; or the label given, with the knobs where it stands for several.
fn label(given: Option<&str>, method: &str, knobs: &Map<String, Value>, several: bool) -> String {
    let method = method.replace('_', "-");
    let head = given.map_or(method.clone(), str::to_string);
    if given.is_some() && !several {
        return head;
    }
    let own = format!("{}_", method.replace('-', "_"));
    let knob = |(key, value): (&String, &Value)| {
        let value = value.as_str().map_or(value.to_string(), str::to_string);
        format!(" {} {value}", key.strip_prefix(&own).unwrap_or(key))
    };
    head + &knobs.iter().filter(|(key, _)| *key != "method").map(knob).collect::<String>()
}

/// A label as the name of a directory.
fn slug(label: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || ".-".contains(c) { c } else { '_' };
    label.chars().map(plain).collect()
}

/// A time to read.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_several_runs() {
        let method = json!({"method": "kldpo", "beta": [0.1, 0.3], "kldpo_tau": [0.5, 1.0], "loss_type": ["sigmoid", "sft"]});
        let all = combinations(method.as_object().unwrap(), &Map::new());
        let labels: Vec<&str> = all.iter().map(|(label, _)| label.as_str()).collect();
        assert_eq!(labels.len(), 4);
        assert_eq!(labels[0], "kldpo beta 0.1 tau 0.5 loss_type [\"sigmoid\",\"sft\"]");
        assert_eq!(all[3].1["beta"], json!(0.3));
        assert_eq!(slug("kldpo beta 0.1"), "kldpo_beta_0.1");
        let (train, knobs) = (json!({"method": "kldpo"}), json!({"kldpo_tau": [0.5, 1.0]}));
        let all = combinations(knobs.as_object().unwrap(), train.as_object().unwrap());
        assert_eq!(all[1].0, "kldpo tau 1.0", "the method that every run has");
    }
}
