//! Judging a policy on preference pairs: held-out loss and TRL's reward metrics.

use crate::objective::rule::Group;
use crate::objective::{Context, Objective, Rule, Scored};

/// The objective's loss (without an input-gradient penalty, nats) and its metrics over all pairs as one batch.
/// Names as in training; the caller puts `eval_` in front.
pub fn evaluate(scored: &Scored, context: &Context, objective: &Objective) -> Vec<(String, f64)> {
    let evaluation = match objective.rule {
        // Groups count with the weights that they have: an evaluation takes no step of theirs.
        Rule::Group(_) => {
            let groups = context.groups.over(scored.facts.iter().map(|f| f.labels.group.clone()));
            let held = Objective { rule: Rule::Group(Group { step_size: 0.0 }), ..objective.clone() };
            held.evaluate(scored, &Context { groups, ..context.clone() })
        }
        _ => objective.evaluate(scored, context),
    };
    let mut out = vec![("loss".to_string(), evaluation.loss)];
    out.extend(evaluation.metrics);
    out
}
