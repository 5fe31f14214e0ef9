//! What the directory of a run tells of how its policy was trained.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint;
use crate::eval_record::{Training, TrainingPoint};
use crate::{Error, Result};

/// How a policy was trained, as far as its directory says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFacts {
    /// Settings of its training (`training_args.json`, or `trainer_state.json` of a checkpoint); empty where there is none.
    pub settings: Map<String, Value>,
    /// Its training curve (`metrics.jsonl`).
    pub training: Option<Training>,
}

impl RunFacts {
    /// Of a run's directory, one of its checkpoints, or a model that no run made.
    ///
    /// # Errors
    /// A `metrics.jsonl` or `trainer_state.json` that cannot be read.
    pub fn of(model: &Path) -> Result<RunFacts> {
        let own = model.join("trainer_state.json").is_file();
        let state = match checkpoint::list(model).pop() {
            _ if own => Some(checkpoint::load_state(model)?),
            // One that another version wrote tells nothing; the policy can be judged all the same.
            Some((_, newest)) => checkpoint::load_state(&newest).ok(),
            None => None,
        };
        let last = state.as_ref().filter(|_| own).map(|s| s.step as u64);
        let log = if own { model.parent().unwrap_or(model) } else { model }.join("metrics.jsonl");
        let mut training = if log.is_file() { Some(curve(&log, last.unwrap_or(u64::MAX))?) } else { None };
        // A finished run says it beside its model; checkpoints may be gone.
        if let Some(finished) = checkpoint::load_settings(model)? {
            training.iter_mut().for_each(|t| t.seconds = finished.seconds);
            return Ok(RunFacts { settings: finished.settings, training });
        }
        Ok(RunFacts { settings: state.map(|s| s.settings).unwrap_or_default(), training })
    }

    /// The method of its training.
    pub fn method(&self) -> Option<&str> {
        self.settings.get("method").and_then(Value::as_str)
    }

    /// The seed of its training.
    pub fn seed(&self) -> Option<u64> {
        self.settings.get("seed").and_then(Value::as_u64)
    }

    /// A label that tells it from policies of other settings: the method, beta, and the knobs of its rule and penalty.
    pub fn label(&self) -> Option<String> {
        let number =
            |(key, value): (&String, &Value)| Some(format!("{} {}", key.replace('_', " "), value.as_f64()?));
        let rule = self.settings.get("rule").and_then(Value::as_str).unwrap_or_default();
        let own = |key: &str| key.starts_with(&format!("{rule}_")) && !rule.is_empty() || key == "wdpo_rho";
        let knobs = self.settings.iter().filter(|(key, _)| own(key));
        let beta = self.settings.get_key_value("beta");
        let parts = beta.into_iter().chain(knobs).filter_map(number);
        Some(std::iter::once(self.method()?.to_uppercase()).chain(parts).collect::<Vec<_>>().join(" "))
    }
}

/// The logged steps up to `last`.
fn curve(path: &Path, last: u64) -> Result<Training> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut steps = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((i, line)) = lines.next() {
        let line: Value = match serde_json::from_str(line) {
            Ok(line) => line,
            // A run that was killed may have torn its last line.
            Err(_) if lines.peek().is_none() => break,
            Err(e) => return Err(Error::row(path, i + 1, "", format!("not a line of a training log: {e}"))),
        };
        let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
        // Lines of evaluation have no `loss`.
        if let (Some(step), true) = (line["step"].as_u64().filter(|s| *s <= last), line.get("loss").is_some())
        {
            steps.push(TrainingPoint { step, loss: number("loss"), margin: number("rewards/margins") });
        }
    }
    Ok(Training { steps, seconds: f64::NAN })
}
