//! Chat templates: Jinja, as transformers renders them, in a sandbox with limits.
//!
//! A template comes with a foreign checkpoint and is a program. minijinja gives it no way out (no
//! files, no attributes of host objects), fuel bounds its steps *and* the bytes it makes, what methods of
//! strings make is bounded before they make it, and the output has a limit of its own. What a step itself
//! may take (comparing, counting or printing values that a template nested into each other) is bounded by the
//! clock and by the room for recursion: templates are parsed and rendered on a thread beside (`guard`), which is
//! left to itself when it does not end. So the worst a template can do is an error.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::guard::within;
use crate::error::{Error, Result};
use generation::without_generation_tags;
use strftime::strftime;
use tojson::{python_float, to_json};

mod generation;
mod strftime;
mod tojson;

/// Fuel of one rendering: one per instruction, one per 64 bytes made. A chat of a hundred long
/// messages takes some 50,000; an endless loop ends after well under a second.
pub const FUEL: u64 = 1_000_000;
/// Longest rendered chat, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Longest template source, in bytes.
pub const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Longest text that a method of strings is called on, or makes, in bytes.
pub const MAX_METHOD_BYTES: usize = 16 << 20;
/// Longest that parsing or one rendering takes; it takes microseconds.
pub const MAX_TIME: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`: whatever the template knows.
    pub role: String,
    /// What is said: text in nearly every dataset; a list of blocks, or null beside tool calls.
    pub content: Json,
    /// Every other key of the message, handed to the template as it is.
    pub extra: serde_json::Map<String, Json>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: Json::String(content.into()), extra: serde_json::Map::new() }
    }

    /// The content, if it is text.
    pub fn text(&self) -> Option<&str> {
        self.content.as_str()
    }

    /// As the template sees it. Keys without a value are left out, and reasoning goes under each of
    /// the names it has had, both as transformers does.
    fn to_value(&self) -> Value {
        const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
        let mut fields = vec![("role".to_string(), Value::from(self.role.as_str()))];
        let rest = std::iter::once(("content", &self.content))
            .chain(self.extra.iter().map(|(k, v)| (k.as_str(), v)));
        fields.extend(rest.filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_string(), json_to_value(v))));
        if let Some(text) = REASONING.iter().filter_map(|k| self.extra.get(*k)).find(|v| !v.is_null()) {
            for name in ["reasoning_content", "thinking"] {
                if self.extra.get(name).is_none_or(Json::is_null) {
                    fields.push((name.to_string(), json_to_value(text)));
                }
            }
        }
        Value::from_pairs(fields)
    }
}

fn json_to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(json_to_value).collect::<Vec<_>>().into(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), json_to_value(v)))),
    }
}

/// A parsed chat template.
#[derive(Debug)]
pub struct Template {
    environment: Arc<Environment<'static>>,
    source: String,
    path: PathBuf,
}

impl Template {
    /// Parses `source`, which comes from the file `path` (for messages).
    ///
    /// # Errors
    /// [`Error::Format`] for a syntax error, with its line.
    pub fn parse(path: &Path, source: &str) -> Result<Template> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::format(
                path,
                format!("the chat template has {} bytes, over the limit of {MAX_SOURCE_BYTES}", source.len()),
            ));
        }
        let owned = source.to_string();
        let parsed = within(MAX_TIME, move || environment(&owned));
        let environment = match parsed {
            Some(Ok(environment)) => Arc::new(environment),
            Some(Err(e)) => {
                let what = format!("the chat template does not parse: {}", describe(&e));
                return Err(Error::format(path, what));
            }
            None => return Err(Error::format(path, "the chat template cannot be parsed in reasonable time")),
        };
        Ok(Template { environment, source: source.to_string(), path: path.to_path_buf() })
    }

    /// The source as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. `special_tokens` are the names the template may use (`bos_token`, ...),
    /// `variables` what else it may (`tools`, `enable_thinking`, ...).
    ///
    /// # Errors
    /// [`Error::Format`] for an empty conversation, whatever the template refuses, and a template that
    /// does not end.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        special_tokens: &[(&'static str, &str)],
        variables: &serde_json::Map<String, Json>,
    ) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::format(
                &self.path,
                "the chat template needs at least one message, and there is none",
            ));
        }
        let mut context = vec![
            ("messages".to_string(), messages.iter().map(Message::to_value).collect::<Vec<_>>().into()),
            ("tools".to_string(), Value::from(())),
            ("documents".to_string(), Value::from(())),
            ("add_generation_prompt".to_string(), Value::from(add_generation_prompt)),
        ];
        context.extend(special_tokens.iter().map(|(name, token)| (name.to_string(), Value::from(*token))));
        context.extend(variables.iter().map(|(name, value)| (name.clone(), json_to_value(value))));
        let context = Value::from_pairs(context);

        let environment = self.environment.clone();
        let rendered = within(MAX_TIME, move || {
            let mut output = Bounded(Vec::new());
            environment.get_template(NAME)?.render_captured_to(context, &mut output)?;
            Ok(output.0)
        });
        let output = match rendered {
            Some(output) => output.map_err(|e: minijinja::Error| self.failed(&e))?,
            None => {
                let what = format!("the chat template does not end (stopped after {} s)", MAX_TIME.as_secs());
                return Err(Error::format(&self.path, what));
            }
        };
        String::from_utf8(output)
            .map_err(|_| Error::format(&self.path, "the chat template made text that is not UTF-8"))
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let what = if error.kind() == ErrorKind::OutOfFuel {
            format!("the chat template does not end (stopped after {FUEL} steps); correct or replace it")
        } else {
            format!("the chat template failed: {}", describe(error))
        };
        Error::format(&self.path, what)
    }
}

/// What a template is rendered in, the template with it.
fn environment(source: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(100);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match python_float(value) {
        Some(text) => out.write_str(&text).map_err(minijinja::Error::from),
        None => minijinja::escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", to_json);
    // Python's texts and dictionaries have a length and items, too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format, std::time::SystemTime::now()));
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// Methods as Python has them; of texts where neither the text nor what may come of it is too long.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, minijinja::Error> {
    if let Some(text) = value.as_str() {
        let length = |value: &Value| value.as_str().map_or(0, str::len);
        let made = match (name, arguments) {
            ("replace", [old, new, ..]) => {
                // Between all letters, where what is replaced is nothing.
                let times = old.as_str().map_or(0, |old| text.matches(old).count());
                times.saturating_mul(length(new))
            }
            ("join", [items, ..]) => items.try_iter().map_or(0, |items| {
                items.fold(0usize, |sum, item| sum.saturating_add(length(&item)).saturating_add(text.len()))
            }),
            // A width or precision of many digits.
            ("format", _) if text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 6) => {
                usize::MAX
            }
            _ => 0,
        };
        if text.len() > MAX_METHOD_BYTES || made > MAX_METHOD_BYTES {
            let what = format!("`{name}` of a text that is too long, or makes one");
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
        }
    }
    unknown_method_callback(state, value, name, arguments)
}

fn describe(error: &minijinja::Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// A buffer that refuses to grow beyond [`MAX_OUTPUT_BYTES`].
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other(format!("more than {MAX_OUTPUT_BYTES} bytes of output")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
