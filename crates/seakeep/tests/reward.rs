//! Reward models against transformers and TRL, every family: names and shapes on disk, logits, losses, gradients. The
//! values come from `scripts/parity/reward.py` (float64) on the backbones of the other golden cases.
//!
//! Tolerances: f32 through two layers against float64. Logits of order 1 agree to 1e-5, losses to 1e-6 relative, gradients to
//! 5e-5 of their norm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seakeep::data::{Message, Text};
use seakeep::formats::{ModelSource, SaveDtype, write_safetensors};
use seakeep::judge::{Judge, RewardJudge};
use seakeep::model::Tensors;
use seakeep::progress::Silent;
use seakeep::reward::{Example, Objective, Problem, RewardModel, Target, gradient};
use serde_json::{Value, json};

const CASES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"];

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(golden_dir().join("reward.json")).unwrap()).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn texts(v: &Value) -> Vec<Vec<u32>> {
    let ids = |text: &Value| text.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
    v.as_array().unwrap().iter().map(ids).collect()
}

/// Forty words, one for each token of the golden models; one of them what begins an assistant's turn.
fn tokenizer() -> Value {
    const HEADER: &str = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>";
    let word = |id: usize| if id == 38 { HEADER.to_string() } else { format!("w{id}") };
    let vocabulary: serde_json::Map<String, Value> = (0..40).map(|id| (word(id), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w1" }
    })
}

/// The backbone of a case with a head: what transformers saves, by its own list of names.
fn write_model(directory: &Path, case: &str, head: &Value, problem: Option<&str>, saved: &Value) {
    let source = ModelSource::open(golden_dir().join(case)).unwrap();
    let rows: Vec<Vec<f64>> = head.as_array().unwrap().iter().map(floats).collect();
    let head: Vec<f32> = rows.iter().flatten().map(|x| *x as f32).collect();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for name in saved.as_object().unwrap().keys().filter(|name| *name != "score.weight") {
        let shape = source.weights.shape(name).unwrap_or_else(|| panic!("{case}: no {name}")).to_vec();
        tensors.insert(name.clone(), (shape, source.weights.read_f32(name).unwrap()));
    }
    let width = rows[0].len();
    tensors.insert("score.weight".into(), (vec![rows.len(), width], head));
    let views: Vec<(&str, &[usize], &[f32])> =
        tensors.iter().map(|(n, (s, d))| (n.as_str(), s.as_slice(), d.as_slice())).collect();
    write_safetensors(directory.join("model.safetensors"), &views, SaveDtype::F32).unwrap();
    let mut config = source.config.clone();
    config["pad_token_id"] = json!(0);
    config["problem_type"] = json!(problem);
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    std::fs::write(directory.join("tokenizer.json"), tokenizer().to_string()).unwrap();
}

fn model(case: &str, golden: &Value, head: &str, problem: Option<&str>) -> (tempfile::TempDir, RewardModel) {
    let directory = tempfile::tempdir().unwrap();
    write_model(directory.path(), case, &golden[head], problem, &golden["saved"]);
    let model = RewardModel::load(&ModelSource::open(directory.path()).unwrap()).unwrap();
    (directory, model)
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance, "{what}: got {got}, want {want}");
}

fn check_gradients(model: &RewardModel, grads: &Tensors, want: &Value, what: &str) {
    for file in &model.model.map.files {
        let got = model.model.map.export(file, grads);
        let norm = got.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
        let dot: f64 =
            got.iter().enumerate().map(|(k, &g)| f64::from(g) * (0.37 * (k + 1) as f64).cos()).sum();
        let golden = floats(&want[&file.name]);
        // Floored where the derivatives of a pair's two texts nearly cancel, which leaves their rounding.
        let (scale, what) = (golden[0].max(0.02 * grads.norm()), format!("{what}: {}", file.name));
        close(norm, golden[0], 5e-5 * scale, &what);
        close(dot, golden[1], 5e-5 * scale, &what);
    }
}

fn examples(texts: Vec<Vec<u32>>, targets: Vec<Target>) -> Vec<Example> {
    let each = texts.len() / targets.len();
    let texts: Vec<Vec<Vec<u32>>> = texts.chunks(each).map(<[_]>::to_vec).collect();
    texts.into_iter().zip(targets).map(|(texts, target)| Example { texts, target }).collect()
}

fn known(rows: &Value) -> Vec<Vec<Option<f64>>> {
    rows.as_array().unwrap().iter().map(|r| floats(r).into_iter().map(Some).collect()).collect()
}

