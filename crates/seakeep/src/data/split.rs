//! The rows that a split in the notation of Hugging Face datasets names: `train`, `train[:100]`, `test[10%:]`.
//!
//! Where the data has files whose name contains the split's name (`train.jsonl`, `data/test-0.parquet`), those are
//! the split. Data without such names is one split, `train`. An empty name means all rows.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The names that tell a data set's splits apart.
const SPLITS: [&str; 5] = ["train", "test", "validation", "valid", "eval"];

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

/// The files of a data set that make up a split.
///
/// # Errors
/// A split that cannot be read, or that the data does not have.
pub fn files_of(files: Vec<PathBuf>, split: &str) -> Result<Vec<PathBuf>> {
    let name = parts(split)?.0;
    let holds =
        |file: &Path, name: &str| file.file_stem().is_some_and(|f| f.to_string_lossy().contains(name));
    let one_file = files.len() == 1;
    if name.is_empty() || (one_file && name == "train") {
        return Ok(files);
    }
    let found: Vec<&str> = SPLITS.into_iter().filter(|s| files.iter().any(|f| holds(f, s))).collect();
    if files.iter().any(|f| holds(f, name)) {
        return Ok(files.into_iter().filter(|f| holds(f, name)).collect());
    }
    if name == "train" && found.is_empty() {
        return Ok(files);
    }
    let there = if found.is_empty() || one_file { "train".to_string() } else { found.join(", ") };
    Err(Error::Usage(format!(
        "there is no split `{name}` in this data; there is: {there}. Name a part of it by a range, such as `train[1000:]`"
    )))
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
                (percent.parse::<f64>().map_err(|_| wrong(split))? / 100.0 * rows as f64).round() as i64
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
