//! Language models: one decoder for every family, with forward, backward, tangent and curvature written out by
//! hand.
//!
//! | file | what |
//! |---|---|
//! | `config` | `config.json` to [`ModelConfig`] |
//! | `families` | names and packing of tensors: where a new family goes |
//! | `tensors` | the map of a model's tensors; gradients: [`Tensors`] |
//! | `weights` | the weights, in f32, bf16 or quantised: [`Weights`] |
//! | `blocks`, `layer`, `decoder` | the passes, from the inside out |
//! | `penalty` | the passes behind a penalty on the gradient at the embeddings |
//! | `recompute` | gradient checkpointing |
//! | `lora` | adapters: made, read, merged, saved |
//! | `labels` | the passes of a model that ends in a head of labels |
//! | `generate` | the forward pass over a key/value cache |
//! | `cost` | operations and memory of the passes, from shapes |
//! | `files` | loading, saving, random initialisation |

pub mod blocks;
mod config;
mod cost;
mod decoder;
pub mod families;
mod files;
mod generate;
mod labels;
pub mod layer;
mod lora;
mod penalty;
mod recompute;
mod rotary;
mod tensors;
mod weights;

/// What passes return: memory that is used again when it is dropped.
pub use seakeep_kernels::buffer::Buffer;

pub use config::{Family, ModelConfig, NormKind, Positions, SUPPORTED_FAMILIES};
pub(crate) use cost::room;
pub use cost::{Operations, Sizes};
pub use decoder::{Activations, Model};
pub use families::{GATED_HEAD, LABEL_HEAD};
pub use files::RandomModel;
pub use generate::{KvCache, Prefix};
pub use labels::HiddenActivations;
pub use lora::{Adapters, check_targets};
pub use penalty::{InnerGradients, Tangents};
pub use tensors::{FileTensor, Pack, ParamId, ParamSpec, TensorMap, Tensors, Values};
pub use weights::{Keep, Numbers, Stored, Weights};
