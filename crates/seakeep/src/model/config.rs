//! From a Hugging Face `config.json` to the few numbers and switches the decoder needs.

use seakeep_kernels::activation::Activation;
use serde_json::Value;

use super::rotary::rotary;
use crate::{Error, Result};

/// The architectures Seakeep runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2/3, SmolLM2, TinyLlama.
    Llama,
    /// Mistral (sliding window).
    Mistral,
    /// Qwen2, Qwen2.5 (bias on queries, keys and values).
    Qwen2,
    /// Qwen3 (RMS norm on every head of queries and keys).
    Qwen3,
    /// GPT-2 (learned positions, layer norm, fused transposed weights).
    Gpt2,
    /// GPT-NeoX, Pythia (partial rotary embedding, parallel residual, fused interleaved weights).
    GptNeox,
}

/// What is supported, for error messages.
pub const SUPPORTED_FAMILIES: &str = "llama, mistral, qwen2, qwen3, gpt2, gpt_neox";

/// The normalisation a model uses throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, a gain.
    Rms,
    /// Mean and variance, a gain and a bias.
    Layer,
}

/// How a model knows positions.
#[derive(Clone, Debug)]
pub enum Positions {
    /// Rotary embedding; one frequency (radians per position) for each turned pair of channels.
    Rotary {
        /// `[R/2]`
        inverse_frequencies: Vec<f32>,
    },
    /// A learned vector for each position, added to the embeddings.
    Learned,
}

/// A decoder-only transformer, whatever its family.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The family: names and packing of the tensors on disk.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Channels of the residual stream.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels of the feed-forward layer.
    pub intermediate: usize,
    /// Normalisation.
    pub norm: NormKind,
    /// Its epsilon.
    pub norm_eps: f32,
    /// Positions.
    pub positions: Positions,
    /// Longest text in tokens the model was made for.
    pub max_positions: usize,
    /// Activation of the feed-forward layer.
    pub activation: Activation,
    /// Whether the feed-forward layer is gated (`down(act(gate x) * up x)`).
    pub gated: bool,
    /// Whether attention and feed-forward both read the layer's input (GPT-NeoX).
    pub parallel_residual: bool,
    /// Bias on queries, keys, values.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Bias in the feed-forward layer.
    pub mlp_bias: bool,
    /// RMS norm on each head of queries and keys.
    pub qk_norm: bool,
    /// Whether the vocabulary projection is the embedding table.
    pub tied: bool,
    /// Outputs of a head of labels (`score.weight`, `*ForSequenceClassification`) in place of the vocabulary projection.
    /// `config.json` is read without one; who wants it sets it.
    pub labels: Option<usize>,
    /// Sliding window of each layer, in positions; `None` sees everything.
    pub windows: Vec<Option<usize>>,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// The token whose embedding gets no gradient from being looked up: transformers gives these families'
    /// embeddings `padding_idx = pad_token_id`, also where that token (SmolLM2: `<|im_end|>`) stands in real text.
    pub padding_token: Option<u32>,
}

/// Typed access to the keys of a `config.json`, with errors that name the key.
pub(super) struct Keys<'a>(pub &'a Value);

