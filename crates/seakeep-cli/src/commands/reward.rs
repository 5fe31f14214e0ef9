//! `seakeep reward`: train reward models, score with them, judge them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::ValueParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use seakeep::data::read_rows;
use seakeep::formats::ModelSource;
use seakeep::progress::Progress;
use seakeep::reward::{
    self, Objective, Problem, RewardModel, RewardOptions, RewardSummary, content_of, variables_of,
};
use seakeep::train::Every;
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::logps::{output_flag, output_path};
use crate::config::{Settings, plan};
use crate::{args, output, progress};

/// The keys of `train` that mean the same here.
const TRAIN_KEYS: &[&str] = &[
    "model_name_or_path",
    "dataset_name",
    "dataset_train_split",
    "dataset_test_split",
    "eval_dataset_name",
    "output_dir",
    "overwrite_output_dir",
    "max_length",
    "shuffle_dataset",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "min_lr_rate",
    "warmup_steps",
    "warmup_ratio",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "logging_strategy",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "seed",
    "report_to",
    "save_dtype",
    "num_threads",
];

/// Keys of training that a file may have and that ask for what is not done here, with the reason.
const NOT_DONE: [(&str, &str); 6] = [
    ("bf16", "a reward model is trained in float32"),
    ("dtype", "a reward model is trained in float32"),
    ("load_in_8bit", "a reward model is trained in float32"),
    ("load_in_4bit", "a reward model is trained in float32"),
    ("truncation_mode", "a text that is too long loses its end"),
    ("resume_from_checkpoint", "a reward run writes no checkpoints and cannot be resumed"),
];

/// The keys of `score` and `eval`.
const SCORE_KEYS: &[&str] =
    &["model_name_or_path", "max_length", "per_device_eval_batch_size", "num_threads"];

/// Hugging Face's; the default of preference tuning is far too small for a new head.
const LEARNING_RATE: f64 = 5e-5;

/// The command line.
pub fn command() -> Command {
    Command::new("reward")
        .about("Train a reward model, score texts with it, measure it")
        .after_help(
            "Example:\n  seakeep reward train --model_name_or_path models/m --dataset_name labelled.jsonl --output_dir runs/rm\n  \
             seakeep reward score --model_name_or_path runs/rm --input completions.jsonl --output scored.jsonl",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([train_command(), score_command(), eval_command()])
}

/// Runs the one that was asked for.
pub fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("train", matches)) => train(matches),
        Some(("score", matches)) => score(matches),
        Some(("eval", matches)) => eval(matches),
        other => unreachable!("clap lets no other command through: {other:?}"),
    }
}

fn flag(name: &'static str, value: &'static str, parser: ValueParser, help: &'static str) -> Arg {
    args::spelled(name).value_name(value).value_parser(parser).allow_negative_numbers(true).help(help)
}

fn train_command() -> Command {
    let command = args::command(
        "train",
        "Train a head of labels on the last token of a text, and the model below it",
        "seakeep reward train --model_name_or_path models/gpt2 --dataset_name train.jsonl --eval_dataset_name test.jsonl \
         --concatenate 3 --learning_rate 5e-5 --output_dir runs/rm",
    );
    let problems: Vec<&str> = Problem::NAMES.iter().map(|(name, _)| *name).collect();
    let rows = "Rows with `text` (or `prompt` and `completion`) and `labels` ({\"joy\": 1, \"anger\": 0.5}; null or not there: not \
                known; or a list of the labels that hold), or pairs: `chosen`, `rejected`, and perhaps `prompt` and `margin`. \
                A file, directory or quoted pattern, .jsonl, .json (also .gz) or .parquet";
    args::keyed(command, TRAIN_KEYS)
        .mut_arg("model_name_or_path", |arg| {
            arg.help("Where to start: a language model (its head is replaced by a new one) or a reward model")
        })
        .mut_arg("dataset_name", |arg| arg.help(rows))
        .mut_arg("eval_dataset_name", |arg| arg.help("Rows to measure on, at least after the last step"))
        .mut_arg("learning_rate", |arg| arg.help("Peak learning rate [default: 5e-5]"))
        .mut_arg("seed", |arg| arg.help("Seed of a new head, of the order of rows, of concatenation [default: 42]"))
        .args([
            flag("problem_type", "NAME", problems.into(), "What is learned: labels each by itself (binary cross-entropy), \
                 numbers (squared error), one of the labels (cross-entropy), or which of two texts is preferred \
                 [default: bradley_terry where rows are pairs, else multi_label_classification]"),
            flag("labels", "NAME,...", ValueParser::string(), "The labels and their order; others in the data are ignored \
                 [default: those of the data, sorted]"),
            flag("concatenate", "N", value_parser!(usize).into(), "Training texts are up to N texts of the data, one after \
                 another, their labels merged; drawn anew every epoch").default_value("1"),
            flag("center_rewards_coefficient", "X", value_parser!(f64).into(), "bradley_terry: weight of the squared sum of a \
                 pair's rewards"),
        ])
}

