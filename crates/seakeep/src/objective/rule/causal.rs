//! CausalDPO (arXiv 2603.22335): environments inferred from the prompts, balanced by backdoor adjustment, and the policy's
//! implicit rewards made alike across them. With `p_e(i)` how likely pair i belongs to environment e:
//!
//! ```text
//! L = sum_e P(e) sum_i p_e(i) l_i / sum_i p_e(i)  +  lambda mean_{e < e'} MMD^2(e, e')
//! MMD^2(e, e') = sum_ij c_i c_j k(x_i, x_j),   c_i = p_e(i) / sum p_e - p_e'(i) / sum p_e'
//! x_i = (beta u_w, beta u_l),   k(x, y) = exp(-|x - y|^2 / (2 sigma^2))
//! ```
//! and `d MMD^2 / d x_i = -(2 / sigma^2) c_i sum_j c_j k_ij (x_i - x_j)`. The bandwidth is given, or the median distance
//! of the batch, constant in the gradient.
//!
//! # Where the authors' code differs
//! It averages token ids over a batch for features. Here they are hidden states of the reference model (see
//! `crate::environments`).

use super::super::math::quantile;
use super::{RuleInput, RuleOutput, weighted};

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Causal {
    /// Weight of the invariance term.
    pub lambda: f64,
    /// `P(e)`
    pub prior: Prior,
    /// `sigma`, in units of reward; `None`: the median rule.
    pub bandwidth: Option<f64>,
}

/// How much each environment counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prior {
    /// All the same.
    Uniform,
    /// As it occurs in the batch.
    Empirical,
}

/// The median rule gives no less than this. Where the policy is still the reference, all rewards are 0 but for rounding,
/// and a kernel as narrow as that would see structure in noise.
const MIN_BANDWIDTH: f64 = 0.01;

impl Causal {
    pub(super) fn rule(self, input: &RuleInput) -> RuleOutput {
        let n = input.losses.len();
        let environments = input.facts.iter().map(|f| f.environments.len()).max().unwrap_or(0).max(1);
        // Without inferred environments all pairs are in one.
        let p = |e: usize, i: usize| match input.facts[i].environments.get(e) {
            Some(p) => *p,
            None => f64::from(u8::from(e == 0)),
        };
        let sizes: Vec<f64> = (0..environments).map(|e| (0..n).map(|i| p(e, i)).sum()).collect();
        // An environment that no pair of the batch belongs to has no mean loss.
        let present: Vec<usize> = (0..environments).filter(|&e| sizes[e] > 1e-9).collect();
        let prior = |e: usize| match self.prior {
            Prior::Uniform => 1.0 / present.len() as f64,
            Prior::Empirical => sizes[e] / present.iter().map(|&e| sizes[e]).sum::<f64>(),
        };
        let share = |e: usize| -> Vec<f64> { (0..n).map(|i| p(e, i) / sizes[e]).collect() };
        let shares: Vec<Vec<f64>> = present.iter().map(|&e| share(e)).collect();
        let weights = (0..n).map(|i| present.iter().zip(&shares).map(|(&e, s)| prior(e) * s[i]).sum());
        let mut out = weighted(input.losses, weights.collect(), Vec::new());

        let sigma = self.bandwidth.unwrap_or_else(|| median_distance(input.rewards).max(MIN_BANDWIDTH));
        let pairs: Vec<(usize, usize)> =
            (0..shares.len()).flat_map(|a| (a + 1..shares.len()).map(move |b| (a, b))).collect();
        let mut mmd = 0.0;
        let mut d_rewards = vec![[0.0; 2]; n];
        for &(a, b) in &pairs {
            let c: Vec<f64> = shares[a].iter().zip(&shares[b]).map(|(a, b)| a - b).collect();
            mmd += add_mmd(&c, input.rewards, sigma, self.lambda / pairs.len() as f64, &mut d_rewards)
                / pairs.len() as f64;
        }
        out.loss += self.lambda * mmd;
        if self.lambda > 0.0 && !pairs.is_empty() {
            out.d_rewards = d_rewards;
        }
        out.metrics.push(("causal/mmd".to_string(), mmd));
        out.metrics.push(("causal/bandwidth".to_string(), sigma));
        for (e, size) in sizes.iter().enumerate() {
            out.metrics.push((format!("causal/environment_{e}"), size / n as f64));
        }
        out
    }
}

/// The squared discrepancy of the signed weights `c`; adds `factor` times its gradient.
fn add_mmd(c: &[f64], x: &[[f64; 2]], sigma: f64, factor: f64, d_x: &mut [[f64; 2]]) -> f64 {
    let mut total = 0.0;
    for i in 0..c.len() {
        for j in 0..c.len() {
            let difference = [x[i][0] - x[j][0], x[i][1] - x[j][1]];
            let squared = difference[0] * difference[0] + difference[1] * difference[1];
            let term = c[i] * c[j] * (-squared / (2.0 * sigma * sigma)).exp();
            total += term;
            for (d, difference) in d_x[i].iter_mut().zip(difference) {
                *d -= factor * 2.0 * term * difference / (sigma * sigma);
            }
        }
    }
    total
}

/// Of so many points at most every distance is looked at: half a million. Held-out rows are evaluated as one batch.
const MEASURED: usize = 1000;

/// The median of the distances between two different pairs, of more than [`MEASURED`] some in even steps; 0 where there is but one.
fn median_distance(x: &[[f64; 2]]) -> f64 {
    let some: Vec<[f64; 2]> = x.iter().step_by(x.len().div_ceil(MEASURED).max(1)).copied().collect();
    let x = some.as_slice();
    let distance = |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
    let distances: Vec<f64> =
        (0..x.len()).flat_map(|i| (i + 1..x.len()).map(move |j| distance(x[i], x[j]))).collect();
    if distances.is_empty() { 0.0 } else { quantile(&distances, 0.5) }
}
