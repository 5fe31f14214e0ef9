//! REBEL (Gao et al., arXiv 2404.16767, eq. 9) on rewards in the data; with the rules and the penalty of this program the
//! W-, KL- and chi-square forms of DRO-REBEL (Sahu and Wells, arXiv 2509.19104). The margin is regressed on the
//! difference of rewards; beta is 1/eta:
//!
//! ```text
//! l = (beta h - (r(y_w) - r(y_l)))^2
//! ```

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, s: &Sample) -> Jet {
    (beta * s.margin() - (s.chosen.reward - s.rejected.reward)).square()
}
