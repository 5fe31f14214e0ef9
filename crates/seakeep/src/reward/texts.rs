//! Training texts as tokens: each row as it is, or several rows joined, drawn anew every epoch.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::loss::Target;
use super::model::RewardModel;
use super::rows::RewardRow;
use super::step::Example;
use super::train::{RewardOptions, examples};
use crate::Result;
use crate::data::Text;
use crate::progress::Progress;

/// Between joined texts.
const BETWEEN: &str = " ";

/// Makes the examples of a run.
pub(super) enum Texts {
    /// One row, one text: tokenised once.
    Plain(Vec<Example>),
    /// Up to `most` rows joined.
    Joined { most: usize, seed: u64, max_length: Option<usize> },
}

/// Each row as the model sees it, and how many of its texts were cut.
pub(super) fn tokenized(
    model: &RewardModel,
    rows: &[RewardRow],
    max_length: Option<usize>,
) -> Result<Vec<(Example, usize)>> {
    rows.par_iter().map(|row| one(model, row, max_length)).collect()
}

fn one(model: &RewardModel, row: &RewardRow, max_length: Option<usize>) -> Result<(Example, usize)> {
    let mut cut = 0;
    let mut texts = Vec::with_capacity(row.texts.len());
    for text in &row.texts {
        let mut tokens = model.encode(text, &row.variables).map_err(|e| row.error("", e.to_string()))?;
        cut += usize::from(model.truncate(&mut tokens, max_length));
        texts.push(tokens);
    }
    Ok((Example { texts, target: row.target.clone() }, cut))
}

impl Texts {
    /// For a run's rows.
    ///
    /// # Errors
    /// [`Error::Row`](crate::Error::Row) for a row that cannot be tokenised or joined.
    pub(super) fn new(
        model: &RewardModel,
        rows: &mut Vec<RewardRow>,
        options: &RewardOptions,
        progress: &mut dyn Progress,
    ) -> Result<Texts> {
        let plain = examples(model, rows, options.max_length, progress)?;
        if options.concatenate <= 1 {
            return Ok(Texts::Plain(plain));
        }
        match rows.iter().find(|row| !matches!(row.texts[..], [Text::Standard(_)])) {
            Some(chat) => Err(chat.error("", "messages; `concatenate` joins plain texts only")),
            None => {
                let (most, seed) = (options.concatenate, options.seed);
                Ok(Texts::Joined { most, seed, max_length: options.max_length })
            }
        }
    }

    /// The examples of the rows that a step visits in an epoch.
    pub(super) fn examples(
        &self,
        model: &RewardModel,
        rows: &[RewardRow],
        visited: &[usize],
        epoch: usize,
    ) -> Result<Vec<Example>> {
        match self {
            Texts::Plain(all) => Ok(visited.iter().map(|&i| all[i].clone()).collect()),
            Texts::Joined { most, seed, max_length } => visited
                .par_iter()
                .map(|&i| {
                    let parts = drawn(i, rows.len(), *most, *seed, epoch);
                    one(model, &joined(rows, &parts), *max_length).map(|(example, _)| example)
                })
                .collect(),
        }
    }
}

/// The rows that make the text of row `i` in an epoch: itself and up to `most - 1` others, each number of them as likely. A
/// function of the seed, the epoch and the row.
fn drawn(i: usize, rows: usize, most: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Streams from the other end than those of the order of rows.
    rng.set_stream(u64::MAX - (epoch * rows + i) as u64);
    let others = rng.random_range(0..most);
    std::iter::once(i).chain((0..others).map(|_| rng.random_range(0..rows))).collect()
}

/// Rows as one: their texts one after another; a label holds that holds in any.
fn joined(rows: &[RewardRow], parts: &[usize]) -> RewardRow {
    let text = |i: &usize| match &rows[*i].texts[0] {
        Text::Standard(text) => text.as_str(),
        Text::Chat(_) => unreachable!("checked when the run began"),
    };
    let texts: Vec<&str> = parts.iter().map(text).collect();
    let values = |i: &usize| match &rows[*i].target {
        Target::Labels(values) => values.as_slice(),
        Target::Pair { .. } => &[],
    };
    let parts_values: Vec<&[Option<f64>]> = parts.iter().map(values).collect();
    let labels = (0..parts_values[0].len()).map(|k| merged(parts_values.iter().map(|v| v[k]))).collect();
    let text = Text::Standard(texts.join(BETWEEN));
    RewardRow { texts: vec![text], target: Target::Labels(labels), ..rows[parts[0]].clone() }
}

/// The value of a label in several texts together: the highest; not known where one is not known, unless it surely holds.
fn merged(values: impl Iterator<Item = Option<f64>> + Clone) -> Option<f64> {
    let known = values.clone().flatten().reduce(f64::max);
    let all = values.clone().all(|v| v.is_some());
    known.filter(|&highest| all || highest == 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_epoch_and_row_alone() {
        let all: Vec<Vec<usize>> = (0..300).map(|i| drawn(i, 300, 3, 7, 2)).collect();
        assert!(all.iter().enumerate().all(|(i, parts)| parts[0] == i && parts.len() <= 3));
        for length in 1..=3 {
            let share = all.iter().filter(|parts| parts.len() == length).count();
            assert!((70..130).contains(&share), "{share} of length {length}");
        }
        assert_eq!(all[5], drawn(5, 300, 3, 7, 2));
        assert_ne!(all, (0..300).map(|i| drawn(i, 300, 3, 7, 3)).collect::<Vec<_>>());
        assert_ne!(all, (0..300).map(|i| drawn(i, 300, 3, 8, 2)).collect::<Vec<_>>());
        assert_eq!(drawn(4, 9, 1, 0, 0), [4]);
    }

    #[test]
    fn labels_merge_to_what_is_sure() {
        let of = |values: &[Option<f64>]| merged(values.iter().copied());
        assert_eq!(of(&[Some(0.0), Some(1.0)]), Some(1.0));
        assert_eq!(of(&[Some(0.25), Some(0.5)]), Some(0.5));
        assert_eq!(of(&[None, Some(1.0)]), Some(1.0));
        assert_eq!(of(&[None, Some(0.5)]), None);
        assert_eq!(of(&[None, None]), None);
    }
}
