//! Row-wise work shared among threads in pieces of a fixed size.

use rayon::prelude::*;

/// Rows per piece. A constant, so that partial sums do not depend on the number of threads.
pub const PIECE: usize = 32;

/// Calls `each(first_row, rows)` for pieces of `out` (`[T, width]`), in parallel.
pub fn for_pieces(out: &mut [f32], width: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    out.par_chunks_mut(PIECE * width)
        .enumerate()
        .with_max_len(1)
        .for_each(|(p, piece)| each(p * PIECE, piece));
}

/// Like [`for_pieces`], and every piece also returns `sums` numbers; their totals over all pieces, added in
/// the order of rows, are added to `total`.
pub fn for_pieces_summing(
    out: &mut [f32],
    width: usize,
    total: &mut [f32],
    each: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let sums = total.len();
    let parts: Vec<Vec<f32>> = out
        .par_chunks_mut(PIECE * width)
        .enumerate()
        .map(|(p, piece)| {
            let mut part = vec![0.0; sums];
            each(p * PIECE, piece, &mut part);
            part
        })
        .collect();
    for part in parts {
        for (t, p) in total.iter_mut().zip(part) {
            *t += p;
        }
    }
}
