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

use seakeep_kernels::activation;
use seakeep_kernels::attention::{self, DualGradients, Layout, Shape};
use seakeep_kernels::rope::{self, Table, Turn};

use super::blocks::{Dual, Linear, Norm, add};
use super::config::ModelConfig;
use super::tensors::Tensors;
use super::weights::Weights;

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
    pub weights: &'a Weights,
    pub rope: Option<&'a Table>,
    pub positions: &'a [u32],
    pub layout: &'a Layout,
}

impl Context<'_> {
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
pub(super) struct Qkv {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

impl Qkv {
    fn parts(&self) -> (&[f32], &[f32], &[f32]) {
        (&self.q, &self.k, &self.v)
    }

    fn zeros_like(other: &Qkv) -> Self {
        Qkv { q: vec![0.0; other.q.len()], k: vec![0.0; other.k.len()], v: vec![0.0; other.v.len()] }
    }
}

/// Queries and keys before their norm.
pub(super) struct RawQk {
    q: Vec<f32>,
    k: Vec<f32>,
}

/// What follows attention.
struct Rest {
    /// The layer's output, `[T, C]`.
    out: Vec<f32>,
    /// Residual stream after attention, `[T, C]`.
    mid: Vec<f32>,
    /// `[T, I]`
    gate: Option<Vec<f32>>,
    /// `[T, I]`
    up: Vec<f32>,
}

/// The forward pass of a layer, kept for the passes that follow it; or the tangent of one.
pub(super) struct LayerActivations {
    /// Input, `[T, C]`.
    x: Vec<f32>,
    /// Queries and keys before their norm, where they have one.
    raw: Option<RawQk>,
    /// After norm and rotation.
    qkv: Qkv,
    /// Attention before its output projection, `[T, H, D]`.
    attended: Vec<f32>,
    /// Log-sum-exp of the scores, `[T, H, 2]` (empty in a tangent).
    lse: Vec<f32>,
    /// Residual stream after attention, `[T, C]`.
    mid: Vec<f32>,
    /// `[T, I]`
    gate: Option<Vec<f32>>,
    /// `[T, I]`
    up: Vec<f32>,
}

impl Layer {
    /// Its linear maps.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Mlp { gate, up, down } = &self.mlp;
        [Some(&self.q), Some(&self.k), Some(&self.v), Some(&self.o), gate.as_ref(), Some(up), Some(down)]
            .into_iter()
            .flatten()
    }

