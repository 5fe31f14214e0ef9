//! Preferences out of scored completions, as the papers make them (arXiv 2502.01930, section 7): a mixture of objectives,
//! Bradley-Terry labels, filters, and a card that says what came of it.
//!
//! ```text
//! r(y) = sum_k w_k r_k(y)      convex            P(1 beats 2) = sigmoid(scale (r(1) - r(2)))
//! r(y) = prod_k r_k(y)^w_k     geometric
//! ```
//! Everything random is a function of the seed, the prompt and the order of its own completions: where they stand among other rows, and
//! the other prompts, change nothing.

mod card;
mod read;

pub use card::{Card, Spread};
pub use read::{Completion, read_completions, read_samples};

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::data::prompt_key;
use crate::error::nearest;
use crate::formats::Fingerprint;
use crate::objective::sigmoid;
use crate::{Error, Result};

/// How several objectives become one reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Their weighted sum.
    Convex,
    /// Their weighted product; no score may be negative.
    Geometric,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 2] = [Form::Convex, Form::Geometric];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Form::Convex => "convex",
            Form::Geometric => "geometric",
        }
    }

    /// The form of this name.
    pub fn of(name: &str) -> Option<Form> {
        Form::ALL.into_iter().find(|form| form.name() == name)
    }

    /// Whether it can take a score.
    pub fn takes(self, score: f64) -> bool {
        self == Form::Convex || score >= 0.0
    }

    /// The mixture of scores, `(weight, score)` each; NaN where it cannot take one.
    pub fn mix(self, scores: &[(f64, f64)]) -> f64 {
        let factor = |&(weight, score): &(f64, f64)| {
            if self.takes(score) { score.powf(weight) } else { f64::NAN }
        };
        match self {
            Form::Convex => scores.iter().map(|(weight, score)| weight * score).sum(),
            Form::Geometric => scores.iter().map(factor).product(),
        }
    }
}

/// Which completions meet, and who wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Drawn pairs, won with the Bradley-Terry probability.
    BradleyTerry,
    /// Drawn pairs, won by the higher reward.
    Higher,
    /// The best completion of each prompt against its worst.
    BestWorst,
}

/// How to make preferences.
#[derive(Clone, Debug, PartialEq)]
pub struct PairOptions {
    /// Objectives and their weights.
    pub weights: Vec<(String, f64)>,
    /// How they are mixed.
    pub form: Form,
    /// Who meets and who wins.
    pub labels: Labels,
    /// Bradley-Terry's factor on the difference of rewards.
    pub scale: f64,
    /// Pairs drawn of each prompt; `None`: all there are.
    pub pairs_per_prompt: Option<usize>,
    /// Pairs whose rewards differ by less are left out.
    pub min_margin: f64,
    /// Pairs whose rewards differ by more are left out.
    pub max_margin: f64,
    /// Share of the labels that are turned in the end.
    pub flip_rate: f64,
    /// Share of the prompts that go to the test set.
    pub test_share: f64,
    /// Columns of the completions' rows that pairs keep, such as a group.
    pub keep: Vec<String>,
    /// Seed.
    pub seed: u64,
}

/// What was made.
pub struct Made {
    /// Rows for training: `prompt`, `chosen`, `rejected`, `score_chosen`, `score_rejected`, `soft_label`, ...
    pub train: Vec<Value>,
    /// The same of other prompts.
    pub test: Vec<Value>,
    /// What came of it.
    pub card: Card,
}

impl PairOptions {
    /// The mixed reward of a completion.
    ///
    /// # Errors
    /// [`Error::Row`] for a score that the mixture cannot take.
    pub fn reward(&self, completion: &Completion) -> Result<f64> {
        let mut scores = Vec::with_capacity(self.weights.len());
        for (name, weight) in &self.weights {
            let score = completion.score(name)?;
            if !self.form.takes(score) {
                let what = format!("`{name}` is {score}; a geometric mixture takes no negative score");
                return Err(completion.error("scores", what));
            }
            scores.push((*weight, score));
        }
        let reward = self.form.mix(&scores);
        match reward.is_finite() {
            true => Ok(reward),
            false => {
                Err(completion
                    .error("scores", format!("their mixture is {reward}; expected a finite number")))
            }
        }
    }
}

/// Makes pairs of completions of the same prompt.
///
/// # Errors
/// A score that is missing or cannot be mixed; no pair at all.
pub fn make_pairs(completions: &[Completion], options: &PairOptions) -> Result<Made> {
    check_kept(completions, &options.keep)?;
    let mut prompts: BTreeMap<String, Vec<(&Completion, f64)>> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut card = Card::of(completions, options)?;
    for completion in completions {
        let key = prompt_key(&completion.prompt);
        let reward = options.reward(completion)?;
        let same = prompts.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            Vec::new()
        });
        if completion.is_empty() {
            card.empty += 1;
        } else if same.iter().any(|(other, _)| other.completion == completion.completion) {
            card.duplicates += 1;
        } else {
            same.push((completion, reward));
        }
    }
    card.prompts = order.len();
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for key in &order {
        let mut rng = rng_of(key, options.seed);
        // Drawn first, so that no other option moves a prompt to the other side.
        let to = if rng.random::<f64>() < options.test_share { &mut test } else { &mut train };
        let rivals = &prompts[key];
        card.lone_prompts += usize::from(rivals.len() < 2);
        for (first, second) in meetings(rivals, options, &mut rng) {
            let margin = (first.1 - second.1).abs();
            if !(options.min_margin..=options.max_margin).contains(&margin) {
                card.filtered += 1;
                continue;
            }
            let pair = judge(first, second, options, &mut rng);
            card.add(&pair);
            to.push(pair.row(options));
        }
    }
    if train.is_empty() && test.is_empty() {
        return Err(Error::Usage(format!(
            "no pair came of {} completions of {} prompts: {} prompts have one completion only, {} pairs lie outside the margins",
            completions.len(),
            card.prompts,
            card.lone_prompts,
            card.filtered
        )));
    }
    (card.train_pairs, card.test_pairs) = (train.len(), test.len());
    Ok(Made { train, test, card: card.finished() })
}

