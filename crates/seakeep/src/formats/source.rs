//! Where a model comes from: a Hugging Face directory, a GGUF file, or an adapter to one of them, seen the same way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::adapter::{self, AdapterFiles};
use super::gguf::GgufFile;
use super::tokenizer::Tokenizer;
use super::weights::{Weights, directory_files, gguf_in};
use crate::error::{Error, Result};

/// The `model_type`s that Seakeep trains.
pub const SUPPORTED_MODEL_TYPES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox"];

/// An opened model: configuration, weights (mapped, not yet read) and tokenizer (opened when asked for).
#[derive(Debug)]
pub struct ModelSource {
    /// What was opened: a directory (an adapter's too) or a `.gguf` file.
    pub path: PathBuf,
    /// `config.json`; for GGUF the equivalent, made from the metadata.
    pub config: Value,
    /// The tensors under their Hugging Face names; with an adapter those of the model below it.
    pub weights: Weights,
    /// `generation_config.json`, where there is one.
    pub generation_config: Option<Value>,
    /// The adapter on top, where an adapter's directory was opened.
    pub adapter: Option<AdapterFiles>,
    tokenizer: OnceLock<Arc<Tokenizer>>,
}

impl ModelSource {
    /// Opens a Hugging Face directory, a `.gguf` file, a directory that holds exactly one `.gguf`
    /// and no safetensors, or the directory of a PEFT adapter, whose model is opened below it.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Io`] for missing or malformed files; [`Error::Unsupported`] for
    /// an architecture that is not in [`SUPPORTED_MODEL_TYPES`], a tensor type, or a pickle.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelSource> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::format(
                path,
                "no such file or directory; a model is a Hugging Face directory or a .gguf file on this machine (a hub name must be \
                 downloaded first)",
            ));
        }
        if path.is_dir() && AdapterFiles::are_in(path) {
            return ModelSource::open_adapter(path);
        }
        if path.is_dir() {
            return match ModelSource::lone_gguf(path)? {
                Some(gguf) => ModelSource::open_gguf(&gguf),
                None => ModelSource::open_directory(path),
            };
        }
        if path.extension().is_some_and(|e| e == "gguf") {
            return ModelSource::open_gguf(path);
        }
        // A pickle gets its own message; a single .safetensors file lacks a configuration.
        Weights::open(path)?;
        Err(Error::format(
            path,
            "a weights file without its configuration: give the directory that holds config.json",
        ))
    }

    /// The only `.gguf` of a directory that has no safetensors.
    fn lone_gguf(directory: &Path) -> Result<Option<PathBuf>> {
        let files = directory_files(directory)?;
        if files.iter().any(|f| f.to_string_lossy().contains(".safetensors"))
            || directory.join("config.json").is_file()
        {
            return Ok(None);
        }
        match gguf_in(&files).as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            many => {
                Err(Error::format(directory, format!("{} .gguf files: name the one you mean", many.len())))
            }
        }
    }

    fn open_adapter(path: &Path) -> Result<ModelSource> {
        if path.join("config.json").is_file() {
            let what = format!(
                "a model (config.json) and an adapter ({}) in one directory: move one of them elsewhere",
                adapter::CONFIG_FILE
            );
            return Err(Error::format(path, what));
        }
        let adapter = AdapterFiles::open(path)?;
        let base = adapter.base()?;
        if AdapterFiles::are_in(&base) {
            let what = format!(
                "its base {} is an adapter itself: merge that first (`seakeep merge`)",
                base.display()
            );
            return Err(Error::format(path, what));
        }
        let below = ModelSource::open(&base)?;
        Ok(ModelSource { path: path.to_path_buf(), adapter: Some(adapter), ..below })
    }

    fn open_gguf(path: &Path) -> Result<ModelSource> {
        let file = GgufFile::open(path)?;
        let config = super::gguf::config::synthesize(&file, file.architecture()?)?;
        let weights = Weights::from_gguf(file)?;
        Ok(ModelSource {
            path: path.to_path_buf(),
            config,
            weights,
            generation_config: None,
            adapter: None,
            tokenizer: OnceLock::new(),
        })
    }

    fn open_directory(path: &Path) -> Result<ModelSource> {
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            // A directory of pickles gets its own message, which helps more than "no config.json".
            Weights::open(path)?;
            return Err(Error::format(path, "no config.json: not a Hugging Face model directory"));
        }
        let config = read_json(&config_path)?;
        check_model_type(&config_path, &config)?;
        let weights = Weights::open(path)?;
        let generation_path = path.join("generation_config.json");
        let generation_config =
            if generation_path.is_file() { Some(read_json(&generation_path)?) } else { None };
        Ok(ModelSource {
            path: path.to_path_buf(),
            config,
            weights,
            generation_config,
            adapter: None,
            tokenizer: OnceLock::new(),
        })
    }

    /// `model_type` of the configuration; one of [`SUPPORTED_MODEL_TYPES`].
    pub fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// The tokenizer, opened at the first call.
    ///
    /// # Errors
    /// [`Error::Format`] where there is none, or it is malformed.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer.clone());
        }
        let own = self.path.join("tokenizer.json").is_file();
        let tokenizer = match self.weights.gguf() {
            Some(file) if !own => Tokenizer::from_gguf(file)?,
            // An adapter may leave the tokenizer to the model below it.
            None if !own && self.adapter.is_some() => Tokenizer::open(self.weights.path())?,
            _ => Tokenizer::open(&self.path)?,
        };
        Ok(self.tokenizer.get_or_init(|| Arc::new(tokenizer)).clone())
    }
}

fn check_model_type(path: &Path, config: &Value) -> Result<()> {
    let found = config.get("model_type").and_then(Value::as_str);
    let found = found.ok_or_else(|| Error::format(path, "no `model_type`, which names the architecture"))?;
    if SUPPORTED_MODEL_TYPES.contains(&found) {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("{}: the architecture (`model_type`) is `{found}`", path.display()),
        SUPPORTED_MODEL_TYPES.join(", "),
    ))
}

/// Reads a JSON file of the model directory.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::format(path, format!("not JSON: {e}")))
}
