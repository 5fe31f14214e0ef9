//! The rows that a split in the notation of Hugging Face datasets names: `train`, `train[:100]`, `test[10%:]`.
//!
//! The splits of several files are found as `datasets` finds them: files called `data/NAME-00000-of-00003.parquet` are the splits of these
//! names; otherwise those in directories that a word of `KEYWORDS` names (`test/a.jsonl`), or else files so named
//! (`validation.jsonl`, `pairs-test.parquet`) are; otherwise all are one split, `train`. An empty name means all rows.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The splits that there are without shards, and the words for them.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

fn wrong(split: &str) -> Error {
    Error::Usage(format!(
        "split `{split}`: expected a name and perhaps a range, such as `train`, `train[:1000]` or `test[90%:]`"
    ))
}

/// Name and range.
fn parts(split: &str) -> Result<(&str, &str)> {
    match split.split_once('[') {
        None => Ok((split, ":")),
        Some((name, range)) => Ok((name, range.strip_suffix(']').ok_or_else(|| wrong(split))?)),
    }
}

/// Whether a word stands in a name, with nothing or one of `datasets`' `NON_WORDS_CHARS` on both sides.
fn says(name: &str, word: &str) -> bool {
    let is_edge = |c: Option<char>| c.is_none_or(|c| "-._ 0123456789".contains(c));
    name.match_indices(word).any(|(at, _)| {
        is_edge(name[..at].chars().next_back()) && is_edge(name[at + word.len()..].chars().next())
    })
}

/// The split of which a file is a shard: `train` of `data/train-00000-of-00003.parquet`.
fn shard_of<'a>(file: &'a Path, spec: &str) -> Option<&'a str> {
    file.strip_prefix(spec).ok()?.parent().filter(|parent| *parent == Path::new("data"))?;
    let (name, count) = file.file_name()?.to_str()?.rsplit_once("-of-")?;
    let (split, number) = name.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (number.len() == 5 && digits(number) && digits(count.split('.').next()?)).then_some(split)
}

/// The splits of a data set, each with its files.
fn splits(files: &[PathBuf], spec: &str) -> Vec<(String, Vec<PathBuf>)> {
    let mut found: Vec<(String, Vec<PathBuf>)> = Vec::new();
    let mut add = |split: &str, file: &PathBuf| match found.iter_mut().find(|(name, _)| name == split) {
        Some((_, files)) => files.push(file.clone()),
        None => found.push((split.to_string(), vec![file.clone()])),
    };
    for file in files {
        if let Some(split) = shard_of(file, spec) {
            add(split, file);
        }
    }
    if !found.is_empty() {
        return found;
    }
    // By the directories below the one that is named, or by the files' names.
    let directories = |file: &Path| -> Vec<String> {
        let below = file.strip_prefix(spec).ok().and_then(Path::parent);
        below.into_iter().flatten().map(|part| part.to_string_lossy().into_owned()).collect()
    };
    let own = |file: &Path| file.file_name().map(|n| n.to_string_lossy().into_owned()).into_iter().collect();
    for names in [&directories as &dyn Fn(&Path) -> Vec<String>, &own] {
        let mut found = Vec::new();
        for (split, words) in KEYWORDS {
            let is_it =
                |file: &&PathBuf| names(file).iter().any(|name| words.iter().any(|word| says(name, word)));
            let of: Vec<PathBuf> = files.iter().filter(is_it).cloned().collect();
            if !of.is_empty() {
                found.push((split.to_string(), of));
            }
        }
        if !found.is_empty() {
            return found;
        }
    }
    vec![("train".to_string(), files.to_vec())]
}

/// The files of a data set, which `spec` names, that make up a split.
///
/// # Errors
/// A split that cannot be read, or that the data does not have.
pub fn files_of(files: Vec<PathBuf>, spec: &str, split: &str) -> Result<Vec<PathBuf>> {
    let name = parts(split)?.0;
    // A file that is named is training data, whatever it is called.
    if name.is_empty() || (files.len() == 1 && name == "train") {
        return Ok(files);
    }
    let mut splits = splits(&files, spec);
    let own = KEYWORDS.iter().find(|(_, words)| words.contains(&name)).map_or(name, |(own, _)| own);
    if let Some(at) = splits.iter().position(|(split, _)| split == name || split == own) {
        return Ok(splits.swap_remove(at).1);
    }
    let mut there: Vec<&str> = splits.iter().map(|(name, _)| name.as_str()).collect();
    if files.len() == 1 {
        there = vec!["train"];
    }
    Err(Error::Usage(format!(
        "there is no split `{name}` in this data; there is: {}. Name a part of it by a range, such as `train[1000:]`",
        there.join(", ")
    )))
}

