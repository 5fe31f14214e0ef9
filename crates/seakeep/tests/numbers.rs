//! Weights kept in other forms, and products in bf16: what they change, and what they must not.

use std::path::Path;

use seakeep::batch::{Batch, Sharing};
use seakeep::ceiling::Precision;
use seakeep::formats::gguf::GgmlType;
use seakeep::formats::{LoraConfig, ModelSource, SaveDtype};
use seakeep::model::{Keep, Model, Numbers, ParamId, Stored, Tensors, Values};
use seakeep::optim::{AdamW, AdamWState};
use serde_json::json;

const FORMS: [Keep; 4] =
    [Keep::F32, Keep::Bf16, Keep::Quantised(GgmlType::Q8_0), Keep::Quantised(GgmlType::Q4_0)];

/// A small Llama with rows of whole blocks, but for one matrix (96 is three blocks, 80 is none).
fn directory() -> tempfile::TempDir {
    let config = json!({
        "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
        "tie_word_embeddings": true, "attention_bias": true,
    });
    let place = tempfile::tempdir().unwrap();
    Model::random(&config, 5).unwrap().save(place.path(), &config, SaveDtype::BF16).unwrap();
    place
}

fn load(directory: &Path, keep: Keep, precision: Precision) -> Model {
    Model::load_in(&ModelSource::open(directory).unwrap(), Numbers { keep, precision }).unwrap()
}

/// The same weights, all of them in f32.
fn in_f32(model: &Model, directory: &Path) -> Model {
    with_values_of(model, load(directory, Keep::F32, model.weights.precision))
}

/// `plain` with the values of the model's own weights.
fn with_values_of(model: &Model, mut plain: Model) -> Model {
    let ids: Vec<ParamId> = plain.map.files.iter().flat_map(|f| f.parts.iter().map(|p| p.0)).collect();
    for id in ids {
        plain.weights.set(id, Stored::F32(model.weights.values(id).into_owned()));
    }
    plain
}

/// Two pairs, or one of them.
fn batch(model: &Model, pairs: std::ops::Range<usize>) -> Batch {
    let mut batch = Batch::default();
    let vocabulary = model.config.vocab_size as u32;
    let tokens = |n: u32, k: u32| -> Vec<u32> { (0..n).map(|i| (i * 7 + k) % vocabulary).collect() };
    for pair in pairs {
        let k = 10 * pair as u32;
        batch.push(&tokens(5 + k % 3, k), &[&tokens(6, k + 2), &tokens(3, k + 3)], Sharing::Shared);
    }
    batch
}

/// Log-probabilities, the gradient of a weighted sum of them, and that at the embeddings.
fn results(model: &Model, pairs: std::ops::Range<usize>) -> (Vec<f64>, Tensors, Vec<f32>) {
    let batch = batch(model, pairs);
    let activations = model.forward(&batch);
    let mut grads = Tensors::of_trainable(&model.map);
    let seeds: Vec<f64> = (0..batch.branches).map(|b| if b % 2 == 0 { 1.0 } else { -0.7 }).collect();
    let d_embed = model.backward(&batch, &activations, &seeds, &mut grads);
    (activations.branch_logps(&batch), grads, d_embed.to_vec())
}

#[test]
fn a_form_computes_what_its_values_do_in_f32() {
    let place = directory();
    for keep in FORMS {
        for precision in [Precision::F32, Precision::Bf16] {
            let model = load(place.path(), keep, precision);
            let plain = in_f32(&model, place.path());
            assert!(model.weights.bytes() <= plain.weights.bytes());
            let ((logps, grads, d_embed), want) = (results(&model, 0..2), results(&plain, 0..2));
            assert_eq!(logps, want.0, "{keep:?} {precision:?}: the same bits");
            assert!(grads == want.1 && d_embed == want.2, "{keep:?} {precision:?}: the same bits");
        }
    }
}

