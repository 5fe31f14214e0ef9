//! The optimizer and the learning rate.

mod adamw;
mod moments;
mod schedule;

pub use adamw::{AdamW, AdamWState, clipping};
pub use moments::Moments;
pub use schedule::{Schedule, Warmup};
