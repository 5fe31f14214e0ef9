//! How good scores are on labelled data.

use super::loss::{Given, Problem, Target};

/// Bins of the calibration error.
const BINS: usize = 10;

/// Named numbers, in the order in which they are told.
pub type Measures = Vec<(String, f64)>;

/// The area under the ROC curve: the probability that a positive is scored above a negative, ties counting half (Mann and
/// Whitney), exact. `None` where there are no positives or no negatives.
///
/// # Panics
/// If a score is NaN.
pub fn roc_auc(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].partial_cmp(&scores[b]).expect("scores are numbers"));
    let positives = positive.iter().filter(|p| **p).count();
    let negatives = positive.len() - positives;
    // Twice the number of pairs won, whole numbers throughout.
    let (mut won, mut below, mut i) = (0u128, 0u128, 0);
    while i < order.len() {
        let tied = order[i..].iter().take_while(|&&j| scores[j] == scores[order[i]]).count();
        let held = order[i..i + tied].iter().filter(|&&j| positive[j]).count() as u128;
        let not = tied as u128 - held;
        won += held * (2 * below + not);
        below += not;
        i += tied;
    }
    let pairs = positives as u128 * negatives as u128;
    (pairs > 0).then(|| won as f64 / (2 * pairs) as f64)
}

