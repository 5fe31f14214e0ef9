//! Robust DPO (Chowdhury et al., arXiv 2403.00409, eq. 12): unbiased for the clean loss where a share `s` of the labels
//! is flipped:
//!
//! ```text
//! l = (-(1 - s) log sigmoid(z) + s log sigmoid(-z)) / (1 - 2 s),      z = beta h
//! ```

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, smoothing: f64, s: &Sample) -> Jet {
    let z = beta * s.margin();
    (smoothing * (-z).log_sigmoid() - (1.0 - smoothing) * z.log_sigmoid()) / (1.0 - 2.0 * smoothing)
}
