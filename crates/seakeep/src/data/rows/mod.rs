//! Tokenised rows, fetched one by one from a file in which they lie end to end, or from the same bytes in memory.
//!
//! ```text
//! records   [words] u32         of each row: index, backed_off, prompt, branches, labels (`encode`)
//! entries   [rows + 1] x 48 bytes where a row's record lies, its check, its name, where the row is from (`Entry`)
//! head      JSON                data files and groups by number, what tokenising did, what the file was made from
//! foot      48 bytes            the sizes of these, a check of entries and head, the version
//! ```
//! In memory are the entries: 48 bytes for a row. A record is read when its row is visited, and checked then, so that opening a
//! million rows reads none of them. Numbers are little-endian.

mod record;
mod writer;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use self::record::{Entry, FOOT, Head, NONE, check, decode, foot, parse, sizes, words};
pub(super) use self::writer::RowsWriter;
use super::labels::Labels;
use super::report::TokenizeReport;
use super::tokenize::TokenizedPair;
use crate::error::{Error, Result};

/// Tokenised rows by their position.
pub struct Rows {
    records: Records,
    entries: Vec<Entry>,
    head: Head,
    files: Vec<Arc<Path>>,
}

/// Where the records are.
enum Records {
    Memory(Vec<u8>),
    File(PathBuf, Mutex<File>),
}

impl Rows {
    /// In memory, of rows that are there already.
    ///
    /// # Errors
    /// A row that is too large.
    pub fn of(pairs: &[TokenizedPair]) -> Result<Rows> {
        let mut writer = RowsWriter::new(Vec::new(), Path::new("memory"), "", (None, false));
        pairs.iter().try_for_each(|pair| writer.push(pair))?;
        Rows::in_memory(writer.finish(TokenizeReport::default())?)
    }

    /// Of what a [`RowsWriter`] wrote.
    pub(super) fn in_memory(mut bytes: Vec<u8>) -> Result<Rows> {
        let broken = || Error::format("memory", "what was just written cannot be read");
        let at = bytes.len().checked_sub(FOOT).ok_or_else(broken)?;
        let [words, rows, tail] = sizes(&bytes[at..], bytes.len() as u64).ok_or_else(broken)?;
        let (head, entries) = parse(&bytes[at - tail as usize..at], rows).ok_or_else(broken)?;
        bytes.truncate(4 * words as usize);
        Ok(Rows::assemble(Records::Memory(bytes), entries, head))
    }

    /// Opens a file that a [`RowsWriter`] wrote; the records are checked when they are read.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is not whole, or of another version; the file system's.
    pub(super) fn open(path: &Path) -> Result<Rows> {
        let broken =
            || Error::format(path, "not tokenised rows as this program writes them, or cut short or changed");
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let mut read = |start: u64, size: u64| {
            let mut bytes = vec![0; size as usize];
            file.seek(SeekFrom::Start(start))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(Error::io("read", path))?;
            Ok::<_, Error>(bytes)
        };
        let at = length.checked_sub(FOOT as u64).ok_or_else(broken)?;
        let end = read(at, FOOT as u64)?;
        let sizes = sizes(&end, length).ok_or_else(broken)?;
        let tail = read(at - sizes[2], sizes[2])?;
        if end != foot(sizes, &tail) {
            return Err(broken());
        }
        let (head, entries) = parse(&tail, sizes[1]).ok_or_else(broken)?;
        Ok(Rows::assemble(Records::File(path.to_path_buf(), Mutex::new(file)), entries, head))
    }

    fn assemble(records: Records, entries: Vec<Entry>, head: Head) -> Rows {
        let files = head.files.iter().map(|file| Arc::from(Path::new(file))).collect();
        Rows { records, entries, head, files }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.entries.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row.
    ///
    /// # Errors
    /// The file system's; [`Error::Format`] where the file was damaged since it was written.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn get(&self, i: usize) -> Result<TokenizedPair> {
        let mut pair = self.own(i)?;
        if self.entries[i].partner != NONE {
            let other = self.own(self.entries[i].partner as usize)?;
            pair.mismatch(other.chosen(), self.head.max_length);
        }
        Ok(pair)
    }

    /// Several rows.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn several(&self, rows: &[usize]) -> Result<Vec<TokenizedPair>> {
        rows.iter().map(|&i| self.get(i)).collect()
    }

    /// All rows, one after another.
    pub fn iter(&self) -> impl Iterator<Item = Result<TokenizedPair>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// A row without a mismatched completion that is not its own.
    fn own(&self, i: usize) -> Result<TokenizedPair> {
        let entry = self.entries[i];
        let record = self.record(entry.start, self.entries[i + 1].start)?;
        let pair = if check(&record) == entry.check { decode(&record) } else { None };
        let pair = pair.ok_or_else(|| {
            // Nothing but what can be made again: the next run does.
            let _ = std::fs::remove_file(self.path());
            let what = format!("row {} of the tokenised rows was changed since it was written; the file is removed: run again", i + 1);
            Error::format(self.path(), what)
        })?;
        let (file, row) = self.place(i);
        let group = self.group(i).map(str::to_string);
        Ok(TokenizedPair { file: file.clone(), row, labels: Labels { group, ..pair.labels }, ..pair })
    }

    fn path(&self) -> &Path {
        match &self.records {
            Records::Memory(_) => Path::new("memory"),
            Records::File(path, _) => path,
        }
    }

    fn record(&self, start: u64, end: u64) -> Result<Vec<u32>> {
        match &self.records {
            Records::Memory(bytes) => Ok(words(&bytes[4 * start as usize..4 * end as usize])),
            Records::File(path, file) => {
                let mut bytes = vec![0; 4 * (end - start) as usize];
                let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let read = file.seek(SeekFrom::Start(4 * start)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(Error::io("read", path))?;
                Ok(words(&bytes))
            }
        }
    }

    /// The file and the row there that a row is from.
    pub fn place(&self, i: usize) -> (&Arc<Path>, usize) {
        (&self.files[self.entries[i].file as usize], self.entries[i].row as usize)
    }

    /// A row's name by its tokens: [`TokenizedPair::fingerprint`].
    ///
    /// # Errors
    /// As [`get`](Self::get), of rows with another's completion; the names of others are known.
    pub fn name(&self, i: usize) -> Result<u128> {
        match self.entries[i].partner {
            NONE => Ok(self.entries[i].name),
            _ => Ok(self.get(i)?.fingerprint().number()),
        }
    }

    /// No sequence of a row has more tokens; of a row with another's completion perhaps fewer.
    pub fn longest(&self, i: usize) -> usize {
        let own = self.entries[i].longest as usize;
        match self.entries[i].partner {
            NONE => own,
            partner => own + self.entries[partner as usize].longest as usize,
        }
    }

    /// The group of a row.
    pub fn group(&self, i: usize) -> Option<&str> {
        self.head.groups.get(self.entries[i].group as usize).map(String::as_str)
    }

    /// What tokenising did.
    pub fn report(&self) -> &TokenizeReport {
        &self.head.report
    }

    /// Of all tokens and labels, in order.
    pub fn fingerprint(&self) -> &str {
        &self.head.fingerprint
    }

    /// What the rows were made from.
    pub(super) fn made_from(&self) -> &str {
        &self.head.made_from
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
