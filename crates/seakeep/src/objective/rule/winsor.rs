//! wDPO, winsorised (arXiv 2603.07211; not the Wasserstein one): labels that look flipped are partly turned, then extreme
//! losses are partly capped. Selection, caps and thresholds are constant in the gradient; all are over the global batch.
//!
//! 1. After the warm-up: gains `a_i = max(0, l(z_i) - l(-z_i))`, selection `s = sparsemax(a / tau)`, flips
//!    `p_i = min(1, rho_f n s_i)` (mass lost to the cap goes to the uncapped in proportion),
//!    `m_i = (1 - p_i) l(z_i) + p_i l(-z_i)`. No gain: no flips.
//! 2. `T` = the quantile of m. The budget `rho_w = low + (high - low) mean sigmoid(-z_i / mean|z|)`, before the end of the
//!    warm-up a fixed one. Over the tail `m_i > T`: `r_i = min(1, rho_w n (m_i - T) / sum_tail (m_j - T))`,
//!    `L = mean((1 - r_i) m_i + r_i T)`.

use super::super::math::{largest, mean, quantile, sigmoid};
use super::{RuleInput, RuleOutput, weight_metrics, worst_case};

/// The rule; [`Winsor::default`] has the authors' numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Winsor {
    /// Share of all steps before labels are turned.
    pub warmup: f64,
    /// `tau`: how sharply the selection falls on the largest gains.
    pub tau: f64,
    /// `rho_f`: the share of the batch that may be turned.
    pub flip_budget: f64,
    /// The quantile beyond which losses are capped.
    pub quantile: f64,
    /// The budget of the caps after the warm-up, at its smallest.
    pub budget_min: f64,
    /// The same at its largest.
    pub budget_max: f64,
    /// The budget of the caps during the warm-up.
    pub budget_warmup: f64,
}

impl Default for Winsor {
    fn default() -> Self {
        Winsor {
            warmup: 0.3,
            tau: 1.0,
            flip_budget: 0.15,
            quantile: 0.7,
            budget_min: 0.02,
            budget_max: 0.5,
            budget_warmup: 0.15,
        }
    }
}

impl Winsor {
    pub(super) fn rule(self, input: &RuleInput) -> RuleOutput {
        let n = input.losses.len();
        // 1 is never, also where the last step or an evaluation after it is reached.
        let warm = self.warmup < 1.0 && input.progress >= self.warmup;
        let flips = if warm { self.flips(input.losses, input.flipped) } else { vec![0.0; n] };
        let both = input.losses.iter().zip(input.flipped);
        let m: Vec<f64> = both.zip(&flips).map(|((l, turned), p)| (1.0 - p) * l + p * turned).collect();
        let budget = if warm { self.budget(input.rewards) } else { self.budget_warmup };
        let cap = quantile(&m, self.quantile);
        let capped = capped(&m, cap, budget);
        let loss = m.iter().zip(&capped).map(|(m, r)| (1.0 - r) * m + r * cap).sum::<f64>() / n as f64;
        let weights: Vec<f64> = capped.iter().map(|r| (1.0 - r) / n as f64).collect();
        let mut metrics = weight_metrics(&weights);
        metrics.extend(
            [
                ("winsor/flips", flips.iter().sum()),
                ("winsor/flip_max", largest(&flips)),
                ("winsor/capped", capped.iter().sum()),
                ("winsor/cap", cap),
                ("winsor/budget", budget),
            ]
            .map(|(name, value)| (name.to_string(), value)),
        );
        RuleOutput { loss, weights, flips, metrics, ..RuleOutput::default() }
    }

    /// `p_i`
    fn flips(self, losses: &[f64], flipped: &[f64]) -> Vec<f64> {
        let gains: Vec<f64> = losses.iter().zip(flipped).map(|(l, turned)| (l - turned).max(0.0)).collect();
        if largest(&gains) <= worst_case::tie(losses) {
            return vec![0.0; losses.len()];
        }
        let scaled: Vec<f64> = gains.iter().map(|a| a / self.tau).collect();
        capped_at_1(&sparsemax(&scaled), self.flip_budget * losses.len() as f64)
    }

