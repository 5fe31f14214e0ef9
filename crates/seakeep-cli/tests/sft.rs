//! `seakeep sft` and `seakeep init --train_tokenizer` at work on a tiny model.

mod common;

use common::{FOUR_STEPS, Place};
use serde_json::{Value, json};

const SFT: [&str; 7] =
    ["sft", "--model_name_or_path", "model", "--dataset_name", "texts.jsonl", "--output_dir", "out"];

/// A tiny model, and six texts of three kinds.
fn place() -> Place {
    let place = Place::new();
    let rows = [
        json!({"text": "how are you fine thanks"}),
        json!({"text": "how are you today very fine"}),
        json!({"prompt": "are you", "completion": " fine"}),
        json!({"prompt": "how bad today", "completion": " very very bad"}),
        json!({"text": "you are bad"}),
        json!({"text": "today fine"}),
    ];
    place.write("texts.jsonl", &rows.map(|row| format!("{row}\n")).concat());
    place
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {line}"))
}

fn weights(place: &Place, name: &str) -> Vec<u8> {
    std::fs::read(place.path(name).join("model.safetensors")).unwrap()
}

#[test]
fn metrics_are_those_of_trls_sft_and_the_loss_falls() {
    let place = place();
    let eval = ["--dataset_test_split", "train[:2]", "--eval_strategy", "steps", "--eval_steps", "4"];
    let run = place.succeed(&[&SFT[..], &FOUR_STEPS, &eval, &["--packing", "true"]].concat());
    assert!(run.stdout.starts_with("out: 4 steps"), "{}", run.stdout);
    assert!(
        run.stderr.contains("6 texts") && run.stderr.contains("eval_mean_token_accuracy"),
        "{}",
        run.stderr
    );
    let lines = place.lines("out/metrics.jsonl");
    let names = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let all = "step epoch loss grad_norm learning_rate num_tokens entropy mean_token_accuracy";
    assert_eq!(names(&lines[0]), all);
    assert_eq!(names(&lines[4]), "step epoch eval_loss eval_entropy eval_mean_token_accuracy");
    // 6 and 7 tokens with EOS.
    assert_eq!(number(&lines[0], "num_tokens"), 13.0);
    assert!((number(&lines[0], "entropy") - 12f64.ln()).abs() < 0.5, "{}", lines[0]);
    // The first and the last step see the same two rows.
    assert!(number(&lines[3], "loss") < number(&lines[0], "loss") - 0.01, "{lines:?}");
    for file in ["config.json", "tokenizer.json", "checkpoint-2/trainer_state.json", "checkpoint-4"] {
        assert!(place.path("out").join(file).exists(), "{file}");
    }
    // What it wrote is a model for every other command.
    place.succeed(&["logps", "--model_name_or_path", "out", "--dataset_name", "pairs.jsonl"]);
}

#[test]
fn no_split_into_passes_changes_the_run() {
    let place = place();
    let train = |output: &str, batch: &str, passes: &str| {
        let own = ["--output_dir", output, "--save_strategy", "no", "--per_device_train_batch_size", batch];
        place.succeed(&[&SFT[..], &FOUR_STEPS, &own, &["--gradient_accumulation_steps", passes]].concat());
        place.lines(&format!("{output}/metrics.jsonl"))
    };
    for (a, b) in train("whole", "6", "1").iter().zip(&train("parts", "2", "3")) {
        for key in ["loss", "grad_norm", "num_tokens", "entropy", "mean_token_accuracy"] {
            // Sums over other numbers of rows round differently, and so do the weights after the first step.
            assert!((number(a, key) - number(b, key)).abs() <= 1e-4 * number(a, key), "{key}: {a} {b}");
        }
    }
}

#[test]
fn a_resumed_run_ends_as_the_uninterrupted_one() {
    let place = place();
    let shuffled = ["--shuffle_dataset", "true"];
    place.succeed(&[&SFT[..], &FOUR_STEPS, &shuffled, &["--output_dir", "whole"]].concat());
    std::fs::create_dir(place.path("parts")).unwrap();
    std::fs::rename(place.path("whole/checkpoint-2"), place.path("parts/checkpoint-2")).unwrap();
    let again = [&SFT[..], &FOUR_STEPS, &shuffled, &["--output_dir", "parts"]].concat();
    let resume = ["--resume_from_checkpoint", "true"];
    place.succeed(&[&again[..], &resume].concat());
    assert!(weights(&place, "whole") == weights(&place, "parts"));
    // Whether prompts are learnt is part of the run.
    let other = place.run(&[&again[..], &resume, &["--completion_only_loss", "false"]].concat());
    assert_ne!(other.code, 0, "{}", other.stderr);
}

#[test]
fn prompts_are_learnt_where_asked() {
    let place = place();
    let steps = ["--max_steps", "1", "--per_device_train_batch_size", "6", "--report_to", "none"];
    place.succeed(&[&SFT[..], &steps, &["--output_dir", "completions"]].concat());
    place
        .succeed(&[&SFT[..], &steps, &["--output_dir", "whole", "--completion_only_loss", "false"]].concat());
    assert!(weights(&place, "completions") != weights(&place, "whole"));
    // A file of lines is a file of texts.
    place.write("lines.txt", "how are you fine thanks\nyou are bad\n");
    place.write("lines.jsonl", "{\"said\": \"how are you fine thanks\"}\n{\"said\": \"you are bad\"}\n");
    place.succeed(&[&SFT[..], &steps, &["--dataset_name", "lines.txt", "--output_dir", "a"]].concat());
    let named = ["--dataset_name", "lines.jsonl", "--dataset_text_field", "said", "--output_dir", "b"];
    place.succeed(&[&SFT[..], &steps, &named].concat());
    assert!(weights(&place, "a") == weights(&place, "b"));
}

