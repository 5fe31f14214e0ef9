use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::data::{TokenizeOptions, TokenizedPair, read_pairs, tokenize_pairs};
use crate::formats::Tokenizer;
use crate::generate::GenerateOptions;
use crate::logps::{BranchLogps, Facts};
use crate::model::Model;
use crate::objective::{Groups, Objective, wdpo};
use crate::policy_record::{Column, PairSet, Policy, PolicyRecord, Samples, Shift};
use crate::progress::Silent;
use crate::reference::Known;
use crate::scoring::{PairLayout, score};
use crate::stats::{Ball, Bootstrap, mean};
use crate::train::step::{GlobalBatch, Gradients, gradient};

const WORDS: [&str; 8] = ["<pad>", "<bos>", "<eos>", "<unk>", "how", "are", "you", "fine"];

fn tokenizer(directory: &Path) -> Tokenizer {
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| (word.to_string(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0), special(1), special(2), special(3)],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    std::fs::write(directory.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(directory.join("tokenizer_config.json"), r#"{"eos_token": "<eos>"}"#).unwrap();
    Tokenizer::open(directory.join("tokenizer.json")).unwrap()
}

fn model(seed: u64) -> Model {
    let config = json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 12, "initializer_range": 0.7
    });
    Model::random(&config, seed).unwrap()
}

/// A directory with a tokenizer and a file of this text.
fn place(name: &str, text: &str) -> (tempfile::TempDir, Tokenizer, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    let tokenizer = tokenizer(directory.path());
    (directory, tokenizer, path.display().to_string())
}

const PROMPTS: &str = "{\"prompt\": \"how are\", \"who\": \"a\"}\n{\"prompt\": \"you\", \"who\": \"b\"}\n";

fn drawn(options: &GenerateOptions) -> Drawn {
    let (_directory, tokenizer, spec) = place("p.jsonl", PROMPTS);
    let prompts = read_prompts(&spec, Some("who"), &mut Silent).unwrap();
    Drawn::generate((&model(1), &tokenizer, &[2]), prompts, None, options, &mut Silent).unwrap()
}

fn options(samples: usize, longest: usize) -> GenerateOptions {
    GenerateOptions {
        do_sample: true,
        num_return_sequences: samples,
        max_new_tokens: longest,
        ..GenerateOptions::default()
    }
}

#[test]
fn a_prompt_that_stands_twice_is_asked_once() {
    let (_directory, _, spec) = place("p.jsonl", &[PROMPTS, PROMPTS].concat());
    let prompts = read_prompts(&spec, Some("who"), &mut Silent).unwrap();
    let groups: Vec<_> = prompts.iter().map(|prompt| prompt.group.as_deref()).collect();
    assert_eq!(groups, [Some("a"), Some("b")]);
}

/// Log-probabilities of samples are those of the training path: the same tokens as a preference row, the end token among
/// them, scored pair by pair. 2e-6 relative: sums in another order.
#[test]
fn logps_of_samples_are_those_of_pairs() {
    let own = drawn(&options(3, 4));
    let logps = own.logps(&model(1), 2, &mut Silent).unwrap();
    assert_eq!(own.logps(&model(1), 2, &mut Silent).unwrap(), logps);
    let samples = own.clone().into_samples(logps.clone(), logps.clone());
    assert_eq!(
        (samples.prompts, samples.per_prompt, samples.groups.clone()),
        (2, 3, Some(vec!["a".into(), "b".into()]))
    );
    let (batch_of_one, batch_of_all) =
        (own.logps(&model(1), 1, &mut Silent), own.logps(&model(1), 64, &mut Silent));
    for other in [batch_of_one.unwrap(), batch_of_all.unwrap()] {
        assert!(
            other.iter().zip(&logps).all(|(a, b)| (a - b).abs() <= 2e-6 * b.abs()),
            "{other:?} {logps:?}"
        );
    }
    for ((prompt, tokens), logp) in own.tokens().zip(&logps) {
        let mut batch = crate::batch::Batch::default();
        batch.push_texts(&[(prompt, tokens)]);
        let want = model(1).forward(&batch).branch_logps(&batch)[0];
        assert!((want - logp).abs() <= 2e-6 * want.abs(), "{want} {logp}");
    }
}

