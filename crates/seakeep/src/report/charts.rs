//! Which numbers of a report make which chart.

use super::look::Look;
use super::svg::{Chart, Drawn, Point, Series};
use super::text::{alpha, capital, estimate, number};
use super::view::{AlongView, BallView, Estimate, MixtureView, Place, Report};

/// The look of each policy: the reference is grey, the others are numbered.
pub fn looks(report: &Report) -> Vec<Look> {
    let mut methods = 0..;
    let look = |is_reference| if is_reference { None } else { methods.next() };
    let numbers: Vec<Option<usize>> = report.policies.iter().map(|p| p.is_reference).map(look).collect();
    numbers.into_iter().map(|number| number.map_or(Look::Reference, Look::Method)).collect()
}

fn point(x: f64, y: &Estimate, name: &str, at: &str) -> Point {
    Point { x, y: y.mean, ends: [y.low, y.high], note: format!("{name}, {at}: {}", estimate(y, 3)) }
}

/// What kind of line a policy is drawn as.
fn drawn(look: Look) -> Drawn {
    if look == Look::Reference { Drawn::Line } else { Drawn::MarkedLine }
}

/// A series for each policy that `points` has some for.
fn lines(report: &Report, points: impl Fn(usize, &str) -> Vec<Point>) -> Vec<Series> {
    let of = |(at, look): (usize, Look)| {
        let points = points(at, &report.policies[at].label);
        (!points.is_empty()).then(|| Series { look, drawn: drawn(look), points })
    };
    looks(report).into_iter().enumerate().filter_map(of).collect()
}

fn alpha_axis(report: &Report) -> (String, Vec<(f64, String)>) {
    let shift = report.shift.clone().unwrap_or_default();
    (format!("alpha, {}", shift.meaning), vec![(shift.nominal, "labels".into())])
}

/// Reward of own samples against alpha.
pub fn reward(report: &Report, mixture: &MixtureView) -> Chart {
    let at = |a: f64| format!("alpha {}", alpha(a));
    let ceiling: Vec<Point> = mixture
        .ceiling
        .iter()
        .map(|(alpha, reward)| point(*alpha, &Estimate::alone(*reward), "best possible", &at(*alpha)))
        .collect();
    let mut series = Vec::new();
    if !ceiling.is_empty() {
        series.push(Series { look: Look::Ceiling, drawn: Drawn::Line, points: ceiling });
    }
    series.extend(lines(report, |which, label| {
        let points = mixture.curves[which].iter().flat_map(|curve| &curve.points);
        points.map(|p| point(p.alpha, &p.reward, label, &at(p.alpha))).collect()
    }));
    let (x_label, marks) = alpha_axis(report);
    Chart {
        title: format!("{} mixture: reward against shift", capital(&mixture.name)),
        description: format!(
            "Mean reward of each policy's own samples at each alpha; bands are {}. The dotted upright marks the alpha of \
             the training labels. The same numbers stand in the table under the charts.",
            report.bands
        ),
        x_label,
        y_label: "reward".into(),
        marks,
        series,
    }
}

/// Preference accuracy against alpha.
pub fn accuracy(report: &Report, mixture: &MixtureView) -> Chart {
    let series = lines(report, |which, label| {
        let points = mixture.curves[which].iter().flat_map(|curve| &curve.points);
        points
            .filter_map(|p| {
                Some(point(p.alpha, p.accuracy.as_ref()?, label, &format!("alpha {}", alpha(p.alpha))))
            })
            .collect()
    });
    let title = format!("{} mixture: preference accuracy against shift", capital(&mixture.name));
    accuracy_chart(report, title, "Share of held-out pairs", series)
}

fn accuracy_chart(report: &Report, title: String, share: &str, series: Vec<Series>) -> Chart {
    let (x_label, marks) = alpha_axis(report);
    Chart {
        title,
        description: format!(
            "{share}, labelled at each alpha, that each policy's implicit reward orders as labelled; bands are {}.",
            report.bands
        ),
        x_label,
        y_label: "preference accuracy".into(),
        marks,
        series,
    }
}

