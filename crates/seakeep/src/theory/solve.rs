//! Objectives solved to optimality over the ball `|theta| <= B`.
//!
//! Newton's method with a line search; where the minimiser lies outside the ball, the multiplier `mu` of the constraint
//! is found by Newton's method on `1 / |theta(mu)| = 1 / B` (as for trust regions), each `theta(mu)` the minimiser of the
//! objective plus `mu/2 |theta|^2`. The kink that robust objectives have at the reference is decided beforehand, by
//! the conditions in [`super::estimator`].
//!
//! Tolerances: the gradient (with the multiplier's term) is below [`TOLERANCE`] times beta, the norm on the boundary
//! within [`TOLERANCE`] of B.

use super::estimator::{Estimator, Local, Pairs};
use super::linalg::{add_diagonal, add_outer, dot, norm, plus, solve};

/// What the gradient's norm, over beta, may be at a solution, and by how much `|theta|` may miss B.
pub const TOLERANCE: f64 = 1e-9;

/// Newton goes on to this where rounding allows it.
const WISHED: f64 = 1e-12;

/// A class of log-linear policies.
#[derive(Clone, Debug)]
pub struct Class {
    /// The factor of the margin.
    pub beta: f64,
    /// The largest `|theta|`, B.
    pub bound: f64,
    /// `theta_ref`, inside the ball.
    pub reference: Vec<f64>,
}

/// Where a solution lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the ball, away from the reference.
    Inside,
    /// On the boundary `|theta| = B`.
    Boundary,
    /// At the reference: the ball is so large that nothing else is safe.
    Reference,
}

/// A solved objective.
#[derive(Clone, Debug)]
pub struct Solution {
    /// The parameters, `[d]`.
    pub theta: Vec<f64>,
    /// The objective there, nats.
    pub value: f64,
    /// Where that is.
    pub place: Place,
}

impl Class {
    /// `theta - theta_ref`
    pub fn offset(&self, theta: &[f64]) -> Vec<f64> {
        plus(theta, -1.0, &self.reference)
    }

    /// Minimises the objective over the class; `None` where it cannot be solved to [`TOLERANCE`].
    pub fn minimise(&self, estimator: Estimator, pairs: &Pairs) -> Option<Solution> {
        if is_reference_optimal(estimator, pairs) {
            // All losses are ln 2 there, whatever their weights.
            let value = std::f64::consts::LN_2;
            return Some(Solution { theta: self.reference.clone(), value, place: Place::Reference });
        }
        let mut start = vec![0.0; pairs.dimension];
        if estimator != Estimator::Dpo {
            let dpo = self.offset(&self.minimise(Estimator::Dpo, pairs)?.theta);
            start = away_from_kink(estimator, pairs, self.beta, dpo);
        }
        let solution = self.minimise_from(estimator, pairs, start)?;
        solution.theta.iter().all(|t| t.is_finite()).then_some(solution)
    }

    /// As [`Class::minimise`], from an offset at which the objective is smooth.
    fn minimise_from(&self, estimator: Estimator, pairs: &Pairs, start: Vec<f64>) -> Option<Solution> {
        let objective = |w: &[f64]| estimator.at(pairs, self.beta, w);
        // Separable data have no minimiser: far outside the ball is far enough.
        let far = |w: &[f64]| norm(&plus(w, 1.0, &self.reference)) > 4.0 * self.bound;
        let free = newton(&objective, start.clone(), self.beta, &far);
        if let Newton::Converged(w, local) = &free {
            let theta = plus(w, 1.0, &self.reference);
            if norm(&theta) <= self.bound {
                return Some(Solution { theta, value: local.value, place: Place::Inside });
            }
        }
        self.on_boundary(&objective, start)
    }

    fn on_boundary(&self, objective: &dyn Fn(&[f64]) -> Option<Local>, start: Vec<f64>) -> Option<Solution> {
        let d = start.len();
        let (mut w, mut mu, mut low, mut high) = (start, 1e-3 * self.beta, 0.0, f64::INFINITY);
        for _ in 0..100 {
            let penalised = |w: &[f64]| {
                let theta = plus(w, 1.0, &self.reference);
                let mut local = objective(w)?;
                local.value += 0.5 * mu * dot(&theta, &theta);
                local.gradient = plus(&local.gradient, mu, &theta);
                add_diagonal(&mut local.hessian, mu, d);
                Some(local)
            };
            let Newton::Converged(at, local) = newton(&penalised, w, self.beta, &|_| false) else {
                return None;
            };
            let theta = plus(&at, 1.0, &self.reference);
            let length = norm(&theta);
            if (length - self.bound).abs() <= TOLERANCE * self.bound.min(1.0) {
                let value = local.value - 0.5 * mu * length * length;
                return Some(Solution { theta, value, place: Place::Boundary });
            }
            if length > self.bound {
                low = mu
            } else {
                high = mu
            }
            let slope = solve(&local.hessian, &theta).map(|s| dot(&s, &theta) / length.powi(3));
            let next = mu + (1.0 / self.bound - 1.0 / length) / slope.unwrap_or(f64::NAN);
            mu = match next > low && next < high {
                true => next,
                false if high.is_finite() => 0.5 * (low + high),
                false => 10.0 * mu,
            };
            w = at;
        }
        None
    }
}

