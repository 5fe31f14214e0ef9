//! The page: sections in the order a person reads them.

use std::fmt::Write;

use serde_json::Value;

use super::summary::{Method, methods, mixtures};
use super::svg::{Chart, Look, key};
use super::text::{capital, escape, number, spread};
use super::{charts, columns, findings, rows};
use crate::eval_record::{EvalRecord, Sample};

pub(super) const STYLE: &str = include_str!("style.css");

/// How to read the numbers; the same in every report.
const GUIDE: &str = "<ul>\
<li><b>Alpha</b> is the share of population 1 in the taste that judges. The training labels were drawn at one \
alpha; the further the judging alpha is from it, the larger the shift.</li>\
<li><b>Reward</b> is the true reward of texts that the policy wrote itself, so it shows what people would get. \
<b>Worst</b> is the lowest reward over the alphas, found for each run.</li>\
<li><b>Timid is not robust.</b> A method that hardly moves away from the reference loses little under any shift, \
and gains little anywhere. So read every reward together with its <b>KL</b>, the divergence from the reference \
in nats per token. A method is robust in a useful sense if its worst case is better than that of plain DPO \
<em>at the same KL</em>; DPO stands here with several values of beta for that reason.</li>\
<li><b>±</b> and bands are one standard deviation over seeds. The findings use 95% intervals of paired \
differences and call nothing a difference that these leave open.</li>\
<li><b>Accuracy</b> is the share of held-out pairs that the policy's implicit reward orders as labelled at that \
alpha. Labels are noisy, so even a perfect judge stays below 1; and near alpha 0.5 the populations nearly \
cancel out.</li>\
</ul>";

/// The report as one HTML page.
pub fn render(record: &EvalRecord) -> String {
    let title = if record.title.is_empty() { "Seakeep evaluation" } else { &record.title };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n\
         <p class=\"soft\">{1}</p>\n",
        escape(title),
        escape(&subtitle(record))
    );
    section(&mut out, "What was asked", &asked(record));
    section(&mut out, "Findings", &found(record));
    section(&mut out, "How to read this", GUIDE);
    if !record.runs.is_empty() {
        section(&mut out, "Results", &results(record));
        drawings(&mut out, record);
    }
    if !record.samples.is_empty() {
        section(&mut out, "Samples", &samples(&record.samples));
    }
    section(&mut out, "Exact configuration", &configuration(record));
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The sections that are charts.
fn drawings(out: &mut String, record: &EvalRecord) {
    let each = |draw: fn(&EvalRecord, &str) -> Chart| -> Vec<Chart> {
        mixtures(record).into_iter().map(|mixture| draw(record, mixture)).collect()
    };
    let curves = charted(record, "reward", "", &each(charts::reward));
    section(out, "Reward against shift", &(curves + &point_tables(record)));
    let text = "Up is better in the worst case, left is closer to the reference. A grey line joins the reference \
                and the settings of one method: what lies above DPO's line is more robust than caution alone.";
    section(
        out,
        "Worst case against divergence",
        &charted(record, "frontier", text, &each(charts::frontier)),
    );
    let accuracy = each(charts::accuracy);
    if accuracy.iter().any(Chart::has_points) {
        section(out, "Preference accuracy against shift", &charted(record, "accuracy", "", &accuracy));
    }
    let training = charts::training(record);
    if training.iter().any(Chart::has_points) {
        let text =
            "Losses of different objectives are not comparable with each other; margins are, up to beta.";
        section(out, "Training", &charted(record, "training", text, &training));
    }
}