impl Keys<'_> {
    pub fn bad(key: &str, what: &str) -> Error {
        Error::Usage(format!("config.json: `{key}` {what}"))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.size_or(key, None)
    }

    fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(key), default) {
            (None, Some(n)) => Ok(n),
            (None, None) => Err(Self::bad(key, "is missing; expected a whole number above 0")),
            (Some(v), _) => match v.as_u64() {
                // A bound far above any model, so that sizes multiply without overflow.
                Some(n) if n > 0 && n < 1 << 31 => Ok(n as usize),
                _ => Err(Self::bad(key, &format!("is {v}; expected a whole number from 1 to 2^31 - 1"))),
            },
        }
    }

    /// A number of layers: each is described before any tensor is looked for.
    fn layers(&self, key: &str, default: Option<usize>) -> Result<usize> {
        const MOST: usize = 10_000;
        match self.size_or(key, default)? {
            n if (1..=MOST).contains(&n) => Ok(n),
            n => Err(Self::bad(key, &format!("is {n}; expected 1 to {MOST} layers"))),
        }
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| Self::bad(key, &format!("is {v}; expected a number"))),
        }
    }

    /// As [`number`](Self::number), of what divides or is a base.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.number(key, default)? {
            x if x > 0.0 && (x as f32).is_finite() => Ok(x),
            x => Err(Self::bad(key, &format!("is {x}; expected a number above 0"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| Self::bad(key, &format!("is {v}; expected true or false"))),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let text = |v: &'_ Value| Self::bad(key, &format!("is {v}; expected a text"));
        self.get(key).map(|v| v.as_str().ok_or_else(|| text(v))).transpose()
    }

    /// Refuses a switch that makes another model of it, unless it is set so.
    fn only(&self, key: &str, supported: bool) -> Result<()> {
        match self.flag(key, supported)? {
            found if found == supported => Ok(()),
            found => Err(Error::Unsupported {
                what: format!("config.json: {key} = {found}"),
                supported: supported.to_string(),
            }),
        }
    }

    fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        match self.text(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            other => Err(Error::Unsupported {
                what: format!("config.json: activation `{other}` (`{key}`)"),
                supported: "silu, gelu, gelu_new, gelu_pytorch_tanh".into(),
            }),
        }
    }
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// An unknown architecture, activation or rotary scaling ([`Error::Unsupported`]), or a key that is missing
    /// or out of range.
    pub fn from_json(config: &Value) -> Result<Self> {
        let keys = Keys(config);
        keys.only("is_causal", true)?;
        let family = match keys.text("model_type")? {
            Some("llama") => Family::Llama,
            Some("mistral") => Family::Mistral,
            Some("qwen2") => Family::Qwen2,
            Some("qwen3") => Family::Qwen3,
            Some("gpt2") => Family::Gpt2,
            Some("gpt_neox") => Family::GptNeox,
            other => {
                return Err(Error::Unsupported {
                    what: format!("config.json: model_type `{}`", other.unwrap_or("(missing)")),
                    supported: SUPPORTED_FAMILIES.into(),
                });
            }
        };
        let config = match family {
            Family::Gpt2 => Self::gpt2(&keys)?,
            Family::GptNeox => Self::gpt_neox(&keys)?,
            _ => Self::llama_like(&keys, family)?,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::Usage(format!(
                "config.json: {} attention heads cannot be shared among {} key/value heads",
                self.heads, self.kv_heads
            )));
        }
        if let Positions::Rotary { inverse_frequencies } = &self.positions
            && inverse_frequencies.len() * 2 > self.head_dim
        {
            return Err(Error::Usage("config.json: more rotary channels than a head has".into()));
        }
        Ok(())
    }

    fn llama_like(keys: &Keys, family: Family) -> Result<Self> {
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let layers = keys.layers("num_hidden_layers", None)?;
        let head_dim =
            keys.size_or("head_dim", Some(if family == Family::Qwen3 { 128 } else { hidden / heads }))?;
        let attention_bias = keys.flag("attention_bias", false)?;
        let max_positions = keys.size_or("max_position_embeddings", Some(2048))?;
        // transformers turns whole heads in these families, whatever the key says.
        if keys.number("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(Keys::bad("partial_rotary_factor", "is not 1, which these models do not know"));
        }
        Ok(ModelConfig {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden,
            layers,
            heads,
            kv_heads: keys.size_or("num_key_value_heads", Some(heads))?,
            head_dim,
            intermediate: keys.size("intermediate_size")?,
            norm: NormKind::Rms,
            norm_eps: keys.positive("rms_norm_eps", 1e-6)? as f32,
            positions: rotary(keys, head_dim, keys.positive("rope_theta", 10_000.0)?, 1.0)?,
            max_positions,
            activation: keys.activation("hidden_act", "silu")?,
            gated: true,
            parallel_residual: false,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: keys.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            tied: keys.flag("tie_word_embeddings", false)?,
            labels: None,
            windows: windows(keys, family, layers)?,
            attention_scale: (head_dim as f32).powf(-0.5),
            padding_token: keys.get("pad_token_id").and_then(Value::as_u64).map(|id| id as u32),
        })
    }

    fn gpt2(keys: &Keys) -> Result<Self> {
        let hidden = keys.size_or("n_embd", Some(768))?;
        let heads = keys.size_or("n_head", Some(12))?;
        let layers = keys.layers("n_layer", Some(12))?;
        let head_dim = hidden / heads;
        keys.only("scale_attn_by_inverse_layer_idx", false)?;
        let scaled = keys.flag("scale_attn_weights", true)?;
        Ok(ModelConfig {
            family: Family::Gpt2,
            vocab_size: keys.size("vocab_size")?,
            hidden,
            layers,
            heads,
            kv_heads: heads,
            head_dim,
            intermediate: keys.size_or("n_inner", Some(4 * hidden))?,
            norm: NormKind::Layer,
            norm_eps: keys.positive("layer_norm_epsilon", 1e-5)? as f32,
            positions: Positions::Learned,
            max_positions: keys.size_or("n_positions", Some(1024))?,
            activation: keys.activation("activation_function", "gelu_new")?,
            gated: false,
            parallel_residual: false,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            qk_norm: false,
            tied: keys.flag("tie_word_embeddings", true)?,
            labels: None,
            windows: vec![None; layers],
            attention_scale: if scaled { (head_dim as f32).powf(-0.5) } else { 1.0 },
            padding_token: None,
        })
    }

    fn gpt_neox(keys: &Keys) -> Result<Self> {
        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let layers = keys.layers("num_hidden_layers", None)?;
        let head_dim = hidden / heads;
        let attention_bias = keys.flag("attention_bias", true)?;
        let base = keys.positive("rotary_emb_base", 10_000.0)?;
        let share = keys.number("rotary_pct", 0.25)?;
        Ok(ModelConfig {
            family: Family::GptNeox,
            vocab_size: keys.size("vocab_size")?,
            hidden,
            layers,
            heads,
            kv_heads: heads,
            head_dim,
            intermediate: keys.size("intermediate_size")?,
            norm: NormKind::Layer,
            norm_eps: keys.positive("layer_norm_eps", 1e-5)? as f32,
            positions: rotary(keys, head_dim, base, share)?,
            max_positions: keys.size_or("max_position_embeddings", Some(2048))?,
            activation: keys.activation("hidden_act", "gelu")?,
            gated: false,
            parallel_residual: keys.flag("use_parallel_residual", true)?,
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            mlp_bias: true,
            qk_norm: false,
            tied: keys.flag("tie_word_embeddings", false)?,
            labels: None,
            windows: vec![None; layers],
            attention_scale: (head_dim as f32).powf(-0.5),
            padding_token: None,
        })
    }
}

