//! Rows for training and evaluation: reading, choosing a split, tokenising, and the order of visits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainOptions;
use crate::data::{
    Loading, Pair, Rows, TokenizeOptions, TokenizeReport, TokenizedPair, add_mismatched, split,
    tokenize_pairs,
};
use crate::formats::Tokenizer;
use crate::objective::{LossType, Objective};
use crate::progress::Progress;
use crate::{Error, Result};

/// The rows that a split names (`data/split.rs`), of those of the data set `spec`.
///
/// # Errors
/// A split that cannot be read, that the data does not have, or that names no row.
pub fn select(pairs: Vec<Pair>, spec: &str, split: &str) -> Result<Vec<Pair>> {
    split::select(pairs, |pair| &pair.file, spec, split)
}

/// Reads, selects and tokenises, as [`tokenize_for`] does, a few rows at a time ([`Loading`]); says what truncation did.
///
/// # Errors
/// Data that cannot be read or tokenised or does not fit, naming file, row and key.
pub fn load(
    spec: &str,
    split: &str,
    tokenizer: &Tokenizer,
    options: &TrainOptions,
    progress: &mut dyn Progress,
) -> Result<Rows> {
    let objective = &options.objective;
    let texts = objective.is_of_texts();
    let loading = Loading {
        spec,
        split,
        text_field: texts.then_some(options.dataset_text_field.as_str()),
        fit: &|pair| fitting(pair, objective),
        fit_name: format!("{:?}", shape(objective)),
        mismatched: objective.needs_mismatched(),
        tokenizer,
        options: &options.tokenize,
        cache: options.dataset_cache_dir.as_deref(),
        keep: !options.dry_run,
    };
    let (rows, known) = loading.run(progress)?;
    let words = if texts { ("texts", "") } else { ("pairs", " completions") };
    let before = if known { ", tokenised before" } else { "" };
    progress.note(&format!("{}{before}", summary(spec, split, rows.report(), words)));
    if rows.is_empty() {
        return Err(Error::Usage(format!(
            "{}: no row is left after truncation; raise `max_length`",
            named(spec, split)
        )));
    }
    Ok(rows)
}

/// The rows as tokens, in the shape in which the objective takes them: texts, pairs, or labelled completions (into which pairs are
/// taken apart) with their mismatched ones.
///
/// # Errors
/// [`Error::Row`] for the first row that the objective cannot take or that cannot be tokenised.
pub fn tokenize_for(
    objective: &Objective,
    rows: Vec<Pair>,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<(Vec<TokenizedPair>, TokenizeReport)> {
    let rows = rows.into_iter().map(|row| fitting(row, objective)).collect::<Result<Vec<_>>>()?.concat();
    let (mut pairs, report) = tokenize_pairs(&rows, tokenizer, options)?;
    if objective.needs_mismatched() {
        add_mismatched(&mut pairs, options)?;
    }
    Ok((pairs, report))
}

/// Which rows an objective takes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Texts to learn.
    Texts,
    /// Labelled completions, into which pairs are taken apart.
    Labelled,
    /// A chosen and a rejected completion.
    Pairs,
    /// A chosen and several rejected completions.
    Several,
}

fn shape(objective: &Objective) -> Shape {
    match &objective.pair {
        _ if objective.is_of_texts() => Shape::Texts,
        pair if pair.any(LossType::is_unpaired) => Shape::Labelled,
        pair if pair.terms.iter().all(|t| t.0 == LossType::Softmax) => Shape::Several,
        _ => Shape::Pairs,
    }
}