fn names(matches: &ArgMatches) -> Option<Vec<String>> {
    let text = args::texts(matches, "labels").pop()?;
    Some(text.split(',').map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect())
}

fn options(matches: &ArgMatches, settings: &Settings, progress: &mut dyn Progress) -> Result<RewardOptions> {
    if let Some(names) = names(matches)
        && let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name))
    {
        return Err(Error::Usage(format!("--labels names `{}` twice", twice.1)));
    }
    let (schedule, warmup) = plan::learning_rate(settings)?;
    let center_rewards = matches.get_one::<f64>("center_rewards_coefficient").copied();
    if let Some(wrong) = center_rewards.filter(|c| !c.is_finite() || *c < 0.0) {
        return Err(Error::Usage(format!(
            "--center_rewards_coefficient is {wrong}; expected a number, at least 0"
        )));
    }
    let concatenate = matches.get_one::<usize>("concatenate").copied().unwrap_or(1);
    if concatenate == 0 {
        return Err(Error::Usage("--concatenate is 0; expected 1 (texts as they are) or more".into()));
    }
    plan::refuse_adapters(settings)?;
    let is_asked = |name: &str| match name {
        "resume_from_checkpoint" => settings.is_given(name) && settings.switch(name) != Some(false),
        _ => settings.is_given(name) && !settings.is_default(name),
    };
    if let Some((name, reason)) = NOT_DONE.iter().find(|(name, _)| is_asked(name)) {
        return Err(Error::Usage(format!("{}: {reason}; leave it out", settings.place(name))));
    }
    // Written out, `RewardConfig`'s defaults ask for checkpoints.
    if settings.is_given("save_strategy") && settings.text("save_strategy").as_deref() != Some("no") {
        progress.note(&format!("{}: a reward run writes no checkpoints", settings.place("save_strategy")));
    }
    let own = |name: &&str| {
        *name == "save_strategy"
            || TRAIN_KEYS.contains(name)
            || NOT_DONE.iter().any(|(other, _)| other == name)
    };
    let others: Vec<&str> = settings.given().filter(|name| !own(name)).collect();
    plan::refuse(settings, &others, "in reward train; leave it out")?;
    let problem = args::texts(matches, "problem_type").pop();
    let options = RewardOptions {
        model_name_or_path: settings.required("model_name_or_path")?.into(),
        dataset_name: settings.required("dataset_name")?,
        dataset_train_split: settings.required("dataset_train_split")?,
        dataset_test_split: settings.text("dataset_test_split"),
        eval_dataset_name: settings.text("eval_dataset_name"),
        output_dir: settings.required("output_dir")?.into(),
        overwrite_output_dir: plan::switch(settings, "overwrite_output_dir"),
        problem: problem.as_deref().and_then(Problem::parse),
        labels: names(matches),
        center_rewards,
        concatenate,
        max_length: settings.count("max_length"),
        shuffle_dataset: plan::switch(settings, "shuffle_dataset"),
        per_device_train_batch_size: plan::count(settings, "per_device_train_batch_size"),
        per_device_eval_batch_size: plan::count(settings, "per_device_eval_batch_size"),
        gradient_accumulation_steps: plan::count(settings, "gradient_accumulation_steps"),
        gradient_checkpointing: plan::switch(settings, "gradient_checkpointing"),
        num_train_epochs: plan::number(settings, "num_train_epochs"),
        max_steps: settings.count("max_steps"),
        learning_rate: match settings.is_given("learning_rate") {
            true => plan::number(settings, "learning_rate"),
            false => LEARNING_RATE,
        },
        schedule,
        warmup,
        optimizer: plan::optimizer(settings),
        max_grad_norm: plan::number(settings, "max_grad_norm"),
        logging: plan::every(settings, "logging_strategy", "logging_steps"),
        eval: plan::every(settings, "eval_strategy", "eval_steps"),
        seed: settings.seed("seed"),
        tensorboard: settings.words("report_to").iter().any(|word| word == "tensorboard"),
        save_dtype: plan::save_dtype(settings),
    };
    if options.eval != Every::No && options.judged_on().is_none() {
        return Err(Error::Usage(format!(
            "{} asks for evaluation, but on what? Give eval_dataset_name or dataset_test_split",
            settings.place("eval_strategy")
        )));
    }
    Ok(options)
}

