//! Text from a model: greedy or sampled, batched, over a key/value cache.
//!
//! | file | what |
//! |---|---|
//! | `sample` | logits to the next token: temperature, top-k, top-p |
//! | `engine` | [`generate_ids`]: many prompts through one batch |
//! | `text` | [`generate`]: the same from text to text; [`eos_ids`] |
//!
//! A text does not depend on the batch it is computed in: its randomness belongs to the seed, its prompt's
//! place in the list and its sample's number. Only the rounding of sums (1e-6 relative) differs with the
//! number of rows, and can decide between two tokens that are as close as that.

mod engine;
mod sample;
mod text;

pub use engine::generate_ids;
pub use sample::{distribution, next_token};
pub use text::{Generation, PromptForm, eos_ids, generate};

use crate::{Error, Result};

/// How to generate. Names and meaning are those of transformers' `GenerationConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Longest completion, tokens. A completion also ends where the model's positions do.
    pub max_new_tokens: usize,
    /// Whether to draw from the distribution; otherwise the likeliest token is taken.
    pub do_sample: bool,
    /// Divides the logits before sampling.
    pub temperature: f64,
    /// Samples from the `top_k` likeliest tokens (and the equals of the last); 0: from all. (transformers'
    /// own default is 50.)
    pub top_k: usize,
    /// Samples from the smallest set of likeliest tokens that has at least this probability; 1: from all.
    pub top_p: f64,
    /// Seed of all randomness.
    pub seed: u64,
    /// Texts computed at a time.
    pub batch_size: usize,
    /// Completions of each prompt; more than one only with `do_sample`.
    pub num_return_sequences: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 256,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            batch_size: 8,
            num_return_sequences: 1,
        }
    }
}

impl GenerateOptions {
    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// [`Error::Usage`] with the key, its value and what was expected.
    pub fn check(&self) -> Result<()> {
        let bad = |key: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::Usage(format!("`{key}` is {value}; expected {expected}")))
        };
        for (key, n) in [
            ("max_new_tokens", self.max_new_tokens),
            ("batch_size", self.batch_size),
            ("num_return_sequences", self.num_return_sequences),
        ] {
            if n == 0 {
                return bad(key, &n, "a whole number above 0");
            }
        }
        // `contains` is false for NaN, as it should be.
        if !(f64::MIN_POSITIVE..=f64::MAX).contains(&self.temperature) {
            let expected = "a number above 0 (for the likeliest text set `do_sample` to false)";
            return bad("temperature", &self.temperature, expected);
        }
        if !(f64::MIN_POSITIVE..=1.0).contains(&self.top_p) {
            return bad("top_p", &self.top_p, "a number above 0 and at most 1");
        }
        if self.num_return_sequences > 1 && !self.do_sample {
            let expected = "1 where `do_sample` is false: there is only one likeliest text";
            return bad("num_return_sequences", &self.num_return_sequences, expected);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
