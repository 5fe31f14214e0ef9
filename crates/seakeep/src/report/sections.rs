//! The sections of the page that are text and tables.

use std::fmt::Write;

use super::charts::looks;
use super::findings;
use super::look::{Look, key};
use super::text::{alpha, capital, escape, estimate, number, signed};
use super::view::{CurveView, Report, Table};
use crate::eval_record::{Answer, Sample};

/// Prompts shown openly; the others are folded away.
const OPEN_PROMPTS: usize = 6;

/// Question, data and counts.
pub fn asked(report: &Report) -> String {
    let mut out: String = report.paragraphs.iter().map(|text| format!("<p>{}</p>", escape(text))).collect();
    if !report.facts.is_empty() {
        out.push_str(&facts(&report.facts));
    }
    out
}

/// The findings.
pub fn found(report: &Report) -> String {
    let mut out = String::new();
    for part in findings(report) {
        let items: String = part.sentences.iter().map(|s| format!("<li>{}</li>", escape(s))).collect();
        let _ = write!(out, "<h3>{}</h3><ul class=\"findings\">{items}</ul>", escape(&part.heading));
    }
    out
}

/// Names and values as a small table.
pub fn facts<N: AsRef<str>>(rows: &[(N, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name.as_ref()), escape(value))
        })
        .collect();
    format!("<table class=\"facts\"><tbody>{rows}</tbody></table>")
}

/// A table that scrolls by itself where it is wider than the page.
pub fn scrolling(label: &str, table: &str) -> String {
    format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">{table}</div>",
        escape(label)
    )
}

/// A table's head: names of columns.
pub fn header(names: impl Iterator<Item = String>) -> String {
    let cells: String = names.map(|name| format!("<th scope=\"col\">{}</th>", escape(&name))).collect();
    format!("<thead><tr>{cells}</tr></thead>")
}

/// The label of a policy with the key of its series.
pub fn labelled(look: Look, label: &str) -> String {
    format!(
        "<span class=\"key-cell\">{}<span><b>{}</b> {}</span></span>",
        key(look),
        look.tag(),
        escape(label)
    )
}

/// A table with a row for each policy that has a number in it.
fn by_policy(report: &Report, data: &Table, differences: bool) -> String {
    let names = std::iter::once("method".to_owned()).chain(data.columns.iter().map(|c| c.name.clone()));
    let mut table = format!("<table>{}<tbody>", header(names));
    for (at, look) in looks(report).into_iter().enumerate() {
        if data.columns.iter().all(|column| column.cells[at].is_none()) {
            continue;
        }
        let cells: String = data
            .columns
            .iter()
            .map(|column| match &column.cells[at] {
                None => "<td>–</td>".into(),
                // What the interval leaves open is written as such, not only shown by two numbers.
                Some(value) if differences => {
                    let class = if value.sign().is_some() { "" } else { " class=\"open\"" };
                    format!("<td{class}>{}</td>", signed(value, column.digits))
                }
                Some(value) => format!("<td>{}</td>", estimate(value, column.digits)),
            })
            .collect();
        let name = labelled(look, &report.policies[at].label);
        let _ = write!(table, "<tr><th scope=\"row\">{name}</th>{cells}</tr>");
    }
    table.push_str("</tbody></table>");
    // A heading and no caption: it must not scroll away with the table.
    format!("<h3>{}</h3>{}", escape(&data.caption), scrolling(&data.name, &table))
}

/// The tables of results.
pub fn results(report: &Report) -> String {
    if report.tables.is_empty() {
        return String::new();
    }
    let mut out: String = report.tables.iter().map(|table| by_policy(report, table, false)).collect();
    let _ = write!(
        out,
        "<p class=\"soft\">± is {}. Mean and worst are over the alphas; gain is over the reference's own worst; tokens is the \
         mean length of the samples.</p>",
        escape(report.plus_minus())
    );
    out
}

