//! `seakeep objective`: what an objective makes of log-probabilities, without a model: losses, weights, derivatives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
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
    output::check("output", output)?;
    let input = matches.get_one::<PathBuf>("input").expect("clap requires it");
    let progress = matches.get_one::<f64>("progress").copied().unwrap_or(1.0);
    let batches = read(input, &objective)?;
    let results: Vec<Value> =
        batches.iter().map(|(name, rows)| evaluate(&objective, name, rows, progress)).collect();
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
fn read(path: &Path, objective: &Objective) -> Result<Vec<(Value, Vec<Row>)>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut batches: Vec<(Value, Vec<Row>)> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let columns: Map<String, Value> = serde_json::from_str(line)
            .map_err(|e| Error::row(path, i + 1, "", format!("not an object of JSON: {e}")))?;
        let reader = Reader { path, row: i + 1, columns: &columns };
        let row = reader.row(objective)?;
        let name = columns.get("batch").cloned().unwrap_or_default();
        let at = *known.entry(name.to_string()).or_insert(batches.len());
        if at == batches.len() {
            batches.push((name, Vec::new()));
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

    fn number(&self, key: &str) -> Result<f64> {
        match self.numbers(key)?.as_slice() {
            [one] => Ok(*one),
            several => Err(self.error(key, format!("{} numbers, expected one", several.len()))),
        }
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
            row.reference.extend(self.numbers_or(reference, objective.needs_reference(), 0.0, n)?);
            let counts = self.numbers_or(tokens, averages, 1.0, n)?;
            if let Some(wrong) = counts.iter().find(|t| **t < 1.0 || t.fract() != 0.0) {
                return Err(self.error(tokens, format!("{wrong}, expected a number of tokens, 1 or more")));
            }
            row.facts.tokens.extend(counts.iter().map(|t| *t as usize));
            row.facts.roles.extend(std::iter::repeat_n(role, n));
        }
        row.facts.predicted = row.facts.tokens.clone();
        row.facts.labels = self.labels(objective)?;
        if self.given("environments").is_some() {
            row.facts.environments = self.numbers("environments")?;
        }
        Ok(row)
    }

    fn labels(&self, objective: &Objective) -> Result<Labels> {
        use seakeep::objective::{LossType, Rule};
        let rewards = objective.pair.any(|l| l == LossType::Rebel);
        let soft = self.given("soft_label").map(|_| self.number("soft_label")).transpose()?;
        if soft.is_some_and(|q| !(0.0..=1.0).contains(&q)) {
            return Err(self.error("soft_label", "expected a probability from 0 to 1"));
        }
        let group = match (self.given("group"), objective.rule) {
            (Some(Value::String(name)), _) => Some(name.clone()),
            (Some(other), _) => Some(other.to_string()),
            (None, Rule::Group(_)) => {
                return Err(self.error("group", "missing or null, and the rule needs it"));
            }
            (None, _) => None,
        };
        let rewards = match rewards {
            true => Some([self.number("score_chosen")?, self.number("score_rejected")?]),
            false => None,
        };
        Ok(Labels { soft, group, rewards })
    }
}

fn evaluate(objective: &Objective, name: &Value, rows: &[Row], progress: f64) -> Value {
    let policy = BranchLogps(rows.iter().map(|r| r.policy.clone()).collect());
    let reference = BranchLogps(rows.iter().map(|r| r.reference.clone()).collect());
    let facts: Vec<Facts> = rows.iter().map(|r| r.facts.clone()).collect();
    let groups = Groups::of(facts.iter().map(|f| f.labels.group.clone()));
    let context = Context::of(&facts, progress, groups);
    let scored = Scored { policy: &policy, reference: &reference, facts: &facts };
    let found = objective.evaluate(&scored, &context);
    let metrics: Map<String, Value> = found.metrics.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let rows: Vec<Value> = rows.iter().enumerate().map(|(i, r)| row(&found, i, r)).collect();
    json!({"batch": name, "loss": found.loss, "metrics": metrics, "rows": rows})
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
