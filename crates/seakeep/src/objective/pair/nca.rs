//! NCA on pairs (Chen et al., arXiv 2402.05369, eq. 12 with two responses):
//!
//! ```text
//! l = -log sigmoid(beta u_w) - 1/2 log sigmoid(-beta u_w) - 1/2 log sigmoid(-beta u_l)
//! ```

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, s: &Sample) -> Jet {
    let (w, l) = (beta * s.chosen.ratio, beta * s.rejected.ratio);
    -w.log_sigmoid() - 0.5 * (-w).log_sigmoid() - 0.5 * (-l).log_sigmoid()
}
