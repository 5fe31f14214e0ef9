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

/// Makes of a finished stage one that has begun and was interrupted.
fn interrupted(place: &Place, mark: &str) {
    let mut value: serde_json::Value = serde_json::from_str(&place.read(mark)).unwrap();
    assert!(value["seconds"].is_number());
    value["seconds"] = serde_json::Value::Null;
    place.write(mark, &value.to_string());
}

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
        &["expected 1 to 3"],
    );
}

#[test]
fn rows_are_held_out_by_prompt_and_labels_turned() {
    let place = Place::new();
    let row =
        |i: usize| json!({"prompt": format!("p{}", i / 2), "chosen": format!("good {i}"), "rejected": "bad"});
    place.write("rows.jsonl", &(0..40).map(|i| format!("{}\n", row(i))).collect::<String>());
    let prepare = |flags: &str| {
        let flags = format!("prepare --input rows.jsonl --output out.jsonl {flags}");
        place.succeed(&flags.split_whitespace().collect::<Vec<_>>());
        place.lines("out.jsonl")
    };
    let train = prepare("--test_share 0.25 --test_output test.jsonl");
    let test = place.lines("test.jsonl");
    assert_eq!((train.len(), test.len()), (30, 10));
    // Two rows to a prompt, and never one here and one there.
    assert!(test.iter().all(|row| train.iter().all(|other| other["prompt"] != row["prompt"])));

    let turned = |rate: &str| {
        let rows = prepare(&format!("--flip_rate {rate}"));
        for (i, row) in rows.iter().enumerate() {
            let side = if row["flipped"] == json!(true) { "rejected" } else { "chosen" };
            assert_eq!(row[side], json!(format!("good {i}")));
        }
        (0..40).filter(|i| rows[*i]["flipped"] == json!(true)).collect::<Vec<_>>()
    };
    let (few, many) = (turned("0.2"), turned("0.4"));
    assert_eq!((few.len(), many.len(), turned("0").len()), (8, 16, 0));
    assert!(few.iter().all(|row| many.contains(row)));

    // What columns say of the sides goes with them; turned again, all is as it was.
    let scored = json!({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1,
        "scores_chosen": {"x": 2}, "scores_rejected": {"x": 1}, "soft_label": 0.75, "flipped": false});
    place.write("scored.jsonl", &format!("{scored}\n"));
    let turn = |from: &str, to: &str| {
        place.succeed(&["prepare", "--input", from, "--flip_rate", "1", "--output", to]);
        place.lines(to).remove(0)
    };
    let once = turn("scored.jsonl", "once.jsonl");
    assert_eq!(
        (&once["chosen"], &once["score_chosen"], &once["scores_rejected"]),
        (&json!("b"), &json!(1), &json!({"x": 2}))
    );
    assert_eq!((&once["soft_label"], &once["flipped"]), (&json!(0.25), &json!(true)));
    assert_eq!(turn("once.jsonl", "twice.jsonl"), scored);

    // "p0", "good 0" and "bad" have 11 characters.
    assert_eq!(prepare("--longest 11").len(), 10);
    let base = ["prepare", "--input", "rows.jsonl", "--output", "o"];
    let over = ["--test_share", "0.5", "--test_output", "./o"];
    place.write("o", "kept");
    place.fail(&[&base[..], &over].concat(), 2, &["--output and --test_output are the same file"]);
    let itself = ["prepare", "--input", "rows.jsonl", "--output", "rows.jsonl"];
    place.fail(&itself, 2, &["--output and --input are the same file"]);
    place.fail(&[&base[..], &["--test_share", "0.5"]].concat(), 2, &["--test_output"]);
    place.fail(&[&base[..], &["--flip_rate", "2"]].concat(), 2, &["a share from 0 to 1"]);
    place.fail(&[&base[..], &["--longest", "3"]].concat(), 2, &["o: no row would be in it, of 40 read"]);
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
    let says = |recipe: &str, parts: [&str; 2]| {
        let run = place.succeed(&["run", recipe]);
        assert!(parts.iter().all(|part| run.stderr.contains(part)), "{}", run.stderr);
    };
    says("recipe.toml", ["[1/2] model: done before", "[2/2] train: seakeep train"]);
    let weights = std::fs::read(place.path("out/policy/model.safetensors")).unwrap();
    let again = place.succeed(&["run", "recipe.toml"]);
    assert!(again.stderr.contains("[2/2] train: done before"), "{}", again.stderr);

    // What a stage made and is gone is made again, to the same bytes: what follows stays done.
    std::fs::remove_dir_all(place.path("out/model")).unwrap();
    says("recipe.toml", ["[1/2] model: seakeep init", "[2/2] train: done before"]);

    // So is a trained one, though it tells how long it took: what reads it stays done.
    let chain = format!(
        "{RECIPE}\n{}",
        RECIPE[RECIPE.rfind("[[stages]]").unwrap()..]
            .replace("\"train\"\ncommand", "\"further\"\ncommand")
            .replace("{out}/policy", "{out}/further")
            .replace("{out}/model", "{out}/policy")
    );
    place.write("chain.toml", &chain);
    place.succeed(&["run", "chain.toml"]);
    std::fs::remove_dir_all(place.path("out/policy")).unwrap();
    says("chain.toml", ["[2/3] train: seakeep train", "[3/3] further: done before"]);

    // An interrupted stage has begun: it is done again, to the same bytes.
    interrupted(&place, "out/stages/train.mark.json");
    place.succeed(&["run", "recipe.toml"]);
    assert_eq!(std::fs::read(place.path("out/policy/model.safetensors")).unwrap(), weights);

    // Other settings, or another file under the same name, are not passed over in silence.
    let other = place.run(&["run", "recipe.toml", "--set", "steps=3"]);
    assert_eq!(other.code, 2);
    assert!(
        other.stderr.contains("with `--max_steps 2` where now it is `--max_steps 3`")
            && other.stderr.contains("--from train"),
        "{}",
        other.stderr
    );
    let rows = place.read("pairs.jsonl");
    place.write("pairs.jsonl", rows.split_once('\n').unwrap().1);
    let other = place.run(&["run", "recipe.toml"]);
    assert!(other.stderr.contains("pairs.jsonl has changed"), "{}", other.stderr);
    place.succeed(&["run", "recipe.toml", "--from", "train"]);
    assert_ne!(std::fs::read(place.path("out/policy/model.safetensors")).unwrap(), weights);

    // So is what a stage made and someone else has changed.
    let config = place.read("out/model/config.json");
    place.write("out/model/config.json", &format!("{config} "));
    let other = place.run(&["run", "recipe.toml"]);
    assert!(other.code == 2 && other.stderr.contains("out/model has changed"), "{}", other.stderr);
}

