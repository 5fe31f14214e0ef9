//! Checkpoints: everything a run needs to go on, bit for bit, in a directory that appears whole or not at all.
//!
//! ```text
//! checkpoint-50/
//!     config.json  model.safetensors  tokenizer ...   the policy, as transformers loads it (always f32);
//!     adapter_config.json  adapter_model.safetensors  of a policy with adapters these alone, as PEFT loads them
//!     optimizer.safetensors                           exp_avg/NAME and exp_avg_sq/NAME, in-memory layout
//!     trainer_state.json                              step, tokens, the settings of the run, fingerprints of the files above
//!     reference.safetensors                           what the reference says of each row
//! ```
//! The order of the data is a function of the seed and the step, so no generator state is needed.

mod files;
mod reference;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use files::check_files;
pub use reference::{ReferenceRow, ReferenceRows, ReferenceScores};

use crate::formats::adapter;
use crate::formats::{
    AdapterFiles, AtomicDir, ModelSource, SaveDtype, Weights, write_atomic, write_safetensors_by,
};
use crate::model::{Model, Numbers};
use crate::objective::Groups;
use crate::optim::{AdamW, AdamWState, Moments};
use crate::progress::Progress;
use crate::{Error, Result};

/// The layout of `trainer_state.json` that this program writes.
pub const SCHEMA_VERSION: u32 = 3;

/// `trainer_state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Optimizer steps done.
    pub step: usize,
    /// Optimizer steps planned.
    pub total_steps: usize,
    /// Epochs done.
    pub epoch: f64,
    /// Tokens seen.
    pub num_tokens: usize,
    /// Logged values since the last line of the log.
    pub pending: Interval,
    /// Where the groups of a group-robust rule stand.
    pub groups: Groups,
    /// The settings that decide the result.
    pub settings: Map<String, Value>,
    /// The weights below the adapters that are trained, if such are: a checkpoint does not hold them.
    #[serde(default)]
    pub base: Option<String>,
    /// The weights of the reference that rows have been scored with, if it was asked.
    #[serde(default)]
    pub reference: Option<String>,
    /// The rows that are evaluated on, of which the reference's scores are kept by place.
    #[serde(default)]
    pub eval_rows: Option<String>,
    /// Fingerprints of a checkpoint's files of tensors, by name; of checkpoints from before there were any, none.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// Logged values, summed over the steps since the last line of the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Name, sum, and how many steps had it.
    sums: Vec<(String, f64, usize)>,
}

impl Interval {
    /// Adds a step, whose loss is finite. Other values that are not have no mean, and JSON, in which a checkpoint keeps the others, no word for them.
    pub fn add(&mut self, loss: f64, metrics: &[(String, f64)]) {
        let loss = ("loss".to_string(), loss);
        for (name, value) in std::iter::once(&loss).chain(metrics.iter().filter(|m| m.1.is_finite())) {
            match self.sums.iter_mut().find(|s| s.0 == *name) {
                Some(sum) => (sum.1, sum.2) = (sum.1 + value, sum.2 + 1),
                None => self.sums.push((name.clone(), *value, 1)),
            }
        }
    }

    /// The means over the steps that had the value, with `more` after the loss; starts over.
    pub fn take(&mut self, more: &[(&str, f64)]) -> Vec<(String, f64)> {
        let sums = std::mem::take(self).sums;
        let mut values: Vec<(String, f64)> =
            sums.into_iter().map(|(n, v, count)| (n, v / count as f64)).collect();
        values.splice(1..1, more.iter().map(|(name, value)| (name.to_string(), *value)));
        values
    }
}

/// What names of checkpoints begin with; the step follows.
pub(crate) const PREFIX: &str = "checkpoint-";

/// The name of the checkpoint after `step`.
pub fn name(step: usize) -> String {
    format!("{PREFIX}{step}")
}

