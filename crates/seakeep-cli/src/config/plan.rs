//! From settings to the library's options: what follows from what, and what contradicts.

use std::path::PathBuf;

use seakeep::ceiling::Precision;
use seakeep::data::{PromptMismatch, TokenizeOptions, TruncatedCompletion, TruncationMode};
use seakeep::formats::gguf::GgmlType;
use seakeep::formats::{LoraConfig, SaveDtype};
use seakeep::model::{Keep, Numbers};
use seakeep::objective::Objective;
use seakeep::optim::{AdamW, Schedule, Warmup};
use seakeep::train::{Every, Resume, TrainOptions};
use seakeep::{Error, Result};

use super::{Settings, keys, objective};

/// A training run on preferences.
///
/// # Errors
/// [`Error::Usage`] for what is missing or contradicts, naming the keys and where they stand.
pub fn plan(settings: &Settings) -> Result<TrainOptions> {
    refuse(settings, &keys::text_keys(), "on preferences; texts are learnt by `seakeep sft`")?;
    let (method, objective) = objective::objective(settings)?;
    run(settings, method, objective)
}

/// What TRL's `SFTConfig` has in place of the table's defaults.
pub const SFT_DEFAULTS: &[(&str, &str)] = &[("learning_rate", "2e-5")];
/// Its words for the one loss there is.
pub const SFT_WORDS: &[(&str, &str)] = &[("loss_type", "nll"), ("loss_type", "chunked_nll")];

/// A training run on texts: supervised fine-tuning.
///
/// # Errors
/// As [`plan`].
pub fn sft(settings: &Settings) -> Result<TrainOptions> {
    refuse(settings, &keys::preference_keys(), "in sft; preferences are learnt by `seakeep train`")?;
    run(settings, "sft".into(), Objective::sft())
}

/// Refuses keys that say something in a run of another kind. A moved configuration may spell out their defaults.
///
/// # Errors
/// [`Error::Usage`] for the first.
pub fn refuse(settings: &Settings, others: &[&str], what: &str) -> Result<()> {
    match others.iter().find(|key| settings.is_given(key) && !settings.is_default(key)) {
        Some(key) => usage(format!("{} has no meaning {what}", settings.place(key))),
        None => Ok(()),
    }
}

fn run(settings: &Settings, method: String, objective: Objective) -> Result<TrainOptions> {
    let (schedule, warmup) = learning_rate(settings)?;
    let eval = every(settings, "eval_strategy", "eval_steps");
    let dataset_test_split = settings.text("dataset_test_split");
    let eval_dataset_name = settings.text("eval_dataset_name");
    if eval != Every::No && dataset_test_split.is_none() && eval_dataset_name.is_none() {
        return usage(format!(
            "{} asks for evaluation, but on what? Give dataset_test_split (such as train[:100]) or eval_dataset_name",
            settings.place("eval_strategy")
        ));
    }
    Ok(TrainOptions {
        model_name_or_path: settings.required("model_name_or_path")?.into(),
        numbers: numbers_to_train(settings)?,
        ref_model_name_or_path: settings.path("ref_model_name_or_path"),
        dataset_name: settings.required("dataset_name")?,
        dataset_text_field: settings.required("dataset_text_field")?,
        dataset_train_split: settings.required("dataset_train_split")?,
        dataset_test_split,
        eval_dataset_name,
        dataset_cache_dir: cache_dir(settings, "dataset_cache_dir"),
        reference_cache_dir: reference_cache_dir(settings),
        dry_run: false,
        output_dir: settings.required("output_dir")?.into(),
        overwrite_output_dir: switch(settings, "overwrite_output_dir"),
        method,
        environments: objective::environments(settings, &objective),
        tokenize: tokenize(settings, &objective),
        objective,
        shuffle_dataset: switch(settings, "shuffle_dataset"),
        per_device_train_batch_size: count(settings, "per_device_train_batch_size"),
        per_device_eval_batch_size: count(settings, "per_device_eval_batch_size"),
        gradient_accumulation_steps: accumulation(settings)?,
        gradient_checkpointing: switch(settings, "gradient_checkpointing"),
        num_train_epochs: number(settings, "num_train_epochs"),
        // -1 is no count.
        max_steps: settings.count("max_steps"),
        learning_rate: number(settings, "learning_rate"),
        schedule,
        warmup,
        optimizer: optimizer(settings),
        max_grad_norm: number(settings, "max_grad_norm"),
        logging: every(settings, "logging_strategy", "logging_steps"),
        eval,
        save: every(settings, "save_strategy", "save_steps"),
        save_total_limit: settings.count("save_total_limit"),
        lora: lora(settings)?,
        seed: settings.seed("seed"),
        resume_from_checkpoint: match settings.switch("resume_from_checkpoint") {
            Some(true) => Some(Resume::Latest),
            Some(false) => None,
            None => settings.path("resume_from_checkpoint").map(Resume::From),
        },
        tensorboard: settings.words("report_to").iter().any(|word| word == "tensorboard"),
        save_dtype: save_dtype(settings),
    })
}

