//! The commands at work on a tiny model.

mod common;

use common::{FOUR_STEPS, Place, TRAIN};
use serde_json::Value;

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {line}"))
}

#[test]
fn init_is_a_function_of_its_seed() {
    let place = Place::new();
    for (name, seed) in [("same", "3"), ("other", "4")] {
        place.succeed(&["init", "--config_json", "config.json", "--seed", seed, "--output_dir", name]);
    }
    let weights = |name: &str| std::fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("model"), weights("same"));
    assert_ne!(weights("model"), weights("other"));
}

#[test]
fn logps_are_json_lines_that_no_batch_size_changes() {
    let place = Place::new();
    let logps = ["logps", "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl"];
    let one = place.succeed(&[&logps[..], &["--per_device_eval_batch_size", "1"]].concat()).stdout;
    place.succeed(&[&logps[..], &["--output", "deep/logps.jsonl"]].concat());
    let (one, all): (Vec<Value>, _) =
        (one.lines().map(|l| serde_json::from_str(l).unwrap()).collect(), place.lines("deep/logps.jsonl"));
    assert_eq!((one.len(), all.len()), (6, 6));
    for (i, (a, b)) in one.iter().zip(&all).enumerate() {
        assert_eq!(a["row"], i + 1);
        assert!(a.get("file").is_none());
        for key in ["chosen_logps", "rejected_logps"] {
            // Sums over other numbers of rows round differently.
            assert!((number(a, key) - number(b, key)).abs() < 1e-5, "{a} {b}");
        }
    }
    let first = &all[0];
    let counts = ["prompt_tokens", "chosen_tokens", "rejected_tokens"].map(|key| number(first, key));
    assert_eq!(counts, [3.0, 3.0, 2.0], "with the end-of-sequence token");
}

#[test]
fn several_files_are_told_apart() {
    let place = Place::new();
    std::fs::copy(place.path("pairs.jsonl"), place.path("pairs2.jsonl")).unwrap();
    let run = place.succeed(&["logps", "--model_name_or_path", "model", "--dataset_name", "pairs*.jsonl"]);
    let last: Value = serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((last["file"].as_str(), last["row"].as_u64()), (Some("pairs2.jsonl"), Some(6)));
}

#[test]
fn train_writes_a_model_metrics_and_checkpoints_and_eval_sees_the_gain() {
    let place = Place::new();
    let explained = place.succeed(&["help", "metrics"]).stdout;
    for method in ["dpo", "kldpo", "wdpo", "winsor", "causaldpo", "simpo", "orpo", "kto"] {
        let own = ["--method", method, "--output_dir", method];
        let run = place.succeed(&[&TRAIN[..], &FOUR_STEPS, &own].concat());
        assert!(run.stdout.contains(&format!("{method}: 4 steps")), "{}", run.stdout);
        let metrics = place.lines(&format!("{method}/metrics.jsonl"));
        assert_eq!(metrics.len(), 4);
        assert_eq!(number(&metrics[3], "step"), 4.0);
        // Policy = reference at the start, but for the rounding of sums over batches of other sizes.
        assert!(
            ["simpo", "orpo"].contains(&method) || number(&metrics[0], "rewards/margins").abs() < 1e-6,
            "{}",
            metrics[0]
        );
        for name in metrics[3].as_object().unwrap().keys() {
            // Environments are numbered, the help has one of them.
            let name = if name.starts_with("causal/environment_") { "causal/environment_E" } else { name };
            assert!(explained.lines().any(|line| line.split(' ').next() == Some(name)), "no help on {name}");
        }
        if method == "dpo" {
            assert!((number(&metrics[0], "loss") - std::f64::consts::LN_2).abs() < 1e-6);
        }
        for file in ["model.safetensors", "config.json", "tokenizer.json", "checkpoint-2/trainer_state.json"]
        {
            assert!(place.path(method).join(file).is_file(), "{method}/{file}");
        }
    }
    let eval = [
        "eval",
        "--model_name_or_path",
        "dpo",
        "--ref_model_name_or_path",
        "model",
        "--dataset_name",
        "pairs.jsonl",
        "pairs.jsonl",
        "--output",
        "eval.json",
    ];
    let run = place.succeed(&eval);
    assert!(run.stderr.contains("accuracy"), "{}", run.stderr);
    let record: Value = serde_json::from_str(&place.read("eval.json")).unwrap();
    let sets = record["datasets"].as_array().unwrap();
    assert_eq!(sets.len(), 2);
    assert!(number(&sets[0], "eval_loss") < std::f64::consts::LN_2 - 0.001, "{record}");
    assert!(number(&sets[0], "eval_rewards/margins") > 0.0, "{record}");
}