/// With one token the divergence is a sum over the vocabulary: the estimate lies within four standard errors of it, and its
/// interval holds it; drawn at temperature 1 the log-probabilities are those of the drawing distribution.
#[test]
fn divergence_is_estimated_without_bias() {
    let own = drawn(&options(3000, 1));
    let (policy, reference) =
        (own.logps(&model(1), 256, &mut Silent).unwrap(), own.logps(&model(2), 256, &mut Silent).unwrap());
    let exact = |prompt: &[u32]| -> f64 {
        let all = |seed| -> Vec<f64> {
            let mut batch = crate::batch::Batch::default();
            let tokens: Vec<[u32; 1]> = (0..8).map(|t| [t]).collect();
            let branches: Vec<&[u32]> = tokens.iter().map(|t| t.as_slice()).collect();
            batch.push(prompt, &branches, crate::batch::Sharing::Shared);
            model(seed).forward(&batch).branch_logps(&batch)
        };
        all(1).iter().zip(all(2)).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    let ratios: Vec<f64> = policy.iter().zip(&reference).map(|(p, q)| p - q).collect();
    for (own, prompt) in ratios.chunks(3000).zip([&[4, 5][..], &[6]]) {
        let (m, want) = (mean(own), exact(prompt));
        let se = (own.iter().map(|x| (x - m).powi(2)).sum::<f64>()).sqrt() / 3000.0;
        assert!((m - want).abs() < 4.0 * se && want > 10.0 * se, "{m} {want} {se}");
    }
}

/// The norms are those that training's penalty is made of: the root of their mean square is its metric.
#[test]
fn input_gradients_are_those_of_the_training_step() {
    let text = concat!(
        "{\"prompt\": \"how are\", \"chosen\": \" fine\", \"rejected\": \" you you\"}\n",
        "{\"prompt\": \"you\", \"chosen\": \" fine fine\", \"rejected\": \" how\"}\n",
        "{\"prompt\": \"are\", \"chosen\": \" you\", \"rejected\": \" fine\"}\n",
    );
    let (_directory, tokenizer, spec) = place("d.jsonl", text);
    let pairs =
        tokenize_pairs(&read_pairs(&spec).unwrap(), &tokenizer, &TokenizeOptions::default()).unwrap().0;
    let all: Vec<&TokenizedPair> = pairs.iter().collect();
    let (policy, reference) = (model(1), model(2));
    let scores = |m: &Model| score(m, &all, PairLayout::PLAIN, false, 2, &mut Silent).unwrap();
    let known = Known::of(&scores(&reference));
    let objective = Objective::dpo(0.5);
    let evaluator = Evaluator { objective: &objective, environments: None };
    let found = evaluator.evaluate(&pairs, &scores(&policy), &known, &RowColumns::default()).unwrap();
    let norms = input_gradients(&policy, PairLayout::of(&objective), (&pairs, &found.losses), 2, &mut Silent)
        .unwrap();
    let (form, prompt_gradient) = (wdpo::Form::Paper, wdpo::PromptGradient::Shared);
    let penalised =
        Objective { penalty: Some(wdpo::Penalty { rho: 2.0, form, prompt_gradient }), ..objective.clone() };
    let facts: Vec<Facts> = pairs.iter().map(|p| Facts::of(p, false)).collect();
    let logps = BranchLogps(known.iter().map(|k| k.logps.clone()).collect());
    let global = GlobalBatch {
        pairs: &all,
        facts: &facts,
        reference: &logps,
        progress: 1.0,
        groups: Groups::default(),
        dropout: None,
    };
    let step = gradient(&policy, &penalised, &global, 2, &mut Gradients::new(&policy)).unwrap();
    let metric = step.metrics.iter().find(|m| m.0 == "wdpo/input_gradient_norm").unwrap().1;
    let root = mean(&norms.iter().map(|g| g * g).collect::<Vec<_>>()).sqrt();
    assert!((root - metric).abs() < 1e-6 * metric && metric > 0.0, "{root} {metric}");
    // And the worst case over the ball is what training minimises.
    let worst = crate::stats::worst_case(Ball::Wasserstein, 2.0, &found.set.losses.0, Some(&norms));
    assert!((worst - step.loss).abs() < 1e-6 * step.loss, "{worst} {}", step.loss);
    assert!((found.set.metrics["eval_loss"].as_f64().unwrap() - mean(&found.set.losses.0)).abs() < 1e-12);
    for (i, margin) in found.set.margins.0.iter().enumerate() {
        let (p, r) = (&scores(&policy).logps.0[i], &known[i].logps);
        assert!((margin - (p[0] - r[0] - p[1] + r[1])).abs() < 1e-12);
    }
}

struct Lengths {
    broken: bool,
}

impl Judge for Lengths {
    fn objectives(&self) -> Vec<String> {
        vec!["long".into(), "short".into()]
    }

    fn score(&mut self, texts: &[(&Text, &str)], _: &mut dyn Progress) -> Result<Vec<Vec<f64>>> {
        let of = |(_, text): &(&Text, &str)| {
            let words = text.split(' ').count() as f64 / 10.0;
            vec![if self.broken { f64::NAN } else { words }, 1.0 - words]
        };
        Ok(texts.iter().map(of).collect())
    }
}

#[test]
fn a_judge_scores_every_completion_and_its_nonsense_is_named() {
    let mut own = drawn(&options(4, 5));
    own.judge(&mut Lengths { broken: false }, &mut Silent).unwrap();
    assert_eq!(own.objectives(), ["long", "short"]);
    let n = own.len();
    let samples = own.clone().into_samples(vec![0.0; n], vec![0.0; n]);
    let sums = samples.scores["long"].0.iter().zip(&samples.scores["short"].0).map(|(a, b)| a + b);
    assert!(sums.into_iter().all(|s| (s - 1.0).abs() < 1e-12) && samples.scores["long"].0.len() == 8);
    assert_eq!((samples.texts.len(), samples.texts[0].prompt.as_str()), (2, "how are"));
    let message = own.judge(&mut Lengths { broken: true }, &mut Silent).unwrap_err().to_string();
    assert!(
        message.contains("p.jsonl, row 1") && message.contains("sample 1 was given NaN for `long`"),
        "{message}"
    );
    let shift = |names: [&str; 2]| Shift { objectives: names.map(String::from), ..Shift::default() };
    own.check_shift(&shift(["long", "short"])).unwrap();
    let message = own.check_shift(&shift(["long", "shirt"])).unwrap_err().to_string();
    assert!(message.contains("no objective `shirt`; did you mean `short`?"), "{message}");
}

fn read(text: &str) -> Result<Drawn> {
    let (_directory, tokenizer, spec) = place("s.jsonl", text);
    Drawn::read(&spec, None, (&tokenizer, None), &mut Silent)
}

#[test]
fn samples_are_read_by_prompt() {
    let row = |prompt: &str, tokens: &str, score: &str| {
        format!(
            "{{\"prompt\": \"{prompt}\", \"completion\": \"fine you\"{tokens}, \"scores\": {{\"r\": {score}}}}}\n"
        )
    };
    let (with, without) = (", \"tokens\": [7, 6, 2]", "");
    let text =
        [row("how", with, "1"), row("you", without, "2"), row("how", without, "3"), row("you", with, "4")]
            .concat();
    let samples = read(&text).unwrap();
    let n = samples.len();
    let kept = samples.into_samples(vec![0.0; n], vec![0.0; n]);
    assert_eq!((kept.prompts, kept.per_prompt, kept.tokens), (2, 2, vec![3, 2, 2, 3]));
    assert_eq!(kept.scores["r"].0, [1.0, 3.0, 2.0, 4.0]);
    // 7 6 2, 7 6, 7 6, 7 6 2: of ten tokens three differ, of six pairs two, of two triples one.
    assert_eq!(kept.distinct, [0.3, 2.0 / 6.0, 0.5]);
    for (text, said) in [
        (
            row("how", with, "1") + &row("how", with, "1") + &row("you", with, "1"),
            "row 3, key `prompt`: 1 completions",
        ),
        (row("how", with, "\"high\""), "row 1, key `scores`: `r` is \"high\""),
        (row("how", with, "1") + &row("you", with, "1").replace("\"r\"", "\"rr\""), "row 2, key `scores`"),
        (row("how", ", \"tokens\": [1.5]", "1"), "row 1, key `tokens`: [1.5]"),
        (row("", with, "1"), "row 1, key `prompt`: no token"),
        (row("how", ", \"tokens\": []", "1"), "row 1, key `tokens`: no token beside a text"),
    ] {
        let message = read(&text).unwrap_err().to_string();
        assert!(message.contains(said), "{said}: {message}");
    }
    let long = read(&row(&"how ".repeat(11), with, "1")).unwrap();
    let message = long.logps(&model(1), 1, &mut Silent).unwrap_err().to_string();
    assert!(message.contains("row 1") && message.contains("11 tokens and a completion of 3"), "{message}");
    let foreign = read(&row("how", ", \"tokens\": [8]", "1")).unwrap();
    let message = foreign.logps(&model(1), 1, &mut Silent).unwrap_err().to_string();
    assert!(message.contains("s.jsonl, row 1, key `tokens`") && message.contains("token 8"), "{message}");
    let (_directory, tokenizer, spec) =
        place("p.jsonl", &format!("{{\"prompt\": \"{}\"}}\n", "how ".repeat(12)));
    let prompts = read_prompts(&spec, None, &mut Silent).unwrap();
    let models = (&model(1), &tokenizer, &[2u32][..]);
    let message =
        Drawn::generate(models, prompts, None, &options(1, 2), &mut Silent).unwrap_err().to_string();
    assert!(message.contains("p.jsonl, row 1, key `prompt`: 12 tokens, which leaves no room"), "{message}");
}

fn record(label: &str, r1: &[f64]) -> PolicyRecord {
    let samples = Samples {
        prompts: 2,
        per_prompt: 2,
        prompts_fingerprint: "f".into(),
        scores: [("a", r1.to_vec()), ("b", vec![0.25; 4])].map(|(k, v)| (k.to_string(), Column(v))).into(),
        tokens: vec![1, 2, 3, 4],
        logps: Column(vec![-1.0; 4]),
        ref_logps: Column(vec![-2.0, -2.0, -3.0, -3.0]),
        distinct: vec![0.5; 3],
        ..Samples::default()
    };
    let set = PairSet {
        name: "d".into(),
        margins: Column(vec![1.0, -1.0, 2.0, 0.5]),
        losses: Column(vec![0.3, 1.3, 0.1, 0.5]),
        groups: Some(["x", "y", "x", "x"].map(String::from).into()),
        score_differences: [("a", vec![1.0, 1.0, -1.0, 0.0]), ("b", vec![-0.5, 0.5, -0.5, 0.0])]
            .map(|(k, v)| (k.to_string(), Column(v)))
            .into(),
        ..PairSet::default()
    };
    PolicyRecord {
        schema_version: crate::policy_record::POLICY_SCHEMA_VERSION,
        policy: Policy { label: label.into(), ..Policy::default() },
        shift: Some(Shift {
            objectives: ["a".into(), "b".into()],
            mixtures: vec!["convex".into(), "geometric".into()],
            nominal_alpha: 0.5,
            alphas: vec![0.0, 0.5, 1.0],
        }),
        samples: Some(samples),
        datasets: vec![set],
        ..PolicyRecord::default()
    }
}

#[test]
fn a_summary_has_the_closed_forms_and_compares_on_the_same_prompts() {
    let options = SummaryOptions {
        bootstrap: Bootstrap { resamples: 100, ..Bootstrap::default() },
        radii: vec![(Ball::Cvar, vec![0.25]), (Ball::Wasserstein, vec![1.0])],
    };
    let (own, other) = (record("A", &[0.25, 0.81, 1.0, 0.0]), record("B", &[0.25, 0.49, 0.0, 0.0]));
    let summary = Summary::of(&own, Some(&other), &options).unwrap();
    let reward = |i: usize| (summary.rewards[i].mixture.as_str(), summary.rewards[i].reward.value);
    assert_eq!(summary.rewards.len(), 6);
    assert_eq!(reward(0), ("convex", 0.25));
    assert!((reward(1).1 - (0.515 + 0.25) / 2.0).abs() < 1e-12);
    // Roots of 0.25 * 0.25, 0.81 * 0.25, 1 * 0.25, 0.
    assert!((reward(4).1 - (0.25 + 0.45 + 0.5 + 0.0) / 4.0).abs() < 1e-12 && reward(4).0 == "geometric");
    assert_eq!(summary.kl_per_completion.unwrap().value, 1.5);
    assert!((summary.kl_per_token.unwrap().value - 0.6).abs() < 1e-12);
    assert_eq!(summary.tokens.unwrap().value, 2.5);
    let comparison = summary.comparison.as_ref().unwrap();
    let at_one = &comparison.rewards[2];
    assert!((at_one.reward.difference.value - (0.16 + 0.5) / 2.0).abs() < 1e-12);
    // Prompt 1: of four meetings one tie, two won, one lost; prompt 2: two won, two ties.
    assert!((at_one.win_rate.value - (2.5 / 4.0 + 3.0 / 4.0) / 2.0).abs() < 1e-12);
    assert_eq!(at_one.reward.below_zero, 0.0);
    let set = &summary.datasets[0];
    assert_eq!((set.accuracy.value, set.worst_cases.len(), set.worst_cases[0].loss.value), (0.75, 1, 1.3));
    assert_eq!((set.worst_group.as_deref(), set.group_errors["y"].mean), (Some("y"), 1.0));
    // At alpha 1 the signs are + + - (none): agreed, not, not.
    assert!((set.accuracies[2].reward.value - 1.0 / 3.0).abs() < 1e-12);
    // A geometric mixture needs the scores themselves.
    assert!(set.accuracies[4].reward.value.is_nan());
    let text = table(&summary, 0.95);
    for said in [
        "reward, convex 0.5",
        "KL, nats per token",
        "less B",
        "worst case, cvar 0.25",
        "group y",
        "the worst",
    ] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
    let mut elsewhere = other.clone();
    elsewhere.samples.as_mut().unwrap().prompts_fingerprint = "g".into();
    let message = Summary::of(&own, Some(&elsewhere), &options).unwrap_err().to_string();
    assert!(message.contains("different prompts"), "{message}");
}

#[test]
fn records_of_other_versions_or_broken_ones_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records/a.json");
    let mut own = record("A", &[0.25, 0.81, f64::NAN, 0.0]);
    own.write(&path).unwrap();
    let back = PolicyRecord::read(&path).unwrap();
    assert!(back.samples.as_ref().unwrap().scores["a"].0[2].is_nan());
    assert_eq!((back.policy, back.datasets), (own.policy.clone(), own.datasets.clone()));
    let refused = |said: &str| {
        let message = PolicyRecord::read(&path).unwrap_err().to_string();
        assert!(message.contains("a.json") && message.contains(said), "{said}: {message}");
    };
    own.schema_version = 7;
    own.write(&path).unwrap();
    refused("schema_version 7; this program reads policy records of schema_version 1");
    std::fs::write(&path, "{\"runs\": []}").unwrap();
    refused("no schema_version");
    std::fs::write(&path, "{").unwrap();
    refused("not a policy record");
    own.schema_version = 1;
    own.datasets[0].losses.0.pop();
    own.write(&path).unwrap();
    refused("datasets d: losses has 3 numbers, expected 4");
}

