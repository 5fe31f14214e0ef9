//! Matrix product through the `gemm` crate, behind a safe interface.

use gemm_common::Parallelism;

/// A matrix inside a slice: element `(r, c)` is `data[r * row + c * col]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix whose rows are `row` elements apart.
    pub fn new(data: &'a [f32], row: usize) -> Self {
        Mat { data, row, col: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Mat { row: self.col, col: self.row, ..self }
    }
}

/// How many threads a product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone: for products inside a parallel loop.
    One,
    /// All of rayon's current pool.
    All,
}

/// Below this many multiplications threads cost more than they bring.
const PARALLEL_FROM: usize = 1 << 20;

/// `c = alpha a b` or, with `accumulate`, `c += alpha a b`; `a` is `[m, k]`, `b` is `[k, n]`, `c` is `[m, n]`
/// row-major with rows `c_row` apart.
///
/// # Panics
/// If a slice is too short for its matrix.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    c: &mut [f32],
    c_row: usize,
    accumulate: bool,
    alpha: f32,
    a: Mat,
    b: Mat,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    let end = |rows: usize, cols: usize, row: usize, col: usize| (rows - 1) * row + (cols - 1) * col + 1;
    assert!(end(m, n, c_row, 1) <= c.len(), "gemm: c too short");
    assert!(n <= c_row || m == 1, "gemm: rows of c overlap");
    if k > 0 {
        assert!(end(m, k, a.row, a.col) <= a.data.len(), "gemm: a too short");
        assert!(end(k, n, b.row, b.col) <= b.data.len(), "gemm: b too short");
    }
    let parallelism = match threads {
        Threads::All if m * n * k >= PARALLEL_FROM => Parallelism::Rayon(rayon::current_num_threads()),
        _ => Parallelism::None,
    };
    // SAFETY: the asserts above bound every address the product touches; `c` is borrowed mutably, so it
    // overlaps neither `a` nor `b`, and its rows do not overlap each other.
    unsafe {
        (gemm_f32::gemm::f32::get_gemm_fn())(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_row as isize,
            accumulate,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    fn reference(m: usize, n: usize, k: usize, a: Mat, b: Mat) -> Vec<f32> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k)
                    .map(|l| a.data[i * a.row + l * a.col] as f64 * b.data[l * b.row + j * b.col] as f64)
                    .sum::<f64>() as f32;
            }
        }
        c
    }

    #[test]
    fn product_equals_the_three_loops_in_every_layout() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (33, 17, 65), (128, 130, 100), (1, 64, 300), (64, 1, 300)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            for (at, bt) in [(false, false), (true, false), (false, true), (true, true)] {
                let am = if at { Mat::new(&a, m).t() } else { Mat::new(&a, k) };
                let bm = if bt { Mat::new(&b, k).t() } else { Mat::new(&b, n) };
                let mut c = vec![1.0; m * n];
                gemm((m, n, k), &mut c, n, true, 0.5, am, bm, Threads::All);
                let want: Vec<f32> = reference(m, n, k, am, bm).iter().map(|x| 1.0 + 0.5 * x).collect();
                // Rounding of a k-term f32 sum of terms below 1.
                close(&c, &want, 1e-6 * (k as f32).max(4.0), "gemm");
            }
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let (m, n, k) = (200, 300, 500);
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let run = |threads: usize| {
            let mut c = vec![0.0; m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                gemm((m, n, k), &mut c, n, false, 1.0, Mat::new(&a, k), Mat::new(&b, n), Threads::All)
            });
            c
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(5));
    }

    #[test]
    #[should_panic(expected = "a too short")]
    fn short_input_is_refused() {
        gemm(
            (2, 2, 2),
            &mut [0.0; 4],
            2,
            false,
            1.0,
            Mat::new(&[0.0; 3], 2),
            Mat::new(&[0.0; 4], 2),
            Threads::One,
        );
    }
}
