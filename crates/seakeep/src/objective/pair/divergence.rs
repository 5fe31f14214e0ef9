//! f-DPO (Wang et al., arXiv 2309.16240): another divergence between policy and reference than the reverse KL. With
//! `t = pi / ref` a completion's score is `f'(t)` in place of `u = log t`; the constants that f' may have cancel in the
//! margin. Formulas as in TRL's `f_divergence_type`.

use super::Jet;

/// TRL clamps the exponent of the alpha-divergence here.
const ALPHA_EXPONENT: f64 = 80.0;

/// The divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// `f' = log t`
    ReverseKl,
    /// `f' = 1 - 1/t`
    ForwardKl,
    /// `f' = log(2 t / (1 + t))`
    JsDivergence,
    /// `f' = (t^(a-1) - 1) / (a - 1)`
    AlphaDivergence(f64),
}

impl Divergence {
    /// The score of a completion with log-ratio `u`.
    pub(in crate::objective) fn score(self, u: Jet) -> Jet {
        match self {
            Divergence::ReverseKl => u,
            Divergence::ForwardKl => 1.0 - (-u).exp(),
            Divergence::JsDivergence => std::f64::consts::LN_2 + u.log_sigmoid(),
            // The limit a -> 1 is the reverse KL.
            Divergence::AlphaDivergence(a) if (a - 1.0).abs() < 1e-6 => u,
            Divergence::AlphaDivergence(a) => (((a - 1.0) * u).exp_clamped(ALPHA_EXPONENT) - 1.0) / (a - 1.0),
        }
    }
}
