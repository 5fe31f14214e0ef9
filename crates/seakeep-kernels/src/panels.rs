//! Products `y = x w^T + b` whose rows do not depend on each other: a row gives the same bits alone and among
//! others, on any number of threads and with any of the instruction sets that have a fused multiply-add. Generation
//! computes with these, so that a text does not depend on the batch it is computed in.
//!
//! Legend: T rows, I inputs, O outputs, P rows of a panel.
//!
//! Rows lie in [`Panels`]: `[panel, I, P]`, so that a vector holds the same channel of many rows. A weight is read from
//! where it lies (`w` is `[O, I]`), once for all rows of a panel, broadcast, and multiplied with a vector of `x`. Every
//! sum runs over `I` in order, each in a lane of its own: that is what makes rows independent. Nothing of `w` is
//! copied or packed, which is most of the time of a product with few rows; one row is as fast as memory, many
//! are as fast as arithmetic.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::gemm::{Elements, pack_panel, unpack_panel};
use crate::simd::{Prefetch, prefetch};

/// Rows of the widest panel, with the widest vectors.
pub const PANEL: usize = 32;
/// Outputs of one parallel piece. A constant; no sum depends on it.
const PIECE: usize = 48;
/// Weights that few rows are worth sharing among threads for.
const PARALLEL_FROM: usize = 1 << 15;
/// Floats of a cache line.
const LINE: usize = 16;
/// Rows of the smallest panel: with so few, half-wide vectors do twice as many weights.
const FEW: usize = 8;

/// Rows of activations, cut into panels: `[panel, channels, P]`. Where the last panel has no rows, anything may stand.
#[derive(Debug)]
pub struct Panels {
    data: Buffer,
    rows: usize,
    channels: usize,
    width: usize,
}

/// Vectors of the processor, in f32: what panels are as wide as, or twice.
fn lanes(rows: usize) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    on_vectors(rows, Lanes)
}

/// Runs `op` on the widest vectors that `rows` rows fill.
fn on_vectors<Op: WithSimd>(rows: usize, op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if rows <= FEW
        && let Some(half) = pulp::x86::V3::try_new()
    {
        return Simd::vectorize(half, op);
    }
    let _ = rows;
    pulp::Arch::new().dispatch(op)
}

impl Panels {
    /// To be written.
    fn new(rows: usize, channels: usize) -> Self {
        let lanes = lanes(rows);
        let width = if rows <= lanes { lanes } else { 2 * lanes };
        let data = Buffer::new(rows.div_ceil(width) * channels * width, channels);
        Panels { data, rows, channels, width }
    }

    /// To be written, of the shape of another.
    pub fn like(other: &Panels) -> Self {
        Panels { data: Buffer::like(&other.data), ..*other }
    }

    /// From `x`, `[T, channels]`.
    pub fn pack(x: &[f32], channels: usize) -> Self {
        let rows = x.len() / channels;
        let mut panels = Panels::new(rows, channels);
        let width = panels.width;
        let pieces = panels.data.par_chunks_mut(channels * width).zip(x.par_chunks(channels * width));
        pieces.for_each(|(panel, x)| pack_panel(panel, x, (channels, width)));
        panels
    }

    /// Writes (or with `add` adds) the rows to `y`, `[T, channels]`.
    pub fn unpack(&self, y: &mut [f32], add: bool) {
        let (channels, width) = (self.channels, self.width);
        let pieces = y.par_chunks_mut(channels * width).zip(self.data.par_chunks(channels * width));
        pieces.for_each(|(y, panel)| unpack_panel(y, panel, (channels, width), add));
    }

    /// T.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Channels of a row.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// All elements, in the order of the panels: for operations element by element.
    pub fn elements(&self) -> &[f32] {
        &self.data
    }

