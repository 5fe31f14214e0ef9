//! What a step does to every parameter once, at the size of SmolLM2-135M: `cargo bench -p seakeep`. Memory is the limit: the
//! throughput is in bytes that must be read and written, and compares with `seakeep inspect machine`. Not part of CI.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use seakeep::model::{Model, Tensors};
use seakeep::optim::{AdamW, AdamWState};
use serde_json::json;

fn smollm2() -> Model {
    let config = json!({
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": true,
    });
    Model::random(&config, 1).expect("a shape that is right")
}

fn passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("optimizer");
    group.sample_size(10);
    let mut model = smollm2();
    let mut grads = Tensors::zeros(&model.map);
    grads.iter_mut().flatten().enumerate().for_each(|(i, g)| *g = (i % 1000) as f32 * 1e-6);
    let mut state = AdamWState::new(&model.map, &AdamW::default());
    let bytes = (model.map.count() * size_of::<f32>()) as u64;
    // Weights, both moments and gradients are read, all but the last written.
    group.throughput(Throughput::Bytes(7 * bytes));
    group.bench_function("adamw", |b| {
        b.iter(|| {
            AdamW::default().step(&model.map, black_box(&mut model.weights), (&grads, 1.0), &mut state, 1e-6)
        });
    });
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("norm", |b| b.iter(|| black_box(grads.norm())));
    group.finish();
}

criterion_group!(benches, passes);
criterion_main!(benches);
