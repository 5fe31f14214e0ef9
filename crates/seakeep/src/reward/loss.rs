//! What a reward model is trained on: the losses of transformers' sequence classification and of TRL's `RewardTrainer`,
//! with their derivatives in the logits. All in f64, natural logarithms (nats).
//!
//! A loss is a mean over everything that counts in a global batch: for labels over rows and labels (those that are known),
//! for single labels over rows, for pairs over pairs. The denominator belongs to the whole batch, so that micro-batches
//! add up.

/// The kind of problem; the first three are transformers' `problem_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Each label by itself: binary cross-entropy on logits.
    MultiLabel,
    /// Numbers: squared error.
    Regression,
    /// One of the labels: cross-entropy of the softmax.
    SingleLabel,
    /// Pairs: Bradley and Terry's model of which text is preferred. One label, the reward.
    BradleyTerry,
}

impl Problem {
    /// Every kind, by the name under which a user gives it.
    pub const NAMES: [(&'static str, Problem); 4] = [
        ("multi_label_classification", Problem::MultiLabel),
        ("regression", Problem::Regression),
        ("single_label_classification", Problem::SingleLabel),
        ("bradley_terry", Problem::BradleyTerry),
    ];

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Problem> {
        Problem::NAMES.iter().find(|(known, _)| *known == name).map(|(_, problem)| *problem)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Problem::NAMES.iter().find(|(_, problem)| *problem == self).map_or("", |(name, _)| *name)
    }
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The kind of problem.
    pub problem: Problem,
    /// Bradley-Terry: weight of the squared sum of a pair's rewards, which keeps rewards around 0 (Eisenstein et al.,
    /// arXiv 2312.09244; TRL's `center_rewards_coefficient`).
    pub center_rewards: Option<f64>,
}

/// What a model gives to the texts of an example: `[texts][labels]`.
pub type Given = Vec<Vec<f64>>;

/// What is known of an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A value for each label, in their order; `None` where it is not known.
    Labels(Vec<Option<f64>>),
    /// The first of two texts is preferred, by at least this margin.
    Pair {
        /// Taken off the difference of rewards.
        margin: f64,
    },
}

/// `log(1 + e^x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)` without overflow.
pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// The probabilities that are proportional to `e^logit`.
pub(super) fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

impl Objective {
    /// How much an example counts in the denominator of the mean.
    pub fn terms(&self, target: &Target) -> usize {
        match (self.problem, target) {
            (Problem::MultiLabel | Problem::Regression, Target::Labels(values)) => {
                values.iter().flatten().count()
            }
            _ => 1,
        }
    }

    /// The sum of an example's losses, and its derivatives in the logits, from the logits of each of its texts
    /// (`[texts][labels]`). To be divided by the batch's terms.
    ///
    /// # Panics
    /// If the target is not of the kind the problem asks for: `read_rewards` makes none such.
    pub fn evaluate(&self, logits: &[Vec<f64>], target: &Target) -> (f64, Vec<Vec<f64>>) {
        match (self.problem, target) {
            (Problem::BradleyTerry, Target::Pair { margin }) => {
                self.pair(logits[0][0], logits[1][0], *margin)
            }
            (problem, Target::Labels(values)) => {
                let (loss, d) = match problem {
                    Problem::SingleLabel => single_label(&logits[0], values),
                    Problem::Regression => by_label(&logits[0], values, squared),
                    _ => by_label(&logits[0], values, binary),
                };
                (loss, vec![d])
            }
            (problem, target) => panic!("{} has no target {target:?}", problem.name()),
        }
    }

    /// `-log sigmoid(r_w - r_l - margin) + c (r_w + r_l)^2`.
    fn pair(&self, chosen: f64, rejected: f64, margin: f64) -> (f64, Vec<Vec<f64>>) {
        let (h, center) = (chosen - rejected - margin, self.center_rewards.unwrap_or(0.0));
        let (sum, slope) = (chosen + rejected, -sigmoid(-h));
        let pull = 2.0 * center * sum;
        (softplus(-h) + center * sum * sum, vec![vec![slope + pull], vec![pull - slope]])
    }
}

