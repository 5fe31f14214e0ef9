//! The kernels at the sizes of a training step on SmolLM2-135M, against obvious loops and the machine's ceilings:
//! `cargo bench -p seakeep-kernels`. Not part of CI.
//!
//! The batch is four times the average pair of HH (`docs/PERFORMANCE.md`). Where arithmetic is the limit the throughput is in
//! floating-point operations (`Gelem/s` is GFLOP/s; a multiply-add counts as two), elsewhere in bytes that must be read
//! and written. Either compares with the group `ceiling`. `scalar` stands for the loops of `scalar.rs`, on one thread; where
//! these take long, on fewer rows.

mod scalar;

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use seakeep_kernels::activation::{self, Activation};
use seakeep_kernels::attention::{self, Layout, Segment, Shape};
use seakeep_kernels::gemm::{Mat, Precision, Product, Threads, multiply};
use seakeep_kernels::linear::Map;
use seakeep_kernels::lora::Lora;
use seakeep_kernels::panels::Panels;
use seakeep_kernels::rope::{self, Table, Turn};
use seakeep_kernels::{linear, projection, rmsnorm};

/// Pairs of a batch, tokens of a prompt and of a completion.
const PAIRS: usize = 4;
const PROMPT: usize = 134;
const COMPLETION: usize = 45;
/// Tokens of the batch, `T`.
const TOKENS: usize = PAIRS * (PROMPT + 2 * COMPLETION);
/// Predictions, `N`.
const PREDICTIONS: usize = PAIRS * 2 * COMPLETION;
/// Channels of the residual stream, `C`.
const CHANNELS: usize = 576;
/// Channels of the feed-forward layer, `I`.
const INTERMEDIATE: usize = 1536;
/// Channels of keys and of values.
const NARROW: usize = 192;
/// Vocabulary, `V`.
const VOCABULARY: usize = 49_152;
/// Query heads `H`, key/value heads `J`, channels of a head `D`.
const SHAPE: Shape = Shape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, window: None };
/// Rows for the loops that take long.
const FEW: usize = 16;
const FLOAT: usize = size_of::<f32>();

/// Numbers in [-1, 1], always the same.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn zeros(n: usize) -> Vec<f32> {
    vec![0.0; n]
}

type Group<'c> = BenchmarkGroup<'c, WallTime>;

/// `work` floating-point operations.
fn operations(group: &mut Group, name: &str, work: usize, mut run: impl FnMut()) {
    group.throughput(Throughput::Elements(work as u64));
    group.bench_function(name, |b| b.iter(&mut run));
}

/// `floats` numbers read and written.
fn moved(group: &mut Group, name: &str, floats: usize, mut run: impl FnMut()) {
    group.throughput(Throughput::Bytes((floats * FLOAT) as u64));
    group.bench_function(name, |b| b.iter(&mut run));
}

/// What all others are compared with: a large product.
fn ceilings(c: &mut Criterion) {
    let mut group = c.benchmark_group("ceiling");
    let n = 2048;
    let (a, b, mut out) = (numbers(n * n), numbers(n * n), zeros(n * n));
    for (name, precision) in [("float32", Precision::F32), ("bfloat16", Precision::Bf16)] {
        let how = Product { c_row: n, accumulate: false, alpha: 1.0, threads: Threads::All, precision };
        operations(&mut group, name, 2 * n * n * n, || {
            multiply((n, n, n), black_box(&mut out), how, Mat::new(&a, n), Mat::new(&b, n).t());
        });
    }
    group.finish();
}