#[test]
fn a_recipe_removes_nothing_that_it_did_not_make() {
    let place = Place::new();
    place.write("recipe.toml", RECIPE);
    place.write("out/policy/thesis.txt", "mine");
    let run = place.run(&["run", "recipe.toml"]);
    assert!(run.code == 2 && run.stderr.contains("stage `train` writes out/policy"), "{}", run.stderr);
    assert_eq!(place.read("out/policy/thesis.txt"), "mine");
    place.run(&["run", "recipe.toml", "--from", "train"]);
    assert_eq!(place.read("out/policy/thesis.txt"), "mine");
}

#[test]
fn a_sweep_within_a_recipe_grows_and_is_done_again_on_demand() {
    let place = Place::new();
    scored(&place);
    let sweep = SWEEP.replace(
        "output_dir = \"out\"",
        "name = \"sweep\"\ncommand = \"sweep\"\noutput_dir = \"{out}/sweep\"",
    );
    let sweep = sweep
        .replace("[train]", "[stages.train]")
        .replace("[eval]", "[stages.eval]")
        .replace("[[methods]]", "[[stages.methods]]");
    let recipe = format!("output_dir = \"out\"\n[[stages]]\n{sweep}");
    place.write("recipe.toml", &recipe);
    place.succeed(&["run", "recipe.toml"]);
    place.write("recipe.toml", &recipe.replace("seeds = 2", "seeds = 3"));
    let grown = place.succeed(&["run", "recipe.toml"]);
    assert!(grown.stderr.contains("9 of 13 runs are done from before"), "{}", grown.stderr);
    place.write("recipe.toml", &recipe.replace("max_steps = 2", "max_steps = 3"));
    let other = place.run(&["run", "recipe.toml"]);
    assert!(
        other.code == 2 && other.stderr.contains("with `--max_steps 2` where now it is `--max_steps 3`"),
        "{}",
        other.stderr
    );
    place.succeed(&["run", "recipe.toml", "--from", "sweep"]);

    // The rows that its configuration names are watched as well.
    let rows = place.read("scored.jsonl");
    place.write("scored.jsonl", rows.split_once('\n').unwrap().1);
    let other = place.run(&["run", "recipe.toml"]);
    assert!(other.code == 2 && other.stderr.contains("scored.jsonl has changed"), "{}", other.stderr);
}

