//! The objectives for log-linear policies: value, gradient and Hessian, exact duals included.
//!
//! With `w = theta - theta_ref` and `x = psi_w - psi_l` the reward margin of a pair is linear, `z = beta <w, x>`, and
//! the pair loss is the logistic `l(z) = log(1 + exp(-z))`. The data are atoms `x_i` of masses `p_i`.
//!
//! # DPO
//! `sum p_i l_i`: logistic regression.
//!
//! # KLDPO
//! `F(w) = min over tau of  tau rho + tau log sum p_i exp(l_i / tau)`, jointly convex in `(w, tau)` since it is the
//! perspective of a log-sum-exp. The joint minimisation is done in `w` alone, with `tau(w)` solved to rounding: by
//! Danskin the gradient is `g = sum q_i grad l_i` at the worst-case weights `q`, and the Hessian is the Schur
//! complement of the joint one,
//!
//! ```text
//! H = E_q hess l + (1 / tau) (Cov_q(grad l) - k k^T / Var_q(l)),     k = Cov_q(grad l, l)
//! ```
//!
//! Where all losses are equal, at `w = 0`, `F` has a kink. The subgradients there are `-beta/2 E_q x` over the ball, so
//! the reference itself is optimal exactly if the ball holds a `q` with `E_q x = 0`, that is if
//! `max over v of -log sum p_i exp(<v, x_i>) <= rho`.
//!
//! # WDPO, the exact dual
//! The ball: all distributions of `(x, label)` within type-1 Wasserstein distance `rho` of the data, the cost Euclidean in
//! the feature difference `x` in all of `R^d`, and infinite for changing a label. With duality (Mohajerin Esfahani and
//! Kuhn 2018; Blanchet and Murthy 2019)
//!
//! ```text
//! sup E_Q[l] = min over lambda >= 0 of  lambda rho + sum p_i sup over x' of ( l(beta <w, x'>) - lambda |x' - x_i| )
//! ```
//!
//! `l(beta <w, .>)` is convex with slopes up to `beta |w|`, approached as `<w, x'> -> -infinity` but not exceeded. So the
//! inner supremum is infinite for `lambda < beta |w|`, and `l_i` (at `x' = x_i`) from there on, and
//!
//! ```text
//! sup E_Q[l] = sum p_i l_i + rho beta |w|
//! ```
//!
//! as in Shafieezadeh-Abadeh, Mohajerin Esfahani and Kuhn (2015, arXiv 1509.09259; 2019, arXiv 1710.10016), their
//! `kappa = infinity`. It is approached and not attained: a share `epsilon` of every atom moved by `rho / epsilon`
//! against `w` (`worst.rs`). The features of the moved atoms leave the unit ball, so for a world whose features
//! cannot, this is an upper bound. The kink is at `w = 0` again: the reference is optimal if `|E x| / 2 <= rho`.
//!
//! # WDPO as language models have it
//! `sum p_i l_i + rho ( sum p_i |d l_i / d x_i|^2 )^(1/2)`, the first-order worst case over a type-2 ball. Here
//! `d l / d x = -beta sigmoid(-z) w`, so the penalty is `rho beta |w| (E sigmoid(-z)^2)^(1/2)`, at most the exact one's. Not
//! convex in general; the solver starts at DPO's optimum and finds a local minimum.
//!
//! # Dr. DPO
//! `-b log sum p_i exp(-l_i / b)`. Not convex in general either; the same start.
//!
//! # Chi-square
//! `min over eta of  eta + sqrt(1 + rho) (E (l - eta)_+^2)^(1/2)`, convex; Schur complement as for KLDPO.

use super::duals::{self, Worst};
use super::linalg::{add_diagonal, add_outer, dot, norm};

/// Feature differences with masses.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// Number of features, d.
    pub dimension: usize,
    /// `psi_w - psi_l` of each atom, `[m, d]`.
    pub x: Vec<f64>,
    /// The atoms' probabilities, `[m]`, which sum to 1.
    pub masses: Vec<f64>,
}

impl Pairs {
    /// `(x_i, p_i)` in order.
    pub fn atoms(&self) -> impl Iterator<Item = (&[f64], f64)> {
        self.x.chunks_exact(self.dimension).zip(self.masses.iter().copied())
    }

    /// `sum weights_i x_i x_i^T`
    pub fn second_moment(&self, weights: &[f64]) -> Vec<f64> {
        let d = self.dimension;
        let mut out = vec![0.0; d * d];
        for (x, a) in self.x.chunks_exact(d).zip(weights) {
            for i in 0..d {
                let ax = a * x[i];
                // The lower triangle; mirrored below.
                for j in 0..=i {
                    out[i * d + j] += ax * x[j];
                }
            }
        }
        for i in 0..d {
            (0..i).for_each(|j| out[j * d + i] = out[i * d + j]);
        }
        out
    }

