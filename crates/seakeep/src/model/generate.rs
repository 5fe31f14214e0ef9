//! The forward pass over key/value caches: what generation needs of a model.
//!
//! T: new rows of all sequences, B: sequences, J: key/value heads, D: channels of a head, V: vocabulary.

use std::ops::Range;

use seakeep_kernels::attention::{Cached, Layout, cached_forward};
use seakeep_kernels::embedding::gather;
use seakeep_kernels::linear;

use super::config::ModelConfig;
use super::decoder::Model;
use crate::{Error, Result};

/// Keys and values of the tokens of one sequence so far. A clone continues the same text on its own: a
/// prompt is computed once and cloned for each of its samples.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
}

/// What one layer remembers; a sliding window is the kernel's business.
#[derive(Clone, Debug, Default)]
struct LayerCache {
    /// `[len, J, D]`
    k: Vec<f32>,
    /// `[len, J, D]`
    v: Vec<f32>,
}

impl KvCache {
    /// The cache of a text without tokens.
    pub fn new(config: &ModelConfig) -> Self {
        KvCache { layers: vec![LayerCache::default(); config.layers], len: 0 }
    }

    /// Tokens so far: the position of the next.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The rows of each sequence in the flat batch.
fn spans(new_tokens: &[&[u32]]) -> Vec<Range<usize>> {
    let mut end = 0;
    let span = |new: &&[u32]| {
        end += new.len();
        end - new.len()..end
    };
    new_tokens.iter().map(span).collect()
}

impl Model {
    /// Continues every sequence by its `new_tokens` (a whole prompt, or the one token just chosen; lengths may
    /// differ) in one flat batch without padding. Returns the logits of the token after the last new one,
    /// `[B, V]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a sequence longer than the model's positions; the caches are as
    /// before then.
    ///
    /// # Panics
    /// If there is not one cache for each sequence, or a sequence has no new token.
    pub fn extend(&self, caches: &mut [&mut KvCache], new_tokens: &[&[u32]]) -> Result<Vec<f32>> {
        assert_eq!(caches.len(), new_tokens.len(), "one cache for each sequence");
        assert!(new_tokens.iter().all(|new| !new.is_empty()), "every sequence has a new token");
        for (cache, new) in caches.iter().zip(new_tokens) {
            self.check_room(cache.len + new.len())?;
        }
        let tokens = new_tokens.concat();
        self.check_tokens(&tokens)?;
        let texts = caches.iter().zip(new_tokens);
        let positions: Vec<u32> =
            texts.flat_map(|(cache, new)| (cache.len..cache.len + new.len()).map(|p| p as u32)).collect();
        let spans = spans(new_tokens);

        let layout = Layout::default();
        let cx = self.context_at(&positions, &layout);
        let mut x = self.embed(&tokens, &positions);
        let width = self.config.kv_heads * self.config.head_dim;
        for (at, layer) in self.params.layers.iter().enumerate() {
            let (qkv, _) = layer.qkv(&cx, &layer.norm1.forward(&self.weights, &x));
            for (cache, span) in caches.iter_mut().zip(&spans) {
                let new = span.start * width..span.end * width;
                cache.layers[at].k.extend_from_slice(&qkv.k[new.clone()]);
                cache.layers[at].v.extend_from_slice(&qkv.v[new]);
            }
            let sequences: Vec<Cached> = caches
                .iter()
                .zip(&spans)
                .map(|(cache, span)| {
                    let LayerCache { k, v } = &cache.layers[at];
                    Cached { row: span.start, rows: span.len(), k, v }
                })
                .collect();
            let mut attended = vec![0.0; qkv.q.len()];
            cached_forward(&mut attended, &qkv.q, &sequences, cx.shape(layer.window));
            x = layer.after_attention(&cx, &x, &attended).out;
        }
        for (cache, span) in caches.iter_mut().zip(&spans) {
            cache.len += span.len();
        }
        let last: Vec<u32> = spans.iter().map(|span| span.end as u32 - 1).collect();
        Ok(self.logits(&x, &last))
    }

    /// Logits of the given rows of the residual stream `x` (`[T, C]`), `[rows, V]`.
    fn logits(&self, x: &[f32], rows: &[u32]) -> Vec<f32> {
        let (c, v) = (self.config.hidden, self.config.vocab_size);
        let mut picked = vec![0.0; rows.len() * c];
        gather(&mut picked, x, rows, c);
        let hidden = self.params.final_norm.forward(&self.weights, &picked);
        let mut logits = vec![0.0; rows.len() * v];
        linear::forward(&mut logits, &hidden, &self.weights[self.params.head], None, c, v);
        logits
    }

    fn check_room(&self, len: usize) -> Result<()> {
        let room = self.config.max_positions;
        if len <= room {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "a text of {len} tokens is longer than the model's {room} positions; expected a shorter prompt or a \
             smaller `max_new_tokens`"
        )))
    }
}
