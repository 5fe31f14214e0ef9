//! `seakeep simulate`: its files, its determinism, and what it refuses.

mod common;

use common::Place;
use serde_json::Value;

const SMALL: [&str; 15] = [
    "simulate",
    "--dimension",
    "3",
    "--prompts",
    "12",
    "--bound",
    "3",
    "--n_min",
    "64",
    "--n_max",
    "512",
    "--repetitions",
    "10",
    "--seed",
    "5",
];

fn record(place: &Place, name: &str) -> Value {
    let text = std::fs::read(place.path(name).join("simulate.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_simulation_leaves_its_record_and_a_page_that_stands_alone() {
    let place = Place::empty();
    let run = place.run(&[&SMALL[..], &["--output_dir", "out", "--num_threads", "1"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("KLDPO, shrinking") && run.stdout.contains("gap"), "{}", run.stdout);
    let mut one = record(&place, "out");
    assert_eq!(one["schema_version"], 1);
    assert_eq!(one["methods"].as_array().unwrap().len(), 8);
    assert_eq!(one["methods"][0]["points"].as_array().unwrap().len(), 4);
    assert_eq!(one["options"]["seed"], 5);
    for case in one["worst_cases"].as_array().unwrap() {
        let last = case["primal"].as_array().unwrap().last().unwrap().clone();
        let gap = case["dual"].as_f64().unwrap() - last["value"].as_f64().unwrap();
        assert!((-1e-12..1e-4).contains(&gap), "{case}");
    }
    let page = std::fs::read_to_string(place.path("out/report.html")).unwrap();
    assert!(page.ends_with("</html>\n") && page.matches("<svg viewBox=\"0 0 420").count() == 4);
    for foreign in ["<script", "http://", "https://", "NaN", "src=", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.matches("<title id=").count() == 4 && page.matches("<desc id=").count() == 4);
    // The same bits from two threads.
    let run = place.run(&[&SMALL[..], &["--output_dir", "again", "--num_threads", "2"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let mut two = record(&place, "again");
    for both in [&mut one, &mut two] {
        both["seconds"] = 0.into();
        both["command_line"] = "".into();
    }
    assert_eq!(one, two);
}

#[test]
fn wrong_use_is_refused_before_any_work() {
    let place = Place::empty();
    for (flags, says) in [
        (&["--bound", "1"][..], "--bound"),
        (&["--n_max", "100"], "--n_max"),
        (&["--repetitions", "1"], "--repetitions"),
        (&["--wdpo_radius", "-1"], "--wdpo_radius"),
        (&["--kldpo_radius", "nan"], "--kldpo_radius"),
        (&["--dimension", "many"], "--dimension"),
        (&["--num_threads", "100000"], "num_threads"),
    ] {
        let run = place.run(&[&SMALL[..], flags, &["--output_dir", "out"]].concat());
        assert_eq!(run.code, 2, "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{flags:?}: {}", run.stderr);
        assert!(!place.path("out").exists(), "{flags:?}");
    }
}

#[test]
fn an_output_directory_that_will_not_do_is_refused() {
    let place = Place::empty();
    place.write("full/file", "mine");
    let run = place.run(&[&SMALL[..], &["--output_dir", "full"]].concat());
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("not empty"), "{}", run.stderr);
    let run = place.run(&[&SMALL[..], &["--output_dir", "full/file/under"]].concat());
    assert_eq!(run.code, 1, "{}", run.stderr);
    let left: Vec<_> = std::fs::read_dir(place.path("full")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing half-written stays");
}