    /// Its linear maps, to be given adapters.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Mlp { gate, up, down } = &mut self.mlp;
        let (q, k, v, o) = (&mut self.q, &mut self.k, &mut self.v, &mut self.o);
        [Some(q), Some(k), Some(v), Some(o), gate.as_mut(), Some(up), Some(down)].into_iter().flatten()
    }

    /// Queries, keys and values of normalised input `n1`, and what they were before their norm.
    fn qkv(&self, cx: &Context, n1: &[f32]) -> (Qkv, Option<RawQk>) {
        let w = cx.weights;
        self.turned(cx, self.q.forward(w, n1), self.k.forward(w, n1), self.v.forward(w, n1))
    }

    /// Norms, where there are any, and turns queries and keys.
    pub(super) fn turned(
        &self,
        cx: &Context,
        mut q: Vec<f32>,
        mut k: Vec<f32>,
        v: Vec<f32>,
    ) -> (Qkv, Option<RawQk>) {
        let w = cx.weights;
        let raw = self.qk_norm.map(|(q_norm, k_norm)| {
            let normed = (q_norm.forward(w, &q), k_norm.forward(w, &k));
            RawQk { q: std::mem::replace(&mut q, normed.0), k: std::mem::replace(&mut k, normed.1) }
        });
        cx.turn(&mut q, cx.config.heads, Turn::Forth);
        cx.turn(&mut k, cx.config.kv_heads, Turn::Forth);
        (Qkv { q, k, v }, raw)
    }

    /// The input of the feed-forward layer's norm.
    fn mlp_input<'a>(&self, cx: &Context, x: &'a [f32], mid: &'a [f32]) -> &'a [f32] {
        if cx.config.parallel_residual { x } else { mid }
    }

    /// Everything after attention.
    fn after_attention(&self, cx: &Context, x: &[f32], attended: &[f32]) -> Rest {
        let w = cx.weights;
        let mut mid = self.o.forward(w, attended);
        add(&mut mid, x);
        let n2 = self.norm2.forward(w, self.mlp_input(cx, x, &mid));
        let gate = self.mlp.gate.map(|gate| gate.forward(w, &n2));
        let up = self.mlp.up.forward(w, &n2);
        let mut out = self.mlp.down.forward(w, &self.activate(cx, gate.as_deref(), &up));
        add(&mut out, &mid);
        Rest { out, mid, gate, up }
    }

    fn activate(&self, cx: &Context, gate: Option<&[f32]>, up: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; up.len()];
        match gate {
            Some(gate) => activation::gated_forward(cx.config.activation, &mut y, gate, up),
            None => activation::forward(cx.config.activation, &mut y, up),
        }
        y
    }

    /// The layer's output, and what the other passes need.
    pub(super) fn forward(&self, cx: &Context, x: Vec<f32>) -> (Vec<f32>, LayerActivations) {
        let (qkv, raw) = self.qkv(cx, &self.norm1.forward(cx.weights, &x));
        let mut attended = vec![0.0; qkv.q.len()];
        let mut lse = vec![0.0; cx.positions.len() * cx.config.heads * 2];
        let shape = cx.shape(self.window);
        attention::forward(&mut attended, &mut lse, &qkv.q, &qkv.k, &qkv.v, cx.layout, shape);
        let Rest { out, mid, gate, up } = self.after_attention(cx, &x, &attended);
        (out, LayerActivations { x, raw, qkv, attended, lse, mid, gate, up })
    }

    /// The tangent of [`forward`](Self::forward).
    pub(super) fn tangent(
        &self,
        cx: &Context,
        a: &LayerActivations,
        t_x: Vec<f32>,
    ) -> (Vec<f32>, LayerActivations) {
        let (w, act) = (cx.weights, cx.config.activation);
        let t_n1 = self.norm1.tangent(w, &a.x, &t_x);
        let (mut t_q, mut t_k) = (self.q.tangent(w, &t_n1), self.k.tangent(w, &t_n1));
        let t_v = self.v.tangent(w, &t_n1);
        let raw = self.qk_norm.zip(a.raw.as_ref()).map(|((q_norm, k_norm), raw)| {
            let (n_q, n_k) = (q_norm.tangent(w, &raw.q, &t_q), k_norm.tangent(w, &raw.k, &t_k));
            RawQk { q: std::mem::replace(&mut t_q, n_q), k: std::mem::replace(&mut t_k, n_k) }
        });
        cx.turn(&mut t_q, cx.config.heads, Turn::Forth);
        cx.turn(&mut t_k, cx.config.kv_heads, Turn::Forth);
        let qkv = Qkv { q: t_q, k: t_k, v: t_v };
        let mut attended = vec![0.0; a.attended.len()];
        let shape = cx.shape(self.window);
        attention::tangent(&mut attended, a.qkv.parts(), qkv.parts(), &a.lse, cx.layout, shape);
        let mut mid = self.o.tangent(w, &attended);
        add(&mut mid, &t_x);
        let mlp_in = self.mlp_input(cx, &a.x, &a.mid);
        let t_n2 = self.norm2.tangent(w, mlp_in, self.mlp_input(cx, &t_x, &mid));
        let gate = self.mlp.gate.map(|gate| gate.tangent(w, &t_n2));
        let up = self.mlp.up.tangent(w, &t_n2);
        let mut t_act = vec![0.0; up.len()];
        match (&a.gate, &gate) {
            (Some(g), Some(t_g)) => activation::gated_tangent(act, &mut t_act, g, &a.up, t_g, &up),
            _ => activation::tangent(act, &mut t_act, &a.up, &up),
        }
        let mut t_out = self.mlp.down.tangent(w, &t_act);
        add(&mut t_out, &mid);
        (t_out, LayerActivations { x: t_x, raw, qkv, attended, lse: Vec::new(), mid, gate, up })
    }

    /// From `d_out` returns `d_x`; adds to `grads`.
    pub(super) fn backward(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        d_out: Vec<f32>,
    ) -> Vec<f32> {
        let w = cx.weights;
        let mlp_in = self.mlp_input(cx, &a.x, &a.mid);
        let d_mlp_in = {
            let d_n2 = self.backward_mlp(cx, grads, a, mlp_in, &d_out);
            self.norm2.backward(w, grads, &d_n2, mlp_in)
        };
        // `d_out` reaches `mid` through the residual stream as it is.
        let mut d_mid = d_out;
        if !cx.config.parallel_residual {
            add(&mut d_mid, &d_mlp_in);
        }
        let d_attended = self.o.backward(w, grads, &d_mid, &a.attended);
        let mut d = Qkv::zeros_like(&a.qkv);
        let shape = cx.shape(self.window);
        let out = (&mut d.q[..], &mut d.k[..], &mut d.v[..]);
        attention::backward(out, &d_attended, a.qkv.parts(), &a.lse, cx.layout, shape);
        cx.turn(&mut d.q, cx.config.heads, Turn::Back);
        cx.turn(&mut d.k, cx.config.kv_heads, Turn::Back);
        if let (Some((q_norm, k_norm)), Some(raw)) = (self.qk_norm, &a.raw) {
            d.q = q_norm.backward(w, grads, &d.q, &raw.q);
            d.k = k_norm.backward(w, grads, &d.k, &raw.k);
        }
        let n1 = self.norm1.forward(w, &a.x);
        let mut d_n1 = self.q.backward(w, grads, &d.q, &n1);
        add(&mut d_n1, &self.k.backward(w, grads, &d.k, &n1));
        add(&mut d_n1, &self.v.backward(w, grads, &d.v, &n1));
        let mut d_x = d_mid;
        add(&mut d_x, &self.norm1.backward(w, grads, &d_n1, &a.x));
        if cx.config.parallel_residual {
            add(&mut d_x, &d_mlp_in);
        }
        d_x
    }

    /// From the gradient at the layer's output, the gradient at `norm2`'s output.
    fn backward_mlp(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        mlp_in: &[f32],
        d_out: &[f32],
    ) -> Vec<f32> {
        let (w, act) = (cx.weights, cx.config.activation);
        let activated = self.activate(cx, a.gate.as_deref(), &a.up);
        let d_act = self.mlp.down.backward(w, grads, d_out, &activated);
        let n2 = self.norm2.forward(w, mlp_in);
        let mut d_up = activated; // same size, no longer needed
        match (&self.mlp.gate, &a.gate) {
            (Some(gate), Some(g)) => {
                let mut d_gate = vec![0.0; g.len()];
                activation::gated_backward(act, &mut d_gate, &mut d_up, &d_act, g, &a.up);
                let mut d_n2 = gate.backward(w, grads, &d_gate, &n2);
                add(&mut d_n2, &self.mlp.up.backward(w, grads, &d_up, &n2));
                d_n2
            }
            _ => {
                activation::backward(act, &mut d_up, &d_act, &a.up);
                self.mlp.up.backward(w, grads, &d_up, &n2)
            }
        }
    }

    /// The tangent of [`backward`](Self::backward): from `(d_out, td_out)` returns `(d_x, td_x)`; adds the
    /// tangents of the weights' gradients to `t_grads`.
    pub(super) fn backward_tangent(
        &self,
        cx: &Context,
        t_grads: &mut Tensors,
        a: &LayerActivations,
        t: &LayerActivations,
        (d_out, td_out): Dual,
    ) -> Dual {
        let w = cx.weights;
        let mlp_in = (self.mlp_input(cx, &a.x, &a.mid), self.mlp_input(cx, &t.x, &t.mid));
        let d_mlp_in = {
            let d_n2 = self.backward_tangent_mlp(cx, t_grads, a, t, mlp_in, (&d_out, &td_out));
            self.norm2.backward_tangent(w, t_grads, (&d_n2.0, &d_n2.1), mlp_in)
        };
        let mut d_mid = (d_out, td_out);
        if !cx.config.parallel_residual {
            add_dual(&mut d_mid, &d_mlp_in);
        }
        let d_attended =
            self.o.backward_tangent(w, t_grads, (&d_mid.0, &d_mid.1), (&a.attended, &t.attended));
        let (mut d, mut td) = (Qkv::zeros_like(&a.qkv), Qkv::zeros_like(&a.qkv));
        let out =
            DualGradients { q: (&mut d.q, &mut td.q), k: (&mut d.k, &mut td.k), v: (&mut d.v, &mut td.v) };
        let shape = cx.shape(self.window);
        let d_o = (&d_attended.0[..], &d_attended.1[..]);
        attention::backward_tangent(out, d_o, a.qkv.parts(), t.qkv.parts(), &a.lse, cx.layout, shape);
        for d in [&mut d, &mut td] {
            cx.turn(&mut d.q, cx.config.heads, Turn::Back);
            cx.turn(&mut d.k, cx.config.kv_heads, Turn::Back);
        }
        if let (Some((q_norm, k_norm)), Some(raw), Some(t_raw)) = (self.qk_norm, &a.raw, &t.raw) {
            (d.q, td.q) = q_norm.backward_tangent(w, t_grads, (&d.q, &td.q), (&raw.q, &t_raw.q));
            (d.k, td.k) = k_norm.backward_tangent(w, t_grads, (&d.k, &td.k), (&raw.k, &t_raw.k));
        }
        let n1 = (self.norm1.forward(w, &a.x), self.norm1.tangent(w, &a.x, &t.x));
        let n1 = (&n1.0[..], &n1.1[..]);
        let mut d_n1 = self.q.backward_tangent(w, t_grads, (&d.q, &td.q), n1);
        add_dual(&mut d_n1, &self.k.backward_tangent(w, t_grads, (&d.k, &td.k), n1));
        add_dual(&mut d_n1, &self.v.backward_tangent(w, t_grads, (&d.v, &td.v), n1));
        let mut d_x = d_mid;
        add_dual(&mut d_x, &self.norm1.backward_tangent(w, t_grads, (&d_n1.0, &d_n1.1), (&a.x, &t.x)));
        if cx.config.parallel_residual {
            add_dual(&mut d_x, &d_mlp_in);
        }
        d_x
    }

    /// The tangent of [`backward_mlp`](Self::backward_mlp).
    fn backward_tangent_mlp(
        &self,
        cx: &Context,
        t_grads: &mut Tensors,
        a: &LayerActivations,
        t: &LayerActivations,
        mlp_in: (&[f32], &[f32]),
        d_out: (&[f32], &[f32]),
    ) -> Dual {
        let (w, act) = (cx.weights, cx.config.activation);
        let n2 = (self.norm2.forward(w, mlp_in.0), self.norm2.tangent(w, mlp_in.0, mlp_in.1));
        let n2 = (&n2.0[..], &n2.1[..]);
        let activated = self.activate(cx, a.gate.as_deref(), &a.up);
        let mut t_activated = vec![0.0; activated.len()];
        let (mut d_up, mut td_up) = (vec![0.0; a.up.len()], vec![0.0; a.up.len()]);
        match (&self.mlp.gate, &a.gate, &t.gate) {
            (Some(gate), Some(g), Some(t_g)) => {
                activation::gated_tangent(act, &mut t_activated, g, &a.up, t_g, &t.up);
                let (d, td) = self.mlp.down.backward_tangent(w, t_grads, d_out, (&activated, &t_activated));
                let (mut d_gate, mut td_gate) = (vec![0.0; g.len()], vec![0.0; g.len()]);
                activation::gated_backward(act, &mut d_gate, &mut d_up, &d, g, &a.up);
                activation::gated_backward_tangent(
                    act,
                    &mut td_gate,
                    &mut td_up,
                    &d,
                    &td,
                    g,
                    &a.up,
                    t_g,
                    &t.up,
                );
                let mut d_n2 = gate.backward_tangent(w, t_grads, (&d_gate, &td_gate), n2);
                add_dual(&mut d_n2, &self.mlp.up.backward_tangent(w, t_grads, (&d_up, &td_up), n2));
                d_n2
            }
            _ => {
                activation::tangent(act, &mut t_activated, &a.up, &t.up);
                let (d, td) = self.mlp.down.backward_tangent(w, t_grads, d_out, (&activated, &t_activated));
                activation::backward(act, &mut d_up, &d, &a.up);
                activation::backward_tangent(act, &mut td_up, &d, &td, &a.up, &t.up);
                self.mlp.up.backward_tangent(w, t_grads, (&d_up, &td_up), n2)
            }
        }
    }
}

fn add_dual(to: &mut Dual, from: &Dual) {
    add(&mut to.0, &from.0);
    add(&mut to.1, &from.1);
}
