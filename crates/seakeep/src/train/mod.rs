//! Training.

mod options;

pub use options::{Every, Resume, TrainOptions};
