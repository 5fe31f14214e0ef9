//! A right operand that is packed once for several small products.

use std::ops::Range;

use super::isa::{Isa, Side, Tile};
use super::pack::{Packed, Source, Words};
use super::{Mat, tiles};
use crate::buffer::Buffer;

/// `b`, `[k, n]`, packed in f32: for products by one thread, of parts of it too. Every element is one sum in order, so that neither parts
/// nor the order of products change its bits.
pub(crate) struct Right {
    /// `[panels of NR columns][k][NR]`, the columns beyond `n` 0.
    panels: Buffer,
    k: usize,
    n: usize,
}

impl Right {
    /// # Panics
    /// If `b` is too short.
    pub fn new(b: Mat, (k, n): (usize, usize)) -> Self {
        let isa = Isa::best();
        let mut panels = Buffer::scratch(n.next_multiple_of(isa.nr) * k);
        if n > 0 && k > 0 {
            let (width, outer, elements, pack) = (isa.nr, 0..n, 0..k, isa.pack_b);
            let packed = Packed { width, outer, elements, words: Words::F32, pack };
            packed.fill(bytemuck::cast_slice_mut(&mut panels), &Source::rows(b.t().into(), n, k), false);
        }
        Right { panels, k, n }
    }

    /// Rows of the left operand that are multiplied at a time.
    pub fn rows() -> usize {
        Isa::best().mr
    }

    /// `c = alpha a b'` or, with `add`, `c += alpha a b'`, where `b'` is rows `k` and the first `n` columns of `b`; `a` is `[m, k.len()]`,
    /// rows of `c` are `c_row` apart.
    ///
    /// # Panics
    /// If a slice is too short, or `b` has less.
    pub fn multiply(
        &self,
        (m, n, k): (usize, usize, Range<usize>),
        c: &mut [f32],
        c_row: usize,
        (add, alpha): (bool, f32),
        a: Mat,
    ) {
        let Isa { mr, nr, kernel_f32, .. } = *Isa::best();
        assert!(k.start <= k.end && k.end <= self.k && n <= self.n, "gemm: b has less");
        if m == 0 || n == 0 || k.is_empty() {
            assert!(add || m == 0 || n == 0, "gemm: a product of nothing");
            return;
        }
        assert!(tiles::end(m, k.len(), a.row, a.col) <= a.data.len(), "gemm: a is too short");
        assert!(n <= c_row && tiles::end(m, n, c_row, 1) <= c.len(), "gemm: c is too short");
        for row in (0..m).step_by(mr) {
            let side = Side { at: a.data[row * a.row..].as_ptr().cast(), outer: a.row, inner: a.col };
            for col in (0..n).step_by(nr) {
                let b = &self.panels[col * self.k + k.start * nr..][..k.len() * nr];
                let (rows, cols) = (mr.min(m - row), nr.min(n - col));
                // SAFETY: `rows` and `cols` from (row, col) on lie in `c`, and these rows in `a`, as checked above; the panel holds
                // `k.len()` words; `Isa::best` found the instructions.
                unsafe {
                    let c = c.as_mut_ptr().add(row * c_row + col);
                    kernel_f32(
                        k.len(),
                        side,
                        b.as_ptr().cast(),
                        Tile { c, c_row, c_col: 1, rows, cols, add, alpha },
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn parts_equal_the_products_written_out() {
        let (k, n, m) = (37, 70, 31);
        let (a, b, before) = (random(m * k, 1), random(k * n, 2), random(m * 80, 3));
        let transposed: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
        let rights = [Right::new(Mat::new(&b, n), (k, n)), Right::new(Mat::new(&transposed, k).t(), (k, n))];
        for (cols, span, add) in [(70, 0..37, false), (33, 5..20, true), (1, 36..37, false), (70, 4..4, true)]
        {
            let mut want = before.clone();
            for r in 0..m {
                for c in 0..cols {
                    let sum: f64 = span.clone().map(|i| a[r * k + i] as f64 * b[i * n + c] as f64).sum();
                    want[r * 80 + c] = (0.5 * sum) as f32 + if add { want[r * 80 + c] } else { 0.0 };
                }
            }
            let results = rights.each_ref().map(|right| {
                let mut c = before.clone();
                let a = Mat::new(&a[span.start..], k);
                right.multiply((m, cols, span.clone()), &mut c, 80, (add, 0.5), a);
                c
            });
            close(&results[0], &want, 1e-6, "product");
            assert!(results[0] == results[1], "the same bits however `b` lay");
        }
    }
}
