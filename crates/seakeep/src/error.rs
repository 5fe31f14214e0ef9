//! The one error type of the library. A message says where (file, row, key), what was found, what was
//! expected, and what to do; the program prints it as it is.

use std::path::{Path, PathBuf};

/// Result of every fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in the library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done: "read", "write", "create", ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's own message.
        source: std::io::Error,
    },
    /// A foreign file (model, tokenizer, template, checkpoint) is not what it should be.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
    /// A row of a preference file cannot be used.
    #[error("{}, row {row}{}: {what}", path.display(), key.as_ref().map(|k| format!(", key `{k}`")).unwrap_or_default())]
    Row {
        /// The data file.
        path: PathBuf,
        /// The row, counted from 1 (in JSONL: the line).
        row: usize,
        /// The key (column) at fault, where there is one.
        key: Option<String>,
        /// What was found and what was expected.
        what: String,
    },
    /// An architecture, tensor type, file format or combination that Seakeep does not have.
    #[error("{what}; supported: {supported}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What there is instead.
        supported: String,
    },
    /// The caller's settings contradict each other or are out of range (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// A number stopped being finite.
    #[error("{0}")]
    NonFinite(String),
}

impl Error {
    /// An [`Error::Io`] for `path`, to be used in `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// An [`Error::Format`].
    pub fn format(path: impl AsRef<Path>, what: impl Into<String>) -> Error {
        Error::Format { path: path.as_ref().to_path_buf(), what: what.into() }
    }

    /// An [`Error::Row`]: `row` counts from 1, `key` is the column at fault (empty: the row as a whole).
    pub fn row(path: impl AsRef<Path>, row: usize, key: &str, what: impl Into<String>) -> Error {
        let key = (!key.is_empty()).then(|| key.to_string());
        Error::Row { path: path.as_ref().to_path_buf(), row, key, what: what.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, supported: impl Into<String>) -> Error {
        Error::Unsupported { what: what.into(), supported: supported.into() }
    }

    /// The process exit code the program uses: 2 for wrong use, 1 for every other failure.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Usage(_) => 2,
            _ => 1,
        }
    }
}

/// The known name that is spelled most like `name`, if any is like it: for messages.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Less alike than this is a guess that misleads.
    const ALIKE: f64 = 0.75;
    let name = name.to_lowercase();
    let scored = known.into_iter().map(|k| (strsim::jaro_winkler(&name, k), k));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|best| best.0 >= ALIKE).map(|best| best.1)
}