    /// `sum weights_i x_i`
    pub fn moment(&self, weights: &[f64]) -> Vec<f64> {
        let mut out = vec![0.0; self.dimension];
        for (x, a) in self.x.chunks_exact(self.dimension).zip(weights) {
            out.iter_mut().zip(x).for_each(|(o, x)| *o += a * x);
        }
        out
    }

    /// The pair losses at `w`, nats.
    pub fn losses(&self, beta: f64, w: &[f64]) -> Vec<f64> {
        self.x.chunks_exact(self.dimension).map(|x| loss(beta * dot(w, x))).collect()
    }
}

/// `-log sigmoid(z)`, without overflow.
pub fn loss(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p()
}

/// `sigmoid(z)`, without overflow.
pub fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

/// An objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimator {
    /// The mean loss.
    Dpo,
    /// The worst case over a KL ball, radius in nats.
    Kldpo(f64),
    /// The worst case over a type-1 Wasserstein ball, radius in units of the features.
    Wdpo(f64),
    /// The first-order gradient penalty, radius in units of the features.
    WdpoGradient(f64),
    /// Dr. DPO with its `beta'`.
    Drdpo(f64),
    /// The worst case over a chi-square ball.
    Chi2(f64),
}

/// An objective near a point.
#[derive(Clone, Debug)]
pub struct Local {
    /// The value, nats.
    pub value: f64,
    /// The gradient, `[d]`.
    pub gradient: Vec<f64>,
    /// The Hessian, `[d, d]`.
    pub hessian: Vec<f64>,
}

/// What all objectives are made of at one point.
struct Parts<'a> {
    pairs: &'a Pairs,
    beta: f64,
    losses: Vec<f64>,
    /// `sigmoid(-z)`; the gradient of a loss is `-beta s x`.
    s: Vec<f64>,
}

impl Parts<'_> {
    fn combine(&self, weights: &[f64], f: impl Fn(f64, f64, f64) -> f64) -> Vec<f64> {
        weights.iter().zip(&self.s).zip(&self.losses).map(|((q, s), l)| f(*q, *s, *l)).collect()
    }

    /// `E_q grad l`
    fn gradient(&self, q: &[f64]) -> Vec<f64> {
        self.pairs.moment(&self.combine(q, |q, s, _| -self.beta * q * s))
    }

    /// `E_q hess l + sum_i u_i grad l_i grad l_i^T`
    fn curvature(&self, q: &[f64], u: impl Fn(f64) -> f64) -> Vec<f64> {
        let square = self.beta * self.beta;
        self.pairs.second_moment(&self.combine(q, |q, s, _| square * (q * s * (1.0 - s) + u(q) * s * s)))
    }
}

impl Estimator {
    /// The objective at `w`; `None` where it has no second derivative that helps: at a kink (`w = 0`), or where a ball
    /// is so large that all weight is on the largest loss.
    pub fn at(self, pairs: &Pairs, beta: f64, w: &[f64]) -> Option<Local> {
        let z: Vec<f64> = pairs.x.chunks_exact(pairs.dimension).map(|x| beta * dot(w, x)).collect();
        let parts = Parts {
            pairs,
            beta,
            losses: z.iter().map(|&z| loss(z)).collect(),
            s: z.iter().map(|&z| sigmoid(-z)).collect(),
        };
        match self {
            Estimator::Dpo => Some(mean(&parts)),
            Estimator::Kldpo(rho) => kldpo(&parts, rho),
            Estimator::Wdpo(rho) => wdpo(&parts, rho, w),
            Estimator::WdpoGradient(rho) => wdpo_gradient(&parts, rho, w),
            Estimator::Drdpo(b) => Some(drdpo(&parts, b)),
            Estimator::Chi2(rho) => chi2(&parts, rho),
        }
    }

    /// The worst-case weights over a ball of reweightings and the dual; `None` for objectives without such a ball.
    pub fn reweighting(self, losses: &[f64], masses: &[f64]) -> Option<Worst> {
        match self {
            Estimator::Kldpo(rho) => duals::kl_ball(losses, masses, rho),
            Estimator::Chi2(rho) => duals::chi2_ball(losses, masses, rho),
            _ => None,
        }
    }
}

fn mean(parts: &Parts) -> Local {
    let p = &parts.pairs.masses;
    Local {
        value: duals::mean(&parts.losses, p),
        gradient: parts.gradient(p),
        hessian: parts.curvature(p, |_| 0.0),
    }
}

fn kldpo(parts: &Parts, rho: f64) -> Option<Local> {
    let worst = duals::kl_ball(&parts.losses, &parts.pairs.masses, rho)?;
    let (q, tau) = (&worst.weights, worst.dual);
    if tau.is_infinite() {
        return (rho <= 0.0).then(|| mean(parts));
    }
    let centre = duals::mean(&parts.losses, q);
    let gradient = parts.gradient(q);
    let k = parts.pairs.moment(&parts.combine(q, |q, s, l| -parts.beta * q * s * (l - centre)));
    let variance: f64 = parts.combine(q, |q, _, l| q * (l - centre) * (l - centre)).iter().sum();
    let mut hessian = parts.curvature(q, |q| q / tau);
    add_outer(&mut hessian, -1.0 / tau, &gradient, &gradient);
    add_outer(&mut hessian, -1.0 / (tau * variance), &k, &k);
    Some(Local { value: worst.value, gradient, hessian })
}