/// The sum over known labels of a loss of one logit, and its derivatives.
fn by_label(logits: &[f64], values: &[Option<f64>], loss: fn(f64, f64) -> (f64, f64)) -> (f64, Vec<f64>) {
    let mut sum = 0.0;
    let of = |(logit, value): (&f64, &Option<f64>)| match value {
        None => 0.0,
        Some(value) => {
            let (loss, d) = loss(*logit, *value);
            sum += loss;
            d
        }
    };
    let d = logits.iter().zip(values).map(of).collect();
    (sum, d)
}

/// `-y log sigmoid(z) - (1 - y) log sigmoid(-z)`.
fn binary(z: f64, y: f64) -> (f64, f64) {
    (softplus(z) - y * z, sigmoid(z) - y)
}

fn squared(z: f64, y: f64) -> (f64, f64) {
    ((z - y) * (z - y), 2.0 * (z - y))
}

/// `-sum_k y_k log softmax(z)_k`, the values `y` being probabilities.
fn single_label(logits: &[f64], values: &[Option<f64>]) -> (f64, Vec<f64>) {
    let p = softmax(logits);
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = most + logits.iter().map(|l| (l - most).exp()).sum::<f64>().ln();
    let y = |k: usize| values[k].unwrap_or(0.0);
    let loss = (0..logits.len()).map(|k| y(k) * (log_sum - logits[k])).sum();
    (loss, (0..logits.len()).map(|k| p[k] - y(k)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_of_the_losses() {
        let labels = |values: &[f64]| Target::Labels(values.iter().map(|&v| Some(v)).collect());
        let center = Some(0.3);
        for (problem, center_rewards, logits, target) in [
            (Problem::MultiLabel, None, vec![vec![0.3, -2.0, 4.0]], labels(&[1.0, 0.25, 0.0])),
            (Problem::MultiLabel, None, vec![vec![0.3, 40.0]], Target::Labels(vec![None, Some(1.0)])),
            (Problem::Regression, None, vec![vec![0.3, -2.0]], labels(&[1.5, -0.5])),
            (Problem::SingleLabel, None, vec![vec![0.3, -2.0, 1.0]], labels(&[0.0, 0.4, 0.6])),
            (Problem::BradleyTerry, None, vec![vec![0.3], vec![0.9]], Target::Pair { margin: 0.0 }),
            (Problem::BradleyTerry, center, vec![vec![0.3], vec![-0.9]], Target::Pair { margin: 0.7 }),
        ] {
            let objective = Objective { problem, center_rewards };
            let (loss, d) = objective.evaluate(&logits, &target);
            assert!(loss.is_finite());
            for (t, k) in (0..logits.len()).flat_map(|t| (0..logits[t].len()).map(move |k| (t, k))) {
                let at = |step: f64| {
                    let mut moved = logits.clone();
                    moved[t][k] += step;
                    objective.evaluate(&moved, &target).0
                };
                let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((d[t][k] - difference).abs() < 1e-8, "{problem:?}: {} and {difference}", d[t][k]);
            }
        }
    }

    #[test]
    fn a_label_that_is_not_known_counts_nowhere() {
        let objective = Objective { problem: Problem::MultiLabel, center_rewards: None };
        let target = Target::Labels(vec![None, Some(0.0), None]);
        let (loss, d) = objective.evaluate(&[vec![5.0, 0.0, -3.0]], &target);
        assert_eq!((objective.terms(&target), loss), (1, 2f64.ln()));
        assert_eq!(d, [[0.0, 0.5, 0.0]]);
    }

    #[test]
    fn extremes_stay_finite() {
        let objective = Objective { problem: Problem::MultiLabel, center_rewards: None };
        let (loss, d) = objective.evaluate(&[vec![1e4, -1e4]], &Target::Labels(vec![Some(0.0), Some(1.0)]));
        assert_eq!((loss, d), (2e4, vec![vec![1.0, -1.0]]));
    }
}
