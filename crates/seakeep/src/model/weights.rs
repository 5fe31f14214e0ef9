//! A model's weights, each in the form it is kept in: f32, bf16, or quantised as in a GGUF file.

use std::borrow::Cow;
use std::ops::{Index, IndexMut};

use half::bf16;
use rayon::prelude::*;
use seakeep_kernels::blocks::{Blocks, GgmlType};
use seakeep_kernels::gemm::{Elements, Precision};
pub use seakeep_kernels::stored::Stored;

use super::tensors::{ParamId, TensorMap, Tensors, Values};

/// In what form a model's matrices are kept, and what products are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The form of the matrices.
    pub keep: Keep,
    /// What products are computed in.
    pub precision: Precision,
}

/// The form in which matrices are kept: the weights of linear maps, the embeddings and the vocabulary projection. Everything else is
/// always in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// f32.
    #[default]
    F32,
    /// bf16, rounded to nearest.
    Bf16,
    /// As the file has them: quantised in a GGUF file's own blocks, or bf16; other formats become f32.
    AsStored,
    /// Quantised to this type when they are loaded; matrices whose rows are no whole blocks become bf16.
    Quantised(GgmlType),
}

impl Keep {
    /// Its name, as `dtype` and the record of a run spell it.
    pub fn name(self) -> &'static str {
        match self {
            Keep::F32 => "float32",
            Keep::Bf16 => "bfloat16",
            Keep::AsStored => "auto",
            Keep::Quantised(GgmlType::Q8_0) => "q8_0",
            Keep::Quantised(_) => "q4_0",
        }
    }
}

/// A matrix of rows of `cols` from f32 values, in the form that `keep` asks for where it does not come from the file as it is.
pub(super) fn stored(values: Vec<f32>, cols: usize, keep: Keep) -> Stored {
    match keep {
        Keep::F32 | Keep::AsStored => Stored::F32(values),
        Keep::Quantised(ggml_type) if cols.is_multiple_of(ggml_type.block().0) => {
            Stored::Blocks(Blocks::quantise(ggml_type, &values))
        }
        Keep::Bf16 | Keep::Quantised(_) => {
            Stored::Bf16(values.par_iter().map(|x| bf16::from_f32(*x)).collect())
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
    /// Of tensors in the order of [`TensorMap::params`].
    pub(super) fn of(tensors: Vec<Stored>, precision: Precision) -> Self {
        Weights { tensors, precision }
    }

    /// What became of matrices that were to be quantised when they were loaded, for the user to know.
    pub fn kept(&self, keep: Keep) -> Option<String> {
        let Keep::Quantised(ggml_type) = keep else { return None };
        let count = |of: fn(&Stored) -> bool| self.tensors.iter().filter(|tensor| of(tensor)).count();
        let (quantised, in_bf16) =
            (count(|t| matches!(t, Stored::Blocks(_))), count(|t| matches!(t, Stored::Bf16(_))));
        let rest = match in_bf16 {
            0 => String::new(),
            n => format!(", {n} in bfloat16: their rows are no whole blocks of {}", ggml_type.block().0),
        };
        Some(format!("{quantised} matrices are kept as {}{rest}", keep.name().to_uppercase()))
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

    /// Whether all are in f32, and multiplied so: products then read most of them from where they lie.
    pub fn are_plain(&self) -> bool {
        self.precision == Precision::F32 && self.iter().all(|stored| matches!(stored, Stored::F32(_)))
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
