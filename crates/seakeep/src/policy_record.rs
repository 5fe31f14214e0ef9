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
    /// [`Error::Io`] where the file cannot be read, [`Error::Format`] where it holds something else or a record of another
    /// schema version.
    pub fn read(path: &Path) -> Result<PolicyRecord> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| Error::format(path, format!("not JSON: {e}")))?;
        // The version first: another one may have other keys.
        match value.get("schema_version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(POLICY_SCHEMA_VERSION) => {}
            Some(version) => {
                let expected = POLICY_SCHEMA_VERSION;
                return Err(Error::format(
                    path,
                    format!(
                        "a record of schema version {version}; expected {expected}; run `seakeep eval` again with this program"
                    ),
                ));
            }
            None => {
                return Err(Error::format(
                    path,
                    "no policy record: `schema_version` is missing; expected a file of `seakeep eval --policy_record`"
                        .to_string(),
                ));
            }
        }
        serde_json::from_value(value).map_err(|e| Error::format(path, format!("not a policy record: {e}")))
    }
}