#[test]
fn tensors_have_the_names_and_shapes_of_transformers() {
    let golden = golden();
    for case in CASES {
        let (_directory, model) = model(case, &golden["cases"][case], "head", None);
        let ours: BTreeMap<String, Vec<usize>> =
            model.model.map.files.iter().map(|f| (f.name.clone(), f.shape.clone())).collect();
        let theirs: BTreeMap<String, Vec<usize>> =
            serde_json::from_value(golden["cases"][case]["saved"].clone()).unwrap();
        assert_eq!(ours, theirs, "{case}");
    }
}

#[test]
fn logits_are_those_of_transformers_in_any_batch() {
    let golden = golden();
    for case in CASES {
        let of = &golden["cases"][case];
        let (_directory, model) = model(case, of, "head", Some("multi_label_classification"));
        for size in [1, 3, 4] {
            let logits = model.logits(&texts(&of["texts"]), size, &mut Silent).unwrap();
            for (got, want) in logits.iter().zip(of["logits"].as_array().unwrap()) {
                got.iter().zip(floats(want)).for_each(|(g, w)| close(*g, w, 1e-5, case));
            }
        }
        let scores = model.score(&texts(&of["texts"]), 4, &mut Silent).unwrap();
        let want = 1.0 / (1.0 + (-floats(&of["logits"][0])[1]).exp());
        close(scores[0][1], want, 1e-5, "sigmoid");
    }
}

#[test]
fn losses_and_gradients_are_those_of_transformers_and_trl() {
    let golden = golden();
    for case in CASES {
        let of = &golden["cases"][case];
        // Labels, some not known.
        let (_directory, labelled) = model(case, of, "head", Some("multi_label_classification"));
        let mut values = known(&golden["labels"]);
        for at in golden["unknown"].as_array().unwrap() {
            values[at[0].as_u64().unwrap() as usize][at[1].as_u64().unwrap() as usize] = None;
        }
        let targets = values.into_iter().map(Target::Labels).collect();
        let objective = Objective { problem: Problem::MultiLabel, center_rewards: None };
        check(&labelled, objective, &examples(texts(&of["texts"]), targets), &of["partial"], case);
        // Pairs.
        let (_directory, pairs) = model(case, of, "pair_head", None);
        let targets = floats(&golden["margins"]).into_iter().map(|margin| Target::Pair { margin }).collect();
        let objective =
            Objective { problem: Problem::BradleyTerry, center_rewards: golden["center"].as_f64() };
        assert_eq!(pairs.problem, Problem::BradleyTerry);
        check(&pairs, objective, &examples(texts(&of["texts"]), targets), &of["bradley_terry"], case);
        // The other kinds of labels, and all labels known, by their losses.
        let classes = golden["classes"].as_array().unwrap().iter().map(|class| {
            (0..3).map(|k| Some(f64::from(u8::from(Some(k) == class.as_u64())))).collect::<Vec<_>>()
        });
        for (problem, values) in [
            (Problem::MultiLabel, known(&golden["labels"])),
            (Problem::Regression, known(&golden["numbers"])),
            (Problem::SingleLabel, classes.collect()),
        ] {
            let targets = [0, 1, 3].map(|i: usize| Target::Labels(values[i].clone())).to_vec();
            let texts = vec![vec![5, 9], vec![17, 3], vec![21, 4]];
            let objective = Objective { problem, center_rewards: None };
            let mut grads = Tensors::zeros(&labelled.model.map);
            let out = gradient(&labelled, &objective, &examples(texts, targets), 8, &mut grads).unwrap();
            let want = of[problem.name()]["loss"].as_f64().unwrap();
            close(out.loss, want, 1e-5 * want, &format!("{case}: {}", problem.name()));
        }
    }
}

