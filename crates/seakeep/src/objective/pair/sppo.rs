//! SPPO with hard labels (Wu et al., arXiv 2405.00675, eq. 4.7 with probabilities 1 and 0):
//! `l = (u_w - 1/(2 beta))^2 + (u_l + 1/(2 beta))^2`.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, s: &Sample) -> Jet {
    (s.chosen.ratio - 0.5 / beta).square() + (s.rejected.ratio + 0.5 / beta).square()
}