    /// [`elements`](Self::elements), to be changed.
    pub fn elements_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Multiplies channels by `c` and adds `b`, `[channels]` both.
    pub fn scale_channels(&mut self, c: &[f32], b: Option<&[f32]>) {
        let width = self.width;
        for panel in self.data.chunks_exact_mut(self.channels * width) {
            for (i, rows) in panel.chunks_exact_mut(width).enumerate() {
                let b = b.map_or(0.0, |b| b[i]);
                rows.iter_mut().for_each(|y| *y = *y * c[i] + b);
            }
        }
    }

    /// `y = x w^T + b`: `w` is `[outputs, channels]`, `b` is `[outputs]`.
    ///
    /// # Panics
    /// If `w` or `b` has another size.
    pub fn product<'w>(&self, w: impl Into<Elements<'w>>, b: Option<&[f32]>, outputs: usize) -> Panels {
        let [y] = self.products([Factor { w: w.into(), b, outputs }]);
        y
    }

    /// Several products of the same rows, which threads share as one.
    ///
    /// # Panics
    /// As [`product`](Self::product).
    pub fn products<const N: usize>(&self, factors: [Factor; N]) -> [Panels; N] {
        let (inputs, width) = (self.channels, self.width);
        let mut all = factors.map(|factor| {
            assert_eq!(factor.w.len(), factor.outputs * inputs, "product: w");
            assert!(factor.b.is_none_or(|b| b.len() == factor.outputs), "product: b");
            Panels::new(self.rows, factor.outputs)
        });
        let mut pieces = Vec::new();
        for (factor, y) in factors.iter().zip(&mut all) {
            // By outputs, so that a weight is fetched from memory once for all panels.
            let starts = (0..factor.outputs).step_by(PIECE);
            let mut of_factor: Vec<_> = starts.map(|first| (factor, first, Vec::new())).collect();
            for panel in y.data.chunks_mut(factor.outputs * width) {
                of_factor
                    .iter_mut()
                    .zip(panel.chunks_mut(PIECE * width))
                    .for_each(|(piece, y)| piece.2.push(y));
            }
            pieces.extend(of_factor);
        }
        let work = |(factor, first, y): (&Factor, usize, Vec<&mut [f32]>)| {
            let piece = PIECE.min(factor.outputs - first);
            let mut decoded = Vec::new();
            // Other forms are decoded once for all rows.
            let w = match factor.w {
                Elements::F32(w) => &w[first * inputs..][..piece * inputs],
                stored => {
                    decoded.resize(piece * inputs, 0.0);
                    stored.read(first * inputs, &mut decoded);
                    &decoded
                }
            };
            on_vectors(self.rows, Piece { x: self, w, b: factor.b.map(|b| &b[first..]), y });
        };
        if factors.iter().map(|factor| factor.w.len()).sum::<usize>() < PARALLEL_FROM {
            pieces.into_iter().for_each(work);
        } else {
            pieces.into_par_iter().for_each(work);
        }
        all
    }
}

/// What rows are multiplied with.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// `[outputs, channels]`
    pub w: Elements<'a>,
    /// `[outputs]`, added.
    pub b: Option<&'a [f32]>,
    /// Channels of the result.
    pub outputs: usize,
}

/// `PIECE` outputs of every panel.
struct Piece<'a> {
    x: &'a Panels,
    /// `[outputs, I]`
    w: &'a [f32],
    b: Option<&'a [f32]>,
    /// Of each panel, `[outputs, P]`.
    y: Vec<&'a mut [f32]>,
}

impl WithSimd for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as the registers hold: 32 of them with AVX-512, 16 otherwise.
        match (self.x.width / S::F32_LANES, S::F32_LANES) {
            (1, _) => self.tiles::<S, 8, 1>(simd),
            (_, 16) => self.tiles::<S, 8, 2>(simd),
            _ => self.tiles::<S, 4, 2>(simd),
        }
    }
}

