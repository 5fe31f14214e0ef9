//! `seakeep pairs`: from scored completions to preference data that trains.

mod common;

use common::{Place, TRAIN};
use serde_json::{Value, json};

const PAIRS: [&str; 7] =
    ["pairs", "--input", "scored.jsonl", "--weights", "warm=0.2,brief=0.8", "--output_dir", "out"];

fn scored(place: &Place) {
    let row = |i: usize, text: &str, warm: f64, brief: f64| {
        let scores = json!({"warm": warm, "brief": brief});
        format!(
            "{}\n",
            json!({"prompt": "you ".repeat(i), "completion": text, "scores": scores, "who": i % 2})
        )
    };
    let rows =
        (1..9).flat_map(|i| [row(i, " fine thanks", 0.9, 0.1), row(i, " bad", 0.1, 0.3 + 0.05 * i as f64)]);
    place.write("scored.jsonl", &rows.collect::<String>());
}

#[test]
fn scored_completions_become_pairs_that_train() {
    let place = Place::new();
    scored(&place);
    let run = place
        .succeed(&[&PAIRS[..], &["--labels", "higher", "--test_share", "0.3", "--keep", "who"]].concat());
    assert!(
        run.stdout.contains("correlation") && run.stdout.contains("100.0% go to the higher reward"),
        "{}",
        run.stdout
    );
    let (train, test) = (place.lines("out/train.jsonl"), place.lines("out/test.jsonl"));
    assert_eq!(train.len() + test.len(), 8);
    let reward = |warm: f64, brief: f64| 0.2 * warm + 0.8 * brief;
    for row in train.iter().chain(&test) {
        let (high, low) = (row["score_chosen"].as_f64().unwrap(), row["score_rejected"].as_f64().unwrap());
        assert!(high >= low && row["who"].is_number(), "{row}");
        let own = &row["scores_chosen"];
        assert!((high - reward(own["warm"].as_f64().unwrap(), own["brief"].as_f64().unwrap())).abs() < 1e-12);
    }
    let card: Value = serde_json::from_slice(&std::fs::read(place.path("out/card.json")).unwrap()).unwrap();
    assert_eq!((card["train_pairs"].as_u64(), card["prompts"].as_u64()), (Some(train.len() as u64), Some(8)));
    let own = [
        "--dataset_name",
        "out/train.jsonl",
        "--output_dir",
        "run",
        "--max_steps",
        "2",
        "--report_to",
        "none",
    ];
    place.succeed(&[&TRAIN[..], &own, &["--method", "kl-rebel"]].concat());
    place.succeed(
        &[
            &TRAIN[..],
            &own,
            &["--output_dir", "run2", "--method", "dpo-pro", "--soft_label_column", "soft_label"],
        ]
        .concat(),
    );
}

#[test]
fn what_cannot_be_made_is_refused_and_nothing_written() {
    let place = Place::new();
    scored(&place);
    for (flags, part) in [
        (&["--weights", "warm"][..], "expected objectives and numbers"),
        (&["--weights", "warm=1,warm=2"], "names `warm` twice"),
        (&["--flip_rate", "1.5"], "--flip_rate is 1.5; expected a number from 0 to 1"),
        (&["--min_margin", "2", "--max_margin", "1"], "--max_margin is 1"),
        (&["--min_margin", "100"], "no pair came of 16 completions"),
    ] {
        place.fail(&[&PAIRS[..], flags].concat(), 2, &[part]);
    }
    place.fail(
        &[&PAIRS[..], &["--weights", "brif=1"]].concat(),
        1,
        &["scored.jsonl, row 1", "did you mean `brief`?"],
    );
    for (row, part) in [
        (r#"{"prompt": "p", "completion": "c"}"#, "key `scores`: missing"),
        (
            r#"{"prompt": "p", "completion": "c", "scores": {"warm": null}}"#,
            "`warm` is null, expected a finite number",
        ),
        (r#"{"prompt": "p", "completion": 3, "scores": {"warm": 1}}"#, "key `completion`: 3"),
        (r#"{"prompt": "p", "completion": "c", "scores": 0.5}"#, "expected an object"),
    ] {
        place.write("scored.jsonl", &format!("{row}\n"));
        place.fail(&PAIRS, 1, &["scored.jsonl, row 1", part]);
    }
    place.write("full/x", "x");
    scored(&place);
    place.fail(&[&PAIRS[..], &["--output_dir", "full"]].concat(), 2, &["full exists and is not empty"]);
}
