//! What this machine can do at best: the ceilings that times are compared with.
//!
//! Measured, not looked up, and by the products that everything else is made of: a share of a ceiling then says how much
//! of a time is something else than products.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::gemm::{Mat, Precision, Product, Threads, multiply};
use crate::vectorise;

/// `(m, n, k)` of the products tried: the layers of a small model, forward and by weight, and a large square.
const PRODUCTS: [(usize, usize, usize); 4] =
    [(1024, 1536, 576), (1024, 576, 1536), (1536, 576, 1024), (2048, 2048, 2048)];

/// Elements of each buffer that bandwidth is measured on, 128 MiB: more than any cache holds.
const STREAM: usize = 1 << 25;

/// Elements that one thread takes at a time.
const PIECE: usize = 1 << 16;

/// The least time of a run, in seconds: runs until `budget` is over, at least three times after one to warm up.
fn fastest(budget: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let (begun, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || begun.elapsed() < budget {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// A sum as fast as memory, in more lanes than additions take to finish.
#[inline(always)]
fn sum(piece: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 128];
    for chunk in piece.chunks_exact(lanes.len()) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter().sum()
}

/// The product in floating-point operations per second (a multiply-add is two): the best of some shapes, on all threads
/// of rayon's current pool. Takes about `budget`.
pub fn product(precision: Precision, budget: Duration) -> f64 {
    let rate = |(m, n, k): (usize, usize, usize)| {
        let (a, b, mut c) = (vec![0.5; m * k], vec![0.25; n * k], vec![0.0; m * n]);
        let seconds = fastest(budget / PRODUCTS.len() as u32, || {
            let (a, b) = (Mat::new(&a, k), Mat::new(&b, k).t());
            let how = Product { c_row: n, accumulate: false, alpha: 1.0, threads: Threads::All, precision };
            multiply((m, n, k), black_box(&mut c), how, a, b);
        });
        (2 * m * n * k) as f64 / seconds
    };
    PRODUCTS.into_iter().map(rate).fold(0.0, f64::max)
}

/// Memory bandwidth in bytes per second, on all threads: of reading (`sum x`), and of `x = y + s z`, where two buffers are read
/// and one is written. Takes about `budget` and 384 MiB.
pub fn bandwidth(budget: Duration) -> (f64, f64) {
    let (mut x, y, z) = (vec![0.0f32; STREAM], vec![1.0f32; STREAM], vec![2.0f32; STREAM]);
    let bytes = (STREAM * size_of::<f32>()) as f64;
    let reading = fastest(budget / 2, || {
        black_box(y.par_chunks(PIECE).map(|piece| vectorise!(sum(piece))).sum::<f32>());
    });
    let updating = fastest(budget / 2, || {
        let pieces = x.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).zip(z.par_chunks(PIECE));
        pieces.for_each(|((x, y), z)| {
            vectorise!(x.iter_mut().zip(y).zip(z).for_each(|((x, y), z)| *x = y + 3.0 * z))
        });
        black_box(&mut x);
    });
    (bytes / reading, 3.0 * bytes / updating)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_time_is_that_of_the_fastest_run() {
        let mut runs = 0;
        let seconds = fastest(Duration::ZERO, || {
            runs += 1;
            std::thread::sleep(Duration::from_millis(if runs == 3 { 1 } else { 200 }));
        });
        assert_eq!(runs, 4);
        assert!((0.001..0.2).contains(&seconds), "{seconds}");
    }

    #[test]
    fn rates_are_of_a_machine_that_exists() {
        // Any core that runs this does more than 10 MFLOP/s, and none 100 TFLOP/s.
        let rate = product(Precision::F32, Duration::ZERO);
        assert!((1e7..1e14).contains(&rate), "{rate}");
    }
}
