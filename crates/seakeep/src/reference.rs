//! What a reference model says of rows, kept on disk from run to run.
//!
//! A directory holds one file for each model (all its weights and its configuration) and each layout of the batch. In it a
//! row goes by its tokens: prompt and completions as they are after template and truncation. So nothing in it can be
//! stale: another model has another file, another tokenizer, template, text or truncation other tokens. What is not found is
//! computed and added.
//!
//! ```text
//! reference-0123...cdef.jsonl
//!     {"row": "89ab...", "logps": [-12.5, -31.25], "features": []}
//! ```
//! Log-probabilities are those of the batch in which the row was first scored; in a batch of another size the last bit may
//! differ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::TokenizedPair;
use crate::formats::{Fingerprint, write_atomic};
use seakeep_kernels::gemm::Precision;

use crate::model::Model;
use crate::progress::Progress;
use crate::scoring::{Layout, Scores, score};
use crate::{Error, Result};

/// Changes where the numbers do: with the format, or with what a log-probability is.
const VERSION: &str = "1";

/// What the reference says of a row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Log-probabilities of its branches, nats.
    pub logps: Vec<f64>,
    /// Mean last hidden state over its prompt, `[C]`; empty where it was not asked for.
    pub features: Vec<f32>,
}

impl Known {
    /// Of every scored row.
    pub fn of(scores: &Scores) -> Vec<Known> {
        let features = |i: usize| scores.features.get(i).cloned().unwrap_or_default();
        scores
            .logps
            .0
            .iter()
            .enumerate()
            .map(|(i, l)| Known { logps: l.clone(), features: features(i) })
            .collect()
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line<Row, What> {
    row: Row,
    #[serde(flatten)]
    known: What,
}

/// What is on disk for one model and layout.
struct Cache {
    path: PathBuf,
    /// By the name of the row; sorted, as they stand in the file.
    rows: BTreeMap<String, Known>,
}

impl Cache {
    /// Opens the cache in `directory`, which need not exist.
    fn open(directory: &Path, model: &Model, layout: Layout, with_features: bool) -> Result<Self> {
        let kind = format!("{VERSION} {layout:?} {with_features} {:?}", model.config);
        let print = Fingerprint::new().field(kind.as_bytes()).field(weights(model).as_bytes());
        let path = directory.join(format!("reference-{}.jsonl", print.hex()));
        let mut rows = BTreeMap::new();
        if path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            for (i, line) in text.lines().enumerate() {
                let line: Line<String, Known> = serde_json::from_str(line).map_err(|e| {
                    Error::format(
                        &path,
                        format!("line {} is no row of a reference cache ({e}); remove the file", i + 1),
                    )
                })?;
                rows.insert(line.row, line.known);
            }
        }
        Ok(Cache { path, rows })
    }

    /// Writes the file, which appears whole or not at all.
    fn save(&self) -> Result<()> {
        let mut text = String::new();
        for (row, known) in &self.rows {
            let line = serde_json::to_string(&Line { row, known });
            text += &line.map_err(|e| Error::format(&self.path, e.to_string()))?;
            text.push('\n');
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        write_atomic(&self.path, text.as_bytes())
    }
}

/// All weights of a model, and what it computes in. In words and in parts, so that gigabytes take seconds.
pub(crate) fn weights(model: &Model) -> String {
    const PART: usize = 1 << 20;
    let mut print = Fingerprint::new();
    for tensor in model.weights.iter() {
        let elements = tensor.elements();
        let of_part = |first: usize| {
            let mut part = vec![0.0; PART.min(elements.len() - first)];
            elements.read(first, &mut part);
            Fingerprint::new().words(part.iter().map(|x| x.to_bits())).hex()
        };
        let parts: Vec<String> =
            (0..elements.len().div_ceil(PART)).into_par_iter().map(|i| of_part(i * PART)).collect();
        print = parts.iter().fold(print, |print, part| print.field(part.as_bytes()));
    }
    if model.weights.precision == Precision::Bf16 {
        print = print.field(b"bf16");
    }
    print.hex()
}

/// A reference model, and what it is known to say.
pub struct Reference<'a> {
    model: &'a Model,
    layout: Layout,
    with_features: bool,
    batch_size: usize,
    cache: Option<Cache>,
}

impl<'a> Reference<'a> {
    /// With the cache in `directory`, if there is one, which need not exist; `batch_size` pairs are scored at a time.
    ///
    /// # Errors
    /// A file in the cache that is not what this module writes.
    pub fn open(
        model: &'a Model,
        (layout, with_features): (Layout, bool),
        directory: Option<&Path>,
        batch_size: usize,
    ) -> Result<Self> {
        let cache = directory.map(|d| Cache::open(d, model, layout, with_features)).transpose()?;
        Ok(Reference { model, layout, with_features, batch_size, cache })
    }