fn train(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let mut progress = progress::on_stderr();
    let options = options(matches, &settings, &mut *progress)?;
    super::train::check_places(&[&options.model_name_or_path], &options.output_dir)?;
    super::set_threads(&settings)?;
    let summary = reward::run(&options, &mut *progress)?;
    output::print(&closing(&options.output_dir, &summary))
}

fn closing(output_dir: &Path, summary: &RewardSummary) -> String {
    let last = summary.eval.as_ref().unwrap_or(&summary.metrics);
    let told: String = last
        .iter()
        .filter(|(name, _)| !name.contains('/') && !["num_tokens", "learning_rate"].contains(&name.as_str()))
        .map(|(name, value)| format!(", {name} {value:.4}"))
        .collect();
    format!("{}: {} steps, {:.1} s{told}\n", output_dir.display(), summary.steps, summary.seconds)
}

fn score_command() -> Command {
    let command = args::command(
        "score",
        "Write what a reward model gives to completions, for `seakeep pairs`",
        "seakeep reward score --model_name_or_path runs/rm --input completions.jsonl --output scored.jsonl",
    );
    args::keyed(command, SCORE_KEYS)
        .mut_arg("model_name_or_path", |arg| arg.help("The reward model"))
        .args([
            flag("input", "PATH", ValueParser::string(), "Rows with `prompt` and `completion` (text or messages), or `text`: a file, \
                 directory or quoted pattern").required(true),
            flag("prefix", "TEXT", ValueParser::string(), "Put before the name of each score, so that several reward models can \
                 score the same rows").default_value(""),
            flag("raw", "true|false", ValueParser::bool(), "Logits always. Otherwise labels get probabilities (sigmoid; \
                 single_label_classification: softmax), regression and pairs the logits themselves")
                .num_args(0..=1).default_missing_value("true").default_value("false"),
        ])
        .arg(output_flag(
            "JSON lines: the rows with all their columns and `scores` ({\"label\": number}), added to those that are there. \
             Default: standard output",
        ))
}

/// A row to score: its columns, and the text.
struct Scored {
    columns: Map<String, Value>,
    tokens: Vec<u32>,
    cut: bool,
}

