//! An [`EvalRecord`] as a report: means and standard deviations over seeds, differences by Student's t over paired seeds.

use serde_json::Value;

use super::summary::{CurveNumbers, Method, Spread, curve, methods, mixtures};
use super::text::{alpha, capital, number, one_line};
use super::view::{
    AlphaPoint, Comparison, CurveView, Estimate, Gap, MixtureView, PolicyView, Report, RunPoint, ShiftView,
    Table,
};
use super::{BASELINE, TRAINING_POINTS, interpolate};
use crate::eval_record::{Curve, EvalRecord, Run};

impl From<Spread> for Estimate {
    /// The interval is one standard deviation to either side.
    fn from(s: Spread) -> Estimate {
        Estimate { mean: s.mean, low: s.mean - s.sd, high: s.mean + s.sd }
    }
}

/// The report of an evaluation record.
pub fn of_eval(record: &EvalRecord) -> Report {
    let all = methods(record);
    let mut seeds: Vec<u64> = record.runs.iter().map(|run| run.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut subtitle = vec![
        record.data.name.clone(),
        format!("{} methods and settings, {} seeds", all.len(), seeds.len()),
        record.program.clone(),
    ];
    subtitle.retain(|part| !part.is_empty());
    let mixtures: Vec<MixtureView> = mixtures(record).into_iter().map(|m| mixture(record, &all, m)).collect();
    let alphas = || mixtures.iter().flat_map(|m| m.curves.iter().flatten()).flat_map(|c| &c.points);
    let away = |alpha: f64| (alpha - record.nominal_alpha).abs();
    let far = alphas().map(|p| p.alpha).max_by(|a, b| away(*a).total_cmp(&away(*b)));
    Report {
        title: if record.title.is_empty() { "Seakeep evaluation".into() } else { record.title.clone() },
        subtitle,
        paragraphs: [&record.question, &record.data.description]
            .into_iter()
            .filter(|text| !text.is_empty())
            .cloned()
            .collect(),
        facts: record.data.facts.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        shift: far.map(|far| ShiftView {
            nominal: record.nominal_alpha,
            far,
            meaning: "share of population 1".into(),
        }),
        bands: "one standard deviation over seeds".into(),
        caveat: caveat(&all),
        baseline: "DPO".into(),
        policies: policies(&all),
        tables: if all.is_empty() {
            Vec::new()
        } else {
            mixtures.iter().map(|m| table(record, &all, m)).collect()
        },
        mixtures,
        samples: record.samples.clone(),
        commands: Some(record.command_line.clone()).into_iter().filter(|text| !text.is_empty()).collect(),
        circumstances: circumstances(record),
        config: record.config.clone(),
        ..Report::default()
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn policies(all: &[Method]) -> Vec<PolicyView> {
    let mut out = vec![PolicyView {
        label: "reference".into(),
        method: "reference".into(),
        is_reference: true,
        kl: Some(Estimate::alone(0.0)),
        ..PolicyView::default()
    }];
    out.extend(all.iter().map(|method| {
        let settings = &method.runs[0].settings;
        let seeds: Vec<String> = method.runs.iter().map(|run| run.seed.to_string()).collect();
        let mut shown: Vec<(String, String)> =
            settings.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
        shown.push(("seeds".into(), seeds.join(", ")));
        PolicyView {
            label: method.label.into(),
            method: method.method.into(),
            is_reference: false,
            kl: Some(method.kl().into()),
            settings: shown,
            training: method.training(TRAINING_POINTS),
        }
    }));
    out
}

/// Reward at the nominal, the furthest and the worst alpha.
fn places(curve: &Curve, nominal: f64) -> Option<[f64; 3]> {
    let numbers = CurveNumbers::of(curve, nominal)?;
    let away = |alpha: f64| (alpha - nominal).abs();
    let far = curve.points.iter().max_by(|a, b| away(a.alpha).total_cmp(&away(b.alpha)))?.reward;
    Some([numbers.nominal, far, numbers.worst])
}

fn mixture(record: &EvalRecord, all: &[Method], name: &str) -> MixtureView {
    let nominal = record.nominal_alpha;
    let reference = curve(&record.reference, name);
    let base = reference.and_then(|curve| places(curve, nominal));
    let of_reference = reference.zip(base).map(|(curve, at)| CurveView {
        points: curve
            .points
            .iter()
            .map(|p| AlphaPoint {
                alpha: p.alpha,
                reward: Estimate::alone(p.reward),
                accuracy: p.accuracy.map(Estimate::alone),
            })
            .collect(),
        at: at.map(Estimate::alone).to_vec(),
        worst_alpha: CurveNumbers::of(curve, nominal).map_or(f64::NAN, |n| n.worst_alpha),
        gains: vec![None; 3],
        runs: Vec::new(),
    });
    let mut curves = vec![of_reference];
    for method in all {
        let runs: Vec<RunPoint> = method
            .runs
            .iter()
            .filter_map(|run| {
                let at = places(curve(&run.eval, name)?, nominal)?;
                Some(RunPoint { seed: run.seed, kl: run.kl_per_token, at })
            })
            .collect();
        if runs.is_empty() {
            curves.push(None);
            continue;
        }
        let over = |place: usize| Spread::of(runs.iter().map(|run| run.at[place])).into();
        let gain = |place: usize| {
            let base = base?[place];
            Some(interval(&Spread::of(runs.iter().map(|run| run.at[place] - base))))
        };
        let points: Vec<AlphaPoint> = method
            .points(name)
            .iter()
            .map(|p| AlphaPoint {
                alpha: p.alpha,
                reward: p.reward.into(),
                accuracy: p.accuracy.map(Estimate::from),
            })
            .collect();
        let lowest = points.iter().min_by(|a, b| a.reward.mean.total_cmp(&b.reward.mean));
        curves.push(Some(CurveView {
            at: (0..3).map(over).collect(),
            worst_alpha: lowest.map_or(f64::NAN, |p| p.alpha),
            points,
            gains: (0..3).map(gain).collect(),
            runs,
        }));
    }
    MixtureView {
        name: name.into(),
        curves,
        ceiling: record.ceilings.iter().filter(|c| c.mixture == name).map(|c| (c.alpha, c.reward)).collect(),
        comparisons: comparisons(record, all, name, base.map(|at| at[2])),
    }
}

/// The mean with its 95% interval by Student's t.
fn interval(s: &Spread) -> Estimate {
    let half = s.half_width();
    Estimate { mean: s.mean, low: s.mean - half, high: s.mean + half }
}

fn gap(s: &Spread) -> Gap {
    Gap { estimate: interval(s), without: format!("from {} paired seed(s)", s.n) }
}

fn comparisons(
    record: &EvalRecord,
    all: &[Method],
    mixture: &str,
    reference: Option<f64>,
) -> Vec<Comparison> {
    let worst = |run: &Run| Some(CurveNumbers::of(curve(&run.eval, mixture)?, record.nominal_alpha)?.worst);
    let mean = |method: &Method| {
        let value = Spread::of(method.runs.iter().filter_map(|r| worst(r))).mean;
        if value.is_nan() { f64::NEG_INFINITY } else { value }
    };
    let baselines: Vec<&Method> = all.iter().filter(|m| m.method == BASELINE).collect();
    let Some(best) = baselines.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))) else { return Vec::new() };
    // Place in the list of policies, which the reference leads.
    let place = |method: &Method| 1 + all.iter().position(|m| m.label == method.label).unwrap_or(0);
    all.iter()
        .filter(|method| method.method != BASELINE)
        .map(|method| Comparison {
            policy: place(method),
            best: place(best),
            settings: baselines.len(),
            own: gap(&difference(method, best, &worst)),
            equal_kl: at_same_kl(method, &baselines, reference, &worst),
        })
        .collect()
}

