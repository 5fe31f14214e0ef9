//! Worst cases made: distributions in the ball whose loss comes up to the dual value.

use super::duals;
use super::estimator::{Estimator, Pairs, loss};
use super::linalg::{dot, norm};
use super::record::{Primal, WorstCase};

/// Shares of every atom that the Wasserstein ball's distributions move.
const SHARES: [f64; 5] = [1.0, 0.1, 0.01, 0.001, 1e-6];

/// The dual value at the offset `w` beside distributions of the ball; `None` for objectives without a ball whose dual is
/// exact.
pub fn worst_case(
    name: &str,
    estimator: Estimator,
    pairs: &Pairs,
    beta: f64,
    w: &[f64],
) -> Option<WorstCase> {
    let losses = pairs.losses(beta, w);
    let mean_loss = duals::mean(&losses, &pairs.masses);
    let (radius, dual, primal) = match estimator {
        Estimator::Kldpo(radius) | Estimator::Chi2(radius) => {
            let worst = estimator.reweighting(&losses, &pairs.masses)?;
            let measure = if matches!(estimator, Estimator::Chi2(_)) { duals::chi2 } else { duals::kl };
            let primal = Primal {
                what: "the worst-case weights".into(),
                distance: measure(&worst.weights, &pairs.masses),
                value: duals::mean(&losses, &worst.weights),
            };
            (radius, worst.value, vec![primal])
        }
        Estimator::Wdpo(radius) => {
            let dual = mean_loss + radius * beta * norm(w);
            (radius, dual, SHARES.map(|share| moved(pairs, beta, w, radius, share)).to_vec())
        }
        _ => return None,
    };
    Some(WorstCase { method: name.into(), radius, mean_loss, dual, primal })
}

/// The distribution that moves a share of every atom by `radius / share` against `w`: at distance `radius`.
fn moved(pairs: &Pairs, beta: f64, w: &[f64], radius: f64, share: f64) -> Primal {
    let step = radius / share;
    let (mut value, mut cost) = (0.0, 0.0);
    for (x, mass) in pairs.atoms() {
        let z = beta * dot(w, x);
        value += mass * ((1.0 - share) * loss(z) + share * loss(z - beta * norm(w) * step));
        cost += mass * share * step;
    }
    Primal { what: format!("a share of {share} moved by {step}"), distance: cost, value }
}
