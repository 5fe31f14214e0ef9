//! What a reference model says of rows, kept on disk from run to run.
//!
//! A directory holds one file for each model (all its weights and its configuration) and each layout of the batch. In it a
//! row goes by its tokens: prompt and completions as they are after template and truncation. So nothing in it can be
//! stale: another model has another file, another tokenizer, template, text or truncation other tokens. What is not found is
//! computed and added.
//!
//! ```text
//! reference-0123...cdef.safetensors
//!     names [2 n] U64   ends [n] U64   logps [ends[n - 1]] F64   features [n C] F32
//! ```
//! Log-probabilities are those of the batch in which the row was first scored; in a batch of another size the last bit may
//! differ.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use seakeep_kernels::gemm::Precision;

use crate::data::Rows;
use crate::formats::{Arrays, Fingerprint};
use crate::model::Model;
use crate::progress::Progress;
use crate::scoring::{PairLayout, Scores, check_lengths, score_rows};
use crate::{Error, Result};

/// Changes where the numbers do: with the format, or with what a log-probability is.
const VERSION: &str = "2";
/// Batches that are scored before what they gave is handed on.
const BATCHES: usize = 16;
/// A run that is killed loses what was scored in this time.
const SAVED_EVERY: Duration = Duration::from_secs(60);

/// What the reference says of a row.
#[derive(Clone, Debug, Default, PartialEq)]
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

/// What is on disk for one model and layout.
struct Cache {
    path: PathBuf,
    /// The name of the model's weights.
    weights: String,
    /// The rows' places in `ends`, by their names.
    places: HashMap<u128, u32>,
    /// Where the log-probabilities of each row end.
    ends: Vec<u64>,
    logps: Vec<f64>,
    /// `[rows][C]`, or none.
    features: Vec<f32>,
    /// When it was last written, as far as it has something new.
    saved: Option<Instant>,
}

impl Cache {
    /// Opens the cache in `directory`, which need not exist.
    fn open(directory: &Path, model: &Model, layout: PairLayout, with_features: bool) -> Result<Self> {
        let kind = format!("{VERSION} {layout:?} {with_features} {:?}", model.config);
        let weights = weights(model);
        let print = Fingerprint::new().field(kind.as_bytes()).field(weights.as_bytes());
        let path = directory.join(format!("reference-{}.safetensors", print.hex()));
        let mut cache = Cache {
            path,
            weights,
            places: HashMap::new(),
            ends: Vec::new(),
            logps: Vec::new(),
            features: Vec::new(),
            saved: None,
        };
        if cache.path.is_file() {
            let arrays = Arrays::read(&cache.path)?;
            cache
                .take(&arrays)
                .ok_or_else(|| Error::format(&cache.path, "no reference cache; remove the file"))?;
        }
        Ok(cache)
    }

    fn take(&mut self, arrays: &Arrays) -> Option<()> {
        let names = arrays.get::<u64>("names")?;
        self.ends = arrays.get("ends")?;
        self.logps = arrays.get("logps")?;
        self.features = arrays.get("features")?;
        let rows = self.ends.len();
        let width = self.features.len().checked_div(rows).unwrap_or(0);
        let whole = self.ends.is_sorted()
            && self.ends.last().map_or(0, |end| *end) == self.logps.len() as u64
            && (names.len(), self.features.len()) == (2 * rows, width * rows);
        let name = |pair: &[u64; 2]| u128::from(pair[0]) | u128::from(pair[1]) << 64;
        self.places = names.as_chunks::<2>().0.iter().map(name).zip(0..).collect();
        whole.then_some(())
    }

    fn get(&self, name: u128) -> Option<Known> {
        let place = *self.places.get(&name)? as usize;
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        let width = self.features.len() / self.ends.len();
        Some(Known {
            logps: self.logps[start as usize..self.ends[place] as usize].to_vec(),
            features: self.features[place * width..(place + 1) * width].to_vec(),
        })
    }

    fn insert(&mut self, name: u128, known: &Known) {
        // The same text may stand in the data twice.
        let place = u32::try_from(self.ends.len()).expect("fewer than 2^32 rows");
        if *self.places.entry(name).or_insert(place) != place {
            return;
        }
        self.logps.extend(&known.logps);
        self.features.extend(&known.features);
        self.ends.push(self.logps.len() as u64);
        self.saved.get_or_insert_with(Instant::now);
    }

    /// Writes the file, if there is something new and it is time, or has to be.
    fn save(&mut self, now: bool) -> Result<()> {
        if self.saved.is_none_or(|since| !now && since.elapsed() < SAVED_EVERY) {
            return Ok(());
        }
        self.saved = None;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        let mut names = vec![0u128; self.ends.len()];
        self.places.iter().for_each(|(name, place)| names[*place as usize] = *name);
        let mut arrays = Arrays::default();
        arrays.put("names", names.iter().flat_map(|name| [*name as u64, (name >> 64) as u64]));
        arrays.put("ends", self.ends.iter().copied());
        arrays.put("logps", self.logps.iter().copied());
        arrays.put("features", self.features.iter().copied());
        arrays.write(&self.path)
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
    layout: PairLayout,
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
        (layout, with_features): (PairLayout, bool),
        directory: Option<&Path>,
        batch_size: usize,
    ) -> Result<Self> {
        let cache = directory.map(|d| Cache::open(d, model, layout, with_features)).transpose()?;
        Ok(Reference { model, layout, with_features, batch_size, cache })
    }

