//! Tiny GGUF checkpoints of every architecture, written as llama.cpp writes them, read back as the
//! Hugging Face checkpoint they came from. Made by `scripts/parity/gguf_models.py`, which also checks
//! that transformers reads the same values from them.

use std::path::PathBuf;

use seakeep::formats::ModelSource;
use serde_json::{Value, json};

fn open(arch: &str) -> ModelSource {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/gguf/{arch}.gguf"));
    ModelSource::open(path).unwrap()
}

/// The formula of the script.
fn expected(name: &str, i: usize) -> f32 {
    let h: usize = name.bytes().enumerate().map(|(j, b)| usize::from(b) * (j + 1)).sum();
    (((h + 7 * i) % 1009) as f64 / 1009.0) as f32
}

/// Checks every tensor, and that `shapes` are among them.
fn check(arch: &str, shapes: &[(&str, &[usize])], config: Value) {
    let source = open(arch);
    for (name, shape) in shapes {
        assert_eq!(
            source.weights.shape(name),
            Some(*shape),
            "{arch}: {name} among {:?}",
            source.weights.names()
        );
    }
    for name in source.weights.names() {
        let values = source.weights.read_f32(name).unwrap();
        assert_eq!(values.len(), source.weights.shape(name).unwrap().iter().product::<usize>());
        for (i, x) in values.iter().enumerate() {
            assert_eq!(*x, expected(name, i), "{arch}: {name}[{i}]");
        }
        assert_eq!(source.weights.path_of(name), Some(source.path.as_path()));
    }
    for (key, value) in config.as_object().unwrap() {
        assert_eq!(&source.config[key], value, "{arch}: {key}");
    }
}

#[test]
fn llama() {
    check(
        "llama",
        &[
            ("model.embed_tokens.weight", &[24, 16]),
            ("model.layers.1.self_attn.q_proj.weight", &[16, 16]),
            ("model.layers.0.self_attn.k_proj.weight", &[8, 16]),
            ("model.layers.0.mlp.down_proj.weight", &[16, 24]),
            ("model.layers.0.post_attention_layernorm.weight", &[16]),
            ("model.norm.weight", &[16]),
            ("lm_head.weight", &[24, 16]),
        ],
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null, "vocab_size": 24,
            "max_position_embeddings": 64, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 0, "attention_bias": false,
        }),
    );
}

/// Llama 3's rope scaling comes back from the divisors that llama.cpp stores in its place.
#[test]
fn llama3_rope_scaling_is_recovered() {
    let scaling = open("llama3").config["rope_scaling"].clone();
    let wanted = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(scaling, wanted);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf/longrope.gguf");
    let error = ModelSource::open(path).unwrap_err().to_string();
    assert!(error.contains("longrope.gguf") && error.contains("not Llama 3's scaling"), "{error}");
}

/// A SentencePiece vocabulary, whose merges follow from its scores, against transformers' reading.
#[test]
fn sentencepiece_tokens_are_transformers() {
    let tokenizer = open("llama3").tokenizer().unwrap();
    let golden: Value = serde_json::from_str(include_str!("data/gguf/llama3.json")).unwrap();
    for case in golden.as_array().unwrap() {
        let ids = tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(json!(ids), case["ids"], "{}", case["text"]);
    }
    let ids = tokenizer.encode("hello café", true).unwrap();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello café");
}

#[test]
fn qwen2_is_tied_and_biased() {
    check(
        "qwen2",
        &[("model.layers.0.self_attn.q_proj.bias", &[16]), ("model.layers.1.self_attn.v_proj.bias", &[8])],
        json!({"model_type": "qwen2", "tie_word_embeddings": true, "architectures": ["Qwen2ForCausalLM"]}),
    );
    assert!(open("qwen2").weights.shape("lm_head.weight").is_none());
}

#[test]
fn qwen3_has_its_own_head_dim_and_norms() {
    check(
        "qwen3",
        &[
            ("model.layers.0.self_attn.q_norm.weight", &[8]),
            ("model.layers.0.self_attn.q_proj.weight", &[32, 16]),
        ],
        json!({"model_type": "qwen3", "head_dim": 8, "attention_bias": false}),
    );
}

#[test]
fn gpt2_is_transposed_back() {
    check(
        "gpt2",
        &[
            ("transformer.h.0.attn.c_attn.weight", &[16, 48]),
            ("transformer.h.1.mlp.c_fc.weight", &[16, 64]),
            ("transformer.h.1.mlp.c_proj.bias", &[16]),
            ("transformer.wpe.weight", &[64, 16]),
            ("transformer.ln_f.bias", &[16]),
        ],
        json!({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    );
}

#[test]
fn gpt_neox_is_interleaved_again() {
    check(
        "gptneox",
        &[
            ("gpt_neox.layers.0.attention.query_key_value.weight", &[48, 16]),
            ("gpt_neox.layers.0.attention.query_key_value.bias", &[48]),
            ("embed_out.weight", &[24, 16]),
        ],
        json!({"model_type": "gpt_neox", "rotary_pct": 0.25, "use_parallel_residual": true, "num_attention_heads": 2}),
    );
}
