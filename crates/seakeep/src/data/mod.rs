//! Preference data, and texts to be learnt as they are: files to [`Pair`]s, [`Pair`]s to [`TokenizedPair`]s.
//!
//! What counts as a row, and which tokens it becomes, is TRL's convention (`trl/data_utils.py` and
//! `DPOTrainer._prepare_dataset`, of texts
//! `SFTTrainer._prepare_dataset`, 1.16); where Seakeep refuses what TRL silently repairs, an option
//! gives TRL's behaviour.

pub mod foreign;
pub mod labels;
pub mod load;
pub mod pair;
mod parquet;
pub mod prompt;
pub mod read;
pub mod report;
pub mod rows;
pub mod split;
pub mod text;
pub mod tokenize;

pub use crate::formats::Message;
pub use foreign::{Layout, read_foreign};
pub use labels::{LabelColumns, Labels, Role};
pub use load::Loading;
pub use pair::{Completion, Pair, Text, parse_text};
pub use prompt::{Prompt, prompt_key, read_prompts, template_variables};
pub use read::{Columns, read_pairs, read_rows};
pub use report::{Quantiles, TokenizeReport};
pub use rows::Rows;
pub use text::read_texts;
pub use tokenize::{
    Branch, PromptMismatch, TokenizeOptions, TokenizedPair, TruncatedCompletion, TruncationMode,
    add_mismatched, tokenize_pairs,
};
