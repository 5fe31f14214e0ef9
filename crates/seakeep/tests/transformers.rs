//! What is saved, loaded by transformers as it is.
//!
//!     SEAKEEP_PYTHON=/path/to/python SEAKEEP_MODELS=models \
//!         cargo test -p seakeep --test transformers -- --ignored

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use seakeep::formats::{AtomicDir, Message, ModelSource, SaveDtype, write_atomic, write_safetensors};
use serde_json::{Value, json};

const TEXTS: [&str; 5] =
    ["Hello world", "  two  spaces\n\nand 12345 café 日本語 🙂", "<|im_start|>x<|im_end|>", "don't I'M", ""];

fn save(source: &ModelSource, target: &Path) {
    let dir = AtomicDir::new(target).unwrap();
    let tensors: Vec<(&str, Vec<usize>, Vec<f32>)> = source
        .weights
        .names()
        .into_iter()
        .map(|name| {
            (name, source.weights.shape(name).unwrap().to_vec(), source.weights.read_f32(name).unwrap())
        })
        .collect();
    let views: Vec<(&str, &[usize], &[f32])> =
        tensors.iter().map(|(name, shape, values)| (*name, &shape[..], &values[..])).collect();
    write_safetensors(dir.path().join("model.safetensors"), &views, SaveDtype::F32).unwrap();
    write_atomic(dir.path().join("config.json"), source.config.to_string().as_bytes()).unwrap();
    source.tokenizer().unwrap().save(dir.path()).unwrap();
    dir.commit().unwrap();
}

fn transformers(directory: &Path, asked: &Value) -> Value {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/parity/check_saved.py");
    let mut child = Command::new(std::env::var("SEAKEEP_PYTHON").expect("set SEAKEEP_PYTHON"))
        .arg(script)
        .arg(directory)
        .env("CUDA_VISIBLE_DEVICES", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn check(gguf: &Path, class: &str, chats: &[Vec<Message>]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model");
    let source = ModelSource::open(gguf).unwrap();
    save(&source, &target);
    let as_json = |m: &Message| json!({"role": m.role, "content": m.content});
    let asked: Vec<Vec<Value>> = chats.iter().map(|chat| chat.iter().map(as_json).collect()).collect();
    let seen = transformers(&target, &json!({"texts": TEXTS, "chats": asked}));
    assert_eq!(seen["class"], class);
    assert_eq!((&seen["missing"], &seen["unexpected"]), (&json!([]), &json!([])));
    assert_eq!(seen["tied"], source.config["tie_word_embeddings"]);
    for name in source.weights.names() {
        let sum: f64 = source.weights.read_f32(name).unwrap().iter().map(|x| f64::from(*x)).sum();
        let name = if name == "embed_out.weight" { "lm_head.weight" } else { name };
        let found = seen["sums"][name].as_f64().unwrap_or_else(|| panic!("{name} is not in the model"));
        assert!((found - sum).abs() <= 1e-9 * sum.abs().max(1.0), "{name}: {found} and not {sum}");
    }
    // The tokenizer gives the same ids there, here, and here after reading what was saved.
    let (ours, saved) =
        (source.tokenizer().unwrap(), ModelSource::open(&target).unwrap().tokenizer().unwrap());
    for (text, ids) in TEXTS.iter().zip(seen["texts"].as_array().unwrap()) {
        assert_eq!(&json!(ours.encode(text, true).unwrap()), ids, "{text:?}");
        assert_eq!(&json!(saved.encode(text, true).unwrap()), ids, "{text:?}");
    }
    for (chat, ids) in chats.iter().zip(seen["chats"].as_array().unwrap()) {
        let text = ours.apply_chat_template(chat, true).unwrap();
        assert_eq!(saved.apply_chat_template(chat, true).unwrap(), text);
        assert_eq!(&json!(ours.encode(&text, false).unwrap()), ids);
    }
    let special = json!([ours.bos_token(), ours.eos_token(), ours.pad_token(), ours.vocab_size()]);
    assert_eq!(seen["special"], special);
    seen["config"].clone()
}

fn tiny(arch: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/gguf/{arch}.gguf"))
}

/// `.ci/run` leaves these out by this name where there is no such Python.
mod needs_python {
    use super::*;

    #[test]
    #[ignore = "needs SEAKEEP_PYTHON with transformers"]
    fn every_architecture_loads() {
        check(&tiny("llama"), "LlamaForCausalLM", &[]);
        check(&tiny("qwen2"), "Qwen2ForCausalLM", &[]);
        check(&tiny("qwen3"), "Qwen3ForCausalLM", &[]);
        check(&tiny("gpt2"), "GPT2LMHeadModel", &[]);
        let config = check(&tiny("gptneox"), "GPTNeoXForCausalLM", &[]);
        assert_eq!(config["rope_parameters"]["partial_rotary_factor"], 0.25);
    }

    #[test]
    #[ignore = "needs SEAKEEP_PYTHON with transformers, and SEAKEEP_MODELS"]
    fn smollm2_loads_with_its_tokenizer_and_template() {
        let gguf = PathBuf::from(std::env::var("SEAKEEP_MODELS").expect("set SEAKEEP_MODELS"));
        let chats = [
            vec![Message::new("user", "What is the capital of France?")],
            vec![
                Message::new("system", "Be brief."),
                Message::new("user", " hi\n"),
                Message::new("assistant", "日本"),
            ],
        ];
        let config = check(&gguf.join("smollm2-135m-instruct.gguf"), "LlamaForCausalLM", &chats);
        assert_eq!(config["rms_norm_eps"], 1e-5);
        assert_eq!(config["rope_parameters"]["rope_theta"], 100000.0);
        assert_eq!((&config["vocab_size"], &config["eos_token_id"]), (&json!(49152), &json!(2)));
    }
}
