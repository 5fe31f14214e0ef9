//! Text from a model: greedy or sampled, batched, over a key/value cache.
//!
//! | file | what |
//! |---|---|
//! | `sample` | logits to the next token: penalties, temperature, top-k, top-p, min-p |
//! | `stop` | where a text ends: tokens, strings |
//! | `engine` | [`generate_each`]: many prompts through one batch |
//! | `text` | [`generate`]: the same from text to text; [`eos_ids`] |
//! | `partial` | [`Partial`]: finished texts on disk, for a run that goes on where it was |
//!
//! A text does not depend on the batch it is computed in, nor on the number of threads: its randomness belongs to the
//! seed, its prompt's row and its sample's number, and its numbers are the same bits alone and among others
//! (`seakeep_kernels::panels`). So a run may also be stopped and go on with another batch size.

mod engine;
mod partial;
mod sample;
mod stop;
mod text;

pub use engine::{Job, Sample, generate_each, generate_ids, refusal};
pub use partial::{Header, Partial};
pub use sample::{adjust, distribution, next_token};
pub use stop::{FinishReason, Stop};
pub use text::{Generation, PromptForm, completion, encode, encode_prompt, eos_ids, generate, is_templated};

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
    /// Samples from the tokens that are at least this share as likely as the likeliest; 0: from all. After `top_p`.
    pub min_p: f64,
    /// Divides the logits of tokens that stand in the prompt or the completion already (multiplies, where they are
    /// negative); 1: none. Above 1 repeats less.
    pub repetition_penalty: f64,
    /// Shortest completion, tokens: before, no token may end the text, and no string does.
    pub min_new_tokens: usize,
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
            min_p: 0.0,
            repetition_penalty: 1.0,
            min_new_tokens: 0,
            seed: 0,
            batch_size: 64,
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
        if !(0.0..=1.0).contains(&self.min_p) {
            return bad("min_p", &self.min_p, "a number from 0 to 1");
        }
        if !(f64::MIN_POSITIVE..=f64::from(f32::MAX)).contains(&self.repetition_penalty) {
            return bad("repetition_penalty", &self.repetition_penalty, "a number above 0 (1: no penalty)");
        }
        if self.min_new_tokens > self.max_new_tokens {
            let expected = format!("at most `max_new_tokens` = {}", self.max_new_tokens);
            return bad("min_new_tokens", &self.min_new_tokens, &expected);
        }
        if self.num_return_sequences > 1 && !self.do_sample {
            let expected = "1 where `do_sample` is false: there is only one likeliest text";
            return bad("num_return_sequences", &self.num_return_sequences, expected);
        }
        Ok(())
    }
}

#[cfg(test)]
mod filter_tests;
#[cfg(test)]
mod tests;
