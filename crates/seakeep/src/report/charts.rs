//! Which series of a record make which chart.

use super::summary::{CurveNumbers, Method, Spread, curve, methods};
use super::svg::{Chart, Drawn, Look, Point, Series};
use super::text::{capital, number, spread};
use crate::eval_record::EvalRecord;

/// Points that a training curve is thinned to.
const TRAINING_POINTS: usize = 80;

fn point(x: f64, y: &Spread, name: &str, at: &str) -> Point {
    Point { x, y: y.mean, spread: y.sd, note: format!("{name}, {at}: {}", spread(y, 3)) }
}

fn alpha_mark(record: &EvalRecord) -> Vec<(f64, String)> {
    vec![(record.nominal_alpha, "labels".into())]
}

/// Reward of own samples against alpha.
pub fn reward(record: &EvalRecord, mixture: &str) -> Chart {
    let at = |alpha: f64| format!("alpha {}", number(alpha, 1));
    let mut series = Vec::new();
    let ceiling: Vec<Point> = record
        .ceilings
        .iter()
        .filter(|c| c.mixture == mixture)
        .map(|c| point(c.alpha, &Spread::of([c.reward]), "best possible", &at(c.alpha)))
        .collect();
    series.push(Series { look: Look::Ceiling, drawn: Drawn::Line, points: ceiling });
    if let Some(curve) = curve(&record.reference, mixture) {
        let points =
            curve.points.iter().map(|p| point(p.alpha, &Spread::of([p.reward]), "reference", &at(p.alpha)));
        series.push(Series { look: Look::Reference, drawn: Drawn::Line, points: points.collect() });
    }
    series.extend(methods(record).iter().enumerate().map(|(number, method)| {
        Series {
            look: Look::Method(number),
            drawn: Drawn::MarkedLine,
            points: method
                .points(mixture)
                .iter()
                .map(|p| point(p.alpha, &p.reward, method.label, &at(p.alpha)))
                .collect(),
        }
    }));
    Chart {
        title: format!("{} mixture: reward against shift", capital(mixture)),
        description: "Mean true reward of each policy's own samples at each alpha; bands are one standard \
                      deviation over seeds. The same numbers stand in the table under the charts."
            .into(),
        x_label: "alpha, share of population 1".into(),
        y_label: "true reward".into(),
        marks: alpha_mark(record),
        series,
    }
}

/// Preference accuracy against alpha.
pub fn accuracy(record: &EvalRecord, mixture: &str) -> Chart {
    let of = |(at, method): (usize, &Method)| Series {
        look: Look::Method(at),
        drawn: Drawn::MarkedLine,
        points: method
            .points(mixture)
            .iter()
            .filter_map(|p| {
                Some(point(
                    p.alpha,
                    p.accuracy.as_ref()?,
                    method.label,
                    &format!("alpha {}", number(p.alpha, 1)),
                ))
            })
            .collect(),
    };
    Chart {
        title: format!("{} mixture: preference accuracy against shift", capital(mixture)),
        description: "Share of held-out pairs, labelled at each alpha, that each policy's implicit reward \
                      orders as labelled; bands are one standard deviation over seeds."
            .into(),
        x_label: "alpha, share of population 1".into(),
        y_label: "preference accuracy".into(),
        marks: alpha_mark(record),
        series: methods(record).iter().enumerate().map(of).collect(),
    }
}

/// Worst-alpha reward against divergence from the reference: a dot per run, a large marker per method, and
/// a grey line from the reference through the settings of each method that has several.
pub fn frontier(record: &EvalRecord, mixture: &str) -> Chart {
    let worst = |eval| Some(CurveNumbers::of(curve(eval, mixture)?, record.nominal_alpha)?.worst);
    let all = methods(record);
    let mean = |method: &Method| {
        let y = method.number(mixture, record.nominal_alpha, |n| Some(n.worst))?;
        let kl = method.kl();
        Some(point(kl.mean, &y, method.label, &format!("mean, {} nats/token", number(kl.mean, 3))))
    };
    let reference =
        worst(&record.reference).map(|y| point(0.0, &Spread::of([y]), "reference", "0 nats/token"));
    let mut series = Vec::new();
    let mut families: Vec<&str> = Vec::new();
    for method in &all {
        if families.contains(&method.method) {
            continue;
        }
        families.push(method.method);
        let mut points: Vec<Point> =
            all.iter().filter(|m| m.method == method.method).filter_map(mean).collect();
        if points.len() > 1 {
            points.extend(reference.clone());
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            points.iter_mut().for_each(|p| p.spread = 0.0);
            series.push(Series { look: Look::Reference, drawn: Drawn::Line, points });
        }
    }
    series.push(Series {
        look: Look::Reference,
        drawn: Drawn::Means,
        points: reference.into_iter().collect(),
    });
    for (at, method) in all.iter().enumerate() {
        let look = Look::Method(at);
        let dots = method.runs.iter().filter_map(|run| {
            let note = format!("seed {}, {} nats/token", run.seed, number(run.kl_per_token, 3));
            Some(point(run.kl_per_token, &Spread::of([worst(&run.eval)?]), method.label, &note))
        });
        series.push(Series { look, drawn: Drawn::Dots, points: dots.collect() });
        series.push(Series { look, drawn: Drawn::Means, points: mean(method).into_iter().collect() });
    }
    Chart {
        title: format!("{} mixture: worst-alpha reward against divergence", capital(mixture)),
        description: "One small marker per run, one large marker per method with one standard deviation \
                      over seeds. Further up is better in the worst case; further left is closer to the \
                      reference."
            .into(),
        x_label: "KL from the reference, nats per token".into(),
        y_label: "reward at the worst alpha".into(),
        marks: Vec::new(),
        series,
    }
}

/// Loss and margin against the optimizer step.
pub fn training(record: &EvalRecord) -> Vec<Chart> {
    let all: Vec<_> = methods(record).iter().map(|m| (m.label, m.training(TRAINING_POINTS))).collect();
    let chart = |name: &str, unit: &str, pick: fn(&(f64, f64, f64)) -> f64| Chart {
        title: format!("{} in training", capital(name)),
        description: format!("{} at each optimizer step, mean over seeds.", capital(name)),
        x_label: "optimizer step".into(),
        y_label: format!("{name}, {unit}"),
        marks: Vec::new(),
        series: all
            .iter()
            .enumerate()
            .map(|(at, (label, steps))| Series {
                look: Look::Method(at),
                drawn: Drawn::Line,
                points: steps
                    .iter()
                    .map(|step| point(step.0, &Spread::of([pick(step)]), label, "step"))
                    .collect(),
            })
            .collect(),
    };
    vec![chart("loss", "each objective's own", |s| s.1), chart("reward margin", "nats", |s| s.2)]
}
