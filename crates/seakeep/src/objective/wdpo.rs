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
//! ([`PairLoss::d_along`](super::PairLoss::d_along)). The training step runs them; here are only the numbers.
//!
//! # Where the authors' code differs
//! `official`: `L = (1/n) sum_i (l_i + rho g_i)`, squared, no root, with two separate sequences. (The paper's
//! appendix: a root over a micro-batch of few samples is noisy. Over the global batch that reason is gone.)

/// How the prompt counts in `g_i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptGradient {
    /// A sample `(x, y_w, y_l)` holds the prompt once: over its tokens the gradient is the sum of both
    /// branches' gradients. The paper's definition, the default.
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
    /// The penalty, from the squared gradient norms `g` of the global batch.
    pub fn value(&self, g: &[f64]) -> f64 {
        match self.form {
            Form::Paper => self.rho * mean(g).sqrt(),
            Form::Official => self.rho * mean(g),
        }
    }

    /// Its derivative with respect to each `g_i`: the same for all, since it is a function of their mean.
    /// 0 where all gradients vanish (the root has none there; the penalty is at its minimum).
    pub fn derivative(&self, g: &[f64]) -> f64 {
        let n = g.len() as f64;
        match self.form {
            Form::Paper if mean(g) > 0.0 => self.rho / (2.0 * n * mean(g).sqrt()),
            Form::Paper => 0.0,
            Form::Official => self.rho / n,
        }
    }
}

fn mean(g: &[f64]) -> f64 {
    g.iter().sum::<f64>() / g.len() as f64
}
