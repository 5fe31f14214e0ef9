//! Dr. DPO (Wu et al., arXiv 2407.07880, eq. 12): against flipped labels it trusts the pairs of low loss,
//!
//! ```text
//! L = -beta' log (1/n) sum_i exp(-l_i / beta')        gradient weights proportional to exp(-l_i / beta')
//! ```
//! It leans away from the hard pairs where KLDPO leans on them. `beta' -> infinity` is the mean; the authors run 1.0.

use super::super::math::{mean, smallest};
use super::{RuleOutput, weighted, worst_case};

/// The rule over the losses of the global batch (nats).
pub(super) fn rule(beta: f64, losses: &[f64]) -> RuleOutput {
    if beta.is_infinite() {
        return weighted(losses, worst_case::uniform(losses.len()), Vec::new());
    }
    // From the lowest loss every exponent is at most 0, and expm1 keeps the small ones of a large beta'.
    let least = smallest(losses);
    let falls: Vec<f64> = losses.iter().map(|l| (-(l - least) / beta).exp_m1()).collect();
    let total: f64 = falls.iter().map(|f| 1.0 + f).sum();
    let weights = falls.iter().map(|f| (1.0 + f) / total).collect();
    let loss = least - beta * mean(&falls).ln_1p();
    RuleOutput { loss, ..weighted(losses, weights, Vec::new()) }
}
