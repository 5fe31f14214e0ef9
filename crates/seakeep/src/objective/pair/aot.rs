//! AOT (Melnyk et al., arXiv 2406.05882): the distribution of the policy's margins is to dominate the reference's,
//! quantile by quantile. Over the global batch, with `(k)` for the k-th smallest:
//!
//! ```text
//! paired:    l_k = smoothed logistic of beta ( (log pi_w - log pi_l)_(k) - (log ref_w - log ref_l)_(k) )
//! unpaired:  l_k = smoothed logistic of beta ( u_w (k) - u_l (k) )
//! ```
//! Each l_k is the loss of the pair whose (chosen) completion stands at k. Ties are taken in the order of the rows.

use super::sigmoid::smoothed;
use super::{Jet, Loss};
use crate::objective::Scored;

/// The indices in growing order of value.
fn order(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order
}

/// For each pair, the index that has the same rank in `others` as the pair has in `own`.
fn partners(own: &[f64], others: &[f64]) -> Vec<usize> {
    let mut out = vec![0; own.len()];
    for (i, j) in order(own).into_iter().zip(order(others)) {
        out[i] = j;
    }
    out
}

fn margins(logps: &[Vec<f64>]) -> Vec<f64> {
    logps.iter().map(|b| b[0] - b[1]).collect()
}

/// Margins of the policy against margins of the reference; with `flipped`, as if each margin had the other sign.
pub(super) fn paired(beta: f64, smoothing: f64, scored: &Scored, flipped: bool) -> Vec<Loss> {
    let (policy, reference) = (margins(&scored.policy.0), margins(&scored.reference.0));
    let matched = partners(&policy, &reference);
    let one = |i: usize| {
        let [w, l] = [0, 1].map(|b| Jet::variable(scored.policy.0[i][b], b));
        let z = beta * (w - l - reference[matched[i]]);
        Loss::of(smoothed(if flipped { -z } else { z }, smoothing), scored.policy.0[i].len())
    };
    (0..policy.len()).map(one).collect()
}

/// Chosen completions against rejected ones, of whichever pair.
pub(super) fn unpaired(beta: f64, smoothing: f64, scored: &Scored) -> Vec<Loss> {
    let ratios = |b: usize| -> Vec<f64> {
        scored.policy.0.iter().zip(&scored.reference.0).map(|(p, r)| p[b] - r[b]).collect()
    };
    let (chosen, rejected) = (ratios(0), ratios(1));
    let matched = partners(&chosen, &rejected);
    let one = |i: usize| {
        let other = matched[i];
        let z = beta * (Jet::variable(chosen[i], 0) - Jet::variable(rejected[other], 1));
        let jet = smoothed(z, smoothing);
        let mut loss = Loss::of(jet, scored.policy.0[i].len());
        if other != i {
            loss.d[1] = 0.0;
            loss.dd.iter_mut().for_each(|row| row[1] = 0.0);
            loss.dd[1].fill(0.0);
            loss.elsewhere.push((other, 1, jet.d[1]));
        }
        loss
    };
    (0..chosen.len()).map(one).collect()
}
