//! What an evaluation found, as it is written to `eval.json` and read by the report.
//!
//! Numbers are measurements of one policy each; nothing is aggregated here. `report::summary` takes
//! means over seeds. A number that was not finite is written as `null` and read back as NaN.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The version of the record's layout that this program writes.
pub const SCHEMA_VERSION: u32 = 1;

/// An evaluation of several policies tuned from one reference, under a shift of preferences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// [`SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// The program and its version, such as `seakeep 0.1.0`.
    pub program: String,
    /// The command that made the record, as typed.
    pub command_line: String,
    /// The report's title.
    pub title: String,
    /// The question the evaluation was made to answer, in a few sentences.
    pub question: String,
    /// What the policies were trained and judged on.
    pub data: DataDescription,
    /// The share of population 1 in the training labels, in [0, 1].
    pub nominal_alpha: f64,
    /// The policy that every run started from.
    pub reference: PolicyEval,
    /// The best mean reward that any policy could have, where it is known; empty otherwise.
    #[serde(default)]
    pub ceilings: Vec<Ceiling>,
    /// One entry per method, settings and seed.
    pub runs: Vec<Run>,
    /// Completions to read side by side; may be empty.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// The exact configuration of everything.
    #[serde(default)]
    pub config: Value,
    /// Wall-clock times.
    #[serde(default)]
    pub timing: Timing,
}

/// What the policies were trained and judged on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataDescription {
    /// A name, such as `preference world, seed 0`.
    pub name: String,
    /// What it is, in a few sentences.
    pub description: String,
    /// Counts and constants, by name.
    #[serde(default)]
    pub facts: BTreeMap<String, Value>,
}

/// One trained policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The method, such as `dpo`, the same for all its settings. `dpo` is what others are compared with.
    pub method: String,
    /// The method with the settings that tell it from others, such as `DPO beta 0.1`. Runs with the same
    /// label differ in their seed only and are averaged.
    pub label: String,
    /// The settings, by name.
    #[serde(default)]
    pub settings: BTreeMap<String, Value>,
    /// The seed of the run.
    pub seed: u64,
    /// Divergence of the policy from the reference on the policy's own samples, nats per token.
    #[serde(deserialize_with = "nan_if_null")]
    pub kl_per_token: f64,
    /// How it fared.
    pub eval: PolicyEval,
    /// How its training went, where that is known.
    #[serde(default)]
    pub training: Option<Training>,
}

/// What was measured of one policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyEval {
    /// One curve per mixture of the populations' rewards.
    pub curves: Vec<Curve>,
    /// Mean length of the policy's samples, tokens.
    #[serde(deserialize_with = "nan_if_null")]
    pub mean_length: f64,
}

/// Measurements along a shift of preferences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// How the populations are mixed, such as `convex` or `geometric`.
    pub mixture: String,
    /// By growing alpha.
    pub points: Vec<CurvePoint>,
}

/// Measurements under one mixture of the populations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The share of population 1, in [0, 1].
    pub alpha: f64,
    /// Mean true reward of the policy's own samples.
    #[serde(deserialize_with = "nan_if_null")]
    pub reward: f64,
    /// Standard error of `reward` over the prompts.
    #[serde(deserialize_with = "nan_if_null")]
    pub reward_se: f64,
    /// Share of held-out pairs, labelled under this mixture, whose implicit-reward margin is positive;
    /// in [0, 1]. The reference has no margin, so none.
    #[serde(default)]
    pub accuracy: Option<f64>,
    /// Mean pair loss on the same pairs, nats.
    #[serde(default)]
    pub loss: Option<f64>,
}

/// The best mean reward possible under one mixture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// As [`Curve::mixture`].
    pub mixture: String,
    /// As [`CurvePoint::alpha`].
    pub alpha: f64,
    /// The reward.
    pub reward: f64,
}

/// How a training went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// By growing step.
    pub steps: Vec<TrainingPoint>,
    /// Wall-clock time, seconds.
    #[serde(deserialize_with = "nan_if_null")]
    pub seconds: f64,
}

/// What was logged at one optimizer step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingPoint {
    /// Optimizer step, from 1.
    pub step: u64,
    /// The objective's value, in its own unit.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// Mean implicit-reward margin of the batch, `beta h` (nats).
    #[serde(deserialize_with = "nan_if_null")]
    pub margin: f64,
}

/// One prompt, answered by several policies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// The answers.
    pub answers: Vec<Answer>,
}

/// One policy's answer to a prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Which policy: a run's label, or `reference`.
    pub label: String,
    /// What it wrote.
    pub text: String,
    /// The answer's rewards by name (`r1`, `r2`), where they are known.
    #[serde(default)]
    pub rewards: BTreeMap<String, f64>,
}

/// Wall-clock times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// All of it, seconds.
    pub total_seconds: f64,
    /// Each phase's name and seconds, in order.
    #[serde(default)]
    pub phases: Vec<(String, f64)>,
    /// The machine, in words.
    #[serde(default)]
    pub machine: String,
}

fn nan_if_null<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_json_with_a_number_that_is_not_finite() {
        let run = Run { label: "DPO".into(), kl_per_token: f64::NAN, ..Run::default() };
        let record = EvalRecord { schema_version: SCHEMA_VERSION, runs: vec![run], ..EvalRecord::default() };
        let text = serde_json::to_string(&record).unwrap();
        let back: EvalRecord = serde_json::from_str(&text).unwrap();
        assert!(back.runs[0].kl_per_token.is_nan());
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}
