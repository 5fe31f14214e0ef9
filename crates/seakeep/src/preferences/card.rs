//! The data card: what went in, what came out, and how much the labels say.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{Completion, Judged, PairOptions};
use crate::Result;

/// Mean and quantiles of a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// 10%.
    pub p10: f64,
    /// Median.
    pub p50: f64,
    /// 90%.
    pub p90: f64,
}

impl Spread {
    /// Of `values`, by nearest rank; zeros of none.
    fn of(mut values: Vec<f64>) -> Spread {
        if values.is_empty() {
            return Spread::default();
        }
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| values[((values.len() * percent).div_ceil(100)).max(1) - 1];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Spread { mean, p10: rank(10), p50: rank(50), p90: rank(90) }
    }
}

/// What came of making preferences.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Card {
    /// Completions read.
    pub completions: usize,
    /// Different prompts.
    pub prompts: usize,
    /// Prompts with fewer than two different completions.
    pub lone_prompts: usize,
    /// Completions left out because the prompt has the same one already.
    pub duplicates: usize,
    /// Completions left out because nothing was said in them; there is nothing to prefer.
    pub empty: usize,
    /// Pairs left out because of their margin.
    pub filtered: usize,
    /// Training pairs.
    pub train_pairs: usize,
    /// Test pairs.
    pub test_pairs: usize,
    /// Labels turned in the end.
    pub flipped: usize,
    /// Share of the pairs whose chosen completion has the higher mixed reward, of those that have a higher one; null where none has.
    pub agreement: Option<f64>,
    /// The same by each objective alone.
    pub objective_agreement: BTreeMap<String, Option<f64>>,
    /// Pearson's correlation of the scores of two objectives, over completions; null where a score does not vary.
    pub correlations: BTreeMap<String, BTreeMap<String, Option<f64>>>,
    /// Scores of each objective, over completions.
    pub scores: BTreeMap<String, Spread>,
    /// Difference of mixed rewards, chosen minus rejected.
    pub margins: Spread,
    /// Characters of chosen completions.
    pub chosen_characters: Spread,
    /// Characters of rejected completions.
    pub rejected_characters: Spread,
    #[serde(skip)]
    pairs: Vec<Counted>,
}

/// What the card remembers of a pair.
#[derive(Clone, Debug)]
struct Counted {
    margin: f64,
    flipped: bool,
    characters: [usize; 2],
    /// By objective: chosen minus rejected.
    differences: BTreeMap<String, f64>,
}

impl Card {
    /// The part that is of completions.
    pub(super) fn of(completions: &[Completion], options: &PairOptions) -> Result<Card> {
        let mut card = Card { completions: completions.len(), ..Card::default() };
        // The objectives that every row has, those of the mixture among them.
        let Some(first) = completions.first() else { return Ok(card) };
        for (name, _) in &options.weights {
            first.score(name)?;
        }
        let common = first.scores.keys().filter(|k| completions.iter().all(|c| c.scores.contains_key(*k)));
        let columns: Vec<(&String, Vec<f64>)> =
            common.map(|k| (k, completions.iter().map(|c| c.scores[k]).collect())).collect();
        for (a, x) in &columns {
            card.scores.insert(a.to_string(), Spread::of(x.clone()));
            let row = columns.iter().map(|(b, y)| (b.to_string(), correlation(x, y))).collect();
            card.correlations.insert(a.to_string(), row);
        }
        Ok(card)
    }

    pub(super) fn add(&mut self, pair: &Judged) {
        let ((chosen, high), (rejected, low)) = (pair.chosen, pair.rejected);
        let differences =
            chosen.scores.iter().filter_map(|(k, s)| Some((k.clone(), s - rejected.scores.get(k)?)));
        self.pairs.push(Counted {
            margin: high - low,
            flipped: pair.flipped,
            characters: [chosen, rejected].map(|c| characters(&c.completion)),
            differences: differences.collect(),
        });
    }

    /// The part that is of pairs.
    pub(super) fn finished(mut self) -> Card {
        let pairs = std::mem::take(&mut self.pairs);
        let share = |of: &dyn Fn(&Counted) -> Option<bool>| {
            let opinions: Vec<bool> = pairs.iter().filter_map(of).collect();
            let yes = opinions.iter().filter(|yes| **yes).count() as f64;
            (!opinions.is_empty()).then(|| yes / opinions.len() as f64)
        };
        self.flipped = pairs.iter().filter(|p| p.flipped).count();
        self.agreement = share(&|p| (p.margin != 0.0).then_some(p.margin > 0.0));
        for name in self.scores.keys() {
            let of = |p: &Counted| p.differences.get(name).filter(|d| **d != 0.0).map(|d| *d > 0.0);
            self.objective_agreement.insert(name.clone(), share(&of));
        }
        self.margins = Spread::of(pairs.iter().map(|p| p.margin).collect());
        let lengths = |side: usize| Spread::of(pairs.iter().map(|p| p.characters[side] as f64).collect());
        (self.chosen_characters, self.rejected_characters) = (lengths(0), lengths(1));
        self
    }
}

/// Characters of a text, or of all messages.
fn characters(completion: &Value) -> usize {
    match completion {
        Value::String(text) => text.chars().count(),
        Value::Array(messages) => {
            messages.iter().filter_map(|m| m["content"].as_str()).map(|text| text.chars().count()).sum()
        }
        _ => 0,
    }
}

fn correlation(x: &[f64], y: &[f64]) -> Option<f64> {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let sum = |of: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| of(x - mx, y - my)).sum::<f64>();
    let (xx, yy) = (sum(&|x, _| x * x), sum(&|_, y| y * y));
    (xx > 0.0 && yy > 0.0).then(|| sum(&|x, y| x * y) / (xx * yy).sqrt())
}