/// A row as the objective takes it; for labelled completions perhaps two.
///
/// # Errors
/// [`Error::Row`] if it cannot take it.
fn fitting(row: Pair, objective: &Objective) -> Result<Vec<Pair>> {
    let several = row.completions.len() > 2;
    let loss = objective.pair.terms.first().map_or("", |t| t.0.name());
    match shape(objective) {
        Shape::Texts if !row.is_unpaired() => {
            Err(row.error("rejected", "a completion to compare with; nll learns texts one by one"))
        }
        Shape::Texts => Ok(vec![row]),
        Shape::Labelled if several => {
            Err(row.error("rejected", "several completions; kto takes pairs and labelled completions"))
        }
        Shape::Labelled if row.is_unpaired() => Ok(vec![row]),
        Shape::Labelled => row.unpair(),
        Shape::Pairs | Shape::Several if row.is_unpaired() => {
            let what = format!(
                "a completion that stands alone; loss_type {loss} compares two: give `chosen` and `rejected`, or use loss_type kto"
            );
            Err(row.error("completion", what))
        }
        Shape::Pairs if several => {
            let of_two = objective.pair.terms.iter().find(|t| t.0 != LossType::Softmax);
            let what = format!(
                "{} rejected completions; loss_type {} is of two: use loss_type softmax alone, or make a row of each",
                row.completions.len() - 1,
                of_two.map_or(loss, |t| t.0.name())
            );
            Err(row.error("rejected", what))
        }
        Shape::Pairs | Shape::Several => Ok(vec![row]),
    }
}

/// A data set and its split, if it is not all of it.
fn named(spec: &str, split: &str) -> String {
    if split.is_empty() { spec.to_string() } else { format!("{spec} ({split})") }
}

/// What tokenising did, in a line; `(rows, cut)` are the words for what a row is and for what truncation cuts.
fn summary(spec: &str, split: &str, report: &TokenizeReport, (rows, cut): (&str, &str)) -> String {
    let mut text = format!("{}: {} {rows}", named(spec, split), report.rows - report.dropped());
    if report.dropped() > 0 {
        text += &format!(", {} left out", report.dropped());
    }
    let truncated = report.truncated_chosen + report.truncated_rejected;
    if truncated > 0 {
        text += &format!(", {truncated}{cut} truncated");
    }
    text
}

/// The rows of epoch `epoch`, in order of visit: as they are, or shuffled by `seed` and the epoch.
pub fn order(rows: usize, shuffle: bool, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if shuffle {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(epoch as u64);
        for i in (1..rows).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
    }
    order
}

/// Which rows each optimizer step sees.
#[derive(Clone, Copy, Debug)]
pub struct Visits {
    /// Rows of the data.
    pub rows: usize,
    /// Rows of an optimizer step; the last step of an epoch may have fewer.
    pub batch: usize,
    /// Whether epochs are shuffled.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
}

impl Visits {
    /// Those of a run over so many rows.
    pub fn of(options: &TrainOptions, rows: usize) -> Visits {
        let batch = options.per_device_train_batch_size * options.gradient_accumulation_steps;
        Visits { rows, batch, shuffle: options.shuffle_dataset, seed: options.seed }
    }

    /// Optimizer steps of the run.
    pub fn total(&self, options: &TrainOptions) -> usize {
        let epochs = (options.num_train_epochs * self.per_epoch() as f64).ceil() as usize;
        options.max_steps.unwrap_or(epochs)
    }

    /// Optimizer steps of an epoch.
    pub fn per_epoch(&self) -> usize {
        self.rows.div_ceil(self.batch)
    }

    /// Passes over the rows that so many steps have made; of an epoch that has begun by micro-batches of `micro` rows, as transformers counts.
    pub fn epochs(&self, steps: usize, micro: usize) -> f64 {
        let (whole, begun) = (steps / self.per_epoch(), steps % self.per_epoch());
        let visited = (begun * self.batch).min(self.rows);
        whole as f64 + visited.div_ceil(micro) as f64 / self.rows.div_ceil(micro) as f64
    }

    /// The rows that the steps before `end` visit, in their own order.
    pub fn visited(self, end: usize) -> Vec<usize> {
        if end >= self.per_epoch() {
            return (0..self.rows).collect();
        }
        let mut rows = self.steps(0, end).collect::<Vec<_>>().concat();
        rows.sort_unstable();
        rows
    }