/// Loss and gradients in one piece against golden ones, and in every smaller piece against itself.
fn check(model: &RewardModel, objective: Objective, examples: &[Example], want: &Value, case: &str) {
    let mut whole = Tensors::zeros(&model.model.map);
    let out = gradient(model, &objective, examples, examples.len(), &mut whole).unwrap();
    let what = format!("{case}: {}", objective.problem.name());
    let loss = want["loss"].as_f64().unwrap();
    close(out.loss, loss, 1e-5 * loss, &what);
    check_gradients(model, &whole, &want["tensors"], &what);
    for micro in 1..examples.len() {
        let mut grads = Tensors::zeros(&model.model.map);
        let cut = gradient(model, &objective, examples, micro, &mut grads).unwrap();
        close(cut.loss, out.loss, 1e-6, &what);
        grads.add_scaled(&whole, -1.0);
        assert!(grads.norm() <= 1e-5 * whole.norm(), "{what}, {micro} at a time: {}", grads.norm());
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    let golden = golden();
    for case in ["llama", "gpt2"] {
        let (_directory, mut model) = model(case, &golden["cases"][case], "pair_head", None);
        let objective = Objective { problem: Problem::BradleyTerry, center_rewards: Some(0.1) };
        // Two that begin alike, where the beginning is computed once, and two that do not.
        let texts = vec![vec![4, 9, 7, 3], vec![4, 9, 8], vec![6, 6], vec![2, 30, 31]];
        let examples = examples(texts, vec![Target::Pair { margin: 0.2 }, Target::Pair { margin: 0.0 }]);
        let mut grads = Tensors::zeros(&model.model.map);
        gradient(&model, &objective, &examples, 2, &mut grads).unwrap();
        let slope = grads.norm();
        let at = |model: &mut RewardModel, step: f32| {
            model.model.weights.add_scaled(&grads, step);
            let mut aside = Tensors::zeros(&model.model.map);
            let loss = gradient(model, &objective, &examples, 1, &mut aside).unwrap().loss;
            model.model.weights.add_scaled(&grads, -step);
            loss
        };
        // Along the gradient itself the loss changes by its squared length.
        let step = (2e-3 / slope) as f32;
        let difference = (at(&mut model, step) - at(&mut model, -step)) / (2.0 * f64::from(step));
        close(difference / (slope * slope), 1.0, 2e-3, case);
    }
}

#[test]
fn what_is_saved_loads_again_and_scores_the_same() {
    let golden = golden();
    for case in CASES {
        let labels = vec!["anger".to_string(), "joy".to_string()];
        let directory = tempfile::tempdir().unwrap();
        let of = &golden["cases"][case];
        write_model(directory.path(), case, &of["head"], None, &of["saved"]);
        let source = ModelSource::open(directory.path()).unwrap();
        let start =
            |seed| RewardModel::start(&source, Problem::MultiLabel, &labels, seed, &mut Silent).unwrap();
        let logits = |model: &RewardModel| model.logits(&texts(&of["texts"]), 2, &mut Silent).unwrap();
        let model = start(3);
        assert_eq!(logits(&model), logits(&start(3)), "the same seed, the same head");
        assert_ne!(logits(&model), logits(&start(4)));
        let saved = tempfile::tempdir().unwrap();
        model.save(saved.path(), SaveDtype::F32).unwrap();
        let again = ModelSource::open(saved.path()).unwrap();
        let loaded = RewardModel::load(&again).unwrap();
        assert_eq!((loaded.labels(), loaded.problem), (&labels[..], Problem::MultiLabel));
        assert_eq!(logits(&loaded), logits(&model));
        // Its head is kept when it is trained on.
        let kept = RewardModel::start(&again, Problem::MultiLabel, &labels, 9, &mut Silent).unwrap();
        assert_eq!(logits(&kept), logits(&model));
        let class = again.config["architectures"][0].as_str().unwrap();
        assert!(class.ends_with("ForSequenceClassification"), "{class}");
    }
}

#[test]
fn a_gated_model_mixes_its_objectives_as_armorm_does() {
    let golden = &golden()["gated"];
    let directory = tempfile::tempdir().unwrap();
    let source = ModelSource::open(golden_dir().join("llama")).unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for name in source.weights.names() {
        let shape = source.weights.shape(name).unwrap().to_vec();
        tensors.insert(name.into(), (shape, source.weights.read_f32(name).unwrap()));
    }
    for (name, tensor) in golden["tensors"].as_object().unwrap() {
        let shape = floats(&tensor["shape"]).into_iter().map(|n| n as usize).collect();
        tensors
            .insert(name.clone(), (shape, floats(&tensor["values"]).into_iter().map(|x| x as f32).collect()));
    }
    let views: Vec<(&str, &[usize], &[f32])> =
        tensors.iter().map(|(n, (s, d))| (n.as_str(), s.as_slice(), d.as_slice())).collect();
    write_safetensors(directory.path().join("model.safetensors"), &views, SaveDtype::F32).unwrap();
    let mut config = source.config.clone();
    config["architectures"] = json!(["LlamaForRewardModelWithGating"]);
    config["gating_temperature"] = golden["temperature"].clone();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();

    let model = RewardModel::load(&ModelSource::open(directory.path()).unwrap()).unwrap();
    assert_eq!((model.labels().len(), model.labels()[5].as_str()), (6, "score"));
    for size in [1, 3] {
        let found = model.score(&texts(&golden["texts"]), size, &mut Silent).unwrap();
        for (i, got) in found.iter().enumerate() {
            floats(&golden["rewards"][i]).iter().zip(got).for_each(|(w, g)| close(*g, *w, 1e-5, "objective"));
            close(got[5], golden["scores"][i].as_f64().unwrap(), 1e-5, "score");
        }
    }
    let error = model.score(&[vec![3, 4]], 1, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("assistant's turn"), "{error}");
    let error = model.save(directory.path(), SaveDtype::F32).unwrap_err().to_string();
    assert!(error.contains("gating"), "{error}");
}

#[test]
fn a_text_becomes_the_tokens_of_prompt_and_completion() {
    let golden = golden();
    let (_directory, model) = model("llama", &golden["cases"]["llama"], "head", None);
    let text = |text: &str| Text::Standard(text.into());
    assert_eq!(model.tokens(&text("w3 w"), &text("4 w5")).unwrap(), [3, 4, 5]);
    assert_eq!(model.labels(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let chat = Text::Chat(vec![Message::new("user", "w3")]);
    assert!(model.tokens(&chat, &text("w4")).unwrap_err().to_string().contains("no chat template"));
    assert!(model.tokens(&text("w4"), &chat).unwrap_err().to_string().contains("messages after a prompt"));
    assert!(model.tokens(&text(""), &text(" ")).unwrap_err().to_string().contains("nothing to score"));
    let mut long = vec![3; 100_000];
    assert!(model.truncate(&mut long, Some(7)) && long.len() == 7);
}

/// What a policy wrote may be more tokens for the judge than it has positions (64).
#[test]
fn a_judge_scores_the_beginning_of_what_is_too_long() {
    let golden = golden();
    let (_directory, model) = model("llama", &golden["cases"]["llama"], "head", None);
    let mut judge = RewardJudge { model, batch_size: 2 };
    let prompt = Text::Standard("w3".into());
    let (whole, long) = (" w5".repeat(63), " w5".repeat(100));
    let scores = judge.score(&[(&prompt, &whole), (&prompt, &long)], &mut Silent).unwrap();
    assert_eq!(scores[0], scores[1]);
}

#[test]
fn a_language_model_is_not_a_reward_model() {
    let source = ModelSource::open(golden_dir().join("llama")).unwrap();
    let error = RewardModel::load(&source).err().unwrap().to_string();
    assert!(error.contains("no tensor `score.weight`") && error.contains("reward train"), "{error}");
}

/// `.ci/run` leaves these out by this name where there is no such Python.
mod needs_python {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[ignore = "needs SEAKEEP_PYTHON with transformers"]
    fn transformers_loads_what_is_saved_and_scores_the_same() {
        let golden = golden();
        for case in CASES {
            let labels = vec!["anger".to_string(), "joy".to_string(), "love".to_string()];
            let directory = tempfile::tempdir().unwrap();
            let of = &golden["cases"][case];
            write_model(directory.path(), case, &of["head"], None, &of["saved"]);
            let base = ModelSource::open(directory.path()).unwrap();
            let model = RewardModel::start(&base, Problem::MultiLabel, &labels, 5, &mut Silent).unwrap();
            let saved = tempfile::tempdir().unwrap();
            model.save(saved.path(), SaveDtype::F32).unwrap();
            let script = golden_dir().join("../../../../scripts/parity/reward.py");
            let mut child = Command::new(std::env::var("SEAKEEP_PYTHON").expect("set SEAKEEP_PYTHON"))
                .arg(script)
                .arg("--score")
                .arg(saved.path())
                .env("CUDA_VISIBLE_DEVICES", "")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(of["texts"].to_string().as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
            let ours = ModelSource::open(saved.path()).unwrap().config["architectures"][0].clone();
            assert_eq!(seen["class"], ours);
            assert_eq!(
                (&seen["num_labels"], &seen["problem_type"]),
                (&json!(3), &json!("multi_label_classification"))
            );
            assert_eq!(seen["id2label"], json!({"0": "anger", "1": "joy", "2": "love"}));
            let ours = model.logits(&texts(&of["texts"]), 4, &mut Silent).unwrap();
            for form in ["logits", "padded"] {
                for (got, want) in ours.iter().zip(seen[form].as_array().unwrap()) {
                    got.iter()
                        .zip(floats(want))
                        .for_each(|(g, w)| close(*g, w, 1e-4, &format!("{case}: {form}")));
                }
            }
        }
    }
}
