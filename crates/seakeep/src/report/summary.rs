//! Runs taken together: mean and spread over the seeds of each method, and differences between methods.

use std::collections::BTreeMap;

use crate::eval_record::{Curve, EvalRecord, PolicyEval, Run};

/// Mean and spread of one number over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation over the seeds (divided by n - 1); NaN with fewer than two.
    pub sd: f64,
    /// How many seeds.
    pub n: usize,
}

impl Spread {
    /// Of the given values; NaN throughout where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let sd = if n < 2 { f64::NAN } else { (squares / (n - 1) as f64).sqrt() };
        Spread { mean, sd, n }
    }

    /// Half the width of the mean's 95% confidence interval by Student's t; NaN with fewer than two seeds.
    pub fn half_width(&self) -> f64 {
        if self.n < 2 {
            return f64::NAN;
        }
        let t = T_95.get(self.n - 2).copied().unwrap_or(1.96);
        t * self.sd / (self.n as f64).sqrt()
    }
}

/// The 0.975 quantile of Student's t for 1, 2, ... degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// One curve in three numbers, and what it has over the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurveNumbers {
    /// Reward at the nominal alpha (at the alpha nearest to it).
    pub nominal: f64,
    /// Mean reward over the alphas.
    pub mean: f64,
    /// Smallest reward over the alphas.
    pub worst: f64,
    /// The alpha of the smallest reward.
    pub worst_alpha: f64,
    /// Mean accuracy over the alphas.
    pub accuracy_mean: Option<f64>,
    /// Smallest accuracy over the alphas.
    pub accuracy_worst: Option<f64>,
}

impl CurveNumbers {
    /// Of a curve; `None` where it has no points. A reward that is NaN makes the numbers over it NaN.
    pub fn of(curve: &Curve, nominal_alpha: f64) -> Option<CurveNumbers> {
        let points = &curve.points;
        let away = |alpha: f64| (alpha - nominal_alpha).abs();
        let nominal = points.iter().min_by(|a, b| away(a.alpha).total_cmp(&away(b.alpha)))?.reward;
        // `total_cmp` on the negated order would put NaN last; a broken point is the worst there is.
        let worst = points.iter().min_by(|a, b| order(a.reward).total_cmp(&order(b.reward)))?;
        let accuracies: Option<Vec<f64>> = points.iter().map(|point| point.accuracy).collect();
        Some(CurveNumbers {
            nominal,
            mean: points.iter().map(|point| point.reward).sum::<f64>() / points.len() as f64,
            worst: worst.reward,
            worst_alpha: worst.alpha,
            accuracy_mean: accuracies.as_ref().map(|all| all.iter().sum::<f64>() / all.len() as f64),
            accuracy_worst: accuracies.map(|all| all.into_iter().fold(f64::INFINITY, f64::min)),
        })
    }
}

fn order(reward: f64) -> f64 {
    if reward.is_nan() { f64::NEG_INFINITY } else { reward }
}

/// The curve of a mixture.
pub fn curve<'a>(eval: &'a PolicyEval, mixture: &str) -> Option<&'a Curve> {
    eval.curves.iter().find(|curve| curve.mixture == mixture)
}

/// A method's runs over seeds.
#[derive(Clone, Debug)]
pub struct Method<'a> {
    /// As [`Run::label`].
    pub label: &'a str,
    /// As [`Run::method`].
    pub method: &'a str,
    /// Its runs, in the record's order.
    pub runs: Vec<&'a Run>,
}

/// One point of a method's curve.
#[derive(Clone, Copy, Debug)]
pub struct PointSummary {
    /// The share of population 1.
    pub alpha: f64,
    /// Reward over the seeds.
    pub reward: Spread,
    /// Accuracy over the seeds.
    pub accuracy: Option<Spread>,
}

impl<'a> Method<'a> {
    /// Divergence from the reference over the seeds, nats per token.
    pub fn kl(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.kl_per_token))
    }

    /// Mean length of samples over the seeds, tokens.
    pub fn length(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.eval.mean_length))
    }

    /// One number of the method's curves over the seeds.
    pub fn number(
        &self,
        mixture: &str,
        nominal_alpha: f64,
        pick: impl Fn(&CurveNumbers) -> Option<f64>,
    ) -> Option<Spread> {
        let of = |run: &&Run| pick(&CurveNumbers::of(curve(&run.eval, mixture)?, nominal_alpha)?);
        let values: Vec<f64> = self.runs.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| Spread::of(values))
    }

    /// The method's curve with its spread, at the alphas of its first run.
    pub fn points(&self, mixture: &str) -> Vec<PointSummary> {
        let curves: Vec<&Curve> = self.runs.iter().filter_map(|run| curve(&run.eval, mixture)).collect();
        let Some(first) = curves.first() else { return Vec::new() };
        let at = |alpha: f64| {
            curves.iter().filter_map(move |curve| curve.points.iter().find(|point| point.alpha == alpha))
        };
        first
            .points
            .iter()
            .map(|&point| {
                let accuracies: Vec<f64> = at(point.alpha).filter_map(|p| p.accuracy).collect();
                PointSummary {
                    alpha: point.alpha,
                    reward: Spread::of(at(point.alpha).map(|p| p.reward)),
                    accuracy: (!accuracies.is_empty()).then(|| Spread::of(accuracies)),
                }
            })
            .collect()
    }

    /// Loss and margin per step, mean over the seeds, thinned to at most `most` points by averaging
    /// neighbours.
    pub fn training(&self, most: usize) -> Vec<(f64, f64, f64)> {
        let mut by_step: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        for point in self.runs.iter().filter_map(|run| run.training.as_ref()).flat_map(|t| &t.steps) {
            by_step.entry(point.step).or_default().push((point.loss, point.margin));
        }
        let steps: Vec<(f64, f64, f64)> = by_step
            .into_iter()
            .map(|(step, at)| {
                let n = at.len() as f64;
                let sum = at.iter().fold((0.0, 0.0), |s, v| (s.0 + v.0, s.1 + v.1));
                (step as f64, sum.0 / n, sum.1 / n)
            })
            .collect();
        let size = steps.len().div_ceil(most.max(1)).max(1);
        steps
            .chunks(size)
            .map(|chunk| {
                let n = chunk.len() as f64;
                let sum = chunk.iter().fold((0.0, 0.0, 0.0), |s, v| (s.0 + v.0, s.1 + v.1, s.2 + v.2));
                (sum.0 / n, sum.1 / n, sum.2 / n)
            })
            .collect()
    }
}

