//! Vectorised elementary functions. Written so that the compiler turns the loops around them into
//! vector code; [`vectorise!`](crate::vectorise) compiles a loop once per instruction set and picks one at run time.

use std::ops::Range;

/// The value of an expression, compiled for the best instruction set this processor has (AVX-512, AVX2 or plain). Everything it calls
/// that should be vectorised must be `#[inline(always)]`.
#[macro_export]
macro_rules! vectorise {
    // A closure that is called from one function per instruction set is compiled once, for none of them, unless it is told otherwise.
    ($body:expr) => {
        $crate::simd::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}

/// The cache that a line is asked into.
#[derive(Clone, Copy)]
pub(crate) enum Prefetch {
    /// The first-level cache.
    First,
    /// The first-level cache, to be written.
    FirstToWrite,
    /// The second-level cache.
    Second,
}

/// Asks for the cache line at `from` ahead of time.
#[inline(always)]
pub(crate) fn prefetch(from: *const f32, into: Prefetch) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing: any address will do.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match into {
            Prefetch::First => _mm_prefetch::<_MM_HINT_T0>(from.cast()),
            Prefetch::FirstToWrite => _mm_prefetch::<_MM_HINT_ET0>(from.cast()),
            Prefetch::Second => _mm_prefetch::<_MM_HINT_T1>(from.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, into);
}

/// What [`vectorise!`](crate::vectorise) expands to.
#[doc(hidden)]
#[inline(always)]
pub fn dispatch<R>(body: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Op<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) -> R {
            simd.vectorize(Body(self.0))
        }
    }
    struct Body<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Body<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Op(body))
}

/// `e^x` to about 2 units in the last place, branch-free. Below -87 it is 0, above 88.3 it is
/// `e^88.3`; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a degree-6 polynomial; 2^n by exponent bits.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer in any vector unit.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x > 88.3 { 88.3 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = rounded - MAGIC;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let mut p = 1.987_569_2e-4_f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let e = (p * r * r + r) + 1.0;
    // n as an integer is how far the bits are from those of MAGIC. (A cast of n saturates, and the compiler does that one lane after
    // another.) Of NaN it is any number, and the product stays NaN.
    let scale = f32::from_bits(rounded.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e * scale }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, absolute error below 2e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Error function, absolute error below 3e-7 in f32 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let mut p = 1.061_405_4_f32;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let y = 1.0 - p * t * exp(-a * a);
    if x < 0.0 { -y } else { y }
}

/// Independent partial sums: enough for the adders' latency, and a fixed order on every machine.
pub const LANES: usize = 32;

/// Terms per block. Blocks are summed in f32 and added up in f64: in one long f32 sum, terms below half a unit
/// in the last place of the running total would all be lost, as most of a vocabulary's probabilities are.
const BLOCK: usize = 512;

/// `sum f(i)` over `0..n` in a fixed order that vectorises.
#[inline(always)]
pub fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let [sum] = blocks(
        n,
        #[inline(always)]
        |block| {
            let mut lanes = [[0.0f32; LANES]];
            let whole = block.start + block.len() / LANES * LANES;
            let mut i = block.start;
            while i < whole {
                for (l, lane) in lanes[0].iter_mut().enumerate() {
                    *lane += f(i + l);
                }
                i += LANES;
            }
            let tail = (whole..block.end).fold(0.0, |sum, i| sum + f(i));
            folded(lanes).map(|sum| sum + tail)
        },
    );
    sum
}

