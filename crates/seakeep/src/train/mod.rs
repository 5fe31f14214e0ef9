//! Training.

mod options;
pub mod step;

pub use options::{Every, Resume, TrainOptions};
