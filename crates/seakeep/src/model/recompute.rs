//! What passes leave of a layer for those that follow: everything, or with `gradient_checkpointing` only what flowed into it, to
//! compute the rest again, to the same bits, when its turn comes (Chen et al., arXiv 1604.06174).

use std::borrow::Cow;

use seakeep_kernels::buffer::Buffer;

use super::layer::{Context, Layer, LayerActivations, LayerGradients, LayerSources, LayerTangents};
use super::tensors::Tensors;

/// What a forward pass leaves.
pub(super) enum Kept {
    Whole(Box<LayerActivations>),
    /// The layer's input, `[T, C]`.
    Input(Buffer),
}

impl Kept {
    pub(super) fn new(a: LayerActivations, checkpointing: bool) -> Self {
        if checkpointing { Kept::Input(a.x) } else { Kept::Whole(Box::new(a)) }
    }

    /// The layer's activations.
    pub(super) fn activations(&self, layer: &Layer, cx: &Context) -> Cow<'_, LayerActivations> {
        match self {
            Kept::Whole(a) => Cow::Borrowed(a),
            Kept::Input(x) => Cow::Owned(layer.inside(cx, x.clone())),
        }
    }
}

/// What a backward pass leaves.
pub(super) enum KeptGradients {
    Whole(Box<LayerGradients>),
    /// The gradient at the layer's output, `[T, C]` (of the last layer at the rows that are read, `[N, C]`).
    Output(Buffer),
}

impl KeptGradients {
    pub(super) fn new(d: LayerGradients, checkpointing: bool) -> Self {
        if checkpointing { KeptGradients::Output(d.out) } else { KeptGradients::Whole(Box::new(d)) }
    }
}

/// What a tangent pass leaves.
pub(super) enum KeptSources {
    Whole(LayerSources),
    /// The gradient at the layer's output (of the last layer at the rows that are read, `[N, C]`) and the tangent of its input, `[T, C]`.
    Ends {
        d_out: Buffer,
        t_x: Buffer,
    },
}

impl KeptSources {
    /// Adds the curvature's part to `grads`, unless it is to be computed later.
    pub(super) fn new(
        layer: &Layer,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
        d: KeptGradients,
        t: LayerTangents,
    ) -> Self {
        match d {
            KeptGradients::Whole(d) => KeptSources::Whole(layer.curvature(cx, grads, a, *d, t)),
            KeptGradients::Output(d_out) => KeptSources::Ends { d_out, t_x: t.x },
        }
    }

    /// The sources; adds the curvature's part to `grads`, where [`new`](Self::new) did not.
    pub(super) fn sources(
        self,
        layer: &Layer,
        cx: &Context,
        grads: &mut Tensors,
        a: &LayerActivations,
    ) -> LayerSources {
        match self {
            KeptSources::Whole(sources) => sources,
            KeptSources::Ends { d_out, t_x } => {
                let d = layer.backward(cx, &mut grads.none_like(), a, d_out, None).1;
                layer.curvature(cx, grads, a, d, layer.tangent_inside(cx, a, t_x))
            }
        }
    }
}
