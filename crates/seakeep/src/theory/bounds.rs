//! What the theory promises, with its constants.
//!
//! `|h| <= |theta - theta_ref| |x| <= 2B * 2`, so a margin is at most `4 beta B`, a loss lies in `[0, K]` with
//! `K = |log sigmoid(-4 beta B)|`, and the expected loss is gamma-strongly convex in the covariance norm with
//! `gamma = beta^2 e^(4 beta B) / (1 + e^(4 beta B))^2`.
//!
//! Robust estimators (arXiv 2502.01930): with probability `1 - delta`
//! `|theta_n - theta|_Sigma^2 <= (8 R^2 log(2/delta) / (gamma^2 n))^(1/2)`. It comes of strong convexity,
//! `gamma/2 |theta_n - theta|^2 <= F(theta_n) - F(theta) <= 2 sup |F_n - F|`, and of Hoeffding's inequality,
//! `|F_n - F| <= R (log(2/delta) / (2n))^(1/2)` for quantities of range R. The square root of the square root is where
//! `n^(-1/4)` comes from. Here
//!
//! - for WDPO `R = K`: the exact dual is the mean loss plus a term without data;
//! - for KLDPO `R = tau (e^(K/tau) - 1)` with the population's tau: for a fixed tau the dual is
//!   `tau log E e^(l/tau)`, and `|log a - log b| <= |a - b|` for `a, b >= 1`.
//!
//! As drawn here the bound takes Hoeffding's inequality at one theta and one tau, and so is the smallest that the argument can give;
//! a bound that is uniform over the ball is larger by a factor of the dimension and of log n. `Sigma` is the covariance under the worst case
//! of the population optimum. For Euclidean errors divide by its smallest eigenvalue lambda.
//!
//! DPO: `|theta_n - theta*|_Sigma <= (beta/gamma) ((d + log(1/delta)) / n)^(1/2)` up to a universal constant, taken as
//! 1 here (Zhu, Jordan and Jiao, arXiv 2301.11270; Chowdhury et al., arXiv 2403.00409).

use super::estimator::{loss, sigmoid};

/// The probability that a bound may fail.
pub const DELTA: f64 = 0.05;

/// The constants of a class of policies.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    /// Strong convexity of the expected loss in the covariance norm.
    pub gamma: f64,
    /// The largest loss K, nats.
    pub largest_loss: f64,
    beta: f64,
}

impl Constants {
    /// Of policies with the factor `beta` in the ball of radius `bound`.
    pub fn new(beta: f64, bound: f64) -> Constants {
        let most = 4.0 * beta * bound;
        let gamma = beta * beta * sigmoid(most) * sigmoid(-most);
        Constants { gamma, largest_loss: loss(-most), beta }
    }

    /// The bound on the covariance norm of DPO's error.
    pub fn dpo(&self, dimension: usize, n: usize) -> f64 {
        self.beta / self.gamma * ((dimension as f64 - DELTA.ln()) / n as f64).sqrt()
    }

    /// The bound on the covariance norm of the exact WDPO's error.
    pub fn wdpo(&self, n: usize) -> f64 {
        self.robust(self.largest_loss, n)
    }

    /// The bound on the covariance norm of KLDPO's error.
    pub fn kldpo(&self, tau: f64, n: usize) -> f64 {
        self.robust(tau * (self.largest_loss / tau).exp_m1(), n)
    }

    fn robust(&self, range: f64, n: usize) -> f64 {
        (8.0 * range * range * (2.0 / DELTA).ln() / (self.gamma * self.gamma * n as f64)).powf(0.25)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_and_rates_by_hand() {
        let c = Constants::new(1.0, 0.5);
        let e2 = 2f64.exp();
        assert!((c.gamma - e2 / (1.0 + e2).powi(2)).abs() < 1e-15);
        assert!((c.largest_loss - (1.0 + e2).ln()).abs() < 1e-15);
        assert!((c.wdpo(16) / c.wdpo(256) - 2.0).abs() < 1e-12, "n^-1/4");
        assert!((c.dpo(8, 16) / c.dpo(8, 256) - 4.0).abs() < 1e-12, "n^-1/2");
        // A tau so large that the ball is a point: the loss itself.
        assert!((c.kldpo(1e9, 100) / c.wdpo(100) - 1.0).abs() < 1e-6);
    }
}
