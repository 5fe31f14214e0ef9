//! The data card of `seakeep pairs`, or any other JSON of numbers: names and values, and tables where entries are alike.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::sections::{facts, header, scrolling};
use super::text::{capital, escape, number};

/// Deeper values are shown as JSON.
const DEPTH: usize = 3;

/// The card as HTML.
pub fn html(card: &Value) -> String {
    match card {
        Value::Object(map) => object(map, 1),
        other => format!("<pre>{}</pre>", escape(&other.to_string())),
    }
}

fn object(map: &Map<String, Value>, depth: usize) -> String {
    let plain: Vec<(String, String)> =
        map.iter().filter(|(_, v)| !v.is_object()).map(|(k, v)| (spaced(k), value(v))).collect();
    let mut out = if plain.is_empty() { String::new() } else { facts(&plain) };
    // Small objects of numbers with the same keys are the rows of one table, wherever they stand side by side.
    let mut alike: Vec<(&str, &Map<String, Value>)> = Vec::new();
    let mut rest: Vec<(&str, &Map<String, Value>)> = Vec::new();
    for (name, inner) in map.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_object()?))) {
        let flat = !inner.is_empty() && inner.values().all(|v| !v.is_object() && !v.is_array());
        if flat && alike.first().is_none_or(|(_, first)| first.keys().eq(inner.keys())) {
            alike.push((name, inner));
        } else {
            rest.push((name, inner));
        }
    }
    if alike.len() > 1 {
        out.push_str(&table(&alike));
    } else {
        rest.splice(0..0, alike);
    }
    for (name, inner) in rest {
        let body = if depth < DEPTH {
            object(inner, depth + 1)
        } else {
            format!("<pre>{}</pre>", escape(&serde_json::to_string_pretty(inner).unwrap_or_default()))
        };
        let level = 2 + depth;
        let _ = write!(out, "<h{level}>{}</h{level}>{body}", escape(&spaced(name)));
    }
    out
}

fn table(rows: &[(&str, &Map<String, Value>)]) -> String {
    let names = std::iter::once(String::new()).chain(rows[0].1.keys().cloned());
    let mut out = format!("<table>{}<tbody>", header(names)).replace("<th scope=\"col\"></th>", "<td></td>");
    for (name, inner) in rows {
        let cells: String = inner.values().map(|v| format!("<td>{}</td>", escape(&value(v)))).collect();
        let _ = write!(out, "<tr><th scope=\"row\">{}</th>{cells}</tr>", escape(&spaced(name)));
    }
    out.push_str("</tbody></table>");
    scrolling("Numbers of the data card", &out)
}

fn spaced(name: &str) -> String {
    capital(&name.replace('_', " "))
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "–".into(),
        Value::String(text) => text.clone(),
        Value::Number(n) if !n.is_i64() && !n.is_u64() => number(n.as_f64().unwrap_or(f64::NAN), 3),
        other => other.to_string(),
    }
}
