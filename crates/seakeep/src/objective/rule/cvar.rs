//! Conditional value at risk (Rockafellar and Uryasev 2000): the mean of the worst share `alpha` of the batch,
//!
//! ```text
//! sup { sum p_i l_i : p_i <= 1 / (alpha n) } = inf over t of  t + mean (l_i - t)_+ / alpha
//! ```
//! The pair at the edge has what is left; pairs that tie share. `alpha = 1` is the mean.

use super::{RuleOutput, weighted, worst_case};

/// The rule over the losses of the global batch (nats).
pub(super) fn rule(alpha: f64, losses: &[f64]) -> RuleOutput {
    let cap = 1.0 / (alpha * losses.len() as f64);
    let weights = worst_case::pour(losses, worst_case::tie(losses), 1.0, cap);
    // The value at risk: the smallest loss that still has weight.
    let carried = losses.iter().zip(&weights).filter(|(_, w)| **w > 0.0).map(|(l, _)| *l);
    let threshold = carried.fold(f64::INFINITY, f64::min);
    weighted(losses, weights, vec![("cvar/value_at_risk", threshold)])
}
