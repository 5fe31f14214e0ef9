//! ORPO (Hong et al., arXiv 2403.07691, eqs. 4-7): no reference; the likelihood of the chosen text, and the odds of
//! chosen against rejected. With `a` the mean log-probability of a completion's tokens:
//!
//! ```text
//! log odds(y) = a - log(1 - e^a)
//! l = NLL(x, y_w) - beta log sigmoid(log odds(y_w) - log odds(y_l))
//! ```
//! As in TRL, the likelihood is of prompt and completion, a mean over all their tokens in the batch.

use super::{Branch, Jet, Sample, sft};

/// The loss.
pub(super) fn loss(beta: f64, s: &Sample) -> Jet {
    sft::whole(s) - beta * log_odds(s).log_sigmoid()
}

/// The log-odds ratio of chosen over rejected.
pub(super) fn log_odds(s: &Sample) -> Jet {
    let of = |branch: &Branch| {
        let a = branch.logp / branch.predicted;
        a - a.log1mexp()
    };
    of(&s.chosen) - of(&s.rejected)
}
