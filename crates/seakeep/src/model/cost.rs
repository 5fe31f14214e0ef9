//! What the passes cost in floating-point operations and memory, from shapes alone.
//!
//! Counted is what the mathematics ask for: a multiplication and an addition for each weight and position, attention for each
//! position that a position sees, what comes after attention in the last layer and the vocabulary projection for each predicted token
//! (adapters of that layer as of the others). Not counted are norms, activations and
//! the softmax (well under 1%), and nothing that is computed a second time to save memory. Of a map `y = x w^T`, in products
//! of the size of the forward pass's:
//!
//! | pass | linear map | its weight's gradient | attention |
//! |---|---|---|---|
//! | forward | 1 | | 1 (`q k`, `p v`) |
//! | backward | 1 | 1 | 2 |
//! | tangent | 1 | | 2 |
//! | tangent of backward | 1 | 1 | 4 |
//!
//! The two weight gradients of a penalised loss, `d_y x` and `td_y x + d_y t_x`, need two products together, since a factor on
//! the second can go into `x + c t_x`.

use seakeep_kernels::projection::{CHUNK, KEPT};

use super::config::ModelConfig;
use super::families;
use super::lora::adapter_parameters;
use super::tensors::FileTensor;
use super::weights::Keep;
use crate::Result;
use crate::batch::Batch;
use crate::formats::gguf::GgmlType;
use crate::formats::{LoraConfig, ModelSource};

/// The sizes of a model that decide what its passes cost.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Parameters, with those of adapters.
    pub parameters: usize,
    /// Parameters that are trained.
    pub trainable: usize,
    /// Weights of the layers' linear maps.
    linear: usize,
    /// Those of them that come after the last layer's attention.
    last: usize,
    /// Weights of the vocabulary projection.
    head: usize,
    /// Weights of adapters.
    adapters: usize,
    /// Elements of the largest tensor.
    pub largest: usize,
    config: ModelConfig,
}

/// Floating-point operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operations {
    /// Of a forward pass.
    pub forward: f64,
    /// Of a backward pass.
    pub backward: f64,
    /// Of the tangent passes of an input-gradient penalty, forward and backward.
    pub tangent: f64,
    /// Those of all these that are attention's; the others are products with weights.
    pub attention: f64,
}

impl Operations {
    /// All of them.
    pub fn total(&self) -> f64 {
        self.forward + self.backward + self.tangent
    }

    /// So many times these.
    pub fn times(&self, n: f64) -> Operations {
        Operations {
            forward: n * self.forward,
            backward: n * self.backward,
            tangent: n * self.tangent,
            attention: n * self.attention,
        }
    }
}

impl std::ops::AddAssign for Operations {
    fn add_assign(&mut self, other: Operations) {
        self.forward += other.forward;
        self.backward += other.backward;
        self.tangent += other.tangent;
        self.attention += other.attention;
    }
}

/// Floats of a position in a layer.
struct Widths {
    queries: usize,
    /// Queries, keys and values.
    qkv: usize,
    /// The feed-forward layer's, before its activation.
    inner: usize,
    /// Queries and keys before their norms, where they have some.
    normed: usize,
}

impl Widths {
    fn of(c: &ModelConfig) -> Widths {
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Widths {
            queries,
            qkv: queries + 2 * keys,
            inner: if c.gated { 2 * c.intermediate } else { c.intermediate },
            normed: if c.qk_norm { queries + keys } else { 0 },
        }
    }
}

/// Floats of `LayerActivations`, of a position.
fn layer_activations(c: &ModelConfig) -> usize {
    let Widths { queries, qkv, inner, normed } = Widths::of(c);
    2 * c.hidden + qkv + queries + 2 * c.heads + inner + normed
}

/// What a batch takes of memory between its forward and its backward pass, in positions' activations: its positions, and of so many
/// predictions the logits that are kept. One counts at most as a position: of more than some hundred none are kept.
pub(crate) fn room(c: &ModelConfig, positions: usize, kept: usize) -> usize {
    let logits = c.vocab_size as f64 / (c.layers * layer_activations(c)) as f64;
    positions + (kept as f64 * logits.min(1.0)) as usize
}

impl Sizes {
    /// Of a model of this configuration, perhaps with adapters.
    ///
    /// # Errors
    /// As [`check_targets`](super::check_targets).
    pub fn of(config: &ModelConfig, lora: Option<&LoraConfig>) -> Result<Sizes> {
        let (map, params) = families::tensors(config);
        let size = |weight: super::ParamId| map.params[weight.0].rows * map.params[weight.0].cols;
        let adapters = lora.map_or(Ok(0), |lora| adapter_parameters(config, lora))?;
        let parameters = map.count() + adapters;
        Ok(Sizes {
            parameters,
            trainable: if lora.is_some() { adapters } else { parameters },
            linear: params.layers.iter().flat_map(|layer| layer.linears()).map(|l| size(l.weight)).sum(),
            last: params.layers.last().map_or(0, |l| l.after_attention().map(|l| size(l.weight)).sum()),
            head: size(params.head),
            adapters,
            largest: map.params.iter().map(|p| p.rows * p.cols).max().unwrap_or(0),
            config: config.clone(),
        })
    }

