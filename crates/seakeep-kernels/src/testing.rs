//! What the kernels' tests share: random buffers, comparisons, and the finite-difference checks that
//! hold `backward`, `tangent` and `curvature` of an operation against its `forward`.

/// `n` numbers in [-1, 1], the same for the same seed.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    for _ in 0..8 {
        next();
    }
    (0..n).map(|_| next()).collect()
}

/// Asserts `|got - want| <= tolerance * max(1, |want|)` everywhere.
pub fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{what}[{i}]: got {g}, want {w}");
    }
}

fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&x, &y)| x as f64 * y as f64).sum()
}

fn along(x: &[f32], v: &[f32], eps: f32) -> Vec<f32> {
    x.iter().zip(v).map(|(x, v)| x + eps * v).collect()
}

/// A function of two vectors.
type Of2<'a> = &'a dyn Fn(&[f32], &[f32]) -> Vec<f32>;
/// A function of three vectors.
type Of3<'a> = &'a dyn Fn(&[f32], &[f32], &[f32]) -> Vec<f32>;

/// An operation as its tests see it: any number of inputs (data and weights alike) flattened into one
/// vector `x`, one flat output `y`. Each closure returns fresh vectors.
pub struct Op<'a> {
    /// `y` from `x`.
    pub forward: &'a dyn Fn(&[f32]) -> Vec<f32>,
    /// `d_x` from `(x, d_y)`.
    pub backward: Of2<'a>,
    /// `t_y` from `(x, t_x)`.
    pub tangent: Of2<'a>,
    /// The tangent of `d_x`, `d_y` held, from `(x, t_x, d_y)`.
    pub curvature: Of3<'a>,
    /// Which leading part of `x` the tangent moves (weights behind it stay fixed).
    pub moving: usize,
}

/// Checks the four functions against each other and against central differences of `forward`.
///
/// `eps` is the step; the tolerance is relative to the size of the directional derivative plus 1:
/// truncation is O(eps^2), rounding O(6e-8 |y| sqrt(n) / eps).
pub fn check(op: &Op, x: &[f32], outputs: usize, eps: f32, tolerance: f64) {
    let mut v = random(x.len(), 101);
    v[op.moving..].fill(0.0);
    let d_y = random(outputs, 102);
    let agree = |got: f64, want: f64, what: &str| {
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "{what}: got {got}, want {want}");
    };

    // tangent = (f(x + eps v) - f(x - eps v)) / 2 eps, element by element.
    let t_y = (op.tangent)(x, &v);
    let (up, down) = ((op.forward)(&along(x, &v, eps)), (op.forward)(&along(x, &v, -eps)));
    assert_eq!(t_y.len(), outputs);
    for i in 0..outputs {
        agree(t_y[i] as f64, (up[i] as f64 - down[i] as f64) / (2.0 * eps as f64), "tangent");
    }
    // <d_y, df[w]> = <d_x, w> for directions w that move weights as well.
    let d_x = (op.backward)(x, &d_y);
    for seed in 0..4 {
        let w = random(x.len(), 200 + seed);
        let (up, down) = ((op.forward)(&along(x, &w, eps)), (op.forward)(&along(x, &w, -eps)));
        let want = (inner(&up, &d_y) - inner(&down, &d_y)) / (2.0 * eps as f64);
        agree(inner(&d_x, &w), want, "backward");
    }
    // curvature = d/d eps of backward at x + eps v, element by element.
    let s_x = (op.curvature)(x, &v, &d_y);
    let (up, down) = ((op.backward)(&along(x, &v, eps), &d_y), (op.backward)(&along(x, &v, -eps), &d_y));
    for i in 0..x.len() {
        agree(s_x[i] as f64, (up[i] as f64 - down[i] as f64) / (2.0 * eps as f64), "curvature");
    }
}
