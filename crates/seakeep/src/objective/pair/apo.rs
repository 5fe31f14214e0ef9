//! Anchored preference optimisation (D'Oosterlinck et al., arXiv 2408.06266).
//!
//! ```text
//! zero (eq. 7), chosen better than the model's own:   l = 1 - sigmoid(beta u_w) + sigmoid(beta u_l)
//! down (eq. 8), chosen worse than the model's own:    l = sigmoid(beta u_w) + 1 - sigmoid(beta (u_w - u_l))
//! ```
//! `1 - sigmoid(x)` is written `sigmoid(-x)`, which does not cancel.

use super::{Jet, Sample};

/// Chosen up, rejected down.
pub(super) fn zero(beta: f64, s: &Sample) -> Jet {
    (-beta * s.chosen.ratio).sigmoid() + (beta * s.rejected.ratio).sigmoid()
}

/// Both down, the rejected more.
pub(super) fn down(beta: f64, s: &Sample) -> Jet {
    (beta * s.chosen.ratio).sigmoid() + (-beta * (s.chosen.ratio - s.rejected.ratio)).sigmoid()
}