/// The window of Mistral, Qwen2 and Qwen3 where a config has no such key, and the layer from which on Qwen's have one.
const WINDOW: usize = 4096;
const WINDOWED_FROM: usize = 28;

/// The sliding window of each layer: `layer_types` where the config has it, else the family's rule.
fn windows(keys: &Keys, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let types = layer_types(keys, layers)?;
    let used = match family {
        Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => keys.flag("use_sliding_window", false)?,
        _ => false,
    };
    // A key that is null is not one that is absent.
    let window = match keys.0.get("sliding_window") {
        Some(Value::Null) => None,
        _ => Some(keys.size_or("sliding_window", Some(WINDOW))?),
    };
    let Some(window) = window.filter(|_| used) else { return Ok(vec![None; layers]) };
    if let Some(slides) = types {
        return Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect());
    }
    let from = match (family, keys.get("max_window_layers")) {
        (Family::Mistral, _) => 0,
        (_, Some(v)) => v
            .as_u64()
            .ok_or_else(|| Keys::bad("max_window_layers", &format!("is {v}; expected a whole number")))?
            as usize,
        (_, None) => WINDOWED_FROM,
    };
    Ok((0..layers).map(|i| (i >= from).then_some(window)).collect())
}

/// `layer_types`: whether each layer has a window.
fn layer_types(keys: &Keys, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = keys.get("layer_types") else { return Ok(None) };
    let types = value.as_array().ok_or_else(|| Keys::bad("layer_types", "is no list"))?;
    if types.len() != layers {
        return Err(Keys::bad("layer_types", &format!("has {} entries for {layers} layers", types.len())));
    }
    let slides = |of: &Value| match of.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(Error::Unsupported {
            what: format!("config.json: `layer_types` with {of}"),
            supported: "full_attention, sliding_attention".into(),
        }),
    };
    types.iter().map(slides).collect::<Result<_>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama() -> Value {
        json!({"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "num_attention_heads": 2,
               "num_hidden_layers": 2, "intermediate_size": 12})
    }

    #[test]
    fn defaults_follow_transformers() {
        let c = ModelConfig::from_json(&llama()).unwrap();
        assert_eq!((c.kv_heads, c.head_dim, c.tied, c.gated), (2, 4, false, true));
        let Positions::Rotary { inverse_frequencies } = c.positions else { panic!() };
        assert_eq!(inverse_frequencies, [1.0, 0.01]);
    }

    #[test]
    fn what_makes_another_model_is_refused() {
        for (key, value, part) in [
            ("rope_scaling", json!("linear"), "expected an object"),
            ("rope_scaling", json!({"rope_type": 7}), "`rope_type` is 7; expected a text"),
            ("rope_scaling", json!({"rope_type": "linear"}), "`factor` is missing"),
            ("rope_parameters", json!({"full_attention": {"rope_type": "default"}}), "by kind of layer"),
            ("is_causal", json!(false), "is_causal = false"),
            ("hidden_act", json!(3), "`hidden_act` is 3; expected a text"),
            ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is not 1"),
            ("head_dim", json!(2_147_483_647), "expected at most 65536"),
            ("head_dim", json!(5), "more rotary channels than a head has"),
            ("layer_types", json!(["full_attention"]), "1 entries for 2 layers"),
            ("layer_types", json!(["full_attention", "chunked_attention"]), "chunked_attention"),
        ] {
            let mut v = llama();
            v[key] = value;
            let message = ModelConfig::from_json(&v).unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        }
        let mut v = llama();
        v["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 100.0});
        v["rope_scaling"] = json!({"rope_type": "linear", "factor": 4.0});
        assert!(ModelConfig::from_json(&v).unwrap_err().to_string().contains("keep one of them"));
    }

    #[test]
    fn windows_of_absent_keys_are_transformers_defaults() {
        let of = |edits: Value| {
            let mut v = llama();
            v["num_hidden_layers"] = json!(30);
            edits.as_object().unwrap().iter().for_each(|(key, value)| v[key] = value.clone());
            ModelConfig::from_json(&v).unwrap().windows
        };
        assert_eq!(of(json!({"model_type": "mistral"}))[0], Some(4096));
        assert_eq!(of(json!({"model_type": "mistral", "sliding_window": null}))[0], None);
        let qwen = of(json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 5}));
        assert_eq!((qwen[27], qwen[28]), (None, Some(5)));
        assert_eq!(
            of(json!({"model_type": "qwen3", "use_sliding_window": true, "max_window_layers": 0}))[0],
            Some(4096)
        );
        assert_eq!(of(json!({"model_type": "qwen2", "sliding_window": 5}))[29], None);
    }

    #[test]
    fn what_is_unknown_is_named() {
        let message = |edit: &dyn Fn(&mut Value)| {
            let mut v = llama();
            edit(&mut v);
            ModelConfig::from_json(&v).unwrap_err().to_string()
        };
        let m = message(&|v| v["model_type"] = json!("mamba"));
        assert!(m.contains("mamba") && m.contains("gpt_neox"), "{m}");
        let m = message(&|v| v["hidden_act"] = json!("relu6"));
        assert!(m.contains("relu6") && m.contains("silu"), "{m}");
        for (key, wrong) in
            [("rms_norm_eps", json!(-1.0)), ("rope_theta", json!(0)), ("rope_theta", json!(1e300))]
        {
            let m = message(&|v| v[key] = wrong.clone());
            assert!(m.contains(key) && m.contains("expected a number above 0"), "{m}");
        }
        let m = message(&|v| v["rope_scaling"] = json!({"rope_type": "linear", "factor": 0}));
        assert!(m.contains("`factor` is 0; expected a number above 0"), "{m}");
        let m = message(&|v| v["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0}));
        assert!(m.contains("yarn") && m.contains("llama3"), "{m}");
        let m = message(&|v| v["hidden_size"] = json!(-8));
        assert!(m.contains("hidden_size") && m.contains("-8"), "{m}");
        let m = message(&|v| v["num_key_value_heads"] = json!(3));
        assert!(m.contains("2 attention heads") && m.contains('3'), "{m}");
    }

    #[test]
    fn windows_follow_the_family() {
        let mut v = llama();
        v["model_type"] = json!("mistral");
        v["sliding_window"] = json!(5);
        assert_eq!(ModelConfig::from_json(&v).unwrap().windows, [Some(5), Some(5)]);
        v["layer_types"] = json!(["full_attention", "sliding_attention"]);
        assert_eq!(ModelConfig::from_json(&v).unwrap().windows, [None, Some(5)]);
        v["model_type"] = json!("llama");
        assert_eq!(ModelConfig::from_json(&v).unwrap().windows, [None, None]);
    }
}
