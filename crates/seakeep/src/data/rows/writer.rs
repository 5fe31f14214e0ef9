//! Rows into a file, one after another.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use super::record::{ENTRY, Entry, Head, NONE, check, encode, foot};
use crate::data::labels::Labels;
use crate::data::report::TokenizeReport;
use crate::data::tokenize::{SAME_PROMPTS, TokenizedPair};
use crate::error::{Error, Result};
use crate::formats::Fingerprint;

/// Writes rows, in order.
pub(in crate::data) struct RowsWriter<'a, W: Write> {
    to: W,
    /// What is written, for messages.
    path: &'a Path,
    words: u64,
    entries: Vec<Entry>,
    head: Head,
    files: Names,
    groups: Names,
    labels: Fingerprint,
    partners: Option<Partners>,
}

/// Finds the row whose completion is another's mismatched one: the nearest before it with another prompt, in a ring. As
/// [`add_mismatched`](crate::data::add_mismatched) does, which has all rows before it.
#[derive(Default)]
struct Partners {
    first: Vec<u32>,
    /// The prompt of the last row.
    last: Vec<u32>,
    /// The last row, and the last with another prompt than that; none yet.
    rows: [Option<u32>; 2],
}

impl Partners {
    fn push(&mut self, prompt: &[u32], row: u32) -> Option<u32> {
        if self.rows[0].is_none() {
            (self.first, self.last) = (prompt.to_vec(), prompt.to_vec());
        }
        if prompt != self.last {
            (self.last, self.rows[1]) = (prompt.to_vec(), self.rows[0]);
        }
        self.rows[0] = Some(row);
        self.rows[1]
    }

    /// The partner of the rows at the beginning, for which there was none: from the end.
    fn of_first(&self) -> Option<u32> {
        if self.last == self.first { self.rows[1] } else { self.rows[0] }
    }
}

/// Texts by number, in the order in which they first came.
#[derive(Default)]
struct Names(HashMap<String, u32>);

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.0.get(name) {
            return *number;
        }
        let number = self.0.len() as u32;
        self.0.insert(name.to_string(), number);
        number
    }

    fn into_list(self) -> Vec<String> {
        let mut all: Vec<(String, u32)> = self.0.into_iter().collect();
        all.sort_by_key(|(_, number)| *number);
        all.into_iter().map(|(name, _)| name).collect()
    }
}

impl<'a, W: Write> RowsWriter<'a, W> {
    /// `made_from` is what `Rows::made_from` gives back; with `mismatched` every row gets another's completion, and
    /// `max_length` bounds it.
    pub fn new(
        to: W,
        path: &'a Path,
        made_from: &str,
        (max_length, mismatched): (Option<usize>, bool),
    ) -> Self {
        let head = Head { made_from: made_from.into(), max_length, ..Head::default() };
        let (files, groups) = (Names::default(), Names::default());
        let (labels, partners) = (Fingerprint::new(), mismatched.then(Partners::default));
        RowsWriter { to, path, words: 0, entries: Vec::new(), head, files, groups, labels, partners }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// The file system's; a row that is too large.
    pub fn push(&mut self, pair: &TokenizedPair) -> Result<()> {
        let number = |n: usize| u32::try_from(n).ok().filter(|n| *n != NONE);
        let large = || Error::row(&pair.file, pair.row, "", "more rows or tokens than 32 bits can count");
        let own = number(self.entries.len()).ok_or_else(large)?;
        let record = encode(pair).ok_or_else(large)?;
        if pair.labels != Labels::default() {
            self.labels = self.labels.clone().words([own]).field(format!("{:?}", pair.labels).as_bytes());
        }
        let longest =
            pair.branches.iter().map(|b| pair.prompt_of(b).len() + b.completion.len() + b.cut.len()).max();
        self.entries.push(Entry {
            name: pair.fingerprint().number(),
            start: self.words,
            check: check(&record),
            longest: longest.and_then(number).ok_or_else(large)?,
            row: number(pair.row).ok_or_else(large)?,
            file: self.files.number(&pair.file.to_string_lossy()),
            group: pair.labels.group.as_ref().map_or(NONE, |group| self.groups.number(group)),
            partner: self.partners.as_mut().and_then(|p| p.push(&pair.prompt, own)).unwrap_or(NONE),
        });
        self.words += record.len() as u64;
        let bytes: Vec<u8> = record.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.to.write_all(&bytes).map_err(Error::io("write", self.path))
    }

    /// Writes what follows the records; gives back where to.
    ///
    /// # Errors
    /// The file system's; [`Error::Format`] where mismatched completions are asked for and all prompts are the same.
    pub fn finish(mut self, report: TokenizeReport) -> Result<W> {
        let (files, groups) = (self.files.into_list(), self.groups.into_list());
        if let (Some(partners), Some(first)) = (&self.partners, files.first()) {
            let partner = partners.of_first().ok_or_else(|| Error::format(first, SAME_PROMPTS))?;
            self.entries.iter_mut().take_while(|e| e.partner == NONE).for_each(|e| e.partner = partner);
        }
        let rows = self.entries.iter().flat_map(|e| {
            let word = |i: u32| (e.name >> (32 * i)) as u32;
            [word(0), word(1), word(2), word(3), e.partner]
        });
        let fingerprint = Fingerprint::new().words(rows).field(self.labels.hex().as_bytes()).hex();
        let count = self.entries.len() as u64;
        // One more, which says where the last record ends.
        self.entries.push(Entry { start: self.words, ..Entry::of_bytes(&[0; ENTRY]) });
        let head = Head { files, groups, report, fingerprint, ..self.head };
        let mut tail: Vec<u8> = self.entries.iter().flat_map(|e| e.to_bytes()).collect();
        tail.extend(serde_json::to_vec(&head).map_err(|e| Error::format(self.path, e.to_string()))?);
        let sizes = [self.words, count, tail.len() as u64];
        let foot = foot(sizes, &tail);
        self.to
            .write_all(&tail)
            .and_then(|()| self.to.write_all(&foot))
            .map_err(Error::io("write", self.path))?;
        Ok(self.to)
    }
}