/// The prompt's own source of chance.
fn rng_of(prompt: &str, seed: u64) -> ChaCha8Rng {
    let print = Fingerprint::new().field(prompt.as_bytes()).field(&seed.to_le_bytes()).hex();
    let word = u64::from_str_radix(&print[16..], 16).unwrap_or_default();
    ChaCha8Rng::seed_from_u64(word)
}

type Rival<'a> = (&'a Completion, f64);

/// The pairs of one prompt.
fn meetings<'a>(
    rivals: &[Rival<'a>],
    options: &PairOptions,
    rng: &mut ChaCha8Rng,
) -> Vec<(Rival<'a>, Rival<'a>)> {
    let n = rivals.len();
    if options.labels == Labels::BestWorst {
        let best = (0..n).reduce(|a, b| if rivals[b].1 > rivals[a].1 { b } else { a });
        let worst = (0..n).reduce(|a, b| if rivals[b].1 < rivals[a].1 { b } else { a });
        return match (best, worst) {
            (Some(best), Some(worst)) if best != worst => vec![(rivals[best], rivals[worst])],
            _ => Vec::new(),
        };
    }
    let mut all: Vec<(usize, usize)> = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect();
    // The first few of a random order.
    let wanted = options.pairs_per_prompt.unwrap_or(all.len()).min(all.len());
    for k in 0..wanted {
        let other = rng.random_range(k..all.len());
        all.swap(k, other);
    }
    all[..wanted].iter().map(|&(i, j)| (rivals[i], rivals[j])).collect()
}

/// Columns that a pair has of its own.
const OWN: [&str; 9] = [
    "prompt",
    "chosen",
    "rejected",
    "score_chosen",
    "score_rejected",
    "soft_label",
    "scores_chosen",
    "scores_rejected",
    "flipped",
];

/// Columns that are kept must be there, and not stand in the way of a pair's own.
fn check_kept(completions: &[Completion], keep: &[String]) -> Result<()> {
    for name in keep {
        if OWN.contains(&name.as_str()) {
            let what = format!(
                "keep: `{name}` is a column that pairs have of their own; rename it in the completions"
            );
            return Err(Error::Usage(what));
        }
        if !completions.iter().any(|completion| completion.columns.contains_key(name)) {
            let columns = completions.iter().flat_map(|completion| completion.columns.keys());
            let known: BTreeSet<&str> = columns.map(String::as_str).collect();
            let hint = nearest(name, known.iter().copied());
            let hint = hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return Err(Error::Usage(format!("keep: no completion has a column `{name}`{hint}")));
        }
    }
    Ok(())
}

/// A labelled pair.
struct Judged<'a> {
    chosen: Rival<'a>,
    rejected: Rival<'a>,
    /// The probability that `chosen` is the better one.
    probability: f64,
    flipped: bool,
}

fn judge<'a>(first: Rival<'a>, second: Rival<'a>, options: &PairOptions, rng: &mut ChaCha8Rng) -> Judged<'a> {
    let probability = sigmoid(options.scale * (first.1 - second.1));
    let luck: f64 = rng.random();
    let wins = match options.labels {
        Labels::BradleyTerry => luck < probability,
        // A draw is decided by chance.
        Labels::Higher | Labels::BestWorst if first.1 == second.1 => luck < 0.5,
        Labels::Higher | Labels::BestWorst => first.1 > second.1,
    };
    let flipped = rng.random::<f64>() < options.flip_rate;
    if wins != flipped {
        Judged { chosen: first, rejected: second, probability, flipped }
    } else {
        Judged { chosen: second, rejected: first, probability: 1.0 - probability, flipped }
    }
}

impl Judged<'_> {
    fn row(&self, options: &PairOptions) -> Value {
        let ((chosen, score_chosen), (rejected, score_rejected)) = (self.chosen, self.rejected);
        let mut row = Map::new();
        row.insert("prompt".into(), chosen.prompt.clone());
        row.insert("chosen".into(), chosen.answer());
        row.insert("rejected".into(), rejected.answer());
        row.insert("score_chosen".into(), json!(score_chosen));
        row.insert("score_rejected".into(), json!(score_rejected));
        row.insert("soft_label".into(), json!(self.probability));
        row.insert("scores_chosen".into(), json!(chosen.scores));
        row.insert("scores_rejected".into(), json!(rejected.scores));
        if options.flip_rate > 0.0 {
            row.insert("flipped".into(), json!(self.flipped));
        }
        for name in &options.keep {
            row.insert(name.clone(), chosen.columns.get(name).cloned().unwrap_or_default());
        }
        Value::Object(row)
    }
}

#[cfg(test)]
mod tests;