    /// What a batch costs in training; with `penalty` also the tangent passes.
    pub fn operations(&self, batch: &Batch, penalty: bool) -> Operations {
        let (positions, predictions) = (batch.rows() as f64, batch.predictions.len() as f64);
        let (all, read) = ((self.linear - self.last) as f64, (self.last + self.head) as f64);
        let maps = 2.0 * (all * positions + read * predictions);
        let adapters = 2.0 * self.adapters as f64 * positions;
        let attention = self.attention(batch);
        // Adapters train themselves alone: no gradient of the maps.
        let gradients = adapters + if self.adapters == 0 { maps } else { 0.0 };
        let forward = maps + adapters + attention;
        let backward = maps + adapters + gradients + 2.0 * attention;
        let tangent = 2.0 * (maps + adapters) + gradients + 6.0 * attention;
        let (tangent, attention) = if penalty { (tangent, 9.0 * attention) } else { (0.0, 3.0 * attention) };
        Operations { forward, backward, tangent, attention }
    }

    /// `q k` and `p v` of all layers: each position with those that it sees.
    fn attention(&self, batch: &Batch) -> f64 {
        let seen = |window: Option<usize>| -> f64 {
            let of = |p: &u32| (*p as usize + 1).min(window.unwrap_or(usize::MAX)) as f64;
            batch.positions.iter().map(of).sum()
        };
        let mut known: Vec<(Option<usize>, f64)> = Vec::new();
        let mut sum = 0.0;
        for layer in 0..self.config.layers {
            let window = self.config.windows.get(layer).copied().flatten();
            let at = known.iter().position(|(w, _)| *w == window).unwrap_or_else(|| {
                known.push((window, seen(window)));
                known.len() - 1
            });
            sum += known[at].1;
        }
        4.0 * (self.config.heads * self.config.head_dim) as f64 * sum
    }

    /// Bytes that the passes over a batch of `positions` rows with `predictions` predicted tokens need at a time: what the forward
    /// pass keeps, with `penalty` also what the passes after it keep for each other, and what is there while they run. The last layer, which
    /// keeps less, is counted as the others.
    pub fn activation_bytes(
        &self,
        (positions, predictions): (usize, usize),
        penalty: bool,
        gradient_checkpointing: bool,
    ) -> usize {
        let (c, Widths { queries, qkv, inner, normed }) = (&self.config, Widths::of(&self.config));
        // `LayerActivations`, `LayerGradients` and `LayerSources`, of a position.
        let activations = layer_activations(c);
        let gradients = 3 * c.hidden + qkv + queries + c.intermediate + normed;
        let sources = 2 * c.hidden + qkv + inner;
        // They replace each other layer by layer, in buffers of the same width.
        let either = 3 * c.hidden + qkv + queries + inner + normed;
        let (forward, between) = match gradient_checkpointing {
            true => (c.hidden, 2 * c.hidden),
            false => (activations, either),
        };
        // Of the layer whose turn it is: gradients, and what is computed again.
        let mut passing = 6 * c.hidden + qkv + queries + inner + 2 * c.intermediate;
        let mut kept = c.layers * forward + 2 * c.hidden;
        if penalty {
            kept += c.layers * between + 2 * c.hidden;
            passing += gradients + sources;
        }
        if gradient_checkpointing {
            passing += activations;
        }
        let logits = self.logits_at_a_time(predictions, penalty) * c.vocab_size;
        4 * (positions * (kept + passing) + predictions * 2 * c.hidden + logits)
    }

    /// Rows of logits that there are at a time, of so many predictions: a chunk's, with the penalty their tangents beside them; without, those
    /// of few predictions are kept for the weight's gradient.
    pub fn logits_at_a_time(&self, predictions: usize, penalty: bool) -> usize {
        let chunk = predictions.min(CHUNK);
        match penalty {
            true => 2 * chunk,
            false if predictions <= KEPT && self.adapters == 0 => predictions,
            false => chunk,
        }
    }

    /// Bytes that a forward pass needs at a time which keeps nothing: of the layer whose turn it is, and logits.
    pub fn scoring_bytes(&self, (positions, predictions): (usize, usize)) -> usize {
        let c = &self.config;
        // Attention's output in the order of its tasks; the activation's output; the layer's.
        let passing = Widths::of(c).queries + c.intermediate + c.hidden;
        let logits = predictions.min(CHUNK) * c.vocab_size;
        4 * (positions * (layer_activations(c) + passing) + predictions * 2 * c.hidden + logits)
    }

