//! The kernels at the sizes of SmolLM2-135M: `cargo bench -p seakeep-kernels`. Not part of CI.
//!
//! Where arithmetic is the limit the throughput is in floating-point operations (`Gelem/s` is GFLOP/s; a multiply-add
//! counts as two), elsewhere in elements of the output.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use seakeep_kernels::activation::{self, Activation};
use seakeep_kernels::attention::{self, Layout, Segment, Shape};
use seakeep_kernels::gemm::{Mat, Threads, gemm};
use seakeep_kernels::{projection, rmsnorm};

/// Tokens of a batch, `T`.
const TOKENS: usize = 1024;
/// Channels of the residual stream, `C`.
const CHANNELS: usize = 576;
/// Channels of the feed-forward layer, `I`.
const INTERMEDIATE: usize = 1536;
/// Vocabulary, `V`.
const VOCABULARY: usize = 49_152;
/// Predictions, `N`: two chunks of the projection.
const PREDICTIONS: usize = 256;
/// Query heads `H`, key/value heads `J`, channels of a head `D`.
const SHAPE: Shape = Shape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, window: None };

/// Numbers in [-1, 1], always the same.
fn numbers(n: usize) -> Vec<f32> {
    (0..n as u64)
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

type Group<'c> = BenchmarkGroup<'c, WallTime>;

fn timed(group: &mut Group, name: &str, work: usize, mut run: impl FnMut()) {
    group.throughput(Throughput::Elements(work as u64));
    group.bench_function(name, |b| b.iter(&mut run));
}

/// Matrix products of a layer: forward, and both of its backward pass.
fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    for (name, inputs, outputs) in [
        ("576x576", CHANNELS, CHANNELS),
        ("576x1536", CHANNELS, INTERMEDIATE),
        ("1536x576", INTERMEDIATE, CHANNELS),
    ] {
        let (x, w, y) = (numbers(TOKENS * inputs), numbers(outputs * inputs), numbers(TOKENS * outputs));
        let work = 2 * TOKENS * inputs * outputs;
        let mut out = vec![0.0; TOKENS * outputs];
        timed(&mut group, &format!("forward {name}"), work, || {
            let (a, b) = (Mat::new(&x, inputs), Mat::new(&w, inputs).t());
            gemm((TOKENS, outputs, inputs), black_box(&mut out), outputs, false, 1.0, a, b, Threads::All);
        });
        let mut d_x = vec![0.0; TOKENS * inputs];
        timed(&mut group, &format!("backward input {name}"), work, || {
            let (a, b) = (Mat::new(&y, outputs), Mat::new(&w, inputs));
            gemm((TOKENS, inputs, outputs), black_box(&mut d_x), inputs, false, 1.0, a, b, Threads::All);
        });
        let mut d_w = vec![0.0; outputs * inputs];
        timed(&mut group, &format!("backward weight {name}"), work, || {
            let (a, b) = (Mat::new(&y, outputs).t(), Mat::new(&x, inputs));
            gemm((outputs, inputs, TOKENS), black_box(&mut d_w), inputs, true, 1.0, a, b, Threads::All);
        });
    }
    group.finish();
}

/// Two pairs: a prompt of half their rows, and two branches that look back at it.
fn layout() -> Layout {
    let mut layout = Layout::default();
    for pair in 0..2 {
        let (start, prompt, branch) = (pair * TOKENS / 2, TOKENS / 4, TOKENS / 8);
        let context = start..start + prompt;
        let first = layout.segments.len();
        layout.segments.push(Segment { start, len: prompt, context: 0..0 });
        for b in 0..2 {
            let start = start + prompt + b * branch;
            layout.segments.push(Segment { start, len: branch, context: context.clone() });
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
    let (mut o, mut lse) = (vec![0.0; wide], vec![0.0; TOKENS * SHAPE.heads * 2]);
    // Products of that size: 2 forward, 5 backward, 5 tangent, 10 curvature. Scores that the causal
    // mask hides are computed too, block by block, and not counted.
    let work = seen_work(&layout);
    timed(&mut group, "forward", 2 * work, || {
        attention::forward(black_box(&mut o), &mut lse, &q, &k, &v, &layout, SHAPE);
    });
    let of = |n: usize| vec![0.0f32; n];
    let (mut d_q, mut d_k, mut d_v) = (of(wide), of(narrow), of(narrow));
    timed(&mut group, "backward", 5 * work, || {
        let out = (black_box(&mut d_q[..]), &mut d_k[..], &mut d_v[..]);
        attention::backward(out, &o, (&q, &k, &v), &lse, &layout, SHAPE);
    });
    let mut t_o = of(wide);
    timed(&mut group, "tangent", 5 * work, || {
        attention::tangent(black_box(&mut t_o), (&q, &k, &v), (&q, &k, &v), &lse, &layout, SHAPE);
    });
    timed(&mut group, "curvature", 10 * work, || {
        let out = (black_box(&mut d_q[..]), &mut d_k[..], &mut d_v[..]);
        attention::curvature(out, &o, (&q, &k, &v), (&q, &k, &v), &lse, &layout, SHAPE);
    });
    group.finish();
}

fn projection_passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("projection");
    group.sample_size(10);
    let (x, w) = (numbers(PREDICTIONS * CHANNELS), numbers(VOCABULARY * CHANNELS));
    let targets: Vec<u32> = (0..PREDICTIONS).map(|n| (n * 191 % VOCABULARY) as u32).collect();
    let product = 2 * PREDICTIONS * CHANNELS * VOCABULARY;
    timed(&mut group, "forward", product, || {
        black_box(projection::forward(&x, &w, &targets, CHANNELS));
    });
    let predicted = projection::forward(&x, &w, &targets, CHANNELS);
    let d_logp = numbers(PREDICTIONS);
    let (mut g, mut d_w) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    timed(&mut group, "forward_with_gradient", 2 * product, || {
        black_box(projection::forward_with_gradient(&mut g, &x, &w, &targets, CHANNELS));
    });
    timed(&mut group, "backward_weight", 2 * product, || {
        projection::backward_weight(black_box(&mut d_w), &d_logp, &x, &w, &targets, &predicted, CHANNELS);
    });
    group.finish();
}

fn element_wise(c: &mut Criterion) {
    let mut group = c.benchmark_group("rmsnorm");
    let (x, g) = (numbers(TOKENS * CHANNELS), numbers(CHANNELS));
    let (mut y, mut d_g) = (vec![0.0; x.len()], vec![0.0; CHANNELS]);
    timed(&mut group, "forward", x.len(), || rmsnorm::forward(black_box(&mut y), &x, &g, 1e-5));
    timed(&mut group, "backward", x.len(), || {
        rmsnorm::backward(black_box(&mut y), &mut d_g, &x, &x, &g, 1e-5);
    });
    group.finish();

    let mut group = c.benchmark_group("gated silu");
    let (gate, up) = (numbers(TOKENS * INTERMEDIATE), numbers(TOKENS * INTERMEDIATE));
    let (mut y, mut d_up) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    timed(&mut group, "forward", gate.len(), || {
        activation::gated_forward(Activation::Silu, black_box(&mut y), &gate, &up);
    });
    timed(&mut group, "backward", gate.len(), || {
        activation::gated_backward(Activation::Silu, black_box(&mut y), &mut d_up, &gate, &gate, &up);
    });
    group.finish();
}

criterion_group!(benches, products, attention_passes, projection_passes, element_wise);
criterion_main!(benches);
