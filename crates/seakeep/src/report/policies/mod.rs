//! [`PolicyRecord`]s as a report: labels over their seeds, intervals by resampling prompts (or pairs) and seeds.

mod check;
mod measures;
mod pairs;
mod rewards;

use std::path::PathBuf;

use serde_json::Value;

use super::text::{alpha, number};
use super::view::{Estimate, Gap, PolicyView, Report, ShiftView, Spider, Table};
use super::{BASELINE, TRAINING_POINTS};
use crate::eval_record::{Answer, Run, Sample};
use crate::policy_record::{PolicyRecord, Shift};
use crate::report::summary::Method;
use crate::stats::{Bootstrap, Interval};
use crate::{Error, Result};
use rewards::{Key, Rewards};

/// Prompts whose completions are shown.
const SHOWN_PROMPTS: usize = 24;

/// What the user may choose.
#[derive(Clone, Debug, Default)]
pub struct PolicyOptions {
    /// The page's title.
    pub title: Option<String>,
    /// The question that the evaluation was made to answer.
    pub question: Option<String>,
    /// The label that others are compared with; without one the first whose method is `dpo`.
    pub baseline: Option<String>,
    /// A data card to show.
    pub card: Option<Value>,
    /// How intervals are made.
    pub bootstrap: Bootstrap,
}

/// Records of one label: the same settings, other seeds.
#[derive(Clone, Debug)]
struct Label<'a> {
    name: &'a str,
    method: &'a str,
    records: Vec<&'a PolicyRecord>,
}

impl Label<'_> {
    fn is_reference(&self) -> bool {
        self.method == "reference"
    }
}

impl From<Interval> for Estimate {
    fn from(i: Interval) -> Estimate {
        Estimate { mean: i.value, low: i.low, high: i.high }
    }
}

fn gap(i: Interval) -> Gap {
    Gap {
        estimate: i.into(),
        without: "because there is one unit alone, or a resample gives no number".into(),
    }
}

const BANDS: &str = "95% bootstrap intervals over prompts (or pairs) and seeds";

/// The report of policy records, each with the file that it came from (errors name it).
///
/// # Errors
/// [`Error::Usage`] for no records, a baseline that no record has, or records that do not belong together (other prompts,
/// objectives, shifts, data sets; the same label and seed twice); [`Error::Format`] for a record that contradicts itself.
pub fn of_policies(records: &[(PathBuf, PolicyRecord)], options: &PolicyOptions) -> Result<Report> {
    check::records(records)?;
    let labels = labels(records);
    let baseline = baseline(&labels, options)?;
    let shift = records.iter().find_map(|(_, record)| record.shift.as_ref());
    let mut report = Report {
        title: options.title.clone().unwrap_or_else(|| "Policies under shift".into()),
        subtitle: subtitle(records, &labels),
        paragraphs: options.question.iter().cloned().collect(),
        facts: facts(records, shift),
        shift: shift.map(shift_view),
        bands: BANDS.into(),
        plus_minus: Some(format!("half the width of {BANDS}")),
        caveat: caveat(&labels, &options.bootstrap),
        baseline: baseline.map_or_else(|| "DPO".into(), |at| labels[at].method.to_uppercase()),
        policies: labels.iter().map(policy).collect(),
        samples: samples(&labels),
        card: options.card.clone(),
        commands: records
            .iter()
            .map(|(_, r)| r.command_line.clone())
            .filter(|text| !text.is_empty())
            .collect(),
        circumstances: circumstances(records),
        ..Report::default()
    };
    report.commands.dedup();
    if let Some(rewards) = Rewards::of(&labels, shift, baseline) {
        add_rewards(&mut report, &rewards, options);
    }
    pairs::add(&mut report, &labels, shift, baseline, &options.bootstrap);
    Ok(report)
}

/// The labels in the order of their first records, the reference first.
fn labels(records: &[(PathBuf, PolicyRecord)]) -> Vec<Label<'_>> {
    let mut out: Vec<Label> = Vec::new();
    for (_, record) in records {
        match out.iter_mut().find(|label| label.name == record.policy.label) {
            Some(label) => label.records.push(record),
            None => out.push(Label {
                name: &record.policy.label,
                method: &record.policy.method,
                records: vec![record],
            }),
        }
    }
    out.iter_mut().for_each(|label| label.records.sort_by_key(|record| record.policy.seed));
    out.sort_by_key(|label| !label.is_reference());
    out
}

