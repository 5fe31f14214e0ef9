//! What preference data say: accuracy and loss by data set and group, agreement along the shift, worst cases over balls.

use std::collections::{BTreeMap, BTreeSet};

use super::super::findings::list;
use super::super::text::{capital, one_line};
use super::super::view::{AlongView, BallView, DataSetView, Estimate, Report, Table};
use super::measures::form;
use super::{Label, empty};
use crate::policy_record::{PairSet, Shift};
use crate::stats::{
    Ball, Bootstrap, Draw, Interval, agreement, errors, lowest, mean, mixed_preferences, worst_case,
};

/// Groups with a column of their own; of more only the worst is shown.
const MOST_GROUPS: usize = 12;

/// A number of a label on a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Accuracy(usize),
    Loss(usize),
    Group(usize, usize),
    Worst(usize),
    /// Accuracy and loss less the baseline's.
    AccuracyGap(usize),
    LossGap(usize),
    /// Accuracy against the labels of a mixture at an alpha: label, mixture, alpha.
    At(usize, usize, usize),
}

/// How the runs agree with the labels of a mixture at an alpha.
struct Agreement {
    /// By label, by run: whether the pair is ordered as labelled, 0 where there is no preference, `[rows]`.
    agreed: Vec<Vec<Vec<f64>>>,
    /// Whether there is one, `[rows]`.
    opinions: Vec<f64>,
}

/// 1 where the pair is in the right order, `[rows]`; losses.
type Run<'a> = (Vec<f64>, &'a PairSet);

/// One data set of all labels, `[rows]` each.
struct Set<'a> {
    name: &'a str,
    rows: usize,
    /// Their names and rows.
    groups: Vec<(String, Vec<usize>)>,
    /// By label, by run.
    runs: Vec<Vec<Run<'a>>>,
    /// By mixture and alpha, where the pairs carry the scores.
    along: Vec<Vec<Agreement>>,
    baseline: Option<usize>,
}

/// Whether a policy is its own reference: it has no margins, and no opinion to be right or wrong.
fn has_no_opinion(set: &PairSet) -> bool {
    set.margins.0.iter().all(|margin| *margin == 0.0)
}

/// Adds what the data sets say.
pub fn add(
    report: &mut Report,
    labels: &[Label],
    shift: Option<&Shift>,
    baseline: Option<usize>,
    bootstrap: &Bootstrap,
) {
    let mut names: Vec<&str> = Vec::new();
    for set in labels.iter().flat_map(|l| &l.records).flat_map(|r| &r.datasets) {
        if !names.contains(&set.name.as_str()) {
            names.push(&set.name);
        }
    }
    for name in names {
        let set = Set::of(name, labels, shift, baseline);
        let runs: Vec<usize> = set.runs.iter().map(Vec::len).collect();
        let mut found = bootstrap.joint(set.rows, &runs, |draw| set.statistics(draw));
        for (group, (_, rows)) in set.groups.iter().enumerate() {
            found.extend(bootstrap.joint(rows.len(), &runs, |draw| set.of_group(group, draw)));
        }
        report.tables.push(set.table(&found));
        report.more_findings.extend(set.finding(&found, labels));
        let along = shift.map(|shift| set.along(shift, &found)).unwrap_or_default();
        report.data_sets.push(DataSetView { along, ..set.balls() });
    }
}

