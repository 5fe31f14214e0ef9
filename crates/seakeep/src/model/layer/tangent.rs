//! A layer's tangent and curvature.

use seakeep_kernels::activation;
use seakeep_kernels::attention;
use seakeep_kernels::buffer::Buffer;
use seakeep_kernels::rope::Turn;

use super::{Context, Layer, LayerActivations, LayerGradients, LayerSources, Qkv, RawQk};
use crate::model::blocks::{Linear, add};
use crate::model::tensors::Tensors;

/// The tangents inside a layer, as in [`LayerActivations`], and of what that does not keep.
pub(in crate::model) struct LayerTangents {
    pub x: Buffer,
    n1: Buffer,
    raw: Option<RawQk>,
    qkv: Qkv,
    attended: Buffer,
    lse: Buffer,
    mid: Buffer,
    n2: Buffer,
    gate: Option<Buffer>,
    up: Buffer,
    activated: Buffer,
}

impl Layer {
    /// The tangent of [`forward`](Self::forward), and what it was inside the layer.
    pub(in crate::model) fn tangent(
        &self,
        cx: &Context,
        a: &LayerActivations,
        t_x: Buffer,
    ) -> (Buffer, LayerTangents) {
        let t = self.tangent_inside(cx, a, t_x);
        let mut out = self.mlp.down.tangent(cx.after_attention(), &t.activated);
        add(&mut out, &t.mid);
        (out, t)
    }

    /// [`tangent`](Self::tangent) short of the output's.
    pub(in crate::model) fn tangent_inside(
        &self,
        cx: &Context,
        a: &LayerActivations,
        x: Buffer,
    ) -> LayerTangents {
        let (w, act) = (cx.weights, cx.config.activation);
        let n1 = self.norm1.tangent(&w, &a.x, &x);
        let [mut q, mut k, v] = Linear::tangent_each(self.qkv_maps(), w, &n1);
        let raw = self.qk_norm.zip(a.raw.as_ref()).map(|((q_norm, k_norm), raw)| {
            let (n_q, n_k) = (q_norm.tangent(&w, &raw.q, &q), k_norm.tangent(&w, &raw.k, &k));
            RawQk { q: std::mem::replace(&mut q, n_q), k: std::mem::replace(&mut k, n_k) }
        });
        cx.turn(&mut q, cx.config.heads, Turn::Forth);
        cx.turn(&mut k, cx.config.kv_heads, Turn::Forth);
        let qkv = Qkv { q, k, v };
        let mut attended = Buffer::like(&a.qkv.q);
        let mut lse = Buffer::new(cx.positions.len() * cx.config.heads, cx.config.heads);
        // (Of rows that are not read the tangent is not right, and not read.)
        let (made, shape) = (cx.all_rows(&a.attended, Self::attended_width(cx)), cx.shape(self.window));
        let (to, made) = ((&mut attended[..], &mut lse[..]), (&made[..], &a.lse[..]));
        attention::tangent(to, a.qkv.parts(), qkv.parts(), made, cx.layout, shape);
        let attended = cx.keep_read(attended, Self::attended_width(cx));
        let w = cx.after_attention();
        let mut mid = self.o.tangent(w, &attended);
        add(&mut mid, &cx.rows_read(&x, cx.config.hidden));
        let mlp_in = (self.mlp_input(cx, &a.x, &a.mid), self.mlp_input(cx, &x, &mid));
        let n2 = self.norm2.tangent(&w, &mlp_in.0, &mlp_in.1);
        let gate = self.mlp.gate.map(|gate| gate.tangent(w, &n2));
        let up = self.mlp.up.tangent(w, &n2);
        let mut activated = Buffer::like(&up);
        match (&a.gate, &gate) {
            (Some(g), Some(t_g)) => activation::gated_tangent(act, &mut activated, g, &a.up, t_g, &up),
            _ => activation::tangent(act, &mut activated, &a.up, &up),
        }
        LayerTangents { x, n1, raw, qkv, attended, lse, mid, n2, gate, up, activated }
    }

