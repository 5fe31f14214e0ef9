//! The model's tensors in memory, and how each lies in a checkpoint file.
//!
//! In memory every weight is `[outputs, inputs]` row-major, queries, keys and values apart: one form for
//! every family. On disk GPT-2 transposes and fuses, GPT-NeoX interleaves heads. The difference is only an
//! order of elements ([`Pack`]), so gradients and optimizer state keep the in-memory form.

use std::borrow::Cow;
use std::ops::{Index, IndexMut};

use rayon::prelude::*;
use seakeep_kernels::linear::Sum;
use seakeep_kernels::simd::dot;
use seakeep_kernels::vectorise;

/// Which tensor of a [`Tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamId(pub(super) usize);

/// One tensor in memory: `[rows, cols]`; vectors have one column.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Name on disk, with a suffix where the file's tensor holds several.
    pub name: String,
    /// Outputs (or length of a vector).
    pub rows: usize,
    /// Inputs (or 1).
    pub cols: usize,
    /// Whether weight decay applies: not to biases and norm gains, as Hugging Face's Trainer has it.
    pub decays: bool,
    /// Whether it is trained; what is not has neither gradient nor optimizer state.
    pub trainable: bool,
}

/// Where an element `(row, col)` of a tensor in memory lies in the file's tensor.
#[derive(Clone, Copy, Debug)]
pub enum Pack {
    /// The same order.
    Whole,
    /// Transposed into a file tensor `[inputs, total]`, from column `offset` (GPT-2's Conv1D).
    Transposed {
        /// First column.
        offset: usize,
        /// Columns of the file's tensor.
        total: usize,
    },
    /// Rows under each other in a file tensor `[total, inputs]`, from row `offset` (a fused map's adapter).
    Stacked {
        /// First row.
        offset: usize,
    },
    /// Rows of each head in turn: `[heads, of, head_dim, inputs]` (GPT-NeoX).
    Interleaved {
        /// Which of the `of` parts.
        part: usize,
        /// Number of parts.
        of: usize,
        /// Rows of a head.
        head_dim: usize,
    },
}

impl Pack {
    fn index(self, row: usize, col: usize, cols: usize) -> usize {
        match self {
            Pack::Whole => row * cols + col,
            Pack::Transposed { offset, total } => col * total + offset + row,
            Pack::Stacked { offset } => (offset + row) * cols + col,
            Pack::Interleaved { part, of, head_dim } => {
                let (head, r) = (row / head_dim, row % head_dim);
                ((head * of + part) * head_dim + r) * cols + col
            }
        }
    }
}

/// A tensor of the checkpoint file and what it holds.
#[derive(Clone, Debug)]
pub struct FileTensor {
    /// Hugging Face's name.
    pub name: String,
    /// Hugging Face's shape.
    pub shape: Vec<usize>,
    /// The tensors in memory, and their place.
    pub parts: Vec<(ParamId, Pack)>,
}

/// All tensors of a model, in memory and on disk.
#[derive(Clone, Debug, Default)]
pub struct TensorMap {
    /// In memory.
    pub params: Vec<ParamSpec>,
    /// On disk.
    pub files: Vec<FileTensor>,
}

impl TensorMap {
    pub(super) fn param(&mut self, name: String, rows: usize, cols: usize) -> ParamId {
        let decays = cols > 1;
        self.params.push(ParamSpec { name, rows, cols, decays, trainable: true });
        ParamId(self.params.len() - 1)
    }

    pub(super) fn file(&mut self, name: String, shape: Vec<usize>, parts: Vec<(ParamId, Pack)>) {
        self.files.push(FileTensor { name, shape, parts });
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.params.iter().map(|p| p.rows * p.cols).sum()
    }

    /// Number of parameters that are trained.
    pub fn trainable(&self) -> usize {
        self.params.iter().filter(|p| p.trainable).map(|p| p.rows * p.cols).sum()
    }

    /// The file tensor's elements, gathered from memory.
    pub fn export(&self, file: &FileTensor, tensors: &impl Values) -> Vec<f32> {
        self.gather(file, |id| tensors.values(id))
    }

    /// As [`export`](Self::export), from values that are asked for one tensor after another.
    pub(super) fn gather<'v>(
        &self,
        file: &FileTensor,
        mut of: impl FnMut(ParamId) -> Cow<'v, [f32]>,
    ) -> Vec<f32> {
        if let [(id, Pack::Whole)] = *file.parts.as_slice() {
            return of(id).into_owned();
        }
        let mut out = vec![0.0; file.shape.iter().product()];
        for &(id, pack) in &file.parts {
            let ParamSpec { rows, cols, .. } = self.params[id.0];
            let values = of(id);
            for row in 0..rows {
                for col in 0..cols {
                    out[pack.index(row, col, cols)] = values[row * cols + col];
                }
            }
        }
        out
    }

    /// The reverse of [`export`](Self::export): the tensors in memory that the file's holds.
    pub fn import(&self, file: &FileTensor, data: Vec<f32>) -> Vec<(ParamId, Vec<f32>)> {
        if let [(id, Pack::Whole)] = *file.parts.as_slice() {
            return vec![(id, data)];
        }
        let part = |&(id, pack): &(ParamId, Pack)| {
            let ParamSpec { rows, cols, .. } = self.params[id.0];
            let places = (0..rows).flat_map(|row| (0..cols).map(move |col| pack.index(row, col, cols)));
            (id, places.map(|at| data[at]).collect())
        };
        file.parts.iter().map(part).collect()
    }
}