/// Difference of two methods over seeds: seed by seed where they ran with the same seeds.
fn difference(a: &Method, b: &Method, of: &dyn Fn(&Run) -> Option<f64>) -> Spread {
    Spread::of(a.runs.iter().filter_map(|run| {
        let twin = b.runs.iter().find(|other| other.seed == run.seed)?;
        Some(of(run)? - of(twin)?)
    }))
}

/// The method's gain over what DPO reaches at the same divergence, read off straight lines between DPO's
/// settings, seed by seed. This is what tells robustness from caution. The reference belongs to the line:
/// it is DPO at an infinite beta.
fn at_same_kl(
    other: &Method,
    baselines: &[&Method],
    reference: Option<f64>,
    worst: &dyn Fn(&Run) -> Option<f64>,
) -> Result<Gap, String> {
    let line = |seed: u64| -> Vec<(f64, f64)> {
        let runs = baselines.iter().flat_map(|method| &method.runs).filter(|run| run.seed == seed);
        let mut points: Vec<_> = runs.filter_map(|run| Some((run.kl_per_token, worst(run)?))).collect();
        points.extend(reference.map(|reward| (0.0, reward)));
        points
    };
    let gaps: Vec<f64> = other
        .runs
        .iter()
        .filter_map(|run| Some(worst(run)? - interpolate(&mut line(run.seed), run.kl_per_token)?))
        .collect();
    let missing = other.runs.len() - gaps.len();
    if missing > 0 {
        Err(format!("in {missing} of {} seeds", other.runs.len()))
    } else {
        Ok(gap(&Spread::of(gaps)))
    }
}

