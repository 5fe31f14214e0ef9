//! CPO (Xu et al., arXiv 2401.08417, eq. 5): DPO with a uniform reference, and the likelihood of the chosen completion:
//! `l = -log sigmoid(beta (log pi(y_w) - log pi(y_l))) + alpha NLL(y_w)`. Label smoothing as TRL's.

use super::sigmoid::smoothed;
use super::{Jet, Sample, sft};

/// The loss.
pub(super) fn loss(beta: f64, alpha: f64, smoothing: f64, s: &Sample) -> Jet {
    smoothed(beta * (s.chosen.logp - s.rejected.logp), smoothing) + alpha * sft::loss(s)
}
