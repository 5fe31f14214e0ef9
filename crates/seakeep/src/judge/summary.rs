//! A record's numbers with intervals over prompts or pairs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::policy_record::{PairSet, PolicyRecord, Samples, Shift};
use crate::preferences::Form;
use crate::stats::{
    Ball, Bootstrap, GroupMean, Interval, Paired, agreement, by_group, divergence_per_token, errors, mixed,
    mixed_preferences, per_prompt, wins, worst_case, worst_group,
};
use crate::{Error, Result};

/// What to compute.
#[derive(Clone, Debug, Default)]
pub struct SummaryOptions {
    /// How to resample.
    pub bootstrap: Bootstrap,
    /// Radii of worst cases, by ball.
    pub radii: Vec<(Ball, Vec<f64>)>,
}

/// What is known of a policy.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Its label.
    pub label: String,
    /// Expected reward at every alpha of the shift.
    pub rewards: Vec<RewardAt>,
    /// Mean score by objective, those of the shift and others.
    pub objectives: BTreeMap<String, Interval>,
    /// Divergence from the reference, nats per completion, estimated on the policy's own samples.
    pub kl_per_completion: Option<Interval>,
    /// The same, nats per token.
    pub kl_per_token: Option<Interval>,
    /// Tokens of a completion.
    pub tokens: Option<Interval>,
    /// Distinct n-grams of tokens over all n-grams, for n = 1, 2, 3.
    pub distinct: Vec<f64>,
    /// Preference data.
    pub datasets: Vec<SetSummary>,
    /// Against another policy on the same prompts.
    pub comparison: Option<Comparison>,
}

/// The expected reward under one mixture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RewardAt {
    /// The form of the mixture.
    pub mixture: String,
    /// The weight of the first objective.
    pub alpha: f64,
    /// The mean over prompts.
    pub reward: Interval,
}

/// What was found on preference data.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SetSummary {
    /// Its name.
    pub name: String,
    /// Pairs.
    pub rows: usize,
    /// The pair loss, nats.
    pub loss: Interval,
    /// Share of pairs with `h > 0`.
    pub accuracy: Interval,
    /// Share of pairs where the margin has the sign of the mixture's preference, at every alpha; where the data have scores.
    pub accuracies: Vec<RewardAt>,
    /// Worst cases over balls.
    pub worst_cases: Vec<WorstCase>,
    /// Losses by group.
    pub groups: BTreeMap<String, GroupMean>,
    /// Errors `1{h <= 0}` by group.
    pub group_errors: BTreeMap<String, GroupMean>,
    /// The group of the largest loss.
    pub worst_group: Option<String>,
}

/// A point of a worst-case curve.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WorstCase {
    /// The ball.
    pub ball: String,
    /// Its radius (of `cvar` the share).
    pub radius: f64,
    /// The largest mean pair loss, nats.
    pub loss: Interval,
    /// The largest share of errors `1{h <= 0}`; a Wasserstein ball has none.
    pub error: Option<Interval>,
}

/// How a policy differs from another on the same prompts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// The other's label.
    pub with: String,
    /// By mixture and alpha: difference of expected rewards.
    pub rewards: Vec<Difference>,
}

/// At one mixture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Difference {
    /// The form of the mixture.
    pub mixture: String,
    /// The weight of the first objective.
    pub alpha: f64,
    /// This policy's reward less the other's.
    pub reward: Paired,
    /// How often a sample of this policy has the higher reward; ties half.
    pub win_rate: Interval,
}

/// Every mixture of a shift with every alpha.
fn points(shift: &Shift) -> Result<Vec<(Form, f64)>> {
    let form = |name: &String| {
        let known = Form::ALL.map(Form::name);
        Form::of(name)
            .ok_or_else(|| Error::Usage(format!("mixture `{name}`; expected {}", known.join(" or "))))
    };
    let forms: Vec<Form> = shift.mixtures.iter().map(form).collect::<Result<_>>()?;
    Ok(forms.iter().flat_map(|&form| shift.alphas.iter().map(move |&alpha| (form, alpha))).collect())
}

/// The two columns of the shift's objectives.
fn two<'a>(
    shift: &Shift,
    of: &'a BTreeMap<String, crate::policy_record::Column>,
    what: &str,
) -> Result<[&'a [f64]; 2]> {
    let [first, second] = &shift.objectives;
    let column = |name: &String| match of.get(name) {
        Some(column) => Ok(column.0.as_slice()),
        None => Err(unknown(name, of.keys().map(String::as_str), what)),
    };
    Ok([column(first)?, column(second)?])
}

/// An objective that is not there.
pub(super) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone, what: &str) -> Error {
    let near = crate::error::nearest(name, known.clone());
    let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    let known: Vec<&str> = known.collect();
    let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
    Error::Usage(format!("{what}: no objective `{name}`{hint} There are: {known}"))
}

fn rewards(samples: &Samples, shift: &Shift, label: &str) -> Result<Vec<(Form, f64, Vec<f64>)>> {
    let [r1, r2] = two(shift, &samples.scores, &format!("samples of {label}"))?;
    let of = |(form, alpha)| (form, alpha, mixed(form, alpha, r1, r2));
    Ok(points(shift)?.into_iter().map(of).collect())
}

