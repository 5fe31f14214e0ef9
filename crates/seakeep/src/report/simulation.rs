//! What `seakeep simulate` found, as a table for the terminal and as one HTML page.

use std::fmt::Write;

use super::axis::Scale;
use super::look::Look;
use super::page::{figures, keys, page};
use super::sections::{facts, header, labelled, scrolling};
use super::svg::{Chart, Drawn, Point, Series};
use super::text::{alpha, escape, number, one_line};
use crate::theory::rates::Interval;
use crate::theory::record::{Errors, MethodRecord, PointRecord, SimulationRecord};

/// How to read the numbers.
const GUIDE: &str = "<ul>\
<li><b>Own optimum</b>: what a method's objective would find with endless data, at the same radius; solved exactly, since \
the world is finite. The theorems are about the distance to it. <b>Truth</b>: the parameters that labelled the \
pairs. A robust objective of fixed radius does not converge to them, by design; its <b>bias</b> is how far its own \
optimum lies from them.</li>\
<li><b>Slope</b>: of log mean error over log n, in the upper half of the grid. &#8722;0.5 is the usual statistical rate, \
&#8722;0.25 what is proved for the robust estimators: an upper bound, so a steeper slope does not contradict it.</li>\
<li><b>Shrinking</b> methods have a radius that falls with n; the others keep theirs.</li>\
<li>Intervals and bands are 95%, by bootstrap over the repetitions. They cover the sampling of pairs in this one world, \
not other worlds.</li></ul>";

/// The middle of an error at a point of a method.
type Pick = fn(&PointRecord) -> &Errors;

fn own(point: &PointRecord) -> &Errors {
    &point.own
}

fn truth(point: &PointRecord) -> &Errors {
    &point.truth
}

/// The Euclidean slope of the upper half of the grid.
fn slope(method: &MethodRecord, target: &str) -> Option<Interval> {
    let all = method.slopes.iter().filter(|s| s.target == target && s.norm == "euclidean");
    all.max_by_key(|s| s.from_n)?.slope
}

fn interval(value: &Interval, digits: usize) -> String {
    format!("{} [{}, {}]", number(value.value, digits), number(value.low, digits), number(value.high, digits))
}

fn slope_cell(method: &MethodRecord, target: &str) -> String {
    slope(method, target).map_or("–".into(), |s| interval(&s, 3))
}

const COLUMNS: [&str; 5] =
    ["slope, own optimum", "slope, truth", "error, own optimum", "error, truth", "bias"];

/// The cells of the table of results: slopes, and errors at the largest n.
fn cells(method: &MethodRecord) -> Option<[String; 5]> {
    let last = method.points.last()?;
    Some([
        slope_cell(method, "own"),
        slope_cell(method, "truth"),
        interval(&last.own.euclidean.mean, 4),
        interval(&last.truth.euclidean.mean, 4),
        number(last.bias, 4),
    ])
}