#[test]
fn a_stage_may_have_tables() {
    let place = Place::new();
    place.write(
        "recipe.toml",
        &RECIPE.replace("report_to = \"none\"", "report_to = []\nlr_scheduler_kwargs = {}"),
    );
    place.succeed(&["run", "recipe.toml", "--list"]);
    let run = place.succeed(&["run", "recipe.toml"]);
    assert!(run.stderr.contains("seakeep train --config out/train.json"), "{}", run.stderr);
    assert!(place.path("out/policy/model.safetensors").exists());
}

#[test]
fn what_a_stage_writes_besides_is_its_own() {
    let place = Place::new();
    let rows: String = (0..8).map(|i| format!("{{\"prompt\": \"p{i}\"}}\n")).collect();
    place.write("all/in/rows.jsonl", &format!("{rows}{{\"prompt\": \"{{a}}\"}}\n"));
    place.write(
        "r.toml",
        r#"
output_dir = "out"
[variables]
share = 0.25
[[stages]]
name = "split"
command = "prepare"
input = "all"
drop = ["prompt=p0", "prompt={{a}}"]
test_share = "{share}"
test_output = "{out}/test.jsonl"
output = "{out}/train.jsonl"
"#,
    );
    let says = |args: &[&str], part: &str| {
        let run = place.run(&[&["run", "r.toml"], args].concat());
        assert!(run.stderr.contains(part), "{}", run.stderr);
    };
    says(&[], "[1/1] split: seakeep prepare");
    let before = place.read("out/test.jsonl");
    assert_eq!((place.lines("out/test.jsonl").len(), place.lines("out/train.jsonl").len()), (2, 5));
    says(&[], "split: done before");
    std::fs::remove_file(place.path("out/test.jsonl")).unwrap();
    says(&[], "[1/1] split: seakeep prepare");
    assert_eq!(place.read("out/test.jsonl"), before);
    // Its own output of before is nothing that it reads.
    says(&["--set", "share=0.5", "--from", "split"], "[1/1] split: seakeep prepare");
    says(&["--set", "share=0.5"], "split: done before");
    // Data are watched as they are read: with what stands in directories below.
    place.write("all/in/rows.jsonl", &rows);
    says(&["--set", "share=0.5"], "all has changed since");
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
    refused(
        &RECIPE.replace("{out}/policy", "{out}/model"),
        &["stages `model` and `train` write the same output"],
    );
    place.write("recipe.toml", RECIPE);
    place.fail(&["run", "recipe.toml", "--from", "trian"], 2, &["did you mean `train`?"]);
    let backwards = ["run", "recipe.toml", "--from", "train", "--until", "model"];
    place.fail(&backwards, 2, &["stage `model` comes before `train`"]);
    place.fail(&["run", "recipe.toml", "--set", "stepz=3"], 2, &["the recipe has: steps, data"]);
}

const SWEEP: &str = r#"
output_dir = "out"
seeds = 2
keep_models = false

[train]
model_name_or_path = "model"
dataset_name = "scored.jsonl"
max_steps = 2
per_device_train_batch_size = 2
num_threads = 1

[eval]
dataset_name = "nominal=scored.jsonl"
objectives = "calm,fear"
nominal_alpha = 0.1
alphas = "0,0.5,1"
radii = "none"

[[methods]]
method = "dpo"
beta = [0.1, 1.0]

[[methods]]
method = "kldpo"
label = "worst"
kldpo_tau = 0.5

[[methods]]
method = "kto"
"#;