#[test]
fn a_runs_directory_tells_how_its_policy_was_trained() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(RunFacts::of(directory.path()).unwrap(), RunFacts::default());
    let log = concat!(
        "{\"step\": 1, \"loss\": 0.7, \"rewards/margins\": 0.0}\n",
        "{\"step\": 1, \"eval_loss\": 0.6}\n",
        "{\"step\": 2, \"loss\": 0.5, \"rewards/margins\": 0.25}\n",
        "{\"step\": 3, \"lo",
    );
    std::fs::write(directory.path().join("metrics.jsonl"), log).unwrap();
    let state = |step: usize| {
        json!({
            "schema_version": crate::checkpoint::SCHEMA_VERSION, "step": step, "total_steps": 2, "epoch": 1.0,
            "num_tokens": 9, "pending": {"sums": []}, "groups": {"shares": {}, "weights": {}},
            "settings": {"method": "kldpo", "seed": 3, "beta": 0.1, "rule": "kldpo", "kldpo_tau": 0.5, "learning_rate": 1e-5}
        })
    };
    for step in [1, 2] {
        let checkpoint = directory.path().join(format!("checkpoint-{step}"));
        std::fs::create_dir(&checkpoint).unwrap();
        std::fs::write(checkpoint.join("trainer_state.json"), state(step).to_string()).unwrap();
    }
    let facts = RunFacts::of(directory.path()).unwrap();
    assert_eq!((facts.method(), facts.seed()), (Some("kldpo"), Some(3)));
    assert_eq!(facts.label().as_deref(), Some("KLDPO beta 0.1 kldpo tau 0.5"));
    let steps = facts.training.unwrap().steps;
    assert_eq!((steps.len(), steps[1].step, steps[1].margin), (2, 2, 0.25));
    let early = RunFacts::of(&directory.path().join("checkpoint-1")).unwrap();
    assert_eq!(early.training.unwrap().steps.len(), 1);
}
