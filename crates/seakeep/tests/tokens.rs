//! Tokens on real data: SmolLM2's tokenizer, from its files and from GGUF, against recorded ids, and
//! pairs against TRL's own code (`scripts/parity/trl_tokens.py`).
//!
//!     SEAKEEP_DATA=../shared/data SEAKEEP_MODELS=models cargo test -p seakeep --test tokens -- --ignored

use std::path::PathBuf;

use seakeep::data::{
    Branch, Pair, TokenizeOptions, TokenizedPair, TruncatedCompletion, TruncationMode, read_pairs,
    tokenize_pairs,
};
use seakeep::formats::{Message, ModelSource, Tokenizer};
use serde_json::Value;

fn from_env(name: &str) -> PathBuf {
    PathBuf::from(std::env::var(name).unwrap_or_else(|_| panic!("set {name}")))
}

fn data(file: &str) -> PathBuf {
    from_env("SEAKEEP_DATA").join(file)
}

fn gguf() -> PathBuf {
    from_env("SEAKEEP_MODELS").join("smollm2-135m-instruct.gguf")
}

fn pairs(file: &str) -> Vec<Pair> {
    read_pairs(data(file).to_str().unwrap()).unwrap()
}

fn check_cases(tokenizer: &Tokenizer) {
    let text = std::fs::read_to_string(data("tokenizers/smollm2/cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> =
            case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn recorded_cases() {
    let files = Tokenizer::open(data("tokenizers/smollm2")).unwrap();
    let gguf = Tokenizer::open(gguf()).unwrap();
    check_cases(&files);
    check_cases(&gguf);
    assert_eq!(files.vocab_size(), gguf.vocab_size());
    assert_eq!((gguf.bos_id(), gguf.eos_id(), gguf.pad_id()), (Some(1), Some(2), Some(2)));
    // Special tokens written in a text are special in both.
    let text = "<|im_start|>user\nfile <filename>a.py<|im_end|><|endoftext|>";
    assert_eq!(files.encode(text, false).unwrap(), gguf.encode(text, false).unwrap());
    for pair in pairs("hh-harmless-test.jsonl.gz").iter().take(200) {
        let seakeep::data::Text::Standard(text) = &pair.completions[0].text else {
            panic!("HH is plain text")
        };
        assert_eq!(files.encode(text, false).unwrap(), gguf.encode(text, false).unwrap());
    }
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn the_template_of_the_gguf_is_the_one_beside_the_tokenizer() {
    let gguf = Tokenizer::open(gguf()).unwrap();
    let files = Tokenizer::open(data("tokenizers/smollm2")).unwrap();
    let messages = [Message::new("user", "What is the capital of France?")];
    let text = gguf.apply_chat_template(&messages, true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(files.apply_chat_template(&messages, true).unwrap(), text);
}

/// 64-bit FNV-1a over little-endian 32-bit words, as in the script.
struct Hash(u64);

impl Hash {
    fn new() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, words: impl IntoIterator<Item = u32>) {
        for byte in words.into_iter().flat_map(u32::to_le_bytes) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn hash_pair(pair: &TokenizedPair) -> u64 {
    let mut hash = Hash::new();
    for branch in &pair.branches {
        let Branch { completion, .. } = branch;
        let prompt = pair.prompt_of(branch);
        hash.add([(prompt.len() + completion.len()) as u32, completion.len() as u32]);
        hash.add(prompt.iter().chain(completion).copied());
    }
    hash.0
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn pairs_are_trls() {
    let golden: Value = serde_json::from_str(include_str!("data/trl_tokens.json")).unwrap();
    let source = ModelSource::open(gguf()).unwrap();
    let tokenizer = source.tokenizer().unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let pairs = pairs(case["file"].as_str().unwrap());
        let options = TokenizeOptions {
            max_length: case["max_length"].as_u64().map(|n| n as usize),
            truncation_mode: match case["truncation_mode"].as_str().unwrap() {
                "keep_end" => TruncationMode::KeepEnd,
                _ => TruncationMode::KeepStart,
            },
            truncated_completion: TruncatedCompletion::Drop,
            ..TokenizeOptions::default()
        };
        let (rows, report) = tokenize_pairs(&pairs, &tokenizer, &options).unwrap();
        assert_eq!(rows.len() as u64, case["kept"].as_u64().unwrap(), "{report:?}");
        let prompt: usize = rows.iter().map(|row| row.prompt.len()).sum();
        let totals = serde_json::json!([prompt, report.chosen_tokens, report.rejected_tokens]);
        assert_eq!(totals, case["tokens"], "{}", case["file"]);

        for wanted in case["rows"].as_array().unwrap() {
            let row = rows.iter().find(|row| row.row as u64 == wanted[0].as_u64().unwrap()).unwrap();
            let counts = [row.prompt.len(), row.chosen().completion.len(), row.rejected().completion.len()];
            let wanted_counts: Vec<usize> = (1..4).map(|i| wanted[i].as_u64().unwrap() as usize).collect();
            assert_eq!(counts[..], wanted_counts, "row {}", row.row);
            assert_eq!(format!("{:016x}", hash_pair(row)), wanted[4].as_str().unwrap(), "row {}", row.row);
        }
        let mut all = Hash::new();
        for row in &rows {
            let one = hash_pair(row);
            all.add([row.row as u32, (one >> 32) as u32, one as u32]);
        }
        assert_eq!(format!("{:016x}", all.0), case["hash"].as_str().unwrap());
    }
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn the_real_model_opens() {
    let source = ModelSource::open(gguf()).unwrap();
    assert_eq!(source.model_type(), "llama");
    assert_eq!(source.config["tie_word_embeddings"], true);
    assert_eq!(source.config["num_key_value_heads"], 3);
    assert_eq!(source.weights.names().len(), 272);
    assert_eq!(source.weights.shape("model.embed_tokens.weight"), Some(&[49152, 576][..]));
    for name in source.weights.names() {
        source.weights.read_f32(name).unwrap();
    }
}