/// The tables of differences.
pub fn paired(report: &Report) -> String {
    if report.paired.is_empty() {
        return String::new();
    }
    let mut out: String = report.paired.iter().map(|table| by_policy(report, table, true)).collect();
    out.push_str(
        "<p class=\"soft\">In brackets 95% intervals, over the same prompts. Grey: the interval holds zero, so the two are \
         not told apart. A win rate is given as its difference from one half: of two completions of one prompt, one of each \
         policy, how much more often than not the method's has the higher reward.</p>",
    );
    out
}

/// The numbers behind the reward curves, folded away.
pub fn point_tables(report: &Report) -> String {
    let mut out = String::new();
    for mixture in &report.mixtures {
        let label = format!("{} mixture: reward at every alpha", capital(&mixture.name));
        let Some(longest) = mixture.curves.iter().flatten().max_by_key(|curve| curve.points.len()) else {
            continue;
        };
        let names = std::iter::once("method".to_owned()).chain(longest.points.iter().map(|p| alpha(p.alpha)));
        let mut table = format!("<table>{}<tbody>", header(names));
        let row = |curve: &CurveView| -> String {
            let cell = |p: &super::view::AlphaPoint| format!("<td>{}</td>", estimate(&p.reward, 3));
            curve.points.iter().map(cell).collect()
        };
        for (at, look) in looks(report).into_iter().enumerate() {
            let Some(curve) = &mixture.curves[at] else { continue };
            let name = labelled(look, &report.policies[at].label);
            let _ = write!(table, "<tr><th scope=\"row\">{name}</th>{}</tr>", row(curve));
        }
        table.push_str("</tbody></table>");
        let _ = write!(
            out,
            "<details><summary>{}</summary>{}</details>",
            escape(&label),
            scrolling(&label, &table)
        );
    }
    out
}

/// Each prompt with its answers side by side, or under each other where the screen is narrow.
pub fn samples(samples: &[Sample]) -> String {
    let one = |sample: &Sample| -> String {
        let answers: String = sample.answers.iter().map(answer).collect();
        format!("<h3 class=\"prompt\">{}</h3><div class=\"answers\">{answers}</div>", escape(&sample.prompt))
    };
    let (open, folded) = samples.split_at(samples.len().min(OPEN_PROMPTS));
    let mut out: String = open.iter().map(one).collect();
    if !folded.is_empty() {
        let rest: String = folded.iter().map(one).collect();
        let _ = write!(out, "<details><summary>{} more prompts</summary>{rest}</details>", folded.len());
    }
    out
}

fn answer(answer: &Answer) -> String {
    let scores: Vec<String> = answer
        .rewards
        .iter()
        .map(|(name, value)| format!("{} {}", escape(name), number(*value, 2)))
        .collect();
    let text = if answer.text.is_empty() {
        "<p class=\"soft\">(nothing)</p>".to_owned()
    } else {
        format!("<p class=\"text\">{}</p>", escape(&answer.text))
    };
    format!(
        "<div class=\"answer\"><h4>{}</h4>{text}<p class=\"soft\">{}</p></div>",
        escape(&answer.label),
        scores.join(" · ")
    )
}

/// Commands, circumstances, the settings of every label.
pub fn configuration(report: &Report) -> String {
    let mut out = String::new();
    match report.commands.as_slice() {
        [] => {}
        [one] => {
            let _ = write!(out, "<pre>{}</pre>", escape(one));
        }
        many => {
            let lines: Vec<String> = many.iter().map(|line| escape(line)).collect();
            let _ = write!(
                out,
                "<details><summary>The {} commands that made the records</summary><pre>{}</pre></details>",
                many.len(),
                lines.join("\n")
            );
        }
    }
    if !report.circumstances.is_empty() {
        out.push_str(&facts(&report.circumstances));
    }
    for policy in report.policies.iter().filter(|policy| !policy.settings.is_empty()) {
        let _ = write!(
            out,
            "<details><summary>{}</summary>{}</details>",
            escape(&policy.label),
            facts(&policy.settings)
        );
    }
    if !report.config.is_null() {
        let text = serde_json::to_string_pretty(&report.config).unwrap_or_default();
        let _ = write!(
            out,
            "<details><summary>Whole configuration</summary><pre>{}</pre></details>",
            escape(&text)
        );
    }
    out
}
