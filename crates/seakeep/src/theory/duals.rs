//! The worst cases over balls of reweightings, for weighted atoms: the one-dimensional duals solved.
//!
//! `objective::rule` has the same balls for the equally weighted losses of a batch; here atoms have masses (a
//! population's probabilities, or counts), there are no ties to guard against, and the solution is polished to rounding,
//! because second derivatives are built on it.

/// A worst case: the weights that attain it and the dual variable.
#[derive(Clone, Debug)]
pub struct Worst {
    /// The worst-case probabilities of the atoms.
    pub weights: Vec<f64>,
    /// `tau` of the KL ball, `eta` of the chi-square ball. Infinite (`tau`) or the mean (`eta`) where the ball is a
    /// point or all losses are equal.
    pub dual: f64,
    /// The value of the dual problem, which no distribution of the ball exceeds.
    pub value: f64,
}

/// The mean of the losses.
pub fn mean(losses: &[f64], masses: &[f64]) -> f64 {
    losses.iter().zip(masses).map(|(l, p)| l * p).sum()
}

/// `KL(q || p)`, nats.
pub fn kl(weights: &[f64], masses: &[f64]) -> f64 {
    let term = |(q, p): (&f64, &f64)| if *q > 0.0 { q * (q / p).ln() } else { 0.0 };
    weights.iter().zip(masses).map(term).sum()
}

/// `sum (q - p)^2 / p`
pub fn chi2(weights: &[f64], masses: &[f64]) -> f64 {
    weights.iter().zip(masses).map(|(q, p)| (q - p) * (q - p) / p).sum()
}

fn extremes(losses: &[f64]) -> (f64, f64) {
    losses.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &l| (a.min(l), b.max(l)))
}

/// The masses themselves: the worst case of a ball that is a point.
fn unmoved(losses: &[f64], masses: &[f64], dual: f64) -> Worst {
    Worst { weights: masses.to_vec(), dual, value: mean(losses, masses) }
}

/// Equal losses up to rounding.
fn flat(low: f64, high: f64) -> bool {
    high - low <= 1e-14 * high.abs().max(1.0)
}

/// `sup { E_q[l] : KL(q || p) <= rho } = min over tau > 0 of  tau rho + tau log sum_i p_i exp(l_i / tau)`.
///
/// At the solution `q_i` is proportional to `p_i exp(l_i / tau)` with `KL(q || p) = rho`. `None` where the ball holds a
/// distribution on the largest losses alone (`tau = 0`): there the worst case is the maximum and has no second derivative.
pub fn kl_ball(losses: &[f64], masses: &[f64], rho: f64) -> Option<Worst> {
    let (low, high) = extremes(losses);
    if rho <= 0.0 || flat(low, high) {
        return Some(unmoved(losses, masses, f64::INFINITY));
    }
    let worst_mass: f64 = losses.iter().zip(masses).filter(|(l, _)| **l >= high).map(|(_, p)| p).sum();
    if rho >= -worst_mass.ln() * (1.0 - 1e-9) {
        return None;
    }
    // Tilted weights, the log of their normaliser, mean and variance of the losses under them.
    let tilt = |tau: f64| {
        let mut q: Vec<f64> = losses.iter().zip(masses).map(|(l, p)| p * ((l - high) / tau).exp()).collect();
        let total: f64 = q.iter().sum();
        q.iter_mut().for_each(|q| *q /= total);
        let mean = mean(losses, &q);
        let variance: f64 = losses.iter().zip(&q).map(|(l, q)| q * (l - mean) * (l - mean)).sum();
        (q, total.ln(), mean, variance)
    };
    let nominal = mean(losses, masses);
    let variance: f64 = losses.iter().zip(masses).map(|(l, p)| p * (l - nominal) * (l - nominal)).sum();
    // Newton's method on log tau, kept in a bracket: KL falls with tau, and is variance / (2 tau^2) for a large one.
    let (mut t, mut below, mut above) =
        ((0.5 * variance / rho).sqrt().ln(), f64::NEG_INFINITY, f64::INFINITY);
    for _ in 0..200 {
        let tau = t.exp();
        let (_, log_total, mean, variance) = tilt(tau);
        let excess = (mean - high) / tau - log_total - rho;
        if excess > 0.0 {
            below = t
        } else {
            above = t
        }
        let mut next = t + excess * tau * tau / variance;
        if !(next > below && next < above) {
            next = match (below.is_finite(), above.is_finite()) {
                (true, true) => 0.5 * (below + above),
                (true, false) => t + 1.0,
                _ => t - 1.0,
            };
        }
        let moved = (next - t).abs();
        t = next;
        if moved <= 1e-15 * t.abs().max(1.0) {
            break;
        }
    }
    let tau = t.exp();
    let (weights, log_total, ..) = tilt(tau);
    Some(Worst { weights, dual: tau, value: tau * rho + high + tau * log_total })
}

/// `sup { E_q[l] : sum (q - p)^2 / p <= rho } = min over eta of  eta + sqrt(1 + rho) sqrt(E_p (l - eta)_+^2)`.
///
/// At the solution `q_i` is proportional to `p_i (l_i - eta)_+`. `None` where all weight is on the largest losses.
pub fn chi2_ball(losses: &[f64], masses: &[f64], rho: f64) -> Option<Worst> {
    let (low, high) = extremes(losses);
    if rho <= 0.0 || flat(low, high) {
        return Some(unmoved(losses, masses, mean(losses, masses)));
    }
    let worst_mass: f64 = losses.iter().zip(masses).filter(|(l, _)| **l >= high).map(|(_, p)| p).sum();
    if 1.0 + rho >= (1.0 - 1e-9) / worst_mass {
        return None;
    }
    // Mass, mean and mean square of the losses above eta: with them E e^2 = (1 + rho) (E e)^2 is quadratic in eta.
    let above = |eta: f64| {
        losses.iter().zip(masses).filter(|(l, _)| **l > eta).fold((0.0, 0.0, 0.0), |s, (l, p)| {
            let l = l - high;
            (s.0 + p, s.1 + p * l, s.2 + p * l * l)
        })
    };
    let excess = |eta: f64| {
        let ((m, a, b), e) = (above(eta), eta - high);
        (b - 2.0 * e * a + e * e * m) - (1.0 + rho) * (a - e * m) * (a - e * m)
    };
    // The ratio grows with eta, from 1 far below to 1 / worst_mass at the largest loss.
    let (mut width, mut top) = (high - low, high);
    while excess(high - width) > 0.0 {
        (top, width) = (high - width, 2.0 * width);
    }
    let mut bottom = high - width;
    for _ in 0..60 {
        let middle = 0.5 * (bottom + top);
        if excess(middle) > 0.0 { top = middle } else { bottom = middle }
    }
    // Between two losses the quadratic is exact: with v the variance above eta, its mean lies sqrt(v / r) higher.
    let (m, a, b) = above(0.5 * (bottom + top));
    let (mean_above, variance) = (a / m, (b / m - (a / m) * (a / m)).max(0.0));
    let ratio = (1.0 + rho) * m - 1.0;
    let eta = if ratio > 0.0 { high + mean_above - (variance / ratio).sqrt() } else { 0.5 * (bottom + top) };
    let mut weights: Vec<f64> = losses.iter().zip(masses).map(|(l, p)| p * (l - eta).max(0.0)).collect();
    let total: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|q| *q /= total);
    let square: f64 = losses.iter().zip(masses).map(|(l, p)| p * (l - eta).max(0.0).powi(2)).sum();
    Some(Worst { weights, dual: eta, value: eta + ((1.0 + rho) * square).sqrt() })
}