/// `gradient_accumulation_steps`, so that a step's rows can be counted.
fn accumulation(settings: &Settings) -> Result<usize> {
    let [size, steps] = ["per_device_train_batch_size", "gradient_accumulation_steps"];
    let (rows, times) = (count(settings, size), count(settings, steps));
    match rows.checked_mul(times) {
        Some(_) => Ok(times),
        None => usage(format!(
            "{} and {} are {rows} times {times} rows a step; expected fewer",
            settings.place(size),
            settings.place(steps)
        )),
    }
}

/// In what form a model is kept, and what it is computed in. Beside `load_in_4bit` or `load_in_8bit`, `dtype` is in TRL the form of what is not
/// quantised, which here is float32 in any case.
///
/// # Errors
/// [`Error::Usage`] for keys that ask for two quantised forms.
pub fn numbers(settings: &Settings) -> Result<Numbers> {
    let quantised = [("load_in_8bit", GgmlType::Q8_0), ("load_in_4bit", GgmlType::Q4_0)];
    let asked: Vec<_> = quantised.into_iter().filter(|(key, _)| switch(settings, key)).collect();
    let keep = match (asked.as_slice(), settings.text("dtype").as_deref()) {
        ([], Some("bfloat16")) => Keep::Bf16,
        ([], Some("auto")) => Keep::AsStored,
        ([], _) => Keep::F32,
        ([(_, ggml_type)], _) => Keep::Quantised(*ggml_type),
        ([(one, _), (other, _), ..], _) => {
            let (one, other) = (settings.place(one), settings.place(other));
            return usage(format!("{one} and {other} ask for two forms; give one"));
        }
    };
    let precision = if switch(settings, "bf16") { Precision::Bf16 } else { Precision::F32 };
    Ok(Numbers { keep, precision })
}

/// [`numbers`] of a model to be trained.
fn numbers_to_train(settings: &Settings) -> Result<Numbers> {
    let numbers = numbers(settings)?;
    let quantises = matches!(numbers.keep, Keep::Quantised(_));
    if quantises && !switch(settings, "use_peft") {
        let key = if switch(settings, "load_in_4bit") { "load_in_4bit" } else { "load_in_8bit" };
        return usage(format!(
            "{}: what is quantised cannot be trained; add use_peft = true to train adapters on it",
            settings.place(key)
        ));
    }
    Ok(numbers)
}

/// The adapters to train, if any.
fn lora(settings: &Settings) -> Result<Option<LoraConfig>> {
    if !switch(settings, "use_peft") {
        // Without it every parameter would be trained, which who sets a rank does not expect.
        let given =
            keys::adapter_keys().into_iter().find(|k| settings.is_given(k) && !settings.is_default(k));
        return match given {
            Some(key) => usage(format!(
                "{} has no meaning without adapters; add use_peft = true, or leave it out to train every parameter",
                settings.place(key)
            )),
            None => Ok(None),
        };
    }
    let targets = settings.words("lora_target_modules");
    let all = targets.iter().any(|target| target == "all-linear");
    if all && targets.len() > 1 {
        return usage(format!(
            "{} names all-linear and others; expected all-linear alone, or names of layers",
            settings.place("lora_target_modules")
        ));
    }
    Ok(Some(LoraConfig {
        r: count(settings, "lora_r"),
        lora_alpha: number(settings, "lora_alpha"),
        use_rslora: switch(settings, "use_rslora"),
        use_dora: switch(settings, "use_dora"),
        lora_dropout: if switch(settings, "disable_dropout") {
            0.0
        } else {
            number(settings, "lora_dropout")
        },
        target_modules: if all { Vec::new() } else { targets },
    }))
}

/// Refuses adapters in a command that trains every parameter.
///
/// # Errors
/// [`Error::Usage`] where they are asked for.
pub fn refuse_adapters(settings: &Settings) -> Result<()> {
    match switch(settings, "use_peft") {
        true => usage(format!(
            "{} is for train and sft; here every parameter is trained",
            settings.place("use_peft")
        )),
        false => Ok(()),
    }
}

/// Where the reference's log-probabilities are kept from run to run.
pub fn reference_cache_dir(settings: &Settings) -> Option<PathBuf> {
    cache_dir(settings, "reference_cache_dir")
}

/// The directory that a key names, or the one for everything that is kept from run to run.
fn cache_dir(settings: &Settings, key: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let given = settings.path(key).or_else(|| variable("SEAKEEP_CACHE"));
    let home = || variable("HOME").map(|dir| dir.join(".cache"));
    match given {
        Some(none) if none.as_os_str() == "none" => None,
        Some(directory) => Some(directory),
        None => variable("XDG_CACHE_HOME").or_else(home).map(|dir| dir.join("seakeep")),
    }
}

/// How to tokenise, and which columns the objective asks for.
pub fn tokenize(settings: &Settings, objective: &Objective) -> TokenizeOptions {
    let (labels, keep_cut) = (objective::label_columns(settings, objective), objective.needs_mismatched());
    TokenizeOptions { labels, keep_cut, ..tokens(settings) }
}

