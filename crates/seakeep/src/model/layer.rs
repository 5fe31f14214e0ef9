//! One transformer layer: attention, then feed-forward, each on a normalised input and added to the
//! residual stream.
//!
//! ```text
//! mid = x + o(attention(qkv(norm1 x)))
//! out = mid + mlp(norm2 mid)              sequential
//! out = mid + mlp(norm2 x)                parallel residual (GPT-NeoX)
//! ```
//!
//! Norm outputs and the activation's output are cheap to compute and large to keep: they are recomputed.
//!
//! Of the last layer's output not all rows are read, of a preference pair those that predict, some two in five. From attention's output on it
//! computes those alone (`Read`): `T` below is then `N` for `attended`, `mid`, `gate`, `up`, the output and what goes with them (but not for the
//! gradient at `attended`, which attention's passes need at all rows).
//!
//! The gradient of an input-gradient penalty needs four passes: `forward`; `backward`, which leaves the gradients inside the
//! layer; `tangent` with `curvature`, which turns those and the tangents into *sources*; and `backward` once more, to
//! which the sources are added on the way down. Every matrix product of the whole is done once.

use std::borrow::Cow;

use seakeep_kernels::activation;
use seakeep_kernels::attention::{self, Layout, Shape};
use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::embedding::scatter_add;
use seakeep_kernels::rope::{self, Table, Turn};

use super::blocks::{Linear, Norm, Params, add, rows_of};
use super::config::ModelConfig;
use super::tensors::Tensors;
use crate::batch::{self, Batch};

mod tangent;

pub(super) use tangent::LayerTangents;

/// The tensors of a layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Before attention.
    pub norm1: Norm,
    /// Queries.
    pub q: Linear,
    /// Keys.
    pub k: Linear,
    /// Values.
    pub v: Linear,
    /// Norms on each head of queries and keys.
    pub qk_norm: Option<(Norm, Norm)>,
    /// Attention's output.
    pub o: Linear,
    /// Before the feed-forward layer.
    pub norm2: Norm,
    /// Feed-forward layer.
    pub mlp: Mlp,
    /// Sliding window of this layer.
    pub window: Option<usize>,
}

/// `down(act(gate x) * up x)`, or without a gate `down(act(up x))`.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// The gate, where there is one.
    pub gate: Option<Linear>,
    /// Up.
    pub up: Linear,
    /// Down.
    pub down: Linear,
}

/// What every pass of a layer reads besides activations.
pub(super) struct Context<'a> {
    pub config: &'a ModelConfig,
    pub weights: Params<'a>,
    pub rope: Option<&'a Table>,
    pub positions: &'a [u32],
    pub layout: &'a Layout,
    /// The rows of the output that are read, if not all.
    pub read: Option<&'a Read>,
}

/// The rows of a batch of which the last layer's output is read. One that is read twice stands here twice.
pub(super) struct Read {
    rows: Vec<u32>,
    /// The batch's, for these rows.
    dropout: Option<batch::Dropout>,
}

impl Read {
    /// Some rows of a batch.
    pub(super) fn of(batch: &Batch, rows: &[u32]) -> Self {
        let of_rows = |all: &batch::Dropout| batch::Dropout {
            p: all.p,
            rows: rows.iter().map(|row| all.rows[*row as usize]).collect(),
        };
        Read { rows: rows.to_vec(), dropout: batch.dropout.as_ref().map(of_rows) }
    }
}

