//! The hinge loss of SLiC-HF (Zhao et al., arXiv 2305.10425) and RSO (Liu et al., arXiv 2309.06657, eq. 5):
//! `l = max(0, 1 - beta h)`.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, s: &Sample) -> Jet {
    (1.0 - beta * s.margin()).relu()
}