#[test]
fn evaluation_during_training_is_that_of_eval() {
    let place = Place::new();
    let rows = [
        "--dataset_train_split",
        "train[:4]",
        "--dataset_test_split",
        "train[4:]",
        "--eval_strategy",
        "steps",
    ];
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &rows].concat());
    let last =
        place.lines("out/metrics.jsonl").into_iter().rfind(|line| line.get("eval_loss").is_some()).unwrap();
    assert_eq!(number(&last, "step"), 4.0);
    let run = place.succeed(&[
        "eval",
        "--model_name_or_path",
        "out",
        "--ref_model_name_or_path",
        "model",
        "--dataset_name",
        "pairs.jsonl",
        "--dataset_test_split",
        "train[4:]",
    ]);
    let record: Value = serde_json::from_str(&run.stdout).unwrap();
    let set = &record["datasets"][0];
    for key in ["eval_loss", "eval_rewards/margins", "eval_logps/chosen", "eval_entropy"] {
        assert!((number(&last, key) - number(set, key)).abs() < 1e-6, "{key}: {last} {set}");
    }
}

#[test]
fn the_reference_is_scored_once_for_all_runs_and_its_files_are_checked() {
    let place = Place::new();
    let train = |output: &str, more: &[&str]| {
        place.succeed(&[&TRAIN[..], &FOUR_STEPS, &["--output_dir", output], more].concat())
    };
    let told = "6 of 6 rows: the reference's log-probabilities are known from before";
    assert!(!train("first", &[]).stderr.contains(told));
    assert!(
        train("second", &["--method", "wdpo", "--wdpo_prompt_gradient", "separate"]).stderr.contains(told)
    );
    assert!(!train("third", &["--reference_cache_dir", "none"]).stderr.contains(told));
    let weights = |name: &str| std::fs::read(place.path(name).join("model.safetensors")).unwrap();
    train("again", &[]);
    assert!(weights("first") == weights("again") && weights("first") == weights("third"));
    // Another text is another row.
    let changed = std::fs::read_to_string(place.path("pairs.jsonl")).unwrap().replace("bad bad", "very bad");
    place.write("changed.jsonl", &changed);
    assert!(train("fourth", &["--dataset_name", "changed.jsonl"]).stderr.contains("5 of 6 rows"));
    std::fs::write(cached(&place, "reference-"), "what\n").unwrap();
    place.fail(&[&TRAIN[..], &FOUR_STEPS].concat(), 1, &["reference-", "remove the file"]);
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let place = Place::new();
    let before = std::fs::read_dir(place.path("")).unwrap().count();
    let dry = |more: &[&str]| place.succeed(&[&TRAIN[..], &FOUR_STEPS, more, &["--dry_run"]].concat()).stdout;
    let line = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_else(|| panic!("no `{name}` in {text}")).trim().to_string()
    };
    let plain = dry(&[]);
    assert_eq!(line(&plain, "rows "), "6");
    assert_eq!(line(&plain, "steps "), "4 of 2 rows, 1.33 epochs");
    assert!(line(&plain, "memory ").contains("at the fullest moment"), "{plain}");
    assert!(
        line(&plain, "a step ").contains("forward")
            && !plain.contains("tangents")
            && !plain.contains("again")
    );
    assert!(line(&dry(&["--method", "wdpo"]), "a step ").contains("tangents"));
    // The pairs of a step are coupled, and go by ones; or activations are not kept.
    let coupled =
        ["--method", "kldpo", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2"];
    for more in [&coupled[..], &["--gradient_checkpointing", "true"]] {
        line(&dry(more), "again ");
    }
    assert!(!dry(&["--loss_type", "simpo"]).contains("reference "));
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), before);
    // What a run kept is used, and a wrong setting is found as in a run.
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &["--output_dir", "kept"]].concat());
    let again = place.succeed(&[&TRAIN[..], &FOUR_STEPS, &["--dry_run"]].concat());
    assert!(
        again.stderr.contains("tokenised before")
            && again.stdout == plain.replace(&line(&plain, "time "), &line(&again.stdout, "time "))
    );
    for (code, flags, said) in [
        (2, ["--dataset_train_split", "test"], "no split `test`"),
        (2, ["--output_dir", "kept"], "kept holds an earlier run"),
        (2, ["--resume_from_checkpoint", "true"], "no checkpoint in out"),
        (1, ["--resume_from_checkpoint", "model"], "model: not a checkpoint"),
        (1, ["--ref_model_name_or_path", "nothere"], "nothere: no such file or directory; a model is"),
    ] {
        place.fail(&[&TRAIN[..], &flags, &["--dry_run"]].concat(), code, &[said]);
    }
    let mut config = common::config();
    config["max_position_embeddings"] = 4.into();
    place.copy_model("short");
    place.write("short/config.json", &config.to_string());
    let short = ["--model_name_or_path", "short", "--max_length", "none", "--dry_run"];
    place.fail(&[&TRAIN[..], &short].concat(), 1, &["pairs.jsonl, row 1", "the model has 4 positions"]);
    // Scoring many rows at a time takes more than training on few.
    let memory = |text: &str| line(text, "memory ").split(' ').next().unwrap().parse::<f64>().unwrap();
    let many =
        ["--eval_strategy", "epoch", "--eval_dataset_name", "many.jsonl", "--per_device_eval_batch_size"];
    place.write("many.jsonl", &place.read("pairs.jsonl").repeat(2_000));
    let [few, all] = ["8", "12000"].map(|size| memory(&dry(&[&many[..], &[size]].concat())));
    assert!(all > few, "{few} {all}");
}

