//! Worst cases: the largest mean of held-out losses over distributions near the data, `rho -> sup E_P[l]`.
//!
//! The balls around the data are those of the robust rules ([`objective::rule`](crate::objective::rule)), solved by the same
//! code; Wasserstein's is the first-order form of [`wdpo`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::objective::rule::{Kldpo, RuleInput};
use crate::objective::{Groups, Rule, wdpo};

/// A neighbourhood of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ball {
    /// `KL(P || P_n) <= rho`, nats.
    Kl,
    /// `n sum (p_i - 1/n)^2 <= rho`.
    Chi2,
    /// `p_i <= 1 / (rho n)`: the mean of the worst share rho, in `(0, 1]`; 1 is the mean.
    Cvar,
    /// `1/2 sum |p_i - 1/n| <= rho`, in `[0, 1]`.
    Tv,
    /// Input embeddings moved by rho: `mean l + rho sqrt(mean ||dl/de||^2)`.
    Wasserstein,
}

impl Ball {
    /// All of them.
    pub const ALL: [Ball; 5] = [Ball::Kl, Ball::Chi2, Ball::Cvar, Ball::Tv, Ball::Wasserstein];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Ball::Kl => "kl",
            Ball::Chi2 => "chi2",
            Ball::Cvar => "cvar",
            Ball::Tv => "tv",
            Ball::Wasserstein => "wasserstein",
        }
    }

    /// Whether there is such a ball.
    pub fn has_radius(self, rho: f64) -> bool {
        match self {
            Ball::Cvar => rho > 0.0 && rho <= 1.0,
            Ball::Tv => (0.0..=1.0).contains(&rho),
            Ball::Kl | Ball::Chi2 | Ball::Wasserstein => (0.0..=f64::MAX).contains(&rho),
        }
    }
}

/// The worst case of the mean of `losses`, `[n]`, in the unit of the losses. `gradients` are the norms of each loss's
/// gradient in the input embeddings, `[n]`, which only [`Ball::Wasserstein`] looks at; without them it is NaN.
///
/// # Panics
/// For a radius that the ball does not have.
pub fn worst_case(ball: Ball, rho: f64, losses: &[f64], gradients: Option<&[f64]>) -> f64 {
    assert!(ball.has_radius(rho), "no ball {} of radius {rho}", ball.name());
    if losses.is_empty() || losses.iter().any(|l| !l.is_finite()) {
        return f64::NAN;
    }
    let rule = match ball {
        Ball::Kl => Rule::Kldpo(Kldpo::Rho(rho)),
        Ball::Chi2 => Rule::Chi2 { rho },
        Ball::Cvar => Rule::Cvar { alpha: rho },
        Ball::Tv => Rule::Tv { rho },
        Ball::Wasserstein => {
            let Some(gradients) = gradients else { return f64::NAN };
            let squares: Vec<f64> = gradients.iter().map(|g| g * g).collect();
            let (form, prompt_gradient) = (wdpo::Form::Paper, wdpo::PromptGradient::Shared);
            let penalty = wdpo::Penalty { rho, form, prompt_gradient };
            return super::mean(losses) + penalty.value(super::mean(&squares));
        }
    };
    let n = losses.len();
    let groups = Groups::default();
    let input =
        RuleInput { losses, flipped: &[], rewards: &[], facts: &[], n, progress: 1.0, groups: &groups };
    rule.apply(&input).loss
}

/// `1{h <= 0}` of each margin.
pub fn errors(margins: &[f64]) -> Vec<f64> {
    let error = |h: &f64| if h.is_nan() { f64::NAN } else { f64::from(*h <= 0.0) };
    margins.iter().map(error).collect()
}

/// What was found of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GroupMean {
    /// Its rows.
    pub rows: usize,
    /// Their mean.
    pub mean: f64,
}

/// Means of `values`, `[n]`, by the name of each one's group, `[n]`.
pub fn by_group(values: &[f64], groups: &[String]) -> BTreeMap<String, GroupMean> {
    let mut sums: BTreeMap<String, GroupMean> = BTreeMap::new();
    for (value, group) in values.iter().zip(groups) {
        let own = sums.entry(group.clone()).or_default();
        (own.rows, own.mean) = (own.rows + 1, own.mean + value);
    }
    sums.values_mut().for_each(|own| own.mean /= own.rows as f64);
    sums
}

/// The group of the largest mean; the first by name of several.
pub fn worst_group(groups: &BTreeMap<String, GroupMean>) -> Option<(&str, f64)> {
    groups.iter().fold(None, |worst: Option<(&str, f64)>, (name, own)| match worst {
        Some((_, most)) if own.mean <= most || own.mean.is_nan() => worst,
        _ => Some((name, own.mean)),
    })
}
