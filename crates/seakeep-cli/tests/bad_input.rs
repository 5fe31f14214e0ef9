//! Bad input: each a clear error that names file, row or key, with its exit code, and nothing left under a final name.

mod common;

use common::{Place, TRAIN, config};
use serde_json::json;

/// The training command with some of its arguments replaced or added.
fn train<'a>(change: &[&'a str]) -> Vec<&'a str> {
    // The last of several values of a flag counts.
    [&TRAIN, change].concat()
}

#[test]
fn missing_files_are_named() {
    let place = Place::new();
    place.fail(&train(&["--model_name_or_path", "nowhere"]), 1, &["nowhere", "no such file or directory"]);
    place.fail(&train(&["--dataset_name", "none.jsonl"]), 1, &["none.jsonl", "no such file or directory"]);
    place.fail(&train(&["--ref_model_name_or_path", "noref"]), 1, &["noref", "no such file or directory"]);
    place.fail(&train(&["--config", "none.toml"]), 1, &["cannot read none.toml", "hint: paths are taken"]);
    place.fail(&train(&["--dataset_name", "none-*.jsonl"]), 2, &["no file matches `none-*.jsonl`"]);
    place.fail(&["init", "--config_json", "none.json", "--output_dir", "out"], 1, &["cannot read none.json"]);
}