/// How to tokenise.
pub fn tokens(settings: &Settings) -> TokenizeOptions {
    TokenizeOptions {
        labels: Default::default(),
        keep_cut: false,
        learn_prompts: !switch(settings, "completion_only_loss"),
        max_length: settings.count("max_length"),
        truncation_mode: match is(settings, "truncation_mode", "keep_end") {
            true => TruncationMode::KeepEnd,
            false => TruncationMode::KeepStart,
        },
        prompt_mismatch: match settings.text("prompt_mismatch").as_deref() {
            Some("diverge") => PromptMismatch::Diverge,
            Some("drop") => PromptMismatch::Drop,
            _ => PromptMismatch::Error,
        },
        truncated_completion: match is(settings, "truncated_completion", "drop") {
            true => TruncatedCompletion::Drop,
            false => TruncatedCompletion::Error,
        },
    }
}

/// Number format of a saved model.
pub fn save_dtype(settings: &Settings) -> SaveDtype {
    match settings.text("save_dtype").as_deref() {
        Some("bfloat16") => SaveDtype::BF16,
        Some("float16") => SaveDtype::F16,
        _ => SaveDtype::F32,
    }
}

/// AdamW's constants.
pub fn optimizer(settings: &Settings) -> AdamW {
    AdamW {
        beta1: number(settings, "adam_beta1"),
        beta2: number(settings, "adam_beta2"),
        epsilon: number(settings, "adam_epsilon"),
        weight_decay: number(settings, "weight_decay"),
        eight_bits: settings.text("optim").is_some_and(|name| name.ends_with("8bit")),
    }
}

/// The schedule and warm-up, as `transformers.get_scheduler` understands the same keys.
pub fn learning_rate(settings: &Settings) -> Result<(Schedule, Warmup)> {
    let kind = settings.required("lr_scheduler_type")?;
    let min_lr_rate = settings.number("min_lr_rate");
    let schedule = match (kind.as_str(), min_lr_rate) {
        ("cosine_with_min_lr", Some(min_lr_rate)) => Schedule::Cosine { min_lr_rate },
        ("cosine_with_min_lr", None) => {
            return usage(format!(
                "{} cosine_with_min_lr needs min_lr_rate, what is left of the learning rate at the end (such as 0.1)",
                settings.place("lr_scheduler_type")
            ));
        }
        (_, Some(_)) => {
            return usage(format!(
                "{} has no meaning with lr_scheduler_type {kind}; choose cosine_with_min_lr or leave it out",
                settings.place("min_lr_rate")
            ));
        }
        ("cosine", None) => Schedule::Cosine { min_lr_rate: 0.0 },
        ("linear", None) => Schedule::Linear,
        (_, None) => Schedule::Constant,
    };
    let warmup = warmup(settings)?;
    if kind == "constant" && warmup != Warmup::Steps(0) {
        return usage(format!(
            "{} constant has no warm-up; choose constant_with_warmup, or leave warmup_steps and warmup_ratio out",
            settings.place("lr_scheduler_type")
        ));
    }
    Ok((schedule, warmup))
}

fn warmup(settings: &Settings) -> Result<Warmup> {
    let (steps, ratio) = (number(settings, "warmup_steps"), number(settings, "warmup_ratio"));
    match (steps, ratio) {
        (s, r) if s > 0.0 && r > 0.0 => usage(format!(
            "{} and {} are both given: give one of them",
            settings.place("warmup_steps"),
            settings.place("warmup_ratio")
        )),
        (0.0, 0.0) => Ok(Warmup::Steps(0)),
        (0.0, ratio) => Ok(Warmup::Ratio(ratio)),
        (steps, _) if steps < 1.0 => Ok(Warmup::Ratio(steps)),
        (steps, _) if steps.fract() == 0.0 => Ok(Warmup::Steps(steps as usize)),
        (steps, _) => usage(format!(
            "{} is {steps}; expected a whole number, or below 1 a share of all steps",
            settings.place("warmup_steps")
        )),
    }
}

/// When something is done, by its strategy and steps.
pub fn every(settings: &Settings, strategy: &str, steps: &str) -> Every {
    match settings.text(strategy).as_deref() {
        Some("epoch") => Every::Epoch,
        Some("steps") => match settings.number(steps).unwrap_or(number(settings, "logging_steps")) {
            share if share < 1.0 => Every::Share(share),
            steps => Every::Steps(steps as usize),
        },
        _ => Every::No,
    }
}

fn is(settings: &Settings, name: &str, word: &str) -> bool {
    settings.text(name).as_deref() == Some(word)
}

/// A number that has a default.
pub fn number(settings: &Settings, name: &str) -> f64 {
    settings.number(name).unwrap_or_else(|| panic!("`{name}` has no default"))
}

/// A count that has a default and is never unlimited.
pub fn count(settings: &Settings, name: &str) -> usize {
    settings.count(name).unwrap_or_else(|| panic!("`{name}` has no default"))
}

/// A switch that has a default.
pub fn switch(settings: &Settings, name: &str) -> bool {
    settings.switch(name).unwrap_or_else(|| panic!("`{name}` has no default"))
}

pub(super) fn usage<T>(what: String) -> Result<T> {
    Err(Error::Usage(what))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
