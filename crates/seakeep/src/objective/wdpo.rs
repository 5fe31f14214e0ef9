//! WDPO: the first-order form of the worst case over a Wasserstein ball around the data
//! (Xu et al., arXiv 2502.01930, Algorithm "WDPO"): the mean loss plus a penalty on its gradient with respect to
//! the input embeddings `e_i` (the outputs of the embedding lookup) of a pair,
//!
//! ```text
//! L = (1/n) sum_i l_i + rho ( (1/n) sum_i g_i )^(1/2),      g_i = || d l_i / d e_i ||^2
//! ```
//!
//! The root is over the whole global batch. Its gradient needs `d g_i / d theta`, for which, with
//! `v_i = d l_i / d e_i`,
//!
//! ```text
//! d g_i / d theta = 2 d/d eps [ d l_i / d theta at e_i + eps v_i ]   at eps = 0:
//! ```
//!
//! one tangent pass seeded with `v_i`, one tangent of the backward pass seeded with `l'' h_dot`
//! ([`Loss::d_along`](super::Loss::d_along)). The training step runs them; here are only the numbers.
//!
//! With a rule that weights pairs, the ball is around the reweighted data: the penalty is
//! `rho ( sum_i w_i g_i )^(1/2)`, the weights constant in the gradient, and `l_i` is what the rule made of the pair
//! (after flips). A pair of weight 0 costs and counts nothing.
//!
//! # Where the authors' code differs
//! `official`: `L = (1/n) sum_i (l_i + rho g_i)`, squared, no root, with two separate sequences. (The paper's
//! appendix: a root over a micro-batch of few samples is noisy. Over the global batch that reason is gone.)

/// How the prompt counts in `g_i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptGradient {
    /// A sample `(x, y_w, y_l)` holds the prompt once: over its tokens the gradient is the sum of both
    /// branches' gradients. The paper's definition, the default. (Of a pair whose completions keep different parts of it, as
    /// `truncation_mode = keep_end` may leave them, it stands twice: as under `Separate`.)
    Shared,
    /// Two sequences, whose squared norms are added: the authors' code.
    Separate,
}

/// Root or square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `rho sqrt(mean g)`
    Paper,
    /// `rho mean g`
    Official,
}

/// The penalty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalty {
    /// Radius of the ball.
    pub rho: f64,
    /// Root or square.
    pub form: Form,
    /// How the prompt counts.
    pub prompt_gradient: PromptGradient,
}

impl Penalty {
    /// The penalty, from the weighted mean `sum_i w_i g_i` of squared gradient norms over the global batch.
    pub fn value(&self, mean_square: f64) -> f64 {
        match self.form {
            Form::Paper => self.rho * mean_square.sqrt(),
            Form::Official => self.rho * mean_square,
        }
    }

    /// Whether it is linear in that mean, so that its derivative is a constant.
    pub fn is_linear(&self) -> bool {
        self.form == Form::Official
    }

    /// Its derivative with respect to that mean. 0 where all gradients vanish (the root has none there; the penalty is
    /// at its minimum).
    pub fn derivative(&self, mean_square: f64) -> f64 {
        match self.form {
            Form::Paper if mean_square > 0.0 => self.rho / (2.0 * mean_square.sqrt()),
            Form::Paper => 0.0,
            Form::Official => self.rho,
        }
    }
}
