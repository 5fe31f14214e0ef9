//! A checkpoint's tensors under their Hugging Face names, whatever file they come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seakeep_kernels::blocks::Blocks;
use seakeep_kernels::stored::Stored;

use super::gguf::tensors::{Layout, laid_out_shape, lay_out, map_tensor};
use super::gguf::{self, GgufFile};
use super::safetensors::{INDEX_FILE, SINGLE_FILE, SafeTensorsFiles};
use crate::error::{Error, Result};

/// Endings of files that are (or may be) Python pickles.
const PICKLE_EXTENSIONS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// The tensors of an opened checkpoint: mapped, read on demand.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    SafeTensors(SafeTensorsFiles),
    Gguf { file: Box<GgufFile>, tensors: BTreeMap<String, GgufEntry> },
}

/// A GGUF tensor seen as a Hugging Face one.
#[derive(Debug)]
struct GgufEntry {
    gguf_name: String,
    layout: Layout,
    shape: Vec<usize>,
}

impl Weights {
    /// Opens a `.safetensors` file, an index of shards, a `.gguf` file, or a directory that holds one
    /// of these.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for pickles (`pytorch_model.bin`, `.pt`, `.pth`, `.ckpt`);
    /// [`Error::Format`] for anything cut short or malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        if path.is_dir() {
            return Weights::open_directory(path);
        }
        if !path.exists() {
            return Err(Error::format(path, "no such file or directory"));
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let backing = match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => Backing::SafeTensors(SafeTensorsFiles::open(path)?),
            Some("gguf") => gguf_backing(GgufFile::open(path)?)?,
            Some("json") if name.ends_with(".index.json") => {
                Backing::SafeTensors(SafeTensorsFiles::open_index(path)?)
            }
            Some(extension) if PICKLE_EXTENSIONS.contains(&extension) => return Err(refuse_pickle(path)),
            _ => {
                return Err(Error::unsupported(
                    format!("{}: not a checkpoint by its name", path.display()),
                    "a Hugging Face directory, .safetensors, .safetensors.index.json, .gguf",
                ));
            }
        };
        Ok(Weights { path: path.to_path_buf(), backing })
    }

    fn open_directory(path: &Path) -> Result<Weights> {
        let backing = if path.join(SINGLE_FILE).is_file() {
            Backing::SafeTensors(SafeTensorsFiles::open(path.join(SINGLE_FILE))?)
        } else if path.join(INDEX_FILE).is_file() {
            Backing::SafeTensors(SafeTensorsFiles::open_index(path.join(INDEX_FILE))?)
        } else {
            let files = directory_files(path)?;
            match gguf_in(&files).as_slice() {
                [one] => gguf_backing(GgufFile::open(one)?)?,
                [] => return Err(no_weights(path, &files)),
                many => {
                    return Err(Error::format(
                        path,
                        format!("{} .gguf files and no {SINGLE_FILE}: name the one you mean", many.len()),
                    ));
                }
            }
        };
        Ok(Weights { path: path.to_path_buf(), backing })
    }

    /// Wraps an opened GGUF file.
    pub(crate) fn from_gguf(file: GgufFile) -> Result<Weights> {
        Ok(Weights { path: file.path().to_path_buf(), backing: gguf_backing(file)? })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The GGUF file behind these weights, if it is one.
    pub(crate) fn gguf(&self) -> Option<&GgufFile> {
        match &self.backing {
            Backing::Gguf { file, .. } => Some(file),
            Backing::SafeTensors(_) => None,
        }
    }

    /// Tensor names (Hugging Face's) in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        match &self.backing {
            Backing::SafeTensors(files) => files.names().collect(),
            Backing::Gguf { tensors, .. } => tensors.keys().map(String::as_str).collect(),
        }
    }

    /// Row-major shape of a tensor (Hugging Face's layout), `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.backing {
            Backing::SafeTensors(files) => files.shape(name),
            Backing::Gguf { tensors, .. } => tensors.get(name).map(|entry| entry.shape.as_slice()),
        }
    }

    /// How a tensor is stored, as its file spells it (`F32`, `BF16`, `Q4_1`, ...), `None` if there is no such tensor.
    pub fn type_name(&self, name: &str) -> Option<String> {
        match &self.backing {
            Backing::SafeTensors(files) => files.type_name(name),
            Backing::Gguf { file, tensors } => {
                file.tensor(&tensors.get(name)?.gguf_name).map(|info| format!("{:?}", info.ggml_type))
            }
        }
    }

    /// The file a tensor is in, `None` if there is no such tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        match &self.backing {
            Backing::SafeTensors(files) => files.path_of(name),
            Backing::Gguf { file, tensors } => tensors.contains_key(name).then(|| file.path()),
        }
    }

    /// The values of a tensor, row-major, converted or dequantised to f32.
    ///
    /// # Errors
    /// [`Error::Format`] where there is no such tensor, [`Error::Unsupported`] for its type,
    /// [`Error::NonFinite`] where a value is NaN or infinite: such a checkpoint is broken, and training
    /// from it would only show that later and less clearly.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::format(&self.path, format!("no tensor `{name}` in the checkpoint"));
        let values = match &self.backing {
            Backing::SafeTensors(files) => files.read_f32(name)?.ok_or_else(missing)?,
            Backing::Gguf { file, tensors } => {
                let entry = tensors.get(name).ok_or_else(missing)?;
                let shape = file.tensor(&entry.gguf_name).map(|info| info.shape.as_slice()).unwrap_or(&[]);
                lay_out(entry.layout, shape, file.dequantize(&entry.gguf_name)?)
            }
        };
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => Err(self.not_finite(name, (i, values[i]), values.len())),
        }
    }

    fn not_finite(&self, name: &str, (i, value): (usize, f32), len: usize) -> Error {
        Error::NonFinite(format!(
            "{}: tensor `{name}` holds {value} at position {i} of {len}: the checkpoint is broken (a diverged run, \
             or a conversion to a type that was too narrow); use another one",
            self.path_of(name).unwrap_or(&self.path).display(),
        ))
    }

    /// A tensor as it is stored, where products can take it so: quantised blocks along its rows, or bf16; otherwise in f32.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32).
    pub fn read(&self, name: &str) -> Result<Stored> {
        let found = match &self.backing {
            Backing::SafeTensors(files) => files.read_bf16(name).map(Stored::Bf16),
            Backing::Gguf { file, tensors } => tensors.get(name).and_then(|entry| {
                let info = file.tensor(&entry.gguf_name)?;
                if let Some(values) = file.read_bf16(&entry.gguf_name) {
                    return Some(Stored::Bf16(lay_out(entry.layout, &info.shape, values)));
                }
                if info.ggml_type.block().0 == 1 || entry.layout == Layout::Transpose || info.shape.len() != 2
                {
                    return None;
                }
                let bytes = file.bytes(&entry.gguf_name)?;
                Some(Stored::Blocks(Blocks::new(info.ggml_type, lay_out(entry.layout, &info.shape, bytes))))
            }),
        };
        let Some(stored) = found else { return self.read_f32(name).map(Stored::F32) };
        match stored.not_finite() {
            None => Ok(stored),
            Some(found) => Err(self.not_finite(name, found, stored.elements().len())),
        }
    }
}

