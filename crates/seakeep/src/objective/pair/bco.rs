//! BCO on pairs (Jung et al., arXiv 2404.04656) without its reward shift, as TRL's `bco_pair`:
//! `l = -log sigmoid(beta u_w) - log sigmoid(-beta u_l)`.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, s: &Sample) -> Jet {
    -(beta * s.chosen.ratio).log_sigmoid() - (-beta * s.rejected.ratio).log_sigmoid()
}
