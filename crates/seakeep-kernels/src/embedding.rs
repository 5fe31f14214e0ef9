//! Gathering and scattering of rows: the embedding lookup, learned positions, and the choice of the
//! predicting rows. Linear in the table, so the tangent of either is the same function.

use crate::gemm::Elements;

/// Writes `out[n] = table[index[n]]`, from whatever form the table is stored in; rows of `width`.
///
/// # Panics
/// If an index lies outside the table.
pub fn gather<'a>(out: &mut [f32], table: impl Into<Elements<'a>>, index: &[u32], width: usize) {
    let table = table.into();
    for (row, &i) in out.chunks_exact_mut(width).zip(index) {
        table.read(i as usize * width, row);
    }
}

/// Adds `d_table[index[n]] += d_out[n]`, in the order of `n`: the backward of [`gather`].
pub fn scatter_add(d_table: &mut [f32], d_out: &[f32], index: &[u32], width: usize) {
    for (row, &i) in d_out.chunks_exact(width).zip(index) {
        let to = &mut d_table[i as usize * width..(i as usize + 1) * width];
        to.iter_mut().zip(row).for_each(|(t, r)| *t += r);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_is_the_transpose_of_gather() {
        let table = &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0][..];
        let index = [2, 0, 2];
        let mut out = [0.0; 6];
        gather(&mut out, table, &index, 2);
        assert_eq!(out, [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        let mut d_table = [0.5; 6];
        scatter_add(&mut d_table, &[1.0, 2.0, 10.0, 20.0, 100.0, 200.0], &index, 2);
        assert_eq!(d_table, [10.5, 20.5, 0.5, 0.5, 101.5, 202.5]);
    }
}
