//! Statistics of what was measured of policies: pure functions of f64, a fixed order of sums, the same seed the same bits.
//!
//! | file | what |
//! |---|---|
//! | `bootstrap` | percentile intervals over prompts; paired differences |
//! | `joint` | intervals of many statistics of many methods from the same draws |
//! | `shift` | rewards at every alpha, agreement with mixed preferences, win rates, divergence from the reference |
//! | `worst_case` | the largest mean over balls around the data, errors, groups |
//!
//! A number that is not finite makes what is computed of it NaN and nothing else.

mod bootstrap;
mod joint;
mod shift;
mod worst_case;

pub use bootstrap::{Bootstrap, Interval, Paired};
pub use joint::Draw;
pub use shift::{agreement, divergence_per_token, mixed, mixed_preferences, per_prompt, wins};
pub use worst_case::{Ball, GroupMean, by_group, errors, worst_case, worst_group};

/// The least of some numbers; NaN where one of them is: what is not known might be less.
pub fn lowest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::INFINITY, |low, x| if low.is_nan() || x.is_nan() { f64::NAN } else { low.min(x) })
}

/// The mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests;
