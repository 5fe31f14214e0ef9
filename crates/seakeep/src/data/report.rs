//! What tokenising did, in numbers: printed before training starts, and by `inspect data`.

use serde::{Deserialize, Serialize};

use super::labels::Role;
use super::tokenize::{Lengths, Outcome, TokenizedPair};

/// Nearest-rank quantiles of a length, in tokens; zeros where there are no rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: usize,
    /// 90%.
    pub p90: usize,
    /// 99%.
    pub p99: usize,
    /// The longest.
    pub max: usize,
}

impl Quantiles {
    /// Of `lengths`, in any order.
    pub fn of(mut lengths: Vec<usize>) -> Quantiles {
        lengths.sort_unstable();
        let rank = |percent: usize| match lengths.len() {
            0 => 0,
            n => lengths[(n * percent).div_ceil(100).max(1) - 1],
        };
        Quantiles { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

/// Counts of one call of `tokenize_pairs`. Lengths are in tokens, before truncation; totals after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeReport {
    /// Rows read.
    pub rows: usize,
    /// Rows kept.
    pub kept: usize,
    /// Rows left out because the prompt is no prefix, by tokens.
    pub dropped_mismatch: usize,
    /// Rows left out because the prompt alone fills `max_length`.
    pub dropped_truncated: usize,
    /// Rows whose boundary moved because tokens merge across it (TRL's rule).
    pub backed_off: usize,
    /// Prompt tokens that those rows gave up.
    pub backed_off_tokens: usize,
    /// Chosen branches that were cut.
    pub truncated_chosen: usize,
    /// Rejected branches that were cut.
    pub truncated_rejected: usize,
    /// Tokens lost to truncation, both branches.
    pub truncated_tokens: usize,
    /// Prompt tokens, each pair's prompt counted once.
    pub prompt_tokens: usize,
    /// Completion tokens kept, chosen.
    pub chosen_tokens: usize,
    /// Completion tokens kept, rejected.
    pub rejected_tokens: usize,
    /// Lengths of prompts.
    pub prompt_lengths: Quantiles,
    /// Lengths of chosen completions.
    pub chosen_lengths: Quantiles,
    /// Lengths of rejected completions.
    pub rejected_lengths: Quantiles,
}

impl TokenizeReport {
    /// Rows left out.
    pub fn dropped(&self) -> usize {
        self.dropped_mismatch + self.dropped_truncated
    }
}

/// A report in the making.
#[derive(Default)]
pub(super) struct Counts {
    report: TokenizeReport,
    lengths: [Vec<usize>; 3],
}

impl Counts {
    /// Counts a row, gives it its place among all rows, and hands it on where it is kept.
    pub fn count(&mut self, outcome: Outcome) -> Option<TokenizedPair> {
        let index = self.report.rows;
        self.report.rows += 1;
        match outcome {
            Outcome::Kept(lengths, pair) => {
                let pair = TokenizedPair { index, ..pair };
                self.keep(lengths, &pair);
                return Some(pair);
            }
            Outcome::Mismatch => self.report.dropped_mismatch += 1,
            Outcome::Truncated => self.report.dropped_truncated += 1,
        }
        None
    }

    fn keep(&mut self, (prompt, completions): Lengths, pair: &TokenizedPair) {
        let report = &mut self.report;
        report.kept += 1;
        report.backed_off += usize::from(pair.backed_off > 0);
        report.backed_off_tokens += pair.backed_off;
        report.prompt_tokens += pair.longest_prompt().len();
        for branch in &pair.branches {
            let (cut, tokens) = match branch.role {
                Role::Chosen => (&mut report.truncated_chosen, &mut report.chosen_tokens),
                _ => (&mut report.truncated_rejected, &mut report.rejected_tokens),
            };
            *cut += usize::from(branch.truncated > 0);
            *tokens += branch.completion.len();
            report.truncated_tokens += branch.truncated;
        }
        self.lengths[0].push(prompt);
        for (role, length) in completions {
            self.lengths[if role == Role::Chosen { 1 } else { 2 }].push(length);
        }
    }

    pub fn into_report(self) -> TokenizeReport {
        let [prompt, chosen, rejected] = self.lengths;
        TokenizeReport {
            prompt_lengths: Quantiles::of(prompt),
            chosen_lengths: Quantiles::of(chosen),
            rejected_lengths: Quantiles::of(rejected),
            ..self.report
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        let q = Quantiles::of((1..=100).rev().collect());
        assert_eq!(q, Quantiles { p50: 50, p90: 90, p99: 99, max: 100 });
        assert_eq!(Quantiles::of(vec![7]), Quantiles { p50: 7, p90: 7, p99: 7, max: 7 });
        assert_eq!(Quantiles::of(vec![]), Quantiles::default());
    }
}
