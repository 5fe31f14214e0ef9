//! Judging a policy on preference pairs: held-out loss and TRL's reward metrics.

use crate::logps::BranchLogps;
use crate::objective::Objective;

/// The objective's loss (without an input-gradient penalty, nats) and its metrics over all pairs as one batch.
/// Names as in training; the caller puts `eval_` in front.
pub fn evaluate(policy: &BranchLogps, reference: &BranchLogps, objective: &Objective) -> Vec<(String, f64)> {
    let evaluation = objective.evaluate(policy, reference, policy.len());
    let mut out = vec![("loss".to_string(), evaluation.loss)];
    out.extend(evaluation.metrics.iter().map(|(name, value)| (name.to_string(), *value)));
    out
}
