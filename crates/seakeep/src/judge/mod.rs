//! Judging a policy: its own completions, scored, and preference data, into a [`PolicyRecord`](crate::policy_record::PolicyRecord).
//!
//! | file | what |
//! |---|---|
//! | `samples` | completions: drawn here or read from a file; log-probabilities, distinct n-grams |
//! | `pairs` | preference data: margins, losses, groups, scores, input gradients |
//! | `reward` | a reward model as the judge of completions |
//! | `run` | what a run's directory tells of how a policy was trained |
//! | `summary` | the record's numbers with intervals |
//! | `table` | the same to read |

mod pairs;
mod reward;
mod run;
mod samples;
mod summary;
mod table;

pub use pairs::{Evaluated, Evaluator, RowColumns, input_gradients};
pub use reward::RewardJudge;
pub use run::RunFacts;
pub use samples::{Drawn, Prompt, drawn_with, prompts_fingerprint, read_prompts};
pub use summary::{Comparison, Difference, RewardAt, SetSummary, Summary, SummaryOptions, WorstCase};
pub use table::table;

use crate::Result;
use crate::data::Text;
use crate::progress::Progress;

/// Whoever gives completions their scores: a reward model, or a rule.
pub trait Judge {
    /// The names of what is scored.
    fn objectives(&self) -> Vec<String>;

    /// For each (prompt, completion) a score for each objective, in their order.
    ///
    /// # Errors
    /// Texts that cannot be scored.
    fn score(&mut self, texts: &[(&Text, &str)], progress: &mut dyn Progress) -> Result<Vec<Vec<f64>>>;

    /// A name that tells it from other judges, where it has one.
    fn fingerprint(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests;