impl<'a> Context<'a> {
    /// What the part of the layer after attention reads besides activations.
    fn after_attention(&self) -> Params<'a> {
        match self.read {
            None => self.weights,
            Some(read) => Params { dropout: read.dropout.as_ref(), ..self.weights },
        }
    }

    /// The rows of `x`, `[T, width]`, that are read.
    fn rows_read<'x>(&self, x: &'x Buffer, width: usize) -> Cow<'x, Buffer> {
        let Some(Read { rows, .. }) = self.read else { return Cow::Borrowed(x) };
        Cow::Owned(rows_of(x, rows, width))
    }

    /// [`rows_read`](Self::rows_read) of what is not needed otherwise.
    fn keep_read(&self, x: Buffer, width: usize) -> Buffer {
        match self.rows_read(&x, width) {
            Cow::Owned(rows) => rows,
            Cow::Borrowed(_) => x,
        }
    }

    /// Adds `d`, the gradient at the rows that are read, to `d_x`, `[T, width]`.
    fn add_read(&self, d_x: &mut [f32], d: &[f32], width: usize) {
        match self.read {
            None => add(d_x, d),
            Some(read) => scatter_add(d_x, d, &read.rows, width),
        }
    }

    /// The gradient at all rows, `[T, width]`, from that at the rows that are read.
    fn spread(&self, d: Buffer, width: usize) -> Buffer {
        if self.read.is_none() {
            return d;
        }
        let mut d_x = Buffer::zeros(self.positions.len() * width, width);
        self.add_read(&mut d_x, &d, width);
        d_x
    }

    /// All rows, `[T, width]`, of what was [kept](Self::keep_read) of them; the others are 0, as their gradients are.
    fn all_rows<'x>(&self, kept: &'x Buffer, width: usize) -> Cow<'x, Buffer> {
        let Some(Read { rows, .. }) = self.read else { return Cow::Borrowed(kept) };
        let mut all = Buffer::zeros(self.positions.len() * width, width);
        for (&row, kept) in rows.iter().zip(kept.chunks_exact(width)) {
            all[row as usize * width..][..width].copy_from_slice(kept);
        }
        Cow::Owned(all)
    }

    fn turn(&self, x: &mut [f32], heads: usize, turn: Turn) {
        if let Some(table) = self.rope {
            rope::rotate(x, self.positions, table, heads, self.config.head_dim, turn);
        }
    }

    pub(super) fn shape(&self, window: Option<usize>) -> Shape {
        let c = self.config;
        Shape { heads: c.heads, kv_heads: c.kv_heads, head_dim: c.head_dim, scale: c.attention_scale, window }
    }
}

/// Queries, keys and values.
#[derive(Clone)]
pub(super) struct Qkv {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
}

impl Qkv {
    fn parts(&self) -> (&[f32], &[f32], &[f32]) {
        (&self.q, &self.k, &self.v)
    }

    fn each(&self) -> [&[f32]; 3] {
        [&self.q, &self.k, &self.v]
    }

    fn like(other: &Qkv) -> Self {
        Qkv { q: Buffer::like(&other.q), k: Buffer::like(&other.k), v: Buffer::like(&other.v) }
    }

    fn add(&mut self, other: &Qkv) {
        add(&mut self.q, &other.q);
        add(&mut self.k, &other.k);
        add(&mut self.v, &other.v);
    }
}

/// Queries and keys before their norm.
#[derive(Clone)]
pub(super) struct RawQk {
    q: Buffer,
    k: Buffer,
}

/// The forward pass of a layer, kept for the passes that follow it.
#[derive(Clone)]
pub(super) struct LayerActivations {
    /// Input, `[T, C]`.
    pub x: Buffer,
    /// Queries and keys before their norm, where they have one.
    raw: Option<RawQk>,
    /// After norm and rotation.
    qkv: Qkv,
    /// Attention before its output projection, `[T, H, D]`.
    attended: Buffer,
    /// Log-sum-exp of the scores, `[T, H, 2]`.
    lse: Buffer,
    /// Residual stream after attention, `[T, C]`.
    mid: Buffer,
    /// `[T, I]`
    gate: Option<Buffer>,
    /// `[T, I]`
    up: Buffer,
}

/// What a backward pass finds inside a layer and the curvature needs: the gradients at ...
pub(super) struct LayerGradients {
    /// the layer's output, `[T, C]`,
    pub out: Buffer,
    /// the activation's output, `[T, I]`,
    act: Buffer,
    /// `norm2`'s output, `[T, C]`,
    n2: Buffer,
    /// attention's output, `[T, H, D]`,
    attended: Buffer,
    /// the outputs of the norms of queries and keys, where they have some,
    normed: Option<RawQk>,
    /// the outputs of the linear maps for queries, keys and values,
    qkv: Qkv,
    /// `norm1`'s output, `[T, C]`.
    n1: Buffer,
}

/// What the curvature adds to a layer's gradients: at ...
pub(super) struct LayerSources {
    /// `gate` and `up`, `[T, I]`,
    gate: Option<Buffer>,
    up: Buffer,
    /// `norm2`'s input, `[T, C]`,
    mlp_in: Buffer,
    /// the outputs of the linear maps for queries, keys and values,
    qkv: Qkv,
    /// the layer's input, `[T, C]`.
    x: Buffer,
}