impl Summary {
    /// Of a record; with `other`, against it.
    ///
    /// # Errors
    /// Objectives that were not scored, a mixture that does not exist, other prompts.
    pub fn of(
        record: &PolicyRecord,
        other: Option<&PolicyRecord>,
        options: &SummaryOptions,
    ) -> Result<Summary> {
        let mut summary = Summary { label: record.policy.label.clone(), ..Summary::default() };
        if let Some(samples) = &record.samples {
            summary.add_samples(samples, record, options)?;
        }
        for set in &record.datasets {
            summary.datasets.push(set_summary(set, record.shift.as_ref(), options)?);
        }
        if let Some(other) = other {
            summary.comparison = Some(comparison(record, other, options)?);
        }
        Ok(summary)
    }

    fn add_samples(
        &mut self,
        samples: &Samples,
        record: &PolicyRecord,
        options: &SummaryOptions,
    ) -> Result<()> {
        let (boot, n) = (&options.bootstrap, samples.per_prompt);
        let mean = |values: &[f64]| boot.mean(&per_prompt(values, n));
        // Without a judge there is nothing to mix.
        if let Some(shift) = record.shift.as_ref().filter(|_| !samples.scores.is_empty()) {
            for (form, alpha, reward) in rewards(samples, shift, &self.label)? {
                self.rewards.push(RewardAt { mixture: form.name().into(), alpha, reward: mean(&reward) });
            }
        }
        self.objectives =
            samples.scores.iter().map(|(name, scores)| (name.clone(), mean(&scores.0))).collect();
        let ratios: Vec<f64> = samples.logps.0.iter().zip(&samples.ref_logps.0).map(|(p, r)| p - r).collect();
        let (nats, tokens) = divergence_per_token(&ratios, &samples.tokens, n);
        self.kl_per_completion = Some(mean(&ratios));
        self.kl_per_token = Some(boot.ratio(&nats, &tokens));
        self.tokens = Some(boot.mean(&tokens.iter().map(|t| t / n as f64).collect::<Vec<_>>()));
        self.distinct = samples.distinct.clone();
        Ok(())
    }
}

fn set_summary(set: &PairSet, shift: Option<&Shift>, options: &SummaryOptions) -> Result<SetSummary> {
    let (boot, losses, margins) = (&options.bootstrap, &set.losses.0, &set.margins.0);
    let wrong = errors(margins);
    let right: Vec<f64> = wrong.iter().map(|e| 1.0 - e).collect();
    let mut out = SetSummary {
        name: set.name.clone(),
        rows: losses.len(),
        loss: boot.mean(losses),
        accuracy: boot.mean(&right),
        ..SetSummary::default()
    };
    if let Some(groups) = &set.groups {
        (out.groups, out.group_errors) = (by_group(losses, groups), by_group(&wrong, groups));
        out.worst_group = worst_group(&out.groups).map(|(name, _)| name.to_string());
    }
    if let Some(shift) = shift.filter(|_| !set.score_differences.is_empty()) {
        out.accuracies = accuracies(set, shift, boot)?;
    }
    for (ball, radii) in &options.radii {
        let gradients = set.input_gradients.as_ref().map(|g| g.0.as_slice());
        if *ball == Ball::Wasserstein && gradients.is_none() {
            continue;
        }
        for &radius in radii {
            let worst = |values: &[f64], gradients: Option<&[f64]>| {
                boot.interval(values.len(), |units| {
                    let pick = |of: &[f64]| units.iter().map(|&i| of[i]).collect::<Vec<f64>>();
                    worst_case(*ball, radius, &pick(values), gradients.map(pick).as_deref())
                })
            };
            let (ball, loss) = (ball.name().to_string(), worst(losses, gradients));
            let error = (ball != Ball::Wasserstein.name()).then(|| worst(&wrong, None));
            out.worst_cases.push(WorstCase { ball, radius, loss, error });
        }
    }
    Ok(out)
}

fn accuracies(set: &PairSet, shift: &Shift, boot: &Bootstrap) -> Result<Vec<RewardAt>> {
    let what = format!("data {}", set.name);
    let [d1, d2] = two(shift, &set.score_differences, &what)?;
    // Records from elsewhere may have the differences alone.
    let [c1, c2] = two(shift, &set.chosen_scores, &what).unwrap_or([&[], &[]]);
    let at = |(form, alpha): (Form, f64)| {
        let preferences = mixed_preferences(form, alpha, (d1, c1), (d2, c2));
        let agreed: Vec<f64> = agreement(&set.margins.0, &preferences).into_iter().flatten().collect();
        RewardAt { mixture: form.name().into(), alpha, reward: boot.mean(&agreed) }
    };
    Ok(points(shift)?.into_iter().map(at).collect())
}

fn comparison(record: &PolicyRecord, other: &PolicyRecord, options: &SummaryOptions) -> Result<Comparison> {
    let (own, others) = record.paired_with(other)?;
    let mut out = Comparison { with: other.policy.label.clone(), ..Comparison::default() };
    let Some(shift) = record.shift.as_ref().filter(|_| !own.scores.is_empty()) else {
        return Err(Error::Usage("policies are compared by rewards: give objectives and scores".into()));
    };
    let theirs = rewards(others, shift, &other.policy.label)?;
    for ((form, alpha, a), (_, _, b)) in rewards(own, shift, &record.policy.label)?.into_iter().zip(theirs) {
        let wins = wins((&a, own.per_prompt), (&b, others.per_prompt));
        out.rewards.push(Difference {
            mixture: form.name().into(),
            alpha,
            reward: options
                .bootstrap
                .paired(&per_prompt(&a, own.per_prompt), &per_prompt(&b, others.per_prompt))?,
            win_rate: options.bootstrap.mean(&wins),
        });
    }
    Ok(out)
}