/// The six pairs with scores of two objectives.
fn scored(place: &Place) {
    let with = |(i, mut row): (usize, serde_json::Value)| {
        let x = i as f64 / 6.0;
        row["scores_chosen"] = json!({"calm": 0.2 + x, "fear": 0.9});
        row["scores_rejected"] = json!({"calm": 0.5, "fear": 0.3});
        format!("{row}\n")
    };
    let rows: String = place.lines("pairs.jsonl").into_iter().enumerate().map(with).collect();
    place.write("scored.jsonl", &rows);
}

#[test]
fn a_sweep_trains_judges_and_goes_on_where_it_was() {
    let place = Place::new();
    scored(&place);
    place.write("sweep.toml", SWEEP);
    let listed = place.succeed(&["sweep", "--config", "sweep.toml", "--list"]);
    // The reference, then four labels of two seeds, each a training and an evaluation.
    assert_eq!(listed.stdout.lines().count(), 1 + 4 * 2 * 2, "{}", listed.stdout);
    let first = place.succeed(&["sweep", "--config", "sweep.toml"]);
    assert!(
        first.stdout.contains("dpo beta 0.1") && first.stdout.contains("results.csv"),
        "{}",
        first.stdout
    );
    let csv = place.read("out/results.csv");
    assert_eq!(csv.lines().count(), 1 + 1 + 8, "{csv}");
    assert!(csv.starts_with("label,method,seed,") && csv.contains("\nworst,kldpo,1,"), "{csv}");
    // A method of single completions is judged by the same pairs.
    assert!(csv.contains("\nkto,kto,1,"), "{csv}");
    // Judged policies need their weights no more; what their training logged stays.
    assert!(!place.path("out/worst/seed1/model/model.safetensors").exists());
    assert!(place.path("out/worst/seed1/model/metrics.jsonl").exists());

    // Interrupted before the last judgement, and several at a time: the same table.
    interrupted(&place, "out/worst/seed1/train.mark.json");
    std::fs::remove_file(place.path("out/worst/seed1/eval.mark.json")).unwrap();
    std::fs::remove_file(place.path("out/worst/seed1/policy.json")).unwrap();
    let again = place.succeed(&["sweep", "--config", "sweep.toml", "--jobs", "2"]);
    assert!(again.stderr.contains("8 of 9 runs are done from before"), "{}", again.stderr);
    assert_eq!(place.read("out/results.csv"), csv);
    let report = ["report", "--records", "out/*/seed*/policy.json", "--output", "report.html"];
    assert!(place.succeed(&report).stdout.contains("kldpo") || place.read("report.html").contains("worst"));

    // Other settings of runs that are done.
    place.write("sweep.toml", &SWEEP.replace("max_steps = 2", "max_steps = 3"));
    let other = place.run(&["sweep", "--config", "sweep.toml"]);
    assert!(
        other.code == 2
            && other.stderr.contains("was done before")
            && other.stderr.contains("remove out/dpo"),
        "{}",
        other.stderr
    );
}

#[test]
fn a_bad_sweep_is_refused_before_anything_runs() {
    let place = Place::new();
    scored(&place);
    let refused = |text: &str, said: &[&str]| {
        place.write("sweep.toml", text);
        place.fail(&["sweep", "--config", "sweep.toml"], 2, said);
    };
    refused(&SWEEP.replace("beta = [0.1, 1.0]", "kldpo_tau = 1.0"), &["kldpo_tau", "dpo"]);
    refused(&SWEEP.replace("max_steps", "max_stepz"), &["--max_stepz"]);
    refused(&SWEEP.replace("[0.1, 1.0]", "[]"), &["`beta` in [[methods]] is an empty list"]);
    refused(&SWEEP.replace("[0.1, 1.0]", "[0.1, 0.1]"), &["`dpo beta 0.1` stands twice"]);
    refused(&SWEEP.replace("seeds = 2", "seeds = 0"), &["`seeds` is 0"]);
    refused(&SWEEP.replace("[train]", "[train]\nseed = 1"), &["`seed` in [train]"]);
    refused(&SWEEP.replace("keep_models", "keep_model"), &["`keep_model` is not a key of a sweep"]);
    refused(&SWEEP.replace("beta = [0.1, 1.0]", "beta = [0.1, -1.0]"), &["beta", "-1"]);
}
