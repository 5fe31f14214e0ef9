//! KTO (Ethayarajh et al., arXiv 2402.01306, eq. 8): completions that are good or bad, one by one. With the reference
//! point `z0`, constant in the gradient:
//!
//! ```text
//! l = w_D (1 - sigmoid(beta (u - z0)))   of a desirable completion
//! l = w_U (1 - sigmoid(beta (z0 - u)))   of an undesirable one
//! z0 = max(0, mean over the global batch of u(x, y'))      y' the completion of another prompt
//! ```

use super::{Jet, Sample};
use crate::logps::Role;
use crate::objective::Scored;

/// How much the two kinds count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// `w_D`
    pub desirable: f64,
    /// `w_U`
    pub undesirable: f64,
}

/// The reference point, from the mismatched completions of the global batch.
pub(super) fn reference_point(scored: &Scored) -> f64 {
    let ratios: Vec<f64> = (0..scored.policy.len())
        .filter_map(|i| {
            let b = scored.facts[i].branch(Role::Mismatched)?;
            Some(scored.policy.0[i][b] - scored.reference.0[i][b])
        })
        .collect();
    crate::objective::math::mean(&ratios).max(0.0)
}

/// The loss.
pub(super) fn loss(beta: f64, weights: Weights, kl: f64, s: &Sample) -> Jet {
    let u = s.chosen.ratio - kl;
    if s.desirable {
        weights.desirable * (-beta * u).sigmoid()
    } else {
        weights.undesirable * (beta * u).sigmoid()
    }
}

/// APO-zero (arXiv 2408.06266, eq. 7) of completions one by one, TRL's `apo_zero_unpaired`: KTO with `z0 = 0`.
pub(super) fn apo_zero(beta: f64, weights: Weights, s: &Sample) -> Jet {
    loss(beta, weights, 0.0, s)
}
