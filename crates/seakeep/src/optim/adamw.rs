//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW`, and gradient clipping.

use rayon::prelude::*;

use crate::model::{TensorMap, Tensors};

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the mean gradient.
    pub beta1: f64,
    /// Decay of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient.
    pub epsilon: f64,
    /// Decoupled weight decay, for weights but not for biases and norm gains.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimizer's memory.
pub struct AdamWState {
    /// Steps taken.
    pub step: usize,
    /// Mean gradient (`exp_avg`).
    pub mean: Tensors,
    /// Mean squared gradient (`exp_avg_sq`).
    pub square: Tensors,
}

impl AdamWState {
    /// Before the first step.
    pub fn new(map: &TensorMap) -> Self {
        AdamWState { step: 0, mean: Tensors::of_trainable(map), square: Tensors::of_trainable(map) }
    }
}

/// Elements per parallel piece.
const PIECE: usize = 1 << 15;

impl AdamW {
    /// One step:
    ///
    /// ```text
    /// w -= lr decay w;   m = b1 m + (1 - b1) g;   s = b2 s + (1 - b2) g^2
    /// w -= lr / (1 - b1^t) m / (sqrt(s / (1 - b2^t)) + eps)
    /// ```
    pub fn step(
        &self,
        map: &TensorMap,
        weights: &mut Tensors,
        grads: &Tensors,
        state: &mut AdamWState,
        lr: f64,
    ) {
        state.step += 1;
        let t = state.step as i32;
        let step_size = (lr / (1.0 - self.beta1.powi(t))) as f32;
        let root = (1.0 - self.beta2.powi(t)).sqrt() as f32;
        let (b1, b2, eps) = (self.beta1 as f32, self.beta2 as f32, self.epsilon as f32);
        let (c1, c2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let tensors =
            weights.iter_mut().zip(grads.iter()).zip(state.mean.iter_mut()).zip(state.square.iter_mut());
        for ((((w, g), m), s), spec) in tensors.zip(&map.params).filter(|(_, spec)| spec.trainable) {
            let keep = if spec.decays { (1.0 - lr * self.weight_decay) as f32 } else { 1.0 };
            w.par_chunks_mut(PIECE)
                .zip(g.par_chunks(PIECE))
                .zip(m.par_chunks_mut(PIECE))
                .zip(s.par_chunks_mut(PIECE))
                .for_each(|(((w, g), m), s)| {
                    for i in 0..w.len() {
                        m[i] = b1 * m[i] + c1 * g[i];
                        s[i] = b2 * s[i] + c2 * g[i] * g[i];
                        w[i] = keep * w[i] - step_size * m[i] / (s[i].sqrt() / root + eps);
                    }
                });
        }
    }
}

/// Shortens the gradient to length `max_norm` if it is longer, as `torch.nn.utils.clip_grad_norm_`; `norm` is its
/// length. 0 switches clipping off.
pub fn clip(grads: &mut Tensors, norm: f64, max_norm: f64) {
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && factor < 1.0 {
        grads.scale(factor as f32);
    }
}
