//! Where a text ends.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::formats::Tokenizer;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// With a token or a string that ends texts.
    Stop,
    /// At `max_new_tokens`, or where the model's positions end.
    Length,
}

/// What ends a text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stop<'a> {
    /// Tokens.
    pub tokens: &'a [u32],
    /// Strings.
    pub strings: &'a [String],
    /// What makes text of tokens, to look for the strings.
    pub tokenizer: Option<&'a Tokenizer>,
}

impl<'a> Stop<'a> {
    /// Tokens alone.
    pub fn at(tokens: &'a [u32]) -> Self {
        Stop { tokens, ..Stop::default() }
    }

    /// Whether the text, of at least `min_new_tokens`, ends with its last token.
    pub(super) fn ends(&self, tokens: &[u32], min_new_tokens: usize) -> Result<bool> {
        if tokens.last().is_some_and(|last| self.tokens.contains(last)) {
            return Ok(true);
        }
        match self.tokenizer {
            Some(tokenizer) if !self.strings.is_empty() => {
                Ok(first_of(tokenizer, self.strings, tokens, min_new_tokens)?.1.is_some())
            }
            _ => Ok(false),
        }
    }
}

/// The text of the tokens, and where in it, in bytes, the first of the strings begins that the first `min_new_tokens` do not hold whole. All of it is
/// decoded each time: a tokenizer may spell a token by what stands before it.
pub(super) fn first_of(
    tokenizer: &Tokenizer,
    strings: &[String],
    tokens: &[u32],
    min_new_tokens: usize,
) -> Result<(String, Option<usize>)> {
    let text = tokenizer.decode(tokens, true)?;
    let least = &tokens[..min_new_tokens.min(tokens.len())];
    // A character that they cut is not theirs.
    let least = match strings.is_empty() || least.is_empty() {
        true => 0,
        false => tokenizer.decode(least, true)?.trim_end_matches('\u{fffd}').len(),
    };
    let begin = |string: &String| {
        // The first place from which it would reach beyond.
        let mut from = (least + 1).saturating_sub(string.len()).min(text.len());
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text[from..].find(string.as_str()).map(|at| from + at)
    };
    let first = strings.iter().filter_map(begin).min();
    Ok((text, first))
}