fn gguf_backing(file: GgufFile) -> Result<Backing> {
    let arch = file.architecture()?;
    let heads = gguf::config::heads(&file, arch)?;
    let mut tensors = BTreeMap::new();
    for gguf_name in file.tensor_names() {
        let Some((name, layout)) = map_tensor(&file, arch, heads, gguf_name)? else { continue };
        let raw = file.tensor(gguf_name).map(|info| info.shape.as_slice()).unwrap_or(&[]);
        let shape = laid_out_shape(layout, raw)
            .map_err(|what| Error::format(file.path(), format!("tensor `{gguf_name}` {what}")))?;
        tensors.insert(name, GgufEntry { gguf_name: gguf_name.to_string(), layout, shape });
    }
    Ok(Backing::Gguf { file: Box::new(file), tensors })
}

/// The plain files of a directory, sorted.
pub(crate) fn directory_files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?.path();
        if entry.is_file() {
            files.push(entry);
        }
    }
    files.sort();
    Ok(files)
}

/// Those of `files` that end in `.gguf`.
pub(crate) fn gguf_in(files: &[PathBuf]) -> Vec<PathBuf> {
    files.iter().filter(|f| f.extension().is_some_and(|e| e == "gguf")).cloned().collect()
}

fn no_weights(path: &Path, files: &[PathBuf]) -> Error {
    let pickle = files.iter().find(|f| {
        let weights =
            f.file_stem().is_some_and(|s| s != "training_args" && s != "optimizer" && s != "scheduler");
        weights && f.extension().and_then(|e| e.to_str()).is_some_and(|e| PICKLE_EXTENSIONS.contains(&e))
    });
    match pickle {
        Some(file) => refuse_pickle(file),
        None => Error::format(
            path,
            format!(
                "no weights here: expected {SINGLE_FILE}, {INDEX_FILE} with its shards, or one .gguf file"
            ),
        ),
    }
}

fn refuse_pickle(path: &Path) -> Error {
    Error::unsupported(
        format!(
            "{}: a pickle, which can run any code when it is read, so it is never opened. Convert it once, in a \
             place you trust: python -c \"from transformers import AutoModelForCausalLM as M; \
             M.from_pretrained('DIR').save_pretrained('OUT')\" writes model.safetensors",
            path.display()
        ),
        "model.safetensors (one file or shards), .gguf",
    )
}
