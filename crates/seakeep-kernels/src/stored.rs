//! Weights that own their numbers, in the forms that products take them in.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;

use crate::blocks::Blocks;
use crate::gemm::Elements;

/// One weight.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// f32.
    F32(Vec<f32>),
    /// bf16.
    Bf16(Vec<bf16>),
    /// Quantised; never trained.
    Blocks(Blocks),
}

impl Stored {
    /// To be multiplied with.
    pub fn elements(&self) -> Elements<'_> {
        match self {
            Stored::F32(data) => Elements::F32(data),
            Stored::Bf16(data) => Elements::Bf16(data),
            Stored::Blocks(blocks) => Elements::Blocks(blocks),
        }
    }

    /// The values in f32.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Stored::F32(data) => Cow::Borrowed(data),
            other => {
                let elements = other.elements();
                let mut values = vec![0.0; elements.len()];
                let pieces = values.par_chunks_mut(PIECE).enumerate();
                pieces.for_each(|(i, piece)| elements.read(i * PIECE, piece));
                Cow::Owned(values)
            }
        }
    }

    /// The first value that is infinite or not a number, and its place.
    pub fn not_finite(&self) -> Option<(usize, f32)> {
        let elements = self.elements();
        let in_piece = |first: usize| {
            let mut piece = vec![0.0; PIECE.min(elements.len() - first)];
            elements.read(first, &mut piece);
            piece.iter().position(|x| !x.is_finite()).map(|at| (first + at, piece[at]))
        };
        (0..elements.len().div_ceil(PIECE)).into_par_iter().find_map_first(|i| in_piece(i * PIECE))
    }

    /// The bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Stored::F32(data) => 4 * data.len(),
            Stored::Bf16(data) => 2 * data.len(),
            Stored::Blocks(blocks) => blocks.bytes().len(),
        }
    }
}

/// Elements that are decoded at a time: a multiple of every block.
const PIECE: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::GgmlType;
    use crate::testing::random;

    #[test]
    fn values_come_back_as_far_as_a_form_has_them() {
        let x = random(PIECE + 640, 3);
        let apart = |stored: Stored| {
            assert_eq!(stored.not_finite(), None);
            let back = stored.to_f32();
            x.iter().zip(back.iter()).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max)
        };
        assert_eq!(apart(Stored::F32(x.clone())), 0.0);
        // Half of the last of 8 digits; half a step of 127 to the largest, 1, or a step of 8; a scale in f16.
        assert!(apart(Stored::Bf16(x.iter().map(|x| bf16::from_f32(*x)).collect())) <= 1.0 / 256.0);
        assert!(apart(Stored::Blocks(Blocks::quantise(GgmlType::Q8_0, &x))) <= 0.5 / 127.0 + 1.0 / 2048.0);
        let four = apart(Stored::Blocks(Blocks::quantise(GgmlType::Q4_0, &x)));
        assert!(four > 0.05 && four <= 0.126, "{four}");
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let mut x = vec![bf16::ONE; 3 * PIECE];
        x[2 * PIECE + 7] = bf16::NAN;
        x[2 * PIECE + 9] = bf16::INFINITY;
        assert_eq!(Stored::Bf16(x).not_finite().map(|found| found.0), Some(2 * PIECE + 7));
    }
}
