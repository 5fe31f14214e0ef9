//! EXO (Ji et al., arXiv 2402.00856, eq. 16): the reverse KL from the policy's preference between the two completions to
//! the data's, `(1 - s, s)`. With `z = beta h`:
//!
//! ```text
//! l = sigmoid(z) (log sigmoid(z) - log(1 - s)) + sigmoid(-z) (log sigmoid(-z) - log s)
//! ```

use super::{Jet, Sample};

/// The loss; `smoothing` is above 0.
pub(super) fn loss(beta: f64, smoothing: f64, s: &Sample) -> Jet {
    let z = beta * s.margin();
    z.sigmoid() * (z.log_sigmoid() - (-smoothing).ln_1p())
        + (-z).sigmoid() * ((-z).log_sigmoid() - smoothing.ln())
}
