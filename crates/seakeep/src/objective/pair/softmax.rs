//! Softmax DPO (Chen et al., arXiv 2406.09215, eq. 8; the multi-negative form of CausalDPO): one chosen completion against
//! k rejected ones,
//!
//! ```text
//! l = log(1 + sum_k exp(z_k)),   z_k = beta (u_lk - u_w)
//! ```
//! With the weights `p_k = exp(z_k) / (1 + sum_j exp(z_j))`: `dl/dz_k = p_k`, `d2l/dz_j dz_k = p_k [j = k] - p_j p_k`; the
//! chosen completion's `p_w` follows from `dz_k/du_w = -beta`. With one rejected completion it is DPO's loss.

use super::Loss;
use crate::logps::Role;
use crate::objective::Scored;

/// The losses of all pairs.
pub(super) fn losses(beta: f64, scored: &Scored) -> Vec<Loss> {
    let of = |i: usize| loss(beta, &scored.facts[i].roles, &scored.policy.0[i], &scored.reference.0[i]);
    (0..scored.policy.len()).map(of).collect()
}

/// Of a pair's branches those that are compared: another term of the objective may have asked for its prompt too.
fn loss(beta: f64, roles: &[Role], policy: &[f64], reference: &[f64]) -> Loss {
    let compared: Vec<usize> =
        (0..roles.len()).filter(|&b| matches!(roles[b], Role::Chosen | Role::Rejected)).collect();
    let rewards: Vec<f64> = compared.iter().map(|&b| beta * (policy[b] - reference[b])).collect();
    // The exponents with the chosen completion's own 0 in front, so that they are a plain softmax.
    let z: Vec<f64> = rewards.iter().map(|r| r - rewards[0]).collect();
    let top = crate::objective::math::largest(&z);
    let others: f64 = z.iter().map(|z| (z - top).exp()).sum();
    let p: Vec<f64> = z.iter().map(|z| (z - top).exp() / others).collect();
    // Where the chosen one leads, log(1 + small) keeps the small.
    let value = match top <= 0.0 {
        true => z[1..].iter().map(|z| z.exp()).sum::<f64>().ln_1p(),
        false => top + others.ln(),
    };
    // dl/du: p_k for the rejected, p_w - 1 = -(sum of the others) for the chosen.
    let rest: f64 = p[1..].iter().sum();
    let d = |a: usize| beta * if a == 0 { -rest } else { p[a] };
    let dd = |a: usize, b: usize| beta * beta * (if a == b { p[a] } else { 0.0 } - p[a] * p[b]);
    let mut out = Loss { value, ..Loss::zero(policy.len()) };
    for (a, &at) in compared.iter().enumerate() {
        out.d[at] = d(a);
        compared.iter().enumerate().for_each(|(b, &other)| out.dd[at][other] = dd(a, b));
    }
    out
}
