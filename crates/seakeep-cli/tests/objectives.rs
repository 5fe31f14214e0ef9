//! `seakeep objective` against independent values: every pair loss as TRL's own code has it, every rule as NumPy, SciPy
//! and a convex solver have it (`scripts/parity/losses.py`, `scripts/parity/rules.py`; float64).

mod common;

use common::Place;
use serde_json::Value;

/// Both sides are f64; a dual is found by iteration on both. Where TRL computes `1 - sigmoid(x)` its own rounding, 1e-16,
/// is all that is left of the value: below 1e-12 of the batch's scale nothing is compared.
const TOLERANCE: f64 = 1e-6;
const FLOOR: f64 = 1e-12;

fn close(got: &Value, want: &Value, scale: f64, what: &str) {
    match (got, want) {
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len(), "{what}");
            got.iter().zip(want).for_each(|(g, w)| close(g, w, scale, what));
        }
        _ => {
            let (g, w) = (got.as_f64(), want.as_f64().unwrap_or_else(|| panic!("{what}: {want}")));
            let g = g.unwrap_or_else(|| panic!("{what}: got {got}, want {w}"));
            assert!(
                (g - w).abs() <= TOLERANCE * w.abs() + FLOOR * scale.max(1.0),
                "{what}: got {g:e}, want {w:e}"
            );
        }
    }
}

fn largest(value: &Value) -> f64 {
    match value {
        Value::Array(list) => list.iter().map(largest).fold(0.0, f64::max),
        Value::Object(map) => map.values().map(largest).fold(0.0, f64::max),
        other => other.as_f64().unwrap_or(0.0).abs(),
    }
}

fn agrees_with(golden: &str) {
    let place = Place::empty();
    let cases: Vec<Value> = serde_json::from_str(golden).unwrap();
    assert!(cases.len() > 20, "{}", cases.len());
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let rows = case["rows"].as_array().unwrap();
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        place.write("rows.jsonl", &lines);
        let settings = case["settings"].as_object().unwrap();
        let flags: Vec<String> =
            settings.iter().map(|(k, v)| format!("--{k}={}", v.as_str().unwrap())).collect();
        let own = ["objective", "--input", "rows.jsonl"];
        let run = place.succeed(&own.into_iter().chain(flags.iter().map(String::as_str)).collect::<Vec<_>>());
        let found: Value = serde_json::from_str(&run.stdout).unwrap();
        let found = &found["batches"][0];
        let want = &case["expect"];
        close(&found["loss"], &want["loss"], want["loss"].as_f64().unwrap().abs(), &format!("{name}: loss"));
        let scale = largest(&want["rows"]);
        for (i, (found, want)) in
            found["rows"].as_array().unwrap().iter().zip(want["rows"].as_array().unwrap()).enumerate()
        {
            for (key, want) in want.as_object().unwrap() {
                close(&found[key], want, scale, &format!("{name}, row {i}: {key}"));
            }
        }
    }
}

#[test]
fn pair_losses_are_trls() {
    agrees_with(include_str!("golden/losses.json"));
}

#[test]
fn rules_are_what_their_formulas_say() {
    agrees_with(include_str!("golden/rules.json"));
}

#[test]
fn bad_rows_are_named() {
    let place = Place::empty();
    let refused = |rows: &str, flags: &[&str], parts: &[&str]| {
        place.write("rows.jsonl", rows);
        place.fail(&[&["objective", "--input", "rows.jsonl"], flags].concat(), 1, parts);
    };
    let row =
        r#"{"chosen_logps": -1, "rejected_logps": -2, "ref_chosen_logps": -1, "ref_rejected_logps": -2}"#;
    refused("", &[], &["rows.jsonl", "no rows"]);
    refused("[1]", &[], &["row 1"]);
    refused(&format!("{row}\n{{\"chosen_logps\": -1}}"), &[], &["row 2, key `ref_chosen_logps`", "missing"]);
    refused(
        &row.replace("-1, \"rej", "\"a\", \"rej"),
        &[],
        &["key `chosen_logps`", "\"a\", expected a number"],
    );
    refused(row, &["--method", "group"], &["row 1, key `group`"]);
    refused(row, &["--method", "rebel"], &["key `score_chosen`"]);
    refused(row, &["--method", "kto"], &["key `label`"]);
    refused(row, &["--method", "simpo"], &["key `chosen_tokens`", "missing"]);
    let none = row.replace('}', ", \"chosen_tokens\": 0, \"rejected_tokens\": 2}");
    refused(
        &none,
        &["--method", "simpo"],
        &["key `chosen_tokens`", "0, expected a number of tokens, 1 or more"],
    );
    let empty = row.replace("_logps\": -2", "_logps\": []");
    refused(&empty, &["--method", "sdpo"], &["key `rejected_logps`", "0 numbers"]);
    let with = |more: &str| row.replace('}', &format!(", {more}}}"));
    refused(
        &with(r#""q": 2, "soft_label": 1"#),
        &["--method", "dpo-pro", "--soft_label_column", "q"],
        &["key `q`", "0 to 1"],
    );
    refused(&with(r#""group": "a""#), &["--method", "group", "--group_column", "region"], &["key `region`"]);
    refused(
        &with(r#""environments": [2, -1]"#),
        &["--method", "causaldpo"],
        &["key `environments`", "sum to 1"],
    );
    let both = with(r#""environments": [0, 1]"#) + "\n" + row;
    refused(&both, &["--method", "causaldpo"], &["row 2, key `environments`", "0 shares"]);
    refused(
        &with(r#""chosen_tokens": 1, "rejected_tokens": 1"#).replacen("-1", "-1e200", 1),
        &["--loss_type", "ipo"],
        &["the loss is inf"],
    );
    place.write("rows.jsonl", row);
    let wrong = |flags: &[&str], part: &str| {
        place.fail(&[&["objective", "--input", "rows.jsonl"], flags].concat(), 2, &[part]);
    };
    wrong(&["--method", "wdpo"], "here is no model");
    wrong(&["--ld_alpha", "0.5"], "--ld_alpha has no meaning here");
    wrong(&["--progress", "nan"], "--progress is NaN; expected 0 to 1");
    // A prompt is learnt, not compared: it needs no reference.
    place.write(
        "rows.jsonl",
        &with(r#""chosen_tokens": 3, "rejected_tokens": 3, "prompt_logps": -5, "prompt_tokens": 4"#),
    );
    place.succeed(&["objective", "--input", "rows.jsonl", "--loss_type", "orpo,sigmoid"]);
    place.write("rows.jsonl", &with(r#""q": [true, true, false, "tie"], "soft_label": 1"#));
    let asked = ["objective", "--input", "rows.jsonl", "--method", "dpo-pro", "--soft_label_column", "q"];
    assert!(place.succeed(&asked).stdout.contains("\"dpo_pro/soft_label\": 0.625"));
}
