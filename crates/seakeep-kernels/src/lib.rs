//! The numerical operations of Seakeep. Numbers in, numbers out: nothing here knows of models or files.
//!
//! # Legend
//!
//! | letter | dimension |
//! |---|---|
//! | `T` | real tokens of a flat batch (nothing is padded) |
//! | `C`, `I` | channels of the residual stream, of the feed-forward layer |
//! | `H`, `J` | query heads, key/value heads (`H` is a multiple of `J`) |
//! | `D` | channels of one head |
//! | `V` | vocabulary |
//! | `N` | predictions (rows of the vocabulary projection) |
//!
//! All buffers are row-major `f32`; the last index named is contiguous.
//!
//! # Four functions per operation
//!
//! For an operation `y = f(x; w)`:
//!
//! * `forward`: `y` from `x`.
//! * `backward`: from `d_y = dL/dy`, writes `d_x` and **adds** to `d_w`.
//! * `tangent`: `t_y = df(x)[t_x]`, the directional derivative of `forward` (weights fixed).
//! * `curvature`: how `backward` changes along `t_x` while `d_y` is held: writes `s_x`, the change of `d_x`, and **adds**
//!   that of `d_w`. `backward` is linear in `d_y`, so its whole directional derivative is `curvature(d_y, t_x)` plus
//!   `backward(td_y)`. With `t_x` seeded by a direction `v` at the embeddings, the sum over the network is
//!   `d/d eps [dL/dw at e + eps v]`, the exact gradient of an input-gradient penalty (OBJECTIVES.md, wdpo).
//!
//! Operations linear in `x` without weights (rotary embedding, gathers) use the same function for
//! value and tangent.
//!
//! # Determinism
//!
//! Work is cut into pieces whose size does not depend on the number of threads, and partial sums are
//! added in order: one thread and many give the same bits.
#![deny(missing_docs)]

pub mod activation;
pub mod attention;
pub mod blocks;
pub mod buffer;
pub mod ceiling;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod gemm;
pub mod layernorm;
pub mod linear;
pub mod lora;
pub mod panels;
pub mod projection;
pub mod rmsnorm;
pub mod rope;
mod rows;
pub mod simd;
pub mod stored;

#[cfg(test)]
mod testing;