/// The methods of a record, in the order of their first runs.
pub fn methods(record: &EvalRecord) -> Vec<Method<'_>> {
    let mut out: Vec<Method<'_>> = Vec::new();
    for run in &record.runs {
        match out.iter_mut().find(|method| method.label == run.label) {
            Some(method) => method.runs.push(run),
            None => out.push(Method { label: &run.label, method: &run.method, runs: vec![run] }),
        }
    }
    out
}

/// The mixtures of a record, in the order of their first appearance.
pub fn mixtures(record: &EvalRecord) -> Vec<&str> {
    let mut out: Vec<&str> = Vec::new();
    let evals = std::iter::once(&record.reference).chain(record.runs.iter().map(|run| &run.eval));
    for curve in evals.flat_map(|eval| &eval.curves) {
        if !out.contains(&curve.mixture.as_str()) {
            out.push(&curve.mixture);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval_record::{CurvePoint, Training, TrainingPoint};

    fn curve_of(values: &[(f64, f64, Option<f64>)]) -> Curve {
        let point =
            |&(alpha, reward, accuracy)| CurvePoint { alpha, reward, accuracy, ..CurvePoint::default() };
        Curve { mixture: "convex".into(), points: values.iter().map(point).collect() }
    }

    #[test]
    fn spread_and_interval_by_hand() {
        let s = Spread::of([1.0, 2.0, 3.0]);
        assert_eq!((s.mean, s.sd, s.n), (2.0, 1.0, 3));
        assert!((s.half_width() - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert!(Spread::of([5.0]).sd.is_nan());
        assert!(Spread::of([]).mean.is_nan());
        let wide = Spread::of((0..100).map(f64::from));
        assert!((wide.half_width() - 1.96 * wide.sd / 10.0).abs() < 1e-12);
    }

    #[test]
    fn numbers_of_a_curve() {
        let curve = curve_of(&[(0.0, 0.6, Some(0.7)), (0.1, 0.5, Some(0.6)), (1.0, 0.1, Some(0.2))]);
        let n = CurveNumbers::of(&curve, 0.12).unwrap();
        assert_eq!((n.nominal, n.worst, n.worst_alpha), (0.5, 0.1, 1.0));
        assert!((n.mean - 0.4).abs() < 1e-12);
        assert!((n.accuracy_mean.unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(n.accuracy_worst, Some(0.2));
        assert_eq!(CurveNumbers::of(&curve_of(&[]), 0.1), None);
        let broken = curve_of(&[(0.0, f64::NAN, None), (1.0, 0.2, Some(0.5))]);
        let n = CurveNumbers::of(&broken, 0.1).unwrap();
        assert!(n.worst.is_nan() && n.mean.is_nan());
        assert_eq!(n.accuracy_mean, None);
    }

    #[test]
    fn runs_are_grouped_by_label() {
        let run = |label: &str, seed, low| Run {
            label: label.into(),
            seed,
            kl_per_token: low,
            eval: PolicyEval {
                curves: vec![curve_of(&[(0.0, 0.6, None), (1.0, low, None)])],
                mean_length: 9.0,
            },
            training: Some(Training {
                steps: (1..=5).map(|s| TrainingPoint { step: s, loss: low, margin: s as f64 }).collect(),
                seconds: 1.0,
            }),
            ..Run::default()
        };
        let record = EvalRecord {
            runs: vec![run("a", 0, 0.1), run("b", 0, 0.2), run("a", 1, 0.3)],
            ..EvalRecord::default()
        };
        let all = methods(&record);
        assert_eq!(all.iter().map(|m| (m.label, m.runs.len())).collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
        let worst = all[0].number("convex", 0.1, |n| Some(n.worst)).unwrap();
        assert!((worst.mean - 0.2).abs() < 1e-12 && (worst.sd - 0.02f64.sqrt()).abs() < 1e-12);
        assert!(all[0].number("geometric", 0.1, |n| Some(n.worst)).is_none());
        let points = all[0].points("convex");
        assert_eq!(points.len(), 2);
        assert!((points[1].reward.mean - 0.2).abs() < 1e-12 && points[1].accuracy.is_none());
        assert!((all[0].kl().mean - 0.2).abs() < 1e-12);
        assert_eq!(mixtures(&record), ["convex"]);
        let thinned = all[0].training(3);
        assert_eq!(
            thinned.iter().map(|t| (t.0, t.2)).collect::<Vec<_>>(),
            [(1.5, 1.5), (3.5, 3.5), (5.0, 5.0)]
        );
        assert!((thinned[0].1 - 0.2).abs() < 1e-12);
    }
}