/// One number for each parameter, in whatever form.
pub trait Values {
    /// Those of a tensor, in f32.
    fn values(&self, id: ParamId) -> Cow<'_, [f32]>;
}

impl Values for Tensors {
    fn values(&self, id: ParamId) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self[id])
    }
}

/// One number for each parameter in f32: gradients or optimizer state.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensors {
    all: Vec<Vec<f32>>,
    /// Those that are 0 whatever stands in them: the first gradient is written rather than added. Between [`forget`](Tensors::forget) and
    /// [`settle`](Tensors::settle) alone.
    stale: Vec<bool>,
}

impl Index<ParamId> for Tensors {
    type Output = [f32];
    fn index(&self, id: ParamId) -> &[f32] {
        debug_assert!(!self.stale[id.0], "it is yet to be settled");
        &self.all[id.0]
    }
}

impl IndexMut<ParamId> for Tensors {
    fn index_mut(&mut self, id: ParamId) -> &mut [f32] {
        debug_assert!(!self.stale[id.0], "it is yet to be settled");
        &mut self.all[id.0]
    }
}

impl Tensors {
    fn of(all: Vec<Vec<f32>>) -> Self {
        Tensors { stale: vec![false; all.len()], all }
    }

    /// Zeros.
    pub fn zeros(map: &TensorMap) -> Self {
        Tensors::of(map.params.iter().map(|p| vec![0.0; p.rows * p.cols]).collect())
    }

    /// Zeros for what is trained, and an empty tensor for what is not: gradients and optimizer state.
    pub fn of_trainable(map: &TensorMap) -> Self {
        let size = |p: &ParamSpec| if p.trainable { p.rows * p.cols } else { 0 };
        Tensors::of(map.params.iter().map(|p| vec![0.0; size(p)]).collect())
    }

    /// Empty tensors: a backward pass for its gradient at the embeddings alone.
    pub fn none(map: &TensorMap) -> Self {
        Tensors::of(vec![Vec::new(); map.params.len()])
    }

    /// Empty tensors, as many as these.
    pub(super) fn none_like(&self) -> Self {
        Tensors::of(vec![Vec::new(); self.all.len()])
    }

    /// The tensor to add a gradient to; `None` for one that is not trained.
    pub(super) fn trained(&mut self, id: ParamId) -> Option<&mut [f32]> {
        let [sum] = self.sums([id]);
        sum.map(Sum::adding)
    }

    /// Where the gradients of several different tensors are summed; `None` for what is not trained. Each is taken as written to from now on.
    pub(super) fn sums<const N: usize>(&mut self, ids: [ParamId; N]) -> [Option<Sum<'_>>; N] {
        let add = ids.map(|id| !std::mem::take(&mut self.stale[id.0]));
        let tensors = self.all.get_disjoint_mut(ids.map(|id| id.0)).expect("different tensors");
        let mut sums = tensors.into_iter().zip(add).map(|(to, add)| Sum { to, add });
        [(); N].map(|()| sums.next().filter(|sum| !sum.to.is_empty()))
    }

    /// The two tensors to add gradients to; `None` for what is not trained.
    pub(super) fn both_trained(
        &mut self,
        first: ParamId,
        second: ParamId,
    ) -> Option<(&mut [f32], &mut [f32])> {
        let [first, second] = self.sums([first, second]).map(|sum| sum.map(Sum::adding));
        first.zip(second)
    }

    /// The tensors, in the order of [`TensorMap::params`].
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        debug_assert!(!self.stale.contains(&true), "they are yet to be settled");
        self.all.iter().map(Vec::as_slice)
    }

    /// The tensors, to write to, in the order of [`TensorMap::params`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.all.iter_mut().map(Vec::as_mut_slice)
    }

    /// Sets every element to 0 without writing to it: sums begin anew. [`settle`](Self::settle) comes before anything is read.
    pub fn forget(&mut self) {
        self.stale.fill(true);
    }

    /// Writes the zeros that [`forget`](Self::forget) left out, where nothing else was written since.
    pub fn settle(&mut self) {
        let stale = self.all.par_iter_mut().zip(&mut self.stale).filter(|(_, stale)| **stale);
        stale.for_each(|(t, stale)| {
            t.fill(0.0);
            *stale = false;
        });
    }

    /// `self += factor * other`.
    pub fn add_scaled(&mut self, other: &Tensors, factor: f32) {
        self.all.par_iter_mut().zip(&other.all).for_each(|(to, from)| {
            to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16)).for_each(|(to, from)| {
                to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
            });
        });
    }

    /// Euclidean norm over all parameters; squares are summed in a fixed order, from 256 on in f64.
    pub fn norm(&self) -> f64 {
        let of = |t: &[f32]| {
            let sums: Vec<f64> = t
                .par_chunks(1 << 16)
                .map(|c| vectorise!(c.chunks(256).map(|c| dot(c, c) as f64).sum()))
                .collect();
            sums.iter().sum::<f64>()
        };
        self.iter().map(of).sum::<f64>().sqrt()
    }
}
