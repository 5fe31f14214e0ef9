//! Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7), with the label smoothing of
//! conservative DPO (Mitchell 2023), as TRL's `loss_type = sigmoid`.
//!
//! With `u = log pi - log ref` of a branch (nats), `z = beta (u_w - u_l)` and `s` the label smoothing:
//!
//! ```text
//! l   = -(1 - s) log sigmoid(z) - s log sigmoid(-z)
//! l'  = -(1 - s) sigmoid(-z) + s sigmoid(z) = sigmoid(z) - (1 - s)      in z
//! l'' = sigmoid(z) sigmoid(-z)                                           in z
//! ```

use super::PairLoss;

/// The DPO pair loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpo {
    /// Strength of the tie to the reference; margin per nat.
    pub beta: f64,
    /// Share of labels taken to be wrong, in `[0, 0.5)`.
    pub label_smoothing: f64,
}

/// `log sigmoid(x)`, exact to rounding for any `x`.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)`, without overflow and without cancellation for negative `x`.
pub(crate) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

impl Dpo {
    /// The loss of a pair with log-ratios `u_w`, `u_l` (nats).
    pub fn loss(&self, u_w: f64, u_l: f64) -> PairLoss {
        let (beta, s) = (self.beta, self.label_smoothing);
        let z = beta * (u_w - u_l);
        // Written with sigmoid(-z) where that is the small number.
        let d = beta * (s * sigmoid(z) - (1.0 - s) * sigmoid(-z));
        let dd = beta * beta * sigmoid(z) * sigmoid(-z);
        PairLoss {
            value: -(1.0 - s) * log_sigmoid(z) - s * log_sigmoid(-z),
            d: [d, -d],
            dd: [[dd, -dd], [-dd, dd]],
        }
    }
}
