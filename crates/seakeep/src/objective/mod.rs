//! Objectives: pure functions over a whole global batch. Log-probabilities in (nats, summed over completion
//! tokens), loss and its derivative with respect to every branch's log-probability out.
//!
//! An objective is a *pair loss* (`pair/`), then a *robust rule* over the batch (`rule/`), then perhaps an
//! *input-gradient penalty* (`wdpo`). Nothing here knows of models: what a penalty needs beyond
//! log-probabilities it asks for, and the training step provides it.

mod jet;
mod math;
mod metrics;
pub mod pair;
pub mod rule;
mod settings;
pub mod wdpo;

pub use math::{log_sigmoid, quantile, sigmoid};
pub use pair::{Divergence, KtoWeights, Loss, LossType, PairLoss};
pub use rule::{Group, Groups, Rule};

use crate::batch::Sharing;
use crate::logps::{BranchLogps, Facts, LogpGrads, Role};
use crate::{Error, Result};
use rule::{RuleInput, RuleOutput};

/// A complete objective.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// The pair loss.
    pub pair: PairLoss,
    /// The rule over the batch.
    pub rule: Rule,
    /// The input-gradient penalty, if any.
    pub penalty: Option<wdpo::Penalty>,
}

/// Pairs with their log-probabilities.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// Under the policy.
    pub policy: &'a BranchLogps,
    /// Under the reference; zeros for objectives that have none.
    pub reference: &'a BranchLogps,
    /// What else is known of each, `[n]`.
    pub facts: &'a [Facts],
}

/// What an objective must know of the global batch, of which it may see a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Context {
    /// Pairs of the global batch.
    pub n: usize,
    /// Predicted tokens of a chosen completion, mean over the global batch.
    pub chosen_tokens: f64,
    /// Predicted tokens of a prompt, mean over the global batch.
    pub prompt_tokens: f64,
    /// Share of the optimizer steps done, from 0 to 1.
    pub progress: f64,
    /// The groups as they stand.
    pub groups: Groups,
}

impl Context {
    /// Of the global batch `facts`.
    pub fn of(facts: &[Facts], progress: f64, groups: Groups) -> Context {
        let mean = |role: Role| {
            let tokens = |f: &Facts| f.branch(role).map_or(0, |b| f.predicted[b]);
            facts.iter().map(tokens).sum::<usize>() as f64 / facts.len().max(1) as f64
        };
        // Where nothing is chosen, what is divided by it is 0. A prompt of one token has none that is predicted.
        let (chosen_tokens, prompt_tokens) = (mean(Role::Chosen).max(1.0), mean(Role::Prompt));
        Context { n: facts.len(), chosen_tokens, prompt_tokens, progress, groups }
    }

    /// Of pairs that are evaluated at the end of training.
    pub fn at_the_end(facts: &[Facts]) -> Context {
        Context::of(facts, 1.0, Groups::of(facts.iter().map(|f| f.labels.group.clone())))
    }
}

/// The objective at a point.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The loss without the penalty, nats.
    pub loss: f64,
    /// Every pair by itself, after flips, `[n]`.
    pub pairs: Vec<Loss>,
    /// Weight of each pair in the gradient, `[n]`.
    pub weights: Vec<f64>,
    /// `dL/dlogps` for the loss without the penalty.
    pub grads: LogpGrads,
    /// The groups after this step.
    pub groups: Option<Groups>,
    /// What to log, by name: the rewards as TRL has them, and what the rule did.
    pub metrics: Vec<(String, f64)>,
}

impl Objective {
    /// DPO.
    pub fn dpo(beta: f64) -> Self {
        Objective { pair: PairLoss::dpo(beta), rule: Rule::Mean, penalty: None }
    }

    /// Supervised fine-tuning: the negative log-likelihood of texts, a mean over all tokens of the batch.
    pub fn sft() -> Self {
        Objective { pair: PairLoss::of(LossType::Nll, 1.0), rule: Rule::Mean, penalty: None }
    }

