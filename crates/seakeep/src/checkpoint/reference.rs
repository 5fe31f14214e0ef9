//! What the reference says of a run's rows: with the run in memory, with its checkpoints on disk. Packed, since there may be
//! millions: 36 bytes for a pair.

use std::path::Path;

use crate::environments::Environments;
use crate::formats::Arrays;
use crate::{Error, Result};

/// What the reference says of the rows that a run visits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceScores {
    /// The environments inferred from the training rows, for objectives that ask for them.
    pub environments: Option<Environments>,
    /// Training rows.
    pub train: ReferenceRows,
    /// Evaluation rows.
    pub eval: ReferenceRows,
}

/// What the reference says of rows, by the row's position in its data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReferenceRows {
    /// Of every row of the data: its place in `starts`, from 1; 0 where it is not known.
    places: Vec<u32>,
    /// Where the numbers of a row begin, and at the end where those of the last end; of two kinds.
    ends: Vec<[u64; 2]>,
    logps: Vec<f64>,
    environments: Vec<f64>,
}

/// What the reference says of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReferenceRow<'a> {
    /// Log-probabilities of its branches, nats.
    pub logps: &'a [f64],
    /// How likely it belongs to each inferred environment; empty where none are inferred.
    pub environments: &'a [f64],
}

impl ReferenceRows {
    /// What is known of a row, if it is.
    pub fn get(&self, row: usize) -> Option<ReferenceRow<'_>> {
        let place = self.places.get(row).filter(|place| **place > 0)?;
        let end = *place as usize;
        let [from, to] = match end {
            1 => [[0, 0], self.ends[0]],
            _ => [self.ends[end - 2], self.ends[end - 1]],
        };
        Some(ReferenceRow {
            logps: &self.logps[from[0] as usize..to[0] as usize],
            environments: &self.environments[from[1] as usize..to[1] as usize],
        })
    }

    /// Adds a row that is not known yet.
    ///
    /// # Panics
    /// If it is known, or more than 2^32 are.
    pub fn insert(&mut self, row: usize, known: ReferenceRow) {
        if self.places.len() <= row {
            self.places.resize(row + 1, 0);
        }
        assert_eq!(self.places[row], 0, "row {row} is known");
        self.logps.extend(known.logps);
        self.environments.extend(known.environments);
        self.ends.push([self.logps.len() as u64, self.environments.len() as u64]);
        self.places[row] = u32::try_from(self.ends.len()).expect("fewer than 2^32 rows");
    }

    fn put(&self, name: &str, to: &mut Arrays) {
        // Of the rows, in the order of what is known of them.
        let mut rows = vec![0u64; self.ends.len()];
        for (row, place) in self.places.iter().enumerate().filter(|(_, place)| **place > 0) {
            rows[*place as usize - 1] = row as u64;
        }
        to.put(&format!("{name}.rows"), rows);
        to.put(&format!("{name}.logps_end"), self.ends.iter().map(|end| end[0]));
        to.put(&format!("{name}.environments_end"), self.ends.iter().map(|end| end[1]));
        to.put(&format!("{name}.logps"), self.logps.iter().copied());
        to.put(&format!("{name}.environments"), self.environments.iter().copied());
    }

    fn take(name: &str, from: &Arrays) -> Option<ReferenceRows> {
        let ends = |what: &str| from.get::<u64>(&format!("{name}.{what}"));
        let numbers = |what: &str| from.get::<f64>(&format!("{name}.{what}"));
        let (logps, environments) = (numbers("logps")?, numbers("environments")?);
        let (first, second) = (ends("logps_end")?, ends("environments_end")?);
        let rows = ends("rows")?;
        let whole = |ends: &[u64], numbers: &[f64]| {
            ends.is_sorted()
                && ends.last().map_or(0, |end| *end) == numbers.len() as u64
                && ends.len() == rows.len()
        };
        if !whole(&first, &logps) || !whole(&second, &environments) {
            return None;
        }
        let mut places = vec![0; rows.iter().max().map_or(0, |row| *row as usize + 1)];
        for (i, row) in rows.iter().enumerate() {
            places[*row as usize] = i as u32 + 1;
        }
        let ends = first.into_iter().zip(second).map(|(first, second)| [first, second]).collect();
        Some(ReferenceRows { places, ends, logps, environments })
    }
}

impl ReferenceScores {
    /// Writes them, atomically.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let mut arrays = Arrays::default();
        if let Some(environments) = &self.environments {
            let text = serde_json::to_string(environments).map_err(|e| Error::format(path, e.to_string()))?;
            arrays.texts.insert("environments".into(), text);
        }
        self.train.put("train", &mut arrays);
        self.eval.put("eval", &mut arrays);
        arrays.write(path)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// A file that is something else, or was changed.
    pub(super) fn load(path: &Path) -> Result<ReferenceScores> {
        let broken = || Error::format(path, "not what a checkpoint holds");
        let arrays = Arrays::read(path)?;
        let environments = arrays.texts.get("environments").map(|text| serde_json::from_str(text));
        Ok(ReferenceScores {
            environments: environments.transpose().map_err(|_| broken())?,
            train: ReferenceRows::take("train", &arrays).ok_or_else(broken)?,
            eval: ReferenceRows::take("eval", &arrays).ok_or_else(broken)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_kept_bit_for_bit_in_any_order() {
        let mut scores = ReferenceScores::default();
        let rows: [(usize, &[f64], &[f64]); 4] = [
            (7, &[-1.5, -0.0], &[0.25, 0.75]),
            (2, &[f64::MIN_POSITIVE], &[]),
            (0, &[], &[1.0]),
            (9, &[-3.0; 3], &[]),
        ];
        for (row, logps, environments) in rows {
            scores.train.insert(row, ReferenceRow { logps, environments });
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        scores.save(&path).unwrap();
        let read = ReferenceScores::load(&path).unwrap();
        assert_eq!(read, scores);
        for (row, logps, environments) in rows {
            let found = read.train.get(row).unwrap();
            assert_eq!(found, ReferenceRow { logps, environments });
            assert!(found.logps.iter().zip(logps).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        assert_eq!((read.train.get(1), read.train.get(10), read.eval.get(0)), (None, None, None));
    }
}
