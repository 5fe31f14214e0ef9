//! The largest of a row's products with all rows of a matrix, without computing them all: greedy decoding's question to the vocabulary.
//!
//! A product of bf16 pairs, in half the time of one in f32, says of every output where the f32 result lies: rounding to bf16 changes a factor by at
//! most `u = 2^-8` of itself, so `|approximation - f32 result| <= e |x| |w|` with `e = 2 u + u^2` and what sums of `I` terms in f32 round off,
//! by Cauchy-Schwarz. An output whose upper bound is below the lower bound of another is not the largest. What is left, some dozens, is computed
//! in f32 in the order of [`Panels`](crate::panels): the answer is that of the whole product, to the bit and for ties too.

use std::ops::Range;

use rayon::prelude::*;

use super::Mat;
use super::isa::{Isa, Side, Tile};
use super::pack::{Packed, Source, Words};
use crate::simd::{dot, max};
use crate::vectorise;

/// Panels of outputs of one parallel piece.
const PIECE: usize = 16;
/// Columns of a panel, at most.
const WIDTH: usize = 32;
/// Outputs that are computed in f32 at a time.
const TOGETHER: usize = 8;

/// A matrix `w`, `[outputs, inputs]`, rounded to bf16 and packed, and the lengths of its rows.
pub struct Screen<'a> {
    w: &'a [f32],
    inputs: usize,
    /// `[panels][words][NR]`
    panels: Vec<u32>,
    outputs: usize,
    /// No less than `|w|`, `[outputs]`, and 0 to the end of the last panel.
    lengths: Vec<f32>,
}

/// An output that may be the largest of a row, and the most that it can be.
struct Candidate {
    row: usize,
    output: u32,
    most: f32,
}

impl<'a> Screen<'a> {
    /// `None` where the processor does not multiply in bf16: nothing would be gained.
    pub fn new(w: &'a [f32], inputs: usize) -> Option<Self> {
        let isa = Isa::best();
        if !isa.pairs || w.is_empty() {
            return None;
        }
        let outputs = w.len() / inputs;
        let mut panels = vec![0; outputs.next_multiple_of(isa.nr) * Words::Pairs.of_elements(inputs)];
        pairs(&mut panels, (isa.nr, isa.pack_b), w, inputs);
        let mut lengths: Vec<f32> = w.par_chunks_exact(inputs).map(length).collect();
        lengths.resize(outputs.next_multiple_of(isa.nr), 0.0);
        Some(Screen { w, inputs, panels, outputs, lengths })
    }

    /// For each row of `x`, `[rows, inputs]`, the first of the largest outputs, those of `forbidden` left out; `None` where that cannot be said: if
    /// anything is not finite or nothing is allowed.
    pub fn largest(&self, x: &[f32], forbidden: &[&[u32]]) -> Option<Vec<u32>> {
        let (isa, inputs) = (Isa::best(), self.inputs);
        let rows = x.len() / inputs;
        assert!(x.len() == rows * inputs && forbidden.len() == rows, "whole rows");
        let words = Words::Pairs.of_elements(inputs);
        let mut a = vec![0; rows.next_multiple_of(isa.mr) * words];
        pairs(&mut a, (isa.mr, isa.pack_a), x, inputs);
        let u = 2f32.powi(-8);
        let e = 2.0 * u + u * u + (inputs + 2) as f32 * 2f32.powi(-22);
        // (What is too small for bf16's exponents is 0 there.)
        let errors: Vec<f32> = x.chunks_exact(inputs).map(|x| e * length(x) + f32::MIN_POSITIVE).collect();
        let piece =
            |(i, panels): (usize, &[u32])| self.piece(i * PIECE, panels, (&a, words), &errors, forbidden);
        let pieces = self.panels.par_chunks(PIECE * words * isa.nr).enumerate();
        let found: Vec<(Vec<f32>, Vec<Candidate>)> = pieces.map(piece).collect::<Option<_>>()?;
        let least = |row: usize| found.iter().fold(f32::NEG_INFINITY, |top, (least, _)| top.max(least[row]));
        let least: Vec<f32> = (0..rows).map(least).collect();
        let mut outputs = vec![Vec::new(); rows];
        for candidate in found.iter().flat_map(|(_, candidates)| candidates) {
            if candidate.most >= least[candidate.row] {
                outputs[candidate.row].push(candidate.output);
            }
        }
        let rows = outputs.par_iter().zip(x.par_chunks_exact(inputs));
        rows.map(|(outputs, x)| self.first_of_largest(outputs, x)).collect()
    }