/// Several sums over the elements of `a`, in the order of [`sum_by`]: `f` gives the terms of each of 32 elements. (Of terms given one by
/// one for several sums the compiler makes no vectors.)
#[inline(always)]
pub fn sums_of<const K: usize>(a: &[f32], f: impl Fn(&[f32; LANES]) -> [[f32; LANES]; K]) -> [f32; K] {
    blocks(
        a.len(),
        #[inline(always)]
        |block| {
            let mut sums = [[0.0f32; LANES]; K];
            let (whole, rest) = a[block].as_chunks::<LANES>();
            for elements in whole {
                let terms = f(elements);
                for k in 0..K {
                    for l in 0..LANES {
                        sums[k][l] += terms[k][l];
                    }
                }
            }
            let mut sums = folded(sums);
            if !rest.is_empty() {
                let mut last = [0.0; LANES];
                last[..rest.len()].copy_from_slice(rest);
                let terms = f(&last);
                for k in 0..K {
                    sums[k] += terms[k][..rest.len()].iter().fold(0.0, |sum, term| sum + term);
                }
            }
            sums
        },
    )
}

/// Adds up the sums of blocks.
#[inline(always)]
fn blocks<const K: usize>(n: usize, of_block: impl Fn(Range<usize>) -> [f32; K]) -> [f32; K] {
    let mut totals = [0.0f64; K];
    let mut start = 0;
    while start < n {
        let end = if n - start > BLOCK { start + BLOCK } else { n };
        totals.iter_mut().zip(of_block(start..end)).for_each(|(total, sum)| *total += sum as f64);
        start = end;
    }
    totals.map(|total| total as f32)
}

/// Adds lanes up, by halves.
#[inline(always)]
pub(crate) fn folded<const K: usize>(mut sums: [[f32; LANES]; K]) -> [f32; K] {
    let mut width = LANES / 2;
    while width > 0 {
        for lanes in &mut sums {
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
        }
        width /= 2;
    }
    sums.map(|lanes| lanes[0])
}

/// `sum a_i b_i`.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    sum_by(n, |i| a[i] * b[i])
}

/// The largest element (`-inf` for an empty slice); NaN may be passed on or not.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.split_at(a.len() / LANES * LANES);
    for chunk in chunks.chunks_exact(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    // By halves: one lane after the other would take as long as some hundred elements.
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = if lanes[l + width] > lanes[l] { lanes[l + width] } else { lanes[l] };
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elementary_functions_follow_f64() {
        for i in -4000..4000 {
            let x = i as f32 * 0.02;
            let e = (x as f64).exp();
            assert!(((exp(x) as f64 - e) / e).abs() < 4e-7, "exp({x})");
            assert!((tanh(x) as f64 - (x as f64).tanh()).abs() < 2e-7, "tanh({x})");
            assert!((sigmoid(x) as f64 - 1.0 / (1.0 + (-x as f64).exp())).abs() < 2e-7, "sigmoid({x})");
        }
        assert_eq!(exp(-100.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
        // erf against its Taylor series around 0 and its limit.
        for i in 0..40 {
            let x = i as f64 * 0.05;
            let (mut term, mut sum) = (x, x);
            for n in 1..80 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            let want = sum * 2.0 / std::f64::consts::PI.sqrt();
            assert!((erf(x as f32) as f64 - want).abs() < 3e-7, "erf({x})");
            assert!((erf(-x as f32) as f64 + want).abs() < 3e-7);
        }
    }

    #[test]
    fn small_terms_count() {
        // One large term and a vocabulary of small ones, each far below its rounding.
        let sum = sum_by(49_152, |i| if i == 0 { 1.0 } else { 1e-8 });
        assert!((sum as f64 - (1.0 + 49_151e-8)).abs() < 1e-5, "{sum}");
    }

    #[test]
    fn sums_and_maxima_cover_the_tail() {
        for n in [0, 1, 31, 32, 33, 100, 512, 513, 1100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want = a.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
            assert!((vectorise!(dot(&a, &a)) as f64 - want).abs() <= 1e-6 * want);
            assert_eq!(max(&a), if n == 0 { f32::NEG_INFINITY } else { (n - 1) as f32 });
            let thirds: Vec<f32> = a.iter().map(|x| x / 3.0).collect();
            let several = sums_of(&thirds, |x| [*x, x.map(|x| x * x)]);
            let each = [sum_by(n, |i| thirds[i]), sum_by(n, |i| thirds[i] * thirds[i])];
            assert_eq!(several, each, "to the bit, {n} terms");
        }
    }
}