fn wdpo(parts: &Parts, rho: f64, w: &[f64]) -> Option<Local> {
    let mut local = mean(parts);
    if rho > 0.0 {
        let (length, scale) = (norm(w), rho * parts.beta);
        if length == 0.0 {
            return None;
        }
        local.value += scale * length;
        local.gradient.iter_mut().zip(w).for_each(|(g, w)| *g += scale * w / length);
        add_diagonal(&mut local.hessian, scale / length, w.len());
        add_outer(&mut local.hessian, -scale / length.powi(3), w, w);
    }
    Some(local)
}

fn wdpo_gradient(parts: &Parts, rho: f64, w: &[f64]) -> Option<Local> {
    let mut local = mean(parts);
    if rho > 0.0 {
        let (d, length, p, beta) = (w.len(), norm(w), &parts.pairs.masses, parts.beta);
        if length == 0.0 {
            return None;
        }
        // The penalty is scale |w| r, r^2 = E s^2; with c = s (1 - s): ds/dz = -c, dc/dz = -c (1 - 2 s).
        let scale = rho * beta;
        let r = parts.combine(p, |p, s, _| p * s * s).iter().sum::<f64>().sqrt();
        let d_square = parts.pairs.moment(&parts.combine(p, |p, s, _| -2.0 * beta * p * s * s * (1.0 - s)));
        let dd_square = parts.pairs.second_moment(&parts.combine(p, |p, s, _| {
            let c = s * (1.0 - s);
            2.0 * beta * beta * p * (c * c + s * c * (1.0 - 2.0 * s))
        }));
        let d_r: Vec<f64> = d_square.iter().map(|m| m / (2.0 * r)).collect();
        let unit: Vec<f64> = w.iter().map(|w| w / length).collect();
        local.value += scale * length * r;
        for i in 0..d {
            local.gradient[i] += scale * (r * unit[i] + length * d_r[i]);
        }
        let h = &mut local.hessian;
        add_diagonal(h, scale * r / length, d);
        add_outer(h, -scale * r / length, &unit, &unit);
        add_outer(h, scale, &unit, &d_r);
        add_outer(h, scale, &d_r, &unit);
        h.iter_mut().zip(&dd_square).for_each(|(h, m)| *h += scale * length * m / (2.0 * r));
        add_outer(h, -scale * length / r, &d_r, &d_r);
    }
    Some(local)
}

fn drdpo(parts: &Parts, b: f64) -> Local {
    let least = parts.losses.iter().fold(f64::INFINITY, |a, &l| a.min(l));
    let mut q = parts.combine(&parts.pairs.masses, |p, _, l| p * ((least - l) / b).exp());
    let total: f64 = q.iter().sum();
    q.iter_mut().for_each(|q| *q /= total);
    let gradient = parts.gradient(&q);
    let mut hessian = parts.curvature(&q, |q| -q / b);
    add_outer(&mut hessian, 1.0 / b, &gradient, &gradient);
    Local { value: least - b * total.ln(), gradient, hessian }
}

fn chi2(parts: &Parts, rho: f64) -> Option<Local> {
    let masses = &parts.pairs.masses;
    let worst = duals::chi2_ball(&parts.losses, masses, rho)?;
    let q = &worst.weights;
    if q == masses {
        return (rho <= 0.0).then(|| mean(parts));
    }
    let (scale, eta) = ((1.0 + rho).sqrt(), worst.dual);
    // S = (E (l - eta)_+^2)^(1/2); u = scale p / S above eta.
    let size = (worst.value - eta) / scale;
    let u = parts.combine(masses, |p, _, l| if l > eta { scale * p / size } else { 0.0 });
    let gradient = parts.gradient(q);
    let square = parts.beta * parts.beta;
    let both: Vec<f64> =
        q.iter().zip(&u).zip(&parts.s).map(|((q, u), s)| q * s * (1.0 - s) + u * s * s).collect();
    let mut hessian = parts.pairs.second_moment(&both);
    hessian.iter_mut().for_each(|h| *h *= square);
    let small = 1.0 / (scale * size);
    add_outer(&mut hessian, -small, &gradient, &gradient);
    let k: Vec<f64> = parts.gradient(&u).iter().zip(&gradient).map(|(m, g)| g * small - m).collect();
    add_outer(&mut hessian, -1.0 / (u.iter().sum::<f64>() - small), &k, &k);
    Some(Local { value: worst.value, gradient, hessian })
}
