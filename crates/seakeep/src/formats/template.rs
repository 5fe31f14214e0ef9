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
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;

use super::guard::within;
use crate::error::{Error, Result};

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

/// `{% generation %}` marks what the assistant says and prints nothing; transformers adds it to Jinja
/// as an extension. An `if true` does the same, with the same white-space control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = tag[2..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match inner {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(keyword) => out.push_str(&tag[..end + 2].replacen(inner, keyword, 1)),
            None => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// A finite float as Python's `repr` spells it: the shortest digits that mean it, with an exponent below 1e-4 and from 1e16 on.
fn python_float(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let x = f64::try_from(value.clone()).ok().filter(|x| x.is_finite())?;
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e')?;
    let exponent: i32 = exponent.parse().ok()?;
    Some(match exponent {
        -4..16 => format!("{x:?}"),
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    })
}

/// Python's `json.dumps` as transformers binds it: no HTML escapes, ", " and ": " between.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(v) if v.kind() == ValueKind::Number => Some(" ".repeat(usize::try_from(v)?.min(16))),
        Some(v) => v.as_str().map(str::to_string),
        None => None,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        _ => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let style = JsonStyle {
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct JsonStyle {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

/// Deepest value `tojson` writes; Python's own limit is about 1,000.
const MAX_JSON_DEPTH: usize = 100;

impl JsonStyle {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
        if depth > MAX_JSON_DEPTH || out.len() > MAX_OUTPUT_BYTES {
            return Err(minijinja::Error::new(
                ErrorKind::BadSerialization,
                "too large or too deep for tojson",
            ));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&python_float(value).unwrap_or_else(|| value.to_string())),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.container(&keys, depth, ('{', '}'), out, |key, out| {
                    self.string(&key.to_string(), out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Undefined => {
                return Err(minijinja::Error::new(
                    ErrorKind::BadSerialization,
                    "tojson of an undefined value",
                ));
            }
            _ => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(&items, depth, ('[', ']'), out, |item, out| self.write(item, depth + 1, out))?;
            }
        }
        Ok(())
    }

    fn container(
        &self,
        items: &[Value],
        depth: usize,
        brackets: (char, char),
        out: &mut String,
        mut each: impl FnMut(&Value, &mut String) -> Result<(), minijinja::Error>,
    ) -> Result<(), minijinja::Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !items.is_empty()) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(brackets.0);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            each(item, out)?;
        }
        line(depth, out);
        out.push(brackets.1);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = Json::from(text).to_string();
        if !self.ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
        }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The date directives that templates use, in UTC (transformers takes local time; no template that is
/// in use prints more than a date).
fn strftime(format: &str, now: std::time::SystemTime) -> Result<String, minijinja::Error> {
    let seconds = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[((days + 4) % 7) as usize]);
    let of_year = 1 + (days - days_before(year));
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = chars.next();
        // glibc's form without zeros in front.
        let (plain, directive) =
            if directive == Some('-') { (true, chars.next()) } else { (false, directive) };
        let text = match directive {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{of_year:03}"),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            // A time without a zone has none to name.
            Some('Z' | 'z') => String::new(),
            Some('%') => "%".to_string(),
            other => {
                let what =
                    format!("strftime_now does not know `%{}`", other.map_or(String::new(), String::from));
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, what));
            }
        };
        out.push_str(if plain { text.trim_start_matches(['0', ' ']) } else { &text });
        if plain && !text.is_empty() && text.bytes().all(|b| b == b'0') {
            out.push('0');
        }
    }
    Ok(out)
}

/// Days from 1970-01-01 to the year's first.
fn days_before(year: u64) -> u64 {
    (1970..year).map(|y| if is_leap(y) { 366 } else { 365 }).sum()
}

fn is_leap(y: u64) -> bool {
    (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400)
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, usize, u64) {
    let leap = is_leap;
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    (year, month + 1, left + 1)
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
