//! Group-robust preference optimisation (Ramesh et al., arXiv 2405.20304, Algorithm 1): the worst mixture of groups,
//! followed by multiplicative weights from step to step. With `N_g / N` the share of group g in the training data and
//! `alpha` uniform at the start, each step of n pairs takes
//!
//! ```text
//! l_g     = (N / N_g) (1/n) sum_{i in g} l_i             an unbiased estimate of the group's mean loss
//! alpha_g = alpha_g exp(eta l_g) / sum_h alpha_h exp(eta l_h)
//! L       = sum_g alpha_g l_g                            alpha constant in the gradient
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::math::largest;
use super::{RuleInput, RuleOutput, weighted};
use crate::logps::Facts;

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// `eta`
    pub step_size: f64,
}

/// Where the groups stand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    /// `N_g / N`
    pub shares: BTreeMap<String, f64>,
    /// `alpha_g`
    pub weights: BTreeMap<String, f64>,
}

impl Groups {
    /// The groups of the training data, all with the same weight.
    pub fn of(rows: impl IntoIterator<Item = Option<String>>) -> Groups {
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        rows.into_iter().flatten().for_each(|group| *counts.entry(group).or_default() += 1.0);
        let (total, groups) = (counts.values().sum::<f64>(), counts.len() as f64);
        let weights = counts.keys().map(|g| (g.clone(), 1.0 / groups)).collect();
        Groups { shares: counts.into_iter().map(|(g, count)| (g, count / total)).collect(), weights }
    }

    /// As they stand, for other rows: their shares are those of the rows, weights those of the groups that the rows have. Where one is new,
    /// all have the same.
    pub fn over(&self, rows: impl IntoIterator<Item = Option<String>>) -> Groups {
        let own = Groups::of(rows);
        let weights: Option<BTreeMap<String, f64>> =
            own.shares.keys().map(|g| Some((g.clone(), *self.weights.get(g)?))).collect();
        match weights {
            Some(weights) if weights.values().sum::<f64>() > 0.0 => {
                let total: f64 = weights.values().sum();
                Groups { weights: weights.into_iter().map(|(g, w)| (g, w / total)).collect(), ..own }
            }
            _ => own,
        }
    }

    /// One step of multiplicative weights on the groups' losses. Shifted by the largest, which cancels.
    fn step(&self, losses: &BTreeMap<&str, f64>, step_size: f64) -> Groups {
        let of = |group: &str| losses.get(group).copied().unwrap_or(0.0);
        let exponents: Vec<f64> = self.weights.iter().map(|(g, w)| w.ln() + step_size * of(g)).collect();
        let top = largest(&exponents);
        let total: f64 = exponents.iter().map(|e| (e - top).exp()).sum();
        let weights = self.weights.keys().zip(&exponents).map(|(g, e)| (g.clone(), (e - top).exp() / total));
        Groups { shares: self.shares.clone(), weights: weights.collect() }
    }
}

impl Group {
    pub(super) fn rule(self, input: &RuleInput) -> RuleOutput {
        let n = input.n as f64;
        let group_of = |f: &Facts| f.labels.group.clone().unwrap_or_default();
        let groups: Vec<String> = input.facts.iter().map(group_of).collect();
        // A group that training never saw counts with its share here.
        let known = if groups.iter().all(|g| input.groups.weights.contains_key(g)) {
            input.groups.clone()
        } else {
            Groups::of(groups.iter().cloned().map(Some))
        };
        let mut estimates: BTreeMap<&str, f64> = BTreeMap::new();
        let mut members: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (group, loss) in groups.iter().zip(input.losses) {
            *estimates.entry(group).or_default() += loss / (n * known.shares[group]);
            let (sum, count) = members.entry(group).or_default();
            (*sum, *count) = (*sum + loss, *count + 1.0);
        }
        let after = known.step(&estimates, self.step_size);
        let weights = groups.iter().map(|g| after.weights[g] / (n * after.shares[g])).collect();
        let mut out = weighted(input.losses, weights, Vec::new());
        out.metrics.extend(members.iter().map(|(g, (sum, count))| (format!("group/{g}/loss"), sum / count)));
        out.metrics.extend(after.weights.iter().map(|(g, w)| (format!("group/{g}/weight"), *w)));
        RuleOutput { groups: Some(after), ..out }
    }
}
