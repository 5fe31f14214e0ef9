//! The program, run on a tiny world of its own in a temporary directory.
#![allow(dead_code)] // Each test file uses its part.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// What a run of the program left.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A directory with a tiny model (`model`) and a preference file (`pairs.jsonl`).
pub struct Place {
    directory: tempfile::TempDir,
}

const WORDS: [&str; 12] =
    ["<pad>", "<bos>", "<eos>", "<unk>", "how", "are", "you", "fine", "thanks", "bad", "very", "today"];

/// Keys that every training run here needs.
pub const TRAIN: [&str; 7] =
    ["train", "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", "--output_dir", "out"];

/// Four steps on the six pairs, in the file's order.
pub const FOUR_STEPS: [&str; 16] = [
    "--max_steps",
    "4",
    "--per_device_train_batch_size",
    "2",
    "--learning_rate",
    "0.01",
    "--logging_steps",
    "1",
    "--save_steps",
    "2",
    "--shuffle_dataset",
    "false",
    "--report_to",
    "none",
    "--lr_scheduler_type",
    "constant",
];

impl Place {
    /// A directory with nothing in it.
    pub fn empty() -> Place {
        Place { directory: tempfile::tempdir().unwrap() }
    }

    pub fn new() -> Place {
        let place = Place::empty();
        place.write("config.json", &config().to_string());
        std::fs::create_dir(place.path("tokenizer")).unwrap();
        place.write("tokenizer/tokenizer.json", &tokenizer().to_string());
        let special = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"
        });
        place.write("tokenizer/tokenizer_config.json", &special.to_string());
        place.write("pairs.jsonl", &rows());
        place.init("model", "3");
        place
    }

    /// A model of `config.json`, its weights drawn with this seed.
    pub fn init(&self, name: &str, seed: &str) {
        let from = ["init", "--config_json", "config.json", "--tokenizer", "tokenizer"];
        self.succeed(&[&from[..], &["--seed", seed, "--output_dir", name]].concat());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The lines of a JSON Lines file.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A copy of the model directory.
    pub fn copy_model(&self, name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        for entry in std::fs::read_dir(self.path("model")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), self.path(name).join(entry.file_name())).unwrap();
        }
    }

    /// Runs the program in the directory.
    pub fn run(&self, args: &[&str]) -> Run {
        let output = Command::new(env!("CARGO_BIN_EXE_seakeep"))
            .args(args)
            .current_dir(self.directory.path())
            .env("SEAKEEP_CACHE", self.path("cache"))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or(-1);
        Run { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs the program, which must succeed.
    pub fn succeed(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args:?}\n{}{}", run.stdout, run.stderr);
        run
    }

    /// Runs the program, which must fail with this code, say all of this on standard error, and leave nothing under
    /// a final name in `out`, nor any litter.
    pub fn fail(&self, args: &[&str], code: i32, said: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, code, "{args:?}\n{}{}", run.stdout, run.stderr);
        assert!(run.stderr.lines().any(|line| line.starts_with("error: ")), "{}", run.stderr);
        for part in said {
            assert!(run.stderr.contains(part), "{args:?}: no `{part}` in\n{}", run.stderr);
        }
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
        assert!(is_empty(&self.path("out")), "{args:?} left something in out");
        let litter = std::fs::read_dir(self.directory.path()).unwrap();
        let litter: Vec<_> = litter.map(|e| e.unwrap().file_name()).collect();
        assert!(litter.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{litter:?}");
        run
    }
}

fn is_empty(path: &Path) -> bool {
    !path.exists() || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// A Llama of some hundred parameters.
pub fn config() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": WORDS.len(), "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.2,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2
    })
}

/// Words at white space.
fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let special = |id: usize| {
        json!({
            "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" }
    })
}

/// Six pairs.
fn rows() -> String {
    let row = |prompt: &str, chosen: &str, rejected: &str| {
        format!("{}\n", json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected }))
    };
    [
        row("how are you", " fine thanks", " bad"),
        row("how are you today", " very fine", " very very bad"),
        row("are you fine", " thanks fine", " bad today"),
        row("how bad", " fine", " very bad today"),
        row("you", " thanks", " bad bad"),
        row("today", " fine today", " bad today"),
    ]
    .concat()
}
