//! Where a new model family goes: the names of its tensors on disk, and how they are packed.

use super::blocks::{Linear, Norm};
use super::config::{Family, ModelConfig, NormKind, Positions};
use super::layer::{Layer, Mlp};
use super::tensors::{Pack, ParamId, TensorMap};

/// The ids of all tensors, as the decoder uses them.
#[derive(Clone, Debug)]
pub struct DecoderParams {
    /// Embedding table, `[V, C]`.
    pub embed: ParamId,
    /// Learned positions, `[P, C]`.
    pub positions: Option<ParamId>,
    /// Layers in order.
    pub layers: Vec<Layer>,
    /// Norm before the vocabulary projection.
    pub final_norm: Norm,
    /// Vocabulary projection, `[V, C]`; the embedding table where they are tied. Of a model with a head of labels that
    /// head, `[L, C]`.
    pub head: ParamId,
}

impl DecoderParams {
    /// Of each tensor, whether it is only looked up in or multiplied with, and so may be kept in any form.
    pub(super) fn matrices(&self, map: &TensorMap) -> Vec<bool> {
        let mut found = vec![false; map.params.len()];
        let linears = self.layers.iter().flat_map(Layer::linears).map(|linear| linear.weight);
        linears.chain([self.embed, self.head]).for_each(|id| found[id.0] = true);
        found
    }
}

/// Builds the map of tensors while handing out ids.
struct Builder<'a> {
    map: TensorMap,
    config: &'a ModelConfig,
}

impl Builder<'_> {
    /// A tensor that lies on disk as it does in memory.
    fn whole(&mut self, name: String, rows: usize, cols: usize) -> ParamId {
        let id = self.map.param(name.clone(), rows, cols);
        let shape = if cols == 1 { vec![rows] } else { vec![rows, cols] };
        self.map.file(name, shape, vec![(id, Pack::Whole)]);
        id
    }

    fn norm(&mut self, name: &str) -> Norm {
        self.norm_of(name, self.config.hidden)
    }

    fn norm_of(&mut self, name: &str, width: usize) -> Norm {
        let gain = self.whole(format!("{name}.weight"), width, 1);
        let bias =
            (self.config.norm == NormKind::Layer).then(|| self.whole(format!("{name}.bias"), width, 1));
        Norm { gain, bias, eps: self.config.norm_eps }
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Linear {
        let weight = self.whole(format!("{name}.weight"), outputs, inputs);
        let bias = bias.then(|| self.whole(format!("{name}.bias"), outputs, 1));
        Linear { weight, bias, inputs, outputs, adapter: None }
    }

    /// Several linear maps of the same input in one file tensor (`weight` and, if `bias`, `bias`).
    fn fused<const N: usize>(
        &mut self,
        name: &str,
        labels: [&str; N],
        (outputs, inputs, bias): (usize, usize, bool),
        weight_shape: Vec<usize>,
        pack: impl Fn(usize) -> Pack,
    ) -> [Linear; N] {
        let of = |map: &mut TensorMap, kind: &str, cols: usize, shape: Vec<usize>| {
            let ids = labels.map(|label| map.param(format!("{name}.{kind}{label}"), outputs, cols));
            let parts = ids.iter().enumerate().map(|(i, &id)| (id, pack(i))).collect();
            map.file(format!("{name}.{kind}"), shape, parts);
            ids
        };
        let weights = of(&mut self.map, "weight", inputs, weight_shape);
        let biases = bias.then(|| of(&mut self.map, "bias", 1, vec![N * outputs]));
        std::array::from_fn(|i| {
            let (weight, bias) = (weights[i], biases.map(|b| b[i]));
            Linear { weight, bias, inputs, outputs, adapter: None }
        })
    }

    /// GPT-2's Conv1D: weights `[inputs, N * outputs]`.
    fn conv1d<const N: usize>(
        &mut self,
        name: &str,
        labels: [&str; N],
        outputs: usize,
        inputs: usize,
    ) -> [Linear; N] {
        let total = N * outputs;
        let pack = |i| Pack::Transposed { offset: i * outputs, total };
        self.fused(name, labels, (outputs, inputs, true), vec![inputs, total], pack)
    }

    fn llama_layer(&mut self, i: usize) -> Layer {
        let c = self.config;
        let name = |what: &str| format!("model.layers.{i}.{what}");
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Layer {
            norm1: self.norm(&name("input_layernorm")),
            q: self.linear(&name("self_attn.q_proj"), q_width, c.hidden, c.qkv_bias),
            k: self.linear(&name("self_attn.k_proj"), kv_width, c.hidden, c.qkv_bias),
            v: self.linear(&name("self_attn.v_proj"), kv_width, c.hidden, c.qkv_bias),
            qk_norm: c.qk_norm.then(|| {
                let q = self.norm_of(&name("self_attn.q_norm"), c.head_dim);
                (q, self.norm_of(&name("self_attn.k_norm"), c.head_dim))
            }),
            o: self.linear(&name("self_attn.o_proj"), c.hidden, q_width, c.output_bias),
            norm2: self.norm(&name("post_attention_layernorm")),
            mlp: Mlp {
                gate: Some(self.linear(&name("mlp.gate_proj"), c.intermediate, c.hidden, c.mlp_bias)),
                up: self.linear(&name("mlp.up_proj"), c.intermediate, c.hidden, c.mlp_bias),
                down: self.linear(&name("mlp.down_proj"), c.hidden, c.intermediate, c.mlp_bias),
            },
            window: c.windows[i],
        }
    }

    fn gpt2_layer(&mut self, i: usize) -> Layer {
        let c = self.config;
        let name = |what: &str| format!("transformer.h.{i}.{what}");
        let norm1 = self.norm(&name("ln_1"));
        let [q, k, v] = self.conv1d(&name("attn.c_attn"), [".q", ".k", ".v"], c.hidden, c.hidden);
        let [o] = self.conv1d(&name("attn.c_proj"), [""], c.hidden, c.hidden);
        let norm2 = self.norm(&name("ln_2"));
        let [up] = self.conv1d(&name("mlp.c_fc"), [""], c.intermediate, c.hidden);
        let [down] = self.conv1d(&name("mlp.c_proj"), [""], c.hidden, c.intermediate);
        Layer { norm1, q, k, v, qk_norm: None, o, norm2, mlp: Mlp { gate: None, up, down }, window: None }
    }

    fn gpt_neox_layer(&mut self, i: usize) -> Layer {
        let c = self.config;
        let name = |what: &str| format!("gpt_neox.layers.{i}.{what}");
        let norm1 = self.norm(&name("input_layernorm"));
        let norm2 = self.norm(&name("post_attention_layernorm"));
        let pack = |part| Pack::Interleaved { part, of: 3, head_dim: c.head_dim };
        let shape = (c.hidden, c.hidden, c.qkv_bias);
        let [q, k, v] = self.fused(
            &name("attention.query_key_value"),
            [".q", ".k", ".v"],
            shape,
            vec![3 * c.hidden, c.hidden],
            pack,
        );
        let o = self.linear(&name("attention.dense"), c.hidden, c.hidden, c.output_bias);
        let up = self.linear(&name("mlp.dense_h_to_4h"), c.intermediate, c.hidden, c.mlp_bias);
        let down = self.linear(&name("mlp.dense_4h_to_h"), c.hidden, c.intermediate, c.mlp_bias);
        Layer { norm1, q, k, v, qk_norm: None, o, norm2, mlp: Mlp { gate: None, up, down }, window: None }
    }
}

