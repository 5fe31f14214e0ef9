//! Recommendation, the task of CausalDPO (arXiv 2603.22335) and S-DPO (arXiv 2406.09215): a user's history becomes a prompt,
//! the item chosen next its completion, items drawn at random the rejected ones; a policy is judged by where it ranks the
//! user's last item among candidates, for users like those of the training data and for others.
//!
//! ```text
//! interactions -> read_interactions -> prepare -> sft.jsonl, train.jsonl, test.jsonl, test_shifted.jsonl
//!                    test.jsonl + model -> rank -> Ranking of every row -> summarise: HR@K, NDCG@K, MRR
//! ```
//! Stages meet in files: what [`prepare()`] writes is read by `seakeep sft`, `seakeep train` and [`read_rows`].

pub mod inferred;
pub mod interactions;
pub mod metrics;
pub mod prepare;
pub mod rank;
pub mod table;
pub mod template;
mod when;
pub mod world;

pub use inferred::{Inferred, infer};
pub use interactions::{Columns, Interactions, Sources, User, read_interactions};
pub use metrics::{CUTOFFS, Estimate, Ranking, Summary, summarise};
pub use prepare::{Card, Part, PrepareOptions, Shift, prepare};
pub use rank::{MissingTarget, RankRow, RankScores, rank_of, read_rows, score, tokenize};
pub use table::{Table, TableFormat};
pub use template::{DEFAULT_TEMPLATE, Template};
pub use world::{WorldOptions, WorldRow, interactions_of_world};

#[cfg(test)]
mod tests;
