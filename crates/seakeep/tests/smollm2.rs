//! A real model: SmolLM2-135M-Instruct from `$SEAKEEP_MODELS/smollm2-135m-instruct.gguf` (`scripts/fetch-smollm2.sh`), real
//! pairs from `$SEAKEEP_DATA`. Figures against transformers and TRL are in `scripts/parity/smollm2.py`.

use std::path::PathBuf;

use seakeep::data::{TokenizeOptions, TokenizedPair, read_pairs, tokenize_pairs};
use seakeep::formats::{Message, ModelSource};
use seakeep::generate::{GenerateOptions, PromptForm, eos_ids, generate};
use seakeep::logps::BranchLogps;
use seakeep::model::Model;
use seakeep::objective::kldpo::Kldpo;
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{Objective, Rule, dpo::Dpo};
use seakeep::progress::Silent;
use seakeep::scoring::pair_logps;
use seakeep::train::step::{Gradients, gradient};

fn file(variable: &str, name: &str) -> PathBuf {
    let directory = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"));
    let path = PathBuf::from(directory).join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

fn source() -> ModelSource {
    ModelSource::open(file("SEAKEEP_MODELS", "smollm2-135m-instruct.gguf")).unwrap()
}

/// Four short pairs.
fn pairs(source: &ModelSource) -> Vec<TokenizedPair> {
    let rows = read_pairs(file("SEAKEEP_DATA", "instruction-tone.jsonl.gz").to_str().unwrap()).unwrap();
    let options = TokenizeOptions::default();
    tokenize_pairs(&rows[..4], &source.tokenizer().unwrap(), &options).unwrap().0
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn micro_batches_do_not_change_the_gradient_and_step_0_costs_ln_2() {
    let source = source();
    let (model, pairs) = (Model::load(&source).unwrap(), pairs(&source));
    let rows: Vec<&TokenizedPair> = pairs.iter().collect();
    let own = pair_logps(&model, &pairs, 4, &mut Silent).unwrap();
    // A reference that differs, so that weights and penalties do.
    let shifted = BranchLogps {
        chosen: own.chosen.iter().zip([3.0, -8.0, 5.0, 12.0]).map(|(l, d)| l - d).collect(),
        rejected: own.rejected.clone(),
    };
    let plain = Objective { pair: Dpo { beta: 0.1, label_smoothing: 0.0 }, rule: Rule::Mean, penalty: None };
    let penalty = Penalty { rho: 0.1, form: Form::Paper, prompt_gradient: PromptGradient::Shared };
    let objectives = [
        plain,
        Objective { rule: Rule::Kldpo(Kldpo::Tau(0.05)), ..plain },
        Objective { penalty: Some(penalty), ..plain },
    ];
    for objective in objectives {
        let run = |reference: &BranchLogps, micro: usize| {
            let mut grads = Gradients::new(&model, &objective);
            let out = gradient(&model, &objective, &rows, reference, micro, &mut grads).unwrap();
            (out, grads.total)
        };
        if objective.penalty.is_none() {
            // Log-probabilities of the same pairs in another batch agree to rounding, and so does ln 2.
            let loss = run(&own, 2).0.loss;
            assert!((loss - std::f64::consts::LN_2).abs() < 1e-6, "loss at step 0: {loss}");
        }
        let (whole, want) = run(&shifted, 4);
        for micro in [1, 2] {
            let (out, mut got) = run(&shifted, micro);
            assert!((out.loss - whole.loss).abs() <= 1e-5 * whole.loss);
            got.add_scaled(&want, -1.0);
            assert!(got.norm() <= 1e-5 * want.norm(), "micro-batch {micro}: {:e}", got.norm() / want.norm());
        }
    }
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