#[test]
fn bad_rows_and_keys_are_named() {
    let place = place();
    for (row, said) in [
        (r#"{"text": "how"#, "not JSON"),
        (r#"["how"]"#, "not an object"),
        (r#"{"label": 1}"#, "key `text`: missing or null"),
        (r#"{"text": ""}"#, "key `text`: an empty text"),
        (r#"{"text": 3}"#, "key `text`: a number"),
        (r#"{"prompt": "how"}"#, "key `completion`: missing"),
        // Without a space between them "howare" is another word.
        (r#"{"prompt": "how", "completion": "are"}"#, "not a prefix"),
        (r#"{"prompt": "how", "chosen": "are", "rejected": "you"}"#, "found: `prompt`, `chosen`, `rejected`"),
        (r#"{"messages": [{"role": "user", "content": "how"}]}"#, "no chat template"),
    ] {
        place.write("bad.jsonl", &format!("{{\"text\": \"how are\"}}\n{row}\n"));
        let file = [&SFT[..], &["--dataset_name", "bad.jsonl"]].concat();
        place.fail(&file, 1, &["bad.jsonl, row 2", said]);
    }
    place.write(
        "long.jsonl",
        &format!("{{\"text\": \"how are\"}}\n{{\"text\": \"{}\"}}\n", "very ".repeat(40)),
    );
    let long = [&SFT[..], &["--dataset_name", "long.jsonl"]].concat();
    place.fail(&long, 1, &["long.jsonl, row 2", "41 tokens", "32 positions", "`max_length` to 32"]);
    place.fail(&[&SFT[..], &["--beta", "0.1"]].concat(), 2, &["--beta"]);
    let assistant = [&SFT[..], &["--assistant_only_loss", "true"]].concat();
    place.fail(&assistant, 2, &["--assistant_only_loss", "generation", "`completion`"]);
    place.write("dpo.toml", "beta = 0.5\n");
    place.fail(&[&SFT[..], &["--config", "dpo.toml"]].concat(), 2, &["dpo.toml: `beta`", "seakeep train"]);
    place.write("sft.toml", "completion_only_loss = false\n");
    let train = [&common::TRAIN[..], &["--config", "sft.toml"]].concat();
    place.fail(&train, 2, &["sft.toml: `completion_only_loss`", "seakeep sft"]);
    place.fail(&[&SFT[..], &["--output_dir", "model"]].concat(), 2, &["is the model model itself"]);
}

#[test]
fn a_tokenizer_is_learnt_and_its_model_trained() {
    let place = place();
    let mut config = common::config();
    let own = config.as_object_mut().unwrap();
    own.retain(|key, _| !["vocab_size", "bos_token_id", "eos_token_id"].contains(&key.as_str()));
    place.write("open.json", &config.to_string());
    let init =
        ["init", "--config_json", "open.json", "--train_tokenizer", "270", "--dataset_name", "texts.jsonl"];
    let run = place.succeed(&[&init[..], &["--output_dir", "tiny"]].concat());
    assert!(run.stdout.contains("parameters, 270 tokens"), "{}", run.stdout);
    let made: Value = serde_json::from_str(&place.read("tiny/config.json")).unwrap();
    assert_eq!([&made["vocab_size"], &made["bos_token_id"], &made["eos_token_id"]], [270, 0, 0]);
    assert!(made.get("pad_token_id").is_none(), "texts begin with it: {made}");
    // Ids of another tokenizer would be any tokens of this one.
    config["bos_token_id"] = 1.into();
    config["eos_token_id"] = 2.into();
    config.as_object_mut().unwrap().shift_remove("vocab_size");
    place.write("foreign.json", &config.to_string());
    let run =
        place.succeed(&[&init[..], &["--config_json", "foreign.json", "--output_dir", "foreign"]].concat());
    assert!(
        run.stderr.contains("eos_token_id of --config_json, 2, is another tokenizer's"),
        "{}",
        run.stderr
    );
    assert_eq!(place.read("foreign/config.json"), place.read("tiny/config.json"));
    place.succeed(&[&init[..], &["--output_dir", "again"]].concat());
    assert_eq!(place.read("tiny/tokenizer.json"), place.read("again/tokenizer.json"));
    assert!(weights(&place, "tiny") == weights(&place, "again"));
    let train = ["--model_name_or_path", "tiny", "--max_steps", "2", "--learning_rate", "0.01"];
    place.succeed(&[&SFT[..], &train].concat());
    assert_eq!(place.read("tiny/tokenizer.json"), place.read("out/tokenizer.json"));

    let wrong = |change: &[&str], said: &[&str]| {
        let run = place.run(&[&init[..], &["--output_dir", "wrong"], change].concat());
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(said.iter().all(|part| run.stderr.contains(part)), "{}", run.stderr);
        assert!(!place.path("wrong").exists());
    };
    wrong(&["--train_tokenizer", "100"], &["--train_tokenizer", "257"]);
    wrong(&["--tokenizer", "tokenizer"], &["cannot be used with"]);
    wrong(&["--config_json", "config.json"], &["270 tokens", "`vocab_size` in --config_json is 12"]);
    let run = place.run(&[
        "init",
        "--config_json",
        "config.json",
        "--dataset_name",
        "texts.jsonl",
        "--output_dir",
        "w",
    ]);
    assert!(run.code == 2 && run.stderr.contains("without --train_tokenizer"), "{}", run.stderr);
}
