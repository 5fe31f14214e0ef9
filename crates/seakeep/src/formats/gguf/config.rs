//! The `config.json` that a GGUF file's metadata amounts to.
//!
//! Written so that transformers' `AutoModelForCausalLM` builds the same model from it. What the file
//! does not say and cannot be derived with certainty is an error, not a guess.

use serde_json::{Map, Value as Json, json};

use super::GgufFile;
use super::tensors::{Arch, Heads};
use crate::error::{Error, Result};

/// Reads an architecture's metadata under its prefix.
struct Keys<'a> {
    file: &'a GgufFile,
    arch: Arch,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch.gguf_name())
    }

    fn optional(&self, name: &str) -> Result<Option<usize>> {
        self.file.get_usize(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.optional(name)?.filter(|&n| n > 0).ok_or_else(|| self.missing(name))
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        self.file.get_f64(&self.key(name))
    }

    fn missing(&self, name: &str) -> Error {
        Error::format(
            self.file.path(),
            format!(
                "metadata `{}` is missing or zero, and the configuration cannot be derived without it; \
                 use the Hugging Face checkpoint instead",
                self.key(name)
            ),
        )
    }
}

/// The head counts, which the layout of some tensors depends on.
pub fn heads(file: &GgufFile, arch: Arch) -> Result<Heads> {
    let keys = Keys { file, arch };
    let query = keys.required("attention.head_count")?;
    Ok(Heads { query, key_value: keys.optional("attention.head_count_kv")?.unwrap_or(query) })
}

/// The configuration, in the words of `config.json`.
///
/// # Errors
/// [`Error::Format`] for missing metadata, [`Error::Unsupported`] for rope scaling that cannot be
/// stated with certainty.
pub fn synthesize(file: &GgufFile, arch: Arch) -> Result<Json> {
    let keys = Keys { file, arch };
    let mut config = Map::new();
    match arch {
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 => decoder(&keys, &mut config)?,
        Arch::Gpt2 => gpt2(&keys, &mut config)?,
        Arch::GptNeox => gpt_neox(&keys, &mut config)?,
    }
    let embedding = file.tensor("token_embd.weight").ok_or_else(|| {
        Error::format(
            file.path(),
            "no tensor `token_embd.weight`: a part of a split GGUF? merge it with llama-gguf-split",
        )
    })?;
    config.insert("vocab_size".into(), embedding.shape.first().copied().unwrap_or(0).into());
    config.insert("tie_word_embeddings".into(), file.tensor("output.weight").is_none().into());
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        let id = file.get_usize(&format!("tokenizer.ggml.{key}_token_id"))?;
        // Stated even when absent: the config classes would put their own numbers there.
        config.insert(format!("{name}_token_id"), id.map_or(Json::Null, Json::from));
    }
    config.insert("dtype".into(), "float32".into());
    Ok(Json::Object(config))
}

fn put(config: &mut Map<String, Json>, values: Json) {
    if let Json::Object(values) = values {
        config.extend(values);
    }
}

fn unsupported(keys: &Keys, what: &str, supported: &str) -> Error {
    Error::unsupported(format!("{}: {what}", keys.file.path().display()), supported)
}

/// Llama, Mistral, Qwen2 and Qwen3.
fn decoder(keys: &Keys, config: &mut Map<String, Json>) -> Result<()> {
    let window = keys.optional("attention.sliding_window")?.filter(|&w| w > 0);
    let (class, model_type) = match keys.arch {
        Arch::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Arch::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        // A `llama` file with a window is a Mistral; without one the two are the same computation.
        _ if window.is_some() => ("MistralForCausalLM", "mistral"),
        _ => ("LlamaForCausalLM", "llama"),
    };
    if keys.optional("expert_count")?.unwrap_or(0) > 0 {
        return Err(unsupported(keys, "a mixture of experts", "dense models only"));
    }
    if keys.file.get_bool(&keys.key("attention.causal"))? == Some(false) {
        return Err(unsupported(keys, "attention that is not causal", "causal attention"));
    }
    let hidden = keys.required("embedding_length")?;
    let Heads { query, key_value } = heads(keys.file, keys.arch)?;
    let head_dim = match keys.optional("attention.key_length")? {
        Some(dim) => dim,
        None => hidden / query,
    };
    let epsilon = keys
        .float("attention.layer_norm_rms_epsilon")?
        .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
    if let Some(turned) = keys.optional("rope.dimension_count")?.filter(|n| *n != head_dim) {
        let what = format!("rotary embedding of {turned} channels of {head_dim}");
        return Err(unsupported(keys, &what, "of all of a head's"));
    }
    let query_bias = keys.file.tensor("blk.0.attn_q.bias").is_some();
    let output_bias = keys.file.tensor("blk.0.attn_output.bias").is_some();
    let expected = query_bias && keys.arch != Arch::Qwen2;
    if output_bias != expected {
        let what = format!(
            "`attn_q.bias` {} `attn_output.bias`",
            if query_bias { "without" } else { "missing beside" }
        );
        return Err(unsupported(
            keys,
            &what,
            "biases on all of attention's projections or on none (Qwen2: on q, k, v)",
        ));
    }
    let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    put(
        config,
        json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": keys.required("feed_forward_length")?,
            "num_hidden_layers": keys.required("block_count")?,
            "num_attention_heads": query,
            "num_key_value_heads": key_value,
            "head_dim": head_dim,
            "rms_norm_eps": epsilon,
            "rope_theta": theta,
            "rope_scaling": rope_scaling(keys, head_dim, theta)?,
            "max_position_embeddings": keys.required("context_length")?,
            "attention_dropout": 0.0,
        }),
    );
    match keys.arch {
        Arch::Llama if window.is_some() => put(config, json!({"sliding_window": window})),
        Arch::Llama => {
            let mlp_bias = keys.file.tensor("blk.0.ffn_up.bias").is_some();
            put(config, json!({"attention_bias": query_bias, "mlp_bias": mlp_bias}));
        }
        Arch::Qwen3 => put(config, json!({"attention_bias": query_bias, "use_sliding_window": false})),
        _ => put(config, json!({"use_sliding_window": false})),
    }
    Ok(())
}