/// The checkpoints in `output_dir`, by growing step.
pub fn list(output_dir: &Path) -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir(output_dir).into_iter().flatten().flatten();
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter_map(|e| {
            let step = e.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
            Some((step, e.path()))
        })
        .collect();
    found.sort();
    found
}

/// The files of a whole model that [`save_model`] writes, but for the tokenizer's; those of adapters.
const FILES: [&[&str]; 2] = [
    &["config.json", "generation_config.json", "model.safetensors"],
    &[adapter::CONFIG_FILE, adapter::TENSORS_FILE],
];

/// Removes those of `names` that there are.
fn remove(directory: &Path, names: &[&str]) -> Result<()> {
    for path in names.iter().map(|name| directory.join(name)).filter(|path| path.is_file()) {
        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}

/// Removes the model that an earlier run left in a directory, and the record of its settings.
///
/// # Errors
/// The file system's.
pub fn remove_model(directory: &Path) -> Result<()> {
    remove(directory, &[TRAINING_ARGS])?;
    FILES.iter().try_for_each(|names| remove(directory, names))
}

/// Writes the files of a model that transformers loads: weights, configuration, tokenizer. Of a model with adapters these, as
/// PEFT loads them on top of `source`. Files of the other kind, left by an earlier run, are removed: a directory is one of both.
///
/// # Errors
/// Weights that are not finite; the file system's.
pub fn save_model(directory: &Path, model: &Model, source: &ModelSource, dtype: SaveDtype) -> Result<()> {
    source.tokenizer()?.save(directory)?;
    let [whole, adapters] = FILES;
    remove(directory, if model.adapters.is_some() { whole } else { adapters })?;
    if model.adapters.is_some() {
        return model.save_adapters(directory, &source.path, dtype);
    }
    if let Some(generation) = &source.generation_config {
        let text = serde_json::to_string_pretty(generation).expect("JSON values serialise");
        write_atomic(directory.join("generation_config.json"), text.as_bytes())?;
    }
    model.save(directory, &source.config, dtype)
}

/// Has `save` write a trained model as `dtype`, or where that cannot hold a weight in f32, with a note: no reason to lose a run.
///
/// # Errors
/// Those of `save`.
pub fn save_or_in_f32(
    dtype: SaveDtype,
    progress: &mut dyn Progress,
    save: impl Fn(SaveDtype) -> Result<()>,
) -> Result<()> {
    match save(dtype) {
        Err(Error::NonFinite(what)) if dtype != SaveDtype::F32 => {
            save(SaveDtype::F32)?;
            let what = what.trim_end_matches("; nothing was written");
            progress.note(&format!("{what}: the model is saved in float32"));
            Ok(())
        }
        saved => saved,
    }
}

/// What decided a finished run, beside its model: `training_args.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingArgs {
    /// The settings, by key.
    pub settings: Map<String, Value>,
    /// Wall-clock time, seconds.
    pub seconds: f64,
}

const REFERENCE: &str = "reference.safetensors";

const TRAINING_ARGS: &str = "training_args.json";

/// Writes the settings of a finished run beside its model.
///
/// # Errors
/// The file system's.
pub fn save_settings(output_dir: &Path, settings: &Map<String, Value>, seconds: f64) -> Result<()> {
    write_json(&output_dir.join(TRAINING_ARGS), &TrainingArgs { settings: settings.clone(), seconds })
}

/// The settings of the finished run that made this model; `None` where no run of ours did.
///
/// # Errors
/// A file that cannot be read.
pub fn load_settings(model: &Path) -> Result<Option<TrainingArgs>> {
    let path = model.join(TRAINING_ARGS);
    if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
}

