//! The forward pass over key/value caches: what generation needs of a model.
//!
//! T: new rows of all sequences, B: sequences, J: key/value heads, D: channels of a head, V: vocabulary.

use std::ops::Range;
use std::sync::Arc;

use seakeep_kernels::activation;
use seakeep_kernels::attention::{Cache, Cached, Layout, cached_forward};
use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::gemm::{Elements, Screen};
use seakeep_kernels::panels::{Factor, PANEL, Panels};

use super::blocks::{Linear, Params};
use super::config::ModelConfig;
use super::decoder::Model;
use super::layer::{Context, Layer, Qkv};
use crate::{Error, Result};

/// Keys and values of the tokens of one text so far: what it shares with other texts, and its own after it.
#[derive(Clone, Debug)]
pub struct KvCache {
    shared: Prefix,
    /// By layer.
    own: Vec<Cache>,
    len: usize,
}

/// The beginning that several texts have in common, stored once: a prompt, for all its samples; what all prompts begin
/// with. A list of stretches, each by layer; a sliding window is the kernel's business.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// At least one, when made of a cache.
    stretches: Vec<Arc<Vec<Cache>>>,
    len: usize,
}

impl KvCache {
    /// The cache of a text without tokens.
    pub fn new(config: &ModelConfig) -> Self {
        let shared = Prefix { stretches: Vec::new(), len: 0 };
        KvCache { shared, own: vec![Cache::default(); config.layers], len: 0 }
    }

    /// The cache of a text that goes on after `prefix`, by up to `room` tokens without moving in memory.
    pub fn after(prefix: &Prefix, room: usize) -> Self {
        let last = prefix.stretches.last().expect("a prefix is made of a cache");
        let own = last.iter().map(|layer| layer.after(room)).collect();
        KvCache { own, len: prefix.len, shared: prefix.clone() }
    }

    /// The text so far as the beginning of others.
    pub fn into_prefix(self) -> Prefix {
        let mut stretches = self.shared.stretches;
        stretches.push(Arc::new(self.own));
        Prefix { stretches, len: self.len }
    }

    /// Tokens so far: the position of the next.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the layer's attention needs of it for the new rows `span`.
    fn of_layer(&mut self, layer: usize, span: &Range<usize>) -> Cached<'_> {
        let shared = self.shared.stretches.iter().map(|stretch| &stretch[layer]).collect();
        Cached { row: span.start, rows: span.len(), shared, own: &mut self.own[layer] }
    }
}

impl Prefix {
    /// Tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
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

/// How many sequences each group has: as many groups as there are `threads`, or fewer where rows are few, each of whole
/// panels of rows as far as sequences allow.
fn groups(new_tokens: &[&[u32]], threads: usize) -> Vec<usize> {
    let panels = new_tokens.iter().map(|new| new.len()).sum::<usize>().div_ceil(PANEL);
    let full = panels.div_ceil(threads).max(1) * PANEL;
    let (mut groups, mut rows) = (vec![0], 0);
    for new in new_tokens {
        if rows > 0 && rows + new.len() > full {
            groups.push(0);
            rows = 0;
        }
        *groups.last_mut().expect("one at least") += 1;
        rows += new.len();
    }
    groups
}

/// The rows of panels, `[T, channels]`.
fn rows_of(panels: &Panels) -> Buffer {
    let mut rows = Buffer::new(panels.rows() * panels.channels(), panels.channels());
    panels.unpack(&mut rows, false);
    rows
}

/// The products of `linears`, which threads share as one.
fn products<const N: usize>(linears: [Linear; N], w: Params, x: &Panels) -> [Panels; N] {
    let has_magnitude = |linear: Linear| linear.adapter.is_some_and(|adapter| adapter.magnitude.is_some());
    let bias = |linear: Linear| linear.bias.map(|b| &w.weights[b]);
    let factor = |linear: Linear| Factor {
        w: w.weights.matrix(linear.weight),
        b: bias(linear).filter(|_| !has_magnitude(linear)),
        outputs: linear.outputs,
    };
    let mut all = x.products(linears.map(factor));
    for (linear, y) in linears.iter().zip(&mut all) {
        if let Some((lora, _)) = linear.lora(w) {
            let low = x.product(lora.a, None, lora.rank).product(lora.b, None, linear.outputs);
            y.elements_mut().iter_mut().zip(low.elements()).for_each(|(y, low)| *y += lora.scale * low);
        }
        if let Some(factors) = linear.factors(w) {
            y.scale_channels(&factors, bias(*linear));
        }
    }
    all
}

/// A layer's forward pass by products whose rows do not depend on each other.
impl Layer {
    fn cached_qkv(&self, cx: &Context, x: &[f32]) -> Qkv {
        let w = cx.weights;
        let n1 = Panels::pack(&self.norm1.forward(&w, x), cx.config.hidden);
        let [q, k, v] = products([self.q, self.k, self.v], w, &n1).map(|panels| rows_of(&panels));
        self.turned(cx, q, k, v).0
    }

