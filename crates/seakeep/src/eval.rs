//! Judging a policy on preference pairs: held-out loss and TRL's reward metrics.

use crate::objective::{Context, Objective, Scored};

/// The objective's loss (without an input-gradient penalty, nats) and its metrics over all pairs as one batch.
/// Names as in training; the caller puts `eval_` in front.
pub fn evaluate(scored: &Scored, context: &Context, objective: &Objective) -> Vec<(String, f64)> {
    let evaluation = objective.evaluate(scored, context);
    let mut out = vec![("loss".to_string(), evaluation.loss)];
    out.extend(evaluation.metrics);
    out
}
