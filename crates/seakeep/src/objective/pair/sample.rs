//! A pair as a pair loss sees it.

use super::{Divergence, Jet};
use crate::logps::Role;
use crate::objective::{Context, Scored};

/// One completion of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::objective) struct Branch {
    /// `log pi`, nats, summed over tokens.
    pub logp: Jet,
    /// `u = log pi - log ref`.
    pub ratio: Jet,
    /// `f'(pi / ref)`: the ratio itself for the reverse KL.
    pub score: Jet,
    /// Tokens; at least 1.
    pub tokens: f64,
    /// Tokens that are predicted; at least 1.
    pub predicted: f64,
    /// Its reward in the data.
    pub reward: f64,
}

/// The pair.
#[derive(Clone, Copy, Debug)]
pub(in crate::objective) struct Sample {
    /// The preferred completion. Where completions stand alone: the one.
    pub chosen: Branch,
    /// The other.
    pub rejected: Branch,
    /// Log-probability of the completion that the data call chosen, also where the pair is flipped.
    pub likelihood: Jet,
    /// Log-probability of the prompt, where it is learnt.
    pub prompt: Jet,
    /// Whether a completion that stands alone is called good.
    pub desirable: bool,
    /// Mean number of predicted tokens of a chosen completion, over the global batch.
    pub mean_chosen_tokens: f64,
    /// The same of a prompt.
    pub mean_prompt_tokens: f64,
}

impl Sample {
    /// Pair `i`; with `flipped`, with its completions in each other's place (or its label turned).
    pub fn new(
        scored: &Scored,
        i: usize,
        divergence: Divergence,
        context: &Context,
        flipped: bool,
    ) -> Sample {
        let facts = &scored.facts[i];
        let branch = |role: usize, variable: usize| {
            let at = |values: &[f64]| values.get(role).copied().unwrap_or(0.0);
            let logp = Jet::variable(at(&scored.policy.0[i]), variable);
            let ratio = logp - at(&scored.reference.0[i]);
            Branch {
                logp,
                ratio,
                score: divergence.score(ratio),
                tokens: facts.tokens.get(role).map_or(1.0, |&t| t.max(1) as f64),
                predicted: facts.predicted.get(role).map_or(1.0, |&t| t.max(1) as f64),
                reward: facts.labels.rewards.map_or(0.0, |r| r[role.min(1)]),
            }
        };
        // A completion that stands alone has no other to change places with, only its label.
        let swapped = flipped && facts.branch(Role::Mismatched).is_none() && facts.roles.len() > 1;
        let (own, other) = (branch(0, 0), branch(1, 1));
        let (chosen, rejected) = if swapped { (other, own) } else { (own, other) };
        let prompt =
            facts.branch(Role::Prompt).map_or(Jet::default(), |b| Jet::variable(scored.policy.0[i][b], 2));
        Sample {
            chosen,
            rejected,
            likelihood: own.logp,
            prompt,
            desirable: (facts.roles[0] == Role::Chosen) != flipped,
            mean_chosen_tokens: context.chosen_tokens,
            mean_prompt_tokens: context.prompt_tokens,
        }
    }

    /// The log-ratio margin `h`; with another divergence the difference of scores.
    pub fn margin(&self) -> Jet {
        self.chosen.score - self.rejected.score
    }
}