/// The file in the cache whose name begins so.
fn cached(place: &Place, start: &str) -> std::path::PathBuf {
    let files = std::fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let mut named = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(start));
    named.next().expect("a file in the cache")
}

#[test]
fn rows_are_tokenised_once_for_all_runs_and_the_result_is_the_same() {
    let place = Place::new();
    let train = |output: &str, more: &[&str]| {
        place.succeed(&[&TRAIN[..], &FOUR_STEPS, &["--output_dir", output], more].concat())
    };
    let told = "6 pairs, tokenised before";
    assert!(!train("first", &[]).stderr.contains(told));
    assert!(train("second", &["--beta", "0.2"]).stderr.contains(told));
    assert!(train("again", &[]).stderr.contains(told));
    assert!(!train("third", &["--dataset_cache_dir", "none"]).stderr.contains(told));
    assert!(!train("one", &["--num_threads", "1", "--dataset_cache_dir", "other"]).stderr.contains(told));
    let weights = |name: &str| std::fs::read(place.path(name).join("model.safetensors")).unwrap();
    for other in ["again", "third", "one"] {
        assert!(weights("first") == weights(other), "{other}");
    }
    // Damaged where no step has looked yet: noticed, said, and made anew the next time.
    let path = cached(&place, "tokens-");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    place.fail(
        &[&TRAIN[..], &FOUR_STEPS, &["--output_dir", "fifth"]].concat(),
        1,
        &["tokens-", "the file is removed"],
    );
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(train("sixth", &[]).stderr.contains("made anew"));
    assert!(weights("first") == weights("sixth"));
}

