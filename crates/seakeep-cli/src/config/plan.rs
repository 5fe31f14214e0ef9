//! From settings to the library's options: what follows from what, and what contradicts.

use seakeep::data::{PromptMismatch, TokenizeOptions, TruncatedCompletion, TruncationMode};
use seakeep::formats::SaveDtype;
use seakeep::objective::dpo::Dpo;
use seakeep::objective::kldpo::Kldpo;
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{Objective, Rule};
use seakeep::optim::{AdamW, Schedule, Warmup};
use seakeep::train::{Every, Resume, TrainOptions};
use seakeep::{Error, Result};

use super::Settings;

/// KLDPO's temperature where neither it nor the radius is given: the paper's for models of 1B parameters.
const DEFAULT_KLDPO_TAU: f64 = 0.05;
/// WDPO's radius where it is not given: the larger of the paper's two for language models.
const DEFAULT_WDPO_RHO: f64 = 0.01;

/// A training run.
///
/// # Errors
/// [`Error::Usage`] for what is missing or contradicts, naming the keys and where they stand.
pub fn plan(settings: &Settings) -> Result<TrainOptions> {
    let (method, objective) = objective(settings)?;
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
        ref_model_name_or_path: settings.path("ref_model_name_or_path"),
        dataset_name: settings.required("dataset_name")?,
        dataset_train_split: settings.required("dataset_train_split")?,
        dataset_test_split,
        eval_dataset_name,
        output_dir: settings.required("output_dir")?.into(),
        overwrite_output_dir: switch(settings, "overwrite_output_dir"),
        method,
        objective,
        tokenize: tokenize(settings),
        shuffle_dataset: switch(settings, "shuffle_dataset"),
        per_device_train_batch_size: count(settings, "per_device_train_batch_size"),
        per_device_eval_batch_size: count(settings, "per_device_eval_batch_size"),
        gradient_accumulation_steps: count(settings, "gradient_accumulation_steps"),
        num_train_epochs: number(settings, "num_train_epochs"),
        // -1 is no count.
        max_steps: settings.count("max_steps"),
        learning_rate: number(settings, "learning_rate"),
        schedule,
        warmup,
        optimizer: AdamW {
            beta1: number(settings, "adam_beta1"),
            beta2: number(settings, "adam_beta2"),
            epsilon: number(settings, "adam_epsilon"),
            weight_decay: number(settings, "weight_decay"),
        },
        max_grad_norm: number(settings, "max_grad_norm"),
        logging_steps: count(settings, "logging_steps"),
        eval,
        save: every(settings, "save_strategy", "save_steps"),
        save_total_limit: settings.count("save_total_limit"),
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

/// The objective, and the short name of the method.
///
/// # Errors
/// [`Error::Usage`] for a knob of another method, or knobs that exclude each other.
pub fn objective(settings: &Settings) -> Result<(String, Objective)> {
    let method = settings.required("method")?;
    for knob in ["kldpo_tau", "kldpo_rho", "kldpo_form", "wdpo_rho", "wdpo_form", "wdpo_prompt_gradient"] {
        if settings.is_given(knob) && !knob.starts_with(&format!("{method}_")) {
            return usage(format!(
                "{} has no meaning with method {method}; leave it out or choose method {}",
                settings.place(knob),
                knob.split('_').next().unwrap_or_default()
            ));
        }
    }
    let pair = Dpo { beta: number(settings, "beta"), label_smoothing: number(settings, "label_smoothing") };
    let (rule, penalty) = match method.as_str() {
        "kldpo" => (Rule::Kldpo(kldpo(settings)?), None),
        "wdpo" => (Rule::Mean, Some(penalty(settings))),
        _ => (Rule::Mean, None),
    };
    Ok((method, Objective { pair, rule, penalty }))
}

fn kldpo(settings: &Settings) -> Result<Kldpo> {
    let (tau, rho) = (settings.number("kldpo_tau"), settings.number("kldpo_rho"));
    let official = is(settings, "kldpo_form", "official");
    match (tau, rho) {
        (Some(_), Some(_)) => usage(format!(
            "{} and {} are both given: the radius decides the temperature, so give one of them",
            settings.place("kldpo_tau"),
            settings.place("kldpo_rho")
        )),
        (None, Some(_)) if official => usage(format!(
            "{} official has a temperature and no radius: give kldpo_tau in place of {}",
            settings.place("kldpo_form"),
            settings.place("kldpo_rho")
        )),
        (None, Some(rho)) => Ok(Kldpo::Rho(rho)),
        (tau, None) => {
            let tau = tau.unwrap_or(DEFAULT_KLDPO_TAU);
            Ok(if official { Kldpo::Official(tau) } else { Kldpo::Tau(tau) })
        }
    }
}

fn penalty(settings: &Settings) -> Penalty {
    let form = if is(settings, "wdpo_form", "official") { Form::Official } else { Form::Paper };
    let prompt_gradient = match settings.text("wdpo_prompt_gradient").as_deref() {
        Some("separate") => PromptGradient::Separate,
        Some(_) => PromptGradient::Shared,
        // The authors' code has two sequences; the paper one sample.
        None if form == Form::Official => PromptGradient::Separate,
        None => PromptGradient::Shared,
    };
    Penalty { rho: settings.number("wdpo_rho").unwrap_or(DEFAULT_WDPO_RHO), form, prompt_gradient }
}

/// How to tokenise.
pub fn tokenize(settings: &Settings) -> TokenizeOptions {
    TokenizeOptions {
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

/// The schedule and warm-up, as `transformers.get_scheduler` understands the same keys.
fn learning_rate(settings: &Settings) -> Result<(Schedule, Warmup)> {
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

fn every(settings: &Settings, strategy: &str, steps: &str) -> Every {
    match settings.text(strategy).as_deref() {
        Some("epoch") => Every::Epoch,
        Some("steps") => Every::Steps(settings.count(steps).unwrap_or(count(settings, "logging_steps"))),
        _ => Every::No,
    }
}

fn is(settings: &Settings, name: &str, word: &str) -> bool {
    settings.text(name).as_deref() == Some(word)
}

/// A number that has a default.
fn number(settings: &Settings, name: &str) -> f64 {
    settings.number(name).unwrap_or_else(|| panic!("`{name}` has no default"))
}

/// A count that has a default and is never unlimited.
fn count(settings: &Settings, name: &str) -> usize {
    settings.count(name).unwrap_or_else(|| panic!("`{name}` has no default"))
}

/// A switch that has a default.
fn switch(settings: &Settings, name: &str) -> bool {
    settings.switch(name).unwrap_or_else(|| panic!("`{name}` has no default"))
}

fn usage<T>(what: String) -> Result<T> {
    Err(Error::Usage(what))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
