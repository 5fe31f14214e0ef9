//! DoRA (Liu et al., arXiv 2402.09353): the rows of a map's weight with its low-rank path, `v = w + s b a`, keep their direction and
//! get a length of their own, the *magnitude* `m`: `y = c (x v^T)` for each output, `c = m / n`, `n` the length of `v`'s row.
//!
//! In every derivative `n` is held constant (the paper's section 4.3, and PEFT). With `z = x v^T`:
//!
//! ```text
//! backward    d_z = c d_y, on through map and path;   d_m += sum over rows of d_y z / n
//! tangent     t_y = c t_z
//! curvature   d_z as above, on through the path's;    d_m += sum over rows of d_y t_z / n
//! ```

use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::gemm::{Mat, Threads, gemm};
use crate::linear::Map;
use crate::lora::Lora;
use crate::rows::{for_pieces, for_pieces_summing};
use crate::simd::dot;

/// Outputs whose rows are written out at a time.
const ROWS: usize = 64;

/// `n`: the length of every row of `w + s b a`, `[O]`.
pub fn lengths(map: &Map, lora: &Lora) -> Vec<f32> {
    let (inputs, rank) = (lora.inputs, lora.rank);
    let mut lengths = vec![0.0; lora.outputs];
    lengths.par_chunks_mut(ROWS).enumerate().for_each(|(i, lengths)| {
        let rows = lengths.len();
        let mut v = Buffer::new(rows * inputs, inputs);
        map.w.read(i * ROWS * inputs, &mut v);
        let b = Mat::new(&lora.b[i * ROWS * rank..], rank);
        gemm(
            (rows, inputs, rank),
            &mut v,
            inputs,
            true,
            lora.scale,
            b,
            Mat::new(lora.a, inputs),
            Threads::One,
        );
        for (length, v) in lengths.iter_mut().zip(v.chunks_exact(inputs)) {
            *length = dot(v, v).sqrt();
        }
    });
    lengths
}

/// Multiplies every row of `y` (`[T, O]`) by `c` (`[O]`).
pub fn scale(y: &mut [f32], c: &[f32]) {
    for_pieces(y, c.len(), |_, y| {
        for y in y.chunks_exact_mut(c.len()) {
            y.iter_mut().zip(c).for_each(|(y, c)| *y *= c);
        }
    });
}

/// Adds `d_m += sum over rows of d_y z / n`; with `t_z` for `z` it is the curvature's. `z` is used up.
pub fn backward_magnitude(d_m: &mut [f32], d_y: &[f32], mut z: Buffer, n: &[f32]) {
    let outputs = n.len();
    for_pieces_summing(&mut z, outputs, d_m, |first, z, sums| {
        let d_y = &d_y[first * outputs..][..z.len()];
        for (z, d_y) in z.chunks_exact(outputs).zip(d_y.chunks_exact(outputs)) {
            for (o, sum) in sums.iter_mut().enumerate() {
                // A row of zeros has no direction, and its magnitude no gradient.
                *sum += if n[o] > 0.0 { d_y[o] * z[o] / n[o] } else { 0.0 };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn lengths_are_those_of_the_merged_rows() {
        let (i, o, r) = (9, 130, 2);
        let (w, a, b) = (random(o * i, 1), random(r * i, 2), random(o * r, 3));
        let lora = Lora { a: &a, b: &b, scale: 1.5, inputs: i, outputs: o, rank: r, dropout: None };
        let mut merged = w.clone();
        lora.merge(&mut merged);
        let want: Vec<f32> =
            merged.chunks_exact(i).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
        close(&lengths(&Map::f32(&w, i, o), &lora), &want, 1e-6, "lengths");
    }

    #[test]
    fn outputs_and_magnitudes_by_hand() {
        let mut y = vec![1.0, 2.0, 3.0, 4.0];
        scale(&mut y, &[2.0, 0.5]);
        assert_eq!(y, [2.0, 1.0, 6.0, 2.0]);
        let mut z = Buffer::new(4, 2);
        z.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let mut d_m = vec![1.0, 1.0];
        backward_magnitude(&mut d_m, &[1.0, 1.0, 2.0, -1.0], z, &[2.0, 4.0]);
        assert_eq!(d_m, [1.0 + 7.0 / 2.0, 1.0 - 2.0 / 4.0]);
    }
}
