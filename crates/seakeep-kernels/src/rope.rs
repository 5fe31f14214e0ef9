//! Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split form of Hugging Face: channel
//! `i` turns together with channel `i + R/2` for the first `R` channels of a head, the rest pass through.
//!
//! The operation is linear in `x` and orthogonal: its tangent is itself, its backward is the turn the
//! other way ([`Turn::Back`]), and so is the tangent of its backward.

use std::sync::{Arc, PoisonError, RwLock};

use crate::rows::for_pieces;
use crate::vectorise;

/// Cosines and sines of the angles of every position. They are made for as many as texts have had so far: a model made for a million
/// positions would have hundreds of megabytes of them.
pub struct Table {
    inverse_frequencies: Vec<f32>,
    positions: usize,
    made: RwLock<Arc<Angles>>,
}

/// Cosines and sines, `[P, R/2]` each.
#[derive(Default)]
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Which way to turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The operation (and its tangent).
    Forth,
    /// Its inverse: backward (and the tangent of backward).
    Back,
}

impl Table {
    /// The table for positions `0..positions`. Angles are rounded to f32 before the cosine is taken, as
    /// PyTorch does, so that long positions agree with it.
    pub fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let inverse_frequencies = inverse_frequencies.to_vec();
        Table { inverse_frequencies, positions, made: RwLock::default() }
    }

    /// Positions the table covers.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The angles of these positions at least.
    fn up_to(&self, positions: usize) -> Arc<Angles> {
        assert!(positions <= self.positions, "rope: a position outside the table");
        let wanted = positions * self.inverse_frequencies.len();
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner).clone();
        if made.cos.len() >= wanted {
            return made;
        }
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        if made.cos.len() < wanted {
            // A power of two: batches grow, and each growth makes all anew.
            let all = 0..positions.next_power_of_two().min(self.positions);
            let angles =
                all.flat_map(|p| self.inverse_frequencies.iter().map(move |f| (p as f32 * f) as f64));
            let (cos, sin) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
            *made = Arc::new(Angles { cos, sin });
        }
        made.clone()
    }
}

/// Turns `x` (`[T, H, D]`, `heads` heads) in place by each row's position.
///
/// # Panics
/// If a position lies outside the table.
pub fn rotate(x: &mut [f32], positions: &[u32], table: &Table, heads: usize, head_dim: usize, turn: Turn) {
    let half = table.inverse_frequencies.len();
    let angles = table.up_to(positions.iter().max().map_or(0, |p| *p as usize + 1));
    let width = heads * head_dim;
    for_pieces(x, width, |first, piece| {
        vectorise!({
            for (row, &position) in piece.chunks_exact_mut(width).zip(&positions[first..]) {
                let at = position as usize * half..(position as usize + 1) * half;
                let (cos, sin) = (&angles.cos[at.clone()], &angles.sin[at]);
                for head in row.chunks_exact_mut(head_dim) {
                    let (a, b) = head[..2 * half].split_at_mut(half);
                    for i in 0..half {
                        let s = if turn == Turn::Forth { sin[i] } else { -sin[i] };
                        (a[i], b[i]) = (a[i] * cos[i] - b[i] * s, b[i] * cos[i] + a[i] * s);
                    }
                }
            }
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, random};

    #[test]
    fn turns_pairs_of_channels_and_back() {
        let (heads, dim) = (2, 6); // R = 4: two channels a head pass through
        let table = Table::new(&[1.0, 0.1], 50);
        assert_eq!(table.positions(), 50);
        let x = random(3 * heads * dim, 1);
        let positions = [0, 7, 49];
        let mut y = x.clone();
        rotate(&mut y, &positions, &table, heads, dim, Turn::Forth);
        for (t, &position) in positions.iter().enumerate() {
            for h in 0..heads {
                let at = (t * heads + h) * dim;
                for i in 0..2 {
                    let angle = position as f64 * [1.0, 0.1f32 as f64][i];
                    let (a, b) = (x[at + i] as f64, x[at + i + 2] as f64);
                    let want = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
                    close(&[y[at + i], y[at + i + 2]], &want.map(|v| v as f32), 2e-6, "rope");
                }
                assert_eq!(y[at + 4..at + 6], x[at + 4..at + 6]);
            }
        }
        // Backward is the transpose: for an orthogonal map, the inverse.
        rotate(&mut y, &positions, &table, heads, dim, Turn::Back);
        close(&y, &x, 1e-6, "there and back");
    }
}
