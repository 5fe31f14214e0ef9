//! Preference files: which ones a name means, and what rows they hold.
//!
//! JSON Lines and JSON arrays (also gzipped), Parquet, and plain text (also gzipped): a line is a row with the column
//! `text`. Rows come in the order of the files' names
//! and, within a file, of the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::pair::Pair;
use super::parquet::{self, ParquetRow};
use crate::error::{Error, Result};

/// Longest line of a JSON Lines file, in bytes, after decompression.
pub const MAX_LINE_BYTES: usize = 64 << 20;
/// Largest JSON array file, in bytes, after decompression (such a file is read as a whole).
pub const MAX_ARRAY_BYTES: u64 = 4 << 30;
/// For error messages.
pub const SUPPORTED_FILES: &str = ".jsonl, .json, .txt (also .gz of these), .parquet";

/// The rows of `spec`: a file, a directory (its data files and those below it) or a glob pattern.
///
/// # Errors
/// [`Error::Usage`] where nothing matches; [`Error::Row`] with file, row and key for a row that cannot
/// be used; [`Error::Format`] for a file that holds no rows; [`Error::Unsupported`] for its ending.
pub fn read_pairs(spec: &str) -> Result<Vec<Pair>> {
    read_rows(spec, Pair::from_columns)
}

/// One row of a data file on its way: its columns by name.
pub type Columns = Map<String, Value>;

/// The rows of `spec` (as [`read_pairs`] takes it), each made into a `T` from its file, its number and its columns.
///
/// # Errors
/// As [`read_pairs`], and whatever `make` refuses.
pub fn read_rows<T>(spec: &str, make: impl Fn(Arc<Path>, usize, Columns) -> Result<T>) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    for path in data_files(spec)? {
        let before = rows.len();
        let file: Arc<Path> = Arc::from(path.as_path());
        read_file(&file, &mut |row, raw| {
            rows.push(make(file.clone(), row, raw.columns(&file, row)?)?);
            Ok(true)
        })?;
        if rows.len() == before {
            return Err(empty(&path));
        }
    }
    Ok(rows)
}

fn empty(path: &Path) -> Error {
    Error::format(path, "no rows: the file is empty, or has nothing but blank lines or an empty list")
}

/// How many rows a file has, without making anything of them.
///
/// # Errors
/// As [`read_pairs`] for the file as a whole; what is wrong within a row is found when the row is read.
pub(super) fn count_rows(path: &Path) -> Result<usize> {
    let rows = match kind(path)? {
        Kind::Parquet => parquet::count_rows(path)?,
        _ => {
            let mut rows = 0;
            read_file(path, &mut |_, _| {
                rows += 1;
                Ok(true)
            })?;
            rows
        }
    };
    if rows == 0 { Err(empty(path)) } else { Ok(rows) }
}

/// A row as its file has it. What it says is left to whoever may find it out in parallel.
pub(super) enum RawRow {
    /// A line of JSON.
    Json(Vec<u8>),
    /// A line that is a text.
    Text(Vec<u8>),
    /// An element of a JSON array.
    Element(Value),
    /// A row of a Parquet file.
    Parquet(ParquetRow),
}

impl RawRow {
    /// Its columns; `file` and `row` are for messages.
    ///
    /// # Errors
    /// [`Error::Row`] for what is no row.
    pub fn columns(self, file: &Path, row: usize) -> Result<Columns> {
        match self {
            RawRow::Json(line) => parse_object(file, row, &line),
            RawRow::Text(line) => plain_text(file, row, &line),
            RawRow::Parquet(columns) => Ok(parquet::object(columns)),
            RawRow::Element(Value::Object(columns)) => Ok(columns),
            RawRow::Element(other) => {
                let start: String = other.to_string().chars().take(40).collect();
                Err(Error::row(file, row, "", format!("not an object but `{start}`")))
            }
        }
    }
}