    /// What the model says of `pairs`, in their order: from the cache, and by scoring what is not there.
    ///
    /// # Errors
    /// As [`score`]. A cache that cannot be written is only remarked on.
    pub fn score(&mut self, pairs: &[&TokenizedPair], progress: &mut dyn Progress) -> Result<Vec<Known>> {
        let fresh = |pairs: &[&TokenizedPair], progress: &mut dyn Progress| {
            let scores =
                score(self.model, pairs, self.layout, self.with_features, self.batch_size, progress)?;
            Ok(Known::of(&scores))
        };
        let Some(cache) = &mut self.cache else { return fresh(pairs, progress) };
        let name = |pair: &&TokenizedPair| pair.fingerprint(Fingerprint::new()).hex();
        let names: Vec<String> = pairs.par_iter().map(name).collect();
        let missing: Vec<usize> = (0..pairs.len()).filter(|&i| !cache.rows.contains_key(&names[i])).collect();
        let known = pairs.len() - missing.len();
        if known > 0 {
            progress.note(&format!(
                "{known} of {} rows: the reference's log-probabilities are known from before",
                pairs.len()
            ));
            progress.advance(known as u64, "");
        }
        if !missing.is_empty() {
            let rows: Vec<&TokenizedPair> = missing.iter().map(|&i| pairs[i]).collect();
            cache.rows.extend(missing.iter().map(|&i| names[i].clone()).zip(fresh(&rows, progress)?));
            if let Err(e) = cache.save() {
                progress.note(&format!("the reference's log-probabilities are not kept for other runs: {e}"));
            }
        }
        Ok(names.iter().map(|name| cache.rows[name].clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Branch, Labels, Role};
    use crate::progress::Silent;
    use std::sync::Arc;

    fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> TokenizedPair {
        let branch = |role, completion: &[u32]| Branch {
            role,
            completion: completion.to_vec(),
            prompt_skip: 0,
            truncated: 0,
        };
        TokenizedPair {
            file: Arc::from(Path::new("d")),
            row: 1,
            index: 0,
            prompt: prompt.to_vec(),
            branches: vec![branch(Role::Chosen, chosen), branch(Role::Rejected, rejected)],
            labels: Labels::default(),
            backed_off: 0,
        }
    }

    fn model(seed: u64) -> Model {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32
        });
        Model::random(&config, seed).unwrap()
    }

    #[test]
    fn a_row_is_scored_once_and_another_model_or_text_anew() {
        let directory = tempfile::tempdir().unwrap();
        let rows = [pair(&[1, 2], &[3], &[4, 5]), pair(&[1, 2], &[3, 3], &[4])];
        let ask = |model: &Model, rows: &[TokenizedPair], features: bool| {
            let rows: Vec<&TokenizedPair> = rows.iter().collect();
            let directory = Some(directory.path());
            let mut reference = Reference::open(model, (Layout::PLAIN, features), directory, 2).unwrap();
            reference.score(&rows, &mut Silent).unwrap()
        };
        let first = ask(&model(1), &rows, false);
        let files = || std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!((ask(&model(1), &rows, false), files()), (first.clone(), 1));
        // The file is what is read: a number changed there is the number given.
        let path = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        lines[0]["logps"][0] = serde_json::json!(-7.5);
        std::fs::write(&path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
        assert!(ask(&model(1), &rows, false).iter().any(|known| known.logps[0] == -7.5));
        // A row more is added; another model, and features, have files of their own.
        let more = [rows[0].clone(), pair(&[1], &[2, 3], &[4, 5])];
        assert_eq!(ask(&model(1), &more, false).len(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
        assert_ne!(ask(&model(2), &rows, false), first);
        assert_eq!(ask(&model(1), &rows, true)[0].features.len(), 8);
        assert_eq!(files(), 3);
        // The boundary of the prompt is part of a row.
        let name = |pair: TokenizedPair| pair.fingerprint(Fingerprint::new()).hex();
        assert_ne!(name(pair(&[1, 2], &[3], &[4])), name(pair(&[1], &[2, 3], &[2, 4])));
    }

    #[test]
    fn a_broken_file_is_an_error_and_an_unwritable_place_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (model, row) = (model(1), pair(&[1, 2], &[3], &[4]));
        let ask = |directory: &Path| {
            let mut reference = Reference::open(&model, (Layout::PLAIN, false), Some(directory), 1)?;
            reference.score(&[&row], &mut Silent)
        };
        ask(directory.path()).unwrap();
        let path = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&path, "{\"row\": 1}\n").unwrap();
        let message = ask(directory.path()).unwrap_err().to_string();
        assert!(message.contains("line 1") && message.contains("remove the file"), "{message}");
        assert_eq!(ask(Path::new("/proc/nowhere")).unwrap().len(), 1);
    }
}
