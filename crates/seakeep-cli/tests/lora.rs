//! Adapters on the command line: trained, resumed, read by other commands, merged; and what is refused.

mod common;

use common::{FOUR_STEPS, Place, TRAIN};
use serde_json::Value;

const ADAPTERS: [&str; 5] = ["--use_peft", "--lora_r", "2", "--lora_alpha", "4"];

/// The log-probabilities of a model's six pairs.
fn logps(place: &Place, model: &str) -> Vec<f64> {
    let run = place.succeed(&["logps", "--model_name_or_path", model, "--dataset_name", "pairs.jsonl"]);
    let lines = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.flat_map(|line| ["chosen_logps", "rejected_logps"].map(|key| line[key].as_f64().unwrap())).collect()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
}

#[test]
fn an_adapter_is_trained_read_and_merged() {
    let place = Place::new();
    for method in ["dpo", "wdpo"] {
        let own = ["--method", method, "--output_dir", method];
        let run = place.succeed(&[&TRAIN[..], &FOUR_STEPS, &ADAPTERS, &own].concat());
        assert!(run.stderr.contains("parameters are trained"), "{}", run.stderr);
        let metrics = place.lines(&format!("{method}/metrics.jsonl"));
        // The reference is the model without adapters, which the policy is at the start.
        assert!(metrics[0]["rewards/margins"].as_f64().unwrap().abs() < 1e-6, "{}", metrics[0]);
        assert!(metrics[3]["rewards/margins"].as_f64().unwrap() > 0.0, "{}", metrics[3]);
        for directory in [method.to_string(), format!("{method}/checkpoint-2")] {
            for (file, there) in [
                ("adapter_config.json", true),
                ("adapter_model.safetensors", true),
                ("tokenizer.json", true),
                ("config.json", false),
                ("model.safetensors", false),
            ] {
                assert_eq!(place.path(&directory).join(file).exists(), there, "{directory}/{file}");
            }
        }
        let merged = format!("{method}-merged");
        place.succeed(&["merge", "--model_name_or_path", method, "--output_dir", &merged]);
        let (of_adapter, of_merged) = (logps(&place, method), logps(&place, &merged));
        close(&of_adapter, &of_merged);
        let base = logps(&place, "model");
        assert!(of_adapter.iter().zip(base).any(|(a, b)| (a - b).abs() > 1e-2), "it learned something");
    }
    let eval = ["eval", "--ref_model_name_or_path", "model", "--dataset_name", "pairs.jsonl"];
    let record = |model| place.succeed(&[&eval[..], &["--model_name_or_path", model]].concat()).stdout;
    let margins = |model| {
        let record: Value = serde_json::from_str(&record(model)).unwrap();
        record["datasets"][0]["eval_rewards/margins"].as_f64().unwrap()
    };
    close(&[margins("dpo")], &[margins("dpo-merged")]);
    let shown = place.succeed(&["inspect", "model", "--model_name_or_path", "dpo"]).stdout;
    assert!(shown.contains("LoRA of rank 2, multiplied by 2, on "), "{shown}");
}