#[test]
fn a_resumed_run_ends_as_the_uninterrupted_one_and_another_run_is_refused() {
    let place = Place::new();
    // The checkpoint stands in the middle of a log interval.
    let logging = ["--logging_steps", "3"];
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &logging, &["--output_dir", "whole"]].concat());
    // What an interruption after the first checkpoint leaves.
    std::fs::create_dir(place.path("parts")).unwrap();
    std::fs::rename(place.path("whole/checkpoint-2"), place.path("parts/checkpoint-2")).unwrap();
    std::fs::copy(place.path("whole/metrics.jsonl"), place.path("parts/metrics.jsonl")).unwrap();
    let again = [&TRAIN[..], &FOUR_STEPS, &logging, &["--output_dir", "parts"]].concat();
    let run = place.run(&again);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("output_dir parts holds an earlier run"), "{}", run.stderr);
    place.succeed(&[&again[..], &["--resume_from_checkpoint", "true"]].concat());
    let weights = |name: &str| std::fs::read(place.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("whole"), weights("parts"));
    let metrics = |name: &str| std::fs::read_to_string(place.path(name).join("metrics.jsonl")).unwrap();
    assert_eq!(metrics("whole"), metrics("parts"));
    let past_end = ["--output_dir", "parts", "--resume_from_checkpoint", "true", "--max_steps", "3"];
    place.fail(&[&TRAIN[..], &FOUR_STEPS, &past_end].concat(), 2, &["is at step 4", "ends at step 3"]);

    // From an earlier checkpoint: the later one is of steps that are made again.
    let earlier =
        [&again[..], &["--resume_from_checkpoint", "parts/checkpoint-2", "--save_steps", "3"]].concat();
    place.fail(
        &earlier,
        2,
        &["go on from step 2", "parts/checkpoint-4 is of a later one", "overwrite_output_dir"],
    );
    place.succeed(&[&earlier[..], &["--overwrite_output_dir"]].concat());
    assert!(!place.path("parts/checkpoint-4").exists() && place.path("parts/checkpoint-3").exists());
    assert_eq!(weights("whole"), weights("parts"));
    std::fs::rename(place.path("whole/checkpoint-4"), place.path("parts/checkpoint-4")).unwrap();
    std::fs::remove_dir_all(place.path("parts/checkpoint-3")).unwrap();

    let other = ["--resume_from_checkpoint", "parts/checkpoint-2", "--beta", "0.2"];
    place.fail(
        &[&TRAIN[..], &FOUR_STEPS, &other].concat(),
        1,
        &["parts/checkpoint-2: a checkpoint of another run", "`beta` is 0.1 there, 0.2 here"],
    );
    let none = ["--resume_from_checkpoint", "tokenizer"];
    place.fail(&[&TRAIN[..], &FOUR_STEPS, &none].concat(), 1, &["tokenizer: not a checkpoint"]);
    place.fail(
        &[&TRAIN[..], &FOUR_STEPS, &["--resume_from_checkpoint"]].concat(),
        2,
        &["no checkpoint in out"],
    );

    let shown = place.succeed(&["inspect", "checkpoint", "parts/checkpoint-4"]).stdout;
    for part in ["step               4 of 4", "method", "dpo", "optimizer.safetensors"] {
        assert!(shown.contains(part), "{shown}");
    }
    let listed = place.succeed(&["inspect", "checkpoint", "parts"]).stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");

    // A bit that has turned in what is resumed from.
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let path = place.path("parts/checkpoint-2").join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let resume = ["--output_dir", "damaged", "--resume_from_checkpoint", "parts/checkpoint-2"];
        let expected = [name, "not what was saved", "resume from another checkpoint"];
        place.fail(&[&TRAIN[..], &FOUR_STEPS, &logging, &resume].concat(), 1, &expected);
        place.fail(&["inspect", "checkpoint", "parts/checkpoint-2"], 1, &expected);
        bytes[middle] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
    }
    place.succeed(&["inspect", "checkpoint", "parts/checkpoint-2"]);
}

