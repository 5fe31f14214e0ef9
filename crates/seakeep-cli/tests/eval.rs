//! `seakeep eval` as a judge: own samples, shifts of preferences, worst cases, records.

mod common;

use common::{FOUR_STEPS, Place, TRAIN};
use serde_json::{Value, json};

const EVAL: [&str; 5] = ["eval", "--model_name_or_path", "dpo", "--ref_model_name_or_path", "model"];
const SHIFT: [&str; 6] =
    ["--objectives", "warm,brief", "--nominal_alpha", "0.1", "--mixtures", "convex,geometric"];

/// A place with a trained policy.
fn place() -> Place {
    let place = Place::new();
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &["--output_dir", "dpo"]].concat());
    place
}

fn json_of(place: &Place, name: &str) -> Value {
    serde_json::from_str(&place.read(name)).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Preference rows with scores and groups.
fn scored_pairs(place: &Place) {
    let rows = place.lines("pairs.jsonl").into_iter().enumerate().map(|(i, mut row)| {
        row["scores_chosen"] = json!({"warm": 0.9, "brief": 0.2 + 0.1 * i as f64});
        row["scores_rejected"] = json!({"warm": 0.1, "brief": 0.4});
        row["who"] = json!(["a", "b"][i % 2]);
        format!("{row}\n")
    });
    place.write("scored.jsonl", &rows.collect::<String>());
}

/// Completions of a policy, scored by their length.
fn samples(place: &Place, model: &str, to: &str) {
    let how = [
        "--dataset_name",
        "pairs.jsonl",
        "--do_sample",
        "--num_return_sequences",
        "2",
        "--max_new_tokens",
        "4",
    ];
    place.succeed(
        &[&["generate", "--model_name_or_path", model, "--top_k", "0", "--output", "g.jsonl"], &how[..]]
            .concat(),
    );
    let scored = place.lines("g.jsonl").into_iter().map(|mut row| {
        let words = row["completion"].as_str().unwrap().split_whitespace().count() as f64;
        row["scores"] = json!({"warm": words / 10.0, "brief": 1.0 - words / 10.0, "unseen": words});
        format!("{row}\n")
    });
    place.write(to, &scored.collect::<String>());
}

#[test]
fn a_policy_is_judged_on_data_along_a_shift_and_in_the_worst_case() {
    let place = place();
    scored_pairs(&place);
    let data = ["--dataset_name", "near=scored.jsonl", "pairs.jsonl", "--group_column", "who"];
    let refused = place.run(&[&EVAL[..], &data].concat());
    assert!(refused.stderr.contains("key `who`: missing"), "{}", refused.stderr);
    let data = ["--dataset_name", "near=scored.jsonl", "--group_column", "who"];
    let judged = [
        "--wasserstein",
        "--bootstrap",
        "50",
        "--radii",
        "kl=0,0.5",
        "wasserstein=0.1",
        "--alphas",
        "0,0.5,1",
    ];
    let out = ["--policy_record", "records/dpo.json", "--output", "eval.json"];
    let run = place.succeed(&[&EVAL[..], &data, &SHIFT, &judged, &out].concat());
    for said in
        ["DPO beta 0.1", "accuracy, geometric 0.5", "worst case, wasserstein 0.1", "group b", "the worst"]
    {
        assert!(run.stderr.contains(said), "{said}: {}", run.stderr);
    }
    let (result, record) = (json_of(&place, "eval.json"), json_of(&place, "records/dpo.json"));
    let summary = &result["summary"]["datasets"][0];
    assert_eq!((summary["name"].as_str(), summary["rows"].as_u64()), (Some("near"), Some(6)));
    let loss = number(&summary["loss"]["value"]);
    assert!((loss - number(&result["datasets"][0]["eval_loss"])).abs() < 1e-12);
    let worst: Vec<f64> =
        summary["worst_cases"].as_array().unwrap().iter().map(|w| number(&w["loss"]["value"])).collect();
    assert!((worst[0] - loss).abs() < 1e-9 && worst[1] > loss && worst[2] > loss, "{worst:?} {loss}");
    // Trained on these very pairs, whose chosen completions are all warmer.
    assert_eq!(number(&summary["accuracies"][2]["reward"]["value"]), number(&summary["accuracy"]["value"]));
    assert_eq!(record["policy"]["method"], "dpo");
    assert_eq!((record["policy"]["seed"].as_u64(), record["schema_version"].as_u64()), (Some(42), Some(1)));
    assert_eq!(record["training"]["steps"].as_array().unwrap().len(), 4);
    let set = &record["datasets"][0];
    for column in ["margins", "losses", "input_gradients", "groups"] {
        assert_eq!(set[column].as_array().unwrap().len(), 6, "{column}");
    }
    assert!((number(&set["score_differences"]["warm"][0]) - 0.8).abs() < 1e-12);
    // Groups alone are a question, too, and a directory is itself however it is spelled.
    let reference = ["eval", "--model_name_or_path", "model", "--ref_model_name_or_path", "./model/"];
    let run = place.succeed(&[&reference[..], &data, &["--policy_record", "ref.json"]].concat());
    assert!(run.stderr.contains("group b"), "{}", run.stderr);
    assert_eq!(json_of(&place, "ref.json")["policy"]["method"], "reference");
    place.write("eval.toml", "dataset_name = [\"near=scored.jsonl\", \"pairs.jsonl\"]\nbootstrap = 9\n");
    let both = place.succeed(&[&EVAL[..], &["--config", "eval.toml"]].concat());
    let both: Value = serde_json::from_str(&both.stdout).unwrap();
    assert_eq!(both["datasets"].as_array().unwrap().len(), 2);
    // What was there before is as it was.
    let plain = place.succeed(&[&EVAL[..], &["--dataset_name", "pairs.jsonl"]].concat());
    let plain: Value = serde_json::from_str(&plain.stdout).unwrap();
    assert_eq!(plain["datasets"][0]["eval_loss"], result["datasets"][0]["eval_loss"]);
    assert!(plain.get("summary").is_none());
}

#[test]
fn samples_are_drawn_or_read_and_policies_compared() {
    let place = place();
    let draw = [
        "--prompts",
        "pairs.jsonl",
        "--num_return_sequences",
        "2",
        "--max_new_tokens",
        "4",
        "--bootstrap",
        "50",
    ];
    let drawn = place.succeed(&[&EVAL[..], &draw, &["--policy_record", "drawn.json"]].concat());
    assert!(drawn.stderr.contains("KL, nats per token"), "{}", drawn.stderr);
    scored_pairs(&place);
    let unscored = ["--dataset_name", "scored.jsonl", "--compare_with", "drawn.json"];
    let said = "--compare_with: policies are compared by rewards";
    place.fail(&[&EVAL[..], &draw, &SHIFT, &unscored].concat(), 2, &[said]);
    samples(&place, "dpo", "dpo.jsonl");
    samples(&place, "model", "ref.jsonl");
    let judge = |model: &str, file: &str, more: &[&str]| {
        let flags =
            ["eval", "--model_name_or_path", model, "--ref_model_name_or_path", "model", "--samples", file];
        place.succeed(&[&flags[..], &SHIFT, &["--bootstrap", "50"], more].concat())
    };
    let reference = judge("model", "ref.jsonl", &["--policy_record", "ref.json"]);
    let summary: Value = serde_json::from_str(&reference.stdout).unwrap();
    assert_eq!(
        number(&summary["summary"]["kl_per_completion"]["value"]),
        0.0,
        "the same weights, the same bits"
    );
    assert_eq!(json_of(&place, "ref.json")["policy"]["method"], "reference");
    let run = judge("dpo", "dpo.jsonl", &["--policy_record", "dpo.json", "--compare_with", "ref.json"]);
    assert!(run.stderr.contains("less reference") && run.stderr.contains("below 0 in"), "{}", run.stderr);
    let summary: Value = serde_json::from_str(&run.stdout).unwrap();
    let summary = &summary["summary"];
    assert_eq!(summary["rewards"].as_array().unwrap().len(), 22);
    assert_eq!(summary["comparison"]["rewards"].as_array().unwrap().len(), 22);
    assert!(summary["objectives"].get("unseen").is_some());
    // Drawn here or by `generate`, with the same seed: the same completions and log-probabilities.
    let (own, read) = (json_of(&place, "drawn.json"), json_of(&place, "dpo.json"));
    for column in ["tokens", "prompts_fingerprint", "distinct"] {
        assert_eq!(own["samples"][column], read["samples"][column], "{column}");
    }
    for column in ["logps", "ref_logps"] {
        let numbers = |record: &Value| -> Vec<f64> {
            record["samples"][column].as_array().unwrap().iter().map(number).collect()
        };
        for (a, b) in numbers(&own).iter().zip(numbers(&read)) {
            assert!((a - b).abs() < 1e-5 * b.abs(), "{column}: {a} {b}");
        }
    }
}

#[test]
fn what_cannot_be_judged_is_refused_and_nothing_written() {
    let place = place();
    scored_pairs(&place);
    samples(&place, "dpo", "s.jsonl");
    let out = ["--policy_record", "out/record.json", "--output", "out/eval.json"];
    let eval = |flags: &[&'static str]| [&EVAL[..], &out, flags].concat();
    let pairs = ["--dataset_name", "scored.jsonl"];
    for (flags, code, said) in [
        (
            &["--samples", "s.jsonl", "--objectives", "warm,breif", "--nominal_alpha", "0.1"][..],
            2,
            "did you mean `brief`?",
        ),
        (
            &["--dataset_name", "scored.jsonl", "--objectives", "warn,brief", "--nominal_alpha", "0.1"],
            2,
            "did you mean `warm`?",
        ),
        (
            &["--dataset_name", "pairs.jsonl", "--objectives", "warm,brief", "--nominal_alpha", "0.1"],
            2,
            "nothing here has scores",
        ),
        (&["--samples", "s.jsonl", "--objectives", "warm", "--nominal_alpha", "0.1"], 2, "expected two"),
        (&["--samples", "s.jsonl", "--objectives", "warm,brief"], 2, "--nominal_alpha"),
        (&["--samples", "s.jsonl", "--prompts", "pairs.jsonl"], 2, "cannot be used with"),
        (&["--samples", "s.jsonl", "--temperature", "0.5"], 2, "cannot be used with"),
        (&["--prompts", "pairs.jsonl", "--temperature", "0"], 2, "`temperature` is 0"),
        (&["--dataset_name", "pairs.jsonl", "--radii", "chi3=1"], 2, "did you mean chi2?"),
        (&["--dataset_name", "pairs.jsonl", "--bootstrap", "0"], 2, "--bootstrap is 0"),
        (&["--dataset_name", "a=pairs.jsonl", "a=scored.jsonl"], 2, "two data sets are named `a`"),
        (&[], 2, "nothing to judge on"),
    ] {
        place.fail(&eval(flags), code, &[said]);
    }
    place.write("record.json", "{\"schema_version\": 2}");
    let compared = ["--samples", "s.jsonl", "--compare_with", "record.json"];
    place.fail(
        &[&eval(&compared)[..], &SHIFT].concat(),
        1,
        &["record.json: schema_version 2; this program reads"],
    );
    // Another prompt less.
    let lines: Vec<String> = place.read("s.jsonl").lines().map(|l| format!("{l}\n")).collect();
    place.write("fewer.jsonl", &lines[2..].concat());
    let less = [
        &EVAL[..],
        &["--samples", "fewer.jsonl", "--policy_record", "fewer.json", "--bootstrap", "9"],
        &SHIFT,
    ];
    place.succeed(&less.concat());
    let compared = ["--samples", "s.jsonl", "--compare_with", "fewer.json"];
    place.fail(&[&eval(&compared)[..], &SHIFT].concat(), 2, &["different prompts", "6 prompts", "5 prompts"]);
    for (row, said) in [
        (r#"{"prompt": "you", "completion": "fine"}"#, "row 13, key `scores`: missing"),
        (
            r#"{"prompt": "you", "completion": "fine", "scores": {"warm": 1, "brief": NaN, "unseen": 1}}"#,
            "row 13",
        ),
        (
            r#"{"prompt": "you", "completion": "fine", "scores": {"warm": 1, "brief": null, "unseen": 1}}"#,
            "`brief` is null",
        ),
        (
            r#"{"prompt": "you", "completion": "fine", "scores": {"warm": 1, "brief": 2}}"#,
            "no score `unseen`",
        ),
        (
            r#"{"prompt": "too", "completion": "fine", "scores": {"warm": 1, "brief": 2, "unseen": 1}}"#,
            "1 completions of this",
        ),
    ] {
        place.write("broken.jsonl", &format!("{}{row}\n", lines.concat()));
        place.fail(&eval(&["--samples", "broken.jsonl"]), 1, &["broken.jsonl", said]);
    }
    place.write("negative.jsonl", &lines.concat().replacen("\"warm\":0.", "\"warm\":-0.", 1));
    place.fail(
        &[&eval(&["--samples", "negative.jsonl"])[..], &SHIFT].concat(),
        1,
        &["takes no negative score"],
    );
    place.write("long.jsonl", &format!("{}\n", json!({"prompt": "you ".repeat(40)})));
    place.fail(&eval(&["--prompts", "long.jsonl"]), 1, &["long.jsonl, row 1", "leaves no room"]);
    let broken = place.read("scored.jsonl").replacen("\"warm\":0.9", "\"warm\":\"x\"", 1);
    place.write("scored.jsonl", &broken);
    place.fail(&eval(&pairs), 1, &["scored.jsonl, row 1, key `scores_chosen`", "`warm` is \"x\""]);
}
