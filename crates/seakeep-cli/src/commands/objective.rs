//! `seakeep objective`: what an objective makes of log-probabilities, without a model: losses, weights, derivatives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use seakeep::data::{LabelColumns, Pair};
use seakeep::logps::{BranchLogps, Facts, Labels, Role};
use seakeep::objective::{Context, Evaluation, Groups, Objective, Scored};
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::logps::{output_flag, output_path};
use crate::config::keys::objective_keys;
use crate::config::{Settings, objective};
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "objective",
        "Show what an objective makes of given log-probabilities: each row's loss, weight and derivatives",
        "seakeep objective --method kldpo --kldpo_rho 0.2 --input logps.jsonl",
    );
    let command = args::keyed(command, &objective_keys())
        .arg(
            args::spelled("input").value_name("FILE").required(true).value_parser(clap::value_parser!(PathBuf)).help(
                "JSON lines: chosen_logps, rejected_logps (a number, or a list where several are rejected), \
                 ref_chosen_logps, ref_rejected_logps, chosen_tokens, rejected_tokens; where the objective asks for \
                 them prompt_logps, prompt_tokens, soft_label, group, score_chosen, score_rejected, environments; for \
                 kto completion_logps, ref_completion_logps, completion_tokens, label, kl_logps, ref_kl_logps. Rows \
                 with the same `batch` form a global batch; without it all rows do",
            ),
        )
        .arg(
            args::spelled("progress")
                .value_name("X")
                .value_parser(clap::value_parser!(f64))
                .help("Share of the optimizer steps done, for rules with a schedule [default: 1]"),
        )
        .arg(output_flag("JSON: for each batch its loss, metrics and rows. Default: standard output"));
    args::accepting_the_rest(command)
}

/// Evaluates and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let (method, objective) = objective::objective(&settings)?;
    if objective.penalty.is_some() {
        return Err(Error::Usage(
            "the penalty of wdpo_rho is of a model's input embeddings, and here is no model: leave it out"
                .into(),
        ));
    }
    let output = output_path(matches);
    let input = matches.get_one::<PathBuf>("input").expect("clap requires it");
    output::check(&[("output", output)], &[("input", &input.to_string_lossy())])?;
    let progress = matches.get_one::<f64>("progress").copied().unwrap_or(1.0);
    if !(0.0..=1.0).contains(&progress) {
        return Err(Error::Usage(format!("--progress is {progress}; expected 0 to 1")));
    }
    for (key, why) in [
        ("ld_alpha", "it weights single tokens, and here are sums over them: leave it out"),
        (
            "causal_environments",
            "environments are found from a model's features: give each row's shares as `environments`",
        ),
    ] {
        if settings.is_given(key) {
            return Err(Error::Usage(format!("{} has no meaning here: {why}", settings.place(key))));
        }
    }
    let batches = read(input, &objective, &objective::label_columns(&settings, &objective))?;
    let one = |(name, rows): &(Value, Vec<Row>)| {
        evaluate(&objective, name, rows, progress).map_err(|what| Error::format(input, what))
    };
    let results: Vec<Value> = batches.iter().map(one).collect::<Result<_>>()?;
    let settings = objective.settings().into_iter().map(|(k, v)| (k.to_string(), v)).collect::<Map<_, _>>();
    let record = json!({"method": method, "objective": settings, "batches": results});
    output::emit(output, &format!("{record:#}\n"))
}

/// One row as an objective sees it.
struct Row {
    /// Whether its rejected completions are a list, be it of one.
    listed: bool,
    policy: Vec<f64>,
    reference: Vec<f64>,
    facts: Facts,
}