    /// Of the outputs of some panels from the `first` on: the largest lower bound of each row, and what may be larger.
    fn piece(
        &self,
        first: usize,
        panels: &[u32],
        (a, words): (&[u32], usize),
        errors: &[f32],
        forbidden: &[&[u32]],
    ) -> Option<(Vec<f32>, Vec<Candidate>)> {
        let isa = Isa::best();
        let (mut least, mut candidates) = (vec![f32::NEG_INFINITY; errors.len()], Vec::new());
        for (p, panel) in panels.chunks_exact(words * isa.nr).enumerate() {
            let start = (first + p) * isa.nr;
            let outputs = start..self.outputs.min(start + isa.nr);
            for (i, a) in a.chunks_exact(words * isa.mr).enumerate() {
                let rows = i * isa.mr..errors.len().min((i + 1) * isa.mr);
                let mut c = [[0.0; WIDTH]; 16];
                let to = c.as_mut_ptr().cast();
                let (cols, side) = (outputs.len(), Side { at: a.as_ptr(), outer: 1, inner: isa.mr });
                let tile =
                    Tile { c: to, c_row: WIDTH, c_col: 1, rows: rows.len(), cols, add: false, alpha: 1.0 };
                // SAFETY: `c` has 16 rows of 32, no less than a tile of the sets that multiply pairs; both panels have `words` words;
                // `Isa::best` found the instructions.
                unsafe { (isa.kernel_bf16)(words, side, panel.as_ptr(), tile) };
                vectorise!({
                    for (c, row) in c.iter_mut().zip(rows) {
                        let of_row = (errors[row], forbidden[row]);
                        self.bounds(c, row, &outputs, of_row, &mut least[row], &mut candidates)?;
                    }
                    Some(())
                })?;
            }
        }
        Some((least, candidates))
    }

    /// Takes a row's approximations for some outputs in.
    #[inline(always)]
    fn bounds(
        &self,
        c: &mut [f32; WIDTH],
        row: usize,
        outputs: &Range<usize>,
        (error, forbidden): (f32, &[u32]),
        least: &mut f32,
        candidates: &mut Vec<Candidate>,
    ) -> Option<()> {
        // (Counted rather than looked for: that makes vectors.)
        if c.iter().map(|c| u32::from(!c.is_finite())).sum::<u32>() > 0 {
            return None;
        }
        c[outputs.len()..].fill(f32::NEG_INFINITY);
        for &output in forbidden {
            if outputs.contains(&(output as usize)) {
                c[output as usize - outputs.start] = f32::NEG_INFINITY;
            }
        }
        let lengths: &[f32; WIDTH] =
            self.lengths[outputs.start..].first_chunk().expect("padded to whole panels");
        let (mut low, mut high) = ([0.0; WIDTH], [0.0; WIDTH]);
        for i in 0..WIDTH {
            (low[i], high[i]) = (c[i] - error * lengths[i], c[i] + error * lengths[i]);
        }
        *least = least.max(max(&low));
        if max(&high) >= *least {
            for (output, &most) in (outputs.start as u32..).zip(&high) {
                if most >= *least && most > f32::NEG_INFINITY {
                    candidates.push(Candidate { row, output, most });
                }
            }
        }
        Some(())
    }

    /// The first of the largest of these outputs, computed in f32.
    fn first_of_largest(&self, outputs: &[u32], x: &[f32]) -> Option<u32> {
        let mut best: Option<(f32, u32)> = None;
        for outputs in outputs.chunks(TOGETHER) {
            let row = |i: usize| {
                let output = outputs[i.min(outputs.len() - 1)] as usize;
                &self.w[output * self.inputs..][..self.inputs]
            };
            let w: [&[f32]; TOGETHER] = std::array::from_fn(row);
            let sums = vectorise!({
                let mut sums = [0.0f32; TOGETHER];
                for (i, x) in x.iter().enumerate() {
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = w[i].mul_add(*x, *sum);
                    }
                }
                sums
            });
            for (&sum, &output) in sums.iter().zip(outputs) {
                if best.is_none_or(|(most, _)| sum > most) {
                    best = Some((sum, output));
                }
            }
        }
        best.filter(|(most, _)| most.is_finite()).map(|(_, output)| output)
    }
}

