//! A real model: SmolLM2-135M-Instruct from `$SEAKEEP_MODELS/smollm2-135m-instruct.gguf` (`scripts/fetch-smollm2.sh`).
//! Figures against transformers and TRL are in `scripts/parity/smollm2.py`.

use std::path::PathBuf;

use seakeep::batch::{Batch, Sharing};
use seakeep::ceiling::Precision;
use seakeep::data::{Pair, Text, TokenizeOptions, TruncatedCompletion, read_pairs, tokenize_pairs};
use seakeep::formats::{Message, ModelSource};
use seakeep::generate::{GenerateOptions, PromptForm, eos_ids, generate};
use seakeep::model::{Keep, Model, Numbers, Sizes, Stored};
use seakeep::progress::Silent;
use seakeep::scoring::PairLayout;

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

/// The messages of a transcript as HH has them; `None` where it is none of questions and answers in turn.
fn conversation(transcript: &str) -> Option<Vec<serde_json::Value>> {
    let turns = transcript.strip_prefix("\n\nHuman:")?.split("\n\nHuman:");
    let mut messages = Vec::new();
    for turn in turns {
        let (question, answer) = turn.split_once("\n\nAssistant:")?;
        for (role, text) in [("user", question.trim()), ("assistant", answer.trim())] {
            let one = !text.is_empty() && !text.contains("\n\nAssistant:");
            messages.push(one.then(|| serde_json::json!({"role": role, "content": text}))?);
        }
    }
    Some(messages)
}

/// Counted by hand from the configuration: transformers' tokenizer and template give these pairs 14,339 tokens, 5,717 of them predicted. 106.2 M
/// weights in the layers' maps (3.0 M of them after the last attention, for predicting positions alone) and 28.3 M in the vocabulary's, over the
/// 14,211 positions that are read (all but two of a pair), are 154 GFLOP a pair forward and backward and 51 forward; attention comes to that.
#[test]
#[ignore = "needs SEAKEEP_MODELS and SEAKEEP_DATA"]
fn what_real_pairs_cost_is_what_was_counted_by_hand() {
    let source = source();
    let rows = read_pairs(file("SEAKEEP_DATA", "hh-harmless-test.jsonl.gz").to_str().unwrap()).unwrap();
    let said = |text: &Text| match text {
        Text::Standard(text) => conversation(text),
        Text::Chat(_) => None,
    };
    let chat = |row: &Pair| {
        let (chosen, rejected) = (said(&row.completions[0].text)?, said(&row.completions[1].text)?);
        let (answer, prompt) = chosen.split_last()?;
        let (other, same) = rejected.split_last()?;
        let columns = serde_json::json!({"prompt": prompt, "chosen": [answer], "rejected": [other]});
        let differ = prompt == same && answer != other;
        differ.then(|| Pair::from_columns(row.file.clone(), row.row, columns.as_object()?.clone()).ok())?
    };
    let rows: Vec<Pair> = rows.iter().filter_map(chat).take(64).collect();
    let options = TokenizeOptions {
        max_length: Some(512),
        truncated_completion: TruncatedCompletion::Drop,
        ..TokenizeOptions::default()
    };
    let (pairs, _) = tokenize_pairs(&rows, &source.tokenizer().unwrap(), &options).unwrap();
    let sizes = Sizes::of(&Model::config(&source).unwrap(), None).unwrap();
    let batch = PairLayout { opening: false, ..PairLayout::PLAIN }.lay_out(&pairs);
    assert_eq!((batch.rows(), batch.predictions.len()), (14_211, 5_717));
    // The template's system prompt, 24 tokens, stands before every pair.
    let of_four = |four| PairLayout::PLAIN.lay_out(four).rows();
    assert_eq!(pairs.chunks(4).map(of_four).sum::<usize>(), 14_211 - 16 * 3 * 24);
    let found = sizes.operations(&batch, false);
    let giga = |operations: f64| (operations / 64e9).round();
    assert_eq!(giga(found.total() - found.attention), 154.0);
    assert_eq!(giga(found.forward - found.attention / 3.0), 51.0);
    // 30 layers of 9 heads of 64 channels, two products each forward and four backward.
    let seen: f64 = batch.positions.iter().map(|p| f64::from(*p) + 1.0).sum();
    assert_eq!(found.attention, 3.0 * 4.0 * 30.0 * 576.0 * seen);
}

#[test]
#[ignore = "needs SEAKEEP_MODELS"]
fn a_gguf_file_keeps_its_blocks() {
    let source = source();
    let numbers = Numbers { keep: Keep::AsStored, precision: Precision::F32 };
    let (kept, exact) = (Model::load_in(&source, numbers).unwrap(), Model::load(&source).unwrap());
    let quantised = kept.weights.iter().filter(|w| matches!(w, Stored::Blocks(_))).count();
    assert_eq!(quantised, 1 + 30 * 7, "embeddings and the linear maps");
    // Q4_1 takes 5 bits a weight, the embeddings' Q8_0 8.5.
    assert!(5 * kept.weights.bytes() < exact.weights.bytes());
    let mut batch = Batch::default();
    batch.push(&[1, 4093, 198, 28], &[&[253, 28, 2], &[9, 10]], Sharing::Shared);
    let logps = |model: &Model| model.forward(&batch).branch_logps(&batch);
    assert_eq!(logps(&kept), logps(&exact), "the same bits");
}