/// The head of labels, under transformers' name for it in every family.
pub const LABEL_HEAD: &str = "score.weight";

/// The same in ArmoRM's `LlamaForRewardModelWithGating`, where a checkpoint has it in its place.
pub const GATED_HEAD: &str = "regression_layer.weight";

/// The tensors of a model of this configuration, on disk and in memory.
pub fn tensors(config: &ModelConfig) -> (TensorMap, DecoderParams) {
    let mut b = Builder { map: TensorMap::default(), config };
    let (embed, norm, head) = match config.family {
        Family::Gpt2 => ("transformer.wte", "transformer.ln_f", "lm_head"),
        Family::GptNeox => ("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
        _ => ("model.embed_tokens", "model.norm", "lm_head"),
    };
    let table = |name: &str| format!("{name}.weight");
    let embed = b.whole(table(embed), config.vocab_size, config.hidden);
    let positions = matches!(config.positions, Positions::Learned)
        .then(|| b.whole(table("transformer.wpe"), config.max_positions, config.hidden));
    let layers = (0..config.layers)
        .map(|i| match config.family {
            Family::Gpt2 => b.gpt2_layer(i),
            Family::GptNeox => b.gpt_neox_layer(i),
            _ => b.llama_layer(i),
        })
        .collect();
    let final_norm = b.norm(norm);
    let head = match config.labels {
        Some(labels) => b.whole(LABEL_HEAD.into(), labels, config.hidden),
        None if config.tied => embed,
        None => b.whole(table(head), config.vocab_size, config.hidden),
    };
    (b.map, DecoderParams { embed, positions, layers, final_norm, head })
}

/// The prefix that a checkpoint of the bare decoder (without a language-model head) leaves out.
pub fn base_prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        Family::GptNeox => "gpt_neox.",
        _ => "model.",
    }
}