/// The files that `spec` names, in alphabetical order.
pub fn data_files(spec: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(spec);
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    if path.is_dir() {
        return directory_files(path);
    }
    if !spec.contains(['*', '?', '[']) {
        return Err(Error::format(
            path,
            "no such file or directory; --dataset_name takes a file, a directory or a glob pattern on this machine",
        ));
    }
    let matches =
        glob::glob(spec).map_err(|e| Error::Usage(format!("`{spec}` is not a glob pattern: {e}")))?;
    let mut files = Vec::new();
    for entry in matches {
        let file = entry.map_err(|e| {
            let path = e.path().to_path_buf();
            Error::io("list", path)(e.into())
        })?;
        if file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Error::Usage(format!(
            "no file matches `{spec}` (quote the pattern so that the shell leaves it alone)"
        )));
    }
    Ok(files)
}

/// Files of `datasets` about a data set, which stand beside it.
const ABOUT: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"];
/// Directories within directories that are looked into.
const DEPTH: usize = 8;

/// The data files in a directory and those below it, as `datasets` finds them; hidden ones are left out.
fn directory_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut pending) = (Vec::new(), vec![(directory.to_path_buf(), 0)]);
    while let Some((directory, depth)) = pending.pop() {
        for entry in std::fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let path = entry.map_err(Error::io("list", &directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // A .txt in a directory is as likely to be about the data as data; it has to be named, or meant by a pattern.
            let is_data = Kind::of(&path).is_some_and(|kind| !matches!(kind, Kind::Text { .. }));
            if name.starts_with('.') || ABOUT.contains(&name) {
                continue;
            }
            if path.is_dir() && depth < DEPTH {
                pending.push((path, depth + 1));
            } else if path.is_file() && is_data {
                files.push(path);
            }
        }
    }
    if files.is_empty() {
        return Err(Error::format(
            directory,
            format!(
                "no data file in this directory; expected {SUPPORTED_FILES} (.txt by name or pattern only)"
            ),
        ));
    }
    files.sort();
    Ok(files)
}

#[derive(Clone, Copy)]
enum Kind {
    Lines { gzip: bool },
    Json { gzip: bool },
    Text { gzip: bool },
    Parquet,
}

impl Kind {
    fn of(path: &Path) -> Option<Kind> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (stem, gzip) = match name.strip_suffix(".gz") {
            Some(stem) => (stem, true),
            None => (name.as_str(), false),
        };
        match stem.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Kind::Lines { gzip }),
            "json" => Some(Kind::Json { gzip }),
            "txt" => Some(Kind::Text { gzip }),
            "parquet" if !gzip => Some(Kind::Parquet),
            _ => None,
        }
    }
}

/// Takes each row of a file with its number from 1; says whether it wants more.
pub(super) type Take<'a> = &'a mut dyn FnMut(usize, RawRow) -> Result<bool>;

fn kind(path: &Path) -> Result<Kind> {
    Kind::of(path).ok_or_else(|| {
        Error::unsupported(format!("{}: not a data file by its name", path.display()), SUPPORTED_FILES)
    })
}

/// Hands on the rows of a file in order, until it ends or no more are wanted.
///
/// # Errors
/// For a file that cannot be read to there, and whatever `take` refuses.
pub(super) fn read_file(path: &Path, take: Take) -> Result<()> {
    match kind(path)? {
        Kind::Parquet => parquet::read_rows(path, take),
        Kind::Lines { gzip } => read_lines(path, open(path, gzip)?, 1, RawRow::Json, take),
        Kind::Text { gzip } => read_lines(path, open(path, gzip)?, 1, RawRow::Text, take),
        Kind::Json { gzip } => {
            let mut reader = open(path, gzip)?;
            let (first, lines) = skip_space(&mut reader).map_err(|e| broken(path, 1, &e))?;
            if first == Some(b'[') {
                read_array(path, reader, take)
            } else {
                read_lines(path, reader, 1 + lines, RawRow::Json, take)
            }
        }
    }
}