/// The rows of each batch, in the order in which batches first appear.
fn read(path: &Path, objective: &Objective, names: &LabelColumns) -> Result<Vec<(Value, Vec<Row>)>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut batches: Vec<(Value, Vec<Row>)> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let columns: Map<String, Value> = serde_json::from_str(line)
            .map_err(|e| Error::row(path, i + 1, "", format!("not an object of JSON: {e}")))?;
        let reader = Reader { path, row: i + 1, columns: &columns, names };
        let row = reader.row(objective)?;
        let name = columns.get("batch").cloned().unwrap_or_default();
        let at = *known.entry(name.to_string()).or_insert(batches.len());
        if at == batches.len() {
            batches.push((name, Vec::new()));
        }
        let others =
            batches[at].1.first().map_or(row.facts.environments.len(), |r: &Row| r.facts.environments.len());
        if others != row.facts.environments.len() {
            let what = format!(
                "{} shares, where other rows of its batch have {others}",
                row.facts.environments.len()
            );
            return Err(reader.error("environments", what));
        }
        batches[at].1.push(row);
    }
    if batches.is_empty() {
        return Err(Error::format(path, "no rows: the file is empty"));
    }
    Ok(batches)
}

struct Reader<'a> {
    path: &'a Path,
    row: usize,
    columns: &'a Map<String, Value>,
    names: &'a LabelColumns,
}

impl Reader<'_> {
    fn error(&self, key: &str, what: impl Into<String>) -> Error {
        Error::row(self.path, self.row, key, what)
    }

    fn given(&self, key: &str) -> Option<&Value> {
        self.columns.get(key).filter(|v| !v.is_null())
    }

    /// One number, or those of a list.
    fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.given(key).ok_or_else(|| self.error(key, "missing or null, expected a number"))?;
        let list = match value {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        numbers.ok_or_else(|| self.error(key, format!("{value}, expected a number or a list of numbers")))
    }

    /// As [`numbers`](Self::numbers) of what the objective may do without.
    fn numbers_or(&self, key: &str, needed: bool, otherwise: f64, n: usize) -> Result<Vec<f64>> {
        let found = if needed || self.given(key).is_some() { self.numbers(key)? } else { vec![otherwise; n] };
        if found.len() == n {
            return Ok(found);
        }
        Err(self.error(key, format!("{} numbers, expected {n}", found.len())))
    }

    fn row(&self, objective: &Objective) -> Result<Row> {
        let unpaired = objective.pair.any(|l| l.is_unpaired());
        let mut branches: Vec<(Role, &str, &str, &str)> = match (unpaired, self.given("label")) {
            (true, Some(Value::Bool(good))) => {
                let role = if *good { Role::Chosen } else { Role::Rejected };
                vec![(role, "completion_logps", "ref_completion_logps", "completion_tokens")]
            }
            (true, _) => return Err(self.error("label", "expected true or false")),
            (false, _) => vec![
                (Role::Chosen, "chosen_logps", "ref_chosen_logps", "chosen_tokens"),
                (Role::Rejected, "rejected_logps", "ref_rejected_logps", "rejected_tokens"),
            ],
        };
        if objective.needs_mismatched() {
            branches.push((Role::Mismatched, "kl_logps", "ref_kl_logps", "kl_tokens"));
        }
        if objective.learns_prompts() {
            branches.push((Role::Prompt, "prompt_logps", "ref_prompt_logps", "prompt_tokens"));
        }
        let averages = objective.pair.any(|l| l.averages());
        let listed = self.given("rejected_logps").is_some_and(Value::is_array);
        let mut row = Row { listed, policy: Vec::new(), reference: Vec::new(), facts: Facts::default() };
        for (role, logps, reference, tokens) in branches {
            let own = self.numbers(logps)?;
            let n = own.len();
            if n == 0 || n != 1 && role != Role::Rejected {
                return Err(self.error(logps, format!("{n} numbers, expected one")));
            }
            row.policy.extend(own);
            // A prompt is learnt, not compared.
            let compares = objective.needs_reference() && role != Role::Prompt;
            row.reference.extend(self.numbers_or(reference, compares, 0.0, n)?);
            let counts = self.numbers_or(tokens, averages, 1.0, n)?;
            if let Some(wrong) = counts.iter().find(|t| **t < 1.0 || t.fract() != 0.0) {
                return Err(self.error(tokens, format!("{wrong}, expected a number of tokens, 1 or more")));
            }
            row.facts.tokens.extend(counts.iter().map(|t| *t as usize));
            row.facts.roles.extend(std::iter::repeat_n(role, n));
        }
        row.facts.predicted = row.facts.tokens.clone();
        row.facts.labels = self.labels()?;
        if self.given("environments").is_some() {
            let shares = self.numbers("environments")?;
            if shares.iter().any(|s| !(0.0..=1.0).contains(s))
                || (shares.iter().sum::<f64>() - 1.0).abs() > 1e-3
            {
                return Err(self.error("environments", format!("{shares:?}, expected shares that sum to 1")));
            }
            row.facts.environments = shares;
        }
        Ok(row)
    }

    /// As training reads them; a `soft_label` also where no column was named.
    fn labels(&self) -> Result<Labels> {
        let own = self.given("soft_label").map(|_| "soft_label".to_string());
        let names = LabelColumns { soft: self.names.soft.clone().or(own), ..self.names.clone() };
        let (file, extra) = (self.path.into(), self.columns.clone());
        names.labels(&Pair { file, row: self.row, extra, prompt: None, completions: Vec::new() })
    }
}

