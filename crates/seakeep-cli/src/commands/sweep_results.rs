//! The table of a sweep: what every policy came to, as JSON and as CSV, and means over seeds for the terminal.

use std::path::{Path, PathBuf};

use seakeep::formats::write_atomic;
use seakeep::policy_record::{PolicyRecord, Samples, Shift};
use seakeep::preferences::Form;
use seakeep::{Result, stats};
use serde_json::{Map, Value, json};

/// What one policy came to.
struct Row {
    label: String,
    seed: u64,
    method: String,
    settings: Map<String, Value>,
    /// By name, in the order in which a person reads them.
    measured: Vec<(String, f64)>,
}

/// Writes `results.json` and `results.csv`; returns the table of the means over seeds.
///
/// # Errors
/// A record that cannot be read; a file that cannot be written.
pub fn write(to: &Path, records: &[PathBuf]) -> Result<String> {
    let rows: Vec<Row> =
        records.iter().map(|path| Ok(row(&PolicyRecord::read(path)?))).collect::<Result<_>>()?;
    let json: Vec<Value> = rows.iter().map(as_json).collect();
    write_atomic(to.join("results.json"), format!("{:#}\n", Value::from(json)).as_bytes())?;
    write_atomic(to.join("results.csv"), csv(&rows).as_bytes())?;
    Ok(format!("{}{}\n", table(&rows), to.join("results.csv").display()))
}

fn row(record: &PolicyRecord) -> Row {
    let mut measured = Vec::new();
    if let Some(samples) = &record.samples {
        if let Some(shift) = &record.shift {
            rewards(samples, shift, &mut measured);
        }
        for (objective, scores) in &samples.scores {
            measured.push((format!("score/{objective}"), stats::mean(&scores.0)));
        }
        let ratios: Vec<f64> = samples.logps.0.iter().zip(&samples.ref_logps.0).map(|(p, r)| p - r).collect();
        let tokens: Vec<f64> = samples.tokens.iter().map(|t| f64::from(*t)).collect();
        measured.push(("kl/completion".into(), stats::mean(&ratios)));
        measured.push(("kl/token".into(), ratios.iter().sum::<f64>() / tokens.iter().sum::<f64>()));
        measured.push(("tokens".into(), stats::mean(&tokens)));
        let distinct = samples.distinct.iter().enumerate();
        measured.extend(distinct.map(|(n, share)| (format!("distinct/{}", n + 1), *share)));
    }
    for set in &record.datasets {
        let numbers = set.metrics.iter().filter_map(|(name, value)| Some((name, value.as_f64()?)));
        measured.extend(numbers.map(|(name, value)| (format!("{}/{name}", set.name), value)));
    }
    let policy = &record.policy;
    Row {
        label: policy.label.clone(),
        seed: policy.seed,
        method: policy.method.clone(),
        settings: policy.settings.clone(),
        measured,
    }
}

/// The reward at every alpha, its mean and its least.
fn rewards(samples: &Samples, shift: &Shift, measured: &mut Vec<(String, f64)>) {
    let [Some(r1), Some(r2)] = shift.objectives.each_ref().map(|name| samples.scores.get(name)) else {
        return;
    };
    for (word, form) in [("convex", Form::Convex), ("geometric", Form::Geometric)] {
        if !shift.mixtures.iter().any(|m| m == word) {
            continue;
        }
        let at = |alpha: f64| stats::mean(&stats::mixed(form, alpha, &r1.0, &r2.0));
        let grid: Vec<f64> = shift.alphas.iter().map(|&alpha| at(alpha)).collect();
        measured.push((format!("{word}/nominal"), at(shift.nominal_alpha)));
        measured.push((format!("{word}/mean"), stats::mean(&grid)));
        measured.push((format!("{word}/worst"), stats::lowest(grid.iter().copied())));
        measured.extend(
            shift.alphas.iter().zip(&grid).map(|(alpha, reward)| (format!("{word}/{alpha}"), *reward)),
        );
    }
}

fn as_json(row: &Row) -> Value {
    json!({
        "label": row.label, "method": row.method, "seed": row.seed, "settings": row.settings,
        "measured": row.measured.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>(),
    })
}

/// The names of everything measured, in order of their first appearance.
fn names(rows: &[Row]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.measured) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn measured(row: &Row, name: &str) -> Option<f64> {
    row.measured.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

fn csv(rows: &[Row]) -> String {
    let quoted = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
    };
    let names = names(rows);
    let mut text =
        format!("label,method,seed,{}\n", names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(","));
    for row in rows {
        let values = names.iter().map(|name| measured(row, name).map_or(String::new(), |x| x.to_string()));
        let values: Vec<String> = values.collect();
        text +=
            &format!("{},{},{},{}\n", quoted(&row.label), quoted(&row.method), row.seed, values.join(","));
    }
    text
}

/// What a person compares first.
const SHOWN: [&str; 8] = [
    "convex/nominal",
    "convex/mean",
    "convex/worst",
    "geometric/nominal",
    "geometric/worst",
    "kl/token",
    "tokens",
    "distinct/2",
];

/// Means over seeds, a line for each label.
fn table(rows: &[Row]) -> String {
    let mut shown: Vec<&str> = names(rows).into_iter().filter(|name| SHOWN.contains(name)).collect();
    shown.extend(names(rows).into_iter().filter(|name| name.ends_with("/eval_rewards/accuracies")));
    let mut labels: Vec<&str> = Vec::new();
    for row in rows {
        if !labels.contains(&row.label.as_str()) {
            labels.push(&row.label);
        }
    }
    let width = labels.iter().map(|l| l.len()).max().unwrap_or_default();
    let head = |name: &str| name.trim_end_matches("/eval_rewards/accuracies").to_string();
    let heads: Vec<String> = shown.iter().map(|name| head(name)).collect();
    let mut text = format!("{:width$} {:>5}", "", "seeds");
    heads.iter().for_each(|head| text += &format!("  {:>8}", head));
    text.push('\n');
    for label in labels {
        let own: Vec<&Row> = rows.iter().filter(|row| row.label == label).collect();
        text += &format!("{label:width$} {:>5}", own.len());
        for (name, head) in shown.iter().zip(&heads) {
            let values: Vec<f64> = own.iter().filter_map(|row| measured(row, name)).collect();
            let (mean, width) = (stats::mean(&values), head.len().max(8));
            text += &if mean.is_nan() { format!("  {:>width$}", "-") } else { format!("  {mean:>width$.4}") };
        }
        text.push('\n');
    }
    text
}
