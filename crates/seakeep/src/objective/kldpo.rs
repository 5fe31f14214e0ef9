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

use super::RuleOutput;

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
    pub fn rule(&self, losses: &[f64]) -> RuleOutput {
        match *self {
            Kldpo::Tau(tau) => weighted(losses, tilted(losses, tau), tau, Vec::new()),
            Kldpo::Rho(rho) => {
                let (weights, tau) = worst_case(losses, rho);
                let dual = losses.iter().zip(&weights).map(|(l, p)| l * p).sum();
                weighted(losses, weights, tau, vec![("kldpo/dual", dual)])
            }
            Kldpo::Official(tau) => {
                let n = losses.len() as f64;
                let mean = losses.iter().sum::<f64>() / n;
                let weights = losses.iter().map(|l| ((l - mean) / tau).exp().min(OFFICIAL_CAP) / n).collect();
                weighted(losses, weights, tau, Vec::new())
            }
        }
    }
}

fn weighted(losses: &[f64], weights: Vec<f64>, tau: f64, more: Vec<(&'static str, f64)>) -> RuleOutput {
    let total: f64 = weights.iter().sum();
    let squares: f64 = weights.iter().map(|w| w * w).sum();
    let mut metrics = vec![
        ("kldpo/tau", tau),
        ("kldpo/effective_sample_size", total * total / squares),
        ("kldpo/weight_max", weights.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
    ];
    metrics.extend(more);
    RuleOutput { loss: losses.iter().zip(&weights).map(|(l, w)| l * w).sum(), weights, metrics }
}

/// `P_i` at temperature `tau`. Losses are shifted by their maximum, which cancels, so nothing overflows.
fn tilted(losses: &[f64], tau: f64) -> Vec<f64> {
    if tau.is_infinite() {
        return vec![1.0 / losses.len() as f64; losses.len()];
    }
    let top = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = losses.iter().map(|l| ((l - top) / tau).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Losses closer than this (relative to the largest) count as equal. Log-probabilities are sums of f32 numbers: the
/// same pair scored in another batch differs by about 1e-7 of its log-probability, and where policy and reference are
/// the same model, all losses are ln 2 but for that. Without the tie a ball of any radius would lean on the noise.
const TIE: f64 = 3e-6;

/// `KL(P || uniform)`, nats.
fn divergence(weights: &[f64]) -> f64 {
    let n = weights.len() as f64;
    weights.iter().filter(|&&p| p > 0.0).map(|p| p * (p * n).ln()).sum()
}

/// The worst-case weights in the ball of radius `rho`, and the temperature that gives them.
///
/// The divergence of `P(tau)` falls from `log(n / m)` (all weight on the `m` worst pairs, `tau -> 0`) to 0
/// (uniform, `tau -> infinity`), so the temperature is found by bisection on its logarithm.
fn worst_case(losses: &[f64], rho: f64) -> (Vec<f64>, f64) {
    let n = losses.len() as f64;
    let top = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let spread = top - losses.iter().copied().fold(f64::INFINITY, f64::min);
    let tie = TIE * top.abs();
    if rho <= 0.0 || spread <= tie {
        return (tilted(losses, f64::INFINITY), f64::INFINITY);
    }
    let is_worst = |l: f64| top - l <= tie;
    let worst = losses.iter().filter(|&&l| is_worst(l)).count() as f64;
    if rho >= (n / worst).ln() {
        return (losses.iter().map(|&l| if is_worst(l) { 1.0 / worst } else { 0.0 }).collect(), 0.0);
    }
    // At tau = 1e-5 spread and at 1e9 spread the divergence has reached its ends for any rho of use.
    let (mut low, mut high) = ((spread * 1e-5).ln(), (spread * 1e9).ln());
    while divergence(&tilted(losses, low.exp())) < rho {
        // Two losses closer than that: go on towards zero.
        low -= 10.0;
        if low < -700.0 {
            break;
        }
    }
    // 100 halvings of at most 800: below 1e-27, far below the rounding of tau itself.
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if divergence(&tilted(losses, middle.exp())) > rho {
            low = middle;
        } else {
            high = middle;
        }
    }
    let tau = (0.5 * (low + high)).exp();
    (tilted(losses, tau), tau)
}
