//! Rows for training and evaluation: reading, choosing a split, tokenising, and the order of visits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainOptions;
use crate::data::{
    Pair, TokenizeOptions, TokenizeReport, TokenizedPair, add_mismatched, read_pairs, read_texts,
    tokenize_pairs,
};
use crate::formats::Tokenizer;
use crate::objective::{LossType, Objective};
use crate::progress::Progress;
use crate::{Error, Result};

/// The rows that a split in the notation of Hugging Face datasets names: `train`, `train[:100]`, `test[10%:]`.
///
/// Where the data has files whose name contains the split's name (`train.jsonl`, `data/test-0.parquet`), those are
/// the split. Data without such names is one split, `train`. An empty name means all rows.
///
/// # Errors
/// A split that cannot be read, that the data does not have, or that names no row.
pub fn select(pairs: Vec<Pair>, split: &str) -> Result<Vec<Pair>> {
    let wrong = || {
        Error::Usage(format!(
            "split `{split}`: expected a name and perhaps a range, such as `train`, `train[:1000]` or `test[90%:]`"
        ))
    };
    let (name, range) = match split.split_once('[') {
        None => (split, ":"),
        Some((name, range)) => (name, range.strip_suffix(']').ok_or_else(wrong)?),
    };
    let mut rows = named(pairs, name)?;
    let (from, to) = range.split_once(':').ok_or_else(wrong)?;
    let n = rows.len();
    let bound = |text: &str, default: usize| -> Result<usize> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(default);
        }
        let at: i64 = match text.strip_suffix('%') {
            Some(percent) => (percent.parse::<f64>().map_err(|_| wrong())? / 100.0 * n as f64).round() as i64,
            None => text.parse().map_err(|_| wrong())?,
        };
        Ok(if at < 0 { (n as i64 + at).max(0) as usize } else { (at as usize).min(n) })
    };
    let (from, to) = (bound(from, 0)?, bound(to, n)?);
    if from >= to {
        return Err(Error::Usage(format!("split `{split}` names no row: the data has {n}")));
    }
    rows.truncate(to);
    Ok(rows.split_off(from))
}

/// The names that tell a data set's splits apart.
const SPLITS: [&str; 5] = ["train", "test", "validation", "valid", "eval"];

/// The rows of the split `name`.
fn named(pairs: Vec<Pair>, name: &str) -> Result<Vec<Pair>> {
    let holds = |p: &Pair, name: &str| p.file.file_stem().is_some_and(|f| f.to_string_lossy().contains(name));
    let one_file = pairs.windows(2).all(|w| w[0].file == w[1].file);
    if name.is_empty() || (one_file && name == "train") {
        return Ok(pairs);
    }
    let found: Vec<&str> = SPLITS.into_iter().filter(|s| pairs.iter().any(|p| holds(p, s))).collect();
    if pairs.iter().any(|p| holds(p, name)) {
        return Ok(pairs.into_iter().filter(|p| holds(p, name)).collect());
    }
    if name == "train" && found.is_empty() {
        return Ok(pairs);
    }
    let there = if found.is_empty() || one_file { "train".to_string() } else { found.join(", ") };
    Err(Error::Usage(format!(
        "there is no split `{name}` in this data; there is: {there}. Name a part of it by a range, such as `train[1000:]`"
    )))
}

