//! Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7): with `z = beta h`,
//!
//! ```text
//! l = -(1 - s) log sigmoid(z) - s log sigmoid(-z)
//! ```
//!
//! `s` is the label smoothing of conservative DPO (Mitchell 2023). TRL 1.16's `sigmoid` takes no notice of
//! `label_smoothing`; earlier versions did, and so do we.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, smoothing: f64, s: &Sample) -> Jet {
    smoothed(beta * s.margin(), smoothing)
}

/// `sigmoid_norm`: the scores averaged over tokens (LMPO and others; TRL's form).
pub(super) fn per_token(beta: f64, s: &Sample) -> Jet {
    let (w, l) = (&s.chosen, &s.rejected);
    -(beta * (w.score / w.tokens - l.score / l.tokens)).log_sigmoid()
}

/// The logistic loss of a margin `z`, with label smoothing.
pub(super) fn smoothed(z: Jet, smoothing: f64) -> Jet {
    -(1.0 - smoothing) * z.log_sigmoid() - smoothing * (-z).log_sigmoid()
}