impl Piece<'_> {
    /// Tiles of `R` outputs by `V` vectors.
    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const V: usize>(self, simd: S) {
        let (inputs, width) = (self.x.channels, self.x.width);
        let outputs = self.y.first().map_or(0, |y| y.len() / width);
        let whole = outputs / R * R;
        let mut y = self.y;
        for o in (0..whole).step_by(R).chain(whole..outputs) {
            let (w, b) = (&self.w[o * inputs..], self.b.map(|b| &b[o..]));
            let panels = self.x.data.chunks_exact(inputs * width).zip(&mut y);
            for (x, y) in panels {
                let (x, y) = (S::as_simd_f32s(x).0, &mut S::as_mut_simd_f32s(y).0[o * V..]);
                if o < whole {
                    tile::<S, R, V>(simd, w, b, inputs, x, y);
                } else {
                    tile::<S, 1, V>(simd, w, b, inputs, x, y);
                }
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    w: &[f32],
    b: Option<&[f32]>,
    inputs: usize,
    x: &[S::f32s],
    y: &mut [S::f32s],
) {
    // The rows of the next tile lie behind this one's: a line of them for as many operations as its weights are good for.
    let next = w[(R * inputs).min(w.len())..].as_ptr();
    let w: [&[f32]; R] = std::array::from_fn(|r| &w[r * inputs..(r + 1) * inputs]);
    let mut sums: [[S::f32s; V]; R] = std::array::from_fn(|r| [simd.splat_f32s(b.map_or(0.0, |b| b[r])); V]);
    for (i, x) in (0..inputs).zip(x.chunks_exact(V)) {
        let x: &[S::f32s; V] = x.try_into().expect("V vectors");
        if (i * R).is_multiple_of(LINE) {
            prefetch(next.wrapping_add(i * R), Prefetch::Second);
        }
        for r in 0..R {
            let weight = simd.splat_f32s(w[r][i]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(weight, x[v], sums[r][v]);
            }
        }
    }
    y[..R * V].copy_from_slice(sums.as_flattened());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    fn product(x: &[f32], w: &[f32], b: Option<&[f32]>, inputs: usize, outputs: usize) -> Vec<f32> {
        let mut y = vec![0.0; x.len() / inputs * outputs];
        Panels::pack(x, inputs).product(w, b, outputs).unpack(&mut y, false);
        y
    }

    #[test]
    fn a_product_is_the_three_loops() {
        for (t, i, o) in [(1, 1, 1), (3, 5, 7), (8, 64, 50), (9, 33, 97), (40, 17, 49), (70, 130, 8)] {
            let (x, w, b) = (random(t * i, 1), random(o * i, 2), random(o, 3));
            let want = |b: Option<&[f32]>| -> Vec<f32> {
                let dot =
                    |n: usize| (0..i).map(|l| (x[n / o * i + l] * w[n % o * i + l]) as f64).sum::<f64>();
                (0..t * o).map(|n| b.map_or(0.0, |b| b[n % o]) + dot(n) as f32).collect()
            };
            close(&product(&x, &w, None, i, o), &want(None), 1e-6 * i as f32, "without bias");
            close(&product(&x, &w, Some(&b), i, o), &want(Some(&b)), 1e-6 * i as f32, "with bias");
        }
    }

    #[test]
    fn rows_go_in_and_out_and_can_be_added() {
        let x = random(37 * 45, 4);
        let panels = Panels::pack(&x, 45);
        let mut y = vec![1.0; x.len()];
        panels.unpack(&mut y, true);
        assert!(y.iter().zip(&x).all(|(y, x)| *y == 1.0 + x));
        let mut other = Panels::like(&panels);
        other.elements_mut().copy_from_slice(panels.elements());
        other.unpack(&mut y, false);
        assert_eq!(y, x);
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
        // Large enough for threads; every width of panel, and more than one.
        let (i, o) = (300, 200);
        let (x, w, b) = (random(80 * i, 5), random(o * i, 6), random(o, 7));
        let all = product(&x, &w, Some(&b), i, o);
        for rows in [1, 2, 8, 9, 16, 17, 33] {
            for first in [0, 40] {
                let got = product(&x[first * i..(first + rows) * i], &w, Some(&b), i, o);
                assert!(got == all[first * o..(first + rows) * o], "{rows} rows from {first}");
            }
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| product(&x, &w, Some(&b), i, o)) == all, "{threads} threads");
        }
    }
}
