//! What was measured of one policy, as `seakeep eval` writes it and `seakeep report` reads it.
//!
//! Measurements of single completions and pairs, not means: whatever is asked later (another mixture, an interval over
//! prompts, a paired difference, a worst case) is computed from them without running a model again. Columns stand in the
//! order of the prompts, a prompt's samples one after another. A number that was not finite is `null` in the file and NaN
//! here.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::eval_record::Training;
use crate::formats::write_atomic;
use crate::{Error, Result};

/// The version of the layout that this program writes.
pub const POLICY_SCHEMA_VERSION: u32 = 1;

/// One policy, judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// [`POLICY_SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// The program and its version, such as `seakeep 0.1.0`.
    pub program: String,
    /// The command that made the record, as typed.
    pub command_line: String,
    /// Which policy, and how it was made.
    pub policy: Policy,
    /// The shift of preferences to judge it under, where one is given.
    #[serde(default)]
    pub shift: Option<Shift>,
    /// The policy's own completions.
    #[serde(default)]
    pub samples: Option<Samples>,
    /// Preference data that it was scored on.
    #[serde(default)]
    pub datasets: Vec<PairSet>,
    /// How its training went, where that is known.
    #[serde(default)]
    pub training: Option<Training>,
    /// Wall-clock time of the evaluation, seconds.
    #[serde(default)]
    pub seconds: f64,
}

/// A policy and how it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Where the model is.
    pub model_name_or_path: String,
    /// Where its reference is; the same where the record is the reference's own.
    pub ref_model_name_or_path: String,
    /// The method, such as `dpo`; `reference` for the reference itself.
    pub method: String,
    /// The method with the settings that tell it from others, such as `DPO beta 0.1`. Records with the same label differ in
    /// their seed only.
    pub label: String,
    /// The settings of its training, by key.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Seed of its training.
    pub seed: u64,
}

/// Preferences that move from one objective to another: the reward at `alpha` is a mixture of two scores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    /// The names of r1 (weight alpha) and r2 (weight 1 - alpha).
    pub objectives: [String; 2],
    /// `convex` (`a r1 + (1 - a) r2`), `geometric` (`r1^a r2^(1 - a)`).
    pub mixtures: Vec<String>,
    /// The alpha of the training labels.
    pub nominal_alpha: f64,
    /// The alphas to judge at, growing.
    pub alphas: Vec<f64>,
}

/// Completions that the policy gave, `n = prompts * per_prompt` of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Prompts.
    pub prompts: usize,
    /// Completions of each.
    pub per_prompt: usize,
    /// How they were drawn: temperature, top_p, ..., by key.
    #[serde(default)]
    pub generation: Map<String, Value>,
    /// A fingerprint of the prompts: records of the same prompts can be paired.
    pub prompts_fingerprint: String,
    /// A fingerprint of the reward model that scored them in `seakeep eval`; records of different judges are not compared.
    #[serde(default)]
    pub judge: Option<String>,
    /// The group of each prompt, where the data name one, `[prompts]`.
    #[serde(default)]
    pub groups: Option<Vec<String>>,
    /// By objective, what the reward model gave each completion, `[n]`.
    pub scores: BTreeMap<String, Column>,
    /// Tokens of each completion, `[n]`.
    pub tokens: Vec<u32>,
    /// Log-probability of each completion under the policy, nats, summed over its tokens, `[n]`.
    pub logps: Column,
    /// The same under the reference, `[n]`. The mean of `logps - ref_logps` estimates the divergence from the reference.
    pub ref_logps: Column,
    /// Distinct n-grams of tokens over all n-grams, for n = 1, 2, 3.
    pub distinct: Vec<f64>,
    /// Some of them to read.
    #[serde(default)]
    pub texts: Vec<SampleText>,
}

/// A completion to read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleText {
    /// Its prompt (of a conversation the last message).
    pub prompt: String,
    /// What the policy wrote.
    pub completion: String,
    /// Its scores by objective.
    #[serde(default)]
    pub scores: BTreeMap<String, f64>,
}

/// Pairs that the policy was scored on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairSet {
    /// A name, such as `natural`.
    pub name: String,
    /// The file.
    pub dataset_name: String,
    /// Tells its rows from others by their texts; of records from before there was one, none.
    #[serde(default)]
    pub rows_fingerprint: Option<String>,
    /// The metrics of `seakeep eval` over all of them, named `eval_*`.
    pub metrics: Map<String, Value>,
    /// The margin `h` of each pair over the reference, nats, without beta, `[rows]`.
    pub margins: Column,
    /// The pair loss of each, nats, `[rows]`.
    pub losses: Column,
    /// The norm of each pair loss's gradient in the input embeddings, where it was asked for, `[rows]`.
    #[serde(default)]
    pub input_gradients: Option<Column>,
    /// The group of each pair, where the data name one, `[rows]`.
    #[serde(default)]
    pub groups: Option<Vec<String>>,
    /// By objective, the chosen completion's score less the rejected one's, where the data carry scores, `[rows]`: which of
    /// the two a mixture prefers.
    #[serde(default)]
    pub score_differences: BTreeMap<String, Column>,
    /// By objective, the chosen completion's score, `[rows]`: with the differences, what a geometric mixture prefers.
    #[serde(default)]
    pub chosen_scores: BTreeMap<String, Column>,
}

/// Numbers, one for each completion or pair; `null` in the file is NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Column(pub Vec<f64>);

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let numbers = Vec::<Option<f64>>::deserialize(from)?;
        Ok(Column(numbers.into_iter().map(|x| x.unwrap_or(f64::NAN)).collect()))
    }
}