impl<'a> Set<'a> {
    fn of(name: &'a str, labels: &[Label<'a>], shift: Option<&Shift>, baseline: Option<usize>) -> Set<'a> {
        let right = |set: &PairSet| -> Vec<f64> {
            let none = has_no_opinion(set);
            errors(&set.margins.0).into_iter().map(|e| if none { f64::NAN } else { 1.0 - e }).collect()
        };
        let runs: Vec<Vec<Run>> = labels
            .iter()
            .map(|label| {
                let sets = label.records.iter().filter_map(|r| r.datasets.iter().find(|d| d.name == name));
                sets.map(|set| (right(set), set)).collect()
            })
            .collect();
        let first = runs.iter().flatten().next().map(|run| run.1);
        let rows = first.map_or(0, |set| set.margins.0.len());
        let of_rows = first.and_then(|set| set.groups.as_ref()).into_iter().flatten();
        let names: BTreeSet<&String> = of_rows.clone().collect();
        let member = |name: &String| {
            of_rows.clone().enumerate().filter(|(_, g)| *g == name).map(|(row, _)| row).collect()
        };
        let groups = names.into_iter().map(|name| (name.clone(), member(name))).collect();
        let mut set = Set {
            name,
            rows,
            groups,
            along: Vec::new(),
            baseline: baseline.filter(|at| !runs[*at].is_empty()),
            runs,
        };
        if let (Some(shift), Some(first)) = (shift, first) {
            set.prefer(shift, first);
        }
        set
    }

    /// Agreement with the labels of the mixtures at every alpha, where the pairs carry both scores; a geometric mixture asks
    /// for the chosen completions' own too.
    fn prefer(&mut self, shift: &Shift, first: &PairSet) {
        let of = |which: usize| {
            let name = &shift.objectives[which];
            let chosen = first.chosen_scores.get(name).map_or(&[][..], |c| c.0.as_slice());
            Some((first.score_differences.get(name)?.0.as_slice(), chosen))
        };
        let (Some(r1), Some(r2)) = (of(0), of(1)) else { return };
        for mixture in &shift.mixtures {
            let at = |alpha: &f64| {
                let preferences = mixed_preferences(form(mixture), *alpha, r1, r2);
                let run = |(_, set): &Run| -> Vec<f64> {
                    let none = has_no_opinion(set);
                    let agreed = agreement(&set.margins.0, &preferences);
                    agreed.into_iter().map(|a| if none { f64::NAN } else { a.unwrap_or(0.0) }).collect()
                };
                Agreement {
                    agreed: self.runs.iter().map(|runs| runs.iter().map(run).collect()).collect(),
                    opinions: preferences.iter().map(|p| f64::from(*p != 0.0)).collect(),
                }
            };
            self.along.push(shift.alphas.iter().map(at).collect());
        }
    }

    fn statistics(&self, draw: &Draw) -> Vec<(Key, f64)> {
        let mut out = Vec::new();
        let mut all = vec![[f64::NAN; 2]; self.runs.len()];
        for (label, runs) in self.runs.iter().enumerate().filter(|(_, runs)| !runs.is_empty()) {
            let over = |of: &dyn Fn(usize) -> f64| {
                mean(&draw.runs[label].iter().map(|r| of(*r)).collect::<Vec<_>>())
            };
            all[label] = [over(&|r| draw.mean(&runs[r].0)), over(&|r| draw.mean(&runs[r].1.losses.0))];
            out.push((Key::Accuracy(label), all[label][0]));
            out.push((Key::Loss(label), all[label][1]));
            if self.groups.len() > 1 {
                let accuracy = |(_, rows): &(String, Vec<usize>)| {
                    let size: f64 = rows.iter().map(|&row| draw.counts[row]).sum();
                    let right =
                        |r: usize| rows.iter().map(|&row| draw.counts[row] * runs[r].0[row]).sum::<f64>();
                    // A group of which nothing was drawn has no accuracy in this resample, and cannot be its worst.
                    (size > 0.0).then(|| over(&|r| right(r) / size))
                };
                out.push((Key::Worst(label), lowest(self.groups.iter().filter_map(accuracy))));
            }
            for (m, along) in self.along.iter().enumerate() {
                for (alpha, found) in along.iter().enumerate() {
                    let share = over(&|r| draw.mean(&found.agreed[label][r])) / draw.mean(&found.opinions);
                    out.push((Key::At(label, m, alpha), share));
                }
            }
        }
        if let Some(baseline) = self.baseline {
            for label in (0..self.runs.len()).filter(|l| *l != baseline && !self.runs[*l].is_empty()) {
                out.push((Key::AccuracyGap(label), all[label][0] - all[baseline][0]));
                out.push((Key::LossGap(label), all[label][1] - all[baseline][1]));
            }
        }
        out
    }

    /// Accuracies of a group, from draws of its own rows.
    fn of_group(&self, group: usize, draw: &Draw) -> Vec<(Key, f64)> {
        let rows = &self.groups[group].1;
        let right = |run: &Run| draw.mean(&rows.iter().map(|&row| run.0[row]).collect::<Vec<_>>());
        let of = |(label, runs): (usize, &Vec<Run>)| {
            let drawn: Vec<f64> = draw.runs[label].iter().map(|r| right(&runs[*r])).collect();
            (Key::Group(label, group), mean(&drawn))
        };
        self.runs.iter().enumerate().filter(|(_, runs)| !runs.is_empty()).map(of).collect()
    }

    fn table(&self, found: &BTreeMap<Key, Interval>) -> Table {
        let column = |key: &dyn Fn(usize) -> Key| -> Vec<Option<Estimate>> {
            (0..self.runs.len()).map(|label| found.get(&key(label)).map(|i| Estimate::from(*i))).collect()
        };
        let title = format!("Data set {}", one_line(self.name));
        let mut table = empty(title.clone(), format!("{title}: {} pairs", self.rows));
        table.push("accuracy", 3, column(&Key::Accuracy));
        table.push("loss, nats", 3, column(&Key::Loss));
        table.push("worst group", 3, column(&Key::Worst));
        if self.groups.len() <= MOST_GROUPS {
            for (group, (name, member)) in self.groups.iter().enumerate() {
                table.push(format!("{name} ({} pairs)", member.len()), 3, column(&|l| Key::Group(l, group)));
            }
        }
        table
    }

    /// Who orders more of the pairs rightly than the baseline does.
    fn finding(&self, found: &BTreeMap<Key, Interval>, labels: &[Label]) -> Option<(String, Vec<String>)> {
        let baseline = self.baseline?;
        let compared = (0..labels.len())
            .filter(|at| !labels[*at].is_reference() && found.contains_key(&Key::AccuracyGap(*at)))
            .count();
        let with = |sign: Option<bool>| {
            let chosen = labels.iter().enumerate().filter(|(at, label)| {
                let gap = found.get(&Key::AccuracyGap(*at)).map(|i| Estimate::from(*i));
                !label.is_reference() && gap.is_some_and(|gap| gap.sign() == sign)
            });
            list(&chosen.map(|(_, label)| label.name).collect::<Vec<_>>(), compared)
        };
        let sentence = format!(
            "Accuracy over {} pairs against “{}”: higher: {}; lower: {}; not told apart: {}.",
            self.rows,
            labels[baseline].name,
            with(Some(true)),
            with(Some(false)),
            with(None)
        );
        Some((format!("Data set {}", self.name), vec![sentence]))
    }

    fn balls(&self) -> DataSetView {
        let mut balls = Vec::new();
        let some_gradients = self.runs.iter().flatten().any(|run| run.1.input_gradients.is_some());
        for what in ["error, share of pairs", "loss, nats"] {
            let is_error = what.starts_with("error");
            for ball in Ball::ALL {
                // An error has no gradient.
                if ball == Ball::Wasserstein && (is_error || !some_gradients) {
                    continue;
                }
                let (name, radius, radii) = described(ball);
                let curve = |runs: &Vec<Run<'a>>| {
                    let gradients = |set: &'a PairSet| set.input_gradients.as_ref().map(|c| c.0.as_slice());
                    if runs.is_empty()
                        || (ball == Ball::Wasserstein && runs.iter().any(|r| gradients(r.1).is_none()))
                    {
                        return None;
                    }
                    let at = |shown: &f64| {
                        // CVaR's share of the worst, drawn as the share left out, grows to the left.
                        let rho = if ball == Ball::Cvar { 1.0 - shown } else { *shown };
                        let worst = |(right, set): &Run<'a>| {
                            let wrong: Vec<f64> = right.iter().map(|r| 1.0 - r).collect();
                            let values = if is_error { &wrong } else { &set.losses.0 };
                            worst_case(ball, rho, values, gradients(set))
                        };
                        (*shown, Estimate::alone(mean(&runs.iter().map(worst).collect::<Vec<_>>())))
                    };
                    Some(radii.iter().map(at).collect())
                };
                balls.push(BallView {
                    name: name.into(),
                    radius: radius.into(),
                    what: what.into(),
                    curves: self.runs.iter().map(curve).collect(),
                });
            }
        }
        let files: BTreeSet<&str> =
            self.runs.iter().flatten().map(|run| run.1.dataset_name.as_str()).collect();
        let files: Vec<&str> = files.into_iter().collect();
        DataSetView {
            name: capital(self.name),
            description: format!("{} pairs of {}; mean over seeds", self.rows, files.join(", ")),
            balls,
            ..DataSetView::default()
        }
    }

    /// The agreement along the shift.
    fn along(&self, shift: &Shift, found: &BTreeMap<Key, Interval>) -> Vec<AlongView> {
        let curve = |mixture: usize, label: usize| {
            let at = |(place, alpha): (usize, &f64)| {
                // Without the chosen scores a geometric mixture has no preferences.
                let value = found.get(&Key::At(label, mixture, place)).filter(|i| i.value.is_finite())?;
                Some((*alpha, Estimate::from(*value)))
            };
            let points: Vec<(f64, Estimate)> = shift.alphas.iter().enumerate().filter_map(at).collect();
            (!points.is_empty()).then_some(points)
        };
        let of = |(mixture, _): (usize, &Vec<Agreement>)| AlongView {
            mixture: shift.mixtures[mixture].clone(),
            curves: (0..self.runs.len()).map(|label| curve(mixture, label)).collect(),
        };
        self.along.iter().enumerate().map(of).collect()
    }
}

/// A ball's name, its axis, and the radii that are drawn.
fn described(ball: Ball) -> (&'static str, &'static str, &'static [f64]) {
    match ball {
        Ball::Kl => ("KL ball", "radius, nats", &[0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5]),
        Ball::Chi2 => ("Chi-square ball", "radius", &[0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0]),
        Ball::Cvar => {
            ("CVaR", "share of the easiest pairs left out", &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
        }
        Ball::Tv => (
            "Total variation ball",
            "radius, share of the pairs exchanged",
            &[0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5],
        ),
        Ball::Wasserstein => {
            ("Wasserstein ball", "radius in embeddings", &[0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5])
        }
    }
}
