//! `seakeep reward`: training, scoring, measuring, and what is refused.

mod common;

use common::Place;
use serde_json::{Value, json};

const TRAIN: [&str; 23] = [
    "reward",
    "train",
    "--model_name_or_path",
    "model",
    "--dataset_name",
    "labelled.jsonl",
    "--output_dir",
    "rm",
    "--num_train_epochs",
    "12",
    "--per_device_train_batch_size",
    "4",
    "--learning_rate",
    "0.02",
    "--lr_scheduler_type",
    "constant",
    "--logging_steps",
    "1",
    "--max_grad_norm",
    "0",
    "--report_to",
    "none",
    "--overwrite_output_dir",
];

/// Texts of two words; `good` holds where one is "fine", `sad` where one is "bad".
fn labelled(place: &Place) {
    let words = ["how", "are", "you", "thanks", "very", "today"];
    let mut rows = String::new();
    for (i, word) in words.iter().enumerate() {
        for (end, names) in [
            ("fine", json!(["good"])),
            ("bad", json!({"good": 0, "sad": 1, "odd": null})),
            ("you", json!([])),
        ] {
            let text = if i % 2 == 0 { format!("{word} {end}") } else { format!("{end} {word}") };
            rows += &format!("{}\n", json!({"text": text, "labels": names}));
        }
    }
    place.write("labelled.jsonl", &rows);
}