/// A legend, a text, and charts side by side where there is room.
fn charted(record: &EvalRecord, id: &str, text: &str, charts: &[Chart]) -> String {
    let used = |look: Look| {
        charts.iter().flat_map(|c| &c.series).any(|series| series.look == look && !series.points.is_empty())
    };
    let all = methods(record);
    let mut looks = vec![(Look::Reference, "reference"), (Look::Ceiling, "best possible")];
    looks.extend(all.iter().enumerate().map(|(at, method)| (Look::Method(at), method.label)));
    let items: String = looks
        .iter()
        .filter(|(look, _)| used(*look))
        .map(|(look, label)| format!("<li>{}{}</li>", key(*look), escape(label)))
        .collect();
    let text = if text.is_empty() { String::new() } else { format!("<p>{text}</p>") };
    let figures: String = charts
        .iter()
        .enumerate()
        .map(|(at, chart)| {
            let svg = chart.svg(&format!("{id}{at}"));
            format!("<figure><h3>{}</h3>{svg}</figure>", escape(&chart.title))
        })
        .collect();
    format!("<ul class=\"legend\">{items}</ul>{text}<div class=\"charts\">{figures}</div>")
}

pub(super) fn section(out: &mut String, title: &str, body: &str) {
    let id = title.to_lowercase().replace(' ', "-");
    let _ =
        writeln!(out, "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{body}\n</section>");
}

fn subtitle(record: &EvalRecord) -> String {
    let mut seeds: Vec<u64> = record.runs.iter().map(|run| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut parts = vec![
        record.data.name.clone(),
        format!("{} methods and settings, {} seeds", methods(record).len(), seeds.len()),
        record.program.clone(),
    ];
    parts.retain(|part| !part.is_empty());
    parts.join(" · ")
}

fn asked(record: &EvalRecord) -> String {
    let mut out = String::new();
    for text in [&record.question, &record.data.description] {
        if !text.is_empty() {
            let _ = write!(out, "<p>{}</p>", escape(text));
        }
    }
    if !record.data.facts.is_empty() {
        out.push_str(&facts(record.data.facts.iter().map(|(name, value)| (name.as_str(), plain(value)))));
    }
    out
}

fn found(record: &EvalRecord) -> String {
    let mut out = String::new();
    for part in findings(record) {
        let items: String = part.sentences.iter().map(|s| format!("<li>{}</li>", escape(s))).collect();
        let _ = write!(out, "<h3>{}</h3><ul class=\"findings\">{items}</ul>", escape(&part.heading));
    }
    out
}

/// Names and values as a small table.
pub(super) fn facts<'a>(rows: impl Iterator<Item = (&'a str, String)>) -> String {
    let rows: String = rows
        .map(|(name, value)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(name), escape(&value))
        })
        .collect();
    format!("<table class=\"facts\"><tbody>{rows}</tbody></table>")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A table that scrolls by itself where it is wider than the page.
pub(super) fn scrolling(label: &str, table: &str) -> String {
    format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">{table}</div>",
        escape(label)
    )
}

pub(super) fn header(names: impl Iterator<Item = String>) -> String {
    let cells: String = names.map(|name| format!("<th scope=\"col\">{}</th>", escape(&name))).collect();
    format!("<thead><tr>{cells}</tr></thead>")
}

/// The label of a method with the key of its series.
pub(super) fn labelled(look: Look, label: &str) -> String {
    format!("<span class=\"key-cell\">{}{}</span>", key(look), escape(label))
}

fn results(record: &EvalRecord) -> String {
    let mut out = String::new();
    for mixture in mixtures(record) {
        let label = format!("{} mixture", capital(mixture));
        let names = std::iter::once("method".to_owned()).chain(columns(record.nominal_alpha));
        let mut table = format!("<table><caption>{}</caption>{}<tbody>", escape(&label), header(names));
        for row in rows(record, mixture) {
            let look = row.at.map_or(Look::Reference, Look::Method);
            let cells: String = row.cells().iter().map(|cell| format!("<td>{cell}</td>")).collect();
            let _ = write!(table, "<tr><th scope=\"row\">{}</th>{cells}</tr>", labelled(look, row.label));
        }
        table.push_str("</tbody></table>");
        out.push_str(&scrolling(&label, &table));
    }
    out.push_str(
        "<p class=\"soft\">Mean ± standard deviation over seeds. Mean and worst are over the alphas; gain is over \
         the reference's own worst; tokens is the mean length of the samples.</p>",
    );
    out
}

