//! `seakeep logps`: the log-probabilities of every pair, one JSON line each.

use std::path::Path;
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command};
use seakeep::data::{Branch, Pair, Role, TokenizeReport, TokenizedPair, read_pairs, tokenize_pairs};
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::logps::BranchLogps;
use seakeep::model::Model;
use seakeep::objective::Objective;
use seakeep::progress::Progress;
use seakeep::scoring::{self, PairLayout, Scores};
use seakeep::train::data::{select, tokenize_for};
use seakeep::{Error, Result};
use serde_json::{Map, Value};

use crate::config::{Settings, plan};
use crate::{args, output, progress};

/// The keys that say how results of many pairs are computed.
pub const RUN_KEYS: &[&str] =
    &["per_device_eval_batch_size", "num_threads", "dtype", "load_in_8bit", "load_in_4bit", "bf16"];

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "logps",
        "Write the log-probabilities of chosen and rejected completions (nats, summed over tokens)",
        "seakeep logps --model_name_or_path models/m --dataset_name pairs.jsonl --max_length 512 --output logps.jsonl",
    );
    let keys = [args::DATA_KEYS, RUN_KEYS, &["model_name_or_path", "dataset_train_split"]].concat();
    let command = args::keyed(command, &keys)
        .mut_arg("dataset_train_split", |arg| arg.help("Which rows, such as `train[:100]` [default: all]"));
    args::accepting_the_rest(command.arg(output_flag(
        "JSON lines: row, prompt_tokens, chosen_tokens, rejected_tokens, \
        chosen_logps, rejected_logps (lists where several are rejected), or label, completion_tokens, completion_logps; with \
        several data files also file. Default: standard output",
    )))
}

/// `--output FILE`.
pub fn output_flag(help: &'static str) -> Arg {
    args::spelled("output")
        .value_name("FILE")
        .value_parser(clap::value_parser!(std::path::PathBuf))
        .help(help)
}

/// Where `--output` says.
pub fn output_path(matches: &ArgMatches) -> Option<&Path> {
    matches.get_one::<std::path::PathBuf>("output").map(std::path::PathBuf::as_path)
}

/// Computes and writes them.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let spec = settings.required("dataset_name")?;
    let output = output_path(matches);
    output::check(&[("output", output)], &[("dataset_name", &spec)])?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();
    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let tokenizer = source.tokenizer()?;
    let split = settings.text("dataset_train_split").filter(|_| settings.is_given("dataset_train_split"));
    let pairs = read_and_tokenize(&spec, split.as_deref(), &tokenizer, &settings, None, &mut *progress)?;
    let model = load(&source, &settings, &mut *progress)?;
    let scores =
        score(&model, &pairs, (PairLayout::PLAIN, false), &settings, "log-probabilities", &mut *progress)?;
    output::emit(output, &lines(&pairs, &scores.logps)?)
}

/// A model in the form that the settings ask for. What became of matrices that are quantised when loaded is said.
pub fn load(source: &ModelSource, settings: &Settings, progress: &mut dyn Progress) -> Result<Model> {
    let numbers = plan::numbers(settings)?;
    let model = Model::load_in(source, numbers)?;
    model.weights.kept(numbers.keep).iter().for_each(|kept| progress.note(kept));
    Ok(model)
}

/// The tokenizer of a model, or one that stands alone.
pub fn tokenizer(path: &str) -> Result<Arc<Tokenizer>> {
    match Path::new(path).join("tokenizer.json").is_file() || path.ends_with("tokenizer.json") {
        true => Tokenizer::open(path).map(Arc::new),
        false => ModelSource::open(path)?.tokenizer(),
    }
}

/// [`read`], then [`tokenize`].
pub fn read_and_tokenize(
    spec: &str,
    split: Option<&str>,
    tokenizer: &Tokenizer,
    settings: &Settings,
    objective: Option<&Objective>,
    progress: &mut dyn Progress,
) -> Result<Vec<TokenizedPair>> {
    tokenize(spec, read(spec, split)?, tokenizer, settings, objective, progress)
}

