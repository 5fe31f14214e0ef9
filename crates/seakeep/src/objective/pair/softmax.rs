//! Softmax DPO (Chen et al., arXiv 2406.09215, eq. 8; the multi-negative form of CausalDPO): one chosen completion against
//! k rejected ones,
//!
//! ```text
//! l = log(1 + sum_k exp(z_k)),   z_k = beta (u_lk - u_w)
//! ```
//! With the weights `p_k = exp(z_k) / (1 + sum_j exp(z_j))`: `dl/dz_k = p_k`, `d2l/dz_j dz_k = p_k [j = k] - p_j p_k`; the
//! chosen completion's `p_w` follows from `dz_k/du_w = -beta`. With one rejected completion it is DPO's loss.

use super::Loss;
use crate::objective::Scored;

/// The losses of all pairs.
pub(super) fn losses(beta: f64, scored: &Scored) -> Vec<Loss> {
    (0..scored.policy.len()).map(|i| loss(beta, &scored.policy.0[i], &scored.reference.0[i])).collect()
}

fn loss(beta: f64, policy: &[f64], reference: &[f64]) -> Loss {
    let rewards: Vec<f64> = policy.iter().zip(reference).map(|(p, r)| beta * (p - r)).collect();
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
    let n = policy.len();
    Loss {
        value,
        d: (0..n).map(d).collect(),
        dd: (0..n).map(|a| (0..n).map(|b| dd(a, b)).collect()).collect(),
        elsewhere: Vec::new(),
    }
}