/// The table of a mixture: the reference, then the methods.
fn table(record: &EvalRecord, all: &[Method], mixture: &MixtureView) -> Table {
    let (name, nominal) = (mixture.name.as_str(), record.nominal_alpha);
    let reference = curve(&record.reference, name).and_then(|curve| CurveNumbers::of(curve, nominal));
    let over_all = |pick: &dyn Fn(&CurveNumbers) -> Option<f64>| -> Vec<Option<Estimate>> {
        let first = reference.as_ref().and_then(pick).map(Estimate::alone);
        let rest = all.iter().map(|m| m.number(name, nominal, pick).map(Estimate::from));
        std::iter::once(first).chain(rest).collect()
    };
    let mut gains = over_all(&|n| Some(n.worst - reference?.worst));
    gains[0] = None;
    let kl = std::iter::once(Some(Estimate::alone(0.0))).chain(all.iter().map(|m| Some(m.kl().into())));
    let lengths = std::iter::once(Some(Estimate::alone(record.reference.mean_length)))
        .chain(all.iter().map(|m| Some(m.length().into())));
    let title = format!("{} mixture", capital(&one_line(name)));
    let mut table = Table {
        caption: format!(
            "{title}: reward by alpha, the share of population 1 (labels drawn at {})",
            alpha(nominal)
        ),
        name: title,
        columns: Vec::new(),
    };
    table.push(format!("reward at {}", alpha(nominal)), 3, over_all(&|n| Some(n.nominal)));
    table.push("mean", 3, over_all(&|n| Some(n.mean)));
    table.push("worst", 3, over_all(&|n| Some(n.worst)));
    table.push("worst, gain", 3, gains);
    table.push("accuracy, mean", 3, over_all(&|n| n.accuracy_mean));
    table.push("accuracy, worst", 3, over_all(&|n| n.accuracy_worst));
    table.push("KL nats/token", 3, kl.collect());
    table.push("tokens", 1, lengths.collect());
    table
}

fn circumstances(record: &EvalRecord) -> Vec<(String, String)> {
    let timing = &record.timing;
    let mut rows = vec![
        ("program".to_owned(), record.program.clone()),
        ("machine".to_owned(), timing.machine.clone()),
        ("wall-clock time".to_owned(), format!("{} s", number(timing.total_seconds, 1))),
    ];
    rows.extend(timing.phases.iter().map(|(name, s)| (name.clone(), format!("{} s", number(*s, 1)))));
    rows.retain(|row| !row.1.is_empty());
    rows
}

fn caveat(all: &[Method]) -> String {
    if all.is_empty() {
        return "The record holds no runs, so there is nothing to find.".into();
    }
    let (least, most) = all.iter().fold((usize::MAX, 0), |(low, high), method| {
        (low.min(method.runs.len()), high.max(method.runs.len()))
    });
    let seeds = if least == most { format!("{least}") } else { format!("{least} to {most}") };
    format!(
        "Intervals are Student's t over {seeds} seed(s) per method, paired by seed. They cover the luck of \
         training and sampling, not the choice of the world, and are not corrected for the number of \
         comparisons; the best DPO setting was chosen on the numbers it is compared by, which favours DPO. Interpolating \
         DPO by straight lines slightly favours the other side where DPO's frontier bends."
    )
}