/// Rows of `x` in panels of pairs.
fn pairs(to: &mut [u32], (width, pack): (usize, super::pack::Pack), x: &[f32], inputs: usize) {
    let rows = x.len() / inputs;
    let packed = Packed { width, outer: 0..rows, elements: 0..inputs, words: Words::Pairs, pack };
    packed.fill(to, &Source::rows(Mat::new(x, inputs).into(), rows, inputs), true);
}

/// No less than the Euclidean length.
fn length(x: &[f32]) -> f32 {
    let square = vectorise!(dot(x, x));
    // Of numbers so small the squares are lost.
    let length = match square < 1e-30 {
        true => x.iter().fold(0.0f32, |most, x| most.max(x.abs())) * (x.len() as f32).sqrt(),
        false => square.sqrt(),
    };
    length * (1.0 + 1e-4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panels::Panels;
    use crate::testing::random;

    fn whole(x: &[f32], w: &[f32], inputs: usize, forbidden: &[&[u32]]) -> Vec<u32> {
        let outputs = w.len() / inputs;
        let mut y = vec![0.0; x.len() / inputs * outputs];
        Panels::pack(x, inputs).product(w, None, outputs).unpack(&mut y, false);
        let largest = |(y, forbidden): (&mut [f32], &&[u32])| {
            forbidden.iter().for_each(|&f| y[f as usize] = f32::NEG_INFINITY);
            y.iter().position(|z| *z == y.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b))).unwrap() as u32
        };
        y.chunks_exact_mut(outputs).zip(forbidden).map(largest).collect()
    }

    #[test]
    fn the_largest_is_that_of_the_whole_product() {
        for (rows, inputs, outputs) in [(1, 3, 5), (15, 64, 1100), (37, 65, 700)] {
            let x = random(rows * inputs, 1);
            let mut w = random(outputs * inputs, 2);
            // Rows so close that bf16 cannot tell them apart, and equal ones.
            for o in outputs / 2..outputs {
                for i in 0..inputs {
                    let tiny = if o % 3 == 0 { 0.0 } else { 1e-6 * o as f32 };
                    w[o * inputs + i] = w[o % (outputs / 2) * inputs + i] + tiny;
                }
            }
            let Some(screen) = Screen::new(&w, inputs) else { return };
            let none: Vec<&[u32]> = vec![&[]; rows];
            let first = screen.largest(&x, &none).unwrap();
            assert_eq!(first, whole(&x, &w, inputs, &none));
            // Without the best of each row, and one that no row has.
            let without: Vec<[u32; 1]> = first.iter().map(|f| [*f]).collect();
            let without: Vec<&[u32]> = without.iter().map(|f| &f[..]).collect();
            assert_eq!(screen.largest(&x, &without).unwrap(), whole(&x, &w, inputs, &without));
        }
    }

    #[test]
    fn a_length_is_never_too_short() {
        for scale in [1.0f32, 1e-10, 1e-17, 1e-25, 1e-35] {
            let x: Vec<f32> = random(100, 5).iter().map(|x| x * scale).collect();
            let exact = x.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
            assert!(length(&x) as f64 >= exact, "{scale}: {} {exact}", length(&x));
        }
    }

    #[test]
    fn what_is_not_finite_is_not_decided() {
        let mut w = random(40 * 8, 3);
        let mut x = random(2 * 8, 4);
        w[100] = f32::NAN;
        assert!(Screen::new(&w, 8).is_none_or(|screen| screen.largest(&x, &[&[], &[]]).is_none()));
        w[100] = 0.5;
        let all: Vec<u32> = (0..40).collect();
        assert!(Screen::new(&w, 8).is_none_or(|screen| screen.largest(&x, &[&[], &all]).is_none()));
        x[9] = f32::INFINITY;
        assert!(Screen::new(&w, 8).is_none_or(|screen| screen.largest(&x, &[&[], &[]]).is_none()));
    }
}
