//! Objectives: pure functions over a whole global batch. Log-probabilities in (nats, summed over completion
//! tokens), loss and its derivative with respect to every branch's log-probability out.
//!
//! An objective is a *pair loss* (`dpo`), then a *robust rule* over the batch (mean, `kldpo`), then perhaps an
//! *input-gradient penalty* (`wdpo`). Nothing here knows of models: what a penalty needs beyond
//! log-probabilities it asks for, and the training step provides it.

pub mod dpo;
pub mod kldpo;
pub mod wdpo;

use serde_json::Value;

use crate::batch::Sharing;
use crate::logps::{BranchLogps, LogpGrads};

/// How the losses of the pairs become one loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Their mean.
    Mean,
    /// The worst case over a KL ball.
    Kldpo(kldpo::Kldpo),
}

/// A complete objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The pair loss.
    pub pair: dpo::Dpo,
    /// The rule over the batch.
    pub rule: Rule,
    /// The input-gradient penalty, if any.
    pub penalty: Option<wdpo::Penalty>,
}

/// What one pair contributes: its loss (nats) and derivatives with respect to (chosen, rejected) logps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// `l`
    pub value: f64,
    /// `dl/d(chosen, rejected)`
    pub d: [f64; 2],
    /// Second derivatives.
    pub dd: [[f64; 2]; 2],
}

impl PairLoss {
    /// The derivative of `d` along a direction in the logps.
    pub fn d_along(&self, t: [f64; 2]) -> [f64; 2] {
        self.dd.map(|row| row[0] * t[0] + row[1] * t[1])
    }
}

/// What a rule makes of the pairs' losses.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleOutput {
    /// The loss.
    pub loss: f64,
    /// Weight of each pair in the gradient, `[n]`.
    pub weights: Vec<f64>,
    /// What to log, by name.
    pub metrics: Vec<(&'static str, f64)>,
}

/// The objective at a point.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The loss without the penalty, nats.
    pub loss: f64,
    /// Every pair by itself, `[n]`.
    pub pairs: Vec<PairLoss>,
    /// Weight of each pair in the gradient, `[n]`.
    pub weights: Vec<f64>,
    /// What to log, by name: the rewards as TRL has them, and what the rule did.
    pub metrics: Vec<(&'static str, f64)>,
}

impl Evaluation {
    /// `dL/dlogps` for the loss without the penalty.
    pub fn grads(&self) -> LogpGrads {
        let of = |branch: usize| self.pairs.iter().zip(&self.weights).map(|(p, w)| w * p.d[branch]).collect();
        LogpGrads { chosen: of(0), rejected: of(1) }
    }
}

impl Objective {
    /// Whether a pair's weight depends on the other pairs, so that the whole global batch must be seen before
    /// any pair's backward pass.
    pub fn couples_pairs(&self) -> bool {
        match self.rule {
            Rule::Mean => false,
            Rule::Kldpo(_) => true,
        }
    }

    /// The settings under the names of their keys, for records.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        let mut out =
            vec![("beta", self.pair.beta.into()), ("label_smoothing", self.pair.label_smoothing.into())];
        match self.rule {
            Rule::Mean => {}
            Rule::Kldpo(kldpo::Kldpo::Tau(tau)) => out.push(("kldpo_tau", tau.into())),
            Rule::Kldpo(kldpo::Kldpo::Rho(rho)) => out.push(("kldpo_rho", rho.into())),
            Rule::Kldpo(kldpo::Kldpo::Official(tau)) => {
                out.extend([("kldpo_tau", tau.into()), ("kldpo_form", "official".into())]);
            }
        }
        if let Some(penalty) = self.penalty {
            let form = match penalty.form {
                wdpo::Form::Paper => "paper",
                wdpo::Form::Official => "official",
            };
            let prompt_gradient = match penalty.prompt_gradient {
                wdpo::PromptGradient::Shared => "shared",
                wdpo::PromptGradient::Separate => "separate",
            };
            out.extend([
                ("wdpo_rho", penalty.rho.into()),
                ("wdpo_form", form.into()),
                ("wdpo_prompt_gradient", prompt_gradient.into()),
            ]);
        }
        out
    }

    /// How prompts must lie in the batch.
    pub fn sharing(&self) -> Sharing {
        match self.penalty {
            Some(wdpo::Penalty { prompt_gradient: wdpo::PromptGradient::Separate, .. }) => Sharing::Separate,
            _ => Sharing::Shared,
        }
    }

    /// The objective at `policy`, against `reference`. `n` is the size of the global batch, of which these pairs
    /// may be a part if the objective does not couple pairs; the loss of the parts adds up to the whole's.
    ///
    /// # Panics
    /// If the two differ in length.
    pub fn evaluate(&self, policy: &BranchLogps, reference: &BranchLogps, n: usize) -> Evaluation {
        assert_eq!(
            policy.len(),
            reference.len(),
            "policy and reference log-probabilities of different pairs"
        );
        let ratios = |p: &[f64], r: &[f64]| p.iter().zip(r).map(|(p, r)| p - r).collect::<Vec<f64>>();
        let chosen = ratios(&policy.chosen, &reference.chosen);
        let rejected = ratios(&policy.rejected, &reference.rejected);
        let pairs: Vec<PairLoss> =
            chosen.iter().zip(&rejected).map(|(&w, &l)| self.pair.loss(w, l)).collect();
        let losses: Vec<f64> = pairs.iter().map(|p| p.value).collect();
        let out = match &self.rule {
            Rule::Mean => mean(&losses, n),
            Rule::Kldpo(kldpo) => kldpo.rule(&losses),
        };
        let mut metrics = reward_metrics(self.pair.beta, &chosen, &rejected, policy, n);
        metrics.extend(out.metrics);
        Evaluation { loss: out.loss, pairs, weights: out.weights, metrics }
    }
}

/// `L = (1/n) sum l_i`: plain DPO.
fn mean(losses: &[f64], n: usize) -> RuleOutput {
    let n = n as f64;
    RuleOutput {
        loss: losses.iter().sum::<f64>() / n,
        weights: vec![1.0 / n; losses.len()],
        metrics: Vec::new(),
    }
}

/// TRL's metrics of the implicit rewards `beta (log pi - log ref)`, means over the batch of `n`.
fn reward_metrics(
    beta: f64,
    chosen: &[f64],
    rejected: &[f64],
    policy: &BranchLogps,
    n: usize,
) -> Vec<(&'static str, f64)> {
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n as f64;
    let right = chosen.iter().zip(rejected).filter(|(c, r)| c > r).count();
    let margins = |(c, r): (&f64, &f64)| beta * (c - r);
    vec![
        ("rewards/chosen", mean(&mut chosen.iter().map(|u| beta * u))),
        ("rewards/rejected", mean(&mut rejected.iter().map(|u| beta * u))),
        ("rewards/accuracies", right as f64 / n as f64),
        ("rewards/margins", mean(&mut chosen.iter().zip(rejected).map(margins))),
        ("logps/chosen", mean(&mut policy.chosen.iter().copied())),
        ("logps/rejected", mean(&mut policy.rejected.iter().copied())),
    ]
}

#[cfg(test)]
mod tests;
