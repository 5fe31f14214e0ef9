//! What the policies' own samples say: every number with its interval, all from the same draws of prompts and seeds.

use std::collections::BTreeMap;

use super::super::interpolate;
use super::super::text::{alpha, capital, number, one_line};
use super::super::view::{AlphaPoint, Comparison, CurveView, Estimate, MixtureView, Place, RunPoint, Table};
use super::measures::{Judged, Measures};
use super::{Label, empty, gap};
use crate::policy_record::Shift;
use crate::stats::{Draw, Interval, lowest, mean, wins};

/// What a number is of: label, mixture, alpha, place or objective by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Reward of a label under a mixture at an alpha.
    Reward(usize, usize, usize),
    /// Reward of a label under a mixture at a [`Place`].
    At(usize, usize, usize),
    /// The mean over the alphas.
    Mean(usize, usize),
    /// [`Key::At`] less the reference's.
    OverReference(usize, usize, usize),
    /// [`Key::At`] less the baseline label's.
    OverBaseline(usize, usize, usize),
    /// Worst case less that of the baseline's best setting.
    OverBest(usize, usize),
    /// [`Key::At`] less the baseline's frontier at the label's divergence.
    EqualKl(usize, usize, usize),
    /// Win rate against the baseline label, less one half, at the nominal or far alpha.
    Win(usize, usize, usize),
    /// Mean score of an objective.
    Score(usize, usize),
    /// The same less the reference's.
    ScoreOver(usize, usize),
    /// Nats per token.
    KlToken(usize),
    /// Nats per completion.
    KlCompletion(usize),
    /// Tokens of a completion.
    Length(usize),
}

/// Win rates of each prompt: by run, by run of the baseline, by mixture and end.
type Met = Vec<Vec<Vec<[Vec<f64>; 2]>>>;

/// The samples of all labels, for each prompt.
pub struct Rewards<'a> {
    labels: &'a [Label<'a>],
    judged: Judged,
    seen: Option<[String; 2]>,
    /// Prompts, the same for all.
    pub prompts: usize,
    /// The objectives' names.
    pub objectives: Vec<String>,
    /// By label, by run: seed and measures. Labels without samples have none.
    measures: Vec<Vec<(u64, Measures)>>,
    distinct: Vec<Vec<Vec<f64>>>,
    baseline: Option<usize>,
    /// By mixture: the baseline method's setting of the best worst case.
    best: Vec<Option<usize>>,
    /// By label, run and baseline's run, by mixture and end: win rates of each prompt.
    wins: Vec<Met>,
    /// By objective: standard deviation of the reference's scores.
    pub spread: Vec<f64>,
}

