//! What the worst cases over balls have in common: ties, the ends of the range, a search between them.

use super::super::math::{largest, smallest};

/// Losses closer than this (relative to the largest) count as equal. Log-probabilities are sums of f32 numbers: the
/// same pair scored in another batch differs by about 1e-7 of its log-probability, and where policy and reference are
/// the same model, all losses are ln 2 but for that. Without the tie a ball of any radius would lean on the noise.
pub const TIE: f64 = 3e-6;

/// Differences of losses up to this are none.
pub fn tie(losses: &[f64]) -> f64 {
    TIE * losses.iter().fold(0.0f64, |most, l| most.max(l.abs()))
}

/// Equal weights.
pub fn uniform(n: usize) -> Vec<f64> {
    vec![1.0 / n as f64; n]
}

/// All weight on the worst, which share it.
pub fn on_the_worst(losses: &[f64]) -> Vec<f64> {
    let (top, tie) = (largest(losses), tie(losses));
    let is_worst = |l: f64| top - l <= tie;
    let worst = losses.iter().filter(|&&l| is_worst(l)).count() as f64;
    losses.iter().map(|&l| if is_worst(l) { 1.0 / worst } else { 0.0 }).collect()
}

/// The worst-case weights in a ball of radius `rho` around the uniform, and the scale that gives them.
///
/// `at(scale)` are weights that go from all on the worst (`scale -> 0`) to uniform (`scale -> infinity`), and their
/// `divergence` falls on the way; the worst case has the divergence `rho`, or lies at one of the ends. The scale is found
/// by bisection on its logarithm.
pub fn in_ball(
    losses: &[f64],
    rho: f64,
    at: impl Fn(f64) -> Vec<f64>,
    divergence: impl Fn(&[f64]) -> f64,
) -> (Vec<f64>, f64) {
    let spread = largest(losses) - smallest(losses);
    if rho <= 0.0 || spread <= tie(losses) {
        return (uniform(losses.len()), f64::INFINITY);
    }
    let worst = on_the_worst(losses);
    // The divergence of a limit is compared with what a user may have written as its closed form: to rounding.
    if rho >= divergence(&worst) * (1.0 - 1e-14) {
        return (worst, 0.0);
    }
    // At 1e-5 spread and at 1e9 spread the divergence has reached its ends for any rho of use.
    let (mut low, mut high) = ((spread * 1e-5).ln(), (spread * 1e9).ln());
    while divergence(&at(low.exp())) < rho && low > -700.0 {
        // Two losses closer than that: go on towards zero.
        low -= 10.0;
    }
    // 100 halvings of at most 800: below 1e-27, far below the rounding of the scale itself.
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if divergence(&at(middle.exp())) > rho {
            low = middle;
        } else {
            high = middle;
        }
    }
    let scale = (0.5 * (low + high)).exp();
    (at(scale), scale)
}

/// Gives out `mass` from the largest value downwards, at most `cap` to each; those that tie share equally.
pub fn pour(values: &[f64], tie: f64, mass: f64, cap: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let (mut given, mut left, mut rest) = (vec![0.0; values.len()], mass, &order[..]);
    while let Some(&first) = rest.first() {
        // A value that is not finite ties with nothing, itself included.
        let ties = rest.iter().take_while(|&&i| values[first] - values[i] <= tie).count().max(1);
        let each = cap.min(left / ties as f64);
        rest[..ties].iter().for_each(|&i| given[i] = each);
        left = (left - each * ties as f64).max(0.0);
        rest = &rest[ties..];
    }
    given
}