fn baseline(labels: &[Label], options: &PolicyOptions) -> Result<Option<usize>> {
    let Some(name) = &options.baseline else {
        return Ok(labels.iter().position(|label| label.method == BASELINE));
    };
    let found = labels.iter().position(|label| label.name == name);
    found.map(Some).ok_or_else(|| {
        let all: Vec<String> = labels.iter().map(|label| format!("`{}`", label.name)).collect();
        Error::Usage(format!("--baseline is `{name}`, which no record has; labels: {}", all.join(", ")))
    })
}

fn subtitle(records: &[(PathBuf, PolicyRecord)], labels: &[Label]) -> Vec<String> {
    let trained = labels.iter().filter(|label| !label.is_reference()).flat_map(|label| &label.records);
    let mut seeds: Vec<u64> = trained.map(|record| record.policy.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut out =
        vec![format!("{} policies of {} labels, {} seeds", records.len(), labels.len(), seeds.len())];
    out.push(records[0].1.program.clone());
    out.retain(|part| !part.is_empty());
    out
}

fn shift_view(shift: &Shift) -> ShiftView {
    let away = |alpha: &f64| (alpha - shift.nominal_alpha).abs();
    let far = shift.alphas.iter().copied().max_by(|a, b| away(a).total_cmp(&away(b)));
    ShiftView {
        nominal: shift.nominal_alpha,
        far: far.unwrap_or(shift.nominal_alpha),
        meaning: format!("weight of {} ({} has the rest)", shift.objectives[0], shift.objectives[1]),
    }
}

fn facts(records: &[(PathBuf, PolicyRecord)], shift: Option<&Shift>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    if let Some(samples) = records.iter().find_map(|(_, record)| record.samples.as_ref()) {
        out.push(("prompts".into(), samples.prompts.to_string()));
        out.push(("completions of each".into(), samples.per_prompt.to_string()));
        let how: Vec<String> = samples.generation.iter().map(|(k, v)| format!("{k} {}", shown(v))).collect();
        out.push(("drawn with".into(), how.join(", ")));
        let names: Vec<&str> = samples.scores.keys().map(String::as_str).collect();
        out.push(("objectives".into(), names.join(", ")));
    }
    if let Some(shift) = shift {
        out.push(("mixtures".into(), shift.mixtures.join(", ")));
        out.push(("alpha of the labels".into(), alpha(shift.nominal_alpha)));
    }
    let missing: usize = records
        .iter()
        .filter_map(|(_, record)| record.samples.as_ref())
        .flat_map(|samples| samples.scores.values())
        .map(|column| column.0.iter().filter(|score| !score.is_finite()).count())
        .sum();
    if missing > 0 {
        out.push((
            "scores that are no numbers".into(),
            format!("{missing}; what depends on them is shown as –"),
        ));
    }
    out.retain(|fact| !fact.1.is_empty());
    out
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn policy(label: &Label) -> PolicyView {
    // Only what the record's training holds is asked of these runs.
    let runs: Vec<Run> = label
        .records
        .iter()
        .map(|record| Run { training: record.training.clone(), ..Run::default() })
        .collect();
    let method = Method { label: label.name, method: label.method, runs: runs.iter().collect() };
    let first = &label.records[0].policy;
    let list = |of: &dyn Fn(&PolicyRecord) -> String| {
        let mut all: Vec<String> = label.records.iter().map(|record| of(record)).collect();
        all.dedup();
        all.join(", ")
    };
    let mut settings = vec![
        ("method".to_owned(), label.method.to_owned()),
        ("model_name_or_path".into(), list(&|r| r.policy.model_name_or_path.clone())),
        ("ref_model_name_or_path".into(), list(&|r| r.policy.ref_model_name_or_path.clone())),
        ("seeds".into(), list(&|r| r.policy.seed.to_string())),
    ];
    settings.extend(first.settings.iter().map(|(k, v)| (k.clone(), shown(v))));
    settings.retain(|row| !row.1.is_empty());
    PolicyView {
        label: label.name.into(),
        method: label.method.into(),
        is_reference: label.is_reference(),
        kl: None,
        settings,
        training: method.training(TRAINING_POINTS),
    }
}

/// The first seeds' completions of the same prompts side by side; of one prompt several times the first with the first.
fn samples(labels: &[Label]) -> Vec<Sample> {
    let mut out: Vec<(Sample, usize)> = Vec::new();
    for label in labels {
        let texts = label.records.iter().find_map(|r| r.samples.as_ref().filter(|s| !s.texts.is_empty()));
        let mut met: Vec<&str> = Vec::new();
        for text in texts.into_iter().flat_map(|samples| &samples.texts) {
            let nth = met.iter().filter(|prompt| **prompt == text.prompt).count();
            met.push(&text.prompt);
            let answer = Answer {
                label: label.name.into(),
                text: text.completion.clone(),
                rewards: text.scores.clone(),
            };
            match out.iter().position(|(sample, n)| *n == nth && sample.prompt == text.prompt) {
                Some(at) => out[at].0.answers.push(answer),
                None if out.len() < SHOWN_PROMPTS => {
                    out.push((Sample { prompt: text.prompt.clone(), answers: vec![answer] }, nth));
                }
                None => {}
            }
        }
    }
    out.into_iter().map(|(sample, _)| sample).collect()
}

fn circumstances(records: &[(PathBuf, PolicyRecord)]) -> Vec<(String, String)> {
    let mut programs: Vec<&str> = records.iter().map(|(_, record)| record.program.as_str()).collect();
    programs.sort_unstable();
    programs.dedup();
    let seconds: f64 = records.iter().map(|(_, record)| record.seconds).sum();
    let mut out = vec![
        ("programs".to_owned(), programs.join(", ")),
        ("evaluations, wall-clock time".into(), format!("{} s", number(seconds, 1))),
    ];
    let trained: Vec<f64> =
        records.iter().filter_map(|(_, record)| Some(record.training.as_ref()?.seconds)).collect();
    if !trained.is_empty() {
        let total = format!("{} s", number(trained.iter().sum(), 1));
        out.push(("trainings, wall-clock time".into(), total));
    }
    out.retain(|row| !row.1.is_empty());
    out
}

fn caveat(labels: &[Label], bootstrap: &Bootstrap) -> String {
    let seeds = labels.iter().filter(|l| !l.is_reference()).map(|l| l.records.len());
    let (least, most) = (seeds.clone().min().unwrap_or(0), seeds.max().unwrap_or(0));
    let counts = if least == most { format!("{least}") } else { format!("{least} to {most}") };
    let few = match least {
        1 => {
            " With one seed an interval says nothing of another training: what differs here may be the luck of one run."
        }
        2..5 => {
            " With so few seeds such intervals are too narrow: the bootstrap knows no more of training's luck than the runs \
             show."
        }
        _ => "",
    };
    format!(
        "Intervals hold 95% of {} resamples of the prompts (or pairs) and, with several, of the {counts} seed(s) of each label; \
         policies are compared on the same prompts.{few} They do not cover the choice of the prompts' source, of the reward \
         model or of the settings, and are not corrected for the number of comparisons. Where several settings of the \
         baseline are there, the best was chosen on the numbers it is compared by, which favours it; straight lines between \
         its settings slightly favour the other side where its frontier bends.",
        bootstrap.resamples
    )
}

/// What own samples say: curves, tables, spider, comparisons.
fn add_rewards(report: &mut Report, rewards: &Rewards, options: &PolicyOptions) {
    let found = options.bootstrap.joint(rewards.prompts, &rewards.runs(), |draw| rewards.statistics(draw));
    let get = |key: Key| found.get(&key).map(|i| Estimate::from(*i));
    for (at, policy) in report.policies.iter_mut().enumerate() {
        policy.kl = if policy.is_reference { Some(Estimate::alone(0.0)) } else { get(Key::KlToken(at)) };
    }
    report.mixtures = rewards.mixture_views(&found);
    report.tables = rewards.tables(&found);
    report.paired = rewards.paired_tables(&found);
    if rewards.objectives.len() >= 3 && rewards.has_reference() {
        let of = |at: usize| {
            let gain = |(o, spread): (usize, &f64)| Some(found.get(&Key::ScoreOver(at, o))?.value / spread);
            rewards.spread.iter().enumerate().map(gain).collect::<Option<Vec<f64>>>()
        };
        report.spider = Some(Spider {
            axes: rewards.objectives.iter().map(|name| (name.clone(), rewards.is_seen(name))).collect(),
            unit: "gain over the reference in standard deviations of its scores".into(),
            values: (0..report.policies.len()).map(of).collect(),
        });
    }
}

/// A table of nothing yet.
fn empty(name: String, caption: String) -> Table {
    Table { name, caption, columns: Vec::new() }
}

#[cfg(test)]
mod tests;