    /// `rho_w`, the larger the more pairs the policy gets wrong.
    fn budget(self, rewards: &[[f64; 2]]) -> f64 {
        let margins: Vec<f64> = rewards.iter().map(|[w, l]| w - l).collect();
        let scale = mean(&margins.iter().map(|z| z.abs()).collect::<Vec<f64>>());
        let wrong = |z: &f64| if scale > 0.0 { sigmoid(-z / scale) } else { 0.5 };
        self.budget_min
            + (self.budget_max - self.budget_min) * mean(&margins.iter().map(wrong).collect::<Vec<f64>>())
    }
}

/// The projection of `values` on the simplex (Martins and Astudillo, arXiv 1602.02068, Algorithm 1).
fn sparsemax(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut threshold) = (0.0, 0.0);
    for (k, value) in sorted.iter().enumerate() {
        sum += value;
        let candidate = (sum - 1.0) / (k + 1) as f64;
        if *value > candidate {
            threshold = candidate;
        }
    }
    values.iter().map(|v| (v - threshold).max(0.0)).collect()
}

/// `mass` in proportion to `shares`, at most 1 to each; what is over goes to the others in proportion, as long as there
/// are any.
fn capped_at_1(shares: &[f64], mass: f64) -> Vec<f64> {
    let mut full = vec![false; shares.len()];
    loop {
        let open = || shares.iter().zip(&full).filter(|(_, full)| !**full);
        let left = (mass - full.iter().filter(|f| **f).count() as f64).max(0.0);
        let total: f64 = open().map(|(s, _)| s).sum();
        let part = |s: f64| if total > 0.0 { left * s / total } else { 0.0 };
        let more: Vec<bool> = shares.iter().zip(&full).map(|(s, full)| *full || part(*s) >= 1.0).collect();
        if more == full {
            return shares.iter().zip(&full).map(|(s, full)| if *full { 1.0 } else { part(*s) }).collect();
        }
        full = more;
    }
}

/// `r_i`
fn capped(m: &[f64], cap: f64, budget: f64) -> Vec<f64> {
    // A tail that is rounding alone is none.
    if largest(m) - cap <= worst_case::tie(m) {
        return vec![0.0; m.len()];
    }
    let excess = |m: &f64| (m - cap).max(0.0);
    let total: f64 = m.iter().map(excess).sum();
    let mass = budget * m.len() as f64;
    m.iter().map(|m| (mass * excess(m) / total).min(1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparsemax_is_the_nearest_point_of_the_simplex() {
        for values in [vec![0.3, -1.0, 2.5, 2.4], vec![0.0; 5], vec![7.0, 1.0], vec![0.1, 0.2, 0.15]] {
            let p = sparsemax(&values);
            assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12 && p.iter().all(|p| *p >= 0.0));
            let distance = |q: &[f64]| q.iter().zip(&values).map(|(q, v)| (q - v) * (q - v)).sum::<f64>();
            // No move of mass between two places comes nearer.
            for (i, j) in (0..p.len()).flat_map(|i| (0..p.len()).map(move |j| (i, j))) {
                let mut q = p.clone();
                let step = 1e-4f64.min(p[i]);
                (q[i], q[j]) = (q[i] - step, q[j] + step);
                assert!(i == j || distance(&q) >= distance(&p) - 1e-12);
            }
        }
    }

    #[test]
    fn mass_beyond_1_goes_to_the_others() {
        assert_eq!(capped_at_1(&[0.5, 0.3, 0.2, 0.0], 1.0), [0.5, 0.3, 0.2, 0.0]);
        let p = capped_at_1(&[0.8, 0.1, 0.1, 0.0], 2.0);
        assert!((p[0] - 1.0).abs() < 1e-12 && (p[1] - 0.5).abs() < 1e-12 && p[3] == 0.0, "{p:?}");
        assert_eq!(capped_at_1(&[1.0, 0.0], 1.5), [1.0, 0.0], "nobody else to give it to");
    }
}
