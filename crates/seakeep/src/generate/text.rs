//! From text to text.

use serde_json::Value;

use super::stop::first_of;
use super::{GenerateOptions, generate_ids};
use crate::data::{Prompt, Text, template_variables};
use crate::formats::{Message, ModelSource, Tokenizer};
use crate::model::Model;
use crate::progress::Progress;
use crate::{Error, Result};

/// What a prompt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptForm {
    /// Plain text: the tokenizer adds its special tokens (BOS for Llama).
    Raw,
    /// The output of a chat template, which has written them itself.
    Templated,
}

/// A prompt and one completion of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// As it was given.
    pub prompt: String,
    /// Text of `tokens`, special tokens left out.
    pub completion: String,
    /// Generated tokens, the end-of-sequence token included.
    pub tokens: Vec<u32>,
}

/// Completes texts: [`generate_ids`] between the tokenizer's two directions.
///
/// # Errors
/// As [`generate_ids`], and [`Error::Format`] where the tokenizer cannot encode or decode a text.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    prompts: &[String],
    form: PromptForm,
    options: &GenerateOptions,
    eos: &[u32],
    progress: &mut dyn Progress,
) -> Result<Vec<Generation>> {
    let encoded: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| encode(tokenizer, prompt, form)).collect::<Result<_>>()?;
    let generated = generate_ids(model, &encoded, options, eos, progress)?;
    let prompts = prompts.iter().flat_map(|p| std::iter::repeat_n(p, options.num_return_sequences));
    prompts
        .zip(generated)
        .map(|(prompt, tokens)| {
            Ok(Generation {
                prompt: prompt.clone(),
                completion: completion(tokenizer, &tokens, &[], 0)?,
                tokens,
            })
        })
        .collect()
}

/// The tokens of a prompt.
///
/// # Errors
/// [`Error::Format`] where the tokenizer cannot encode it.
pub fn encode(tokenizer: &Tokenizer, prompt: &str, form: PromptForm) -> Result<Vec<u32>> {
    match form {
        PromptForm::Raw => tokenizer.encode_open(prompt),
        PromptForm::Templated => tokenizer.encode(prompt, false),
    }
}

/// Whether a prompt goes through the chat template: messages always, a string where `template` says so, by default where there is one.
pub fn is_templated(tokenizer: &Tokenizer, prompt: &Text, template: Option<bool>) -> bool {
    matches!(prompt, Text::Chat(_)) || template.unwrap_or(tokenizer.has_chat_template())
}

/// The tokens of a prompt of a data file, as a model continues it: in the chat template ([`is_templated`]), with what its columns hand to that
/// ([`template_variables`]), a string as a user's message; or plain. `system` is a message before the others.
///
/// # Errors
/// [`Error::Format`] where the tokenizer cannot encode it, or has no template for messages or a `system`; [`Error::Row`] for columns that
/// do not hold what the template is handed.
pub fn encode_prompt(
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    template: Option<bool>,
    system: Option<&str>,
) -> Result<Vec<u32>> {
    let Prompt { file, row, text, columns } = prompt;
    let messages = match text {
        Text::Standard(plain) if !is_templated(tokenizer, text, template) => {
            return tokenizer.encode_open(plain);
        }
        Text::Standard(text) => vec![Message::new("user", text.as_str())],
        Text::Chat(messages) => messages.clone(),
    };
    let system = system.map(|text| Message::new("system", text));
    let all: Vec<Message> = system.into_iter().chain(messages).collect();
    let variables = template_variables(file, *row, columns)?;
    tokenizer.encode(&tokenizer.apply_chat_template_with(&all, true, &variables)?, false)
}

/// The text of generated tokens, special tokens left out, up to the first of the strings that end texts: what ended
/// the text is no part of it (vLLM's way; transformers leaves the string in). What the first `min_new_tokens` hold ends nothing.
///
/// # Errors
/// [`Error::Format`] where the tokenizer cannot decode them.
pub fn completion(
    tokenizer: &Tokenizer,
    tokens: &[u32],
    stop_strings: &[String],
    min_new_tokens: usize,
) -> Result<String> {
    let (mut text, end) = first_of(tokenizer, stop_strings, tokens, min_new_tokens)?;
    text.truncate(end.unwrap_or(text.len()));
    Ok(text)
}

/// The tokens that end a model's texts: `eos_token_id` of `generation_config.json` or else of `config.json`,
/// and the tokenizer's end-of-sequence token. In order, each once; none at all if nobody names one.
///
/// # Errors
/// [`Error::Format`] where `eos_token_id` is neither a token id nor a list of them.
pub fn eos_ids(source: &ModelSource, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    let named = |file: &Value| file.get("eos_token_id").filter(|ids| !ids.is_null()).cloned();
    let generation = source.generation_config.as_ref().and_then(named);
    let (file, value) = match generation {
        Some(ids) => ("generation_config.json", ids),
        None => ("config.json", named(&source.config).unwrap_or(Value::Array(Vec::new()))),
    };
    let list = match &value {
        Value::Array(ids) => ids.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut ids = Vec::new();
    for id in list {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.push(id.ok_or_else(|| {
            let what = format!("{file}: `eos_token_id` is {value}; expected a token id or a list of them");
            Error::format(&source.path, what)
        })?);
    }
    ids.extend(tokenizer.and_then(Tokenizer::eos_id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
