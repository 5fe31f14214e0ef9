//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), as `torch.optim.AdamW`, and gradient clipping.

use rayon::prelude::*;

use half::bf16;
use seakeep_kernels::gemm::Elements;
use seakeep_kernels::vectorise;

use super::moments::Moments;
use crate::model::{ParamSpec, Stored, TensorMap, Tensors, Weights};

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
    /// Whether moments are kept in 8 bits ([`Moments`]).
    pub eight_bits: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, eight_bits: false }
    }
}

/// The optimizer's memory. The default is that of nothing that is trained.
#[derive(Default)]
pub struct AdamWState {
    /// Steps taken.
    pub step: usize,
    /// Mean gradient (`exp_avg`), of each tensor; empty for one that is not trained.
    pub mean: Vec<Moments>,
    /// Mean squared gradient (`exp_avg_sq`).
    pub square: Vec<Moments>,
}

impl AdamWState {
    /// Before the first step, as `adamw` wants it kept.
    pub fn new(map: &TensorMap, adamw: &AdamW) -> Self {
        let zeros = |signed: bool| {
            let len = |p: &ParamSpec| if p.trainable { p.rows * p.cols } else { 0 };
            map.params.iter().map(|p| Moments::zeros(len(p), adamw.eight_bits, signed)).collect()
        };
        AdamWState { step: 0, mean: zeros(true), square: zeros(false) }
    }
}

/// Elements per parallel piece: whole blocks of moments.
const PIECE: usize = 1 << 15;

