//! Robust rules: how the losses of the pairs of a global batch become one loss. One file each.

pub mod causal;
pub mod chi2;
pub mod cvar;
pub mod dpo_pro;
pub mod drdpo;
pub mod group;
pub mod kldpo;
pub mod tv;
pub mod winsor;
mod worst_case;

use super::math;
use crate::logps::Facts;
pub use causal::Causal;
pub use dpo_pro::DpoPro;
pub use group::{Group, Groups};
pub use kldpo::Kldpo;
pub use winsor::Winsor;

/// How the losses of the pairs become one loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Their mean.
    Mean,
    /// The worst case over a KL ball.
    Kldpo(Kldpo),
    /// The soft best case: trust in pairs of low loss.
    Drdpo {
        /// Temperature, nats.
        beta: f64,
    },
    /// Winsorised: suspicious labels turned, extreme losses capped.
    Winsor(Winsor),
    /// The worst case over how sure each label is.
    DpoPro(DpoPro),
    /// Inferred environments, balanced and made alike.
    Causal(Causal),
    /// The worst case over a chi-square ball.
    Chi2 {
        /// Radius.
        rho: f64,
    },
    /// The mean of the worst share.
    Cvar {
        /// The share, in `(0, 1]`.
        alpha: f64,
    },
    /// The worst case over a total-variation ball.
    Tv {
        /// Radius: the mass that may move.
        rho: f64,
    },
    /// The worst groups, followed from step to step.
    Group(Group),
}

/// What a rule may look at.
pub struct RuleInput<'a> {
    /// Losses `l_i`, `[n]`, nats.
    pub losses: &'a [f64],
    /// Losses with the other completion taken for the chosen one, `[n]`; empty unless [`Rule::flips`].
    pub flipped: &'a [f64],
    /// Implicit rewards of the chosen and the rejected completion, `[n]`.
    pub rewards: &'a [[f64; 2]],
    /// What the rows say.
    pub facts: &'a [Facts],
    /// Pairs of the global batch.
    pub n: usize,
    /// Share of the optimizer steps done, from 0 to 1.
    pub progress: f64,
    /// The groups as they stand.
    pub groups: &'a Groups,
}

/// What a rule makes of the pairs' losses: `sum_i weights_i ((1 - flips_i) l_i + flips_i l'_i)` is what is
/// differentiated, all else constant, `l'` the flipped losses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleOutput {
    /// The loss.
    pub loss: f64,
    /// Weight of each pair in the gradient, `[n]`.
    pub weights: Vec<f64>,
    /// Share of the flipped loss in each pair, `[n]`; empty: none.
    pub flips: Vec<f64>,
    /// Derivatives of a further term with respect to the implicit rewards, `[n]`; empty: none.
    pub d_rewards: Vec<[f64; 2]>,
    /// The groups after this step.
    pub groups: Option<Groups>,
    /// What to log, by name.
    pub metrics: Vec<(String, f64)>,
}

impl Rule {
    /// The name of its key.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Mean => "mean",
            Rule::Kldpo(_) => "kldpo",
            Rule::Drdpo { .. } => "drdpo",
            Rule::Winsor(_) => "winsor",
            Rule::DpoPro(_) => "dpo_pro",
            Rule::Causal(_) => "causal",
            Rule::Chi2 { .. } => "chi2",
            Rule::Cvar { .. } => "cvar",
            Rule::Tv { .. } => "tv",
            Rule::Group(_) => "group",
        }
    }

    /// Whether what one pair contributes depends on the others.
    pub fn couples_pairs(self) -> bool {
        !matches!(self, Rule::Mean | Rule::DpoPro(_))
    }

    /// Whether it asks for flipped losses.
    pub fn flips(self) -> bool {
        matches!(self, Rule::Winsor(_) | Rule::DpoPro(_))
    }

    /// The rule over the losses of the global batch (of a part of it, if the rule does not couple pairs).
    pub fn apply(self, input: &RuleInput) -> RuleOutput {
        match self {
            Rule::Mean => mean(input),
            Rule::Kldpo(kldpo) => kldpo.rule(input.losses),
            Rule::Drdpo { beta } => drdpo::rule(beta, input.losses),
            Rule::Winsor(winsor) => winsor.rule(input),
            Rule::DpoPro(dpo_pro) => dpo_pro.rule(input),
            Rule::Causal(causal) => causal.rule(input),
            Rule::Chi2 { rho } => chi2::rule(rho, input.losses),
            Rule::Cvar { alpha } => cvar::rule(alpha, input.losses),
            Rule::Tv { rho } => tv::rule(rho, input.losses),
            Rule::Group(group) => group.rule(input),
        }
    }
}

/// `L = (1/n) sum l_i`: plain DPO.
fn mean(input: &RuleInput) -> RuleOutput {
    let n = input.n as f64;
    let weights = vec![1.0 / n; input.losses.len()];
    RuleOutput { loss: input.losses.iter().sum::<f64>() / n, weights, ..RuleOutput::default() }
}

/// The weighted sum of the losses, with what to log of the weights; `more` after it.
fn weighted(losses: &[f64], weights: Vec<f64>, more: Vec<(&'static str, f64)>) -> RuleOutput {
    let loss = losses.iter().zip(&weights).map(|(l, w)| l * w).sum();
    let mut metrics = weight_metrics(&weights);
    metrics.extend(more.into_iter().map(|(name, value)| (name.to_string(), value)));
    RuleOutput { loss, weights, metrics, ..RuleOutput::default() }
}

/// [`weighted`] by the worst case of a ball, whose value is the dual's. Where losses tie, or the ball has no radius, any large
/// scale gives equal weights: there is none to report.
fn worst(losses: &[f64], weights: Vec<f64>, scale: (&'static str, f64), dual: &'static str) -> RuleOutput {
    let mut out = weighted(losses, weights, Some(scale).filter(|s| s.1.is_finite()).into_iter().collect());
    out.metrics.push((dual.to_string(), out.loss));
    out
}

/// How unequal weights are.
fn weight_metrics(weights: &[f64]) -> Vec<(String, f64)> {
    let total: f64 = weights.iter().sum();
    let squares: f64 = weights.iter().map(|w| w * w).sum();
    [
        ("weights/effective_sample_size", total * total / squares),
        ("weights/max", math::largest(weights)),
        ("weights/min", math::smallest(weights)),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .to_vec()
}