impl<'a> Rewards<'a> {
    /// Of the labels' records; `None` where no record has samples.
    pub fn of(
        labels: &'a [Label<'a>],
        shift: Option<&Shift>,
        baseline: Option<usize>,
    ) -> Option<Rewards<'a>> {
        let all = || labels.iter().flat_map(|label| &label.records).filter_map(|r| r.samples.as_ref());
        let first = all().next()?;
        // Without scores there is nothing to mix.
        let shift = shift.filter(|_| !first.scores.is_empty());
        let judged = Judged::of(shift);
        let measures: Vec<Vec<(u64, Measures)>> = labels
            .iter()
            .map(|label| {
                let with = label.records.iter().filter_map(|r| Some((r.policy.seed, r.samples.as_ref()?)));
                with.map(|(seed, samples)| (seed, Measures::of(samples, shift, &judged))).collect()
            })
            .collect();
        let spread = first.scores.keys().map(|name| {
            let of_reference = labels.iter().filter(|label| label.is_reference()).flat_map(|l| &l.records);
            let scores: Vec<f64> = of_reference
                .filter_map(|r| r.samples.as_ref())
                .flat_map(|s| s.scores[name].0.clone())
                .collect();
            let centre = mean(&scores);
            mean(&scores.iter().map(|s| (s - centre).powi(2)).collect::<Vec<_>>()).sqrt()
        });
        let mut rewards = Rewards {
            labels,
            seen: shift.map(|s| s.objectives.clone()),
            prompts: first.prompts,
            objectives: first.scores.keys().cloned().collect(),
            distinct: labels
                .iter()
                .map(|l| {
                    l.records.iter().filter_map(|r| Some(r.samples.as_ref()?.distinct.clone())).collect()
                })
                .collect(),
            baseline: baseline.filter(|at| !measures[*at].is_empty()),
            best: Vec::new(),
            wins: Vec::new(),
            spread: spread.collect(),
            measures,
            judged,
        };
        rewards.best = (0..rewards.judged.mixtures.len()).map(|m| rewards.best_setting(m)).collect();
        rewards.wins = rewards.all_wins();
        Some(rewards)
    }

    /// Whether the reference was judged too.
    pub fn has_reference(&self) -> bool {
        self.reference().is_some()
    }

    fn reference(&self) -> Option<usize> {
        (0..self.labels.len()).find(|&at| self.labels[at].is_reference() && !self.measures[at].is_empty())
    }

    /// Whether the training labels used an objective; `None` where that is not known.
    pub fn is_seen(&self, name: &str) -> Option<bool> {
        self.seen.as_ref().map(|seen| seen.iter().any(|own| own == name))
    }

    /// Runs of each label.
    pub fn runs(&self) -> Vec<usize> {
        self.measures.iter().map(Vec::len).collect()
    }

    fn whole(&self) -> Draw {
        let runs = self.runs().into_iter().map(|n| (0..n).collect()).collect();
        Draw { counts: vec![1.0; self.prompts], runs }
    }

    /// The settings of the baseline's method.
    fn family(&self) -> Vec<usize> {
        let Some(baseline) = self.baseline else { return Vec::new() };
        let of_method = |at: &usize| {
            self.labels[*at].method == self.labels[baseline].method && !self.measures[*at].is_empty()
        };
        (0..self.labels.len()).filter(of_method).collect()
    }

    fn best_setting(&self, mixture: usize) -> Option<usize> {
        let draw = self.whole();
        let worst = |at: &usize| self.at(*at, mixture, &draw)[2];
        let finite = self.family().into_iter().filter(|at| worst(at).is_finite());
        finite.max_by(|a, b| worst(a).total_cmp(&worst(b)))
    }

    fn all_wins(&self) -> Vec<Met> {
        let Some(baseline) = self.baseline else { return vec![Vec::new(); self.labels.len()] };
        let meet = |own: &Measures, other: &Measures| {
            let of = |(a, b): (&[Vec<f64>; 2], &[Vec<f64>; 2])| {
                [0, 1].map(|end| wins((&a[end], own.per_prompt), (&b[end], other.per_prompt)))
            };
            own.completions.iter().zip(&other.completions).map(of).collect::<Vec<_>>()
        };
        let against = |(at, runs): (usize, &Vec<(u64, Measures)>)| {
            if at == baseline {
                return Vec::new();
            }
            let others = &self.measures[baseline];
            runs.iter().map(|(_, own)| others.iter().map(|(_, other)| meet(own, other)).collect()).collect()
        };
        self.measures.iter().enumerate().map(against).collect()
    }

    /// The mean over the drawn runs of a label.
    fn over_runs(&self, label: usize, draw: &Draw, of: impl Fn(&Measures) -> f64) -> f64 {
        let runs = &draw.runs[label];
        runs.iter().map(|run| of(&self.measures[label][*run].1)).sum::<f64>() / runs.len() as f64
    }

    /// One run's rewards at the alphas, then at the places.
    fn run(&self, measures: &Measures, mixture: usize, draw: &Draw) -> (Vec<f64>, [f64; 3]) {
        let curve: Vec<f64> = measures.rewards[mixture].iter().map(|values| draw.mean(values)).collect();
        let [nominal, far] = [0, 1].map(|end| draw.mean(&measures.ends[mixture][end]));
        // A reward that is not known makes the worst one unknown.
        let worst = lowest(curve.iter().copied());
        (curve, [nominal, far, worst])
    }

    fn at(&self, label: usize, mixture: usize, draw: &Draw) -> [f64; 3] {
        let runs = &draw.runs[label];
        let all: Vec<[f64; 3]> =
            runs.iter().map(|run| self.run(&self.measures[label][*run].1, mixture, draw).1).collect();
        [0, 1, 2].map(|place| all.iter().map(|at| at[place]).sum::<f64>() / all.len() as f64)
    }

    /// Everything that is asked of one draw.
    pub fn statistics(&self, draw: &Draw) -> Vec<(Key, f64)> {
        let mut out = Vec::new();
        let present: Vec<usize> =
            (0..self.labels.len()).filter(|at| !self.measures[*at].is_empty()).collect();
        let mut kl = vec![f64::NAN; self.labels.len()];
        for &label in &present {
            let sums = |of: fn(&Measures) -> &Vec<f64>| move |m: &Measures| draw.mean(of(m));
            let per_token = |m: &Measures| sums(|m| &m.nats)(m) / sums(|m| &m.tokens)(m);
            // The reference's own divergence is 0 by definition; what was measured of it is rounding.
            kl[label] =
                if self.labels[label].is_reference() { 0.0 } else { self.over_runs(label, draw, per_token) };
            out.push((Key::KlToken(label), kl[label]));
            let each =
                |of: fn(&Measures) -> &Vec<f64>| move |m: &Measures| draw.mean(of(m)) / m.per_prompt as f64;
            out.push((Key::KlCompletion(label), self.over_runs(label, draw, each(|m| &m.nats))));
            out.push((Key::Length(label), self.over_runs(label, draw, each(|m| &m.tokens))));
        }
        self.scores(draw, &present, &mut out);
        for mixture in 0..self.judged.mixtures.len() {
            self.mixture(draw, &present, mixture, &kl, &mut out);
        }
        out
    }

    fn scores(&self, draw: &Draw, present: &[usize], out: &mut Vec<(Key, f64)>) {
        for objective in 0..self.objectives.len() {
            let score = |label: usize| self.over_runs(label, draw, |m| draw.mean(&m.scores[objective]));
            let reference = self.reference().map(score);
            for &label in present {
                out.push((Key::Score(label, objective), score(label)));
                if let Some(reference) = reference {
                    out.push((Key::ScoreOver(label, objective), score(label) - reference));
                }
            }
        }
    }

    fn mixture(&self, draw: &Draw, present: &[usize], mixture: usize, kl: &[f64], out: &mut Vec<(Key, f64)>) {
        let mut at = vec![[f64::NAN; 3]; self.labels.len()];
        for &label in present {
            let runs = &draw.runs[label];
            let mut curve = vec![0.0; self.judged.alphas.len()];
            let mut places = [0.0; 3];
            for run in runs {
                let (own, own_places) = self.run(&self.measures[label][*run].1, mixture, draw);
                curve.iter_mut().zip(own).for_each(|(sum, r)| *sum += r / runs.len() as f64);
                places.iter_mut().zip(own_places).for_each(|(sum, r)| *sum += r / runs.len() as f64);
            }
            out.push((Key::Mean(label, mixture), mean(&curve)));
            out.extend(
                curve.into_iter().enumerate().map(|(alpha, r)| (Key::Reward(label, mixture, alpha), r)),
            );
            out.extend((0..3).map(|place| (Key::At(label, mixture, place), places[place])));
            at[label] = places;
        }
        let reference = self.reference();
        let family = self.family();
        for &label in present {
            for (place, &own) in at[label].iter().enumerate() {
                if let Some(reference) = reference.filter(|r| *r != label) {
                    out.push((Key::OverReference(label, mixture, place), own - at[reference][place]));
                }
                if let Some(baseline) = self.baseline.filter(|b| *b != label) {
                    out.push((Key::OverBaseline(label, mixture, place), own - at[baseline][place]));
                    if !family.contains(&label) && reference != Some(label) {
                        let mut line: Vec<(f64, f64)> =
                            family.iter().map(|f| (kl[*f], at[*f][place])).collect();
                        line.extend(reference.map(|r| (0.0, at[r][place])));
                        let there = along(&mut line, kl[label]);
                        out.push((Key::EqualKl(label, mixture, place), own - there));
                    }
                }
            }
            if let Some(best) = self.best[mixture].filter(|_| !family.contains(&label)) {
                out.push((Key::OverBest(label, mixture), at[label][2] - at[best][2]));
            }
            if let Some(baseline) = self.baseline.filter(|b| *b != label) {
                for end in 0..2 {
                    let of_run = |run: &usize| {
                        let met = draw.runs[baseline].iter();
                        let rates = met.map(|other| draw.mean(&self.wins[label][*run][*other][mixture][end]));
                        mean(&rates.collect::<Vec<_>>())
                    };
                    let rates: Vec<f64> = draw.runs[label].iter().map(of_run).collect();
                    out.push((Key::Win(label, mixture, end), mean(&rates) - 0.5));
                }
            }
        }
    }

    /// The labels' curves and comparisons.
    pub fn mixture_views(&self, found: &BTreeMap<Key, Interval>) -> Vec<MixtureView> {
        let whole = self.whole();
        let view = |(m, (name, _)): (usize, &(String, _))| MixtureView {
            name: name.clone(),
            curves: (0..self.labels.len()).map(|label| self.curve(label, m, &whole, found)).collect(),
            ceiling: Vec::new(),
            comparisons: self.comparisons(m, found),
        };
        self.judged.mixtures.iter().enumerate().map(view).collect()
    }

    fn curve(
        &self,
        label: usize,
        mixture: usize,
        whole: &Draw,
        found: &BTreeMap<Key, Interval>,
    ) -> Option<CurveView> {
        let get = |key: Key| found.get(&key).map(|i| Estimate::from(*i));
        let alphas = self.judged.alphas.iter().enumerate();
        let points: Vec<AlphaPoint> = alphas
            .filter_map(|(at, alpha)| {
                Some(AlphaPoint {
                    alpha: *alpha,
                    reward: get(Key::Reward(label, mixture, at))?,
                    accuracy: None,
                })
            })
            .collect();
        let lowest = points.iter().min_by(|a, b| a.reward.mean.total_cmp(&b.reward.mean))?;
        let runs = self.measures[label].iter().map(|(seed, measures)| RunPoint {
            seed: *seed,
            kl: if self.labels[label].is_reference() {
                0.0
            } else {
                whole.mean(&measures.nats) / whole.mean(&measures.tokens)
            },
            at: self.run(measures, mixture, whole).1,
        });
        Some(CurveView {
            at: (0..3).filter_map(|place| get(Key::At(label, mixture, place))).collect(),
            worst_alpha: lowest.alpha,
            gains: (0..3).map(|place| get(Key::OverReference(label, mixture, place))).collect(),
            runs: runs.collect(),
            points,
        })
    }

    fn comparisons(&self, mixture: usize, found: &BTreeMap<Key, Interval>) -> Vec<Comparison> {
        let Some(best) = self.best[mixture] else { return Vec::new() };
        let settings = self.family().len();
        let of = |label: usize| {
            Some(Comparison {
                policy: label,
                best,
                settings,
                own: gap(*found.get(&Key::OverBest(label, mixture))?),
                equal_kl: self.reaches(label, found).and_then(|()| {
                    found.get(&Key::EqualKl(label, mixture, 2)).ok_or_else(String::new).map(|i| gap(*i))
                }),
            })
        };
        (0..self.labels.len()).filter(|label| !self.labels[*label].is_reference()).filter_map(of).collect()
    }

    /// Whether a label's divergence lies within what the baseline's settings and the reference span.
    fn reaches(&self, label: usize, found: &BTreeMap<Key, Interval>) -> Result<(), String> {
        let kl = |at: usize| found.get(&Key::KlToken(at)).map_or(f64::NAN, |i| i.value);
        let mut span: Vec<(f64, f64)> = self.family().into_iter().map(|at| (kl(at), 0.0)).collect();
        span.extend(self.reference().map(|_| (0.0, 0.0)));
        if interpolate(&mut span, kl(label)).is_some() {
            return Ok(());
        }
        let most = span.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
        let least = span.iter().map(|s| s.0).fold(f64::INFINITY, f64::min);
        Err(format!(
            "{} nats per token against {} to {}",
            number(kl(label), 3),
            number(least, 3),
            number(most, 3)
        ))
    }

    /// One table for each mixture, and one of the objectives.
    pub fn tables(&self, found: &BTreeMap<Key, Interval>) -> Vec<Table> {
        let column = |key: &dyn Fn(usize) -> Key| -> Vec<Option<Estimate>> {
            (0..self.labels.len()).map(|label| found.get(&key(label)).map(|i| Estimate::from(*i))).collect()
        };
        let [nominal, far] = self.judged.ends;
        let mut out = Vec::new();
        for (m, (name, _)) in self.judged.mixtures.iter().enumerate() {
            let title = format!("{} mixture", capital(&one_line(name)));
            let over = self.seen.as_ref().map_or(String::new(), |s| s[0].clone());
            let caption = format!(
                "{title}: reward by alpha, the weight of {over} (labels drawn at {})",
                alpha(nominal)
            );
            let mut table = empty(title, caption);
            table.push(format!("reward at {}", alpha(nominal)), 3, column(&|l| Key::At(l, m, 0)));
            table.push(format!("at {}", alpha(far)), 3, column(&|l| Key::At(l, m, 1)));
            table.push("mean", 3, column(&|l| Key::Mean(l, m)));
            table.push("worst", 3, column(&|l| Key::At(l, m, 2)));
            table.push("worst, gain", 3, column(&|l| Key::OverReference(l, m, 2)));
            table.push("KL nats/token", 3, column(&Key::KlToken));
            out.push(table);
        }
        let title = "Objectives and samples".to_owned();
        let mut table = empty(title.clone(), format!("{title}: mean scores of own samples"));
        let names = self.objectives.iter().map(|name| match self.is_seen(name) {
            Some(false) => format!("{name} (unseen)"),
            _ => name.clone(),
        });
        let names: Vec<String> = names.collect();
        for (o, name) in names.iter().enumerate() {
            table.push(name.as_str(), 3, column(&|l| Key::Score(l, o)));
        }
        table.push("KL nats/completion", 2, column(&Key::KlCompletion));
        table.push("tokens", 1, column(&Key::Length));
        for n in 0..3 {
            let of = |runs: &Vec<Vec<f64>>| {
                let values: Option<Vec<f64>> = runs.iter().map(|run| run.get(n).copied()).collect();
                values.filter(|v| !v.is_empty()).map(|v| Estimate::alone(mean(&v)))
            };
            table.push(format!("distinct-{}", n + 1), 3, self.distinct.iter().map(of).collect());
        }
        out.push(table);
        if self.has_reference() && !names.is_empty() {
            let title = "Objectives over the reference".to_owned();
            let caption =
                format!("{title}: mean scores of own samples, less the reference's on the same prompts");
            let mut table = empty(title, caption);
            for (o, name) in names.iter().enumerate() {
                let cells = column(&|l| Key::ScoreOver(l, o)).into_iter().zip(self.labels);
                let others = cells.map(|(cell, label)| cell.filter(|_| !label.is_reference()));
                table.push(name.as_str(), 3, others.collect());
            }
            out.push(table);
        }
        out
    }

    /// One table of differences from the baseline label for each mixture.
    pub fn paired_tables(&self, found: &BTreeMap<Key, Interval>) -> Vec<Table> {
        let Some(baseline) = self.baseline else { return Vec::new() };
        let column = |key: &dyn Fn(usize) -> Key| -> Vec<Option<Estimate>> {
            (0..self.labels.len()).map(|label| found.get(&key(label)).map(|i| Estimate::from(*i))).collect()
        };
        let within = |cells: Vec<Option<Estimate>>| -> Vec<Option<Estimate>> {
            let reached =
                |(at, cell): (usize, Option<Estimate>)| cell.filter(|_| self.reaches(at, found).is_ok());
            cells.into_iter().enumerate().map(reached).collect()
        };
        let [nominal, far] = self.judged.ends.map(alpha);
        let names = [format!("at {nominal}"), format!("at {far}"), "worst".into()];
        let table = |(m, (name, _)): (usize, &(String, _))| {
            let title = format!(
                "{} mixture: differences from {}",
                capital(&one_line(name)),
                self.labels[baseline].name
            );
            let mut table = empty(title.clone(), title);
            for (place, name) in names.iter().enumerate().take(Place::ALL.len()) {
                table.push(format!("reward {name}"), 3, column(&|l| Key::OverBaseline(l, m, place)));
            }
            for (place, name) in names.iter().enumerate() {
                let cells = within(column(&|l| Key::EqualKl(l, m, place)));
                table.push(format!("{name}, equal KL"), 3, cells);
            }
            table.push(format!("wins at {nominal}, less ½"), 3, column(&|l| Key::Win(l, m, 0)));
            table.push(format!("wins at {far}, less ½"), 3, column(&|l| Key::Win(l, m, 1)));
            table
        };
        self.judged.mixtures.iter().enumerate().map(table).collect()
    }
}

/// The value at `x` of the broken line through `points`, its first and last stretch going on beyond the ends: a resample of
/// a policy near an end may fall outside. Whether the policy itself lies inside is asked apart.
fn along(points: &mut [(f64, f64)], x: f64) -> f64 {
    if let Some(y) = interpolate(points, x) {
        return y;
    }
    let n = points.len();
    if n < 2 || !x.is_finite() {
        return f64::NAN;
    }
    let ((x0, y0), (x1, y1)) =
        if x < points[0].0 { (points[0], points[1]) } else { (points[n - 2], points[n - 1]) };
    if x1 > x0 { y0 + (y1 - y0) * (x - x0) / (x1 - x0) } else { f64::midpoint(y0, y1) }
}
