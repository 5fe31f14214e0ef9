//! What is checked and read before a run starts: nothing is written until all of it holds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{Every, Resume, TrainOptions};
use super::{data, log};
use crate::checkpoint;
use crate::data::Rows;
use crate::formats::{Claim, ModelSource, Tokenizer, check_writable, unfinished};
use seakeep_kernels::gemm::Precision;

use crate::model::{Model, ModelConfig, Numbers, check_targets};
use crate::optim::Warmup;
use crate::progress::Progress;
use crate::{Error, Result};

/// What tells that a directory holds a model.
const FOREIGN: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "pytorch_model.bin",
];

/// What a run, or an estimate of it, sets out from.
pub(super) struct Inputs {
    pub source: ModelSource,
    pub config: ModelConfig,
    pub tokenizer: Arc<Tokenizer>,
    pub train: Rows,
    pub eval: Rows,
}

/// Reads and checks what the options name, short of weights and checkpoints.
pub(super) fn inputs(options: &TrainOptions, progress: &mut dyn Progress) -> Result<Inputs> {
    options.objective.check()?;
    let resumes = options.resume_from_checkpoint.is_some();
    check_output(&options.output_dir, resumes, options.overwrite_output_dir)?;
    let source = ModelSource::open(&options.model_name_or_path)?;
    let config = Model::config(&source)?;
    check_adapters(options, &source, &config)?;
    let tokenizer = source.tokenizer()?;
    let (spec, split) = (&options.dataset_name, &options.dataset_train_split);
    let train = data::load(spec, split, &tokenizer, options, progress)?;
    let eval = eval_rows(options, &tokenizer, progress)?;
    check_reference(options, &tokenizer, &train, progress)?;
    Ok(Inputs { source, config, tokenizer, train, eval })
}