    /// Bytes of the weights of the model in `source`, without adapters, where they are kept as `keep` says.
    pub fn weight_bytes(&self, source: &ModelSource, keep: Keep) -> usize {
        let (map, params) = families::tensors(&self.config);
        let matrices = params.matrices(&map);
        let ggml = |name: &str| (0..64).filter_map(GgmlType::from_id).find(|t| t.name() == name);
        let of_blocks = |n: usize, t: GgmlType| n.div_ceil(t.block().0) * t.block().1;
        let of = |file: &FileTensor| {
            let n: usize = file.shape.iter().product();
            let is_matrix = file.parts.iter().any(|(id, _)| matrices[id.0]);
            let stored = || source.weights.type_name(&file.name).and_then(|name| ggml(&name));
            match keep {
                _ if !is_matrix => 4 * n,
                Keep::F32 => 4 * n,
                Keep::Bf16 => 2 * n,
                Keep::Quantised(t) => of_blocks(n, t),
                // Other formats than blocks and bf16 become f32.
                Keep::AsStored => match stored() {
                    Some(t) if t.block().0 > 1 || t == GgmlType::BF16 => of_blocks(n, t),
                    _ => 4 * n,
                },
            }
        };
        map.files.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Sharing;
    use serde_json::json;

    fn config(more: serde_json::Value) -> ModelConfig {
        let mut all = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32
        });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ModelConfig::from_json(&all).unwrap()
    }

    /// A prompt of 3 tokens, completions of 2 and 4.
    fn batch(sharing: Sharing) -> Batch {
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3], &[&[4, 5], &[6, 7, 8, 9]], sharing);
        batch
    }

    #[test]
    fn logits_take_the_room_of_positions() {
        // A layer keeps 2 x 16 of the residual stream, 16 + 2 x 8 of queries, keys and values, 16 + 2 x 4 of attention, 2 x 24.
        let row = 2 * (32 + 32 + 24 + 48);
        assert_eq!(room(&config(json!({})), 7, 0), 7);
        assert_eq!(room(&config(json!({})), 7, 6), 7 + 6 * 100 / row);
        assert_eq!(room(&config(json!({"vocab_size": 1000})), 7, 6), 7 + 6);
    }

    #[test]
    fn operations_are_those_of_a_count_by_hand() {
        let sizes = Sizes::of(&config(json!({})), None).unwrap();
        // A layer: q and o [16, 16], k and v [8, 16], gate, up and down [24, 16].
        let maps = 2 * (2 * 256 + 2 * 128 + 3 * 384);
        let seen = 1 + 2 + 3 + 4 + (4 + 5 + 6);
        // In the last layer o, gate, up and down for the predicting rows alone.
        let last = 2 * (256 + 3 * 384);
        let products = |positions: usize| ((2 * maps - last) * positions + (last + 2 * 16 * 100) * 6) as f64;
        // Two products of a query and a key, or a probability and a value, in two layers.
        let attention = |seen: usize| (2 * 2 * 2 * 16 * seen) as f64;
        let found = sizes.operations(&batch(Sharing::Shared), true);
        assert_eq!(found.forward, products(7) + attention(seen));
        assert_eq!(found.backward, 2.0 * found.forward);
        assert_eq!(found.tangent, 3.0 * products(7) + 6.0 * attention(seen));
        assert_eq!(found.attention, 9.0 * attention(seen));
        assert_eq!(sizes.operations(&batch(Sharing::Shared), false).tangent, 0.0);
        let apart = sizes.operations(&batch(Sharing::Separate), false);
        assert_eq!(apart.forward, products(10) + attention(seen + 1 + 2 + 3));
        // A window of two sees two.
        let window = json!({"model_type": "mistral", "sliding_window": 2});
        let windowed = Sizes::of(&config(window), None).unwrap().operations(&batch(Sharing::Shared), false);
        assert_eq!(windowed.forward, products(7) + attention(1 + 2 * 6));
    }

    #[test]
    fn adapters_train_themselves_alone() {
        let lora = LoraConfig { target_modules: vec!["q_proj".into()], ..LoraConfig::plain(2, 4.0) };
        let (all, own) = (
            Sizes::of(&config(json!({})), None).unwrap(),
            Sizes::of(&config(json!({})), Some(&lora)).unwrap(),
        );
        let adapters = 2 * (2 * 16 + 16 * 2);
        assert_eq!((own.trainable, own.parameters), (adapters, all.parameters + adapters));
        let (plain, with) =
            (all.operations(&batch(Sharing::Shared), false), own.operations(&batch(Sharing::Shared), false));
        let more = (2 * adapters * 7) as f64;
        assert_eq!(with.forward, plain.forward + more);
        // Without the gradients of the maps, which cost what their forward pass costs.
        let maps = plain.forward - 2.0 * 2.0 * 2.0 * 16.0 * 25.0;
        assert_eq!(with.backward, plain.backward - maps + 2.0 * more);
    }
}