#[test]
fn magnitudes_and_dropout_are_trained_with_read_and_merged() {
    let place = Place::new();
    let special = ["--use_dora", "--lora_dropout", "0.2", "--disable_dropout", "false"];
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &ADAPTERS, &special, &["--output_dir", "dora"]].concat());
    let config: Value = serde_json::from_str(&place.read("dora/adapter_config.json")).unwrap();
    assert_eq!(
        (&config["use_dora"], &config["lora_dropout"]),
        (&serde_json::json!(true), &serde_json::json!(0.2))
    );
    place.succeed(&["merge", "--model_name_or_path", "dora", "--output_dir", "merged"]);
    close(&logps(&place, "dora"), &logps(&place, "merged"));
    let first = |run: &str| place.lines(&format!("{run}/metrics.jsonl"))[1]["loss"].as_f64().unwrap();
    // Dropout alone, without `disable_dropout`, changes nothing: as in TRL's DPO.
    place.succeed(
        &[&TRAIN[..], &FOUR_STEPS, &ADAPTERS, &special[1..3], &["--output_dir", "disabled"]].concat(),
    );
    place.succeed(&[&TRAIN[..], &FOUR_STEPS, &ADAPTERS, &["--output_dir", "plain"]].concat());
    assert_eq!(first("disabled"), first("plain"));
    assert!(first("dora") != first("plain"));
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let place = Place::new();
    let dropout = ["--use_dora", "--disable_dropout", "false"];
    let all = |more: &[&'static str]| [&TRAIN[..], &FOUR_STEPS, &ADAPTERS, &dropout, more].concat();
    place.succeed(&all(&["--output_dir", "whole", "--weight_decay", "0.1"]));
    place.succeed(&all(&["--output_dir", "halves", "--weight_decay", "0.1"]));
    std::fs::remove_dir_all(place.path("halves/checkpoint-4")).unwrap();
    std::fs::remove_file(place.path("halves/adapter_model.safetensors")).unwrap();
    let resume = ["--output_dir", "halves", "--weight_decay", "0.1", "--resume_from_checkpoint", "true"];
    place.succeed(&all(&resume));
    for file in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "checkpoint-4/optimizer.safetensors",
        "metrics.jsonl",
    ] {
        let bytes = |run: &str| std::fs::read(place.path(run).join(file)).unwrap();
        assert!(bytes("whole") == bytes("halves"), "{file}");
    }
    // Nor on other weights: a checkpoint of adapters does not hold those.
    let model = std::fs::read(place.path("model/model.safetensors")).unwrap();
    let mut other = model.clone();
    *other.last_mut().unwrap() ^= 1;
    std::fs::write(place.path("model/model.safetensors"), &other).unwrap();
    std::fs::remove_dir_all(place.path("halves/checkpoint-4")).unwrap();
    place.fail(&all(&resume), 1, &["checkpoint-2", "trained on other weights than model has now"]);
    std::fs::write(place.path("model/model.safetensors"), &model).unwrap();
    // With another rank, or without adapters, it is another run.
    let run = place.run(&all(&[&resume[..], &["--lora_r", "3"]].concat()));
    assert!(run.code == 1 && run.stderr.contains("`lora_r` is 2 there, 3 here"), "{}", run.stderr);
    let run = place.run(&[&TRAIN[..], &FOUR_STEPS, &resume].concat());
    assert!(run.code == 1 && run.stderr.contains("`use_peft` is true there, not set here"), "{}", run.stderr);
}

#[test]
fn texts_are_learnt_by_adapters_too_and_a_model_after_an_adapter_is_one() {
    let place = Place::new();
    place.write("texts.txt", "how are you\nfine thanks\nvery bad today\nyou are fine\n");
    let sft = ["sft", "--model_name_or_path", "model", "--dataset_name", "texts.txt", "--output_dir", "sft"];
    place.succeed(&[&sft[..], &FOUR_STEPS, &ADAPTERS, &["--lora_target_modules", "q_proj,v_proj"]].concat());
    let config: Value = serde_json::from_str(&place.read("sft/adapter_config.json")).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    let losses: Vec<f64> =
        place.lines("sft/metrics.jsonl").iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    assert!(losses[3] < losses[0], "{losses:?}");

    // The same directory, trained whole: no adapter of the earlier run is left to be taken for its result.
    place.succeed(&[&sft[..], &FOUR_STEPS, &["--overwrite_output_dir"]].concat());
    assert!(place.path("sft/model.safetensors").exists() && !place.path("sft/adapter_config.json").exists());
    place.succeed(&[&sft[..], &FOUR_STEPS, &ADAPTERS, &["--overwrite_output_dir"]].concat());
    assert!(!place.path("sft/model.safetensors").exists() && place.path("sft/adapter_config.json").exists());
    logps(&place, "sft");
}

#[test]
fn what_cannot_be_is_refused() {
    let place = Place::new();
    let train = |more: &[&'static str]| [&TRAIN[..], &FOUR_STEPS, more].concat();
    place.fail(
        &train(&["--use_peft", "--lora_target_modules", "q_porj"]),
        2,
        &["`q_porj` is no linear layer", "did you mean `q_proj`?"],
    );
    place.fail(&train(&["--lora_r", "4"]), 2, &["--lora_r has no meaning without adapters"]);
    place.fail(&train(&["--use_peft", "--lora_dropout", "1.5"]), 2, &["--lora_dropout is 1.5; expected"]);
    place.succeed(&train(&[&ADAPTERS[..], &["--output_dir", "lora"]].concat()));
    place.fail(
        &train(&[&ADAPTERS[..], &["--model_name_or_path", "lora"]].concat()),
        2,
        &["lora is an adapter itself", "seakeep merge"],
    );
    place.fail(
        &train(&["--model_name_or_path", "lora", "--output_dir", "model"]),
        2,
        &["output_dir model is"],
    );
    let merge = |from, to| ["merge", "--model_name_or_path", from, "--output_dir", to];
    place.fail(&merge("model", "out"), 2, &["nothing to merge"]);
    place.fail(&merge("lora", "model"), 2, &["output_dir model holds files"]);
    place.write("peft.toml", "use_peft = true\n");
    let reward = ["reward", "train", "--config", "peft.toml", "--model_name_or_path", "model"];
    let rows = ["--dataset_name", "pairs.jsonl", "--output_dir", "out"];
    place.fail(&[&reward[..], &rows].concat(), 2, &["`use_peft` is for train and sft"]);
}
