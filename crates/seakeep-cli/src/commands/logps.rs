//! `seakeep logps`: the log-probabilities of every pair, one JSON line each.

use std::path::Path;
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command};
use seakeep::data::{TokenizeReport, TokenizedPair, read_pairs, tokenize_pairs};
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::logps::BranchLogps;
use seakeep::model::Model;
use seakeep::progress::Progress;
use seakeep::scoring::{self, TokenStats};
use seakeep::train::data::select;
use seakeep::{Error, Result};
use serde_json::{Map, Value};

use crate::config::{Settings, plan};
use crate::{args, output, progress};

/// The keys that say how results of many pairs are computed.
pub const RUN_KEYS: &[&str] = &["per_device_eval_batch_size", "num_threads", "dtype"];

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "logps",
        "Write the log-probabilities of chosen and rejected completions (nats, summed over tokens)",
        "seakeep logps --model_name_or_path models/m --dataset_name pairs.jsonl --max_length 512 --output logps.jsonl",
    );
    let keys = [args::DATA_KEYS, RUN_KEYS, &["model_name_or_path"]].concat();
    args::accepting_the_rest(args::keyed(command, &keys).arg(output_flag(
        "JSON lines: row, prompt_tokens, chosen_tokens, rejected_tokens, \
        chosen_logps, rejected_logps; with several data files also file. Default: standard output",
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
    output::check(output)?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();
    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let tokenizer = source.tokenizer()?;
    let pairs = read_and_tokenize(&spec, None, &tokenizer, &settings, &mut *progress)?;
    let model = Model::load(&source)?;
    let (logps, _) = score(&model, &pairs, &settings, "log-probabilities", &mut *progress)?;
    output::emit(output, &lines(&pairs, &logps)?)
}

/// The tokenizer of a model, or one that stands alone.
pub fn tokenizer(path: &str) -> Result<Arc<Tokenizer>> {
    match Path::new(path).join("tokenizer.json").is_file() || path.ends_with("tokenizer.json") {
        true => Tokenizer::open(path).map(Arc::new),
        false => ModelSource::open(path)?.tokenizer(),
    }
}

/// The rows of a data set (all, or those of a split) as tokens. What was cut or left out is said.
pub fn read_and_tokenize(
    spec: &str,
    split: Option<&str>,
    tokenizer: &Tokenizer,
    settings: &Settings,
    progress: &mut dyn Progress,
) -> Result<Vec<TokenizedPair>> {
    let rows = read_pairs(spec)?;
    let rows = match split {
        Some(split) => select(rows, split)?,
        None => rows,
    };
    let (pairs, report) = tokenize_pairs(&rows, tokenizer, &plan::tokenize(settings))?;
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

/// The log-probabilities of pairs under a model, and means over their tokens.
pub fn score(
    model: &Model,
    pairs: &[TokenizedPair],
    settings: &Settings,
    what: &str,
    progress: &mut dyn Progress,
) -> Result<(BranchLogps, TokenStats)> {
    let batch = settings.count("per_device_eval_batch_size").unwrap_or(1);
    progress.start(what, pairs.len() as u64);
    let (logps, stats) = scoring::score(model, &pairs.iter().collect::<Vec<_>>(), batch, progress)?;
    progress.finish();
    let bad = |(c, r): (&f64, &f64)| !(c.is_finite() && r.is_finite());
    match logps.chosen.iter().zip(&logps.rejected).position(bad) {
        None => Ok((logps, stats)),
        Some(i) => Err(Error::NonFinite(format!(
            "{}, row {}: the model gives a log-probability that is not finite; its weights are broken",
            pairs[i].file.display(),
            pairs[i].row
        ))),
    }
}

fn lines(pairs: &[TokenizedPair], logps: &BranchLogps) -> Result<String> {
    let several = pairs.iter().any(|pair| pair.file != pairs[0].file);
    let mut text = String::new();
    for (i, pair) in pairs.iter().enumerate() {
        let mut line = Map::new();
        if several {
            line.insert("file".into(), pair.file.display().to_string().into());
        }
        // Both branches keep the same prompt, but for `keep_end`: then the longer of the two.
        let prompt = pair.prompt_of(&pair.chosen).len().max(pair.prompt_of(&pair.rejected).len());
        line.insert("row".into(), pair.row.into());
        line.insert("prompt_tokens".into(), prompt.into());
        line.insert("chosen_tokens".into(), pair.chosen.completion.len().into());
        line.insert("rejected_tokens".into(), pair.rejected.completion.len().into());
        line.insert("chosen_logps".into(), logps.chosen[i].into());
        line.insert("rejected_logps".into(), logps.rejected[i].into());
        text += &format!("{}\n", Value::Object(line));
    }
    Ok(text)
}