fn gpt2(keys: &Keys, config: &mut Map<String, Json>) -> Result<()> {
    put(
        config,
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "n_embd": keys.required("embedding_length")?,
            "n_layer": keys.required("block_count")?,
            "n_head": keys.required("attention.head_count")?,
            "n_positions": keys.required("context_length")?,
            "n_inner": keys.optional("feed_forward_length")?,
            "layer_norm_epsilon": keys.float("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        }),
    );
    Ok(())
}

fn gpt_neox(keys: &Keys, config: &mut Map<String, Json>) -> Result<()> {
    let hidden = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    let rotary = keys.required("rope.dimension_count")?;
    let theta = keys.float("rope.freq_base")?.unwrap_or(10_000.0);
    let parallel = keys.file.get_bool(&keys.key("use_parallel_residual"))?.unwrap_or(true);
    put(
        config,
        json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "hidden_act": "gelu",
            "hidden_size": hidden,
            "intermediate_size": keys.required("feed_forward_length")?,
            "num_hidden_layers": keys.required("block_count")?,
            "num_attention_heads": heads,
            "max_position_embeddings": keys.required("context_length")?,
            "rotary_pct": (rotary * heads) as f64 / hidden as f64,
            "rotary_emb_base": theta,
            "rope_scaling": rope_scaling(keys, rotary, theta)?,
            "layer_norm_eps": keys.float("attention.layer_norm_epsilon")?.unwrap_or(1e-5),
            "use_parallel_residual": parallel,
            "attention_bias": true,
        }),
    );
    Ok(())
}

/// Llama 3.1's fixed numbers; only the factor differs between its models (8, or 32 for 3.2).
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_CONTEXT: f64 = 8192.0;

/// The rope scaling: none, linear (stated in the metadata), or Llama 3's.
///
/// llama.cpp stores Llama 3's scaling as one divisor per frequency (`rope_freqs.weight`) and drops the
/// numbers it was computed from. They are recovered by assuming Llama 3.1's constants, computing the
/// divisors again and comparing: equal means right, unequal is an error.
fn rope_scaling(keys: &Keys, head_dim: usize, theta: f64) -> Result<Json> {
    let unsupported = |what: String| {
        unsupported(keys, &what, "no scaling, linear, llama3; use the Hugging Face checkpoint instead")
    };
    if let Some(factor) = keys.float("rope.scaling.attn_factor")?.filter(|f| *f != 1.0) {
        return Err(unsupported(format!("rope scaling with an attention factor of {factor}")));
    }
    // As llama.cpp reads them: linear where no type is said, the factor by its old name too.
    let factor = keys.float("rope.scaling.factor")?.or(keys.float("rope.scale_linear")?);
    let linear = match keys.file.get_str(&keys.key("rope.scaling.type"))? {
        Some("none") => false,
        None | Some("linear") => factor.is_some_and(|f| f != 1.0 && f != 0.0),
        Some(other) => return Err(unsupported(format!("rope scaling of type `{other}`"))),
    };
    if keys.file.tensor("rope_freqs.weight").is_none() {
        return Ok(if linear { json!({"rope_type": "linear", "factor": factor}) } else { Json::Null });
    }
    let divisors = keys.file.dequantize("rope_freqs.weight")?;
    if linear || divisors.len() != head_dim / 2 {
        return Err(unsupported(format!("`rope_freqs.weight` with {} entries", divisors.len())));
    }
    if divisors.iter().all(|&d| d == 1.0) {
        return Ok(Json::Null);
    }
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let explained = divisors.iter().enumerate().all(|(i, &divisor)| {
        let expected = llama3_divisor(factor, theta.powf(-((2 * i) as f64) / head_dim as f64));
        (f64::from(divisor) - expected).abs() <= 1e-4 * expected
    });
    if !explained {
        return Err(unsupported("`rope_freqs.weight` that is not Llama 3's scaling".into()));
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_CONTEXT as usize,
    }))
}

/// What Llama 3 divides a rotary frequency by (`LlamaModel.generate_extra_tensors` of the converter).
fn llama3_divisor(factor: f64, frequency: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < LLAMA3_CONTEXT / LLAMA3_HIGH {
        1.0
    } else if wavelength > LLAMA3_CONTEXT / LLAMA3_LOW {
        factor
    } else {
        let smooth = (LLAMA3_CONTEXT / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
