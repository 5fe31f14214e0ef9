//! A real model: SmolLM2-135M-Instruct from `$SEAKEEP_MODELS/smollm2-135m-instruct.gguf` (`scripts/fetch-smollm2.sh`).
//! Figures against transformers and TRL are in `scripts/parity/smollm2.py`.

use std::path::PathBuf;

use seakeep::formats::{Message, ModelSource};
use seakeep::generate::{GenerateOptions, PromptForm, eos_ids, generate};
use seakeep::model::Model;
use seakeep::progress::Silent;

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
