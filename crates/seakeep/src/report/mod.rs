//! The report: what policies did under shift, as a table for the terminal and as one HTML page for a person.
//!
//! Records in, text out; nothing here reads or writes files. Two kinds of record, the [`EvalRecord`] of an experiment and the
//! [`PolicyRecord`]s of `seakeep eval`, become one [`Report`] ([`of_eval`], [`of_policies`]); everything else knows that alone.
//! [`simulation`] does the same for what `seakeep simulate` found.
//! The page stands alone: its style is in it, its charts are inline SVG, it runs no script and asks the network for
//! nothing.
//!
//! [`EvalRecord`]: crate::eval_record::EvalRecord
//! [`PolicyRecord`]: crate::policy_record::PolicyRecord

mod axis;
mod card;
mod charts;
mod findings;
mod from_eval;
mod look;
mod page;
mod policies;
mod sections;
pub mod simulation;
mod spider;
pub mod summary;
mod svg;
mod tags;
mod text;
mod view;

pub use findings::{Findings, findings};
pub use from_eval::of_eval;
pub use page::render;
pub use policies::{PolicyOptions, of_policies};
pub use text::escape;
use text::{estimate, one_line, signed};
pub use view::{Estimate, Report, Table};

/// The method that others are compared with, unless the user names a label.
const BASELINE: &str = "dpo";

/// Points that a training curve is thinned to.
const TRAINING_POINTS: usize = 80;

/// The value at `x` of the broken line through `points`, which are put in order; `None` outside it.
fn interpolate(points: &mut [(f64, f64)], x: f64) -> Option<f64> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.windows(2).find(|pair| pair[0].0 <= x && x <= pair[1].0).map(|pair| {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if x1 > x0 { y0 + (y1 - y0) * (x - x0) / (x1 - x0) } else { f64::midpoint(y0, y1) }
    })
}

/// The results as plain text for a terminal.
pub fn table(report: &Report) -> String {
    let results = report.tables.iter().map(|table| (table, false));
    results.chain(report.paired.iter().map(|table| (table, true))).map(|(t, d)| plain(report, t, d)).collect()
}

/// One table, its columns aligned; differences with a sign and their interval. Policies without a number are left out.
fn plain(report: &Report, table: &Table, differences: bool) -> String {
    let mut lines = vec![vec!["method".to_owned()]];
    lines[0].extend(table.columns.iter().map(|column| one_line(&column.name)));
    for (at, policy) in report.policies.iter().enumerate() {
        if table.columns.iter().all(|column| column.cells[at].is_none()) {
            continue;
        }
        let mut line = vec![one_line(&policy.label)];
        line.extend(table.columns.iter().map(|column| {
            let shown = |value| (if differences { signed } else { estimate })(value, column.digits);
            column.cells[at].as_ref().map_or("–".into(), shown)
        }));
        lines.push(line);
    }
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut out = format!("{}\n", one_line(&table.caption));
    for line in &lines {
        out.push_str(&format!("  {:<width$}", line[0], width = widths[0]));
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            out.push_str(&format!("  {cell:>width$}"));
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests;
