//! Reading and writing the files the world uses: checkpoints (safetensors, GGUF), tokenizers and chat
//! templates.
//!
//! Everything here treats a file as foreign: limits are named constants, every offset is checked, and
//! an error says which file, which tensor or key, what was found and what to do about it.

pub mod adapter;
pub mod arrays;
pub mod atomic;
pub mod bpe;
mod chat_templates;
mod claim;
pub mod fingerprint;
pub mod gguf;
pub mod guard;
mod mapped;
pub mod safetensors;
pub mod source;
pub mod template;
pub mod tokenizer;
pub mod weights;

pub use adapter::{AdapterFiles, LoraConfig};
pub use arrays::Arrays;
pub use atomic::{AtomicDir, check_writable, is_special, try_write_atomic_with, unfinished, write_atomic};
pub use claim::Claim;
pub use fingerprint::Fingerprint;
pub use safetensors::{SaveDtype, write_safetensors, write_safetensors_by};
pub use source::ModelSource;
pub use template::Message;
pub use tokenizer::Tokenizer;
pub use weights::Weights;
