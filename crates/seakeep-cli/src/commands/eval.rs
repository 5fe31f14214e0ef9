//! `seakeep eval`: held-out loss and rewards of a policy against its reference, on any number of data sets.

use clap::{ArgAction, ArgMatches, Command};
use seakeep::data::{TokenizedPair, read_pairs, tokenize_pairs};
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::logps::BranchLogps;
use seakeep::model::Model;
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::logps::{self, RUN_KEYS};
use crate::config::{Settings, plan};
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "eval",
        "Measure the held-out loss and the reward metrics of a policy on data sets",
        "seakeep eval --model_name_or_path runs/a --ref_model_name_or_path models/m --dataset_name near.jsonl far.jsonl",
    );
    let models = ["model_name_or_path", "ref_model_name_or_path"];
    let keys = [&models, args::DATA_KEYS, args::OBJECTIVE_KEYS, RUN_KEYS].concat();
    args::keyed(command, &keys)
        .mut_arg("dataset_name", |arg| arg.num_args(1..).action(ArgAction::Append))
        .arg(logps::output_flag(
            "JSON: for each data set its rows and its metrics, named eval_*. Default: standard output",
        ))
}

/// Measures and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let specs = match args::texts(matches, "dataset_name") {
        none if none.is_empty() => vec![settings.required("dataset_name")?],
        several => several,
    };
    let (method, objective) = plan::objective(&settings)?;
    let output = logps::output_path(matches);
    output::check(output)?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();

    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let tokenizer = source.tokenizer()?;
    let sets: Vec<_> = specs
        .iter()
        .map(|spec| logps::read_and_tokenize(spec, &tokenizer, &settings, &mut *progress))
        .collect::<Result<_>>()?;
    // One model in memory at a time.
    let mut score_all = |source: &ModelSource, who: &str| -> Result<Vec<BranchLogps>> {
        let model = Model::load(source)?;
        let scored = specs.iter().zip(&sets).map(|(spec, pairs)| {
            logps::score(&model, pairs, &settings, &format!("{who} on {spec}"), &mut *progress)
        });
        scored.collect()
    };
    let policy = score_all(&source, "policy")?;
    let reference = match settings.text("ref_model_name_or_path") {
        Some(path) => {
            let reference = ModelSource::open(&path)?;
            if reference.tokenizer()?.fingerprint() != tokenizer.fingerprint() {
                check_tokens(&specs, &sets, &*reference.tokenizer()?, &settings)?;
            }
            score_all(&reference, "reference")?
        }
        None => {
            progress
                .note("no --ref_model_name_or_path: the policy is its own reference, so every reward is 0");
            policy.clone()
        }
    };
    let results: Vec<Value> = (0..specs.len())
        .map(|i| {
            let n = sets[i].len();
            let evaluation = objective.evaluate(&policy[i], &reference[i], n);
            let mut result = Map::from_iter([
                ("dataset_name".to_string(), json!(specs[i])),
                ("rows".to_string(), json!(n)),
                ("eval_loss".to_string(), json!(evaluation.loss)),
            ]);
            result.extend(
                evaluation.metrics.into_iter().map(|(name, value)| (format!("eval_{name}"), json!(value))),
            );
            Value::Object(result)
        })
        .collect();
    progress.note(&table(&results));
    let record = json!({
        "model_name_or_path": source.path,
        "ref_model_name_or_path": settings.path("ref_model_name_or_path").unwrap_or(source.path.clone()),
        "method": method,
        "beta": objective.pair.beta,
        "datasets": results,
    });
    output::emit(output, &format!("{record:#}\n"))
}

/// Two tokenizers may differ in their files and still give the same tokens; only then can log-probabilities be
/// compared.
fn check_tokens(
    specs: &[String],
    sets: &[Vec<TokenizedPair>],
    tokenizer: &Tokenizer,
    settings: &Settings,
) -> Result<()> {
    for (spec, pairs) in specs.iter().zip(sets) {
        let (other, _) = tokenize_pairs(&read_pairs(spec)?, tokenizer, &plan::tokenize(settings))?;
        if &other != pairs {
            let row = pairs.iter().zip(&other).find(|(a, b)| a != b).map_or(0, |(a, _)| a.row);
            return Err(Error::Usage(format!(
                "{spec}, row {row}: model_name_or_path and ref_model_name_or_path make different tokens of it, so their \
                 log-probabilities cannot be compared; the reference must have the policy's tokenizer and chat template"
            )));
        }
    }
    Ok(())
}

/// The numbers a person compares first.
fn table(results: &[Value]) -> String {
    let columns = ["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"];
    let mut lines = vec![format!("{:>6} {:>10} {:>10} {:>10}  data", "rows", "loss", "accuracy", "margin")];
    for result in results {
        let numbers: String =
            columns.iter().map(|c| format!(" {:>10.4}", result[*c].as_f64().unwrap_or(f64::NAN))).collect();
        let name = result["dataset_name"].as_str().unwrap_or_default();
        lines.push(format!("{:>6}{numbers}  {name}", result["rows"].to_string()));
    }
    lines.join("\n")
}
