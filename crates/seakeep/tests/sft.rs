//! Supervised fine-tuning against TRL and transformers: which tokens rows become and which of them are learnt, the loss,
//! its metrics and the gradient of every tensor. The values come from `scripts/parity/sft.py` (TRL's own preparation of
//! rows; float64); the model is the tiny Llama of `golden.rs`, whose tolerances are these.

use std::path::{Path, PathBuf};

use seakeep::data::{
    TokenizeOptions, TokenizedPair, TruncatedCompletion, TruncationMode, read_texts, tokenize_pairs,
};
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::logps::{BranchLogps, Facts};
use seakeep::model::{Model, Tensors};
use seakeep::objective::rule::Winsor;
use seakeep::objective::{Context, Groups, LossType, Objective, PairLoss, Rule};
use seakeep::scoring::PairLayout;
use seakeep::train::data::tokenize_for;
use seakeep::train::step::{GlobalBatch, Gradients, StepOutput, gradient};
use serde_json::{Value, json};

struct Place {
    directory: tempfile::TempDir,
    golden: Value,
    model: Model,
    tokenizer: Tokenizer,
}

fn place() -> Place {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden: Value = serde_json::from_slice(&std::fs::read(goldens.join("sft.json")).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in golden["tokenizer"].as_object().unwrap() {
        std::fs::write(directory.path().join(name), content.to_string()).unwrap();
    }
    let model = Model::load(&ModelSource::open(goldens.join("llama")).unwrap()).unwrap();
    let tokenizer = Tokenizer::open(directory.path()).unwrap();
    Place { directory, golden, model, tokenizer }
}

impl Place {
    fn cases(&self) -> &Vec<Value> {
        self.golden["cases"].as_array().unwrap()
    }

    fn file(&self, rows: &[Value]) -> PathBuf {
        let path = self.directory.path().join("rows.jsonl");
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        path
    }

    /// The rows of a case as tokens.
    fn tokens(&self, case: &Value) -> Vec<TokenizedPair> {
        let options = TokenizeOptions {
            max_length: case["max_length"].as_u64().map(|n| n as usize),
            truncation_mode: match case["truncation_mode"].as_str().unwrap() {
                "keep_end" => TruncationMode::KeepEnd,
                _ => TruncationMode::KeepStart,
            },
            truncated_completion: TruncatedCompletion::Drop,
            learn_prompts: case["completion_only_loss"] == false,
            ..TokenizeOptions::default()
        };
        let path = self.file(case["rows"].as_array().unwrap());
        let rows = read_texts(path.to_str().unwrap(), "text").unwrap();
        tokenize_for(&Objective::sft(), rows, &self.tokenizer, &options).unwrap().0
    }

    fn step(&self, rows: &[TokenizedPair], micro_batch: usize) -> (StepOutput, Tensors) {
        let (objective, rows) = (Objective::sft(), rows.iter().collect::<Vec<_>>());
        let mut grads = Gradients::new(&self.model);
        let facts: Vec<Facts> = rows.iter().map(|p| Facts::of(p, false)).collect();
        let zeros = |p: &&TokenizedPair| PairLayout::of(&objective).no_reference(p);
        let reference = &BranchLogps(rows.iter().map(zeros).collect());
        let groups = Groups::default();
        let global =
            GlobalBatch { pairs: &rows, facts: &facts, reference, progress: 0.0, groups, dropout: None };
        let out = gradient(&self.model, &objective, &global, micro_batch, &mut grads).unwrap();
        (out, grads.total)
    }
}

#[test]
fn tokens_and_labels_are_trls() {
    let place = place();
    for case in place.cases() {
        let rows = place.tokens(case);
        let found: Vec<Value> = rows
            .iter()
            .map(|row| {
                let (prompt, completion) = (row.prompt_of(row.chosen()), &row.chosen().completion);
                let ids = [prompt, completion].concat();
                let labels: Vec<i64> = std::iter::repeat_n(-100, prompt.len())
                    .chain(completion.iter().map(|&id| id as i64))
                    .collect();
                json!({"row": row.row, "input_ids": ids, "labels": labels})
            })
            .collect();
        assert_eq!(json!(found), case["tokens"], "{}", case["name"]);
        let trained: usize = rows.iter().map(|row| row.predicted(row.chosen())).sum();
        // A label on the first token is one that transformers' shift leaves out too.
        assert_eq!(json!(trained), case["trained"], "{}", case["name"]);
    }
}

#[test]
fn loss_metrics_and_every_gradient_are_those_of_transformers_at_any_split() {
    let place = place();
    let close = |got: f64, want: f64, tolerance: f64, what: &str| {
        assert!((got - want).abs() <= tolerance * want.abs(), "{what}: got {got}, want {want}");
    };
    for case in place.cases() {
        let (rows, name) = (place.tokens(case), case["name"].as_str().unwrap());
        for micro_batch in [1, 2, 8] {
            let (out, grads) = place.step(&rows, micro_batch);
            let number = |key: &str| case[key].as_f64().unwrap();
            close(out.loss, number("loss"), 1e-6, &format!("{name}: loss"));
            close(grads.norm(), number("grad_norm"), 2e-5, &format!("{name}: grad_norm"));
            let logged: Vec<&str> = out.metrics.iter().map(|m| m.0.as_str()).collect();
            assert_eq!(logged, ["entropy", "mean_token_accuracy"]);
            for (metric, value) in &out.metrics {
                close(*value, number(metric), 1e-5, &format!("{name}: {metric}"));
            }
            let tokens: usize = case["tokens"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| r["input_ids"].as_array().unwrap().len())
                .sum();
            assert_eq!(out.tokens, tokens);
            for file in &place.model.map.files {
                let got = place.model.map.export(file, &grads);
                let want = &case["tensors"][&file.name];
                let norm = got.iter().map(|&g| g as f64 * g as f64).sum::<f64>().sqrt();
                let dot: f64 =
                    got.iter().enumerate().map(|(k, &g)| g as f64 * (0.37 * (k + 1) as f64).cos()).sum();
                let scale = want[0].as_f64().unwrap().max(1e-3);
                for (got, want) in [(norm, &want[0]), (dot, &want[1])] {
                    let error = (got - want.as_f64().unwrap()).abs();
                    assert!(error <= 5e-5 * scale, "{name}, {micro_batch}: {}: {got}, {want}", file.name);
                }
            }
        }
    }
}

#[test]
fn a_row_that_teaches_nothing_is_named() {
    let place = place();
    let refused = |row: Value, options: TokenizeOptions, parts: &[&str]| {
        let path = place.file(&[json!({"text": "the sea"}), row]);
        let rows = read_texts(path.to_str().unwrap(), "text").unwrap();
        let error = tokenize_pairs(&rows, &place.tokenizer, &options).unwrap_err().to_string();
        let parts = [&["rows.jsonl, row 2"], parts].concat();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let short =
        |max_length: usize| TokenizeOptions { max_length: Some(max_length), ..TokenizeOptions::default() };
    let row = json!({"prompt": "how are you", "completion": " fine"});
    refused(row, short(4), &["key `prompt`", "`max_length` is 4"]);
    let row = json!({"messages": [{"role": "user", "content": "how"}], "tools": "[{"});
    refused(row, TokenizeOptions::default(), &["key `tools`", "not JSON"]);
    let path = place.file(&[json!({"text": "the sea"}), json!({"text": "ship"})]);
    let rows = read_texts(path.to_str().unwrap(), "text").unwrap();
    let error = tokenize_pairs(&rows, &place.tokenizer, &short(1)).unwrap_err().to_string();
    assert!(error.contains("row 1, key `text`") && error.contains("nothing is predicted"), "{error}");
}

#[test]
fn texts_are_not_compared() {
    let alone =
        |pair: PairLoss, rule| Objective { pair, rule, penalty: None }.check().map_err(|e| e.to_string());
    let nll = || PairLoss::of(LossType::Nll, 1.0);
    let mixed = PairLoss { terms: vec![(LossType::Nll, 1.0), (LossType::Sigmoid, 1.0)], ..nll() };
    assert!(alone(mixed, Rule::Mean).unwrap_err().contains("cannot be mixed"));
    assert!(alone(nll(), Rule::Winsor(Winsor::default())).unwrap_err().contains("does not say"));
    assert_eq!(alone(nll(), Rule::Cvar { alpha: 0.5 }), Ok(()));
    // Nor are there rewards: what a step logs is in the other test; of an evaluation likewise.
    let place = place();
    let rows = place.tokens(&place.cases()[0]);
    let facts: Vec<Facts> = rows.iter().map(|p| Facts::of(p, false)).collect();
    let logps = BranchLogps(vec![vec![-1.0]; rows.len()]);
    let scored = seakeep::objective::Scored { policy: &logps, reference: &logps, facts: &facts };
    let found = seakeep::eval::evaluate(&scored, &Context::at_the_end(&facts), &Objective::sft());
    assert_eq!(found.len(), 1);
    assert!((found[0].1 - 3.0 / place.cases()[0]["trained"].as_f64().unwrap()).abs() < 1e-12);
}