/// The expected calibration error of probabilities: over ten bins of equal width, the distance between the mean probability and
/// the share of positives (mean of soft labels), weighted by how many fall into the bin (Guo et al., arXiv 1706.04599).
fn calibration_error(known: &[(f64, f64)]) -> Option<f64> {
    let mut bins = [(0.0, 0.0); BINS];
    for &(p, y) in known {
        let bin = ((p * BINS as f64) as usize).min(BINS - 1);
        bins[bin].0 += p;
        bins[bin].1 += y;
    }
    let sum: f64 = bins.iter().map(|(p, y)| (p - y).abs()).sum();
    (!known.is_empty()).then(|| sum / known.len() as f64)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), x| (sum + x, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// Measures of scores on rows. `logits` and `scores` (natural form) stand as `[rows][texts][labels]`.
///
/// | problem | measures |
/// |---|---|
/// | multi_label_classification | `accuracy` (share of labels on the right side of 0.5), `exact_match` (rows with all labels right), `roc_auc_macro` (mean over labels), `roc_auc_micro` (all labels as one), `roc_auc/LABEL`, `brier`, `ece` |
/// | single_label_classification | `accuracy` (share of rows whose likeliest label is the right one), and the same |
/// | regression | `mse`, `mae`, `r2` (of each label's variance, mean over labels) |
/// | bradley_terry | `accuracy` (share of pairs in the right order), `margin`, `min_reward`, `mean_reward`, `max_reward`, as TRL |
///
/// A label holds where its value is at least 0.5. A row of which no label is known counts nowhere. What cannot be told (an area without positives) is left out.
pub fn measure(
    problem: Problem,
    labels: &[String],
    (logits, scores): (&[Given], &[Given]),
    targets: &[&Target],
) -> Measures {
    match problem {
        Problem::BradleyTerry => pairs(logits),
        Problem::Regression => regression(logits, targets, labels.len()),
        Problem::MultiLabel | Problem::SingleLabel => classification(problem, labels, scores, targets),
    }
}

/// TRL's metrics of pairs.
fn pairs(logits: &[Given]) -> Measures {
    let gap = |row: &Given| row[0][0] - row[1][0];
    let all = || logits.iter().flatten().map(|text| text[0]);
    let share = |holds: &dyn Fn(f64) -> bool| mean(logits.iter().map(|r| f64::from(u8::from(holds(gap(r))))));
    let found = [
        ("accuracy", share(&|gap| gap > 0.0)),
        ("margin", mean(logits.iter().map(gap))),
        ("min_reward", all().reduce(f64::min)),
        ("mean_reward", mean(all())),
        ("max_reward", all().reduce(f64::max)),
    ];
    named(found)
}

fn named<const N: usize>(found: [(&str, Option<f64>); N]) -> Measures {
    found.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect()
}

/// What is known of label `k`: score and value of each row that has it.
fn known(scores: &[Given], targets: &[&Target], k: usize) -> Vec<(f64, f64)> {
    let of = |(score, target): (&Given, &&Target)| match target {
        Target::Labels(values) => values[k].map(|value| (score[0][k], value)),
        Target::Pair { .. } => None,
    };
    scores.iter().zip(targets).filter_map(of).collect()
}

fn regression(logits: &[Given], targets: &[&Target], labels: usize) -> Measures {
    let by_label: Vec<Vec<(f64, f64)>> = (0..labels).map(|k| known(logits, targets, k)).collect();
    let errors = || by_label.iter().flatten().map(|(z, y)| z - y);
    let r2 = |known: &Vec<(f64, f64)>| {
        let center = mean(known.iter().map(|k| k.1))?;
        let spread: f64 = known.iter().map(|k| (k.1 - center).powi(2)).sum();
        let left: f64 = known.iter().map(|(z, y)| (z - y).powi(2)).sum();
        (spread > 0.0).then(|| 1.0 - left / spread)
    };
    named([
        ("mse", mean(errors().map(|e| e * e))),
        ("mae", mean(errors().map(f64::abs))),
        ("r2", mean(by_label.iter().filter_map(r2))),
    ])
}

fn classification(problem: Problem, labels: &[String], scores: &[Given], targets: &[&Target]) -> Measures {
    let by_label: Vec<Vec<(f64, f64)>> = (0..labels.len()).map(|k| known(scores, targets, k)).collect();
    let auc = |known: &[(f64, f64)]| {
        let (scores, held): (Vec<f64>, Vec<bool>) = known.iter().map(|(p, y)| (*p, *y >= 0.5)).unzip();
        roc_auc(&scores, &held)
    };
    let right = |(p, y): &(f64, f64)| (*p >= 0.5) == (*y >= 0.5);
    let count = |holds: bool| f64::from(u8::from(holds));
    let all: Vec<(f64, f64)> = by_label.concat();
    let likeliest = |values: &mut dyn Iterator<Item = f64>| {
        values.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|best| best.0)
    };
    let rows = scores.iter().zip(targets).filter_map(|(score, target)| match target {
        Target::Labels(values) if values.iter().any(Option::is_some) => Some((&score[0], values)),
        _ => None,
    });
    let exact = rows.map(|(score, values)| match problem {
        Problem::SingleLabel => count(
            likeliest(&mut score.iter().copied()) == likeliest(&mut values.iter().map(|v| v.unwrap_or(0.0))),
        ),
        _ => count(score.iter().zip(values).all(|(p, y)| y.is_none_or(|y| right(&(*p, y))))),
    });
    let exact = mean(exact);
    let areas: Vec<Option<f64>> = by_label.iter().map(|known| auc(known)).collect();
    let mut found = match problem {
        Problem::SingleLabel => named([("accuracy", exact)]),
        _ => named([("accuracy", mean(all.iter().map(|k| count(right(k))))), ("exact_match", exact)]),
    };
    found.extend(named([
        ("roc_auc_macro", mean(areas.iter().copied().flatten())),
        ("roc_auc_micro", auc(&all)),
        ("brier", mean(all.iter().map(|(p, y)| (p - y).powi(2)))),
        ("ece", calibration_error(&all)),
    ]));
    let each = labels.iter().zip(areas).filter_map(|(name, area)| Some((format!("roc_auc/{name}"), area?)));
    found.extend(each);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_exact_with_ties() {
        // scikit-learn's roc_auc_score gives the same.
        let scores = [0.1, 0.4, 0.35, 0.8];
        assert_eq!(roc_auc(&scores, &[false, false, true, true]), Some(0.75));
        assert_eq!(roc_auc(&[0.5; 4], &[true, false, true, false]), Some(0.5));
        assert_eq!(roc_auc(&[0.2, 0.2, 0.9], &[false, true, true]), Some(0.75));
        assert_eq!(roc_auc(&[0.2, 0.3], &[true, true]), None);
        assert_eq!(roc_auc(&[], &[]), None);
    }

    #[test]
    fn areas_are_those_of_all_pairs() {
        let scores: Vec<f64> = (0..60).map(|i| f64::from((i * 7919) % 13)).collect();
        let held: Vec<bool> = (0..60).map(|i| (i * 31) % 7 < 3).collect();
        let (mut won, mut pairs) = (0.0, 0.0);
        for (i, j) in (0..60).flat_map(|i| (0..60).map(move |j| (i, j))) {
            if held[i] && !held[j] {
                pairs += 1.0;
                won += if scores[i] > scores[j] {
                    1.0
                } else if scores[i] == scores[j] {
                    0.5
                } else {
                    0.0
                };
            }
        }
        assert_eq!(roc_auc(&scores, &held), Some(won / pairs));
    }

    fn of(measures: &Measures, name: &str) -> f64 {
        measures.iter().find(|m| m.0 == name).unwrap_or_else(|| panic!("no {name} in {measures:?}")).1
    }

    #[test]
    fn labels_are_measured_by_label_and_together() {
        let labels = ["a".to_string(), "b".to_string()];
        let scores =
            vec![vec![vec![0.9, 0.2]], vec![vec![0.6, 0.7]], vec![vec![0.1, 0.4]], vec![vec![0.5, 0.5]]];
        let targets = [
            Target::Labels(vec![Some(1.0), Some(0.0)]),
            Target::Labels(vec![Some(0.0), Some(1.0)]),
            Target::Labels(vec![Some(0.0), None]),
            Target::Labels(vec![None, None]),
        ];
        let targets: Vec<&Target> = targets.iter().collect();
        let found = measure(Problem::MultiLabel, &labels, (&scores, &scores), &targets);
        assert_eq!((of(&found, "accuracy"), of(&found, "exact_match")), (0.8, 2.0 / 3.0));
        assert_eq!((of(&found, "roc_auc/a"), of(&found, "roc_auc/b")), (1.0, 1.0));
        assert_eq!((of(&found, "roc_auc_macro"), of(&found, "roc_auc_micro")), (1.0, 1.0));
        let brier = (0.01 + 0.04 + 0.36 + 0.09 + 0.01) / 5.0;
        assert!((of(&found, "brier") - brier).abs() < 1e-12);
        assert!((of(&found, "ece") - (0.1 + 0.2 + 0.6 + 0.3 + 0.1) / 5.0).abs() < 1e-12);
    }

    #[test]
    fn pairs_are_measured_as_trl_does() {
        let logits =
            vec![vec![vec![2.0], vec![1.0]], vec![vec![-1.0], vec![0.0]], vec![vec![0.5], vec![0.5]]];
        let found = measure(Problem::BradleyTerry, &["reward".into()], (&logits, &logits), &[]);
        assert_eq!((of(&found, "accuracy"), of(&found, "margin")), (1.0 / 3.0, 0.0));
        assert_eq!(
            (of(&found, "min_reward"), of(&found, "max_reward"), of(&found, "mean_reward")),
            (-1.0, 2.0, 0.5)
        );
    }

    #[test]
    fn regression_has_errors_and_explained_variance() {
        let logits = vec![vec![vec![1.0]], vec![vec![3.0]]];
        let targets = [Target::Labels(vec![Some(1.0)]), Target::Labels(vec![Some(2.0)])];
        let found = measure(
            Problem::Regression,
            &["x".into()],
            (&logits, &logits),
            &targets.iter().collect::<Vec<_>>(),
        );
        assert_eq!((of(&found, "mse"), of(&found, "mae"), of(&found, "r2")), (0.5, 0.5, -1.0));
    }
}