impl PolicyRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is none, or is of another version; columns that do not belong together.
    pub fn read(path: impl AsRef<Path>) -> Result<PolicyRecord> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let wrong = |e: serde_json::Error| {
            Error::format(
                path,
                format!("not a policy record (`seakeep eval --policy_record` writes them): {e}"),
            )
        };
        // The version first: what else is wrong with another version's file is no news.
        let value: Value = serde_json::from_slice(&bytes).map_err(wrong)?;
        match value.get("schema_version") {
            Some(version) if version.as_u64() == Some(u64::from(POLICY_SCHEMA_VERSION)) => {}
            found => {
                let found = found.map_or("no schema_version".to_string(), |v| format!("schema_version {v}"));
                let what = format!(
                    "{found}; this program reads policy records of schema_version {POLICY_SCHEMA_VERSION}: judge the policy \
                     again with `seakeep eval --policy_record`"
                );
                return Err(Error::format(path, what));
            }
        }
        let record: PolicyRecord = serde_json::from_value(value).map_err(wrong)?;
        record.check().map_err(|what| Error::format(path, what))?;
        Ok(record)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let text = serde_json::to_string(self).map_err(|e| Error::format(path, e.to_string()))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        write_atomic(path, format!("{text}\n").as_bytes())
    }

    /// Whether its columns have the lengths they must have; otherwise what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let mut columns: Vec<(String, usize, usize)> = Vec::new();
        if let Some(s) = &self.samples {
            let n = s.prompts * s.per_prompt;
            if n == 0 || s.distinct.len() != 3 {
                return Err(format!("samples of {} prompts, {} of each", s.prompts, s.per_prompt));
            }
            let mut add = |name: String, length| columns.push((format!("samples.{name}"), length, n));
            add("tokens".into(), s.tokens.len());
            add("logps".into(), s.logps.0.len());
            add("ref_logps".into(), s.ref_logps.0.len());
            s.scores.iter().for_each(|(name, column)| add(format!("scores.{name}"), column.0.len()));
            columns.extend(s.groups.iter().map(|g| ("samples.groups".to_string(), g.len(), s.prompts)));
        }
        for set in &self.datasets {
            let n = set.margins.0.len();
            let mut add =
                |name: &str, length| columns.push((format!("datasets {}: {name}", set.name), length, n));
            add("losses", set.losses.0.len());
            set.input_gradients.iter().for_each(|c| add("input_gradients", c.0.len()));
            set.groups.iter().for_each(|g| add("groups", g.len()));
            set.score_differences.values().for_each(|c| add("score_differences", c.0.len()));
            set.chosen_scores.values().for_each(|c| add("chosen_scores", c.0.len()));
        }
        match columns.into_iter().find(|(_, found, want)| found != want) {
            Some((name, found, want)) => Err(format!("{name} has {found} numbers, expected {want}")),
            None => Ok(()),
        }
    }

    /// The samples of two records of the same prompts, so that they can be paired.
    ///
    /// # Errors
    /// [`Error::Usage`] where one has none, or they are of different prompts.
    pub fn paired_with<'a>(&'a self, other: &'a PolicyRecord) -> Result<(&'a Samples, &'a Samples)> {
        let of = |record: &'a PolicyRecord| {
            let none = || Error::Usage(format!("{} has no samples to be compared", record.policy.name()));
            record.samples.as_ref().ok_or_else(none)
        };
        let (own, others) = (of(self)?, of(other)?);
        if let Some(what) = own.judged_otherwise(others) {
            let (own, other) = (self.policy.name(), other.policy.name());
            return Err(Error::Usage(format!(
                "{own} and {other} cannot be paired: {what}; judge both alike"
            )));
        }
        if own.prompts_fingerprint == others.prompts_fingerprint {
            return Ok((own, others));
        }
        Err(Error::Usage(format!(
            "{} and {} were judged on different prompts ({} prompts, fingerprint {}; {} prompts, fingerprint {}) and cannot be \
             paired; give both the same prompts in the same order",
            self.policy.name(),
            other.policy.name(),
            own.prompts,
            own.prompts_fingerprint,
            others.prompts,
            others.prompts_fingerprint
        )))
    }
}

impl Samples {
    /// What of the way they were drawn and scored differs, where both records say it.
    pub fn judged_otherwise(&self, other: &Samples) -> Option<String> {
        if let (Some(own), Some(others)) = (&self.judge, &other.judge)
            && own != others
        {
            return Some(format!("their reward models differ (fingerprints {own} and {others})"));
        }
        let differs = |(key, own): (&String, &Value)| {
            // Another seed is another draw from the same distribution.
            let counts = key != "file" && key != "seed";
            let others = other.generation.get(key).filter(|others| *others != own && counts)?;
            Some(format!("their samples were drawn with `{key}` {own} and {others}"))
        };
        self.generation.iter().find_map(differs)
    }
}

/// Settings in which runs of one label may differ: what a seed changes, and where things lie.
const OF_A_SEED: [&str; 4] = ["seed", "training_rows", "model_name_or_path", "ref_model_name_or_path"];

impl Policy {
    /// In what setting, where both are known, they differ by more than a seed.
    pub fn trained_otherwise(&self, other: &Policy) -> Option<String> {
        if self.settings.is_empty() || other.settings.is_empty() {
            return None;
        }
        let of = |policy: &Policy, key: &str| policy.settings.get(key).cloned().unwrap_or_default();
        let mut keys = self
            .settings
            .keys()
            .chain(other.settings.keys())
            .filter(|key| !OF_A_SEED.contains(&key.as_str()));
        let key = keys.find(|key| of(self, key) != of(other, key))?;
        Some(format!("`{key}` {} in one and {} in the other", of(self, key), of(other, key)))
    }

    /// Label and place, for messages.
    fn name(&self) -> String {
        format!("{} ({})", self.label, self.model_name_or_path)
    }
}