/// The text of a file, unpacked where its name ends in `.gz`, without its byte-order mark.
///
/// # Errors
/// [`Error::Io`]; [`Error::Row`] with the line for what is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let gzip = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    let mut bytes = Vec::new();
    open(path, gzip)?.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let row = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        Error::row(path, row, "", "not UTF-8; convert the file, say with `iconv -f latin1 -t utf-8`")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

fn open(path: &Path, gzip: bool) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    Ok(if gzip {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    })
}

/// Skips white space (and a byte-order mark), counting lines, and looks at what follows.
fn skip_space(reader: &mut dyn BufRead) -> std::io::Result<(Option<u8>, usize)> {
    let mut lines = 0;
    loop {
        let Some(&byte) = reader.fill_buf()?.first() else { return Ok((None, lines)) };
        if !byte.is_ascii_whitespace() && !matches!(byte, 0xef | 0xbb | 0xbf) {
            return Ok((Some(byte), lines));
        }
        lines += usize::from(byte == b'\n');
        reader.consume(1);
    }
}

fn read_lines(
    file: &Path,
    mut reader: Box<dyn BufRead>,
    first_row: usize,
    raw: fn(Vec<u8>) -> RawRow,
    take: Take,
) -> Result<()> {
    let mut line = Vec::new();
    for row in first_row.. {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        if read.map_err(|e| broken(file, row, &e))? == 0 {
            break;
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(Error::row(
                file,
                row,
                "",
                format!("the line is longer than {MAX_LINE_BYTES} bytes: is this one row a line?"),
            ));
        }
        let text = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| row == 1).unwrap_or(&line);
        if !text.trim_ascii().is_empty() && !take(row, raw(text.to_vec()))? {
            break;
        }
    }
    Ok(())
}

/// An unreadable line: a gzip file cut short, most often.
fn broken(file: &Path, row: usize, error: &std::io::Error) -> Error {
    Error::row(
        file,
        row,
        "",
        format!("the file cannot be read further ({error}): was it cut short? copy it again"),
    )
}

fn plain_text(file: &Path, row: usize, line: &[u8]) -> Result<Columns> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let text = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line));
    let text = text.map_err(|e| Error::row(file, row, "text", format!("not UTF-8: {e}")))?;
    Ok(Map::from_iter([("text".to_string(), Value::from(text))]))
}

fn parse_object(file: &Path, row: usize, text: &[u8]) -> Result<Columns> {
    let text = text.trim_ascii();
    match serde_json::from_slice(text) {
        Ok(Value::Object(columns)) => Ok(columns),
        Ok(other) => {
            let start: String = other.to_string().chars().take(40).collect();
            Err(Error::row(
                file,
                row,
                "",
                format!(
                    "not an object but `{start}`, expected one such as {{\"chosen\": ..., \"rejected\": ...}} or {{\"text\": ...}}"
                ),
            ))
        }
        Err(e) => {
            // serde_json counts lines within this text; the column is what helps here.
            let message = e.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            let start: String = String::from_utf8_lossy(text).chars().take(40).collect();
            let hint = if e.is_eof() { "; a row stands on one line, or in a JSON array" } else { "" };
            Err(Error::row(
                file,
                row,
                "",
                format!("not JSON: {message} at column {} of `{start}...`{hint}", e.column()),
            ))
        }
    }
}

fn read_array(file: &Path, reader: Box<dyn BufRead>, take: Take) -> Result<()> {
    let mut text = Vec::new();
    reader.take(MAX_ARRAY_BYTES + 1).read_to_end(&mut text).map_err(|e| broken(file, 1, &e))?;
    if text.len() as u64 > MAX_ARRAY_BYTES {
        return Err(Error::format(
            file,
            format!("a JSON array of more than {MAX_ARRAY_BYTES} bytes: use JSON Lines"),
        ));
    }
    let rows: Vec<Value> = serde_json::from_slice(&text).map_err(|e| {
        Error::row(file, e.line(), "", format!("not JSON (the row is the line of the file): {e}"))
    })?;
    for (i, row) in rows.into_iter().enumerate() {
        if !take(i + 1, RawRow::Element(row))? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
