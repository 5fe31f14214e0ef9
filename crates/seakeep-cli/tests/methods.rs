//! Methods from the command line: data of every shape they take, what they refuse, and that they resume.

mod common;

use common::{FOUR_STEPS, Place, TRAIN};
use serde_json::{Value, json};

/// The pairs of the place with further columns.
fn labelled(place: &Place) {
    let rows = place.lines("pairs.jsonl").into_iter().enumerate().map(|(i, mut row)| {
        row["group"] = json!(["near", "far"][i % 2]);
        row["votes"] = json!([1, i % 2, "tie"]);
        (row["score_chosen"], row["score_rejected"]) = (json!(1.0 + i as f64), json!(0.5));
        format!("{row}\n")
    });
    place.write("labelled.jsonl", &rows.collect::<String>());
}

fn trained(place: &Place, data: &str, output: &str, flags: &[&str]) -> Vec<Value> {
    let own = ["--dataset_name", data, "--output_dir", output];
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &own, flags].concat());
    place.lines(&format!("{output}/metrics.jsonl"))
}

fn has(line: &Value, key: &str) -> bool {
    line.get(key).is_some_and(Value::is_number)
}

#[test]
fn columns_reach_the_objectives_that_ask_for_them() {
    let place = Place::new();
    labelled(&place);
    let of = |output: &str, flags: &[&str]| trained(&place, "labelled.jsonl", output, flags);
    let group = of("group", &["--method", "group", "--group_step_size", "0.5"]);
    assert!(has(&group[3], "group/near/loss") && has(&group[3], "group/far/weight"), "{}", group[3]);
    let votes = of("votes", &["--method", "dpo-pro", "--soft_label_column", "votes"]);
    // Votes of 5/6 and 1/2 in turn.
    let soft = votes[0]["dpo_pro/soft_label"].as_f64().unwrap();
    assert!((0.49..0.84).contains(&soft), "{soft}");
    // Rewards differ by 0.5 and more: at a margin of 0 their squares are the loss.
    let rebel = of("rebel", &["--method", "kl-rebel", "--shuffle_dataset", "false"]);
    assert!(rebel[0]["loss"].as_f64().unwrap() > 0.25, "{}", rebel[0]);

    for (method, key) in [("group", "group"), ("rebel", "score_chosen")] {
        let flags = [&TRAIN[..], &FOUR_STEPS, &["--method", method]].concat();
        place.fail(&flags, 1, &["pairs.jsonl, row 1", &format!("key `{key}`: missing")]);
    }
}

#[test]
fn labelled_completions_and_pairs_train_kto() {
    let place = Place::new();
    let rows = [("how are you", " fine", true), ("how bad", " very bad", false), ("you", " thanks", true)];
    let rows =
        rows.map(|(p, c, label)| format!("{}\n", json!({"prompt": p, "completion": c, "label": label})));
    place.write("unpaired.jsonl", &rows.concat());
    let lines = trained(
        &place,
        "unpaired.jsonl",
        "unpaired",
        &["--method", "kto", "--gradient_accumulation_steps", "2"],
    );
    for key in ["kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"] {
        assert!(lines.iter().any(|line| has(line, key)), "{key}");
    }
    // At the start nothing has moved: 1 - sigmoid(0).
    assert!((lines[0]["loss"].as_f64().unwrap() - 0.5).abs() < 1e-6, "{}", lines[0]);
    let pairs = trained(&place, "pairs.jsonl", "paired", &["--loss_type", "kto"]);
    assert!((pairs[0]["loss"].as_f64().unwrap() - 0.5).abs() < 1e-6);
    let eval =
        ["eval", "--method", "kto", "--model_name_or_path", "paired", "--ref_model_name_or_path", "model"];
    let run = place.succeed(&[&eval[..], &["--dataset_name", "unpaired.jsonl"]].concat());
    assert!(run.stdout.contains("eval_kl"), "{}", run.stdout);
    let logps =
        place.succeed(&["logps", "--model_name_or_path", "model", "--dataset_name", "unpaired.jsonl"]);
    let first: Value = serde_json::from_str(logps.stdout.lines().next().unwrap()).unwrap();
    assert!(first["label"] == true && has(&first, "completion_logps"), "{first}");
    // The same prompt for all: nothing to compare with.
    let same = json!({"prompt": "you", "completion": " thanks", "label": 1});
    place.write("same.jsonl", &format!("{same}\n{same}\n"));
    let flags = [&TRAIN[..], &FOUR_STEPS, &["--dataset_name", "same.jsonl", "--method", "kto"]].concat();
    place.fail(&flags, 1, &["same.jsonl: all rows have the same prompt"]);
    place.fail(
        &[&TRAIN[..], &FOUR_STEPS, &["--dataset_name", "unpaired.jsonl"]].concat(),
        1,
        &["unpaired.jsonl, row 1, key `completion`", "use loss_type kto"],
    );
}

#[test]
fn several_rejected_completions_train_the_softmax() {
    let place = Place::new();
    let row = |rejected: Value| {
        format!("{}\n", json!({"prompt": "how are you", "chosen": " fine", "rejected": rejected}))
    };
    place.write(
        "many.jsonl",
        &[row(json!([" bad", " very bad"])), row(json!([" bad"])), row(json!(" very"))].concat(),
    );
    let lines = trained(&place, "many.jsonl", "many", &["--method", "sdpo", "--shuffle_dataset", "false"]);
    // log 3 of the first row, log 2 of the second.
    let want = (3f64.ln() + 2f64.ln()) / 2.0;
    assert!((lines[0]["loss"].as_f64().unwrap() - want).abs() < 1e-6, "{}", lines[0]);
    let logps = place.succeed(&["logps", "--model_name_or_path", "model", "--dataset_name", "many.jsonl"]);
    let first: Value = serde_json::from_str(logps.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first["rejected_logps"].as_array().unwrap().len(), 2, "{first}");
    place.write("rows.jsonl", &logps.stdout);
    let shown = ["objective", "--loss_type", "softmax", "--input", "rows.jsonl"];
    place.fail(&shown, 1, &["row 1, key `ref_chosen_logps`"]);
    place.fail(
        &[&TRAIN[..], &FOUR_STEPS, &["--dataset_name", "many.jsonl"]].concat(),
        1,
        &["many.jsonl, row 1, key `rejected`", "use loss_type softmax"],
    );
}

/// What a rule remembers (groups) and what was inferred (environments) is in the checkpoint.
#[test]
fn rules_with_a_memory_resume_as_if_uninterrupted() {
    let place = Place::new();
    labelled(&place);
    for flags in [["--method", "group"], ["--method", "causaldpo"], ["--method", "winsor"]] {
        let (whole, parts) = (format!("{}-whole", flags[1]), format!("{}-parts", flags[1]));
        trained(&place, "labelled.jsonl", &whole, &flags);
        std::fs::create_dir(place.path(&parts)).unwrap();
        std::fs::rename(place.path(&whole).join("checkpoint-2"), place.path(&parts).join("checkpoint-2"))
            .unwrap();
        std::fs::copy(place.path(&whole).join("metrics.jsonl"), place.path(&parts).join("metrics.jsonl"))
            .unwrap();
        let again = [&flags[..], &["--resume_from_checkpoint", "true"]].concat();
        trained(&place, "labelled.jsonl", &parts, &again);
        for file in ["model.safetensors", "metrics.jsonl"] {
            let read = |run: &str| std::fs::read(place.path(run).join(file)).unwrap();
            assert!(read(&whole) == read(&parts), "{flags:?}: {file}");
        }
    }
}