/// The numbers behind the reward curves, folded away.
fn point_tables(record: &EvalRecord) -> String {
    let all = methods(record);
    let mut out = String::new();
    for mixture in mixtures(record) {
        let label = format!("{} mixture: reward at every alpha", capital(mixture));
        let of = |method: &Method| method.points(mixture);
        let curves: Vec<_> = all.iter().map(of).collect();
        let Some(longest) = curves.iter().max_by_key(|curve| curve.len()) else { continue };
        let names = std::iter::once("method".to_owned()).chain(longest.iter().map(|p| number(p.alpha, 2)));
        let mut table = format!("<table>{}<tbody>", header(names));
        for (at, (method, points)) in all.iter().zip(&curves).enumerate() {
            let cells: String = points.iter().map(|p| format!("<td>{}</td>", spread(&p.reward, 3))).collect();
            let name = labelled(Look::Method(at), method.label);
            let _ = write!(table, "<tr><th scope=\"row\">{name}</th>{cells}</tr>");
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

fn samples(samples: &[Sample]) -> String {
    let mut labels: Vec<&str> = Vec::new();
    for answer in samples.iter().flat_map(|sample| &sample.answers) {
        if !labels.contains(&answer.label.as_str()) {
            labels.push(&answer.label);
        }
    }
    let names = std::iter::once("prompt").chain(labels.iter().copied()).map(str::to_owned);
    let mut table = format!("<table class=\"samples\">{}<tbody>", header(names));
    for sample in samples {
        let _ = write!(table, "<tr><th scope=\"row\">{}</th>", escape(&sample.prompt));
        for label in &labels {
            table.push_str("<td>");
            for answer in sample.answers.iter().filter(|answer| answer.label == *label) {
                let rewards: Vec<String> = answer
                    .rewards
                    .iter()
                    .map(|(name, value)| format!("{name} {}", number(*value, 2)))
                    .collect();
                let _ = write!(
                    table,
                    "{}<br><span class=\"soft\">{}</span>",
                    escape(&answer.text),
                    escape(&rewards.join(" · "))
                );
            }
            table.push_str("</td>");
        }
        table.push_str("</tr>");
    }
    table.push_str("</tbody></table>");
    scrolling("Samples", &table)
}

fn configuration(record: &EvalRecord) -> String {
    let mut out = String::new();
    if !record.command_line.is_empty() {
        let _ = write!(out, "<pre>{}</pre>", escape(&record.command_line));
    }
    let timing = &record.timing;
    let mut rows = vec![("program", record.program.clone()), ("machine", timing.machine.clone())];
    rows.push(("wall-clock time", format!("{} s", number(timing.total_seconds, 1))));
    rows.extend(timing.phases.iter().map(|(name, s)| (name.as_str(), format!("{} s", number(*s, 1)))));
    rows.retain(|row| !row.1.is_empty());
    out.push_str(&facts(rows.into_iter()));
    for method in methods(record) {
        let settings = &method.runs[0].settings;
        if settings.is_empty() {
            continue;
        }
        let seeds: Vec<String> = method.runs.iter().map(|run| run.seed.to_string()).collect();
        let shown = settings.iter().map(|(name, value)| (name.as_str(), plain(value)));
        let table = facts(shown.chain(std::iter::once(("seeds", seeds.join(", ")))));
        let _ = write!(out, "<details><summary>{}</summary>{table}</details>", escape(method.label));
    }
    if !record.config.is_null() {
        let text = serde_json::to_string_pretty(&record.config).unwrap_or_default();
        let _ = write!(
            out,
            "<details><summary>Whole configuration</summary><pre>{}</pre></details>",
            escape(&text)
        );
    }
    out
}
