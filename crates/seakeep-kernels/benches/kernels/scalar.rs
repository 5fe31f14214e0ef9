//! The obvious loops, which the kernels are timed against: one thread, one element after another, as the compiler makes them.

use seakeep_kernels::attention::{Layout, Shape};

/// `y = x w^T`: `x` is `[T, I]`, `w` is `[O, I]`.
pub fn linear(y: &mut [f32], x: &[f32], w: &[f32], inputs: usize, outputs: usize) {
    for (y, x) in y.chunks_exact_mut(outputs).zip(x.chunks_exact(inputs)) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(inputs)) {
            *y = dot(x, w);
        }
    }
}

/// `d_x = d_y w`.
pub fn linear_input(d_x: &mut [f32], d_y: &[f32], w: &[f32], inputs: usize, outputs: usize) {
    d_x.fill(0.0);
    for (d_x, d_y) in d_x.chunks_exact_mut(inputs).zip(d_y.chunks_exact(outputs)) {
        for (d, w) in d_y.iter().zip(w.chunks_exact(inputs)) {
            d_x.iter_mut().zip(w).for_each(|(x, w)| *x += d * w);
        }
    }
}

/// `d_w += d_y^T x`.
pub fn linear_weight(d_w: &mut [f32], d_y: &[f32], x: &[f32], inputs: usize, outputs: usize) {
    for (d_y, x) in d_y.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
        for (d, w) in d_y.iter().zip(d_w.chunks_exact_mut(inputs)) {
            w.iter_mut().zip(x).for_each(|(w, x)| *w += d * x);
        }
    }
}

/// Attention, row by row over the keys that it sees.
pub fn attention(o: &mut [f32], q: &[f32], k: &[f32], v: &[f32], layout: &Layout, shape: Shape) {
    let (d, wide, narrow) = (shape.head_dim, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let mut p = Vec::new();
    for segment in &layout.segments {
        for row in segment.start..segment.start + segment.len {
            let keys = || segment.opening.clone().chain(segment.context.clone()).chain(segment.start..=row);
            for head in 0..shape.heads {
                let at = head / (shape.heads / shape.kv_heads) * d;
                let q = &q[row * wide + head * d..][..d];
                p.clear();
                p.extend(keys().map(|key| shape.scale * dot(q, &k[key * narrow + at..][..d])));
                let top = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                p.iter_mut().for_each(|p| *p = (*p - top).exp());
                let total: f32 = p.iter().sum();
                let o = &mut o[row * wide + head * d..][..d];
                o.fill(0.0);
                for (p, key) in p.iter().zip(keys()) {
                    o.iter_mut().zip(&v[key * narrow + at..][..d]).for_each(|(o, v)| *o += p / total * v);
                }
            }
        }
    }
}

/// Log-probabilities of the targets.
pub fn projection(x: &[f32], w: &[f32], targets: &[u32], channels: usize) -> Vec<f32> {
    let mut z = vec![0.0; w.len() / channels];
    let logp = |(x, target): (&[f32], &u32)| {
        linear(&mut z, x, w, channels, w.len() / channels);
        let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        z[*target as usize] - top - z.iter().map(|z| (z - top).exp()).sum::<f32>().ln()
    };
    x.chunks_exact(channels).zip(targets).map(logp).collect()
}

/// `y = g x r`.
pub fn rmsnorm(y: &mut [f32], x: &[f32], g: &[f32], eps: f32) {
    let c = g.len();
    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
        let r = (dot(x, x) / c as f32 + eps).sqrt().recip();
        for i in 0..c {
            y[i] = g[i] * x[i] * r;
        }
    }
}

/// `y = silu(gate) up`.
pub fn gated_silu(y: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
        *y = g / (1.0 + (-g).exp()) * u;
    }
}

/// Turns every head of `[T, H, D]` by its row's position.
pub fn rope(x: &mut [f32], positions: &[u32], frequencies: &[f32], heads: usize, head_dim: usize) {
    let half = frequencies.len();
    for (row, x) in x.chunks_exact_mut(heads * head_dim).enumerate() {
        for head in x.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (sin, cos) = (positions[row] as f32 * frequencies[i]).sin_cos();
                let (a, b) = (head[i], head[i + half]);
                (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