    /// Everything after attention; `x` becomes the layer's output.
    fn cached_rest(&self, cx: &Context, x: &mut [f32], attended: &[f32]) {
        let (w, c, act) = (cx.weights, cx.config.hidden, cx.config.activation);
        let before = cx.config.parallel_residual.then(|| self.norm2.forward(&w, x));
        let [o] = products([self.o], w, &Panels::pack(attended, self.o.inputs));
        o.unpack(x, true);
        let n2 = before.unwrap_or_else(|| self.norm2.forward(&w, x));
        let n2 = Panels::pack(&n2, c);
        let mid = match self.mlp.gate {
            Some(gate) => {
                let [gate, up] = products([gate, self.mlp.up], w, &n2);
                let mut mid = Panels::like(&up);
                activation::gated_forward(act, mid.elements_mut(), gate.elements(), up.elements());
                mid
            }
            None => {
                let [up] = products([self.mlp.up], w, &n2);
                let mut mid = Panels::like(&up);
                activation::forward(act, mid.elements_mut(), up.elements());
                mid
            }
        };
        let [down] = products([self.mlp.down], w, &mid);
        down.unpack(x, true);
    }
}

impl Model {
    /// Continues every sequence by its `new_tokens` (a whole prompt, or the one token just chosen; lengths may
    /// differ) in one flat batch without padding. A text's numbers are the same bits whatever else is in the batch and
    /// in whatever pieces it is fed. Returns the last hidden states of each sequence, normalised, `[B, C]`, of which
    /// [`logits`](Self::logits) makes those of the token after the last new one.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a sequence longer than the model's positions; the caches are as
    /// before then.
    ///
    /// # Panics
    /// If there is not one cache for each sequence, or a sequence has no new token.
    pub fn extend(&self, caches: &mut [&mut KvCache], new_tokens: &[&[u32]]) -> Result<Buffer> {
        assert_eq!(caches.len(), new_tokens.len(), "one cache for each sequence");
        assert!(new_tokens.iter().all(|new| !new.is_empty()), "every sequence has a new token");
        for (cache, new) in caches.iter().zip(new_tokens) {
            self.check_room(cache.len + new.len())?;
        }
        new_tokens.iter().try_for_each(|new| self.check_tokens(new))?;
        let mut last = Buffer::new(caches.len() * self.config.hidden, self.config.hidden);
        // Groups of texts go through all layers beside each other: they have nothing to wait for.
        rayon::scope(|scope| {
            let (mut caches, mut new_tokens, mut last) = (caches, new_tokens, &mut last[..]);
            for group in groups(new_tokens, rayon::current_num_threads()) {
                let (of_group, tokens, to);
                (of_group, caches) = caches.split_at_mut(group);
                (tokens, new_tokens) = new_tokens.split_at(group);
                (to, last) = last.split_at_mut(group * self.config.hidden);
                scope.spawn(move |_| self.extend_group(of_group, tokens, to));
            }
        });
        Ok(self.params.final_norm.forward(&self.weights, &last))
    }

    /// [`extend`](Self::extend) as far as the residual stream of each sequence's last row, `[B, C]`.
    fn extend_group(&self, caches: &mut [&mut KvCache], new_tokens: &[&[u32]], last: &mut [f32]) {
        let tokens = new_tokens.concat();
        let texts = caches.iter().zip(new_tokens);
        let positions: Vec<u32> =
            texts.flat_map(|(cache, new)| (cache.len..cache.len + new.len()).map(|p| p as u32)).collect();
        let spans = spans(new_tokens);

        let layout = Layout::default();
        let cx = self.context_at(&positions, &layout);
        let mut x = self.embed(&tokens, &positions);
        for (at, layer) in self.params.layers.iter().enumerate() {
            let qkv = layer.cached_qkv(&cx, &x);
            let texts = caches.iter_mut().zip(&spans);
            let mut texts: Vec<Cached> = texts.map(|(cache, span)| cache.of_layer(at, span)).collect();
            let mut attended = Buffer::like(&qkv.q);
            cached_forward(&mut attended, (&qkv.q, &qkv.k, &qkv.v), &mut texts, cx.shape(layer.window));
            layer.cached_rest(&cx, &mut x, &attended);
        }
        let c = self.config.hidden;
        for ((cache, span), last) in caches.iter_mut().zip(&spans).zip(last.chunks_exact_mut(c)) {
            cache.len += span.len();
            last.copy_from_slice(&x[(span.end - 1) * c..span.end * c]);
        }
    }

    /// Logits of hidden states, `[B, C]`: `[B, V]`.
    pub fn logits(&self, hidden: &[f32]) -> Buffer {
        let head = self.weights.matrix(self.params.head);
        rows_of(&Panels::pack(hidden, self.config.hidden).product(head, None, self.config.vocab_size))
    }

    /// What finds the largest of the [`logits`](Self::logits) in half their time; `None` where the vocabulary's projection is not kept in f32, or
    /// the processor does not multiply in bf16.
    pub fn screen(&self) -> Option<Screen<'_>> {
        match self.weights.matrix(self.params.head) {
            Elements::F32(w) => Screen::new(w, self.config.hidden),
            _ => None,
        }
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

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn groups_are_of_whole_panels() {
        let of = |lengths: &[usize], threads| {
            let tokens: Vec<Vec<u32>> = lengths.iter().map(|n| vec![0; *n]).collect();
            groups(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>(), threads)
        };
        assert_eq!(of(&[1; 20], 2), [20], "no more than a panel");
        assert_eq!(of(&[1; 64], 2), [32, 32]);
        assert_eq!(of(&[1; 64], 8), [32, 32], "threads share within groups");
        assert_eq!(of(&[1; 70], 2), [64, 6]);
        assert_eq!(of(&[50, 1, 1, 50, 200], 2), [4, 1], "a sequence is not cut");
    }
}