/// Writes a checkpoint, atomically.
///
/// # Errors
/// Weights that are not finite; the file system's.
pub fn save(
    output_dir: &Path,
    (model, source): (&Model, &ModelSource),
    optimizer: &AdamWState,
    state: &TrainerState,
    reference: &ReferenceScores,
) -> Result<()> {
    let directory = AtomicDir::new(output_dir.join(name(state.step)))?;
    save_model(directory.path(), model, source, SaveDtype::F32)?;
    save_optimizer(&directory.path().join("optimizer.safetensors"), model, optimizer)?;
    reference.save(&directory.path().join(REFERENCE))?;
    let state = TrainerState { files: files::fingerprints(directory.path())?, ..state.clone() };
    write_json(&directory.path().join("trainer_state.json"), &state)?;
    directory.replace()
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::format(path, e.to_string()))?;
    write_atomic(path, text.as_bytes())
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::format(path, format!("not what a checkpoint holds: {e}")))
}

/// The two moments, each with its prefix in `optimizer.safetensors`.
fn moments(state: &AdamWState) -> [(&'static str, &[Moments]); 2] {
    [("exp_avg", &state.mean), ("exp_avg_sq", &state.square)]
}

fn save_optimizer(path: &Path, model: &Model, state: &AdamWState) -> Result<()> {
    let mut entries = Vec::new();
    for (prefix, tensors) in moments(state) {
        for (spec, data) in model.map.params.iter().zip(tensors.iter()).filter(|(spec, _)| spec.trainable) {
            entries.push((format!("{prefix}/{}", spec.name), [spec.rows, spec.cols], data));
        }
    }
    let shapes: Vec<(&str, &[usize])> =
        entries.iter().map(|(name, shape, _)| (name.as_str(), &shape[..])).collect();
    write_safetensors_by(path, &shapes, SaveDtype::F32, |i| entries[i].2.to_f32())
}

fn load_optimizer(path: &Path, model: &Model, adamw: &AdamW, step: usize) -> Result<AdamWState> {
    let file = Weights::open(path)?;
    let mut state = AdamWState::new(&model.map, adamw);
    state.step = step;
    for (prefix, tensors) in [("exp_avg", &mut state.mean), ("exp_avg_sq", &mut state.square)] {
        for (spec, to) in model.map.params.iter().zip(tensors.iter_mut()).filter(|(spec, _)| spec.trainable) {
            let name = format!("{prefix}/{}", spec.name);
            if file.shape(&name) != Some(&[spec.rows, spec.cols]) {
                return Err(Error::format(
                    path,
                    format!("`{name}` is missing or has another shape than the model's"),
                ));
            }
            to.set(&file.read_f32(&name)?);
        }
    }
    Ok(state)
}

/// Reads `trainer_state.json` of a checkpoint.
///
/// # Errors
/// A directory that is not a checkpoint, or one of another version.
pub fn load_state(directory: &Path) -> Result<TrainerState> {
    let path = directory.join("trainer_state.json");
    if !directory.is_dir() {
        return Err(Error::format(
            directory,
            "no such directory; give a checkpoint-N directory, or `true` for the newest",
        ));
    }
    if !path.is_file() {
        let what = "not a checkpoint of Seakeep: it has no trainer_state.json; give a checkpoint-N directory of a run";
        return Err(Error::format(directory, what));
    }
    let state: TrainerState = read_json(&path)?;
    if state.schema_version != SCHEMA_VERSION {
        let found = state.schema_version;
        return Err(Error::format(
            path,
            format!("schema_version {found}; this program reads {SCHEMA_VERSION}"),
        ));
    }
    Ok(state)
}

/// All that a run changes as it goes: what it begins with, and what a checkpoint gives back.
pub struct RunState {
    /// The policy.
    pub model: Model,
    /// The optimizer's memory.
    pub optimizer: AdamWState,
    /// Where the run stood.
    pub state: TrainerState,
    /// What the reference says of the rows.
    pub reference: ReferenceScores,
}

/// How a setting of a checkpoint differs from the run's, in a user's words.
fn difference(key: &str, there: &Value, here: &Value) -> String {
    let word = |value: &Value| if value.is_null() { "not set".to_string() } else { value.to_string() };
    let what = match key {
        "training_rows" => {
            let deciding =
                "`dataset_name`, `dataset_train_split`, `max_length`, `truncation_mode`, the chat template";
            return format!("its training rows are others (what decides them: {deciding})");
        }
        "tokenizer" => return "its tokenizer is another".to_string(),
        "pairs_per_step" => "`per_device_train_batch_size` times `gradient_accumulation_steps`".to_string(),
        key => format!("`{key}`"),
    };
    format!("{what} is {} there, {} here", word(there), word(here))
}

/// Reads a checkpoint for a run with `settings` that set out from `source`, on which a checkpoint with adapters rests; the model is kept as
/// `numbers` say. `name_of` is how weights below adapters are named in [`TrainerState::base`].
///
/// # Errors
/// A directory that is not a checkpoint, one of a run with other settings (each difference is named), or files that
/// do not fit each other or are not what was saved.
pub fn load(
    directory: &Path,
    settings: &Map<String, Value>,
    source: &ModelSource,
    (numbers, adamw): (Numbers, &AdamW),
    name_of: fn(&Model) -> String,
) -> Result<RunState> {
    let state = load_state(directory)?;
    let none = Value::Null;
    let keys = settings.keys().chain(state.settings.keys().filter(|k| !settings.contains_key(*k)));
    let differences: Vec<String> = keys
        .map(|k| (k, state.settings.get(k).unwrap_or(&none), settings.get(k).unwrap_or(&none)))
        .filter(|(_, there, here)| there != here)
        .map(|(k, there, here)| difference(k, there, here))
        .collect();
    if !differences.is_empty() {
        return Err(Error::format(
            directory,
            format!(
                "a checkpoint of another run: {}; use the settings it was made with, or start anew",
                differences.join("; ")
            ),
        ));
    }
    let named = directory.file_name().and_then(|n| n.to_str()?.strip_prefix(PREFIX)?.parse::<usize>().ok());
    if named.is_some_and(|step| step != state.step) {
        let what = format!("trainer_state.json says step {}, the directory's name another", state.step);
        return Err(Error::format(directory, what));
    }
    check_files(directory, &state)?;
    let model = if AdapterFiles::are_in(directory) {
        let mut model = Model::load_in(source, numbers)?;
        if state.base.as_ref().is_some_and(|base| *base != name_of(&model)) {
            return Err(Error::format(
                directory,
                format!(
                    "its adapters were trained on other weights than {} has now; give it those again, or start anew",
                    source.path.display()
                ),
            ));
        }
        model.load_adapters(&AdapterFiles::open(directory)?)?;
        model
    } else {
        Model::load_in(&ModelSource::open(directory)?, numbers)?
    };
    let optimizer = load_optimizer(&directory.join("optimizer.safetensors"), &model, adamw, state.step)?;
    Ok(RunState { model, optimizer, state, reference: ReferenceScores::load(&directory.join(REFERENCE))? })
}

/// Removes the oldest checkpoints beyond `limit`.
///
/// # Errors
/// The file system's.
pub fn prune(output_dir: &Path, limit: Option<usize>) -> Result<()> {
    let found = list(output_dir);
    let excess = limit.map_or(0, |l| found.len().saturating_sub(l.max(1)));
    for (_, path) in &found[..excess] {
        std::fs::remove_dir_all(path).map_err(Error::io("remove", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_the_steps_that_had_a_number() {
        let mut interval = Interval::default();
        interval.add(1.0, &[("chi2/eta".to_string(), f64::NEG_INFINITY)]);
        interval.add(2.0, &[("chi2/eta".to_string(), 0.5)]);
        let kept: Interval = serde_json::from_str(&serde_json::to_string(&interval).unwrap()).unwrap();
        assert_eq!(kept, interval);
        let values = interval.take(&[("grad_norm", 3.0)]);
        let expected = [("loss", 1.5), ("grad_norm", 3.0), ("chi2/eta", 0.5)];
        assert_eq!(values, expected.map(|(name, value)| (name.to_string(), value)));
    }
}