    /// The rows of every step from `first` (from 0) to before `end`.
    pub fn steps(self, first: usize, end: usize) -> impl Iterator<Item = Vec<usize>> {
        let per_epoch = self.per_epoch();
        let mut current: Option<(usize, Vec<usize>)> = None;
        (first..end).map(move |step| {
            let (epoch, i) = (step / per_epoch, step % per_epoch);
            if current.as_ref().is_none_or(|c| c.0 != epoch) {
                current = Some((epoch, order(self.rows, self.shuffle, self.seed, epoch)));
            }
            let rows = &current.as_ref().expect("set above").1;
            rows[i * self.batch..((i + 1) * self.batch).min(self.rows)].to_vec()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;
    use std::sync::Arc;

    fn pairs(file: &str, n: usize) -> Vec<Pair> {
        let row = |i| {
            let columns = json!({"prompt": "p", "chosen": format!("{i}"), "rejected": "r"});
            Pair::from_columns(Arc::from(Path::new(file)), i + 1, columns.as_object().unwrap().clone())
                .unwrap()
        };
        (0..n).map(row).collect()
    }

    fn rows(pairs: &[Pair]) -> Vec<usize> {
        pairs.iter().map(|p| p.row).collect()
    }

    #[test]
    fn splits_follow_hugging_face() {
        let of = |split: &str| select(pairs("d.jsonl", 10), "d.jsonl", split).map(|p| rows(&p));
        assert_eq!(of("train").unwrap().len(), 10);
        assert_eq!(of("train[:3]").unwrap(), [1, 2, 3]);
        assert_eq!(of("train[8:]").unwrap(), [9, 10]);
        assert_eq!(of("train[-2:]").unwrap(), [9, 10]);
        assert_eq!(of("train[20%:40%]").unwrap(), [3, 4]);
        assert!(of("train[5:5]").unwrap_err().to_string().contains("no row"));
        assert!(of("train[a:]").unwrap_err().to_string().contains("train[:1000]"));
        let two = [pairs("train.jsonl", 2), pairs("test.jsonl", 3)].concat();
        assert_eq!(select(two.clone(), "", "test").unwrap().len(), 3);
        assert_eq!(select(two.clone(), "", "").unwrap().len(), 5);
        let message = select(two, "", "validation").unwrap_err().to_string();
        assert!(message.contains("`validation`") && message.contains("train, test"), "{message}");
        let message = of("test").unwrap_err().to_string();
        assert!(message.contains("there is: train"), "{message}");
        let shards = [pairs("a.jsonl", 2), pairs("b.jsonl", 3)].concat();
        assert_eq!(select(shards, "", "train").unwrap().len(), 5);
    }

    #[test]
    fn every_epoch_visits_every_row_once_in_an_order_of_its_own() {
        let v = Visits { rows: 10, batch: 4, shuffle: true, seed: 7 };
        assert_eq!(v.per_epoch(), 3);
        let all: Vec<Vec<usize>> = v.steps(0, 6).collect();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        for epoch in [&all[..3], &all[3..]] {
            let mut seen = epoch.concat();
            seen.sort();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..3], all[3..]);
        assert_eq!([1, 2, 3, 4].map(|steps| v.epochs(steps, 2)), [0.4, 0.8, 1.0, 1.4]);
        // Starting in the middle of an epoch gives the same visits: resumed = uninterrupted.
        assert_eq!(v.steps(4, 6).collect::<Vec<_>>(), all[4..]);
        assert_eq!(order(3, false, 7, 5), [0, 1, 2]);
        let mut some = all[..2].concat();
        some.sort();
        assert_eq!((v.visited(2), v.visited(3), v.visited(7)), (some, (0..10).collect(), (0..10).collect()));
    }
}