#[test]
fn adapters_on_a_quantised_base_are_those_on_its_values() {
    let place = directory();
    let config = LoraConfig::plain(4, 8.0);
    for keep in FORMS {
        let mut model = load(place.path(), keep, Precision::F32);
        let mut plain = in_f32(&model, place.path());
        for model in [&mut model, &mut plain] {
            model.add_adapters(&config, 3).unwrap();
            model.check_trainable().unwrap();
            model.weights.f32_mut().flatten().for_each(|w| *w += 0.01);
        }
        // What is in f32 on one side alone was not moved on the other.
        let plain = if keep == Keep::F32 { plain } else { with_values_of(&model, plain) };
        let ((logps, grads, _), want) = (results(&model, 0..2), results(&plain, 0..2));
        assert!(logps == want.0 && grads == want.1, "{keep:?}: the same bits");
        assert!(grads.norm() > 0.0);
        // Merged they are the same model, in f32.
        let before = results(&model, 0..2).0;
        model.merge_adapters();
        for (a, b) in before.iter().zip(results(&model, 0..2).0) {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "{keep:?}: {a} {b}");
        }
    }
}

#[test]
fn what_is_quantised_is_not_trained_as_it_is() {
    let place = directory();
    let model = load(place.path(), Keep::Quantised(GgmlType::Q8_0), Precision::F32);
    let message = model.check_trainable().unwrap_err().to_string();
    assert!(message.contains("quantised") && message.contains("use_peft"), "{message}");
    load(place.path(), Keep::Bf16, Precision::F32).check_trainable().unwrap();
}

#[test]
fn a_file_in_bf16_stays_so() {
    let place = directory();
    let kept = load(place.path(), Keep::AsStored, Precision::F32);
    let exact = load(place.path(), Keep::F32, Precision::F32);
    let bf16 = kept.weights.iter().filter(|w| matches!(w, Stored::Bf16(_))).count();
    assert_eq!(bf16, 1 + 2 * 7, "embeddings and the linear maps");
    assert_eq!(results(&kept, 0..2).0, results(&exact, 0..2).0);
}

#[test]
fn products_in_bf16_are_near_and_micro_batches_add_up() {
    let place = directory();
    let exact = results(&load(place.path(), Keep::F32, Precision::F32), 0..2);
    let model = load(place.path(), Keep::F32, Precision::Bf16);
    let (logps, whole, _) = results(&model, 0..2);
    assert!(logps != exact.0);
    for (a, b) in logps.iter().zip(&exact.0) {
        // Products of factors that are rounded by up to 2^-8, and sums of them.
        assert!((a - b).abs() <= 0.02 * b.abs(), "{a} {b}");
    }
    let apart = |a: &Tensors, b: &Tensors| {
        let mut difference = a.clone();
        difference.add_scaled(b, -1.0);
        difference.norm() / b.norm()
    };
    let error = apart(&whole, &exact.1);
    assert!(error > 1e-4 && error < 0.05, "{error}");
    // The same factors, summed in another order.
    let mut parts = results(&model, 0..1).1;
    parts.add_scaled(&results(&model, 1..2).1, 1.0);
    assert!(apart(&parts, &whole) < 1e-5);
}

#[test]
fn steps_smaller_than_the_last_digit_of_bf16_are_not_lost() {
    let place = directory();
    let start = load(place.path(), Keep::Bf16, Precision::F32);
    let run = || {
        let mut model = load(place.path(), Keep::Bf16, Precision::F32);
        let mut grads = Tensors::zeros(&model.map);
        grads.iter_mut().flatten().for_each(|g| *g = 1.0);
        let mut state = AdamWState::new(&model.map, &AdamW::default());
        for _ in 0..20 {
            // Each step is lr long: far less than half of the last digit of most weights (2^-9 of about 0.2).
            AdamW::default().step(&model.map, &mut model.weights, (&grads, 1.0), &mut state, 1e-5);
        }
        model
    };
    let model = run();
    let id = model.map.files[0].parts[0].0;
    let (before, after) = (start.weights.values(id), model.weights.values(id));
    let moved: f64 =
        before.iter().zip(after.iter()).map(|(a, b)| f64::from(a - b)).sum::<f64>() / before.len() as f64;
    // 19,200 weights, each of which moved by about 2e-4 in digits of about 1e-3: a standard error of 4e-6.
    assert!((moved - 2e-4).abs() < 2e-5, "{moved}");
    assert!(model.weights == run().weights, "the same bits");
}
