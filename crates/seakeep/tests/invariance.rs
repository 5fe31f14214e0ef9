//! What must not change a result: how pairs are laid out, how many share a batch, how many threads run.

use std::path::Path;

use seakeep::batch::{Batch, Sharing};
use seakeep::formats::{LoraConfig, ModelSource};
use seakeep::model::{Model, Stored, Tensors};
use seakeep_kernels::projection::Predicted;

const PROMPTS: [&[u32]; 3] = [&[1, 7, 30, 12, 5], &[3], &[9, 9, 2, 21, 33, 17, 8]];
const BRANCHES: [[&[u32]; 2]; 3] =
    [[&[4, 8, 15], &[16, 23]], [&[5, 5, 5, 5], &[11]], [&[1], &[2, 3, 4, 5, 6, 7]]];

fn model(case: &str) -> Model {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    Model::load(&ModelSource::open(directory).unwrap()).unwrap()
}

fn batch(pairs: std::ops::Range<usize>, sharing: Sharing) -> Batch {
    let mut batch = Batch::default();
    for i in pairs {
        batch.push(PROMPTS[i], &BRANCHES[i], sharing);
    }
    batch
}

fn logps(model: &Model, batch: &Batch) -> Vec<f64> {
    model.forward(batch).branch_logps(batch)
}

fn gradient(model: &Model, batch: &Batch) -> Tensors {
    let mut grads = Tensors::zeros(&model.map);
    let seeds: Vec<f64> = (0..batch.branches).map(|b| 0.3 - 0.2 * b as f64).collect();
    model.backward(batch, &model.forward(batch), &seeds, &mut grads);
    grads
}

// Log-probabilities of a text have the same bits however it lies: each row's sums are in the order of positions. Gradients of
// weights are sums over rows in another order: 5e-6 of their norm in f32.

#[test]
fn a_shared_prompt_gives_what_two_copies_give() {
    for case in ["llama", "mistral", "qwen3", "gpt2", "gpt_neox"] {
        let model = model(case);
        let (shared, separate) = (batch(0..3, Sharing::Shared), batch(0..3, Sharing::Separate));
        assert!(shared.rows() < separate.rows());
        assert_eq!(logps(&model, &shared), logps(&model, &separate), "{case}");
        let (mut g, want) = (gradient(&model, &shared), gradient(&model, &separate));
        g.add_scaled(&want, -1.0);
        assert!(g.norm() <= 5e-6 * want.norm(), "{case}: {} of {}", g.norm(), want.norm());
    }
}

#[test]
fn an_opening_that_stands_once_gives_what_copies_give() {
    let opening = [6, 2, 28];
    for case in ["llama", "mistral", "qwen3", "gpt2", "gpt_neox"] {
        let model = model(case);
        // The last prompt is the opening and nothing more; branches that keep different prompts begin with it too.
        let prompts: Vec<Vec<u32>> =
            PROMPTS.iter().chain([&[][..]].iter()).map(|p| [&opening, *p].concat()).collect();
        let fill = |mut batch: Batch| {
            for (prompt, branches) in prompts.iter().zip([BRANCHES[0], BRANCHES[1], BRANCHES[2], BRANCHES[0]])
            {
                batch.push(prompt, &branches, Sharing::Shared);
            }
            batch.push_texts(&[(&prompts[0], BRANCHES[1][0]), (&prompts[3], BRANCHES[1][0])]);
            batch
        };
        let (once, copies) = (fill(Batch::open(&opening)), fill(Batch::default()));
        assert_eq!(copies.rows() - once.rows(), 5 * opening.len());
        assert_eq!(logps(&model, &once), logps(&model, &copies), "{case}");
        let (mut g, want) = (gradient(&model, &once), gradient(&model, &copies));
        g.add_scaled(&want, -1.0);
        assert!(g.norm() <= 5e-6 * want.norm(), "{case}: {} of {}", g.norm(), want.norm());
    }
}

#[test]
fn packed_pairs_give_what_each_gives_alone() {
    for case in ["llama", "mistral", "gpt2", "gpt_neox_seq"] {
        let model = model(case);
        let alone: Vec<f64> = (0..3).flat_map(|i| logps(&model, &batch(i..i + 1, Sharing::Shared))).collect();
        assert_eq!(logps(&model, &batch(0..3, Sharing::Shared)), alone, "{case}");
    }
}

#[test]
fn rows_that_nothing_reads_change_nothing() {
    for case in ["llama", "mistral", "qwen3", "gpt2", "gpt_neox", "gpt_neox_seq"] {
        let (model, batch) = (model(case), batch(0..3, Sharing::Shared));
        // Means over hidden states read every row of the last layer, predictions only those that predict.
        let all = model.predictions_and_means(&batch, &[0..1, 1..batch.rows()]).0;
        let logps = |predicted: &[Predicted]| predicted.iter().map(|p| p.logp).collect::<Vec<_>>();
        assert_eq!(logps(&model.predictions(&batch)), logps(&all), "{case}");
        assert_eq!(logps(&model.forward(&batch).predicted), logps(&all), "{case}");
        // The last token of a completion has no row; in a text that goes on after it, it has one.
        let [prompt, completion] = [PROMPTS[0], BRANCHES[0][0]];
        let (mut short, mut long) = (Batch::default(), Batch::default());
        short.push(prompt, &[completion], Sharing::Shared);
        long.push(prompt, &[&[completion, &[2]].concat()], Sharing::Shared);
        assert_eq!((short.rows() + 1, short.predictions.len() + 1), (long.rows(), long.predictions.len()));
        let n = short.predictions.len();
        assert_eq!(logps(&model.predictions(&short)), logps(&model.predictions(&long))[..n], "{case}");
    }
}