/// A layer's products, forward and backward.
fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for (name, inputs, outputs) in [
        ("576x576", CHANNELS, CHANNELS),
        ("576x192", CHANNELS, NARROW),
        ("576x1536", CHANNELS, INTERMEDIATE),
        ("1536x576", INTERMEDIATE, CHANNELS),
    ] {
        let (x, w, d_y) = (numbers(TOKENS * inputs), numbers(outputs * inputs), numbers(TOKENS * outputs));
        let (mut y, mut d_x, mut d_w) =
            (zeros(TOKENS * outputs), zeros(TOKENS * inputs), zeros(outputs * inputs));
        let map = Map::f32(&w, inputs, outputs);
        let work = 2 * TOKENS * inputs * outputs;
        operations(&mut group, &format!("forward {name}"), work, || {
            map.forward(black_box(&mut y), &x, None);
        });
        operations(&mut group, &format!("backward_input {name}"), work, || {
            map.backward_input(black_box(&mut d_x), &d_y, false);
        });
        operations(&mut group, &format!("backward_weight {name}"), work, || {
            linear::backward_weights(
                vec![(linear::Sum::begun(black_box(&mut d_w)), &d_y)],
                &x,
                inputs,
                Precision::F32,
            );
        });
        let map = Map { precision: Precision::Bf16, ..map };
        operations(&mut group, &format!("forward bfloat16 {name}"), work, || {
            map.forward(black_box(&mut y), &x, None);
        });
        if name == "576x576" {
            let (few, of_few) = (FEW * CHANNELS, 2 * FEW * inputs * outputs);
            operations(&mut group, "forward scalar", of_few, || {
                scalar::linear(black_box(&mut y[..few]), &x[..few], &w, inputs, outputs);
            });
            operations(&mut group, "backward_input scalar", of_few, || {
                scalar::linear_input(black_box(&mut d_x[..few]), &d_y[..few], &w, inputs, outputs);
            });
            operations(&mut group, "backward_weight scalar", of_few, || {
                scalar::linear_weight(black_box(&mut d_w), &d_y[..few], &x[..few], inputs, outputs);
            });
        }
    }
    group.finish();
}

/// An adapter of rank 16 beside the widest layer.
fn adapters(c: &mut Criterion) {
    let mut group = c.benchmark_group("lora");
    let (inputs, outputs, rank) = (CHANNELS, INTERMEDIATE, 16);
    let (a, b) = (numbers(rank * inputs), numbers(outputs * rank));
    let lora = Lora { a: &a, b: &b, scale: 2.0, inputs, outputs, rank, dropout: None };
    let (x, d_y) = (numbers(TOKENS * inputs), numbers(TOKENS * outputs));
    let (mut y, mut d_x) = (zeros(TOKENS * outputs), zeros(TOKENS * inputs));
    let (mut d_a, mut d_b) = (zeros(a.len()), zeros(b.len()));
    let work = 2 * TOKENS * rank * (inputs + outputs);
    operations(&mut group, "forward", work, || lora.forward(black_box(&mut y), &x));
    // The way down is made again, for the gradient of `b`.
    operations(&mut group, "backward", 2 * work + 2 * TOKENS * rank * inputs, || {
        lora.backward(black_box(&mut d_x), Some((&mut d_a, &mut d_b)), &d_y, &x);
    });
    group.finish();
}

/// Pairs: a prompt, and two completions that look back at it.
fn layout() -> Layout {
    let mut layout = Layout::default();
    for pair in 0..PAIRS {
        let start = pair * (PROMPT + 2 * COMPLETION);
        let (first, context) = (layout.segments.len(), start..start + PROMPT);
        layout.segments.push(Segment { start, len: PROMPT, opening: 0..0, context: 0..0 });
        for start in [context.end, context.end + COMPLETION] {
            layout.segments.push(Segment { start, len: COMPLETION, opening: 0..0, context: context.clone() });
        }
        layout.groups.push(first..layout.segments.len());
    }
    layout
}

/// Operations of one product of all queries with the keys they see.
fn seen_work(layout: &Layout) -> usize {
    let keys = |s: &Segment| s.len * s.context.len() + s.len * (s.len + 1) / 2;
    2 * SHAPE.heads * SHAPE.head_dim * layout.segments.iter().map(keys).sum::<usize>()
}