    /// How [`backward`](Self::backward) changes along the tangents `t`, the gradients `d` held: returns what it adds to
    /// them, and adds the change of the weights' gradients to `grads`.
    pub(in crate::model) fn curvature(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        d: LayerGradients,
        t: LayerTangents,
    ) -> LayerSources {
        let (w, after) = (cx.weights, cx.after_attention());
        let (gate, up) = self.curvature_mlp(cx, grads, a, &d, &t);
        let (x, t_x) = (self.mlp_input(cx, &a.x, &a.mid), self.mlp_input(cx, &t.x, &t.mid));
        let mlp_in = self.norm2.curvature(&after, grads, &d.n2, (&x, &t_x));
        // The gradient at `mid`, as `backward` had it, in the place of the output's: cheap to compute, large to keep.
        let mut d_mid = d.out;
        if !cx.config.parallel_residual {
            add(&mut d_mid, &self.norm2.backward(&after, &mut grads.none_like(), &d.n2, &x));
        }
        Linear::curvature_each([&self.o], after, grads, [&d_mid], &t.attended);
        let mut qkv = Qkv::like(&a.qkv);
        let to = (&mut qkv.q[..], &mut qkv.k[..], &mut qkv.v[..]);
        let (qkv_a, qkv_t, shape) = (a.qkv.parts(), t.qkv.parts(), cx.shape(self.window));
        let [o, t_o] = [&a.attended, &t.attended].map(|x| cx.all_rows(x, Self::attended_width(cx)));
        let made = ((&o[..], &a.lse[..]), (&t_o[..], &t.lse[..]));
        attention::curvature(to, &d.attended, qkv_a, qkv_t, made, cx.layout, shape);
        self.turned_back(cx, grads, a, &mut qkv);
        if let (Some((q_norm, k_norm)), Some(raw), Some(t), Some(d)) =
            (self.qk_norm, &a.raw, &t.raw, &d.normed)
        {
            add(&mut qkv.q, &q_norm.curvature(&w, grads, &d.q, (&raw.q, &t.q)));
            add(&mut qkv.k, &k_norm.curvature(&w, grads, &d.k, (&raw.k, &t.k)));
        }
        Linear::curvature_each(self.qkv_maps(), w, grads, d.qkv.each(), &t.n1);
        let x = self.norm1.curvature(&w, grads, &d.n1, (&a.x, &t.x));
        LayerSources { gate, up, mlp_in, qkv, x }
    }

    /// The sources at `gate` and `up`.
    fn curvature_mlp(
        &self,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        d: &LayerGradients,
        t: &LayerTangents,
    ) -> (Option<Buffer>, Buffer) {
        let (w, act) = (cx.after_attention(), cx.config.activation);
        Linear::curvature_each([&self.mlp.down], w, grads, [&d.out], &t.activated);
        let (d_gate, d_up) = self.activate_backward(cx, a, &d.act, Buffer::like(&a.up));
        let up = &self.mlp.up;
        let Some(((gate, d_gate), (g, t_g))) =
            self.mlp.gate.as_ref().zip(d_gate).zip(a.gate.as_ref().zip(t.gate.as_ref()))
        else {
            Linear::curvature_each([up], w, grads, [&d_up], &t.n2);
            let mut s_up = d_up; // same size, no longer needed
            activation::curvature(act, &mut s_up, &d.act, &a.up, &t.up);
            return (None, s_up);
        };
        Linear::curvature_each([up, gate], w, grads, [&d_up, &d_gate], &t.n2);
        let (mut s_gate, mut s_up) = (d_gate, d_up);
        activation::gated_curvature(act, &mut s_gate, &mut s_up, &d.act, g, &a.up, t_g, &t.up);
        (Some(s_gate), s_up)
    }
}
