//! What the numbers say, in sentences made by plain code.
//!
//! A difference is called one only where its 95% interval over seeds leaves zero out. Everything else is
//! reported as not told apart, whichever way the means lie.

use super::summary::{CurveNumbers, Method, Spread, curve, methods, mixtures};
use super::text::{capital, number, spread};
use crate::eval_record::{EvalRecord, Run};

/// The method that others are compared with.
const BASELINE: &str = "dpo";

/// What was found under one heading.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// What the sentences are about, such as `Convex mixture`.
    pub heading: String,
    /// A sentence or a few each, plain text.
    pub sentences: Vec<String>,
}

/// The findings of a record: by mixture, then what holds for all of them.
pub fn findings(record: &EvalRecord) -> Vec<Findings> {
    let all = methods(record);
    let mut out = Vec::new();
    for mixture in mixtures(record) {
        let sentences = of_mixture(record, &all, mixture);
        if !sentences.is_empty() {
            out.push(Findings { heading: format!("{} mixture", capital(mixture)), sentences });
        }
    }
    let last = if all.is_empty() {
        "The record holds no runs, so there is nothing to find.".to_owned()
    } else {
        caveat(&all)
    };
    out.push(Findings { heading: "What the intervals cover".into(), sentences: vec![last] });
    out
}

fn of_mixture(record: &EvalRecord, all: &[Method], mixture: &str) -> Vec<String> {
    let mut out = Vec::new();
    let worst = |run: &Run| numbers(record, run, mixture).map(|n| n.worst);
    let reference =
        curve(&record.reference, mixture).and_then(|curve| CurveNumbers::of(curve, record.nominal_alpha));
    if let Some(reference) = reference.as_ref().filter(|_| !all.is_empty()) {
        out.push(against_reference(record, all, mixture, reference));
    }
    let (baselines, others): (Vec<&Method>, Vec<&Method>) =
        all.iter().partition(|method| method.method == BASELINE);
    let mean = |method: &Method| order(Spread::of(method.runs.iter().filter_map(|r| worst(r))).mean);
    let Some(best) = baselines.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))) else { return out };
    for other in &others {
        let mut sentence = versus(other, best, baselines.len(), &worst);
        sentence.push(' ');
        sentence.push_str(&at_same_kl(other, &baselines, reference.map(|n| n.worst), &worst));
        out.push(sentence);
    }
    out
}

fn order(value: f64) -> f64 {
    if value.is_nan() { f64::NEG_INFINITY } else { value }
}

fn numbers(record: &EvalRecord, run: &Run, mixture: &str) -> Option<CurveNumbers> {
    CurveNumbers::of(curve(&run.eval, mixture)?, record.nominal_alpha)
}

/// Who gains at the nominal alpha, and who falls below the reference at the worst one.
fn against_reference(record: &EvalRecord, all: &[Method], mixture: &str, reference: &CurveNumbers) -> String {
    let with = |pick: fn(&CurveNumbers) -> f64, sign: bool| -> String {
        let chosen = all.iter().filter(|method| {
            let gain = |run: &&Run| Some(pick(&numbers(record, run, mixture)?) - pick(reference));
            Spread::of(method.runs.iter().filter_map(gain)).sign() == Some(sign)
        });
        list(&chosen.map(|method| method.label).collect::<Vec<_>>())
    };
    format!(
        "The reference's reward is {} at alpha {} and {} at its worst alpha, {}. Above the reference at alpha \
         {}: {}. Above it in the worst case: {}. Below it in the worst case: {}.",
        number(reference.nominal, 3),
        number(record.nominal_alpha, 1),
        number(reference.worst, 3),
        number(reference.worst_alpha, 1),
        number(record.nominal_alpha, 1),
        with(|n| n.nominal, true),
        with(|n| n.worst, true),
        with(|n| n.worst, false)
    )
}