fn attention_passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let layout = layout();
    let (wide, narrow) = (TOKENS * SHAPE.heads * SHAPE.head_dim, TOKENS * SHAPE.kv_heads * SHAPE.head_dim);
    let (q, k, v) = (numbers(wide), numbers(narrow), numbers(narrow));
    let (mut o, mut lse) = (zeros(wide), zeros(TOKENS * SHAPE.heads * 2));
    // Products of that size: 2 forward, 5 backward (one of them the scores again), 5 tangent, 10 curvature.
    // Scores that the causal mask hides are computed too, block by block, and not counted.
    let work = seen_work(&layout);
    operations(&mut group, "forward", 2 * work, || {
        attention::forward(black_box(&mut o), &mut lse, &q, &k, &v, &layout, SHAPE);
    });
    let mut plain = zeros(wide);
    operations(&mut group, "forward scalar", 2 * work, || {
        scalar::attention(black_box(&mut plain), &q, &k, &v, &layout, SHAPE);
    });
    let (mut d_q, mut d_k, mut d_v) = (zeros(wide), zeros(narrow), zeros(narrow));
    operations(&mut group, "backward", 5 * work, || {
        let out = (black_box(&mut d_q[..]), &mut d_k[..], &mut d_v[..]);
        attention::backward(out, &o, (&q, &k, &v), (&o, &lse), &layout, SHAPE);
    });
    let (mut t_o, mut t_lse) = (zeros(wide), zeros(TOKENS * SHAPE.heads));
    operations(&mut group, "tangent", 5 * work, || {
        let out = (black_box(&mut t_o[..]), &mut t_lse[..]);
        attention::tangent(out, (&q, &k, &v), (&q, &k, &v), (&o, &lse), &layout, SHAPE);
    });
    operations(&mut group, "curvature", 10 * work, || {
        let out = (black_box(&mut d_q[..]), &mut d_k[..], &mut d_v[..]);
        let made = ((&o[..], &lse[..]), (&t_o[..], &t_lse[..]));
        attention::curvature(out, &o, (&q, &k, &v), (&q, &k, &v), made, &layout, SHAPE);
    });
    group.finish();
}

fn projection_passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("projection");
    group.sample_size(10);
    let (x, w) = (numbers(PREDICTIONS * CHANNELS), numbers(VOCABULARY * CHANNELS));
    let targets: Vec<u32> = (0..PREDICTIONS).map(|n| (n * 191 % VOCABULARY) as u32).collect();
    let head = Map::f32(&w, CHANNELS, VOCABULARY);
    let product = 2 * PREDICTIONS * CHANNELS * VOCABULARY;
    operations(&mut group, "forward", product, || {
        black_box(projection::forward(&x, head, &targets));
    });
    operations(&mut group, "forward scalar", 2 * product / PREDICTIONS, || {
        black_box(scalar::projection(&x[..2 * CHANNELS], &w, &targets[..2], CHANNELS));
    });
    let predicted = projection::forward(&x, head, &targets);
    let d_logp = numbers(PREDICTIONS);
    let (mut d_x, mut d_w) = (zeros(x.len()), zeros(w.len()));
    // The logits, and the gradient of inputs from them.
    operations(&mut group, "forward with gradient", 2 * product, || {
        black_box(projection::forward_with_gradient(&mut d_x, &x, head, &targets, true));
    });
    let (_, kept) = projection::forward_with_gradient(&mut d_x, &x, head, &targets, true);
    // The weight's gradient; of more rows than are kept the logits again before it.
    for (name, products, kept) in [("backward by weight, kept", 1, kept), ("backward by weight", 2, None)] {
        operations(&mut group, name, products * product, || {
            let d_w = linear::Sum::begun(black_box(&mut d_w));
            projection::backward_weight(d_w, &d_logp, &x, head, &targets, &predicted, kept.as_deref());
        });
    }
    let t_x = numbers(x.len());
    // The logits and their tangents, one gradient of inputs, two products by weight.
    operations(&mut group, "backward_with_curvature", 5 * product, || {
        let (d_w, seeds) = (Some(linear::Sum::begun(black_box(&mut d_w))), (&d_logp[..], &d_logp[..]));
        projection::backward_with_curvature(&mut d_x, d_w, seeds, (&x, &t_x), head, &targets, &predicted);
    });
    group.finish();
}

