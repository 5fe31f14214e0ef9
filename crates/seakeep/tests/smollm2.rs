//! A real model: SmolLM2-135M-Instruct from `$SEAKEEP_MODELS/smollm2-135m-instruct.gguf` (`scripts/fetch-smollm2.sh`).
//! Figures against transformers and TRL are in `scripts/parity/smollm2.py`.

use std::path::PathBuf;

use seakeep::data::{TokenizeOptions, TruncatedCompletion, read_pairs, tokenize_pairs};
use seakeep::formats::{Message, ModelSource};
use seakeep::generate::{GenerateOptions, PromptForm, eos_ids, generate};
use seakeep::model::{Model, Sizes};
use seakeep::progress::Silent;
use seakeep::scoring::Layout;

fn file(variable: &str, name: &str) -> PathBuf {
    let directory = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"));
    let path = PathBuf::from(directory).join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

fn source() -> ModelSource {
    ModelSource::open(file("SEAKEEP_MODELS", "smollm2-135m-instruct.gguf")).unwrap()
}

#[test]
#[ignore = "needs SEAKEEP_MODELS"]
fn greedy_answers_like_transformers() {
    let source = source();
    let (model, tokenizer) = (Model::load(&source).unwrap(), source.tokenizer().unwrap());
    let message = Message::new("user", "What is the capital of France?");
    let prompt = tokenizer.apply_chat_template(&[message], true).unwrap();
    let eos = eos_ids(&source, Some(&tokenizer)).unwrap();
    let options = GenerateOptions { max_new_tokens: 64, ..GenerateOptions::default() };
    let out =
        generate(&model, &tokenizer, &[prompt], PromptForm::Templated, &options, &eos, &mut Silent).unwrap();
    assert_eq!(out[0].completion.trim(), "The capital of France is Paris.");
}

/// Counted before there was code that counts, by what the configuration says: 106.2 M weights in the layers' maps, 28.3 M in the
/// vocabulary's.
#[test]
#[ignore = "needs SEAKEEP_MODELS and SEAKEEP_DATA"]
fn what_real_pairs_cost_is_what_was_counted_by_hand() {
    let source = source();
    let mut rows = read_pairs(file("SEAKEEP_DATA", "hh-harmless-test.jsonl.gz").to_str().unwrap()).unwrap();
    rows.truncate(64);
    let options = TokenizeOptions {
        max_length: Some(512),
        truncated_completion: TruncatedCompletion::Drop,
        ..TokenizeOptions::default()
    };
    let (pairs, _) = tokenize_pairs(&rows, &source.tokenizer().unwrap(), &options).unwrap();
    let sizes = Sizes::of(&Model::config(&source).unwrap(), None).unwrap();
    let batch = Layout::PLAIN.lay_out(&pairs);
    let found = sizes.operations(&batch, false);
    let giga = |operations: f64| (operations / 64e9).round();
    assert_eq!((batch.rows(), giga(found.total()), giga(found.forward)), (14_344, 158.0, 53.0));
}