#[test]
fn a_weight_too_large_for_the_save_dtype_does_not_lose_the_run() {
    let place = Place::new();
    let path = place.path("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let end = tensors["model.embed_tokens.weight"]["data_offsets"][1].as_u64().unwrap() as usize;
    bytes[header + end - 4..header + end].copy_from_slice(&7e4f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let half = ["--output_dir", "half", "--save_dtype", "float16"];
    let run = place.succeed(&[&TRAIN[..], &FOUR_STEPS, &half].concat());
    assert!(
        run.stderr.contains("float16 cannot hold: the model is saved in float32")
            && run.stderr.contains("model.embed_tokens.weight"),
        "{}",
        run.stderr
    );
    assert!(place.read("half/config.json").contains("\"float32\""));
}

#[test]
fn the_model_is_not_overwritten_by_what_is_trained_from_it() {
    let place = Place::new();
    let before = std::fs::read(place.path("model/model.safetensors")).unwrap();
    let run = place.run(&[&TRAIN[..], &FOUR_STEPS, &["--output_dir", "./model"]].concat());
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("is the model model itself"), "{}", run.stderr);
    assert_eq!(std::fs::read(place.path("model/model.safetensors")).unwrap(), before);
}

#[test]
fn a_checkpoint_that_is_trained_on_is_not_removed_with_the_run_it_stands_in() {
    let place = Place::new();
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &["--output_dir", "first"]].concat());
    let here = ["--output_dir", "./first", "--overwrite_output_dir"];
    for (model, reference) in [("first/checkpoint-2", "model"), ("model", "first/checkpoint-2")] {
        let models = ["--model_name_or_path", model, "--ref_model_name_or_path", reference];
        let expected =
            ["holds the model first/checkpoint-2 among its checkpoints", "choose another output_dir"];
        place.fail(&[&TRAIN[..], &FOUR_STEPS, &models, &here].concat(), 2, &expected);
    }
    assert!(place.path("first/checkpoint-2/model.safetensors").is_file());
}

#[test]
fn a_run_that_replaces_another_leaves_nothing_of_it() {
    let place = Place::new();
    place.succeed(&[&TRAIN[..], &FOUR_STEPS].concat());
    std::fs::create_dir(place.path("out/.checkpoint-3.1.0.tmp")).unwrap();
    // It stops at its second step, where the first one's size of update has broken the model.
    let broken = ["--overwrite_output_dir", "--learning_rate", "1e30", "--max_grad_norm", "1e30"];
    let run = place.run(&[&TRAIN[..], &FOUR_STEPS, &broken].concat());
    assert_eq!(run.code, 1, "{}", run.stderr);
    for gone in ["model.safetensors", "training_args.json", "checkpoint-4", ".checkpoint-3.1.0.tmp"] {
        assert!(!place.path("out").join(gone).exists(), "{gone} is the earlier run's");
    }
    assert!(place.path("out/metrics.jsonl").is_file());
}

#[test]
fn a_resumed_run_does_not_mix_references() {
    let place = Place::new();
    let pairs = place.read("pairs.jsonl");
    place.write("a.jsonl", &pairs);
    place.write("b.jsonl", &pairs.lines().rev().map(|line| format!("{line}\n")).collect::<String>());
    place.copy_model("base");
    let train = |name: &'static str, eval: &'static str, more: &[&'static str]| {
        let evaluated = ["--eval_strategy", "steps", "--eval_steps", "4", "--eval_dataset_name", eval];
        let own = ["--ref_model_name_or_path", "base", "--output_dir", name];
        [&TRAIN[..], &FOUR_STEPS, &evaluated, &own, more].concat()
    };
    let evaluated = |name: &str| place.lines(&format!("{name}/metrics.jsonl")).pop().unwrap();
    let resume = ["--resume_from_checkpoint", "true"];
    // Rows that are evaluated on are not those of the checkpoint: in another order, others stand in their places.
    place.succeed(&train("whole", "b.jsonl", &[]));
    place.succeed(&train("parts", "a.jsonl", &[]));
    std::fs::remove_dir_all(place.path("parts/checkpoint-4")).unwrap();
    place.succeed(&train("parts", "b.jsonl", &resume));
    assert_eq!(evaluated("parts"), evaluated("whole"));

    // The reference is not what it was, and there are rows that it has not scored.
    place.init("new", "4");
    std::fs::copy(place.path("new/model.safetensors"), place.path("base/model.safetensors")).unwrap();
    let said = "base: the reference has other weights than when the run began";
    place.fail(&train("parts", "a.jsonl", &resume), 1, &[said]);
}