/// Finds out before any work whether the output directory can be written, without leaving anything behind.
pub(crate) fn check_output(dir: &Path, resumes: bool, overwrites: bool) -> Result<()> {
    if dir.is_dir() {
        Claim::on("output_dir", dir)?;
    }
    check_unused(dir, resumes, overwrites)?;
    let existing =
        dir.ancestors().find(|p| p.exists() && !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    check_writable(existing).map_err(|e| Error::format(dir, format!("output_dir cannot be written: {e}")))
}

/// That an output directory holds nothing that this run may not replace.
fn check_unused(dir: &Path, resumes: bool, overwrites: bool) -> Result<()> {
    let checkpoints = checkpoint::list(dir);
    let used = dir.join("metrics.jsonl").exists() || !checkpoints.is_empty();
    if used && !resumes && !overwrites {
        let resume = match checkpoints.is_empty() {
            true => "",
            false => "`resume_from_checkpoint = true` to go on with it, ",
        };
        return Err(Error::Usage(format!(
            "output_dir {} holds an earlier run; set {resume}`overwrite_output_dir = true` to replace it, or choose another",
            dir.display()
        )));
    }
    if let Some(theirs) = FOREIGN.iter().find(|name| !used && !overwrites && dir.join(name).exists()) {
        return Err(Error::Usage(format!(
            "output_dir {} holds a model that no run of this program left there ({theirs}); set `overwrite_output_dir = true` to replace it, or \
             choose another",
            dir.display()
        )));
    }
    Ok(())
}

/// The checkpoint that the run goes on from, if it goes on from one.
pub(super) fn checkpoint_of(options: &TrainOptions) -> Result<Option<PathBuf>> {
    match &options.resume_from_checkpoint {
        None => Ok(None),
        Some(Resume::From(path)) => Ok(Some(path.clone())),
        Some(Resume::Latest) => match checkpoint::list(&options.output_dir).pop() {
            Some((_, path)) => Ok(Some(path)),
            None => Err(Error::Usage(format!(
                "resume_from_checkpoint: no checkpoint in {}",
                options.output_dir.display()
            ))),
        },
    }
}

/// A run that goes on from `step` has no use for checkpoints after it: they are of steps that it makes again, perhaps otherwise.
pub(super) fn check_later(dir: &Path, step: usize, overwrites: bool) -> Result<()> {
    match checkpoint::list(dir).pop() {
        Some((later, path)) if later > step && !overwrites => Err(Error::Usage(format!(
            "the run would go on from step {step}, and {} is of a later one; set `overwrite_output_dir = true` to remove what is later, or \
             choose another output_dir",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Makes the output directory this run's own, from `step` on: it is locked, must hold nothing since it was checked that may not be replaced, and
/// is cleared.
pub(crate) fn take_output(dir: &Path, step: usize, overwrites: bool) -> Result<Claim> {
    std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let claim = Claim::on("output_dir", dir)?;
    check_unused(dir, step > 0, overwrites)?;
    clear_output(dir, step)?;
    Ok(claim)
}

/// With `overwrite_output_dir`, what an earlier run left after `step`, from which this one goes on, is removed, so that none of it is taken for
/// this run's: checkpoints, and at step 0 the model and its event files. What a run left half-written when it was killed goes in any case.
fn clear_output(dir: &Path, step: usize) -> Result<()> {
    let mut leftovers = unfinished(dir, checkpoint::PREFIX);
    leftovers.extend(checkpoint::list(dir).into_iter().filter(|(of, _)| *of > step).map(|(_, path)| path));
    if step == 0 {
        checkpoint::remove_model(dir)?;
        log::remove_events(dir)?;
    }
    for path in leftovers {
        std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

/// Finds out before any work whether the model can have the adapters that are asked for.
fn check_adapters(options: &TrainOptions, source: &ModelSource, config: &ModelConfig) -> Result<()> {
    let Some(lora) = &options.lora else { return Ok(()) };
    if source.adapter.is_some() {
        return Err(Error::Usage(format!(
            "use_peft: {} is an adapter itself, and an adapter needs a whole model below it; make one with \
             `seakeep merge --model_name_or_path {} --output_dir ...`",
            source.path.display(),
            source.path.display()
        )));
    }
    check_targets(config, lora)
}

/// A reference must be a model, and one that tokenises otherwise would be scored on other texts.
fn check_reference(
    options: &TrainOptions,
    tokenizer: &Tokenizer,
    train: &Rows,
    progress: &mut dyn Progress,
) -> Result<()> {
    let Some(path) = &options.ref_model_name_or_path else { return Ok(()) };
    let reference = ModelSource::open(path)?;
    Model::config(&reference)?;
    let other = reference.tokenizer()?;
    if other.fingerprint() == tokenizer.fingerprint() {
        return Ok(());
    }
    let (spec, split) = (&options.dataset_name, &options.dataset_train_split);
    let rows = data::load(spec, split, &other, options, progress)?;
    if rows.len() == train.len() && rows.fingerprint() == train.fingerprint() {
        return Ok(());
    }
    let different = |i: &usize| Some(rows.name(*i).ok()? != train.name(*i).ok()?);
    let found = (0..rows.len().min(train.len())).find(|i| different(i).unwrap_or(true));
    Err(Error::format(
        path,
        format!(
            "the reference's tokenizer gives other tokens than the policy's{}; a reference must share the \
             policy's tokenizer and chat template",
            found.map(|i| format!(" (row {})", train.place(i).1)).unwrap_or_default()
        ),
    ))
}

fn eval_rows(options: &TrainOptions, tokenizer: &Tokenizer, progress: &mut dyn Progress) -> Result<Rows> {
    if options.eval == Every::No {
        return Rows::of(&[]);
    }
    let split = match (&options.dataset_test_split, &options.eval_dataset_name) {
        (Some(split), _) => split,
        (None, Some(_)) => "",
        (None, None) => {
            return Err(Error::Usage(
                "eval_strategy needs rows: set `dataset_test_split` (such as \"train[1000:]\") or `eval_dataset_name`".into(),
            ));
        }
    };
    let spec = options.eval_dataset_name.as_ref().unwrap_or(&options.dataset_name);
    data::load(spec, split, tokenizer, options, progress)
}

/// Says so where rows are trained on and evaluated on: their loss is not held out.
pub(super) fn note_overlap(train: &Rows, eval: &Rows, progress: &mut dyn Progress) {
    let evaluated: HashSet<_> = (0..eval.len()).map(|i| eval.place(i)).collect();
    let trained = (0..train.len()).map(|i| train.place(i)).filter(|place| evaluated.contains(place));
    let trained: HashSet<_> = if eval.is_empty() { HashSet::new() } else { trained.collect() };
    let both = (0..eval.len()).filter(|&i| trained.contains(&eval.place(i))).count();
    if both > 0 {
        progress.note(&format!("warning: {both} of {} evaluation rows are also trained on", eval.len()));
    }
}

/// The settings that decide a run's result, for the record and to recognise its checkpoints.
pub(super) fn settings(options: &TrainOptions, tokenizer: &Tokenizer, train: &Rows) -> Map<String, Value> {
    let (lr_scheduler_type, min_lr_rate) = options.schedule.key();
    let warmup = match options.warmup {
        Warmup::Steps(steps) => json!(steps),
        Warmup::Ratio(ratio) => json!(ratio),
    };
    let value = json!({
        "model_name_or_path": options.model_name_or_path,
        "ref_model_name_or_path": options.ref_model_name_or_path,
        "training_rows": train.fingerprint(),
        "tokenizer": tokenizer.fingerprint(),
        "method": options.method,
        "causal_environments": options.environments,
        "soft_label_column": options.tokenize.labels.soft,
        "group_column": options.tokenize.labels.group,
        "reward_columns": options.tokenize.labels.rewards,
        "shuffle_dataset": options.shuffle_dataset,
        "seed": options.seed,
        "pairs_per_step": options.per_device_train_batch_size * options.gradient_accumulation_steps,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": lr_scheduler_type,
        "min_lr_rate": min_lr_rate,
        "warmup_steps": warmup,
        "weight_decay": options.optimizer.weight_decay,
        "adam_beta1": options.optimizer.beta1,
        "adam_beta2": options.optimizer.beta2,
        "adam_epsilon": options.optimizer.epsilon,
        "max_grad_norm": options.max_grad_norm,
    });
    let objective = options.objective.settings().into_iter().map(|(k, v)| (k.to_string(), v));
    let adapters = options.lora.iter().flat_map(|lora| {
        let targets = match lora.target_modules.as_slice() {
            [] => json!("all-linear"),
            given => json!(given),
        };
        [
            ("use_peft", json!(true)),
            ("lora_r", json!(lora.r)),
            ("lora_alpha", json!(lora.lora_alpha)),
            ("lora_target_modules", targets),
            ("use_rslora", json!(lora.use_rslora)),
        ]
    });
    // As it was before there was a choice, where none is made.
    let more = options.lora.iter().flat_map(|lora| {
        let dora = lora.use_dora.then(|| ("use_dora", json!(true)));
        let dropout = (lora.lora_dropout > 0.0).then(|| ("lora_dropout", json!(lora.lora_dropout)));
        dora.into_iter().chain(dropout)
    });
    let adapters = adapters.chain(more).map(|(k, v)| (k.to_string(), v));
    let optim = options.optimizer.eight_bits.then(|| ("optim".to_string(), json!("adamw_8bit")));
    // As it was before there was a choice, where none is made.
    let numbers = (options.numbers != Numbers::default()).then(|| {
        let bf16 = options.numbers.precision == Precision::Bf16;
        [("dtype".to_string(), json!(options.numbers.keep.name())), ("bf16".to_string(), json!(bf16))]
    });
    let numbers = numbers.into_iter().flatten();
    match value {
        Value::Object(map) => {
            map.into_iter().chain(objective).chain(adapters).chain(numbers).chain(optim).collect()
        }
        _ => unreachable!("an object literal"),
    }
}