fn score(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let output = output_path(matches);
    let input = args::texts(matches, "input").pop().unwrap_or_default();
    output::check(&[("output", output)], &[("input", &input)])?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();
    let model = RewardModel::load(&ModelSource::open(settings.required("model_name_or_path")?)?)?;
    let prefix = args::texts(matches, "prefix").pop().unwrap_or_default();
    let limit = settings.count("max_length");
    let read = |file: Arc<Path>, row: usize, columns: Map<String, Value>| {
        let wrong = |e: Error| Error::row(&file, row, "", e.to_string());
        match columns.get("scores").filter(|scores| !scores.is_null()) {
            Some(Value::Object(there)) => {
                let mut own = model.labels().iter().map(|name| format!("{prefix}{name}"));
                if let Some(name) = own.find(|name| there.contains_key(name)) {
                    let what = format!(
                        "has `{name}` already, which would be replaced; give --prefix, such as --prefix new_"
                    );
                    return Err(Error::row(&file, row, "scores", what));
                }
            }
            None => {}
            Some(_) => {
                return Err(Error::row(
                    &file,
                    row,
                    "scores",
                    "not an object, to which scores could be added",
                ));
            }
        }
        let text = content_of(&file, row, &mut columns.clone())?;
        let variables = variables_of(&file, row, std::slice::from_ref(&text), &columns)?;
        let mut tokens = model.encode(&text, &variables).map_err(wrong)?;
        let cut = model.truncate(&mut tokens, limit);
        if let Some(prompt) = columns.get("prompt").filter(|_| cut) {
            let mut alone = Map::from_iter([("text".to_string(), prompt.clone())]);
            let alone = model.encode(&content_of(&file, row, &mut alone)?, &variables).map_err(wrong)?;
            let prompt = alone.len();
            // The token that ends a text, alone, is no part of the prompt.
            if tokens.iter().zip(&alone).all(|(whole, prompt)| whole == prompt) && prompt >= tokens.len() {
                let what = format!(
                    "its prompt alone has {prompt} tokens, and {} are scored (max_length, or the model's positions): nothing of \
                     the completion would be; expected a shorter prompt",
                    tokens.len()
                );
                return Err(Error::row(&file, row, "prompt", what));
            }
        }
        Ok(Scored { columns, tokens, cut })
    };
    let mut rows = read_rows(&input, read)?;
    let cut = rows.iter().filter(|row| row.cut).count();
    if cut > 0 {
        progress.note(&format!(
            "{cut} texts were too long and lost their end (max_length, or the model's positions)"
        ));
    }
    let texts: Vec<Vec<u32>> = rows.iter_mut().map(|row| std::mem::take(&mut row.tokens)).collect();
    let size = plan::count(&settings, "per_device_eval_batch_size");
    progress.start("scoring", texts.len() as u64);
    let scores = match matches.get_one::<bool>("raw").copied().unwrap_or_default() {
        true => model.logits(&texts, size, &mut *progress)?,
        false => model.score(&texts, size, &mut *progress)?,
    };
    progress.finish();
    let mut text = String::new();
    for (row, scores) in rows.into_iter().zip(scores) {
        let mut columns = row.columns;
        let mut all = match columns.shift_remove("scores") {
            Some(Value::Object(there)) => there,
            _ => Map::new(),
        };
        all.extend(model.labels().iter().zip(scores).map(|(name, x)| (format!("{prefix}{name}"), json!(x))));
        columns.insert("scores".into(), Value::Object(all));
        text += &format!("{}\n", Value::Object(columns));
    }
    output::emit(output, &text)
}

fn eval_command() -> Command {
    let command = args::command(
        "eval",
        "Measure a reward model on labelled rows or on pairs",
        "seakeep reward eval --model_name_or_path runs/rm --dataset_name test.jsonl",
    );
    args::keyed(command, &[SCORE_KEYS, &["dataset_name"]].concat())
        .mut_arg("model_name_or_path", |arg| arg.help("The reward model"))
        .mut_arg("dataset_name", |arg| {
            arg.help("Rows as `seakeep reward train` takes them; labels the model does not have are ignored")
        })
        .arg(output_flag("JSON: the rows and their measures. Default: standard output"))
}

fn eval(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let output: Option<PathBuf> = output_path(matches).map(Path::to_path_buf);
    let spec = settings.required("dataset_name")?;
    output::check(&[("output", output.as_deref())], &[("dataset_name", &spec)])?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();
    let model = RewardModel::load(&ModelSource::open(settings.required("model_name_or_path")?)?)?;
    let mut rows = reward::read_rewards(&spec, model.problem, &model.labels().to_vec())?;
    let examples = reward::examples(&model, &mut rows, settings.count("max_length"), &mut *progress)?;
    let objective = Objective { problem: model.problem, center_rewards: None };
    let size = plan::count(&settings, "per_device_eval_batch_size");
    progress.start("scoring", examples.iter().map(|e| e.texts.len() as u64).sum());
    let measures = reward::evaluate(&model, &objective, &examples, size, &mut *progress)?;
    progress.finish();
    let mut record = Map::new();
    record.insert("model_name_or_path".into(), json!(model.path()));
    record.insert("dataset_name".into(), json!(spec));
    record.insert("rows".into(), json!(rows.len()));
    record.insert("problem_type".into(), json!(model.problem.name()));
    record.extend(measures.into_iter().map(|(name, value)| (name, json!(value))));
    output::emit(output.as_deref(), &format!("{:#}\n", Value::Object(record)))
}
