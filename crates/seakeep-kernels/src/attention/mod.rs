//! Causal attention with grouped key/value heads over a flat batch of segments:
//! `o = softmax(scale q k^T) v`; `q`, `o` are `[T, H, D]`, `k`, `v` are `[T, J, D]`.
//!
//! A *segment* is a run of rows that follow each other in one text. It attends to itself causally and, if
//! it continues a prompt, to all of the prompt's rows (its *context*). So the prompt of a preference pair
//! is computed once and both completions look back at it:
//!
//! ```text
//! rows     | prompt ......... | chosen ... | rejected .... |
//! keys of a chosen row:  the whole prompt, and chosen up to itself
//! keys of a rejected row: the whole prompt, and rejected up to itself
//! ```
//!
//! Where all texts of a batch begin with the same tokens (a chat template's system prompt), those stand once too,
//! before everything else: the *opening* that the segments of every group look back at.
//!
//! A *group* is the segments that share keys (one pair); its rows are contiguous. Work is done by segment (a long one in
//! parts) and key/value head. Each such task has gradients of the keys of its own, and they are added in the order of tasks: any number
//! of threads gives the same bits. Queries are taken in blocks of rows, of all the heads that share keys, and scores of a block are made
//! for a piece of the columns at a time (see `task`): no row of scores is ever whole, memory is linear in the length, and no pass stores
//! probabilities; the passes after the first make them again from the saved log-sum-exp.

use std::ops::Range;

mod backward;
mod cached;
mod forward;
mod task;

pub use backward::{backward, curvature};
pub use cached::{Cache, Cached, cached_forward};
pub use forward::{forward, tangent};

/// What a pass made that later ones read: of [`forward`] `o` and `lse`, of [`tangent`] their tangents.
pub type Made<'a> = (&'a [f32], &'a [f32]);

/// Sizes that all heads share.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `J`; query head `h` uses key/value head `h / (H / J)`.
    pub kv_heads: usize,
    /// Channels of a head, `D`.
    pub head_dim: usize,
    /// Factor on the scores, usually `D^(-1/2)`.
    pub scale: f32,
    /// Sliding window: a row sees at most this many positions, itself included.
    pub window: Option<usize>,
}

impl Shape {
    /// Query heads per key/value head, `G`.
    fn per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// A run of rows of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Rows that its text begins with and that other groups share. Empty, or all of a segment before its group.
    pub opening: Range<usize>,
    /// Rows of the text between the opening and where the segment continues, in its own group. Empty if it starts there.
    pub context: Range<usize>,
}

/// The segments of a flat batch, and which of them share keys.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// In order of rows; a segment's context lies before it in the same group, an opening before the group. The segments of a
    /// group have the same opening.
    pub segments: Vec<Segment>,
    /// Ranges of `segments`, in order, together all of them; they cover all rows.
    pub groups: Vec<Range<usize>>,
}

impl Segment {
    /// Rows of its text up to its last, in order of position.
    fn spans(&self) -> [Range<usize>; 3] {
        [self.opening.clone(), self.context.clone(), self.start..self.start + self.len]
    }

    /// Rows of its text up to its last.
    fn columns(&self) -> usize {
        self.opening.len() + self.context.len() + self.len
    }
}

#[cfg(test)]
mod tests;
