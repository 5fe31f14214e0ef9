//! Dropout (Srivastava et al., 2014): elements are 0 with probability `p`, the others multiplied by `1 / (1 - p)`.
//!
//! Whether an element is dropped is a function of its row's key, of the module and of its channel, and of nothing else: passes find the
//! same mask without keeping it, and a text has the same whatever it is computed together with.

use crate::buffer::Buffer;
use crate::rows::for_pieces;
use crate::vectorise;

/// The mask of one module's input.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// Probability that an element is dropped, in [0, 1).
    pub p: f32,
    /// A key for each row, `[T]`.
    pub rows: &'a [u32],
    /// What sets this module's masks apart from others'.
    pub module: u32,
}

/// Spreads every bit over all (Wellons' lowbias32).
#[inline(always)]
pub fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

impl Dropout<'_> {
    /// Calls `each(out, x, factor)` for every element of both (`[T, width]`): the factor is 0 or `1 / (1 - p)`.
    fn for_each(&self, out: &mut [f32], x: &[f32], width: usize, each: impl Fn(&mut f32, f32, f32) + Sync) {
        let threshold = (self.p as f64 * 2f64.powi(32)) as u32;
        let kept = 1.0 / (1.0 - self.p);
        let module = mix(self.module.wrapping_add(0x9e37_79b9));
        for_pieces(out, width, |first, out| {
            vectorise!({
                for (r, out) in out.chunks_exact_mut(width).enumerate() {
                    let key = mix(self.rows[first + r] ^ module);
                    let x = &x[(first + r) * width..][..width];
                    for i in 0..width {
                        let h = mix(key.wrapping_add((i as u32).wrapping_mul(0x9e37_79b9)));
                        each(&mut out[i], x[i], if h < threshold { 0.0 } else { kept });
                    }
                }
            });
        });
    }

    /// `x` (`[T, width]`) after dropout. The map is linear: its tangent is that of `t_x`, its transpose itself.
    pub fn apply(&self, x: &[f32], width: usize) -> Buffer {
        let mut out = Buffer::new(x.len(), width);
        self.for_each(&mut out, x, width, |out, x, factor| *out = x * factor);
        out
    }

    /// Adds `x` after dropout to `to`.
    pub fn add(&self, to: &mut [f32], x: &[f32], width: usize) {
        self.for_each(to, x, width, |to, x, factor| *to += x * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_dropped_and_the_mean_stays() {
        let rows: Vec<u32> = (0..200).collect();
        let x = vec![1.0; 200 * 577];
        for p in [0.05, 0.5, 0.9] {
            let y = Dropout { p, rows: &rows, module: 3 }.apply(&x, 577);
            let n = y.len() as f64;
            let dropped = y.iter().filter(|y| **y == 0.0).count() as f64;
            let p = f64::from(p);
            // Four standard deviations of a binomial share.
            assert!((dropped / n - p).abs() < 4.0 * (p * (1.0 - p) / n).sqrt(), "{p}: {}", dropped / n);
            assert!(y.iter().all(|y| *y == 0.0 || (*y - 1.0 / (1.0 - p as f32)).abs() < 1e-6));
            // Neighbours in a row and in a column are dropped together as chance has it.
            for step in [1, 577] {
                let both = y.iter().zip(&y[step..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64;
                let q = p * p;
                assert!((both / n - q).abs() < 5.0 * (q * (1.0 - q) / n).sqrt() + 577.0 / n, "{p}, {step}");
            }
        }
        let none = Dropout { p: 0.0, rows: &rows, module: 3 };
        assert!(none.apply(&x, 577).iter().all(|y| *y == 1.0));
    }

    #[test]
    fn the_mask_is_the_row_s_and_the_module_s() {
        let x = vec![1.0; 3 * 40];
        let of = |rows: &[u32], module| Dropout { p: 0.5, rows, module }.apply(&x[..rows.len() * 40], 40);
        let all = of(&[5, 6, 7], 1);
        assert!(of(&[6], 1)[..] == all[40..80]);
        assert!(of(&[6], 2)[..] != all[40..80] && all[..40] != all[40..80]);
        let mut sum = vec![1.0; 40];
        Dropout { p: 0.5, rows: &[6], module: 1 }.add(&mut sum, &x[..40], 40);
        assert!(sum.iter().zip(&all[40..80]).all(|(sum, y)| *sum == 1.0 + y));
    }
}
