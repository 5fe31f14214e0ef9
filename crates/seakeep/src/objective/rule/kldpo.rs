//! KLDPO: the worst case of the mean loss over a Kullback-Leibler ball around the data
//! (Xu et al., arXiv 2502.01930, Algorithm "KLDPO"):
//!
//! ```text
//! sup { E_P[l] : KL(P || P_n) <= rho } = inf over tau > 0 of  tau rho + tau log (1/n) sum_i exp(l_i / tau)
//! P_i = exp((l_i - mean l) / tau) / sum_j exp((l_j - mean l) / tau)
//! ```
//!
//! With `tau` given (the paper's algorithm) the loss is `sum P_i l_i`, `P` constant in the gradient. With `rho`
//! given, `tau` is the solution of the dual, and since `KL(P(tau) || P_n) = rho` there, `sum P_i l_i` is the
//! worst case itself and `P_i` its exact gradient (Danskin). The weights are computed from the whole global
//! batch.
//!
//! # Where the authors' code differs
//! `official`: weights `min(exp((l_i - mean l) / tau), 10)`, not normalised, averaged over n.

use super::super::math::{largest, mean};
use super::{RuleOutput, weighted, worst, worst_case};

/// The size of the ball, or its temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kldpo {
    /// Temperature given, nats: the paper's algorithm.
    Tau(f64),
    /// Radius given, nats: the exact dual.
    Rho(f64),
    /// Temperature given, the authors' weights.
    Official(f64),
}

/// The cap on weights in the authors' code.
const OFFICIAL_CAP: f64 = 10.0;

impl Kldpo {
    /// The rule over the losses of the global batch (nats).
    pub fn rule(self, losses: &[f64]) -> RuleOutput {
        match self {
            Kldpo::Tau(tau) => weighted(losses, tilted(losses, tau), vec![("kldpo/tau", tau)]),
            Kldpo::Rho(rho) => {
                let (weights, tau) = worst_case::in_ball(losses, rho, |tau| tilted(losses, tau), divergence);
                worst(losses, weights, ("kldpo/tau", tau), "kldpo/dual")
            }
            Kldpo::Official(tau) => {
                let (n, mean) = (losses.len() as f64, mean(losses));
                let weights = losses.iter().map(|l| ((l - mean) / tau).exp().min(OFFICIAL_CAP) / n).collect();
                weighted(losses, weights, vec![("kldpo/tau", tau)])
            }
        }
    }
}

/// `P_i` at temperature `tau`. Losses are shifted by their maximum, which cancels, so nothing overflows.
fn tilted(losses: &[f64], tau: f64) -> Vec<f64> {
    if tau.is_infinite() {
        return worst_case::uniform(losses.len());
    }
    let top = largest(losses);
    let weights: Vec<f64> = losses.iter().map(|l| ((l - top) / tau).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// `KL(P || uniform)`, nats.
fn divergence(weights: &[f64]) -> f64 {
    let n = weights.len() as f64;
    weights.iter().filter(|&&p| p > 0.0).map(|p| p * (p * n).ln()).sum()
}
