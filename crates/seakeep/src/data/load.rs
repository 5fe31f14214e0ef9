//! From files to tokenised rows, a few at a time: one thread reads, all others parse and tokenise, and what they make is
//! written in the files' order. What was made is kept on disk ([`Rows`]) and opened again as long as it would come out the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use super::pair::Pair;
use super::read::{RawRow, count_rows, data_files, read_file};
use super::report::Counts;
use super::rows::{Rows, RowsWriter};
use super::split::{files_of, range_of};
use super::tokenize::{Outcome, TokenizeOptions, tokenize_row};
use crate::error::{Error, Result};
use crate::formats::{Fingerprint, Tokenizer, try_write_atomic_with, unfinished};
use crate::progress::Progress;

/// Changes where tokens do that the same files, tokenizer and options give.
const VERSION: &str = "2";
/// What names of files in the cache begin and end with.
const PREFIX: &str = "tokens-";
const SUFFIX: &str = ".rows";
/// Rows that a thread is handed at a time; a few times as many are in memory.
const PIECE: usize = 512;

/// Tokens that no run has asked for in this time are removed when a run adds others: a month.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is to be loaded, and how.
pub struct Loading<'a> {
    /// File, glob or directory.
    pub spec: &'a str,
    /// Rows of it, in the notation of Hugging Face datasets.
    pub split: &'a str,
    /// The column that holds a text, where texts are learnt and not compared.
    pub text_field: Option<&'a str>,
    /// What becomes of a row before it is tokenised: perhaps several, or an error.
    pub fit: &'a (dyn Fn(Pair) -> Result<Vec<Pair>> + Sync),
    /// Names `fit`: another, another name.
    pub fit_name: String,
    /// Whether every row gets another's completion ([`add_mismatched`](super::add_mismatched)).
    pub mismatched: bool,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How to tokenise.
    pub options: &'a TokenizeOptions,
    /// Where tokenised rows are kept; `None`: in memory, as they are needed.
    pub cache: Option<&'a Path>,
    /// Whether rows that are not there yet are put there.
    pub keep: bool,
}

