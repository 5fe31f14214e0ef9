//! `seakeep recommend`: interactions to rows, rows to rankings.

mod common;

use common::Place;
use serde_json::{Value, json};

const RANK: [&str; 5] = ["recommend", "rank", "--model_name_or_path", "model", "--dataset_name"];
const PREPARE: [&str; 18] = [
    "recommend",
    "prepare",
    "--interactions",
    "i.csv",
    "--output_dir",
    "out",
    "--history",
    "2",
    "--candidates",
    "3",
    "--negatives",
    "2",
    "--list_separator",
    " ",
    "--template",
    "you {history} how {candidates}",
    "--shifted",
    "south",
];

/// Eight titles that the tiny tokenizer knows, twelve users of four choices or five.
fn interactions(place: &Place) {
    let titles = ["fine", "bad", "very", "today", "fine today", "very fine", "very bad", "bad today"];
    let mut text = "user,item,timestamp,group\n".to_string();
    for user in 0..12 {
        let group = if user % 3 == 0 { "south" } else { "north" };
        for step in 0..4 + user % 2 {
            // Backwards in time.
            text += &format!("u{user},{},{},{group}\n", titles[(user + 3 * step) % 8], 100 - step);
        }
    }
    place.write("i.csv", &text);
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn choices_become_rows_that_train_and_rank() {
    let place = Place::new();
    interactions(&place);
    let run = place.succeed(&[&PREPARE[..], &["--min_interactions", "4"]].concat());
    assert!(run.stdout.contains("12 users, 8 items, 54 interactions"), "{}", run.stdout);
    assert!(run.stdout.contains("group south        0 familiar and 4 shifted users"), "{}", run.stdout);
    let card: Value = serde_json::from_str(&place.read("out/card.json")).unwrap();
    for file in ["sft", "train", "validation", "test", "test_shifted"] {
        let name = format!("{file}.jsonl");
        assert_eq!(
            place.lines(&format!("out/{name}")).len() as u64,
            card["rows"][&name].as_u64().unwrap(),
            "{name}"
        );
    }
    assert_eq!((place.lines("out/test.jsonl").len(), place.lines("out/test_shifted.jsonl").len()), (8, 4));
    let train = [
        "train",
        "--model_name_or_path",
        "model",
        "--dataset_name",
        "out/train.jsonl",
        "--output_dir",
        "policy",
        "--max_steps",
        "2",
        "--report_to",
        "none",
    ];
    place.succeed(&[&train[..], &["--method", "sdpo"]].concat());
    // Held-out loss of the same rows.
    place.succeed(&[
        "eval",
        "--model_name_or_path",
        "policy",
        "--ref_model_name_or_path",
        "model",
        "--method",
        "sdpo",
        "--dataset_name",
        "out/test.jsonl",
        "--output",
        "eval.json",
    ]);
    let files = ["familiar=out/test.jsonl", "out/test_shifted.jsonl", "--output", "ranked.json"];
    let run = place.succeed(&[&RANK[..], &files, &["--environments", "2", "--length_normalize"]].concat());
    assert!(
        run.stderr.contains("HR@1") && run.stderr.contains("test_shifted, group south"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("environments inferred in familiar"), "{}", run.stderr);
    let ranked: Value = serde_json::from_str(&place.read("ranked.json")).unwrap();
    assert_eq!((&ranked["score"], &ranked["ties"]), (&json!("mean"), &json!("pessimistic")));
    let sets = ranked["datasets"].as_array().unwrap();
    assert_eq!(
        sets.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["familiar", "test_shifted"]
    );
    for (set, rows) in sets.iter().zip([8, 4]) {
        assert_eq!((number(&set["rows"]), number(&set["valid_ratio"])), (f64::from(rows), 1.0));
        let hit = &set["metrics"]["hr@1"];
        assert!(
            number(&hit["low"]) <= number(&hit["value"]) && number(&hit["value"]) <= number(&hit["high"])
        );
        assert!((number(&hit["chance"]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(number(&set["metrics"]["hr@5"]["value"]), 1.0, "three candidates");
        let sizes = set["inferred_environments"]["sizes"].as_array().unwrap();
        assert!((sizes.iter().map(number).sum::<f64>() - f64::from(rows)).abs() < 1e-9);
    }
    assert_eq!(number(&sets[1]["groups"]["south"]["rows"]), 4.0);
}

#[test]
fn candidates_score_what_logps_says_of_each_alone() {
    let place = Place::new();
    interactions(&place);
    place.succeed(&[&PREPARE[..], &["--min_interactions", "4"]].concat());
    let ranks = ["out/test.jsonl", "--ranks", "ranks.jsonl", "--output", "ranked.json"];
    place.succeed(&[&RANK[..], &ranks].concat());
    let tests = place.lines("out/test.jsonl");
    let mut alone = String::new();
    for test in &tests {
        for candidate in test["candidates"].as_array().unwrap() {
            let row = json!({"prompt": test["prompt"], "completion": candidate, "label": true});
            alone += &format!("{row}\n");
        }
    }
    place.write("alone.jsonl", &alone);
    let logps = ["logps", "--model_name_or_path", "model", "--dataset_name", "alone.jsonl"];
    place.succeed(&[&logps[..], &["--output", "logps.jsonl"]].concat());
    let (ranked, logps) = (place.lines("ranks.jsonl"), place.lines("logps.jsonl"));
    assert_eq!((ranked.len(), logps.len()), (8, 24));
    let mut hits = 0.0;
    for (i, (row, test)) in ranked.iter().zip(&tests).enumerate() {
        let expected: Vec<f64> =
            logps[3 * i..3 * i + 3].iter().map(|l| number(&l["completion_logps"])).collect();
        for (found, expected) in row["scores"].as_array().unwrap().iter().zip(&expected) {
            assert!((number(found) - expected).abs() < 1e-5, "{row} {expected}");
        }
        let target =
            test["candidates"].as_array().unwrap().iter().position(|c| *c == test["target"]).unwrap();
        let rank = 1 + expected.iter().filter(|l| **l > expected[target]).count();
        assert_eq!((row["rank"].as_u64(), &row["user"]), (Some(rank as u64), &test["user"]));
        hits += f64::from(rank == 1);
    }
    let record: Value = serde_json::from_str(&place.read("ranked.json")).unwrap();
    assert!((number(&record["datasets"][0]["metrics"]["hr@1"]["value"]) - hits / 8.0).abs() < 1e-12);
}

#[test]
fn a_model_that_sees_no_difference_gains_nothing() {
    let place = Place::new();
    // No title of this world is in the tokenizer: all are the same two unknown words.
    let world =
        ["recommend", "world", "--users", "20", "--items", "16", "--interactions", "6", "--seed", "1"];
    place.succeed(&[&world[..], &["--output", "i.csv"]].concat());
    assert_eq!(place.succeed(&world).stdout, place.read("i.csv"));
    place.succeed(&[&PREPARE[..16], &["--shifted", "east"]].concat());
    place.succeed(&[&RANK[..], &["out/test.jsonl", "--output", "ranked.json"]].concat());
    let record: Value = serde_json::from_str(&place.read("ranked.json")).unwrap();
    let metrics = &record["datasets"][0]["metrics"];
    assert_eq!((number(&metrics["hr@1"]["value"]), number(&metrics["hr@5"]["value"])), (0.0, 1.0));
    assert!((number(&metrics["mrr"]["value"]) - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn what_cannot_be_prepared_is_refused_and_nothing_written() {
    let place = Place::new();
    interactions(&place);
    for (flags, code, part) in [
        (&["--user_column", "usr"][..], 2, "no column `usr`; did you mean `user`?"),
        (&["--shifted", "soth"], 2, "did you mean `south`?"),
        (&["--candidates", "9"], 2, "to draw from; --candidates 9 needs 8"),
        (&["--negatives", "3"], 2, "--negatives is 3; expected 1 to 2"),
        (&["--min_interactions", "50"], 2, "12 have fewer than 50 interactions"),
        (&["--template", "{candidates}"], 2, "no `{history}`"),
        (&["--items", "none.csv"], 1, "none.csv: no such file"),
        (&["--shift_column", "item"], 1, "i.csv, row 3, key `item`"),
    ] {
        place.fail(&[&PREPARE[..], flags].concat(), code, &[part]);
    }
    place.write("i.csv", "user,item\na,fine\nb\n");
    place.fail(&PREPARE, 1, &["i.csv, row 3: 1 columns at `,`, expected 2 (user, item)"]);
    place.write("full/x", "x");
    place.fail(&[&PREPARE[..], &["--output_dir", "full"]].concat(), 2, &["full exists and is not empty"]);
}

#[test]
fn what_cannot_be_ranked_is_refused() {
    let place = Place::new();
    let row = |prompt: &str, candidates: Value, target: &str| {
        format!("{}\n", json!({"prompt": prompt, "candidates": candidates, "target": target}))
    };
    let good = row("how", json!([" fine", " bad"]), " bad");
    let rank = [&RANK[..], &["t.jsonl"]].concat();
    for (bad, part) in [
        (row("how", json!([" fine", " fine"]), " fine"), "key `candidates[1]`: ` fine` a second time"),
        (row("how", json!([" fine", " bad"]), "bad"), "key `target`: `bad` is not among the candidates"),
        (row("how ".repeat(32).trim(), json!([" fine", " bad"]), " bad"), "key `prompt`: 34 tokens"),
        (
            row("how", json!([" fine", " bad".repeat(31)]), " fine"),
            "key `candidates[1]`: 33 tokens, 1 of them prompt; the model has 32 positions",
        ),
    ] {
        place.write("t.jsonl", &format!("{good}{bad}"));
        place.fail(&rank, 1, &["t.jsonl, row 2, ", part]);
    }
    place.write("t.jsonl", &format!("{good}{}", row("how", json!([" fine", " bad"]), " very")));
    place.succeed(&[&rank[..], &["--missing_target", "miss", "--output", "r.json"]].concat());
    let record: Value = serde_json::from_str(&place.read("r.json")).unwrap();
    assert_eq!(number(&record["datasets"][0]["valid_ratio"]), 0.5);
    place.fail(&[&rank[..], &["t.jsonl"]].concat(), 2, &["both called `t`"]);
    place.fail(&[&rank[..], &["--prompt_mismatch", "drop"]].concat(), 2, &["leaves no candidate out"]);
    // A tokenizer that drops what it does not want to see.
    place.write("t.jsonl", &row("how", json!([" fine", " ~"]), " fine"));
    let path = "model/tokenizer.json";
    let normalizer = r#""normalizer":{"type":"Replace","pattern":{"String":"~"},"content":""}"#;
    let changed = place.read(path).replacen(r#""normalizer":null"#, normalizer, 1);
    assert!(changed.contains("Replace"), "{changed}");
    place.write(path, &changed);
    place.fail(&rank, 1, &["row 1, key `candidates[1]`: ` ~` has no tokens"]);
}