fn list(labels: &[&str]) -> String {
    if labels.is_empty() { "none".into() } else { labels.join(", ") }
}

/// A method's worst-case reward against the best setting of the baseline.
fn versus(other: &Method, best: &Method, settings: usize, worst: &dyn Fn(&Run) -> Option<f64>) -> String {
    let of = |method: &Method| Spread::of(method.runs.iter().filter_map(|run| worst(run)));
    let gap = difference(other, best, worst);
    let verdict = match gap.sign() {
        Some(true) => "is higher",
        Some(false) => "is lower",
        None => "is not told apart from it by these runs",
    };
    let choice = if settings > 1 {
        format!("The best of {settings} DPO settings by that measure, {}", best.label)
    } else {
        best.label.to_owned()
    };
    format!(
        "{}: worst-alpha reward {} at {} nats per token from the reference. {}: {} at {}. {} {verdict}: \
         difference {}.",
        other.label,
        spread(&of(other), 3),
        spread(&other.kl(), 3),
        choice,
        spread(&of(best), 3),
        spread(&best.kl(), 3),
        other.label,
        interval(&gap),
    )
}

/// The method's gain over what DPO reaches at the same divergence, read off straight lines between DPO's
/// settings, seed by seed. This is what tells robustness from caution. The reference belongs to the line:
/// it is DPO at an infinite beta.
fn at_same_kl(
    other: &Method,
    baselines: &[&Method],
    reference: Option<f64>,
    worst: &dyn Fn(&Run) -> Option<f64>,
) -> String {
    let line = |seed: u64| -> Vec<(f64, f64)> {
        let runs = baselines.iter().flat_map(|method| &method.runs).filter(|run| run.seed == seed);
        let mut points: Vec<_> = runs.filter_map(|run| Some((run.kl_per_token, worst(run)?))).collect();
        points.extend(reference.map(|reward| (0.0, reward)));
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let gaps: Vec<f64> = other
        .runs
        .iter()
        .filter_map(|run| Some(worst(run)? - interpolate(&line(run.seed), run.kl_per_token)?))
        .collect();
    if gaps.len() < other.runs.len() {
        return format!(
            "Its divergence lies outside what the DPO settings span (in {} of {} seeds), so a comparison at \
             equal divergence cannot be made from these runs.",
            other.runs.len() - gaps.len(),
            other.runs.len()
        );
    }
    let gap = Spread::of(gaps);
    let verdict = match gap.sign() {
        Some(true) => "reaches more in the worst case than DPO does",
        Some(false) => "reaches less in the worst case than DPO does",
        None => "is not told apart from DPO",
    };
    format!(
        "At equal divergence (DPO interpolated between the reference and its settings) it {verdict}: \
         difference {}.",
        interval(&gap)
    )
}

/// Difference of two methods over seeds: seed by seed where they ran with the same seeds.
fn difference(a: &Method, b: &Method, of: &dyn Fn(&Run) -> Option<f64>) -> Spread {
    Spread::of(a.runs.iter().filter_map(|run| {
        let twin = b.runs.iter().find(|other| other.seed == run.seed)?;
        Some(of(run)? - of(twin)?)
    }))
}

/// The value at `x` of the broken line through `points` (by growing x); `None` outside it.
fn interpolate(points: &[(f64, f64)], x: f64) -> Option<f64> {
    points.windows(2).find(|pair| pair[0].0 <= x && x <= pair[1].0).map(|pair| {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if x1 > x0 { y0 + (y1 - y0) * (x - x0) / (x1 - x0) } else { f64::midpoint(y0, y1) }
    })
}

fn interval(gap: &Spread) -> String {
    let half = gap.half_width();
    if half.is_nan() {
        return format!("{}, no interval from {} paired seed(s)", number(gap.mean, 3), gap.n);
    }
    format!(
        "{}, 95% interval {} to {}",
        number(gap.mean, 3),
        number(gap.mean - half, 3),
        number(gap.mean + half, 3)
    )
}

fn caveat(all: &[Method]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval_record::{Curve, CurvePoint, PolicyEval};

    fn eval(low: f64) -> PolicyEval {
        let point = |alpha, reward| CurvePoint { alpha, reward, ..CurvePoint::default() };
        let points = vec![point(0.1, 0.6), point(1.0, low)];
        PolicyEval { curves: vec![Curve { mixture: "convex".into(), points }], mean_length: 9.0 }
    }

    fn run(method: &str, label: &str, seed: u64, kl: f64, low: f64) -> Run {
        Run {
            method: method.into(),
            label: label.into(),
            seed,
            kl_per_token: kl,
            eval: eval(low),
            ..Run::default()
        }
    }

    fn found(runs: Vec<Run>) -> String {
        let record = EvalRecord { nominal_alpha: 0.1, reference: eval(0.4), runs, ..EvalRecord::default() };
        let all = findings(&record).into_iter().flat_map(|part| part.sentences);
        all.collect::<Vec<_>>().join("\n")
    }

    fn seeds(method: &str, label: &str, kl: f64, lows: [f64; 3]) -> Vec<Run> {
        lows.into_iter().enumerate().map(|(seed, low)| run(method, label, seed as u64, kl, low)).collect()
    }

    #[test]
    fn a_clear_difference_is_called_one_and_a_noisy_one_is_not() {
        let dpo = seeds("dpo", "DPO", 0.5, [0.30, 0.31, 0.29]);
        let clear = [dpo.clone(), seeds("kldpo", "KLDPO", 0.5, [0.41, 0.40, 0.39])].concat();
        let text = found(clear);
        assert!(text.contains("KLDPO is higher: difference 0.100"), "{text}");
        assert!(text.contains("Below it in the worst case: DPO."), "{text}");
        let noisy = [dpo.clone(), seeds("kldpo", "KLDPO", 0.5, [0.60, 0.20, 0.40])].concat();
        assert!(found(noisy).contains("not told apart"));
        let worse = [dpo, seeds("kldpo", "KLDPO", 0.5, [0.20, 0.21, 0.19])].concat();
        assert!(found(worse).contains("KLDPO is lower"));
    }

    #[test]
    fn one_seed_claims_nothing() {
        let text = found(vec![run("dpo", "DPO", 0, 0.5, 0.3), run("wdpo", "WDPO", 0, 0.5, 0.9)]);
        assert!(text.contains("not told apart") && text.contains("no interval from 1 paired"), "{text}");
        assert!(!text.contains("is higher"));
    }

    #[test]
    fn timidity_is_told_from_robustness() {
        // WDPO beats the two DPO settings' ends but lies on their line: mere caution.
        let runs = [
            seeds("dpo", "DPO weak", 0.1, [0.45, 0.46, 0.44]),
            seeds("dpo", "DPO strong", 0.9, [0.25, 0.26, 0.24]),
            seeds("wdpo", "WDPO", 0.5, [0.36, 0.35, 0.34]),
            seeds("kldpo", "KLDPO", 2.0, [0.36, 0.35, 0.34]),
        ];
        let text = found(runs.concat());
        assert!(text.contains("it is not told apart from DPO"), "{text}");
        assert!(text.contains("Its divergence lies outside"), "{text}");
    }

    #[test]
    fn odd_records_give_sentences_too() {
        assert!(found(vec![]).contains("no runs"));
        assert!(found(vec![run("dpo", "DPO", 0, f64::NAN, f64::NAN)]).contains("Intervals"));
        assert_eq!(interpolate(&[(0.0, 0.0), (1.0, 2.0)], 0.25), Some(0.5));
        assert_eq!(interpolate(&[(0.0, 0.0), (1.0, 2.0)], 1.25), None);
        assert_eq!(interpolate(&[(1.0, 0.0), (1.0, 2.0)], 1.0), Some(1.0));
    }
}