#[test]
fn inspect_shows_models_data_and_tokens() {
    let place = Place::new();
    let model = ["inspect", "model", "--model_name_or_path", "model", "--tensors"];
    let shown = place.succeed(&model).stdout;
    for part in [
        "family             llama",
        "\"<eos>\" (2)",
        "chat template      none",
        "F32",
        "model.embed_tokens.weight",
    ] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }
    let data = ["inspect", "data", "--model_name_or_path", "tokenizer", "--dataset_name", "pairs.jsonl"];
    let shown = place.succeed(&[&data[..], &["--max_length", "6"]].concat()).stdout;
    for part in ["rows kept        6", "truncated        1 chosen, 1 rejected", "median"] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }
    let shown = place.succeed(&[&data[..], &["--row", "4"]].concat()).stdout;
    let lines: Vec<Vec<&str>> = shown.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "4", "prompt", "\"how\""]);
    assert_eq!(lines[2], ["2", "7", "chosen", "\"fine\""]);
    assert_eq!(lines[3], ["3", "2", "chosen", "special", "\"<eos>\""]);
    assert_eq!(lines[4], ["2", "10", "rejected", "\"very\""]);
    place.fail(
        &[&data[..], &["--row", "99"]].concat(),
        2,
        &["--row 99: `train` of pairs.jsonl has no such row"],
    );
}

#[test]
fn inspect_measures_the_machine() {
    let shown = Place::new().succeed(&["inspect", "machine", "--num_threads", "1"]).stdout;
    // `scripts/bench` reads these lines.
    for (name, unit) in
        [("float32 product", "GFLOP/s"), ("memory, reading", "GB/s"), ("memory, updating", "GB/s")]
    {
        let line = shown.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(words[0].parse::<f64>().unwrap() > 0.0 && words[1] == unit, "{shown}");
    }
}

#[test]
fn help_explains_commands_and_topics() {
    let place = Place::new();
    for (topic, said) in [
        (vec!["metrics"], "rewards/accuracies [share]"),
        (vec!["keys"], "activation_offloading (any value)"),
        (vec!["train"], "--per_device_train_batch_size <N>"),
        (vec!["inspect", "data"], "seakeep inspect data"),
        (vec![], "First steps:"),
    ] {
        let shown = place.succeed(&[&["help"], &topic[..]].concat()).stdout;
        assert!(shown.contains(said), "{topic:?}: {shown}");
    }
    place.fail(&["help", "nonsense"], 2, &["no command or topic `nonsense`"]);
    for command in ["train", "logps", "eval", "init"] {
        let shown = place.succeed(&[command, "--help"]).stdout;
        assert!(shown.contains("Example:\n  seakeep"), "{shown}");
    }
}

#[test]
fn generate_completes_prompts_the_same_way_every_time() {
    let place = Place::new();
    let model = ["generate", "--model_name_or_path", "model", "--max_new_tokens", "5"];
    let greedy = place.succeed(&[&model[..], &["--prompt", "how are you"]].concat()).stdout;
    assert_eq!(greedy, place.succeed(&[&model[..], &["--prompt", "how are you"]].concat()).stdout);

    let sampled = ["--dataset_name", "pairs.jsonl", "--do_sample", "--num_return_sequences", "2", "--output"];
    for (file, batch) in [("a.jsonl", "1"), ("b.jsonl", "4")] {
        place.succeed(&[&model[..], &sampled, &[file, "--batch_size", batch]].concat());
    }
    let lines = place.lines("a.jsonl");
    assert_eq!(lines, place.lines("b.jsonl"), "no batch size changes a text");
    assert_eq!(lines.len(), 12);
    assert_eq!(
        (&lines[0]["prompt"], &lines[2]["prompt"]),
        (&"how are you".into(), &"how are you today".into())
    );
    let tokens = lines[0]["tokens"].as_array().unwrap();
    assert!((1..=5).contains(&tokens.len()) && lines[0]["completion"].is_string(), "{}", lines[0]);
}

#[test]
fn a_prompt_is_a_users_turn_where_there_is_a_template() {
    let place = Place::new();
    place.write(
        "model/chat_template.jinja",
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}very",
    );
    let model = ["generate", "--model_name_or_path", "model", "--max_new_tokens", "3", "--prompt"];
    let text = |args: &[&str]| place.succeed(&[&model[..], args].concat()).stdout;
    let templated = text(&["how"]);
    assert_eq!(templated, text(&["user how very", "--chat_template", "false"]));
    assert_eq!(
        text(&["how", "--system", "fine"]),
        text(&["system fine user how very", "--chat_template", "false"])
    );
    let several = text(&["how", "--prompt", "today"]);
    assert!(
        several.starts_with(&format!("> how\n{}", templated.trim_end())) && several.contains("> today"),
        "{several}"
    );
}