/// The rows of a data set: all, or those of a split.
pub fn read(spec: &str, split: Option<&str>) -> Result<Vec<Pair>> {
    let rows = read_pairs(spec)?;
    match split {
        Some(split) => select(rows, spec, split),
        None => Ok(rows),
    }
}

/// Rows as tokens, for an objective if there is one. What was cut or left out is said.
pub fn tokenize(
    spec: &str,
    rows: Vec<Pair>,
    tokenizer: &Tokenizer,
    settings: &Settings,
    objective: Option<&Objective>,
    progress: &mut dyn Progress,
) -> Result<Vec<TokenizedPair>> {
    let (pairs, report) = match objective {
        Some(objective) => tokenize_for(objective, rows, tokenizer, &plan::tokenize(settings, objective))?,
        None => tokenize_pairs(&rows, tokenizer, &plan::tokens(settings))?,
    };
    if pairs.is_empty() {
        return Err(Error::Usage(format!("{spec}: no row is left under these settings; raise max_length")));
    }
    let TokenizeReport { truncated_chosen, truncated_rejected, truncated_tokens, backed_off, .. } = report;
    if report.dropped() + truncated_tokens + backed_off > 0 {
        progress.note(&format!(
            "{spec}: {} of {} rows left out; {truncated_chosen} chosen and {truncated_rejected} rejected completions \
             cut ({truncated_tokens} tokens); in {backed_off} the prompt's end moved",
            report.dropped(),
            report.rows
        ));
    }
    Ok(pairs)
}

/// The log-probabilities of pairs under a model, means over their tokens, and perhaps features.
pub fn score(
    model: &Model,
    pairs: &[TokenizedPair],
    (layout, with_features): (PairLayout, bool),
    settings: &Settings,
    what: &str,
    progress: &mut dyn Progress,
) -> Result<Scores> {
    let batch = settings.count("per_device_eval_batch_size").unwrap_or(1);
    progress.start(what, pairs.len() as u64);
    let pairs: Vec<&TokenizedPair> = pairs.iter().collect();
    let scores = scoring::score(model, &pairs, layout, with_features, batch, progress)?;
    progress.finish();
    Ok(scores)
}

fn lines(pairs: &[TokenizedPair], logps: &BranchLogps) -> Result<String> {
    let several = pairs.iter().any(|pair| pair.file != pairs[0].file);
    let mut text = String::new();
    for (pair, logps) in pairs.iter().zip(&logps.0) {
        let mut line = Map::new();
        if several {
            line.insert("file".into(), pair.file.display().to_string().into());
        }
        line.insert("row".into(), pair.row.into());
        // All branches keep the same prompt, but for `keep_end`: then the longest.
        line.insert("prompt_tokens".into(), pair.longest_prompt().len().into());
        let tokens = |b: &Branch| Value::from(b.completion.len());
        let of = |branches: Vec<Value>| match <[Value; 1]>::try_from(branches) {
            Ok([one]) => one,
            Err(several) => several.into(),
        };
        if pair.branches.len() == 1 {
            line.insert("label".into(), (pair.chosen().role == Role::Chosen).into());
            line.insert("completion_tokens".into(), tokens(pair.chosen()));
            line.insert("completion_logps".into(), logps[0].into());
        } else {
            line.insert("chosen_tokens".into(), tokens(pair.chosen()));
            line.insert("rejected_tokens".into(), of(pair.branches[1..].iter().map(tokens).collect()));
            line.insert("chosen_logps".into(), logps[0].into());
            line.insert("rejected_logps".into(), of(logps[1..].iter().map(|l| Value::from(*l)).collect()));
        }
        text += &format!("{}\n", Value::Object(line));
    }
    Ok(text)
}