    /// The name of the model's weights.
    pub(crate) fn weights(&self) -> String {
        self.cache.as_ref().map_or_else(|| weights(self.model), |cache| cache.weights.clone())
    }

    /// Hands what the model says of each of `visited` to `take`, with its place among them: first those in the cache, then the
    /// others, as they are scored.
    ///
    /// # Errors
    /// As [`score_rows`]. A cache that cannot be written is only remarked on.
    pub fn score(
        &mut self,
        rows: &Rows,
        visited: &[usize],
        progress: &mut dyn Progress,
        take: &mut dyn FnMut(usize, Known),
    ) -> Result<()> {
        let names = match &self.cache {
            Some(_) => visited.par_iter().map(|&i| rows.name(i)).collect::<Result<Vec<u128>>>()?,
            None => Vec::new(),
        };
        let known = |i: usize| self.cache.as_ref()?.get(names[i]);
        let mut missing = Vec::new();
        for i in 0..visited.len() {
            match known(i) {
                Some(known) => take(i, known),
                None => missing.push(i),
            }
        }
        let known = visited.len() - missing.len();
        if known > 0 {
            progress.note(&format!(
                "{known} of {} rows: the reference's log-probabilities are known from before",
                visited.len()
            ));
            progress.advance(known as u64, "");
        }
        // Those that cannot be scored are found before hours have passed.
        let of = |part: &[usize]| part.iter().map(|&i| visited[i]).collect::<Vec<usize>>();
        check_lengths(&self.model.config, rows, &of(&missing))?;
        for part in missing.chunks(self.batch_size * BATCHES) {
            let (how, size) = (self.layout, self.batch_size);
            let scores = score_rows(self.model, (rows, &of(part)), how, self.with_features, size, progress)?;
            for (&i, known) in part.iter().zip(Known::of(&scores)) {
                self.cache.iter_mut().for_each(|cache| cache.insert(names[i], &known));
                take(i, known);
            }
            self.save(false, progress);
        }
        self.save(true, progress);
        Ok(())
    }

    /// What the model says of `visited`, in their order.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn known(
        &mut self,
        rows: &Rows,
        visited: &[usize],
        progress: &mut dyn Progress,
    ) -> Result<Vec<Known>> {
        let mut found = vec![Known::default(); visited.len()];
        self.score(rows, visited, progress, &mut |i, known| found[i] = known)?;
        Ok(found)
    }

    fn save(&mut self, now: bool, progress: &mut dyn Progress) {
        if let Some(Err(e)) = self.cache.as_mut().map(|cache| cache.save(now)) {
            progress.note(&format!("the reference's log-probabilities are not kept for other runs: {e}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Branch, Labels, Role, TokenizedPair};
    use crate::progress::Silent;
    use std::sync::Arc;

    fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> TokenizedPair {
        let branch = |role, completion: &[u32]| Branch {
            role,
            completion: completion.to_vec(),
            prompt_skip: 0,
            truncated: 0,
            cut: Vec::new(),
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
            let directory = Some(directory.path());
            let mut reference = Reference::open(model, (PairLayout::PLAIN, features), directory, 2).unwrap();
            let visited: Vec<usize> = (0..rows.len()).collect();
            reference.known(&Rows::of(rows).unwrap(), &visited, &mut Silent).unwrap()
        };
        let first = ask(&model(1), &rows, false);
        let files = || std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!((ask(&model(1), &rows, false), files()), (first.clone(), 1));
        // The file is what is read: a number changed there is the number given.
        let path = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        let mut arrays = Arrays::read(&path).unwrap();
        let logps = arrays.get::<f64>("logps").unwrap();
        arrays.put("logps", logps.iter().enumerate().map(|(i, l)| if i == 0 { -7.5 } else { *l }));
        arrays.write(&path).unwrap();
        assert!(ask(&model(1), &rows, false).iter().any(|known| known.logps[0] == -7.5));
        // A row more is added; another model, and features, have files of their own.
        let more = [rows[0].clone(), pair(&[1], &[2, 3], &[4, 5])];
        assert_eq!(ask(&model(1), &more, false).len(), 2);
        assert_eq!(Arrays::read(&path).unwrap().get::<u64>("ends").unwrap(), [2, 4, 6]);
        assert_ne!(ask(&model(2), &rows, false), first);
        assert_eq!(ask(&model(1), &rows, true)[0].features.len(), 8);
        assert_eq!(files(), 3);
        // The boundary of the prompt is part of a row.
        let name = |pair: TokenizedPair| pair.fingerprint().hex();
        assert_ne!(name(pair(&[1, 2], &[3], &[4])), name(pair(&[1], &[2, 3], &[2, 4])));
    }

    #[test]
    fn a_broken_file_is_an_error_and_an_unwritable_place_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (model, row) = (model(1), pair(&[1, 2], &[3], &[4]));
        let ask = |directory: &Path| {
            let mut reference = Reference::open(&model, (PairLayout::PLAIN, false), Some(directory), 1)?;
            reference.known(&Rows::of(std::slice::from_ref(&row))?, &[0], &mut Silent)
        };
        ask(directory.path()).unwrap();
        let path = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() - 1] ^= 1;
        for content in [&flipped[..], &bytes[..bytes.len() - 1], b"what\n"] {
            std::fs::write(&path, content).unwrap();
            let message = ask(directory.path()).unwrap_err().to_string();
            assert!(message.contains("reference-") && message.contains("remove the file"), "{message}");
        }
        assert_eq!(ask(Path::new("/proc/nowhere")).unwrap().len(), 1);
    }
}