/// Reads, selects and tokenises (see [`tokenize_for`]); says what truncation did.
///
/// # Errors
/// Data that cannot be read or tokenised or does not fit, naming file, row and key.
pub fn load(
    spec: &str,
    split: &str,
    tokenizer: &Tokenizer,
    options: &TrainOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<TokenizedPair>> {
    let texts = options.objective.is_of_texts();
    let rows = if texts { read_texts(spec, &options.dataset_text_field)? } else { read_pairs(spec)? };
    let rows = select(rows, split)?;
    let (pairs, report) = tokenize_for(&options.objective, rows, tokenizer, &options.tokenize)?;
    progress.note(&summary(
        spec,
        split,
        &report,
        if texts { ("texts", "") } else { ("pairs", " completions") },
    ));
    if pairs.is_empty() {
        return Err(Error::Usage(format!(
            "{spec} ({split}): no row is left after truncation; raise `max_length`"
        )));
    }
    Ok(pairs)
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
    let (mut pairs, report) = tokenize_pairs(&fitting(rows, objective)?, tokenizer, options)?;
    if objective.needs_mismatched() {
        add_mismatched(&mut pairs, options)?;
    }
    Ok((pairs, report))
}

/// The rows as the objective takes them.
///
/// # Errors
/// [`Error::Row`] for the first row that it cannot take.
fn fitting(rows: Vec<Pair>, objective: &Objective) -> Result<Vec<Pair>> {
    if objective.is_of_texts() {
        return match rows.iter().find(|r| !r.is_unpaired()) {
            Some(pair) => {
                Err(pair.error("rejected", "a completion to compare with; nll learns texts one by one"))
            }
            None => Ok(rows),
        };
    }
    if objective.pair.any(LossType::is_unpaired) {
        if let Some(several) = rows.iter().find(|r| r.completions.len() > 2) {
            return Err(
                several.error("rejected", "several completions; kto takes pairs and labelled completions")
            );
        }
        let taken_apart = |row: Pair| if row.is_unpaired() { Ok(vec![row]) } else { row.unpair() };
        return Ok(rows.into_iter().map(taken_apart).collect::<Result<Vec<_>>>()?.concat());
    }
    let loss = objective.pair.terms.first().map_or("", |t| t.0.name());
    if let Some(alone) = rows.iter().find(|r| r.is_unpaired()) {
        let what = format!(
            "a completion that stands alone; loss_type {loss} compares two: give `chosen` and `rejected`, or use loss_type kto"
        );
        return Err(alone.error("completion", what));
    }
    match rows.iter().find(|r| r.completions.len() > 2) {
        Some(several) if !objective.pair.terms.iter().all(|t| t.0 == LossType::Softmax) => {
            let what = format!(
                "{} rejected completions; loss_type {loss} compares two: use loss_type softmax, or make a row of each",
                several.completions.len() - 1
            );
            Err(several.error("rejected", what))
        }
        _ => Ok(rows),
    }
}

/// What tokenising did, in a line; `(rows, cut)` are the words for what a row is and for what truncation cuts.
fn summary(spec: &str, split: &str, report: &TokenizeReport, (rows, cut): (&str, &str)) -> String {
    let mut text = format!("{spec} ({split}): {} {rows}", report.rows - report.dropped());
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
    /// Optimizer steps of an epoch.
    pub fn per_epoch(&self) -> usize {
        self.rows.div_ceil(self.batch)
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
        let of = |split: &str| select(pairs("d.jsonl", 10), split).map(|p| rows(&p));
        assert_eq!(of("train").unwrap().len(), 10);
        assert_eq!(of("train[:3]").unwrap(), [1, 2, 3]);
        assert_eq!(of("train[8:]").unwrap(), [9, 10]);
        assert_eq!(of("train[-2:]").unwrap(), [9, 10]);
        assert_eq!(of("train[20%:40%]").unwrap(), [3, 4]);
        assert!(of("train[5:5]").unwrap_err().to_string().contains("no row"));
        assert!(of("train[a:]").unwrap_err().to_string().contains("train[:1000]"));
        let two = [pairs("train.jsonl", 2), pairs("test.jsonl", 3)].concat();
        assert_eq!(select(two.clone(), "test").unwrap().len(), 3);
        assert_eq!(select(two.clone(), "").unwrap().len(), 5);
        let message = select(two, "validation").unwrap_err().to_string();
        assert!(message.contains("`validation`") && message.contains("train, test"), "{message}");
        let message = of("test").unwrap_err().to_string();
        assert!(message.contains("there is: train"), "{message}");
        let shards = [pairs("a.jsonl", 2), pairs("b.jsonl", 3)].concat();
        assert_eq!(select(shards, "train").unwrap().len(), 5);
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
        // Starting in the middle of an epoch gives the same visits: resumed = uninterrupted.
        assert_eq!(v.steps(4, 6).collect::<Vec<_>>(), all[4..]);
        assert_eq!(order(3, false, 7, 5), [0, 1, 2]);
    }
}
