//! The environments that CausalDPO would infer from these prompts, beside the groups that are known.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::metrics::{Ranking, summarise};
use crate::Result;
use crate::environments::Environments;
use crate::stats::Bootstrap;

/// How inferred environments lie to known groups.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inferred {
    /// Of each environment the expected number of rows.
    pub sizes: Vec<f64>,
    /// The same of each group's rows.
    pub groups: BTreeMap<String, Vec<f64>>,
    /// Share of the rows that are of the commonest group of their likeliest environment; `None` without groups. What the
    /// commonest group of all would give is the least it can be.
    pub purity: Option<f64>,
    /// Metrics of the rows whose likeliest environment this is.
    pub environments: Vec<Value>,
}

/// Finds `k` environments among the features of `sets[0]` as training does, and describes every set by them.
///
/// # Errors
/// Fewer rows than environments.
pub fn infer(
    sets: &[(&[Vec<f32>], &[Ranking])],
    k: usize,
    seed: u64,
    how: Bootstrap,
) -> Result<Vec<Inferred>> {
    let Some((first, _)) = sets.first() else { return Ok(Vec::new()) };
    let found = Environments::find(first, k, seed)?;
    Ok(sets.iter().map(|(features, rows)| describe(&found, features, rows, k, how)).collect())
}

fn describe(
    found: &Environments,
    features: &[Vec<f32>],
    rows: &[Ranking],
    k: usize,
    how: Bootstrap,
) -> Inferred {
    let mut inferred = Inferred { sizes: vec![0.0; k], ..Inferred::default() };
    let mut own: Vec<Vec<Ranking>> = vec![Vec::new(); k];
    for (features, row) in features.iter().zip(rows) {
        let likely = found.of(features);
        let add = |to: &mut Vec<f64>| to.iter_mut().zip(&likely).for_each(|(t, p)| *t += p);
        add(&mut inferred.sizes);
        if let Some(group) = &row.group {
            add(inferred.groups.entry(group.clone()).or_insert_with(|| vec![0.0; k]));
        }
        let best = (0..k).fold(0, |best, e| if likely[e] > likely[best] { e } else { best });
        own[best].push(row.clone());
    }
    if rows.iter().all(|row| row.group.is_some()) && !rows.is_empty() {
        let commonest = |own: &Vec<Ranking>| {
            let mut counts: BTreeMap<&Option<String>, usize> = BTreeMap::new();
            own.iter().for_each(|row| *counts.entry(&row.group).or_default() += 1);
            counts.values().copied().max().unwrap_or(0)
        };
        inferred.purity = Some(own.iter().map(commonest).sum::<usize>() as f64 / rows.len() as f64);
    }
    inferred.environments = own.iter().map(|rows| summarise(rows, how).json()).collect();
    inferred
}
