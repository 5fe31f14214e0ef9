//! The worst case over a total-variation ball: `sup { sum p_i l_i : 1/2 sum |p_i - 1/n| <= rho }`. A mass `rho` moves from
//! the pairs of lowest loss to the worst; pairs that tie share. `rho = 0` is the mean.

use super::{RuleOutput, weighted, worst_case};

/// The rule over the losses of the global batch (nats).
pub(super) fn rule(rho: f64, losses: &[f64]) -> RuleOutput {
    let (n, tie) = (losses.len(), worst_case::tie(losses));
    let share = 1.0 / n as f64;
    let lowest: Vec<f64> = losses.iter().map(|l| -l).collect();
    let taken = worst_case::pour(&lowest, tie, rho.min(1.0), share);
    let moved: f64 = taken.iter().sum();
    let worst = worst_case::on_the_worst(losses);
    let weights = (0..n).map(|i| share - taken[i] + moved * worst[i]).collect();
    weighted(losses, weights, Vec::new())
}
