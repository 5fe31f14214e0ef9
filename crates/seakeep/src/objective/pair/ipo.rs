//! Identity preference optimisation (Azar et al., arXiv 2310.12036, eq. 17): `l = (h - 1 / (2 beta))^2`; beta is the
//! paper's tau.
//!
//! Trainers differ: TRL averages log-probabilities over the tokens of a completion (as the authors told them), others sum.
//! `length_normalize` decides; the same beta does not mean the same thing in both.

use super::{Jet, Sample};

/// The loss.
pub(super) fn loss(beta: f64, length_normalize: bool, s: &Sample) -> Jet {
    let (w, l) = (&s.chosen, &s.rejected);
    let h = if length_normalize { w.score / w.tokens - l.score / l.tokens } else { s.margin() };
    (h - 1.0 / (2.0 * beta)).square()
}
