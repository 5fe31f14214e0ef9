//! A model's weights, each in the form it is kept in: f32, bf16, or quantised as in a GGUF file.

use std::borrow::Cow;
use std::ops::{Index, IndexMut};

use half::bf16;
use rayon::prelude::*;
use seakeep_kernels::blocks::Blocks;
use seakeep_kernels::gemm::{Elements, Precision};

use super::tensors::{ParamId, TensorMap, Tensors, Values};

/// How one weight is kept.
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
                // A multiple of every block.
                const PIECE: usize = 1 << 16;
                let pieces = values.par_chunks_mut(PIECE).enumerate();
                pieces.for_each(|(i, piece)| elements.read(i * PIECE, piece));
                Cow::Owned(values)
            }
        }
    }

    /// As 16-bit numbers, rounded to nearest.
    pub fn to_bf16(&self) -> Stored {
        match self {
            Stored::Bf16(data) => Stored::Bf16(data.clone()),
            other => Stored::Bf16(other.to_f32().par_iter().map(|x| bf16::from_f32(*x)).collect()),
        }
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

/// The weights of a model, in the order of [`TensorMap::params`], and what products with them are computed in.
///
/// Vectors (norm gains, biases), learned positions and adapters are always in f32, and so is whatever is indexed: matrices of other forms are
/// only multiplied with ([`matrix`](Self::matrix)).
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    tensors: Vec<Stored>,
    /// What products are computed in.
    pub precision: Precision,
}

impl Index<ParamId> for Weights {
    type Output = [f32];
    fn index(&self, id: ParamId) -> &[f32] {
        match &self.tensors[id.0] {
            Stored::F32(data) => data,
            _ => panic!("a weight that is not kept in f32 is only multiplied with"),
        }
    }
}

impl IndexMut<ParamId> for Weights {
    fn index_mut(&mut self, id: ParamId) -> &mut [f32] {
        match &mut self.tensors[id.0] {
            Stored::F32(data) => data,
            _ => panic!("a weight that is not kept in f32 is only multiplied with"),
        }
    }
}

impl Values for Weights {
    fn values(&self, id: ParamId) -> Cow<'_, [f32]> {
        self.tensors[id.0].to_f32()
    }
}

impl Weights {
    /// Zeros, in f32.
    pub fn zeros(map: &TensorMap) -> Self {
        let tensors = map.params.iter().map(|p| Stored::F32(vec![0.0; p.rows * p.cols])).collect();
        Weights { tensors, precision: Precision::F32 }
    }

    /// A weight to be multiplied with.
    pub fn matrix(&self, id: ParamId) -> Elements<'_> {
        self.tensors[id.0].elements()
    }

    /// A weight as it is kept.
    pub fn stored(&self, id: ParamId) -> &Stored {
        &self.tensors[id.0]
    }

    /// Replaces a weight, perhaps by one in another form.
    ///
    /// # Panics
    /// If it has another number of elements.
    pub fn set(&mut self, id: ParamId, stored: Stored) {
        assert_eq!(stored.elements().len(), self.tensors[id.0].elements().len(), "as many elements");
        self.tensors[id.0] = stored;
    }

    /// The weights in order.
    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.iter()
    }

    /// The weights in order, to write to.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stored> {
        self.tensors.iter_mut()
    }

    /// The weights that are kept in f32, in order, to write to.
    pub fn f32_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.tensors.iter_mut().filter_map(|stored| match stored {
            Stored::F32(data) => Some(data.as_mut_slice()),
            _ => None,
        })
    }

    /// The bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(Stored::bytes).sum()
    }

    /// As many tensors as `map` has: new ones are 0 in f32, superfluous ones go.
    pub(super) fn fit(&mut self, map: &TensorMap) {
        self.tensors.truncate(map.params.len());
        let new = &map.params[self.tensors.len()..];
        self.tensors.extend(new.iter().map(|p| Stored::F32(vec![0.0; p.rows * p.cols])));
    }

    /// `self += factor * other`, for weights that are all in f32.
    ///
    /// # Panics
    /// If one is not.
    pub fn add_scaled(&mut self, other: &Tensors, factor: f32) {
        for (to, from) in self.tensors.iter_mut().zip(other.iter()) {
            let Stored::F32(to) = to else { panic!("weights in f32") };
            to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
        }
    }
}
