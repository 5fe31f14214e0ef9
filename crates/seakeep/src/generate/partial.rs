//! Finished texts on disk while a run is under way: `F.partial` beside the output `F`. The first line says of what run it
//! is, every other holds the samples of one prompt, in the order in which they were finished:
//!
//! ```text
//! {"model": "0123...", "prompts": "4567...", "options": {"seed": 42, ...}}
//! {"row": 3, "samples": [{"tokens": [7, 2], "finish": "stop"}, ...]}
//! ```
//! A process that dies leaves whole lines and perhaps the beginning of one, which is cut off when the file is opened
//! again. A text does not depend on what is computed beside it, so what is still missing comes out as it would have.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Sample;
use crate::formats::{Claim, Fingerprint};
use crate::model::Model;
use crate::reference::weights;
use crate::{Error, Result};

/// What a run's texts depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Of weights, configuration and tokenizer.
    pub model: String,
    /// Of the prompts' tokens, in order.
    pub prompts: String,
    /// Everything else, by name.
    pub options: Map<String, Value>,
}

impl Header {
    /// For a run of this model and tokenizer (its fingerprint) over these prompts.
    pub fn new(model: &Model, tokenizer: &str, prompts: &[Vec<u32>], options: Map<String, Value>) -> Self {
        let config = format!("{:?}", model.config);
        let parts = [config.as_str(), &weights(model), tokenizer];
        let model = parts.iter().fold(Fingerprint::new(), |print, part| print.field(part.as_bytes()));
        let lengths = prompts.iter().map(|prompt| prompt.len() as u32);
        let prompts = Fingerprint::new().words(lengths).words(prompts.iter().flatten().copied());
        Header { model: model.hex(), prompts: prompts.hex(), options }
    }

    /// In what another header differs from this, for a message.
    fn differences(&self, other: &Header) -> Vec<String> {
        let mut found = Vec::new();
        if self.model != other.model {
            found.push("another model".to_string());
        }
        if self.prompts != other.prompts {
            found.push("other prompts".to_string());
        }
        let mut names: Vec<&String> = self.options.keys().chain(other.options.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let value = |header: &Header| header.options.get(name).cloned().unwrap_or_default();
            let (was, is) = (value(self), value(other));
            if was != is {
                found.push(format!("`{name}` {was} instead of {is}"));
            }
        }
        found
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    row: usize,
    samples: Vec<Sample>,
}

/// The file, and what is in it.
pub struct Partial {
    path: PathBuf,
    file: File,
    done: BTreeMap<usize, Vec<Sample>>,
    _claim: Claim,
}

impl Partial {
    /// The name of the file for an output.
    pub fn path(output: &Path) -> PathBuf {
        let mut name = output.as_os_str().to_owned();
        name.push(".partial");
        name.into()
    }

    /// Opens the file, or begins it where there is none (or one whose first line was never finished).
    ///
    /// # Errors
    /// [`Error::Usage`] where another run is writing it, or it is another run's, with what differs; [`Error::Format`] where it is something else.
    pub fn open(path: &Path, header: &Header) -> Result<Partial> {
        let file =
            OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("open", path))?;
        let claim = Claim::on("the unfinished output", path)?;
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let mut partial = Partial { path: path.to_path_buf(), file, done: BTreeMap::new(), _claim: claim };
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        partial.file.set_len(whole as u64).map_err(Error::io("cut", path))?;
        let mut lines = bytes[..whole].split_inclusive(|&b| b == b'\n').enumerate();
        match lines.next() {
            None => partial.write(&header)?,
            Some((_, first)) => check(path, first, header)?,
        }
        for (i, line) in lines {
            let Line { row, samples } = serde_json::from_slice(line).map_err(|e| {
                let what = format!("line {}: {e}; remove the file to start afresh", i + 1);
                Error::format(path, what)
            })?;
            partial.done.insert(row, samples);
        }
        Ok(partial)
    }

    /// The finished prompts, by row.
    pub fn done(&self) -> &BTreeMap<usize, Vec<Sample>> {
        &self.done
    }

    /// Adds a finished prompt.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, row: usize, samples: Vec<Sample>) -> Result<()> {
        let line = Line { row, samples };
        self.write(&line)?;
        self.done.insert(row, line.samples);
        Ok(())
    }

    /// One line, in one call: a process that is killed leaves it whole or cut, and never mixed with another.
    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|e| Error::format(&self.path, e.to_string()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io("write", &self.path))
    }

    /// Removes the file: its texts are elsewhere now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

fn check(path: &Path, first: &[u8], header: &Header) -> Result<()> {
    let found: Header = serde_json::from_slice(first).map_err(|e| {
        let what =
            format!("not the beginning of a `seakeep generate` ({e}); remove it, or choose another --output");
        Error::format(path, what)
    })?;
    let differences = found.differences(header);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{} was begun with {}; start it as it was begun to go on, or add --overwrite_output to start afresh",
        path.display(),
        differences.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::generate::FinishReason;

    fn header(seed: u64) -> Header {
        let Value::Object(options) = json!({"seed": seed, "top_k": 0}) else { unreachable!() };
        Header { model: "m".into(), prompts: "p".into(), options }
    }

    fn samples(tokens: &[u32]) -> Vec<Sample> {
        vec![Sample { tokens: tokens.to_vec(), finish: FinishReason::Stop }]
    }

    #[test]
    fn what_was_finished_is_there_again_and_a_torn_line_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = Partial::path(&directory.path().join("out.jsonl"));
        let mut partial = Partial::open(&path, &header(1)).unwrap();
        partial.add(5, samples(&[1, 2])).unwrap();
        partial.add(2, samples(&[3])).unwrap();
        let error = Partial::open(&path, &header(1)).err().unwrap().to_string();
        assert!(error.contains("another run is writing there"), "{error}");
        drop(partial);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut partial = Partial::open(&path, &header(1)).unwrap();
            let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(partial.done().len(), lines.saturating_sub(1), "cut at {cut}");
            for (row, tokens) in [(5, &[1, 2][..]), (2, &[3])] {
                if !partial.done().contains_key(&row) {
                    partial.add(row, samples(tokens)).unwrap();
                }
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        Partial::open(&path, &header(1)).unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn another_run_is_refused_by_what_differs_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.partial");
        Partial::open(&path, &header(1)).unwrap().add(0, samples(&[1])).unwrap();
        let before = std::fs::read(&path).unwrap();
        let other = Header { model: "n".into(), ..header(2) };
        let error = Partial::open(&path, &other).err().unwrap();
        assert!(matches!(error, Error::Usage(_)));
        let text = error.to_string();
        for part in ["a.partial was begun with another model, `seed` 1 instead of 2;", "--overwrite_output"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::write(&path, "{\"prompt\": \"x\"}\n").unwrap();
        let error = Partial::open(&path, &header(1)).err().unwrap().to_string();
        assert!(error.contains("not the beginning of a `seakeep generate`"), "{error}");
    }
}
