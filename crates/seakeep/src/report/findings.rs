//! What the numbers say, in sentences made by plain code.
//!
//! A difference is called one only where its 95% interval leaves zero out. Everything else is reported as not told apart,
//! whichever way the means lie.

use super::text::{alpha, capital, estimate, number};
use super::view::{Comparison, CurveView, Estimate, Gap, MixtureView, Report, ShiftView};

/// What was found under one heading.
#[derive(Clone, Debug, PartialEq)]
pub struct Findings {
    /// What the sentences are about, such as `Convex mixture`.
    pub heading: String,
    /// A sentence or a few each, plain text.
    pub sentences: Vec<String>,
}

/// The findings of a report: by mixture, then of data sets and objectives, then what holds for all of them.
pub fn findings(report: &Report) -> Vec<Findings> {
    let mut out = Vec::new();
    for mixture in &report.mixtures {
        let sentences = of_mixture(report, mixture);
        if !sentences.is_empty() {
            out.push(Findings { heading: format!("{} mixture", capital(&mixture.name)), sentences });
        }
    }
    for (heading, sentences) in &report.more_findings {
        out.push(Findings { heading: heading.clone(), sentences: sentences.clone() });
    }
    let last = vec![report.caveat.clone()];
    out.push(Findings { heading: "What the intervals cover".into(), sentences: last });
    out
}

fn of_mixture(report: &Report, mixture: &MixtureView) -> Vec<String> {
    let mut out = Vec::new();
    let reference = report.policies.iter().position(|policy| policy.is_reference);
    let curve = reference.and_then(|at| mixture.curves[at].as_ref());
    let others =
        mixture.curves.iter().enumerate().any(|(at, curve)| Some(at) != reference && curve.is_some());
    if let (Some(curve), Some(shift), true) = (curve, &report.shift, others) {
        out.push(against_reference(report, shift, mixture, curve));
    }
    out.extend(in_short(report, mixture));
    for comparison in &mixture.comparisons {
        let mut sentence = versus(report, mixture, comparison);
        sentence.push(' ');
        sentence.push_str(&at_same_kl(&report.baseline, &comparison.equal_kl));
        out.push(sentence);
    }
    out
}

/// The comparisons in one sentence each, at equal divergence first: that is the question.
fn in_short(report: &Report, mixture: &MixtureView) -> Option<String> {
    let all = &mixture.comparisons;
    let best = &report.policies[all.first()?.best].label;
    let which = |keep: &dyn Fn(&Comparison) -> bool| {
        let kept = all.iter().filter(|c| keep(c));
        list(&kept.map(|c| report.policies[c.policy].label.as_str()).collect::<Vec<_>>(), all.len())
    };
    let equal =
        |sign: Option<bool>| which(&|c| c.equal_kl.as_ref().is_ok_and(|gap| gap.estimate.sign() == sign));
    let own = |sign: Option<bool>| which(&|c| c.own.estimate.sign() == sign);
    Some(format!(
        "In short, in the worst case: at equal divergence from the reference, more reward than {0}: {1}; less: {2}; not told \
         apart: {3}; no such comparison: {4}. At own settings, against {best}: more: {5}; less: {6}; not told apart: {7}.",
        report.baseline,
        equal(Some(true)),
        equal(Some(false)),
        equal(None),
        which(&|c| c.equal_kl.is_err()),
        own(Some(true)),
        own(Some(false)),
        own(None)
    ))
}