/// The results as plain text for a terminal.
pub fn table(record: &SimulationRecord) -> String {
    let mut lines = vec![vec!["method".to_owned()]];
    lines[0].extend(COLUMNS.map(str::to_owned));
    for method in &record.methods {
        let mut line = vec![one_line(&method.label)];
        line.extend(cells(method).into_iter().flatten());
        lines.push(line);
    }
    let width =
        |at: usize| lines.iter().filter_map(|l| l.get(at)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut out = format!(
        "Slopes of log error over log n from n = {} on; errors at n = {}; Euclidean, mean over {} repetitions, 95% intervals\n",
        record.methods.first().and_then(|m| m.slopes.iter().map(|s| s.from_n).max()).unwrap_or(0),
        record.options.sizes().last().copied().unwrap_or(0),
        record.options.repetitions
    );
    for line in &lines {
        let _ = write!(out, "  {:<width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.push('\n');
    }
    out.push_str("\nDual values beside distributions of the ball (nats, first sample of the smallest n)\n");
    for case in &record.worst_cases {
        for primal in &case.primal {
            let _ = writeln!(
                out,
                "  {:<6} mean {}  dual {}  {}: distance {}, value {}, gap {:.1e}",
                case.method,
                number(case.mean_loss, 6),
                number(case.dual, 9),
                primal.what,
                number(primal.distance, 6),
                number(primal.value, 9),
                case.dual - primal.value
            );
        }
    }
    out
}

/// The page.
pub fn render(record: &SimulationRecord) -> String {
    let o = &record.options;
    let subtitle = format!(
        "Log-linear policies with {} features, {} prompts of {} answers, {} repetitions · {}",
        o.dimension, o.prompts, o.answers, o.repetitions, record.program
    );
    let asked = "<p>arXiv 2502.01930 proves that the robust optima of a sample (WDPO, KLDPO) approach those of the population \
                 at least as fast as n to the power −1/4, where plain DPO has −1/2. How fast do they? Pairs are drawn from a known \
                 truth, and every objective is solved to optimality with its exact dual.</p>";
    let drawn = [error_chart(record, "own optimum", own), error_chart(record, "truth", truth)];
    let bound = "<p>The bound with its constants, in the covariance norm. Above the diameter it says nothing: no two \
                 policies of the class are further apart. DPO's holds up to a universal constant, taken as 1.</p>";
    let shift = format!(
        "<p>Expected loss of the estimates from n = {} when another taste, at 120° to the one that labelled, has a share \
         alpha in the reward that judges. Timid is not robust: read it with the distance from the reference, whose own \
         loss is ln 2 everywhere.</p>",
        record.shift.n
    );
    let parts = vec![
        ("What was asked", asked.to_string()),
        ("Findings", findings(record)),
        ("How to read this", GUIDE.to_string()),
        (
            "Error against the number of pairs",
            charted(record, "error", &drawn, Scale::Log) + &error_tables(record),
        ),
        ("Slopes", results(record)),
        (
            "The bound",
            format!(
                "{bound}{}{}",
                charted(record, "bound", &[bound_chart(record)], Scale::Log),
                bounds(record)
            ),
        ),
        ("Dual values and the worst cases they promise", duals(record)),
        (
            "Under shifted tastes",
            format!(
                "{shift}{}{}",
                charted(record, "shift", &[shift_chart(record)], Scale::Linear),
                shift_table(record)
            ),
        ),
        ("Exact configuration", configuration(record)),
    ];
    page("How fast do robust estimators converge?", &subtitle, parts)
}

/// What the slopes say, by plain code.
fn findings(record: &SimulationRecord) -> String {
    let mut sentences = Vec::new();
    let judged = |s: &Interval, rate: f64| s.low <= rate && rate <= s.high;
    for method in &record.methods {
        let (Some(own), Some(truth)) = (slope(method, "own"), slope(method, "truth")) else {
            sentences.push(format!(
                "{}: no slope, since its estimate is the population's at some n in every sample (mostly: both are the reference; the \
                 radius is too large for this signal).",
                method.label
            ));
            continue;
        };
        let mut text =
            format!("{}: towards its own optimum the slope is {}", method.label, interval(&own, 3));
        let rate = match () {
            () if judged(&own, -0.5) => ", whose interval holds −1/2",
            () if own.high < -0.25 => ", steeper than −1/4 but not −1/2 within its interval",
            () if judged(&own, -0.25) => ", whose interval holds −1/4",
            () => ", less steep than −1/4",
        };
        text += rate;
        if method.name != "dpo" {
            let last = method.points.last().map_or(0.0, |p| p.bias);
            let _ = write!(
                text,
                "; towards the truth it is {} and the bias at the largest n {}",
                interval(&truth, 3),
                number(last, 4)
            );
        }
        sentences.push(text + ".");
    }
    for method in &record.methods {
        let Some((n, bound)) = method.points.last().and_then(|p| Some((p.n, p.bound?))) else { continue };
        let says = if bound < record.world.diameter { "below" } else { "above" };
        sentences.push(format!(
            "The bound on {} is {bound:.3e} at n = {n}, {says} the diameter of the class, {}.",
            method.label,
            number(record.world.diameter, 3)
        ));
    }
    let items: String = sentences.iter().map(|s| format!("<li>{}</li>", escape(s))).collect();
    format!("<ul class=\"findings\">{items}</ul>")
}

/// A legend and charts side by side.
fn charted(record: &SimulationRecord, id: &str, charts: &[Chart], scale: Scale) -> String {
    let used =
        |look: Look| charts.iter().flat_map(|c| &c.series).any(|s| s.look == look && !s.points.is_empty());
    let methods = record.methods.iter().enumerate().map(|(at, m)| (Look::Method(at), m.label.as_str()));
    let grey = match scale {
        Scale::Log if id == "bound" => {
            [(Look::Reference, "diameter"), (Look::Ceiling, "bound of the colour's method")]
        }
        Scale::Log => [(Look::Reference, "slope −1/2"), (Look::Ceiling, "slope −1/4")],
        Scale::Linear => [(Look::Reference, "the reference"), (Look::Ceiling, "best possible")],
    };
    let looks: Vec<(Look, &str)> = methods.chain(grey).filter(|(look, _)| used(*look)).collect();
    keys(&looks) + &figures(id, charts, scale)
}

/// A point of a logarithmic chart.
fn log_point(n: usize, y: &Interval, label: &str) -> Point {
    Point {
        x: (n as f64).log10(),
        y: y.value.log10(),
        ends: [y.low.log10(), y.high.log10()],
        note: format!("{label}, n {n}: {}", interval(y, 4)),
    }
}

/// A line of a slope through DPO's error at the largest n.
fn guide(record: &SimulationRecord, look: Look, power: f64) -> Series {
    let sizes = record.options.sizes();
    let anchor = record.methods.first().and_then(|dpo| dpo.points.last());
    let points = anchor.map_or(Vec::new(), |last| {
        let y = |n: usize| last.truth.euclidean.mean.value * (n as f64 / last.n as f64).powf(power);
        let at = |&n: &usize| log_point(n, &Interval { value: y(n), low: y(n), high: y(n) }, "guide");
        sizes.iter().map(at).collect()
    });
    Series { look, drawn: Drawn::Line, points }
}

fn error_chart(record: &SimulationRecord, target: &str, pick: Pick) -> Chart {
    let mut series = vec![guide(record, Look::Reference, -0.5), guide(record, Look::Ceiling, -0.25)];
    series.extend(record.methods.iter().enumerate().map(|(at, method)| Series {
        look: Look::Method(at),
        drawn: Drawn::MarkedLine,
        points:
            method.points.iter().map(|p| log_point(p.n, &pick(p).euclidean.mean, &method.label)).collect(),
    }));
    Chart {
        title: format!("Error from the {target}"),
        description: format!(
            "Mean Euclidean error from the {target} against the number of pairs, both logarithmic, one line for each \
             method; bands are 95% intervals. Grey lines have the slopes −1/2 and −1/4. The numbers stand in the tables below."
        ),
        x_label: "pairs, n".into(),
        y_label: format!("error from the {target}"),
        marks: Vec::new(),
        series,
    }
}

fn bound_chart(record: &SimulationRecord) -> Chart {
    let mut series = Vec::new();
    let sizes = record.options.sizes();
    let flat =
        Interval { value: record.world.diameter, low: record.world.diameter, high: record.world.diameter };
    let diameter = sizes.iter().map(|&n| log_point(n, &flat, "diameter")).collect();
    series.push(Series { look: Look::Reference, drawn: Drawn::Line, points: diameter });
    for (at, method) in record.methods.iter().enumerate().filter(|(_, m)| !m.name.ends_with("_shrinking")) {
        let bounds: Vec<Point> = method
            .points
            .iter()
            .filter_map(|p| p.bound.map(|b| (p.n, Interval { value: b, low: b, high: b })))
            .map(|(n, b)| log_point(n, &b, &format!("{}, bound", method.label)))
            .collect();
        if bounds.is_empty() {
            continue;
        }
        let measured = method.points.iter().map(|p| log_point(p.n, &p.own.covariance.mean, &method.label));
        series.push(Series { look: Look::Method(at), drawn: Drawn::Line, points: bounds });
        series.push(Series { look: Look::Method(at), drawn: Drawn::MarkedLine, points: measured.collect() });
    }
    Chart {
        title: "Measured errors (with markers) and their bounds (without)".into(),
        description: "Mean error from the own optimum in the covariance norm, with markers, and the bound of the same colour, \
                      without; the grey line is the diameter of the class."
            .into(),
        x_label: "pairs, n".into(),
        y_label: "error, covariance norm".into(),
        marks: Vec::new(),
        series,
    }
}

fn shift_chart(record: &SimulationRecord) -> Chart {
    let shift = &record.shift;
    let line = |look, y: &dyn Fn(usize) -> f64, label: &str| Series {
        look,
        drawn: Drawn::Line,
        points: shift
            .alphas
            .iter()
            .enumerate()
            .map(|(at, &x)| Point { x, y: y(at), ends: [f64::NAN; 2], note: label.into() })
            .collect(),
    };
    let mut series = vec![
        line(Look::Reference, &|_| std::f64::consts::LN_2, "the reference"),
        line(Look::Ceiling, &|at| shift.best.get(at).copied().unwrap_or(f64::NAN), "best possible"),
    ];
    for (at, curve) in shift.methods.iter().enumerate() {
        let points = shift.alphas.iter().zip(&curve.loss).map(|(&x, y)| Point {
            x,
            y: y.value,
            ends: [y.low, y.high],
            note: format!("{}, alpha {}: {}", curve.name, alpha(x), interval(y, 4)),
        });
        series.push(Series { look: Look::Method(at), drawn: Drawn::MarkedLine, points: points.collect() });
    }
    Chart {
        title: "Expected loss under shift".into(),
        description: "Mean over repetitions of the expected pair loss against the share of the other taste; bands are 95% \
                      intervals. The numbers stand in the table below."
            .into(),
        x_label: "alpha, share of the other taste".into(),
        y_label: "expected loss, nats".into(),
        marks: vec![(0.0, "labels".into())],
        series,
    }
}

/// One table with a row for each method.
fn by_method(
    record: &SimulationRecord,
    caption: &str,
    names: &[String],
    row: &dyn Fn(usize) -> Vec<String>,
) -> String {
    let names = std::iter::once("method".to_owned()).chain(names.iter().cloned());
    let mut table = format!("<table><caption>{}</caption>{}<tbody>", escape(caption), header(names));
    for (at, method) in record.methods.iter().enumerate() {
        let cells = row(at);
        if cells.is_empty() {
            continue;
        }
        let cells: String = cells.iter().map(|c| format!("<td>{}</td>", escape(c))).collect();
        let name = labelled(Look::Method(at), &method.label);
        let _ = write!(table, "<tr><th scope=\"row\">{name}</th>{cells}</tr>");
    }
    table.push_str("</tbody></table>");
    scrolling(caption, &table)
}

fn results(record: &SimulationRecord) -> String {
    let caption = "Slopes in the upper half of the grid, errors at the largest n (Euclidean, 95% intervals)";
    let whole = "All slopes: target, norm, from which n";
    let kinds: Vec<String> = record.methods.first().map_or(Vec::new(), |m| {
        m.slopes.iter().map(|s| format!("{}, {}, n ≥ {}", s.target, s.norm, s.from_n)).collect()
    });
    let main = by_method(record, caption, &COLUMNS.map(str::to_owned), &|at| {
        cells(&record.methods[at]).into_iter().flatten().collect()
    });
    let all = by_method(record, whole, &kinds, &|at| {
        let cell = |s: &Option<Interval>| s.as_ref().map_or("–".into(), |s| interval(s, 3));
        record.methods[at].slopes.iter().map(|s| cell(&s.slope)).collect()
    });
    format!("{main}<details><summary>{whole}</summary>{all}</details>")
}

/// The numbers behind the error curves, folded away.
fn error_tables(record: &SimulationRecord) -> String {
    let names: Vec<String> = record.options.sizes().iter().map(|n| format!("n = {n}")).collect();
    let mut out = String::new();
    let fold = |out: &mut String, caption: &str, cell: &dyn Fn(&PointRecord) -> String| {
        let table =
            by_method(record, caption, &names, &|at| record.methods[at].points.iter().map(cell).collect());
        let _ = write!(out, "<details><summary>{}</summary>{table}</details>", escape(caption));
    };
    for (name, pick) in [("own optimum", own as Pick), ("truth", truth)] {
        fold(&mut out, &format!("Mean error from the {name}"), &|p| interval(&pick(p).euclidean.mean, 4));
        fold(&mut out, &format!("Median error from the {name}"), &|p| interval(&pick(p).euclidean.median, 4));
    }
    fold(&mut out, "Share of samples on the boundary of the ball, and at the reference", &|p| {
        format!("{}, {}", number(p.on_boundary, 3), number(p.at_reference, 3))
    });
    out
}

fn bounds(record: &SimulationRecord) -> String {
    let names: Vec<String> = record.options.sizes().iter().map(|n| format!("n = {n}")).collect();
    by_method(record, "Measured error and bound, covariance norm", &names, &|at| {
        let both = |p: &PointRecord| {
            p.bound.map(|b| format!("{} ≤ {b:.3e}", number(p.own.covariance.mean.value, 4)))
        };
        record.methods[at].points.iter().filter_map(both).collect()
    })
}

fn duals(record: &SimulationRecord) -> String {
    let caption = "At each estimate of the first sample of the smallest n, nats";
    let names =
        ["method", "radius", "mean loss", "dual value", "distribution", "its distance", "its value", "gap"];
    let mut table =
        format!("<table><caption>{caption}</caption>{}<tbody>", header(names.iter().map(|n| n.to_string())));
    for case in &record.worst_cases {
        for primal in &case.primal {
            let _ = write!(
                table,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1e}</td></tr>",
                escape(&case.method),
                case.radius,
                number(case.mean_loss, 6),
                number(case.dual, 9),
                escape(&primal.what),
                number(primal.distance, 6),
                number(primal.value, 9),
                case.dual - primal.value
            );
        }
    }
    table.push_str("</tbody></table>");
    let text = "<p>The Wasserstein worst case is approached and not attained: a smaller and smaller share of every \
                pair moves further and further against the policy.</p>";
    scrolling(caption, &table) + text
}

fn shift_table(record: &SimulationRecord) -> String {
    let mut names = vec!["distance from the reference".to_owned()];
    names.extend(record.shift.alphas.iter().map(|a| alpha(*a)));
    let caption = "Expected loss at every alpha, nats";
    let table = by_method(record, caption, &names, &|at| {
        record.shift.methods.get(at).map_or(Vec::new(), |curve| {
            let first = std::iter::once(number(curve.distance, 3));
            first.chain(curve.loss.iter().map(|l| interval(l, 4))).collect()
        })
    });
    format!("<details><summary>{caption}</summary>{table}</details>")
}

fn configuration(record: &SimulationRecord) -> String {
    let options = serde_json::to_value(&record.options).unwrap_or_default();
    let options = options.as_object().cloned().unwrap_or_default();
    let world = &record.world;
    let mut rows: Vec<(String, String)> =
        options.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
    let eigenvalues: Vec<String> = world.covariance_eigenvalues.iter().map(|v| number(*v, 4)).collect();
    rows.push(("labelled pairs of the world".into(), world.atoms.to_string()));
    rows.push(("gamma".into(), format!("{:.4e}", world.gamma)));
    rows.push(("K, nats".into(), number(world.largest_loss, 4)));
    rows.push(("eigenvalues of the covariance".into(), eigenvalues.join(", ")));
    rows.push(("wall-clock time".into(), format!("{} s", number(record.seconds, 1))));
    format!("<pre>{}</pre>{}", escape(&record.command_line), facts(&rows))
}
