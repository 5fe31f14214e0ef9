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

    /// Whether the text ends with its last token. The whole completion is decoded each time where there are strings: a
    /// tokenizer may spell a token by what stands before it.
    pub(super) fn ends(&self, tokens: &[u32]) -> Result<bool> {
        if tokens.last().is_some_and(|last| self.tokens.contains(last)) {
            return Ok(true);
        }
        match self.tokenizer {
            Some(tokenizer) if !self.strings.is_empty() => {
                Ok(first_of(self.strings, &tokenizer.decode(tokens, true)?).is_some())
            }
            _ => Ok(false),
        }
    }
}

/// Where the first of the strings begins in a text, bytes.
pub(super) fn first_of(strings: &[String], text: &str) -> Option<usize> {
    strings.iter().filter_map(|string| text.find(string.as_str())).min()
}
