//! The worst case over a chi-square ball (Namkoong and Duchi, arXiv 1610.02581; Hashimoto et al., arXiv 1806.08010):
//!
//! ```text
//! sup { sum p_i l_i : n sum (p_i - 1/n)^2 <= rho } = inf over eta of  eta + sqrt(1 + rho) sqrt(mean (l_i - eta)_+^2)
//! p_i = (l_i - eta)_+ / sum_j (l_j - eta)_+        with eta such that n sum p_i^2 = 1 + rho
//! ```
//! `rho >= n/m - 1` puts all weight on the m worst pairs; `rho = 0` is the mean. The weights are the exact gradient.

use super::super::math::largest;
use super::{RuleOutput, worst, worst_case};

/// The rule over the losses of the global batch (nats).
pub(super) fn rule(rho: f64, losses: &[f64]) -> RuleOutput {
    let top = largest(losses);
    let (weights, below) = worst_case::in_ball(losses, rho, |scale| above(losses, top - scale), divergence);
    worst(losses, weights, ("chi2/eta", top - below), "chi2/dual")
}

/// The weights in proportion to what exceeds `eta`.
fn above(losses: &[f64], eta: f64) -> Vec<f64> {
    let excess: Vec<f64> = losses.iter().map(|l| (l - eta).max(0.0)).collect();
    let total: f64 = excess.iter().sum();
    excess.iter().map(|e| e / total).collect()
}

/// `n sum (p_i - 1/n)^2`
fn divergence(weights: &[f64]) -> f64 {
    let n = weights.len() as f64;
    n * weights.iter().map(|p| (p - 1.0 / n) * (p - 1.0 / n)).sum::<f64>()
}