/// Who gains at the nominal alpha, and who falls below the reference at the worst one.
fn against_reference(
    report: &Report,
    shift: &ShiftView,
    mixture: &MixtureView,
    reference: &CurveView,
) -> String {
    let with = |place: usize, sign: bool| {
        let gain = |curve: &CurveView| curve.gains[place].and_then(|gain| gain.sign());
        let chosen =
            mixture.curves.iter().zip(&report.policies).filter(|(curve, policy)| {
                !policy.is_reference && curve.as_ref().and_then(gain) == Some(sign)
            });
        let others =
            mixture.curves.iter().zip(&report.policies).filter(|(c, p)| !p.is_reference && c.is_some());
        list(&chosen.map(|(_, policy)| policy.label.as_str()).collect::<Vec<_>>(), others.count())
    };
    format!(
        "The reference's reward is {} at alpha {} and {} at its worst alpha, {}. Above the reference at alpha \
         {}: {}. Above it in the worst case: {}. Below it in the worst case: {}.",
        number(reference.at[0].mean, 3),
        alpha(shift.nominal),
        number(reference.at[2].mean, 3),
        alpha(reference.worst_alpha),
        alpha(shift.nominal),
        with(0, true),
        with(2, true),
        with(2, false)
    )
}

/// Labels in a row; in a word where they are none or all `of` several.
pub fn list(labels: &[&str], of: usize) -> String {
    match labels {
        [] => "none".into(),
        all if all.len() == of && of > 1 => "all of them".into(),
        some => some.iter().map(|label| format!("“{label}”")).collect::<Vec<_>>().join(", "),
    }
}

/// A method's worst-case reward against the best setting of the baseline.
fn versus(report: &Report, mixture: &MixtureView, comparison: &Comparison) -> String {
    let (label, best) = (&report.policies[comparison.policy].label, &report.policies[comparison.best].label);
    let worst = |at: usize| mixture.curves[at].as_ref().map_or(Estimate::alone(f64::NAN), |c| c.at[2]);
    let kl = |at: usize| report.policies[at].kl.unwrap_or(Estimate::alone(f64::NAN));
    let verdict = match comparison.own.estimate.sign() {
        Some(true) => "is higher",
        Some(false) => "is lower",
        None => "is not told apart from it by these runs",
    };
    let choice = if comparison.settings > 1 {
        format!("The best of {} {} settings by that measure, {best}", comparison.settings, report.baseline)
    } else {
        best.clone()
    };
    format!(
        "{label}: worst-alpha reward {} at {} nats per token from the reference. {choice}: {} at {}. {label} \
         {verdict}: difference {}.",
        estimate(&worst(comparison.policy), 3),
        estimate(&kl(comparison.policy), 3),
        estimate(&worst(comparison.best), 3),
        estimate(&kl(comparison.best), 3),
        interval(&comparison.own),
    )
}

/// What is left of the difference at equal divergence.
fn at_same_kl(baseline: &str, gap: &Result<Gap, String>) -> String {
    let gap = match gap {
        Ok(gap) => gap,
        Err(where_) => {
            return format!(
                "Its divergence lies outside what the {baseline} settings span ({where_}), so a comparison at \
                 equal divergence cannot be made from these runs."
            );
        }
    };
    let verdict = match gap.estimate.sign() {
        Some(true) => format!("reaches more in the worst case than {baseline} does"),
        Some(false) => format!("reaches less in the worst case than {baseline} does"),
        None => format!("is not told apart from {baseline}"),
    };
    format!(
        "At equal divergence ({baseline} interpolated between the reference and its settings) it {verdict}: \
         difference {}.",
        interval(gap)
    )
}

/// A difference with its interval.
fn interval(gap: &Gap) -> String {
    let Estimate { mean, low, high } = gap.estimate;
    if low.is_nan() || high.is_nan() {
        return format!("{}, no interval {}", number(mean, 3), gap.without);
    }
    format!("{}, 95% interval {} to {}", number(mean, 3), number(low, 3), number(high, 3))
}

#[cfg(test)]
mod tests {
    use super::super::of_eval;
    use super::*;
    use crate::eval_record::{Curve, CurvePoint, EvalRecord, PolicyEval, Run};

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
        let all = findings(&of_eval(&record)).into_iter().flat_map(|part| part.sentences);
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
        assert!(text.contains("Below it in the worst case: “DPO”."), "{text}");
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
    }
}