#[test]
fn dropout_after_the_last_attention_is_that_of_the_rows() {
    for case in ["llama", "gpt_neox"] {
        let mut model = model(case);
        model.add_adapters(&LoraConfig::plain(2, 8.0), 7).unwrap();
        let own: Vec<bool> = model.map.params.iter().map(|p| p.trainable).collect();
        let move_by = |model: &mut Model, by: &dyn Fn(usize, usize) -> f32| {
            for (k, (stored, _)) in
                model.weights.iter_mut().zip(&own).enumerate().filter(|(_, (_, own))| **own)
            {
                let Stored::F32(values) = stored else { panic!("adapters are in f32") };
                values.iter_mut().enumerate().for_each(|(i, x)| *x += by(k, i));
            }
        };
        // What adapters add is 0 until their second half has moved.
        move_by(&mut model, &|_, i| 0.1 * ((i % 5) as f32 - 2.0));
        let mut batch = batch(0..3, Sharing::Shared);
        let without = logps(&model, &batch);
        batch.drop_out(0.3, 11, 0);
        let all = model.predictions_and_means(&batch, &[0..1, 1..batch.rows()]).0;
        let with = logps(&model, &batch);
        assert_ne!(with, without, "{case}");
        assert_eq!(with, batch.branch_sums(all.iter().map(|p| p.logp)), "{case}");
        // The gradient under these masks, along a direction, against differences.
        let seeds: Vec<f64> = (0..batch.branches).map(|b| 0.3 - 0.2 * b as f64).collect();
        let mut grads = Tensors::of_trainable(&model.map);
        model.backward(&batch, &model.forward(&batch), &seeds, &mut grads);
        let along = |k: usize, i: usize| (((k * 31 + i * 7) % 11) as f32 - 5.0) * 2e-4;
        let of = |(k, g): (usize, &[f32])| -> f64 {
            g.iter().enumerate().map(|(i, g)| (*g * along(k, i)) as f64).sum()
        };
        let expected: f64 = grads.iter().enumerate().map(of).sum();
        let mut at = |scale: f32| {
            move_by(&mut model, &|k, i| scale * along(k, i));
            logps(&model, &batch).iter().zip(&seeds).map(|(l, s)| l * s).sum::<f64>()
        };
        let (above, below) = (at(1.0), at(-2.0));
        let found = (above - below) / 2.0;
        // Third derivatives and f32's rounding of log-probabilities of some tens of nats.
        assert!((found - expected).abs() <= 1e-2 * expected.abs().max(1e-2), "{case}: {found}, {expected}");
    }
}

#[test]
fn a_token_that_is_only_predicted_must_exist_too() {
    let model = model("llama");
    let vocabulary = model.config.vocab_size as u32;
    for completion in [&[4, vocabulary][..], &[vocabulary]] {
        let mut batch = Batch::default();
        batch.push(&[1, 2], &[completion], Sharing::Shared);
        let message = model.check(&batch).unwrap_err().to_string();
        assert!(message.contains("do not belong together"), "{message}");
    }
}

#[test]
fn a_batch_that_predicts_nothing_is_none_the_worse() {
    let model = model("llama");
    let mut silent = Batch::default();
    silent.push(&[5, 6], &[&[], &[]], Sharing::Shared);
    assert_eq!((silent.rows(), logps(&model, &silent)), (2, vec![0.0, 0.0]));
    assert_eq!(gradient(&model, &silent).norm(), 0.0);
}

#[test]
fn a_batch_without_rows_is_none_the_worse() {
    let model = model("llama");
    let mut empty = Batch::default();
    empty.push(&[], &[&[3], &[]], Sharing::Shared);
    assert_eq!((empty.rows(), logps(&model, &empty)), (0, vec![0.0, 0.0]));
    assert_eq!(gradient(&model, &empty).norm(), 0.0);
    let mut mixed = batch(0..1, Sharing::Shared);
    mixed.push(&[], &[&[3], &[]], Sharing::Separate);
    assert_eq!(logps(&model, &mixed)[..2], logps(&model, &batch(0..1, Sharing::Shared)));
}

#[test]
fn threads_do_not_change_a_bit() {
    // Large enough that every kernel cuts its work.
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "initializer_range": 0.1
    });
    let model = Model::random(&config, 1).unwrap();
    let long: Vec<u32> = (0..150).map(|i| i * 7 % 40).collect();
    let mut wide = Batch::open(&long[..30]);
    for i in 0..3 {
        wide.push(&[&long[..30], &long[i..90]].concat(), &[&long[3 + i..], &long[..40]], Sharing::Shared);
    }
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (logps(&model, &wide), gradient(&model, &wide)))
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}