impl Layer {
    /// Its linear maps, in the order in which they are applied.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Mlp { gate, up, down } = &self.mlp;
        [Some(&self.q), Some(&self.k), Some(&self.v), Some(&self.o), gate.as_ref(), Some(up), Some(down)]
            .into_iter()
            .flatten()
    }

    /// Those of them that come after attention.
    pub(super) fn after_attention(&self) -> impl Iterator<Item = &Linear> {
        self.linears().skip(3)
    }

    /// Its linear maps, to be given adapters.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Mlp { gate, up, down } = &mut self.mlp;
        let (q, k, v, o) = (&mut self.q, &mut self.k, &mut self.v, &mut self.o);
        [Some(q), Some(k), Some(v), Some(o), gate.as_mut(), Some(up), Some(down)].into_iter().flatten()
    }

    fn qkv_maps(&self) -> [&Linear; 3] {
        [&self.q, &self.k, &self.v]
    }

    /// Queries, keys and values of normalised input `n1`, and what they were before their norm.
    fn qkv(&self, cx: &Context, n1: &[f32]) -> (Qkv, Option<RawQk>) {
        let [q, k, v] = Linear::forward_each(self.qkv_maps(), cx.weights, n1);
        self.turned(cx, q, k, v)
    }

    /// Norms, where there are any, and turns queries and keys.
    pub(super) fn turned(
        &self,
        cx: &Context,
        mut q: Buffer,
        mut k: Buffer,
        v: Buffer,
    ) -> (Qkv, Option<RawQk>) {
        let w = cx.weights;
        let raw = self.qk_norm.map(|(q_norm, k_norm)| {
            let normed = (q_norm.forward(&w, &q), k_norm.forward(&w, &k));
            RawQk { q: std::mem::replace(&mut q, normed.0), k: std::mem::replace(&mut k, normed.1) }
        });
        cx.turn(&mut q, cx.config.heads, Turn::Forth);
        cx.turn(&mut k, cx.config.kv_heads, Turn::Forth);
        (Qkv { q, k, v }, raw)
    }

    /// The input of the feed-forward layer's norm.
    fn mlp_input<'a>(&self, cx: &Context, x: &'a Buffer, mid: &'a Buffer) -> Cow<'a, Buffer> {
        if cx.config.parallel_residual { cx.rows_read(x, cx.config.hidden) } else { Cow::Borrowed(mid) }
    }

    /// Width of what goes into `o`.
    fn attended_width(cx: &Context) -> usize {
        cx.config.heads * cx.config.head_dim
    }

    fn activate(&self, cx: &Context, gate: Option<&[f32]>, up: &[f32]) -> Buffer {
        let mut y = Buffer::new(up.len(), cx.config.intermediate);
        match gate {
            Some(gate) => activation::gated_forward(cx.config.activation, &mut y, gate, up),
            None => activation::forward(cx.config.activation, &mut y, up),
        }
        y
    }

    /// The layer's output, and what the other passes need.
    pub(super) fn forward(&self, cx: &Context, x: Buffer) -> (Buffer, LayerActivations) {
        let a = self.inside(cx, x);
        let activated = self.activate(cx, a.gate.as_deref(), &a.up);
        let mut out = self.mlp.down.forward(cx.after_attention(), &activated);
        add(&mut out, &a.mid);
        (out, a)
    }

    /// [`forward`](Self::forward) short of the output.
    pub(super) fn inside(&self, cx: &Context, x: Buffer) -> LayerActivations {
        let w = cx.weights;
        let (qkv, raw) = self.qkv(cx, &self.norm1.forward(&w, &x));
        let mut attended = Buffer::like(&qkv.q);
        let mut lse = Buffer::new(cx.positions.len() * cx.config.heads * 2, cx.config.heads * 2);
        let shape = cx.shape(self.window);
        attention::forward(&mut attended, &mut lse, &qkv.q, &qkv.k, &qkv.v, cx.layout, shape);
        let attended = cx.keep_read(attended, Self::attended_width(cx));
        let w = cx.after_attention();
        let mut mid = self.o.forward(w, &attended);
        add(&mut mid, &cx.rows_read(&x, cx.config.hidden));
        let n2 = self.norm2.forward(&w, &self.mlp_input(cx, &x, &mid));
        let gate = self.mlp.gate.map(|gate| gate.forward(w, &n2));
        let up = self.mlp.up.forward(w, &n2);
        LayerActivations { x, raw, qkv, attended, lse, mid, gate, up }
    }

    /// From `d_out` returns `d_x`, and the gradients inside the layer; adds to `grads`. `sources`, where given, are added
    /// to the gradients at their places on the way down.
    pub(super) fn backward(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        out: Buffer,
        sources: Option<&LayerSources>,
    ) -> (Buffer, LayerGradients) {
        let (w, after, c) = (cx.weights, cx.after_attention(), cx.config.hidden);
        let mlp_in = self.mlp_input(cx, &a.x, &a.mid);
        let (act, n2) = self.backward_mlp(cx, grads, a, &mlp_in, &out, sources);
        let mut d_mlp_in = self.norm2.backward(&after, grads, &n2, &mlp_in);
        if let Some(s) = sources {
            add(&mut d_mlp_in, &s.mlp_in);
        }
        // The residual stream carries `out` to `mid` as it is.
        let mut mid = out.clone();
        if !cx.config.parallel_residual {
            add(&mut mid, &d_mlp_in);
        }
        let attended = self.o.backward(after, grads, &mid, &a.attended);
        let attended = cx.spread(attended, Self::attended_width(cx));
        let mut qkv = Qkv::like(&a.qkv);
        let to = (&mut qkv.q[..], &mut qkv.k[..], &mut qkv.v[..]);
        let made = (&cx.all_rows(&a.attended, Self::attended_width(cx))[..], &a.lse[..]);
        attention::backward(to, &attended, a.qkv.parts(), made, cx.layout, cx.shape(self.window));
        let normed = self.turned_back(cx, grads, a, &mut qkv);
        if let Some(s) = sources {
            qkv.add(&s.qkv);
        }
        let n1 = self.norm1.forward(&w, &a.x);
        let d_n1 = Linear::backward_each(self.qkv_maps(), w, grads, qkv.each(), &n1);
        let mut d_x = self.norm1.backward(&w, grads, &d_n1, &a.x);
        cx.add_read(&mut d_x, &mid, c);
        if cx.config.parallel_residual {
            cx.add_read(&mut d_x, &d_mlp_in, c);
        }
        if let Some(s) = sources {
            add(&mut d_x, &s.x);
        }
        (d_x, LayerGradients { out, act, n2, attended, normed, qkv, n1: d_n1 })
    }

    /// From the gradient at the layer's output, those at the outputs of the activation and of `norm2`.
    fn backward_mlp(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        mlp_in: &[f32],
        d_out: &[f32],
        sources: Option<&LayerSources>,
    ) -> (Buffer, Buffer) {
        let w = cx.after_attention();
        let activated = self.activate(cx, a.gate.as_deref(), &a.up);
        let d_act = self.mlp.down.backward(w, grads, d_out, &activated);
        let n2 = self.norm2.forward(&w, mlp_in);
        // `activated` is of the same size, and no longer needed.
        let (mut d_gate, mut d_up) = self.activate_backward(cx, a, &d_act, activated);
        if let Some(s) = sources {
            add(&mut d_up, &s.up);
            d_gate.iter_mut().zip(&s.gate).for_each(|(d, s)| add(d, s));
        }
        let up = &self.mlp.up;
        let d_n2 = match (&self.mlp.gate, &d_gate) {
            (Some(gate), Some(d_gate)) => Linear::backward_each([up, gate], w, grads, [&d_up, d_gate], &n2),
            _ => up.backward(w, grads, &d_up, &n2),
        };
        (d_act, d_n2)
    }

    /// The gradients at `gate` (where there is one) and `up`, the second in `buffer`.
    fn activate_backward(
        &self,
        cx: &Context,
        a: &LayerActivations,
        d_act: &[f32],
        buffer: Buffer,
    ) -> (Option<Buffer>, Buffer) {
        let (act, mut d_up) = (cx.config.activation, buffer);
        let d_gate = a.gate.as_ref().map(|gate| {
            let mut d_gate = Buffer::like(gate);
            activation::gated_backward(act, &mut d_gate, &mut d_up, d_act, gate, &a.up);
            d_gate
        });
        if d_gate.is_none() {
            activation::backward(act, &mut d_up, d_act, &a.up);
        }
        (d_gate, d_up)
    }

    /// Takes gradients from what attention reads to what the linear maps gave. Returns, where queries and keys have norms, the
    /// gradients at those norms' outputs.
    fn turned_back(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        d: &mut Qkv,
    ) -> Option<RawQk> {
        cx.turn(&mut d.q, cx.config.heads, Turn::Back);
        cx.turn(&mut d.k, cx.config.kv_heads, Turn::Back);
        self.qk_norm.zip(a.raw.as_ref()).map(|((q_norm, k_norm), raw)| {
            let q = q_norm.backward(&cx.weights, grads, &d.q, &raw.q);
            let k = k_norm.backward(&cx.weights, grads, &d.k, &raw.k);
            RawQk { q: std::mem::replace(&mut d.q, q), k: std::mem::replace(&mut d.k, k) }
        })
    }
}