fn element_wise(c: &mut Criterion) {
    let mut group = c.benchmark_group("rmsnorm");
    let (x, g) = (numbers(TOKENS * CHANNELS), numbers(CHANNELS));
    let (mut y, mut d_g) = (zeros(x.len()), zeros(CHANNELS));
    moved(&mut group, "forward", 2 * x.len(), || rmsnorm::forward(black_box(&mut y), &x, &g, 1e-5));
    moved(&mut group, "forward scalar", 2 * x.len(), || scalar::rmsnorm(black_box(&mut y), &x, &g, 1e-5));
    moved(&mut group, "backward", 3 * x.len(), || {
        rmsnorm::backward(black_box(&mut y), &mut d_g, &x, &x, &g, 1e-5);
    });
    let (t_x, d_y) = (numbers(x.len()), numbers(x.len()));
    moved(&mut group, "tangent", 3 * x.len(), || rmsnorm::tangent(black_box(&mut y), &x, &t_x, &g, 1e-5));
    moved(&mut group, "curvature", 4 * x.len(), || {
        rmsnorm::curvature(black_box(&mut y), &mut d_g, &d_y, &x, &t_x, &g, 1e-5);
    });
    group.finish();

    let mut group = c.benchmark_group("gated silu");
    let (gate, up) = (numbers(TOKENS * INTERMEDIATE), numbers(TOKENS * INTERMEDIATE));
    let (mut y, mut d_up) = (zeros(gate.len()), zeros(gate.len()));
    moved(&mut group, "forward", 3 * gate.len(), || {
        activation::gated_forward(Activation::Silu, black_box(&mut y), &gate, &up);
    });
    moved(&mut group, "forward scalar", 3 * gate.len(), || {
        scalar::gated_silu(black_box(&mut y), &gate, &up);
    });
    moved(&mut group, "backward", 5 * gate.len(), || {
        activation::gated_backward(Activation::Silu, black_box(&mut y), &mut d_up, &gate, &gate, &up);
    });
    let (t_gate, t_up) = (numbers(gate.len()), numbers(gate.len()));
    moved(&mut group, "tangent", 5 * gate.len(), || {
        activation::gated_tangent(Activation::Silu, black_box(&mut y), &gate, &up, &t_gate, &t_up);
    });
    moved(&mut group, "curvature", 7 * gate.len(), || {
        let (s_gate, d_y) = (black_box(&mut y), &gate);
        activation::gated_curvature(Activation::Silu, s_gate, &mut d_up, d_y, &gate, &up, &t_gate, &t_up);
    });
    group.finish();

    let mut group = c.benchmark_group("rope");
    let half = SHAPE.head_dim / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| 1e5f32.powf(-(i as f32) / half as f32)).collect();
    let (table, positions) = (Table::new(&frequencies, TOKENS), (0..TOKENS as u32).collect::<Vec<_>>());
    let mut q = numbers(TOKENS * CHANNELS);
    moved(&mut group, "forward", 2 * q.len(), || {
        rope::rotate(black_box(&mut q), &positions, &table, SHAPE.heads, SHAPE.head_dim, Turn::Forth);
    });
    moved(&mut group, "forward scalar", 2 * q.len(), || {
        scalar::rope(black_box(&mut q), &positions, &frequencies, SHAPE.heads, SHAPE.head_dim);
    });
    group.finish();
}

/// Generation's products: with one row every weight is read for two operations, with 64 for 128.
fn generation(c: &mut Criterion) {
    let mut group = c.benchmark_group("panels");
    let w = numbers(VOCABULARY * CHANNELS);
    let x = numbers(64 * CHANNELS);
    let one = Panels::pack(&x[..CHANNELS], CHANNELS);
    moved(&mut group, "1 row", w.len(), || {
        black_box(one.product(&w[..], None, VOCABULARY));
    });
    let many = Panels::pack(&x, CHANNELS);
    operations(&mut group, "64 rows", 2 * 64 * w.len(), || {
        black_box(many.product(&w[..], None, VOCABULARY));
    });
    group.finish();
}

criterion_group!(
    benches,
    ceilings,
    products,
    adapters,
    attention_passes,
    projection_passes,
    element_wise,
    generation
);
criterion_main!(benches);
