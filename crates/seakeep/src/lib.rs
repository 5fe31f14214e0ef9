//! Seakeep aligns language models so that they hold up when preferences shift.
//!
//! The library is one chain of named types, read from left to right:
//!
//! ```text
//! Pair -> TokenizedPair -> Batch -> Activations -> BranchLogps -> objective -> LogpGrads
//!      -> Gradients -> optimizer -> Checkpoint -> EvalRecord (JSON) -> report (HTML)
//! ```
//!
//! A module imports only from its left; `tests/layering.rs` holds that. `ARCHITECTURE.md` is the map.
#![deny(missing_docs)]

pub mod batch;
pub mod checkpoint;
pub mod data;
pub mod environments;
pub mod error;
pub mod eval;
pub mod eval_record;
pub mod formats;
pub mod generate;
pub mod judge;
pub mod logps;
pub mod model;
pub mod objective;
pub mod optim;
pub mod policy_record;
pub mod preferences;
pub mod progress;
pub mod quickstart;
pub mod recommend;
pub mod reference;
pub mod report;
pub mod reward;
pub mod scoring;
pub mod stats;
pub mod theory;
pub mod train;
pub mod world;

pub use error::{Error, Result};
pub mod ceiling {
    //! What the machine can do at best.
    pub use seakeep_kernels::ceiling::{bandwidth, product};
    pub use seakeep_kernels::gemm::{Precision, instruction_set};
}