impl AdamW {
    /// One step on `factor` (see [`clipping`]) times the gradients:
    ///
    /// ```text
    /// w -= lr decay w;   m = b1 m + (1 - b1) g;   s = b2 s + (1 - b2) g^2
    /// w -= lr / (1 - b1^t) m / (sqrt(s / (1 - b2^t)) + eps)
    /// ```
    ///
    /// Weights in bf16 are computed in f32 and rounded up or down at random, so that on average nothing is lost of steps that are
    /// smaller than their last digit (Zamirai et al., arXiv 2010.06192); the same step rounds the same way.
    ///
    /// # Panics
    /// If a quantised weight is to be trained.
    pub fn step(
        &self,
        map: &TensorMap,
        weights: &mut Weights,
        (grads, factor): (&Tensors, f32),
        state: &mut AdamWState,
        lr: f64,
    ) {
        state.step += 1;
        let (step, t) = (state.step as u32, state.step as i32);
        let step_size = (lr / (1.0 - self.beta1.powi(t))) as f32;
        let root = (1.0 - self.beta2.powi(t)).sqrt() as f32;
        let (b1, b2, eps) = (self.beta1 as f32, self.beta2 as f32, self.epsilon as f32);
        let (c1, c2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let tensors = weights.iter_mut().zip(grads.iter()).zip(&mut state.mean).zip(&mut state.square);
        let tensors = tensors.zip(&map.params).enumerate().filter(|(_, (_, spec))| spec.trainable);
        // On a thread of the pool: from outside, each tensor would be handed over and waited for.
        rayon::scope(|_| {
            for (tensor, ((((w, g), m), s), spec)) in tensors {
                let keep = if spec.decays { (1.0 - lr * self.weight_decay) as f32 } else { 1.0 };
                let update = |w: &mut [f32], g: &[f32], m: &mut [f32], s: &mut [f32]| {
                    let n = w.len();
                    let (g, m, s) = (&g[..n], &mut m[..n], &mut s[..n]);
                    vectorise!(for i in 0..n {
                        let g = factor * g[i];
                        m[i] = b1 * m[i] + c1 * g;
                        s[i] = b2 * s[i] + c2 * g * g;
                        w[i] = keep * w[i] - step_size * m[i] / (s[i].sqrt() / root + eps);
                    });
                };
                let moments =
                    m.parts_mut(PIECE).into_par_iter().zip(s.parts_mut(PIECE)).zip(g.par_chunks(PIECE));
                match w {
                    Stored::F32(w) => w.par_chunks_mut(PIECE).zip(moments).for_each(|(w, ((m, s), g))| {
                        m.change(|m| s.change(|s| update(w, g, m, s)));
                    }),
                    Stored::Bf16(w) => {
                        w.par_chunks_mut(PIECE).zip(moments).enumerate().for_each(|(p, (w, ((m, s), g)))| {
                            let mut exact = vec![0.0; w.len()];
                            Elements::Bf16(w).read(0, &mut exact);
                            m.change(|m| s.change(|s| update(&mut exact, g, m, s)));
                            round_at_random(w, &exact, ([step, tensor as u32], (p * PIECE) as u32));
                        });
                    }
                    Stored::Blocks(_) => panic!("`{}` is quantised and cannot be trained", spec.name),
                }
            }
        });
    }
}

/// Writes numbers rounded to one of their two neighbours in bf16, to each the more likely the nearer it is; which one follows from
/// `key` and the element's number, counted from `first` on.
fn round_at_random(to: &mut [bf16], from: &[f32], (key, first): ([u32; 2], u32)) {
    // As MurmurHash3's finalizer does.
    #[inline(always)]
    fn mix(h: u32, x: u32) -> u32 {
        let h = (h ^ x).wrapping_mul(0x85eb_ca6b);
        (h ^ h >> 13).wrapping_mul(0xc2b2_ae35) ^ h >> 16
    }
    let key = key.into_iter().fold(0x9e37_79b9, mix);
    vectorise!(for (i, (to, x)) in to.iter_mut().zip(from).enumerate() {
        let (bits, random) = (x.to_bits(), mix(key, first.wrapping_add(i as u32)) >> 16);
        // Infinities stay, and of what is not a number no bits that say so are lost.
        let special = bits >> 16 | u32::from(x.is_nan()) << 6;
        let rounded = if x.is_finite() { bits.wrapping_add(random) >> 16 } else { special };
        *to = bf16::from_bits(rounded as u16);
    });
}

/// The factor that shortens a gradient of length `norm` to `max_norm` if it is longer, as `torch.nn.utils.clip_grad_norm_`. A `max_norm`
/// of 0 switches clipping off.
pub fn clipping(norm: f64, max_norm: f64) -> f32 {
    let factor = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && factor < 1.0 { factor as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Model;

    #[test]
    fn rounding_at_random_is_right_on_average() {
        // 1 + 3/8 of a step of bf16 at 1, which is 2^-7.
        let x = 1.0 + 0.375 / 128.0;
        let mut to = vec![bf16::ZERO; 1 << 16];
        round_at_random(&mut to, &vec![x; 1 << 16], ([3, 1], 7));
        let up = to.iter().filter(|w| w.to_f32() == 1.0 + 1.0 / 128.0).count();
        assert_eq!(to.iter().filter(|w| w.to_f32() == 1.0).count() + up, to.len(), "its neighbours");
        // 65,536 draws: the share's standard deviation is 0.002.
        assert!((up as f64 / to.len() as f64 - 0.375).abs() < 0.01, "{up}");
        let mut later = vec![bf16::ZERO; 100];
        round_at_random(&mut later, &[x; 100], ([3, 1], 57));
        assert_eq!(later, to[50..150], "what is drawn follows from the element's number");
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::from_bits(0x7f80_0001)];
        round_at_random(&mut later[..5], &special, ([0, 0], 0));
        assert!(later[0].is_nan() && later[4].is_nan(), "{:?}", &later[..5]);
        assert_eq!(later[1..4], [bf16::INFINITY, bf16::NEG_INFINITY, bf16::NEG_ZERO]);
    }

    #[test]
    fn a_clipped_step_is_a_step_on_the_shortened_gradient() {
        assert_eq!((clipping(0.5, 1.0), clipping(5.0, 0.0)), (1.0, 1.0));
        assert!((clipping(5.0, 2.0) - 0.4).abs() < 1e-6);
        let config = json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8
        });
        let stepped = |scale: f32, factor: f32| {
            let mut model = Model::random(&config, 1).unwrap();
            let (adamw, mut grads) =
                (AdamW { weight_decay: 0.1, ..AdamW::default() }, Tensors::zeros(&model.map));
            grads.iter_mut().flatten().enumerate().for_each(|(i, g)| *g = scale * (i % 7) as f32);
            let mut state = AdamWState::new(&model.map, &adamw);
            for _ in 0..3 {
                adamw.step(&model.map, &mut model.weights, (&grads, factor), &mut state, 1e-2);
            }
            model.weights
        };
        let (one, other) = (stepped(0.25, 1.0), stepped(1.0, 0.25));
        for (a, b) in one.iter().zip(other.iter()) {
            let mut values = [vec![0.0; a.elements().len()], vec![0.0; a.elements().len()]];
            a.elements().read(0, &mut values[0]);
            b.elements().read(0, &mut values[1]);
            assert_eq!(values[0], values[1]);
        }
    }
}
