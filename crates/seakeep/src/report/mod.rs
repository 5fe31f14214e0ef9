//! The report: an [`EvalRecord`] as a table for the terminal and as one HTML page for a person.
//!
//! [`simulation`] does the same for what `seakeep simulate` found.
//!
//! Records in, text out; nothing here reads or writes files. The page stands alone: its style is in it,
//! its charts are inline SVG, it runs no script and asks the network for nothing.

mod charts;
mod findings;
mod page;
pub mod simulation;
pub mod summary;
mod svg;
mod text;

use crate::eval_record::EvalRecord;
pub use findings::{Findings, findings};
pub use page::render;
use summary::{CurveNumbers, Spread, curve, methods, mixtures};
pub use text::escape;
use text::{capital, number, one_line, spread};

/// One line of the table of results.
struct Row<'a> {
    label: &'a str,
    /// Place among the methods; `None` for the reference.
    at: Option<usize>,
    nominal: Option<Spread>,
    mean: Option<Spread>,
    worst: Option<Spread>,
    /// Worst-alpha reward over the reference's.
    gain: Option<Spread>,
    accuracy_mean: Option<Spread>,
    accuracy_worst: Option<Spread>,
    kl: Option<Spread>,
    length: Spread,
}

/// The names of the table's columns after the first, at a nominal alpha.
fn columns(nominal_alpha: f64) -> [String; 8] {
    [
        format!("reward at {}", number(nominal_alpha, 1)),
        "mean".into(),
        "worst".into(),
        "worst, gain".into(),
        "accuracy, mean".into(),
        "accuracy, worst".into(),
        "KL nats/token".into(),
        "tokens".into(),
    ]
}

impl Row<'_> {
    fn cells(&self) -> [String; 8] {
        let cell = |value: &Option<Spread>| value.as_ref().map_or("–".into(), |v| spread(v, 3));
        [
            cell(&self.nominal),
            cell(&self.mean),
            cell(&self.worst),
            cell(&self.gain),
            cell(&self.accuracy_mean),
            cell(&self.accuracy_worst),
            cell(&self.kl),
            spread(&self.length, 1),
        ]
    }
}

/// The rows of a mixture's table: the reference, then the methods.
fn rows<'a>(record: &'a EvalRecord, mixture: &str) -> Vec<Row<'a>> {
    let alpha = record.nominal_alpha;
    let reference = curve(&record.reference, mixture).and_then(|curve| CurveNumbers::of(curve, alpha));
    let alone = |pick: fn(&CurveNumbers) -> f64| reference.as_ref().map(|n| Spread::of([pick(n)]));
    let mut out = vec![Row {
        label: "reference",
        at: None,
        nominal: alone(|n| n.nominal),
        mean: alone(|n| n.mean),
        worst: alone(|n| n.worst),
        gain: None,
        accuracy_mean: reference.and_then(|n| n.accuracy_mean).map(|a| Spread::of([a])),
        accuracy_worst: reference.and_then(|n| n.accuracy_worst).map(|a| Spread::of([a])),
        kl: Some(Spread::of([0.0])),
        length: Spread::of([record.reference.mean_length]),
    }];
    for (at, method) in methods(record).into_iter().enumerate() {
        let of = |pick: &dyn Fn(&CurveNumbers) -> Option<f64>| method.number(mixture, alpha, pick);
        out.push(Row {
            label: method.label,
            at: Some(at),
            nominal: of(&|n| Some(n.nominal)),
            mean: of(&|n| Some(n.mean)),
            worst: of(&|n| Some(n.worst)),
            gain: of(&|n| Some(n.worst - reference?.worst)),
            accuracy_mean: of(&|n| n.accuracy_mean),
            accuracy_worst: of(&|n| n.accuracy_worst),
            kl: Some(method.kl()),
            length: method.length(),
        });
    }
    out
}

/// The results as plain text for a terminal: one table per mixture, mean and standard deviation over
/// seeds.
pub fn table(record: &EvalRecord) -> String {
    let mut out = String::new();
    for mixture in mixtures(record) {
        let mut lines = vec![vec!["method".to_owned()]];
        lines[0].extend(columns(record.nominal_alpha));
        for row in rows(record, mixture) {
            let mut line = vec![one_line(row.label)];
            line.extend(row.cells());
            lines.push(line);
        }
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        out.push_str(&format!(
            "{} mixture: reward by alpha, the share of population 1 (labels drawn at {})\n",
            capital(&one_line(mixture)),
            number(record.nominal_alpha, 1)
        ));
        for line in &lines {
            out.push_str(&format!("  {:<width$}", line[0], width = widths[0]));
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                out.push_str(&format!("  {cell:>width$}"));
            }
            out.push('\n');
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
