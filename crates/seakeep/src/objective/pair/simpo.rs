//! SimPO (Meng et al., arXiv 2405.14734, eq. 6): no reference, log-probabilities averaged over tokens, a target margin:
//! `l = -log sigmoid(beta (log pi(y_w)/|y_w| - log pi(y_l)/|y_l|) - gamma)`. Label smoothing as TRL's.

use super::sigmoid::smoothed;
use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, gamma: f64, smoothing: f64, s: &Sample) -> Jet {
    let (w, l) = (&s.chosen, &s.rejected);
    smoothed(beta * (w.logp / w.predicted - l.logp / l.predicted) - gamma, smoothing)
}
