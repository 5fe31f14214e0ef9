//! `seakeep report` by its command line: records in, one page and a table out, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn report(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_seakeep")).arg("report").args(arguments).output().unwrap()
}

/// A record of two prompts; `shift` moves its scores.
fn record(method: &str, seed: u64, shift: f64) -> Value {
    let scores = |base: f64| json!([base + shift, base + 0.1 + shift, base - 0.05 + shift, null]);
    json!({
        "schema_version": 1, "program": "seakeep 0.1.0", "command_line": "seakeep eval ...",
        "policy": {"model_name_or_path": "m", "ref_model_name_or_path": "r", "method": method,
                   "label": format!("{method} beta 0.1"), "seed": seed},
        "samples": {"prompts": 2, "per_prompt": 2, "prompts_fingerprint": "f", "scores": {
                        "kind": [0.5 + shift, 0.6 + shift, 0.4 + shift, 0.5 + shift], "short": scores(0.3)},
                    "tokens": [3, 4, 5, 6], "logps": [-1.0, -2.0, -3.0, -4.0], "ref_logps": [-1.5, -2.5, -3.0, -4.5],
                    "distinct": [0.5, 0.9, 1.0],
                    "texts": [{"prompt": "<b>why</b>?", "completion": "be\u{1b}cause", "scores": {"kind": 0.5}}]},
        "datasets": [{"name": "test", "dataset_name": "t.jsonl", "metrics": {}, "margins": [0.5, -0.2, 1.0], "losses": [0.5, 0.8, 0.3]}]
    })
}

fn written(directory: &Path, name: &str, value: &Value) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn records_become_a_page_and_a_table() {
    let directory = tempfile::tempdir().unwrap();
    let records: Vec<PathBuf> = [("dpo", 0, 0.0), ("dpo", 1, 0.02), ("wdpo", 0, 0.1)]
        .into_iter()
        .map(|(method, seed, shift)| {
            written(directory.path(), &format!("{method}-{seed}.json"), &record(method, seed, shift))
        })
        .collect();
    let card = written(directory.path(), "card.json", &json!({"prompts": 2, "agreement": 0.75}));
    let page = directory.path().join("new/report.html");
    let mut arguments = vec!["--records"];
    arguments.extend(records.iter().map(|path| path.to_str().unwrap()));
    arguments.extend(["--output", page.to_str().unwrap(), "--data_card", card.to_str().unwrap()]);
    arguments.extend(["--title", "A <title>", "--question", "Why?", "--resamples", "100"]);
    let first = report(&arguments);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let text = String::from_utf8(first.stdout).unwrap();
    // 0.5 and 0.52 over the seeds.
    assert!(
        text.lines().any(|line| line.trim_start().starts_with("dpo beta 0.1") && line.contains("0.510")),
        "{text}"
    );
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("<h1>A &lt;title&gt;</h1>")
            && html.contains("&lt;b&gt;why&lt;/b&gt;")
            && html.contains("be␛cause")
    );
    assert!(html.contains(">Data card</h2>") && html.contains("scores that are no numbers"));
    // The same again is the same page, on any number of threads.
    let again = Command::new(env!("CARGO_BIN_EXE_seakeep"))
        .arg("report")
        .args(&arguments)
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(again.status.success());
    assert_eq!(std::fs::read_to_string(&page).unwrap(), html);
}

#[test]
fn what_cannot_be_reported_is_refused_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let good = written(directory.path(), "good.json", &record("dpo", 0, 0.0));
    let page = directory.path().join("report.html");
    let refused = |records: &[&Path], more: &[&str], code: i32, parts: &[&str]| {
        let mut arguments = vec!["--output", page.to_str().unwrap(), "--records"];
        arguments.extend(records.iter().map(|path| path.to_str().unwrap()));
        arguments.extend(more);
        let output = report(&arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{part}: {text}"));
        assert!(!page.exists());
    };
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value = record("dpo", 1, 0.0);
        change(&mut value);
        written(directory.path(), name, &value)
    };
    let old = changed("old.json", &|v| v["schema_version"] = json!(3));
    refused(&[&good, &old], &[], 1, &["old.json", "schema_version 3", "schema_version 1"]);
    let other = changed("other.json", &|v| v["samples"]["prompts_fingerprint"] = json!("g"));
    refused(&[&good, &other], &[], 2, &["good.json", "other.json", "prompts differ"]);
    let short = changed("short.json", &|v| v["samples"]["tokens"] = json!([1]));
    refused(&[&good, &short], &[], 1, &["short.json", "samples.tokens has 1 numbers, expected 4"]);
    let foreign = written(directory.path(), "foreign.json", &json!({"a": 1}));
    refused(&[&foreign], &[], 1, &["foreign.json", "schema_version"]);
    refused(&[&directory.path().join("missing.json")], &[], 1, &["missing.json"]);
    refused(&[&good, &good], &[], 2, &["seed 0"]);
    refused(&[&good], &["--baseline", "kldpo"], 2, &["`kldpo`", "`dpo beta 0.1`"]);
    refused(&[&good], &["--resamples", "3"], 2, &["--resamples is 3"]);
    let broken = directory.path().join("card.json");
    std::fs::write(&broken, "{").unwrap();
    refused(&[&good], &["--data_card", broken.to_str().unwrap()], 1, &["card.json", "not JSON"]);
    let output = report(&["--records", good.to_str().unwrap(), "--output", good.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(std::fs::read_to_string(&good).unwrap().contains("fingerprint"));
}