/// The rows that a split names, of those of the data set `spec` in the order of their files; `file` is where a row is from.
///
/// # Errors
/// A split that cannot be read, that the data does not have, or that names no row.
pub fn select<T>(mut rows: Vec<T>, file: impl Fn(&T) -> &Path, spec: &str, split: &str) -> Result<Vec<T>> {
    let mut files: Vec<PathBuf> = rows.iter().map(|row| file(row).to_path_buf()).collect();
    files.dedup();
    let files = files_of(files, spec, split)?;
    rows.retain(|row| files.iter().any(|of_split| of_split == file(row)));
    let range = range_of(split, rows.len())?;
    rows.truncate(range.end);
    Ok(rows.split_off(range.start))
}

/// Which of a split's `rows` it names.
///
/// # Errors
/// A split that cannot be read, or that names no row.
pub fn range_of(split: &str, rows: usize) -> Result<Range<usize>> {
    let (from, to) = parts(split)?.1.split_once(':').ok_or_else(|| wrong(split))?;
    let bound = |text: &str, default: usize| -> Result<usize> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(default);
        }
        let at: i64 = match text.strip_suffix('%') {
            Some(percent) => {
                // Halves to even, as `datasets`.
                (percent.parse::<f64>().map_err(|_| wrong(split))? * rows as f64 / 100.0).round_ties_even()
                    as i64
            }
            None => text.parse().map_err(|_| wrong(split))?,
        };
        Ok(if at < 0 { (rows as i64 + at).max(0) as usize } else { (at as usize).min(rows) })
    };
    let (from, to) = (bound(from, 0)?, bound(to, rows)?);
    if from >= to {
        return Err(Error::Usage(format!("split `{split}` names no row: the data has {rows}")));
    }
    Ok(from..to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[&str], split: &str) -> Vec<String> {
        let files = files.iter().map(PathBuf::from).collect();
        match files_of(files, "d", split) {
            Ok(files) => files.iter().map(|f| f.strip_prefix("d").unwrap().display().to_string()).collect(),
            Err(e) => vec![e.to_string()],
        }
    }

    #[test]
    fn files_are_of_the_splits_that_datasets_finds() {
        assert_eq!(of(&["d/train/a.jsonl", "d/test/a.jsonl"], "train"), ["train/a.jsonl"]);
        assert_eq!(of(&["d/train/a.jsonl", "d/test/a.jsonl"], "test[:5]"), ["test/a.jsonl"]);
        assert_eq!(of(&["d/training/q.jsonl", "d/other.jsonl"], "train"), ["training/q.jsonl"]);
        // Words, not parts of words.
        let words = ["d/constrained.jsonl", "d/latest.jsonl"];
        assert_eq!(of(&words, "train"), ["constrained.jsonl", "latest.jsonl"]);
        assert!(of(&words, "test")[0].contains("no split `test`"));
        assert!(of(&["d/latest.jsonl"], "test")[0].contains("there is: train"));
        assert_eq!(of(&["d/test.jsonl"], "train"), ["test.jsonl"]);
        let named = ["d/a-train-1.jsonl", "d/dev.jsonl", "d/eval2.jsonl", "d/test.jsonl"];
        assert_eq!(of(&named, "train"), ["a-train-1.jsonl"]);
        assert_eq!(of(&named, "validation"), ["dev.jsonl"]);
        assert_eq!(of(&named, "valid"), ["dev.jsonl"]);
        assert_eq!(of(&named, "test"), ["eval2.jsonl", "test.jsonl"]);
        assert_eq!(of(&["d/train_pairs.jsonl", "d/test_pairs.jsonl"], "train"), ["train_pairs.jsonl"]);
        let shards = ["d/data/train_sft-00000-of-00001.parquet", "d/data/train_prefs-00000-of-00002.parquet"];
        assert_eq!(of(&shards, "train_prefs"), ["data/train_prefs-00000-of-00002.parquet"]);
        let below = ["d/train/data-00000-of-00001.jsonl", "d/test/data-00000-of-00001.jsonl"];
        assert_eq!(of(&below, "test"), ["test/data-00000-of-00001.jsonl"]);
        let here = ["d/train-00000-of-00002.jsonl", "d/validation/data.jsonl"];
        assert_eq!(of(&here, "validation"), ["validation/data.jsonl"]);
        assert!(of(&shards, "train")[0].contains("there is: train_sft, train_prefs"));
        assert_eq!(of(&["d/a.jsonl", "d/b.jsonl"], ""), ["a.jsonl", "b.jsonl"]);
    }

    #[test]
    fn shares_are_rounded_as_datasets_does() {
        for (split, range) in
            [("train[:10%]", 0..2), ("train[:50%]", 0..12), ("train[50%:]", 12..25), ("train[10%:30%]", 2..8)]
        {
            assert_eq!(range_of(split, 25).unwrap(), range, "{split}");
        }
    }
}