impl Loading<'_> {
    /// The rows, and whether they were there from before.
    ///
    /// # Errors
    /// Whatever is wrong with the files or the split; [`Error::Row`] for the first row, in the files' order, that cannot be
    /// used. A cache that cannot be written is only remarked on.
    pub fn run(&self, progress: &mut dyn Progress) -> Result<(Rows, bool)> {
        self.options.check()?;
        let files = files_of(data_files(self.spec)?, self.spec, self.split)?;
        let Some(directory) = self.cache else { return Ok((self.in_memory(&files, progress)?, false)) };
        let (path, made_from) = (directory.join(self.name()), self.made_from(&files)?);
        if path.is_file() {
            match Rows::open(&path) {
                Ok(rows) if rows.made_from() == made_from => {
                    note_use(&path);
                    return Ok((rows, true));
                }
                // The data changed since.
                Ok(_) => {}
                Err(e) => progress.note(&format!("{e}; they are made anew")),
            }
        }
        if !self.keep {
            return Ok((self.in_memory(&files, progress)?, false));
        }
        let written =
            std::fs::create_dir_all(directory).map_err(Error::io("create", directory)).and_then(|()| {
                try_write_atomic_with(&path, |file| {
                    let writer = RowsWriter::new(file, &path, &made_from, self.bounds());
                    self.write(&files, writer, progress)?;
                    if self.made_from(&files)? == made_from {
                        return Ok(());
                    }
                    Err(Error::format(self.spec, "the data changed while they were read; start again"))
                })
            });
        match written {
            Ok(()) => {
                remove_unused(directory);
                Ok((Rows::open(&path)?, false))
            }
            Err(Error::Io { path: at, source, action }) if at == path || at == directory => {
                let e = Error::Io { path: at, source, action };
                progress.note(&format!("tokens are kept in memory and not for other runs: {e}"));
                Ok((self.in_memory(&files, progress)?, false))
            }
            Err(other) => Err(other),
        }
    }

    fn in_memory(&self, files: &[PathBuf], progress: &mut dyn Progress) -> Result<Rows> {
        let writer = RowsWriter::new(Vec::new(), Path::new("memory"), "", self.bounds());
        Rows::in_memory(self.write(files, writer, progress)?)
    }

    fn bounds(&self) -> (Option<usize>, bool) {
        (self.options.max_length, self.mismatched)
    }

    /// The name of the file in the cache: what is asked for.
    fn name(&self) -> String {
        let Loading { spec, split, text_field, fit_name, mismatched, options, .. } = self;
        let spec = std::path::absolute(spec).unwrap_or_else(|_| PathBuf::from(spec));
        let asked =
            format!("{VERSION} {spec:?} {split:?} {text_field:?} {fit_name} {mismatched} {options:?}");
        let print = Fingerprint::new().field(asked.as_bytes()).field(self.tokenizer.fingerprint().as_bytes());
        format!("{PREFIX}{}{SUFFIX}", print.hex())
    }

    /// The files as they are now: each by path, size, and when it was last changed.
    fn made_from(&self, files: &[PathBuf]) -> Result<String> {
        let mut text = String::new();
        for file in files {
            let data = std::fs::metadata(file).map_err(Error::io("read", file))?;
            let changed =
                data.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            text += &format!("{file:?} {} {}", data.len(), changed.as_nanos());
            #[cfg(unix)]
            {
                // A file that was put in this one's place, or written to with its old time restored.
                use std::os::unix::fs::MetadataExt;
                text += &format!(" {} {}.{}", data.ino(), data.ctime(), data.ctime_nsec());
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn write<W: std::io::Write>(
        &self,
        files: &[PathBuf],
        mut writer: RowsWriter<W>,
        progress: &mut dyn Progress,
    ) -> Result<W> {
        let counts = files.iter().map(|file| count_rows(file)).collect::<Result<Vec<_>>>()?;
        let range = range_of(self.split, counts.iter().sum())?;
        progress.start(&format!("tokens of {}", self.spec), range.len() as u64);
        let mut report = Counts::default();
        std::thread::scope(|scope| {
            let (send, pieces) = sync_channel(2);
            scope.spawn(move || read(files, &counts, range, send));
            for piece in pieces {
                let piece: Vec<Place> = piece?;
                let rows = piece.len();
                let made: Vec<Result<Vec<Outcome>>> =
                    piece.into_par_iter().map(|row| self.row(row)).collect();
                for outcomes in made {
                    for outcome in outcomes? {
                        report.count(outcome).iter().try_for_each(|pair| writer.push(pair))?;
                    }
                }
                progress.advance(rows as u64, "");
            }
            Ok::<(), Error>(())
        })?;
        progress.finish();
        writer.finish(report.into_report())
    }

    fn row(&self, (file, row, raw): Place) -> Result<Vec<Outcome>> {
        let columns = raw.columns(&file, row)?;
        let pair = match self.text_field {
            Some(field) => Pair::learnt_from_columns(file, row, columns, field)?,
            None => Pair::from_columns(file, row, columns)?,
        };
        (self.fit)(pair)?.iter().map(|pair| tokenize_row(pair, self.tokenizer, self.options)).collect()
    }
}

/// A row of a file.
type Place = (Arc<Path>, usize, RawRow);

/// Sends the rows `range` of all files in pieces, until they end, cannot be read, or nobody wants them.
fn read(
    files: &[PathBuf],
    counts: &[usize],
    range: std::ops::Range<usize>,
    to: SyncSender<Result<Vec<Place>>>,
) {
    let mut piece = Vec::with_capacity(PIECE);
    let mut before = 0;
    for (path, count) in files.iter().zip(counts) {
        let own = before..before + count;
        let mut at = before;
        before = own.end;
        if own.end <= range.start || own.start >= range.end {
            continue;
        }
        let file: Arc<Path> = Arc::from(path.as_path());
        let read = read_file(path, &mut |row, raw| {
            if range.contains(&at) {
                piece.push((file.clone(), row, raw));
            }
            at += 1;
            let sent = piece.len() < PIECE || to.send(Ok(std::mem::take(&mut piece))).is_ok();
            Ok(sent && at < range.end)
        });
        if let Err(e) = read {
            // After what stands before it.
            let _ = to.send(Ok(std::mem::take(&mut piece))).and_then(|()| to.send(Err(e)));
            return;
        }
    }
    let _ = to.send(Ok(piece));
}

/// A cache's file tells by its time when it was last asked for. Where that cannot be set, it is made again some day.
fn note_use(path: &Path) {
    let _ = std::fs::File::options().append(true).open(path).and_then(|f| f.set_modified(SystemTime::now()));
}

/// Removes the tokens in `directory` that have not been asked for in a long time. What cannot be removed does no harm.
fn remove_unused(directory: &Path) {
    let is_ours = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let whole = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_ours)).map(|e| e.path());
    // What a run left half-written when it was killed.
    let parts = unfinished(directory, PREFIX);
    for path in whole.chain(parts) {
        let age = path.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > UNUSED) {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
