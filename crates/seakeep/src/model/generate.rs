//! The forward pass over key/value caches: what generation needs of a model.
//!
//! T: new rows of all sequences, B: sequences, J: key/value heads, D: channels of a head, V: vocabulary.

use std::ops::Range;
use std::sync::Arc;

use seakeep_kernels::activation;
use seakeep_kernels::attention::{Cached, Layout, Span, cached_forward};
use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::panels::Panels;

use super::blocks::Linear;
use super::config::ModelConfig;
use super::decoder::Model;
use super::layer::{Context, Layer, Qkv};
use super::weights::Weights;
use crate::{Error, Result};

/// Keys and values of the tokens of one text so far: what it shares with other texts, and its own after it.
#[derive(Clone, Debug)]
pub struct KvCache {
    shared: Option<Prefix>,
    own: Vec<LayerCache>,
    len: usize,
}

/// The beginning that several texts have in common, stored once: a prompt, for all its samples.
#[derive(Clone, Debug)]
pub struct Prefix {
    layers: Arc<Vec<LayerCache>>,
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

impl LayerCache {
    fn span(&self) -> Span<'_> {
        Span { k: &self.k, v: &self.v }
    }
}

impl KvCache {
    /// The cache of a text without tokens.
    pub fn new(config: &ModelConfig) -> Self {
        KvCache { shared: None, own: vec![LayerCache::default(); config.layers], len: 0 }
    }

    /// The cache of a text that goes on after `prefix`, by up to `room` tokens without moving in memory.
    pub fn after(prefix: &Prefix, room: usize) -> Self {
        let own = |layer: &LayerCache| {
            let size = room * layer.k.len() / prefix.len.max(1);
            LayerCache { k: Vec::with_capacity(size), v: Vec::with_capacity(size) }
        };
        KvCache {
            own: prefix.layers.iter().map(own).collect(),
            len: prefix.len,
            shared: Some(prefix.clone()),
        }
    }

    /// The text so far as the beginning of others.
    pub fn into_prefix(self) -> Prefix {
        let mut layers = self.own;
        if let Some(shared) = self.shared {
            for (own, shared) in layers.iter_mut().zip(shared.layers.iter()) {
                own.k.splice(..0, shared.k.iter().copied());
                own.v.splice(..0, shared.v.iter().copied());
            }
        }
        Prefix { layers: Arc::new(layers), len: self.len }
    }

    /// Tokens so far: the position of the next.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn spans(&self, layer: usize) -> [Span<'_>; 2] {
        [self.shared.as_ref().map(|p| p.layers[layer].span()).unwrap_or_default(), self.own[layer].span()]
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

/// The rows of panels, `[T, channels]`.
fn rows_of(panels: &Panels) -> Buffer {
    let mut rows = Buffer::new(panels.rows() * panels.channels(), panels.channels());
    panels.unpack(&mut rows, false);
    rows
}

impl Linear {
    fn panels(&self, w: &Weights, x: &Panels) -> Panels {
        let y = x.product(w.matrix(self.weight), self.bias.map(|b| &w[b]), self.outputs);
        let Some((lora, _)) = self.lora(w) else { return y };
        let low = x.product(lora.a, None, lora.rank).product(lora.b, None, self.outputs);
        let sum = y.elements().iter().zip(low.elements()).map(|(y, low)| y + lora.scale * low).collect();
        y.with_elements(sum)
    }
}

/// A layer's forward pass by products whose rows do not depend on each other.
impl Layer {
    fn cached_qkv(&self, cx: &Context, x: &[f32]) -> Qkv {
        let w = cx.weights;
        let n1 = Panels::pack(&self.norm1.forward(w, x), cx.config.hidden);
        let [q, k, v] = [self.q, self.k, self.v].map(|linear| rows_of(&linear.panels(w, &n1)));
        self.turned(cx, q, k, v).0
    }

    /// Everything after attention; `x` becomes the layer's output.
    fn cached_rest(&self, cx: &Context, x: &mut [f32], attended: &[f32]) {
        let (w, c) = (cx.weights, cx.config.hidden);
        let before = cx.config.parallel_residual.then(|| self.norm2.forward(w, x));
        self.o.panels(w, &Panels::pack(attended, self.o.inputs)).unpack(x, true);
        let n2 = before.unwrap_or_else(|| self.norm2.forward(w, x));
        let n2 = Panels::pack(&n2, c);
        let up = self.mlp.up.panels(w, &n2);
        let mut y = vec![0.0; up.elements().len()];
        match self.mlp.gate {
            Some(gate) => {
                let gate = gate.panels(w, &n2);
                activation::gated_forward(cx.config.activation, &mut y, gate.elements(), up.elements());
            }
            None => activation::forward(cx.config.activation, &mut y, up.elements()),
        }
        self.mlp.down.panels(w, &up.with_elements(y)).unpack(x, true);
    }
}

impl Model {
    /// Continues every sequence by its `new_tokens` (a whole prompt, or the one token just chosen; lengths may
    /// differ) in one flat batch without padding. A text's numbers are the same bits whatever else is in the batch, as
    /// long as it is fed in the same pieces. Returns the logits of the token after the last new one,
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
            let qkv = layer.cached_qkv(&cx, &x);
            for (cache, span) in caches.iter_mut().zip(&spans) {
                let new = span.start * width..span.end * width;
                cache.own[at].k.extend_from_slice(&qkv.k[new.clone()]);
                cache.own[at].v.extend_from_slice(&qkv.v[new]);
            }
            let texts: Vec<Cached> = caches
                .iter()
                .zip(&spans)
                .map(|(cache, span)| Cached { row: span.start, rows: span.len(), spans: cache.spans(at) })
                .collect();
            let mut attended = Buffer::like(&qkv.q);
            cached_forward(&mut attended, &qkv.q, &texts, cx.shape(layer.window));
            layer.cached_rest(&cx, &mut x, &attended);
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
        let picked = self.rows_of(x, rows);
        let hidden = self.params.final_norm.forward(&self.weights, &picked);
        let mut logits = vec![0.0; rows.len() * v];
        Panels::pack(&hidden, c)
            .product(self.weights.matrix(self.params.head), None, v)
            .unpack(&mut logits, false);
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
