//! Tables with named columns: CSV, TSV, MovieLens' `::`, and the JSON and Parquet files that preference data come in.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::read::{read_rows, read_text};
use crate::error::{Error, Result, nearest};

/// How a table of text is laid out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableFormat {
    /// What stands between columns; by default a comma for `.csv` and a tab for `.tsv`. One character follows the rules of
    /// CSV (quotes); more than one (`::`) has no quotes.
    pub separator: Option<String>,
    /// The columns' names; by default the first line has them.
    pub columns: Option<Vec<String>>,
}

/// A table as text, cell by cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The file.
    pub file: PathBuf,
    /// The columns' names.
    pub columns: Vec<String>,
    /// Of each row its line in the file (or its number, from 1) and its cells; what is missing is empty.
    pub rows: Vec<(usize, Vec<String>)>,
}

impl Table {
    /// Reads a file. Its ending says what it is: `.jsonl`, `.json` (also `.gz`) and `.parquet` are rows with names; everything
    /// else is text with separators.
    ///
    /// # Errors
    /// A file that cannot be read; [`Error::Row`] for a row with another number of cells; [`Error::Usage`] where the
    /// separator cannot be told from the name.
    pub fn read(path: &str, format: &TableFormat) -> Result<Table> {
        let file = PathBuf::from(path);
        if !file.is_file() {
            return Err(Error::format(&file, "no such file"));
        }
        let name = path.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let separator = match &format.separator {
            Some(separator) => separator.as_str(),
            None if [".jsonl", ".ndjson", ".json", ".parquet"].iter().any(|e| name.ends_with(e)) => {
                return Table::of_objects(path, file);
            }
            None if name.ends_with(".csv") => ",",
            None if name.ends_with(".tsv") => "\t",
            None => {
                return Err(Error::Usage(format!(
                    "{path}: what stands between its columns cannot be told from its name; give --separator (MovieLens: `::`, \
                     for a tab `\\t`)"
                )));
            }
        };
        let text = &*read_text(&file)?;
        let mut rows = match separator.as_bytes() {
            [] => {
                return Err(Error::Usage(
                    "--separator is empty; expected what stands between columns".into(),
                ));
            }
            [one] => quoted(&file, text, *one)?,
            _ => split(text, separator),
        };
        let columns = match &format.columns {
            Some(columns) => columns.clone(),
            None if rows.is_empty() => return Err(Error::format(&file, "no rows: the file is empty")),
            None => rows.remove(0).1,
        };
        if let Some((row, cells)) = rows.iter().find(|(_, cells)| cells.len() != columns.len()) {
            let what = format!(
                "{} columns at `{separator}`, expected {} ({})",
                cells.len(),
                columns.len(),
                columns.join(", ")
            );
            return Err(Error::row(&file, *row, "", what));
        }
        Table { file, columns, rows }.checked()
    }

    /// Rows of JSON or Parquet: the columns are those of any row, in the order in which they come.
    fn of_objects(path: &str, file: PathBuf) -> Result<Table> {
        let mut columns: Vec<String> = Vec::new();
        let mut rows = Vec::new();
        for (row, object) in read_rows(path, |_, row, object| Ok((row, object)))? {
            let mut cells = vec![String::new(); columns.len()];
            for (name, value) in object {
                let at = columns.iter().position(|c| *c == name).unwrap_or_else(|| {
                    columns.push(name);
                    cells.push(String::new());
                    columns.len() - 1
                });
                cells[at] = match value {
                    Value::Null => String::new(),
                    Value::String(text) => text,
                    other => other.to_string(),
                };
            }
            rows.push((row, cells));
        }
        rows.iter_mut().for_each(|(_, cells)| cells.resize(columns.len(), String::new()));
        Table { file, columns, rows }.checked()
    }

    fn checked(self) -> Result<Table> {
        match self.rows.is_empty() {
            true => Err(Error::format(&self.file, "no rows below the names of its columns")),
            false => Ok(self),
        }
    }

    /// The place of a column, if there is one of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c == name)
    }

    /// The place of a column that is needed; `flag` gives it another name.
    ///
    /// # Errors
    /// [`Error::Usage`] with the nearest name there is.
    pub fn column(&self, name: &str, flag: &str) -> Result<usize> {
        self.find(name).ok_or_else(|| {
            let near = nearest(name, self.columns.iter().map(String::as_str));
            let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Error::Usage(format!(
                "{}: no column `{name}`{hint} (--{flag} names it). The file has: {}",
                self.file.display(),
                self.columns.join(", ")
            ))
        })
    }

    /// A cell that must say something, without the space around it.
    ///
    /// # Errors
    /// [`Error::Row`] where it is empty.
    pub fn said(&self, at: usize, column: usize) -> Result<&str> {
        let text = self.rows[at].1[column].trim();
        match text.is_empty() {
            true => Err(self.error(at, column, "empty or missing")),
            false => Ok(text),
        }
    }

    /// An error about a cell.
    pub fn error(&self, at: usize, column: usize, what: impl Into<String>) -> Error {
        Error::row(&self.file, self.rows[at].0, &self.columns[column], what)
    }
}

/// By the rules of CSV.
fn quoted(file: &Path, text: &str, separator: u8) -> Result<Vec<(usize, Vec<String>)>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let (mut rows, mut last) = (Vec::new(), 0);
    for record in reader.records() {
        let record = record.map_err(|e| {
            let line = e.position().map_or(0, csv::Position::line) as usize;
            Error::row(file, line, "", e.to_string())
        })?;
        let line = record.position().map_or(0, csv::Position::line) as usize;
        last = record.position().map_or(0, csv::Position::byte) as usize;
        rows.push((line, record.iter().map(String::from).collect()));
    }
    // What stands in quotes has an even number of them; a quote that is never closed takes in all that follows it.
    let raw = text.get(last..).unwrap_or_default();
    let opens = raw.starts_with('"') || raw.contains(&format!("{}\"", separator as char));
    if let Some((line, _)) = rows.last().filter(|_| opens && raw.matches('"').count() % 2 == 1) {
        return Err(Error::row(
            file,
            *line,
            "",
            "a quote (\") that is opened here and never closed; in CSV, \"\" is a quote within quotes",
        ));
    }
    Ok(rows)
}

/// Between separators of several characters: no quotes.
fn split(text: &str, separator: &str) -> Vec<(usize, Vec<String>)> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(at, line)| (at + 1, line.split(separator).map(String::from).collect())).collect()
}
