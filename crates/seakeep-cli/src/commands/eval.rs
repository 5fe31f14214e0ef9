//! `seakeep eval`: held-out loss and rewards of a policy against its reference, on any number of data sets.

use clap::{ArgAction, ArgMatches, Command};
use seakeep::data::TokenizedPair;
use seakeep::environments::Environments;
use seakeep::eval::evaluate;
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::logps::{BranchLogps, Facts};
use seakeep::model::Model;
use seakeep::objective::{Context, Scored};
use seakeep::progress::{Progress, Silent};
use seakeep::reference::{Known, Reference};
use seakeep::scoring::{Layout, Scores};
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::logps::{self, RUN_KEYS};
use crate::config::keys::objective_keys;
use crate::config::{Settings, objective, plan};
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "eval",
        "Measure the held-out loss and the reward metrics of a policy on data sets",
        "seakeep eval --model_name_or_path runs/a --ref_model_name_or_path models/m --dataset_name near.jsonl far.jsonl",
    );
    let own = ["model_name_or_path", "ref_model_name_or_path", "dataset_test_split", "reference_cache_dir"];
    let keys = [&own, args::DATA_KEYS, &objective_keys(), RUN_KEYS, &["seed"]].concat();
    let command = args::keyed(command, &keys)
        .mut_arg("dataset_name", |arg| arg.num_args(1..).action(ArgAction::Append))
        .arg(logps::output_flag(
            "JSON: for each data set its rows and its metrics, named eval_*. Default: standard output",
        ));
    args::accepting_the_rest(command)
}

/// Measures and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let specs = match args::texts(matches, "dataset_name") {
        none if none.is_empty() => vec![settings.required("dataset_name")?],
        several => several,
    };
    let split = settings.text("dataset_test_split");
    let split = split.as_deref();
    let (method, objective) = objective::objective(&settings)?;
    let output = logps::output_path(matches);
    output::check(output)?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();

    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let tokenizer = source.tokenizer()?;
    let read = |spec: &String, tokenizer: &Tokenizer, progress: &mut dyn Progress| {
        logps::read_and_tokenize(spec, split, tokenizer, &settings, Some(&objective), progress)
    };
    let sets: Vec<Vec<TokenizedPair>> =
        specs.iter().map(|spec| read(spec, &tokenizer, &mut *progress)).collect::<Result<_>>()?;
    let layout = Layout::of(&objective);
    let environments = objective::environments(&settings, &objective);
    // One model in memory at a time.
    let reference_path = settings.text("ref_model_name_or_path");
    let policy: Vec<Scores> = {
        let (model, how) =
            (Model::load(&source)?, (layout, environments.is_some() && reference_path.is_none()));
        let score = |(spec, pairs): (&String, &Vec<TokenizedPair>)| {
            logps::score(&model, pairs, how, &settings, &format!("policy on {spec}"), &mut *progress)
        };
        specs.iter().zip(&sets).map(score).collect::<Result<_>>()?
    };
    let reference: Vec<Vec<Known>> = match reference_path {
        _ if !objective.needs_reference() => {
            let zeros = |p: &TokenizedPair| Known { logps: layout.no_reference(p), ..Known::default() };
            sets.iter().map(|pairs| pairs.iter().map(zeros).collect()).collect()
        }
        Some(path) => {
            let reference = ModelSource::open(&path)?;
            if reference.tokenizer()?.fingerprint() != tokenizer.fingerprint() {
                let tokenizer = reference.tokenizer()?;
                for (spec, pairs) in specs.iter().zip(&sets) {
                    check_tokens(pairs, &read(spec, &tokenizer, &mut Silent)?)?;
                }
            }
            let (model, cache) = (Model::load(&reference)?, plan::reference_cache_dir(&settings));
            let size = settings.count("per_device_eval_batch_size").unwrap_or(1);
            let how = (Layout::of_reference(&objective), environments.is_some());
            let mut reference = Reference::open(&model, how, cache.as_deref(), size)?;
            let mut all = Vec::with_capacity(specs.len());
            for (spec, pairs) in specs.iter().zip(&sets) {
                progress.start(&format!("reference on {spec}"), pairs.len() as u64);
                all.push(reference.score(&pairs.iter().collect::<Vec<_>>(), &mut *progress)?);
                progress.finish();
            }
            all
        }
        None => {
            progress
                .note("no --ref_model_name_or_path: the policy is its own reference, so every reward is 0");
            policy.iter().map(Known::of).collect()
        }
    };
    let mut results = Vec::with_capacity(specs.len());
    for ((spec, pairs), (policy, reference)) in specs.iter().zip(&sets).zip(policy.iter().zip(&reference)) {
        let mut facts: Vec<Facts> = pairs.iter().map(|p| Facts::of(p, layout.prompts)).collect();
        if let Some(k) = environments {
            let features: Vec<Vec<f32>> = reference.iter().map(|r| r.features.clone()).collect();
            let found = Environments::find(&features, k, settings.seed("seed"))?;
            for (facts, features) in facts.iter_mut().zip(&features) {
                facts.environments = found.of(features);
            }
        }
        let reference = BranchLogps(reference.iter().map(|r| r.logps.clone()).collect());
        let scored = Scored { policy: &policy.logps, reference: &reference, facts: &facts };
        let mut result = Map::from_iter([
            ("dataset_name".to_string(), json!(spec)),
            ("rows".to_string(), json!(pairs.len())),
        ]);
        let metrics = evaluate(&scored, &Context::at_the_end(&facts), &objective).into_iter();
        let metrics = metrics.chain(policy.stats.metrics(&objective));
        result.extend(metrics.map(|(name, value)| (format!("eval_{name}"), json!(value))));
        results.push(Value::Object(result));
    }
    progress.note(&table(&results));
    let record = json!({
        "model_name_or_path": source.path,
        "ref_model_name_or_path": settings.path("ref_model_name_or_path").unwrap_or(source.path.clone()),
        "method": method,
        "objective": objective.settings().into_iter().map(|(k, v)| (k.to_string(), v)).collect::<Map<_, _>>(),
        "datasets": results,
    });
    output::emit(output, &format!("{record:#}\n"))
}

/// Two tokenizers may differ in their files and still give the same tokens; only then can log-probabilities be
/// compared.
fn check_tokens(policy: &[TokenizedPair], reference: &[TokenizedPair]) -> Result<()> {
    match policy.iter().zip(reference).find(|(a, b)| a != b) {
        None if policy.len() == reference.len() => Ok(()),
        differing => Err(Error::Usage(format!(
            "{}: model_name_or_path and ref_model_name_or_path make different tokens of row {}, so their \
             log-probabilities cannot be compared; the reference needs the policy's tokenizer and chat template",
            policy[0].file.display(),
            differing.map_or(policy[policy.len() - 1].row, |(a, _)| a.row)
        ))),
    }
}

/// The numbers a person compares first.
fn table(results: &[Value]) -> String {
    let columns = ["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"];
    let mut lines = vec![format!("{:>6} {:>10} {:>10} {:>10}  data", "rows", "loss", "accuracy", "margin")];
    for result in results {
        let numbers: String = columns
            .iter()
            .map(|c| result[*c].as_f64().map_or(format!(" {:>10}", "-"), |x| format!(" {x:>10.4}")))
            .collect();
        let name = result["dataset_name"].as_str().unwrap_or_default();
        lines.push(format!("{:>6}{numbers}  {name}", result["rows"].to_string()));
    }
    lines.join("\n")
}
