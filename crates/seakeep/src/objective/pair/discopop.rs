//! DiscoPOP, the log-ratio modulated loss (Lu et al., arXiv 2406.08414, eq. 5): with `z = beta h`,
//!
//! ```text
//! l = -sigmoid(-z/tau) log sigmoid(z) + sigmoid(z/tau) e^-z
//! ```
//! The last product is taken as one exponential: of its factors one overflows where the other vanishes.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, tau: f64, s: &Sample) -> Jet {
    let z = beta * s.margin();
    ((z / tau).log_sigmoid() - z).exp() - (-z / tau).sigmoid() * z.log_sigmoid()
}
