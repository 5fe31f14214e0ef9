//! `tojson` as transformers binds it to Python's `json.dumps`.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{ErrorKind, Value};
use serde_json::Value as Json;

use super::MAX_OUTPUT_BYTES;

/// A finite float as Python's `repr` spells it: the shortest digits that mean it, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn python_float(value: &Value) -> Option<String> {
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
pub(super) fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
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
