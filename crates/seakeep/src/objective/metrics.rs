//! The metrics of rewards under TRL's names and meanings. Parts of a global batch add up to the whole's.

use super::math::mean;
use super::{PairLoss, Scored};
use crate::logps::Role;

/// Rewards and log-probabilities, means over the global batch of `n` pairs.
pub(super) fn rewards(pair: &PairLoss, scored: &Scored, n: usize) -> Vec<(String, f64)> {
    let out = match pair {
        // What is not compared has no reward.
        _ if pair.any(|l| l.is_of_texts()) => Vec::new(),
        _ if pair.any(|l| l.is_unpaired()) => unpaired(pair, scored),
        _ => paired(pair, scored, n as f64),
    };
    out.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

/// Reward and reported log-probability of one branch.
fn of_branch(pair: &PairLoss, scored: &Scored, i: usize, branch: usize) -> (f64, f64) {
    let (logp, predicted) = (scored.policy.0[i][branch], scored.facts[i].predicted[branch]);
    (pair.reward(logp, scored.reference.0[i][branch], predicted), pair.reported_logp(logp, predicted))
}

/// Of a pair; with several rejected completions their mean, and right is who ranks the chosen above each of them.
fn paired(pair: &PairLoss, scored: &Scored, n: f64) -> Vec<(&'static str, f64)> {
    let mut sums = [0.0; 6];
    for (i, facts) in scored.facts.iter().enumerate() {
        let (reward, logp) = of_branch(pair, scored, i, 0);
        let others: Vec<(f64, f64)> = (1..facts.roles.len())
            .filter(|&b| facts.roles[b] == Role::Rejected)
            .map(|b| of_branch(pair, scored, i, b))
            .collect();
        let rejected = mean(&others.iter().map(|o| o.0).collect::<Vec<f64>>());
        let rejected_logp = mean(&others.iter().map(|o| o.1).collect::<Vec<f64>>());
        let right = others.iter().all(|o| reward > o.0);
        let values = [reward, rejected, f64::from(u8::from(right)), reward - rejected, logp, rejected_logp];
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    let names = [
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    ];
    names.into_iter().zip(sums.map(|sum| sum / n)).collect()
}

/// Of labelled completions: means over those called good and those called bad, as far as there are any.
fn unpaired(pair: &PairLoss, scored: &Scored) -> Vec<(&'static str, f64)> {
    let means = |role: Role| -> Option<(f64, f64)> {
        let own: Vec<(f64, f64)> = (0..scored.facts.len())
            .filter(|&i| scored.facts[i].roles[0] == role)
            .map(|i| of_branch(pair, scored, i, 0))
            .collect();
        let (rewards, logps): (Vec<f64>, Vec<f64>) = own.into_iter().unzip();
        (!rewards.is_empty()).then(|| (mean(&rewards), mean(&logps)))
    };
    let (good, bad) = (means(Role::Chosen), means(Role::Rejected));
    let mut out = Vec::new();
    out.extend(good.map(|g| ("rewards/chosen", g.0)));
    out.extend(bad.map(|b| ("rewards/rejected", b.0)));
    out.extend(good.zip(bad).map(|(g, b)| ("rewards/margins", g.0 - b.0)));
    out.extend(good.map(|g| ("logps/chosen", g.1)));
    out.extend(bad.map(|b| ("logps/rejected", b.1)));
    out
}
