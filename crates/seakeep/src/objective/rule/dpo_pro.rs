//! DPO-PRO (Kim et al., arXiv 2510.23590): labels that are only so sure. `q_i` is the probability that the chosen
//! completion is the better one; the worst case is over the chi-square ball of radius `rho` around Bernoulli(q_i), pair by
//! pair. With `l = l(z)` and `l' = l(-z)`:
//!
//! ```text
//! L_i = q l + (1 - q) l' + s |l - l'|
//! s = min( sqrt(rho q (1 - q)), 1 - q if l > l' else q )
//! ```
//! `q = 1` gives DPO back. With DPO's loss `|l - l'| = |z|`: a penalty on confidence where the votes were split.

use super::{RuleInput, RuleOutput, worst_case};

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoPro {
    /// Radius of the ball around each label.
    pub rho: f64,
    /// `q` where the data have no column for it.
    pub default_q: f64,
}

impl DpoPro {
    pub(super) fn rule(self, input: &RuleInput) -> RuleOutput {
        let n = input.n as f64;
        let q: Vec<f64> = input.facts.iter().map(|f| f.labels.soft.unwrap_or(self.default_q)).collect();
        let both = || input.losses.iter().zip(input.flipped);
        let flips: Vec<f64> =
            both().zip(&q).map(|((l, flipped), q)| 1.0 - self.worst_q(*q, *l, *flipped)).collect();
        let loss = both().zip(&flips).map(|((l, flipped), f)| (1.0 - f) * l + f * flipped).sum::<f64>() / n;
        let moved = flips.iter().zip(&q).map(|(f, q)| (1.0 - f - q).abs()).sum::<f64>() / n;
        let metrics = vec![
            ("dpo_pro/soft_label".to_string(), q.iter().sum::<f64>() / n),
            ("dpo_pro/label_shift".to_string(), moved),
        ];
        let weights = vec![1.0 / n; input.losses.len()];
        RuleOutput { loss, weights, flips, metrics, ..RuleOutput::default() }
    }

    /// The probability in the ball that makes `q l + (1 - q) l'` largest. Where the two losses are equal but for
    /// rounding there is no direction to go.
    fn worst_q(self, q: f64, loss: f64, flipped: f64) -> f64 {
        let reach = (self.rho * q * (1.0 - q)).sqrt();
        if (loss - flipped).abs() <= worst_case::tie(&[loss, flipped]) {
            q
        } else if loss > flipped {
            q + reach.min(1.0 - q)
        } else {
            q - reach.min(q)
        }
    }
}
