//! `seakeep prepare` and `seakeep run`: rows out of foreign files, and experiments in stages.

mod common;

use common::Place;
use serde_json::json;

const RECIPE: &str = r#"
title = "A small one"
output_dir = "out"

[variables]
steps = 2
data = { env = "NO_SUCH_VARIABLE", default = "pairs.jsonl" }

[[stages]]
name = "model"
command = "init"
config_json = "config.json"
tokenizer = "tokenizer"
output_dir = "{out}/model"

[[stages]]
name = "train"
command = "train"
model_name_or_path = "{out}/model"
dataset_name = "{data}"
max_steps = "{steps}"
report_to = "none"
output_dir = "{out}/policy"
"#;

#[test]
fn texts_become_labelled_rows_and_prompts() {
    let place = Place::new();
    place.write("a.txt", "how are you fine;joy\nhow are you bad;anger\nyou;joy\nvery bad today;surprise\n");
    let delimited = ["prepare", "--input", "a.txt", "--layout", "delimited", "--columns", "text,labels"];
    let run =
        place.succeed(&[&delimited[..], &["--drop", "labels=surprise", "--output", "rows.jsonl"]].concat());
    assert_eq!(run.stdout, "rows.jsonl: 3 rows of 4 read\n");
    assert_eq!(place.lines("rows.jsonl")[1], json!({"text": "how are you bad", "labels": ["anger"]}));
    let prompts =
        ["--prompt_tokens", "3", "--tokenizer", "model", "--add", "group=x", "--output", "prompts.jsonl"];
    place.succeed(&[&delimited[..], &prompts].concat());
    // The first two begin alike, the others have no more than three tokens.
    assert_eq!(
        place.lines("prompts.jsonl"),
        [json!({"prompt": "how are you", "labels": ["joy"], "group": "x"})]
    );
    place.succeed(&["prepare", "--input", "rows.jsonl", "--sample", "2", "--output", "two.jsonl"]);
    assert_eq!(place.lines("two.jsonl").len(), 2);

    place.write("bad.txt", "no label\n");
    let bad = [
        "prepare",
        "--input",
        "bad.txt",
        "--layout",
        "delimited",
        "--columns",
        "text,labels",
        "--output",
        "o",
    ];
    place.fail(&bad, 1, &["bad.txt, row 1", "expected 2 (text, labels)"]);
    place.fail(
        &[&delimited[..], &["--drop", "labels=fear", "--output", "o"]].concat(),
        2,
        &["no row has it"],
    );
    place.fail(&[&delimited[..], &["--prompt_tokens", "3", "--output", "o"]].concat(), 2, &["--tokenizer"]);
    place.fail(
        &["prepare", "--input", "rows.jsonl", "--sample", "4", "--output", "o"],
        2,
        &["there are 3 rows"],
    );
}

#[test]
fn a_recipe_goes_on_where_it_was() {
    let place = Place::new();
    place.write("recipe.toml", RECIPE);
    let listed = place.succeed(&["run", "recipe.toml", "--list"]);
    assert!(
        listed.stdout.contains(
            "seakeep train --model_name_or_path out/model --dataset_name pairs.jsonl --max_steps 2"
        ),
        "{}",
        listed.stdout
    );
    place.succeed(&["run", "recipe.toml", "--until", "model"]);
    assert!(place.path("out/model/model.safetensors").exists() && !place.path("out/policy").exists());
    let whole = place.succeed(&["run", "recipe.toml"]);
    assert!(
        whole.stderr.contains("[1/2] model: done before")
            && whole.stderr.contains("[2/2] train: seakeep train"),
        "{}",
        whole.stderr
    );
    let weights = std::fs::read(place.path("out/policy/model.safetensors")).unwrap();
    let again = place.succeed(&["run", "recipe.toml"]);
    assert!(again.stderr.contains("[2/2] train: done before"), "{}", again.stderr);

    // An interrupted stage leaves no mark: it is done again, to the same bytes.
    std::fs::remove_file(place.path("out/stages/train.json")).unwrap();
    place.succeed(&["run", "recipe.toml"]);
    assert_eq!(std::fs::read(place.path("out/policy/model.safetensors")).unwrap(), weights);

    // Other settings, or another file under the same name, are not passed over in silence.
    let other = place.run(&["run", "recipe.toml", "--set", "steps=3"]);
    assert_eq!(other.code, 2);
    assert!(
        other.stderr.contains("with `2` where now `3`") && other.stderr.contains("--from train"),
        "{}",
        other.stderr
    );
    let rows = place.read("pairs.jsonl");
    place.write("pairs.jsonl", rows.split_once('\n').unwrap().1);
    let other = place.run(&["run", "recipe.toml"]);
    assert!(other.stderr.contains("pairs.jsonl has changed"), "{}", other.stderr);
    place.succeed(&["run", "recipe.toml", "--from", "train"]);
    assert_ne!(std::fs::read(place.path("out/policy/model.safetensors")).unwrap(), weights);
}

#[test]
fn a_bad_recipe_is_refused_before_anything_runs() {
    let place = Place::new();
    let refused = |text: &str, said: &[&str]| {
        place.write("bad.toml", text);
        place.fail(&["run", "bad.toml"], 2, said);
    };
    refused(&RECIPE.replace("max_steps", "max_stepz"), &["stage `train`", "--max_stepz"]);
    refused(&RECIPE.replace("\"{steps}\"", "\"{stepz}\""), &["no variable `stepz`", "steps"]);
    refused(&RECIPE.replace("name = \"train\"", "name = \"model\""), &["two stages are called `model`"]);
    refused(&RECIPE.replace("title", "titel"), &["`titel` is not a key of a recipe"]);
    refused(
        &RECIPE.replace(
            "{ env = \"NO_SUCH_VARIABLE\", default = \"pairs.jsonl\" }",
            "{ env = \"NO_SUCH_VARIABLE\" }",
        ),
        &["$NO_SUCH_VARIABLE is not set"],
    );
    place.write("recipe.toml", RECIPE);
    place.fail(&["run", "recipe.toml", "--from", "trian"], 2, &["did you mean `train`?"]);
    place.fail(&["run", "recipe.toml", "--set", "stepz=3"], 2, &["the recipe has: steps, data"]);
}