/// # Errors
/// What is wrong, where the loss is no number.
fn evaluate(objective: &Objective, name: &Value, rows: &[Row], progress: f64) -> Result<Value, String> {
    let policy = BranchLogps(rows.iter().map(|r| r.policy.clone()).collect());
    let reference = BranchLogps(rows.iter().map(|r| r.reference.clone()).collect());
    let facts: Vec<Facts> = rows.iter().map(|r| r.facts.clone()).collect();
    let groups = Groups::of(facts.iter().map(|f| f.labels.group.clone()));
    let context = Context::of(&facts, progress, groups);
    let scored = Scored { policy: &policy, reference: &reference, facts: &facts };
    let found = objective.evaluate(&scored, &context);
    if !found.loss.is_finite() {
        let batch = if name.is_null() { String::new() } else { format!("batch {name}: ") };
        let row = found.pairs.iter().position(|pair| !pair.value.is_finite());
        let of = row
            .map(|at| format!(", of its row {} alone {}", at + 1, found.pairs[at].value))
            .unwrap_or_default();
        return Err(format!("{batch}the loss is {}{of}: log-probabilities too far apart", found.loss));
    }
    let metrics: Map<String, Value> = found.metrics.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let rows: Vec<Value> = rows.iter().enumerate().map(|(i, r)| row(&found, i, r)).collect();
    Ok(json!({"batch": name, "loss": found.loss, "metrics": metrics, "rows": rows}))
}

/// What became of a row; the derivatives are of the loss of its batch.
fn row(found: &Evaluation, i: usize, row: &Row) -> Value {
    let (d, facts) = (&found.grads.0[i], &row.facts);
    let of = |role: Role| -> Vec<f64> {
        facts.roles.iter().zip(d).filter(|(r, _)| **r == role).map(|(_, d)| *d).collect()
    };
    let mut out = Map::new();
    out.insert("loss".into(), json!(found.pairs[i].value));
    out.insert("weight".into(), json!(found.weights[i]));
    if facts.branch(Role::Mismatched).is_some() || d.len() == 1 {
        out.insert("d_completion_logps".into(), json!(d[0]));
    } else {
        out.insert("d_chosen_logps".into(), json!(d[0]));
        let rejected = of(Role::Rejected);
        let rejected = if row.listed { json!(rejected) } else { json!(rejected[0]) };
        out.insert("d_rejected_logps".into(), rejected);
    }
    if let [prompt] = of(Role::Prompt)[..] {
        out.insert("d_prompt_logps".into(), json!(prompt));
    }
    Value::Object(out)
}