fn measure(place: &Place, model: &str, data: &str) -> Value {
    let run = place.succeed(&["reward", "eval", "--model_name_or_path", model, "--dataset_name", data]);
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn labels_are_learned_scored_and_measured() {
    let place = Place::new();
    labelled(&place);
    let own = ["--labels", "good,sad", "--eval_dataset_name", "labelled.jsonl", "--eval_strategy", "epoch"];
    let run = place.succeed(&[&TRAIN[..], &["true"], &own].concat());
    assert!(
        run.stdout.starts_with("rm: 60 steps") && run.stdout.contains("eval_roc_auc_macro"),
        "{}",
        run.stdout
    );
    let log = place.lines("rm/metrics.jsonl");
    assert_eq!(log.iter().filter(|line| line["eval_loss"].is_number()).count(), 12);
    assert!(log[0]["grad_norm"].is_number() && log[0]["accuracy"].is_number(), "{}", log[0]);
    let found = measure(&place, "rm", "labelled.jsonl");
    assert!(found["roc_auc/good"].as_f64().unwrap() > 0.95, "{found}");
    assert!(
        found["roc_auc_macro"].as_f64().unwrap() > 0.95 && found["loss"].as_f64().unwrap() < 0.5,
        "{found}"
    );
    let last = log.last().unwrap();
    assert!((last["eval_loss"].as_f64().unwrap() - found["loss"].as_f64().unwrap()).abs() < 1e-6);

    let rows = [
        json!({"id": 7, "prompt": "how are", "completion": " fine", "scores": {"old": 1.5}}),
        json!({"prompt": "how are", "completion": " bad", "tokens": [9]}),
        json!({"text": "how are fine", "scores": null}),
    ];
    place.write("gen.jsonl", &rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let score = |out: &str, more: &[&str]| {
        let own = ["reward", "score", "--model_name_or_path", "rm", "--input", "gen.jsonl", "--output", out];
        place.succeed(&[&own[..], more].concat());
        place.lines(out)
    };
    let scored = score("scored.jsonl", &["--per_device_eval_batch_size", "2"]);
    let good = |row: &Value| row["scores"]["good"].as_f64().unwrap();
    assert_eq!(
        (&scored[0]["id"], &scored[0]["scores"]["old"], &scored[1]["tokens"]),
        (&json!(7), &json!(1.5), &json!([9]))
    );
    assert!(good(&scored[0]) > 0.5 && good(&scored[1]) < 0.5, "{scored:?}");
    assert!((good(&scored[0]) - good(&scored[2])).abs() < 1e-6, "a text is prompt and completion end to end");
    let raw = score("raw.jsonl", &["--raw", "--prefix", "rm."]);
    let logit = raw[0]["scores"]["rm.good"].as_f64().unwrap();
    assert!((1.0 / (1.0 + (-logit).exp()) - good(&scored[0])).abs() < 1e-6);
    // Nothing of the completion would be scored.
    let long = json!({"prompt": "how are", "completion": " fine"});
    place.write("long.jsonl", &format!("{long}\n"));
    let own = [
        "reward",
        "score",
        "--model_name_or_path",
        "rm",
        "--input",
        "long.jsonl",
        "--output",
        "long-scored.jsonl",
    ];
    place.fail(
        &[&own[..], &["--max_length", "2"]].concat(),
        1,
        &["long.jsonl, row 1, key `prompt`", "alone has 2 tokens"],
    );
    // What comes out is what `pairs` takes.
    place.write("two.jsonl", &scored[..2].iter().map(|row| format!("{row}\n")).collect::<String>());
    let pairs = [
        "pairs",
        "--input",
        "two.jsonl",
        "--weights",
        "good=1",
        "--labels",
        "higher",
        "--output_dir",
        "pairs",
    ];
    place.succeed(&pairs);
    assert_eq!(place.lines("pairs/train.jsonl")[0]["chosen"], " fine");
}

#[test]
fn micro_batches_and_threads_change_nothing() {
    let place = Place::new();
    labelled(&place);
    let run = |name: &str, more: &[&str]| {
        let own =
            ["true", "--output_dir", name, "--max_steps", "5", "--concatenate", "3", "--weight_decay", "0.1"];
        place.succeed(&[&TRAIN[..], &own, more].concat());
        place.lines(&format!("{name}/metrics.jsonl"))
    };
    let whole = run("whole", &["--num_threads", "1"]);
    let same = run("same", &["--num_threads", "2"]);
    assert_eq!(whole, same);
    let bytes = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert_eq!(bytes("whole/model.safetensors"), bytes("same/model.safetensors"));
    let cut = run("cut", &["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4"]);
    for (a, b) in whole.iter().zip(&cut) {
        assert_eq!(a["num_tokens"], b["num_tokens"]);
        for name in ["loss", "grad_norm"] {
            let (a, b) = (a[name].as_f64().unwrap(), b[name].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4 * b.abs(), "{name}: {a} and {b}");
        }
    }
}

#[test]
fn pairs_are_learned() {
    let place = Place::new();
    let own = ["true", "--dataset_name", "pairs.jsonl", "--center_rewards_coefficient", "0.01"];
    place.succeed(&[&TRAIN[..], &own, &["--num_train_epochs", "30"]].concat());
    let config: Value = serde_json::from_str(&place.read("rm/config.json")).unwrap();
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!((&config["id2label"], &config["num_labels"]), (&json!({"0": "reward"}), &json!(1)));
    let first = &place.lines("rm/metrics.jsonl")[0];
    for name in ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"] {
        assert!(first[name].is_number(), "{first}");
    }
    let found = measure(&place, "rm", "pairs.jsonl");
    assert_eq!(found["accuracy"], 1.0, "{found}");
    // Trained on from there, with its head.
    let on = [
        "true",
        "--dataset_name",
        "pairs.jsonl",
        "--model_name_or_path",
        "rm",
        "--output_dir",
        "rm2",
        "--max_steps",
        "1",
    ];
    place.succeed(&[&TRAIN[..], &on].concat());
    assert!(place.lines("rm2/metrics.jsonl")[0]["loss"].as_f64().unwrap() < 0.3);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_written() {
    let place = Place::new();
    labelled(&place);
    place.write("pairs2.jsonl", &place.read("pairs.jsonl"));
    let out = ["true", "--output_dir", "out"];
    for (flags, code, part) in [
        (&["--labels", "goood"][..], 2, "did you mean `good`?"),
        (&["--concatenate", "0"], 2, "--concatenate is 0"),
        (&["--center_rewards_coefficient", "0.1"], 2, "is for pairs"),
        (&["--center_rewards_coefficient", "-1"], 2, "at least 0"),
        (&["--dataset_name", "pairs2.jsonl", "--concatenate", "2"], 2, "concatenate merges labels"),
        (&["--eval_strategy", "epoch"], 2, "Give eval_dataset_name"),
        (&["--problem_type", "single_label_classification"], 1, "labelled.jsonl, row 3, key `labels`"),
        (&["--problem_type", "bradley_terry"], 1, "labelled.jsonl, row 1"),
        (&["--output_dir", "model"], 2, "is the model model itself"),
    ] {
        place.fail(&[&TRAIN[..], &out, flags].concat(), code, &[part]);
    }
    let score = [
        "reward",
        "score",
        "--model_name_or_path",
        "model",
        "--input",
        "labelled.jsonl",
        "--output",
        "out/s.jsonl",
    ];
    place.fail(&score, 1, &["no tensor `score.weight`"]);
}