/// Where to start a robust objective: at DPO's optimum, if the objective is lower there than at its kink, the reference
/// (then descent cannot end in the kink), and otherwise at the best of points that approach the reference
/// along DPO's direction and along the mean difference, which is the steepest descent from WDPO's kink.
fn away_from_kink(estimator: Estimator, pairs: &Pairs, beta: f64, dpo: Vec<f64>) -> Vec<f64> {
    let value = |w: &[f64]| estimator.at(pairs, beta, w).map_or(f64::INFINITY, |local| local.value);
    if value(&dpo) < std::f64::consts::LN_2 {
        return dpo;
    }
    let mean = pairs.moment(&pairs.masses);
    let along_mean = norm(&dpo) / norm(&mean);
    let nearer = (1..40).map(|halvings| 0.5f64.powi(halvings));
    let points = nearer.flat_map(|t| {
        [dpo.iter().map(|w| t * w).collect::<Vec<f64>>(), mean.iter().map(|m| t * along_mean * m).collect()]
    });
    let scored = points.map(|w| (value(&w), w));
    scored.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(dpo, |best| best.1)
}

/// How Newton's method ended.
enum Newton {
    Converged(Vec<f64>, Local),
    Failed,
}

/// Newton's method until the gradient is below the tolerance times `scale`, or `far` says that there is no minimiser.
fn newton(
    f: &dyn Fn(&[f64]) -> Option<Local>,
    start: Vec<f64>,
    scale: f64,
    far: &dyn Fn(&[f64]) -> bool,
) -> Newton {
    let Some(mut local) = f(&start) else { return Newton::Failed };
    let mut w = start;
    for _ in 0..100 {
        let size = norm(&local.gradient);
        if size <= WISHED * scale {
            break;
        }
        let step = descent(&local);
        let slope = dot(&step, &local.gradient);
        // Armijo's rule; at the end, where values differ by rounding only, a smaller gradient will do.
        let accepted = (0..40).find_map(|halvings| {
            let at = plus(&w, -0.5f64.powi(halvings), &step);
            let next = f(&at)?;
            let enough = next.value <= local.value - 1e-4 * 0.5f64.powi(halvings) * slope;
            let rounding = slope < 1e-11 && norm(&next.gradient) < size;
            (enough || rounding).then_some((at, next))
        });
        let Some((at, next)) = accepted else { break };
        (w, local) = (at, next);
        if far(&w) {
            return Newton::Failed;
        }
    }
    if norm(&local.gradient) <= TOLERANCE * scale { Newton::Converged(w, local) } else { Newton::Failed }
}

/// Newton's step, the Hessian lifted by a multiple of the identity where it is not positive definite.
fn descent(local: &Local) -> Vec<f64> {
    let d = local.gradient.len();
    let size = (0..d).map(|i| local.hessian[i * d + i].abs()).fold(1e-300, f64::max);
    let mut lift = 0.0;
    loop {
        let mut hessian = local.hessian.clone();
        add_diagonal(&mut hessian, lift, d);
        if let Some(step) = solve(&hessian, &local.gradient) {
            return step;
        }
        lift = if lift == 0.0 { 1e-8 * size } else { 10.0 * lift };
    }
}

/// Whether the reference itself minimises the objective: the conditions of [`super::estimator`].
fn is_reference_optimal(estimator: Estimator, pairs: &Pairs) -> bool {
    let mean = pairs.moment(&pairs.masses);
    match estimator {
        Estimator::Dpo | Estimator::Drdpo(_) => norm(&mean) == 0.0,
        Estimator::Wdpo(rho) | Estimator::WdpoGradient(rho) => {
            // The slopes of the penalty and of the mean loss at the reference, both over beta.
            let slope = if matches!(estimator, Estimator::Wdpo(_)) { rho } else { 0.5 * rho };
            norm(&mean) * 0.5 <= slope
        }
        Estimator::Kldpo(rho) => divergence_to_indifference(pairs, rho) <= rho,
        Estimator::Chi2(rho) => {
            // Without q >= 0 the least divergence is a least-squares problem; where its q is a distribution, it is that.
            // Otherwise a radius beyond it is left to Newton's method, which may fail at the kink (and then says so).
            let mut covariance = pairs.second_moment(&pairs.masses);
            add_outer(&mut covariance, -1.0, &mean, &mean);
            let Some(v) = solve(&covariance, &mean) else { return false };
            dot(&v, &mean) <= rho && pairs.atoms().all(|(x, _)| 1.0 - dot(&v, x) + dot(&v, &mean) >= 0.0)
        }
    }
}

/// The least `KL(q || p)` with `E_q x = 0`, by its dual `max over v of -log sum p_i exp(<v, x_i>)`; a number above `enough`
/// as soon as it is known to be that large (it is infinite where no reweighting is indifferent).
pub(super) fn divergence_to_indifference(pairs: &Pairs, enough: f64) -> f64 {
    let d = pairs.dimension;
    let log_sum = |v: &[f64]| -> Option<Local> {
        let scores: Vec<f64> = pairs.x.chunks_exact(d).map(|x| dot(v, x)).collect();
        let top = scores.iter().fold(f64::NEG_INFINITY, |a, &s| a.max(s));
        let mut q: Vec<f64> = scores.iter().zip(&pairs.masses).map(|(s, p)| p * (s - top).exp()).collect();
        let total: f64 = q.iter().sum();
        q.iter_mut().for_each(|q| *q /= total);
        let gradient = pairs.moment(&q);
        let mut hessian = pairs.second_moment(&q);
        add_outer(&mut hessian, -1.0, &gradient, &gradient);
        Some(Local { value: top + total.ln(), gradient, hessian })
    };
    let above = |v: &[f64]| log_sum(v).is_some_and(|local| -local.value > enough);
    match newton(&log_sum, vec![0.0; d], 1.0, &above) {
        Newton::Converged(_, local) => (-local.value).max(0.0),
        Newton::Failed => f64::INFINITY,
    }
}
