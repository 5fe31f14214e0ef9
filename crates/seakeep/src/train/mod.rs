//! Training: the step, the run around it, and what a run writes.

pub mod cost;
pub mod data;
pub mod log;
pub mod machine;
mod options;
mod prepare;
mod run;
pub mod sft;
pub mod step;

pub use cost::{Cost, estimate};
pub use options::{Every, Resume, TrainOptions};
pub(crate) use prepare::{check_output, take_output};
pub use run::{TrainSummary, run};
