//! `seakeep generate` over files: rows, ends of texts, and runs that are killed and go on.

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Place;
use serde_json::json;

const SAMPLED: [&str; 10] = [
    "generate",
    "--model_name_or_path",
    "model",
    "--dataset_name",
    "prompts.jsonl",
    "--do_sample",
    "--num_return_sequences",
    "2",
    "--max_new_tokens",
    "20",
];

/// A file of so many prompts.
fn prompts(place: &Place, count: usize) {
    let words = ["how", "are", "you", "fine", "today"];
    let row = |i: usize| {
        let prompt = format!("{} {} {}", words[i % 5], words[i / 5 % 5], words[i / 25 % 5]);
        format!("{}\n", json!({"prompt": prompt, "id": i, "group": words[i % 3], "tokens": "old"}))
    };
    place.write("prompts.jsonl", &(0..count).map(row).collect::<String>());
}

#[test]
fn rows_keep_their_columns_and_their_texts_when_others_follow() {
    let place = Place::new();
    prompts(&place, 3);
    let run = |more: &[&str]| place.succeed(&[&SAMPLED[..], more].concat());
    run(&["--output", "a.jsonl"]);
    let lines = place.lines("a.jsonl");
    assert_eq!(lines.len(), 6);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!((&line["id"], &line["sample"]), (&json!(i / 2), &json!(i % 2)));
        assert_eq!(line["group"], ["how", "are", "you"][i / 2]);
        let tokens = line["tokens"].as_array().expect("the completion's, not the column's");
        let ended = line["finish_reason"] == "stop";
        assert!(ended == (tokens.last() == Some(&json!(2))) && (ended || tokens.len() == 20), "{line}");
    }
    prompts(&place, 9);
    run(&["--output", "b.jsonl", "--batch_size", "3"]);
    assert_eq!(place.lines("b.jsonl")[..6], lines);
    run(&["--output", "c.jsonl", "--limit", "3"]);
    assert_eq!(place.lines("c.jsonl"), lines);
    assert!(!place.path("a.jsonl.partial").exists());
}

#[test]
fn strings_and_tokens_end_texts() {
    let place = Place::new();
    prompts(&place, 20);
    let lines = |more: &[&str]| {
        place.succeed(&[&SAMPLED[..], &["--output", "a.jsonl"], more].concat());
        place.lines("a.jsonl")
    };
    let plain = lines(&[]);
    let cut = lines(&["--stop_strings", "very", "--stop_strings", "bad"]);
    let mut cuts = 0;
    for (plain, cut) in plain.iter().zip(&cut) {
        let (plain, text) = (plain["completion"].as_str().unwrap(), cut["completion"].as_str().unwrap());
        let end = ["very", "bad"].iter().filter_map(|s| plain.find(s)).min();
        assert_eq!(text, &plain[..end.unwrap_or(plain.len())]);
        cuts += usize::from(end.is_some());
        assert!(end.is_none() || cut["finish_reason"] == "stop");
    }
    assert!(cuts > 5, "{cuts}");
    // Token 9 is `bad`; the model's own end is none any more.
    for line in lines(&["--eos_token_id", "9", "--stop_token_ids", "10,11"]) {
        let tokens: Vec<u64> =
            line["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
        let end = tokens.iter().position(|t| [9, 10, 11].contains(t)).map_or(20, |at| at + 1);
        assert_eq!(tokens.len(), end);
    }
    for line in lines(&["--min_new_tokens", "5"]) {
        assert!(line["tokens"].as_array().unwrap().len() >= 5);
    }
}

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_bytes() {
    let place = Place::new();
    prompts(&place, 6000);
    let args = |output: &'static str| [&SAMPLED[..], &["--num_threads", "1", "--output", output]].concat();
    place.succeed(&args("whole.jsonl"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_seakeep"))
        .args(args("cut.jsonl"))
        .current_dir(place.path("."))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = place.path("cut.jsonl.partial");
    let begun = Instant::now();
    // Killed as soon as something is there.
    while std::fs::read(&partial).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count()) < 100 {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing was written");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("cut.jsonl").exists(), "finished before it was killed: more prompts are needed");
    let found = place.read("cut.jsonl.partial");
    assert!(found.lines().count() < 6001, "everything was finished");
    let other = [&args("cut.jsonl")[..], &["--temperature", "0.5", "--seed", "1"]].concat();
    let said = [
        "cut.jsonl.partial was begun with `seed` 42 instead of 1, `temperature` 1.0 instead of 0.5",
        "--overwrite_output",
    ];
    place.fail(&other, 2, &said);
    assert_eq!(place.read("cut.jsonl.partial"), found);
    // Another batch size and more threads change nothing.
    let resumed = [&args("cut.jsonl")[..], &["--batch_size", "7", "--num_threads", "2"]].concat();
    let run = place.succeed(&resumed);
    assert!(run.stderr.contains("cut.jsonl.partial: goes on after "), "{}", run.stderr);
    assert!(place.read("cut.jsonl") == place.read("whole.jsonl"), "other bytes");
    assert!(!partial.exists());
    // A partial file of another run is put aside where that is asked for.
    place.write("cut.jsonl.partial", &found);
    place.succeed(&[&other[..], &["--limit", "4", "--overwrite_output"]].concat());
    assert_eq!(place.lines("cut.jsonl").len(), 8);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let place = Place::new();
    prompts(&place, 2);
    let asked = [&SAMPLED[..], &["--output", "out"]].concat();
    for (flags, said) in [
        (&["--min_p", "2"][..], "`min_p` is 2; expected a number from 0 to 1"),
        (&["--repetition_penalty", "0"], "`repetition_penalty` is 0; expected a number above 0"),
        (&["--min_new_tokens", "21"], "`min_new_tokens` is 21; expected at most `max_new_tokens` = 20"),
        (&["--stop_strings", ""], "`stop_strings` has an empty string"),
        (&["--stop_token_ids", "3,12"], "`stop_token_ids` is 12; expected a token of the model: 0 to 11"),
        (&["--eos_token_id", "x"], "invalid value 'x' for '--eos_token_id"),
        (&["--limit", "0"], "`limit` is 0; expected a whole number above 0"),
    ] {
        place.fail(&[&asked[..], flags].concat(), 2, &[said]);
    }
    let long = json!({"prompt": "how ".repeat(32)});
    place.write("prompts.jsonl", &format!("{}\n{long}\n", json!({"prompt": "how"})));
    let said = "prompts.jsonl, row 2, key `prompt`: the prompt has 32 tokens; expected at most 31";
    place.fail(&asked, 1, &[said]);
}