#[test]
fn bad_rows_are_named_by_file_row_and_key() {
    let place = Place::new();
    let good = r#"{"prompt": "how", "chosen": " fine", "rejected": " bad"}"#;
    for (name, row, wanted) in [
        ("malformed.jsonl", r#"{"prompt": "how", "chosen": "#, "not JSON"),
        ("half.jsonl", r#"{"prompt": "how", "chosen": " fine"}"#, "key `rejected`: missing"),
        (
            "empty.jsonl",
            r#"{"prompt": "how", "chosen": "", "rejected": " bad"}"#,
            "key `chosen`: an empty completion",
        ),
        ("number.jsonl", r#"{"prompt": "how", "chosen": 3, "rejected": " bad"}"#, "key `chosen`: a number"),
        (
            "joined.jsonl",
            r#"{"prompt": "how", "chosen": "fine", "rejected": " bad"}"#,
            "not a prefix of prompt + `chosen`",
        ),
    ] {
        place.write(name, &format!("{good}\n{good}\n{row}\n{good}\n"));
        for command in [
            train(&["--dataset_name", name]),
            vec!["logps", "--model_name_or_path", "model", "--dataset_name", name, "--output", "out"],
            vec![
                "eval",
                "--model_name_or_path",
                "model",
                "--dataset_name",
                "pairs.jsonl",
                name,
                "--output",
                "out",
            ],
            vec!["inspect", "data", "--model_name_or_path", "model", "--dataset_name", name],
        ] {
            place.fail(&command, 1, &[&format!("{name}, row 3"), wanted]);
        }
    }
}

#[test]
fn a_wholly_truncated_completion_stops_unless_it_may_be_dropped() {
    let place = Place::new();
    let short = ["--max_length", "4"];
    place.fail(&train(&short), 1, &["pairs.jsonl, row 2, key `prompt`: 4 tokens, and `max_length` is 4"]);
    place.fail(&train(&["--max_length", "2", "--dataset_name", "long.jsonl"]), 1, &["long.jsonl"]);
    let logps = [
        "logps",
        "--model_name_or_path",
        "model",
        "--dataset_name",
        "pairs.jsonl",
        "--truncated_completion",
        "drop",
    ];
    let run = place.succeed(&[&logps[..], &short].concat());
    assert_eq!(run.stdout.lines().count(), 5);
    assert!(run.stderr.contains("1 of 6 rows left out"), "{}", run.stderr);
}

#[test]
fn a_configuration_file_is_checked() {
    let place = Place::new();
    place.write("typo.toml", "learning_rat = 1e-5\n");
    place.fail(
        &train(&["--config", "typo.toml"]),
        2,
        &["typo.toml: `learning_rat`", "did you mean `learning_rate`?"],
    );
    place.write("type.yaml", "beta: high\n");
    place.fail(
        &train(&["--config", "type.yaml"]),
        2,
        &["type.yaml: `beta` is \"high\"; expected a number above 0"],
    );
    place.write("broken.toml", "beta = \n");
    place.fail(&train(&["--config", "broken.toml"]), 2, &["broken.toml", "line 1"]);
    place.write("peft.toml", "fp16 = true\n");
    place.fail(&train(&["--config", "peft.toml"]), 2, &["peft.toml: `fp16` is true", "bf16"]);
}

#[test]
fn flags_are_checked() {
    let place = Place::new();
    place.fail(&train(&["--learning_rat", "1"]), 2, &["--learning_rat", "'--learning_rate'"]);
    place.fail(&train(&["--learning_rate", "fast"]), 2, &["--learning_rate is \"fast\"; expected a number"]);
    place.fail(&train(&["--wdpo_rho", "1"]), 2, &["--wdpo_rho has no meaning with method dpo"]);
    place.fail(&train(&["--max_steps"]), 2, &["--max_steps"]);
    place.fail(&["trian"], 2, &["'train'"]);
    let run = place.fail(&["train", "--method", "kldpo"], 2, &["give --model_name_or_path"]);
    assert!(run.stderr.contains("hint: `seakeep help train`"), "{}", run.stderr);
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    let place = Place::new();
    place.write("file", "");
    place.fail(&train(&["--output_dir", "file/out"]), 1, &["file"]);
    place.fail(&["init", "--config_json", "config.json", "--output_dir", "file/out"], 1, &["file"]);
    for command in ["logps", "eval"] {
        let scored = [command, "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", "--output"];
        place.fail(&[&scored[..], &["file/a.jsonl"]].concat(), 1, &["file: not a directory"]);
        place.fail(&[&scored[..], &["model"]].concat(), 2, &["--output model is a directory"]);
    }
    let run =
        place.fail(&["init", "--config_json", "config.json", "--output_dir", "model"], 2, &["not empty"]);
    assert!(run.stdout.is_empty());
}

/// No command writes over what it reads, by whatever name, or twice to one file.
#[test]
fn what_is_read_is_not_written_over() {
    let place = Place::new();
    let pairs = std::fs::read(place.path("pairs.jsonl")).unwrap();
    let model = ["--model_name_or_path", "model"];
    let data = ["--dataset_name", "pairs.jsonl"];
    for command in ["logps", "eval", "generate"] {
        let both = [&[command][..], &model, &data, &["--output", "./pairs.jsonl"]].concat();
        place.fail(&both, 2, &["--output and --dataset_name are the same file, ./pairs.jsonl"]);
    }
    let eval = [&["eval"][..], &model].concat();
    for (more, said) in [
        (
            &["--dataset_name", "p=pairs.jsonl", "--policy_record", "pairs.jsonl"][..],
            "--policy_record and --dataset_name",
        ),
        (&["--prompts", "pairs.jsonl", "--output", "pairs.jsonl"], "--output and --prompts"),
        (&["--samples", "pairs.jsonl", "--output", "pairs.jsonl"], "--output and --samples"),
        (
            &["--dataset_name", "pairs.jsonl", "--output", "new.json", "--policy_record", "./new.json"],
            "--output and --policy_record",
        ),
    ] {
        place.fail(&[&eval[..], more].concat(), 2, &[said, "are the same file"]);
    }
    place.write("card.json", "{}");
    let report =
        ["report", "--records", "model/config.json", "--data_card", "card.json", "--output", "card.json"];
    place.fail(&report, 2, &["--output and --data_card are the same file"]);
    assert!(std::fs::read(place.path("pairs.jsonl")).unwrap() == pairs && !place.path("new.json").exists());
    std::fs::create_dir(place.path("other")).unwrap();
    std::fs::copy(place.path("pairs.jsonl"), place.path("other/pairs.jsonl")).unwrap();
    let twice =
        [&eval[..], &["--policy_record", "r.json", "--dataset_name", "pairs.jsonl", "other/pairs.jsonl"]]
            .concat();
    place.fail(&twice, 2, &["two data sets are named `pairs`", "NAME=PATH"]);
}

/// A model that is somebody else's is not written over.
#[test]
fn a_model_in_the_output_directory_stays() {
    let place = Place::new();
    place.copy_model("theirs");
    let before = std::fs::read(place.path("theirs/model.safetensors")).unwrap();
    let to = ["--model_name_or_path", "model", "--output_dir", "theirs"];
    place.fail(&train(&to), 2, &["theirs holds a model that no run of this program left there"]);
    assert_eq!(std::fs::read(place.path("theirs/model.safetensors")).unwrap(), before);
    place.succeed(&train(&[&to[..], &["--overwrite_output_dir", "true"]].concat()));
}

/// What another run does with the directory it writes to: it locks it.
#[cfg(unix)]
#[test]
fn a_directory_that_another_run_writes_to_is_left_to_it() {
    let place = Place::new();
    let to = train(&["--output_dir", "out"]);
    std::fs::create_dir(place.path("out")).unwrap();
    let theirs = std::fs::File::open(place.path("out")).unwrap();
    theirs.try_lock().unwrap();
    place.fail(&to, 2, &["output_dir out: another run is writing there"]);
    assert_eq!(std::fs::read_dir(place.path("out")).unwrap().count(), 0);
    drop(theirs);
    place.succeed(&to);
}

#[test]
fn broken_models_are_refused() {
    let place = Place::new();
    place.copy_model("cut");
    let whole = std::fs::read(place.path("model/model.safetensors")).unwrap();
    std::fs::write(place.path("cut/model.safetensors"), &whole[..whole.len() - 40]).unwrap();
    place.copy_model("nan");
    let mut values = whole.clone();
    let end = values.len();
    values[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(place.path("nan/model.safetensors"), &values).unwrap();
    place.copy_model("pickle");
    std::fs::remove_file(place.path("pickle/model.safetensors")).unwrap();
    place.write("pickle/pytorch_model.bin", "\u{2}c");
    place.copy_model("unknown");
    let mut other = config();
    other["model_type"] = json!("mamba");
    place.write("unknown/config.json", &other.to_string());
    place.copy_model("wordless");
    std::fs::remove_file(place.path("wordless/tokenizer.json")).unwrap();
    place.copy_model("wide");
    other["model_type"] = json!("llama");
    other["hidden_size"] = json!(16);
    place.write("wide/config.json", &other.to_string());
    let layers = |name: &str, n: u64| {
        place.copy_model(name);
        let mut changed = config();
        changed["num_hidden_layers"] = json!(n);
        place.write(&format!("{name}/config.json"), &changed.to_string());
    };
    layers("deep", 1_000_000_000);
    place.write(
        "two.json",
        &config().to_string().replace("\"num_hidden_layers\":1", "\"num_hidden_layers\":2"),
    );
    place.succeed(&["init", "--config_json", "two.json", "--output_dir", "shallow"]);
    place.write("shallow/config.json", &config().to_string());
    std::fs::copy(place.path("model/tokenizer.json"), place.path("shallow/tokenizer.json")).unwrap();
    place.write("cut.gguf", "GGUF\u{3}\0\0\0");
    for (model, said) in [
        ("cut", "cut/model.safetensors: the file ("),
        ("nan", "nan/model.safetensors: tensor `"),
        ("pickle", "pytorch_model.bin: a pickle"),
        ("unknown", "(`model_type`) is `mamba`; supported: llama"),
        ("wordless", "wordless: no tokenizer.json"),
        ("wide", "wide"),
        ("deep", "`num_hidden_layers` is 1000000000; expected 1 to 10000 layers"),
        ("shallow", "belongs to no layer: config.json says that there are 1"),
        ("cut.gguf", "cut.gguf"),
    ] {
        place.fail(&train(&["--model_name_or_path", model]), 1, &[said]);
        let logps =
            ["logps", "--model_name_or_path", model, "--dataset_name", "pairs.jsonl", "--output", "out"];
        place.fail(&logps, 1, &[said]);
    }
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let place = Place::new();
    place.copy_model("endless");
    place.write(
        "endless/chat_template.jinja",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    );
    let turn = |role: &str, text: &str| json!([{ "role": role, "content": text }]);
    let row = json!({ "prompt": turn("user", "how"), "chosen": turn("assistant", "fine"), "rejected": turn("assistant", "bad") });
    place.write("chat.jsonl", &row.to_string());
    let chat = ["--model_name_or_path", "endless", "--dataset_name", "chat.jsonl"];
    place.fail(&train(&chat), 1, &["chat.jsonl, row 1", "chat_template.jinja"]);
}

#[test]
fn init_checks_the_architecture_and_the_vocabulary() {
    let place = Place::new();
    let mut small = config();
    small["vocab_size"] = json!(5);
    place.write("small.json", &small.to_string());
    let init = ["init", "--output_dir", "out", "--tokenizer", "tokenizer", "--config_json"];
    place.fail(&[&init[..], &["small.json"]].concat(), 2, &["12 tokens", "`vocab_size`", "is 5"]);
    place.write("broken.json", "{");
    place.fail(&[&init[..], &["broken.json"]].concat(), 1, &["broken.json: not JSON"]);
    place.write("empty.json", "{}");
    place.fail(&[&init[..], &["empty.json"]].concat(), 1, &["model_type"]);
}

#[test]
fn quickstart_leaves_a_used_directory_alone() {
    let place = Place::new();
    place.fail(&["quickstart", "--output_dir", "model"], 2, &["output_dir model is not empty"]);
    place.fail(&["quickstart", "--seeds", "0", "--output_dir", "out"], 2, &["'--seeds <N>'"]);
    place.write("file", "");
    place.fail(&["quickstart", "--output_dir", "file/out"], 1, &["file/out"]);
}

#[test]
fn generate_checks_its_options_and_prompts() {
    let place = Place::new();
    let model = ["generate", "--model_name_or_path", "model"];
    place.fail(&model, 2, &["no prompt: give --prompt TEXT or --dataset_name FILE"]);
    let asked = [&model[..], &["--prompt", "how"]].concat();
    place.fail(
        &[&asked[..], &["--temperature", "0"]].concat(),
        2,
        &["`temperature` is 0; expected a number above 0"],
    );
    place.fail(&[&asked[..], &["--top_p", "x"]].concat(), 2, &["invalid value 'x' for '--top_p <X>'"]);
    place.fail(
        &[&asked[..], &["--system", "be kind"]].concat(),
        2,
        &["--system needs the model's chat template"],
    );
    place.write("questions.jsonl", "{\"question\": \"how\"}\n");
    let file = [&model[..], &["--dataset_name", "questions.jsonl", "--output", "out"]].concat();
    place.fail(&file, 1, &["questions.jsonl, row 1, key `prompt`: missing"]);
}
