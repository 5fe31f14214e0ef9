//! The optimizer and the learning rate.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWState, clip};
pub use schedule::{Schedule, Warmup};