/// Reward at a place of the shift against divergence from the reference: a dot per run, a large marker per policy, and a
/// grey line from the reference through the settings of each method that has several.
pub fn frontier(report: &Report, mixture: &MixtureView, place: Place) -> Chart {
    let which = Place::ALL.iter().position(|p| *p == place).unwrap_or(0);
    let shift = report.shift.clone().unwrap_or_default();
    let (name, y_label) = match place {
        Place::Nominal => {
            let at = alpha(shift.nominal);
            (format!("at the alpha of the labels, {at}"), format!("reward at alpha {at}"))
        }
        Place::Far => {
            let at = alpha(shift.far);
            (format!("at the furthest alpha, {at}"), format!("reward at alpha {at}"))
        }
        Place::Worst => ("at the worst alpha".into(), "reward at the worst alpha".into()),
    };
    let mean = |at: usize| {
        let (policy, curve) = (&report.policies[at], mixture.curves[at].as_ref()?);
        let kl = policy.kl?.mean;
        Some(point(kl, &curve.at[which], &policy.label, &format!("mean, {} nats/token", number(kl, 3))))
    };
    let looks = looks(report);
    let reference = looks.iter().position(|look| *look == Look::Reference).and_then(mean);
    let mut series = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for policy in report.policies.iter().filter(|policy| !policy.is_reference) {
        if seen.contains(&policy.method.as_str()) {
            continue;
        }
        seen.push(&policy.method);
        let of_method = (0..looks.len())
            .filter(|&at| looks[at] != Look::Reference && report.policies[at].method == policy.method);
        let mut points: Vec<Point> = of_method.filter_map(mean).collect();
        if points.len() > 1 {
            points.extend(reference.clone());
            points.retain(|p| p.x.is_finite() && p.y.is_finite());
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            points.iter_mut().for_each(|p| p.ends = [f64::NAN; 2]);
            series.push(Series { look: Look::Reference, drawn: Drawn::Joint, points });
        }
    }
    for (at, look) in looks.iter().enumerate() {
        let runs = mixture.curves[at].iter().flat_map(|curve| &curve.runs);
        let dots: Vec<Point> = runs
            .map(|run| {
                let note = format!("seed {}, {} nats/token", run.seed, number(run.kl, 3));
                point(run.kl, &Estimate::alone(run.at[which]), &report.policies[at].label, &note)
            })
            .collect();
        if dots.len() > 1 {
            series.push(Series { look: *look, drawn: Drawn::Dots, points: dots });
        }
    }
    for (at, look) in looks.iter().enumerate() {
        series.push(Series { look: *look, drawn: Drawn::Means, points: mean(at).into_iter().collect() });
    }
    Chart {
        title: format!("{} mixture: reward {name}, against divergence", capital(&mixture.name)),
        description: format!(
            "One small marker per run, one large marker per policy; whiskers are {}. Further up is better there; further \
             left is closer to the reference.",
            report.bands
        ),
        x_label: "KL from the reference, nats per token".into(),
        y_label,
        marks: Vec::new(),
        series,
    }
}

/// Preference accuracy on a data set against alpha.
pub fn along(report: &Report, data_set: &str, view: &AlongView) -> Chart {
    let series = lines(report, |which, label| {
        let points = view.curves[which].iter().flatten();
        points.map(|(at, accuracy)| point(*at, accuracy, label, &format!("alpha {}", alpha(*at)))).collect()
    });
    let title = format!("{data_set}, {} mixture: preference accuracy against shift", view.mixture);
    accuracy_chart(report, title, &format!("Share of the pairs of {data_set}"), series)
}

/// The worst case over the radius of a ball.
pub fn ball(report: &Report, data_set: &str, ball: &BallView) -> Chart {
    let series = lines(report, |which, label| {
        let points = ball.curves[which].iter().flatten();
        points
            .map(|(radius, worst)| point(*radius, worst, label, &format!("radius {}", number(*radius, 2))))
            .collect()
    });
    Chart {
        title: format!("{}: {}", ball.name, ball.what),
        description: format!(
            "The worst {} on the pairs of {data_set} over all shifts of the data that the radius allows.",
            ball.what
        ),
        x_label: ball.radius.clone(),
        y_label: format!("worst {}", ball.what),
        marks: Vec::new(),
        series,
    }
}

/// Loss and margin against the optimizer step.
pub fn training(report: &Report) -> Vec<Chart> {
    let chart = |name: &str, unit: &str, pick: fn(&(f64, f64, f64)) -> f64| Chart {
        title: format!("{} in training", capital(name)),
        description: format!("{} at each optimizer step, mean over seeds.", capital(name)),
        x_label: "optimizer step".into(),
        y_label: format!("{name}, {unit}"),
        marks: Vec::new(),
        series: lines(report, |which, label| {
            let steps = report.policies[which].training.iter();
            steps.map(|step| point(step.0, &Estimate::alone(pick(step)), label, "step")).collect()
        })
        .into_iter()
        .map(|series| Series { drawn: Drawn::Line, ..series })
        .collect(),
    };
    vec![chart("loss", "each objective's own", |s| s.1), chart("reward margin", "nats", |s| s.2)]
}