    /// Refuses what does not go together.
    ///
    /// # Errors
    /// [`Error::Usage`] with the reason.
    pub fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::Usage(why));
        if let Some(why) = self.pair.objection() {
            return refuse(why);
        }
        let not_flippable = self.pair.terms.iter().find(|t| !t.0.can_be_flipped()).map(|t| t.0.name());
        if let (true, Some(name)) = (self.rule.flips(), not_flippable) {
            return refuse(format!(
                "rule {} asks what a pair would cost if its label were the other, which loss_type {name} does not say; use a \
                 loss of two completions, such as sigmoid",
                self.rule.name()
            ));
        }
        let alone = self.pair.terms.iter().find(|t| t.0.is_unpaired() || t.0.is_of_texts());
        if let (Rule::Causal(_), Some((loss, _))) = (self.rule, alone) {
            return refuse(format!(
                "rule causal compares the rewards of chosen and rejected completions; {} has no pairs",
                loss.name()
            ));
        }
        if self.penalty.is_some() {
            if self.pair.any(|l| l == LossType::AotUnpaired) {
                return refuse(
                    "wdpo_rho penalises how a pair's loss depends on its own texts; loss_type aot_unpaired compares \
                     completions of different pairs: use aot"
                        .into(),
                );
            }
            if matches!(self.rule, Rule::Causal(causal) if causal.lambda > 0.0) {
                return refuse(
                    "wdpo_rho goes with rules that weight pairs; rule causal adds a term of its own: set causal_lambda = 0 \
                     or leave wdpo_rho out"
                        .into(),
                );
            }
        }
        Ok(())
    }

    /// Whether the whole global batch must be seen before any pair's backward pass.
    pub fn couples_pairs(&self) -> bool {
        self.rule.couples_pairs() || self.pair.any(LossType::couples_pairs)
    }

    /// Whether log-probabilities under a reference are asked for.
    pub fn needs_reference(&self) -> bool {
        self.pair.any(LossType::needs_reference) || matches!(self.rule, Rule::Causal(_))
    }

    /// Whether it is of texts that stand alone (supervised fine-tuning) rather than of preferences.
    pub fn is_of_texts(&self) -> bool {
        self.pair.any(LossType::is_of_texts)
    }

    /// Whether every completion needs a mismatched one beside it.
    pub fn needs_mismatched(&self) -> bool {
        self.pair.any(|l| matches!(l, LossType::Kto(_)))
    }

    /// Whether the likelihood of prompts is learnt too.
    pub fn learns_prompts(&self) -> bool {
        self.pair.any(|l| l == LossType::Orpo)
    }

    /// How prompts must lie in the batch.
    pub fn sharing(&self) -> Sharing {
        match self.penalty {
            Some(wdpo::Penalty { prompt_gradient: wdpo::PromptGradient::Separate, .. }) => Sharing::Separate,
            _ => Sharing::Shared,
        }
    }

    /// The objective over `scored`: the global batch that `context` describes, or a part of it if the objective does
    /// not couple pairs; then losses, weights and metrics of the parts add up to the whole's.
    ///
    /// # Panics
    /// If policy, reference and facts are of different pairs.
    pub fn evaluate(&self, scored: &Scored, context: &Context) -> Evaluation {
        let shape = |logps: &BranchLogps| logps.0.iter().map(Vec::len).collect::<Vec<usize>>();
        let want: Vec<usize> = scored.facts.iter().map(|f| f.roles.len()).collect();
        assert!(
            shape(scored.policy) == want && shape(scored.reference) == want,
            "policy, reference and facts of different pairs"
        );
        let mut pairs = self.pair.losses(scored, context, false);
        let flipped = if self.rule.flips() { self.pair.losses(scored, context, true) } else { Vec::new() };
        let values = |losses: &[Loss]| losses.iter().map(|l| l.value).collect::<Vec<f64>>();
        let out = self.rule.apply(&RuleInput {
            losses: &values(&pairs),
            flipped: &values(&flipped),
            rewards: &self.rewards(scored),
            facts: scored.facts,
            n: context.n,
            progress: context.progress,
            groups: &context.groups,
        });
        for ((pair, flipped), share) in pairs.iter_mut().zip(&flipped).zip(&out.flips) {
            let mut mixed = Loss::zero(pair.d.len());
            mixed.add_scaled(pair, 1.0 - share);
            mixed.add_scaled(flipped, *share);
            *pair = mixed;
        }
        let mut metrics = metrics::rewards(&self.pair, scored, context.n);
        metrics.extend(self.pair.metrics(scored, context));
        metrics.extend(out.metrics.iter().cloned());
        let grads = self.grads(&pairs, &out, scored.facts);
        Evaluation { loss: out.loss, pairs, weights: out.weights, grads, groups: out.groups, metrics }
    }

    /// `(beta u_w, beta u_l)`; of several rejected completions the mean. Of a completion that stands alone, its own in its
    /// place and 0 in the other.
    fn rewards(&self, scored: &Scored) -> Vec<[f64; 2]> {
        let of = |(policy, reference): (&Vec<f64>, &Vec<f64>), facts: &Facts| {
            let ratio = |b: usize| self.pair.beta * (policy[b] - reference[b]);
            let of_role = |role: Role| -> Vec<f64> {
                (0..policy.len()).filter(|&b| facts.roles[b] == role).map(ratio).collect()
            };
            [Role::Chosen, Role::Rejected].map(|role| math::mean(&of_role(role)))
        };
        scored.policy.0.iter().zip(&scored.reference.0).zip(scored.facts).map(|(p, f)| of(p, f)).collect()
    }

    /// `dL/dlogps`: the weighted sum of the pairs' derivatives, and what the rule adds by way of the rewards.
    fn grads(&self, pairs: &[Loss], out: &RuleOutput, facts: &[Facts]) -> LogpGrads {
        let mut grads: Vec<Vec<f64>> =
            pairs.iter().zip(&out.weights).map(|(p, w)| p.d.iter().map(|d| w * d).collect()).collect();
        for (pair, weight) in pairs.iter().zip(&out.weights) {
            for &(other, branch, d) in &pair.elsewhere {
                grads[other][branch] += weight * d;
            }
        }
        for ((grads, [chosen, rejected]), facts) in grads.iter_mut().zip(&out.d_rewards).zip(facts) {
            let others = facts.roles.iter().filter(|r| **r == Role::Rejected).count() as f64;
            for (grad, role) in grads.iter_mut().zip(&facts.roles) {
                match role {
                    Role::Chosen => *grad += self.pair.beta * chosen,
                    Role::Rejected => *grad += self.pair.beta * rejected / others,
                    Role::Mismatched | Role::Prompt => {}
                }
            }
        }
        BranchLogps(grads)
    }
}

#[cfg(test)]
mod tests;
