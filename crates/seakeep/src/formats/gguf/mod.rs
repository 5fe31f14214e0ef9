//! GGUF, read by hand: versions 2 and 3, little endian.
//!
//! The file is mapped, and its header parsed once with every read checked against the map. Tensors
//! are dequantised on demand ([`seakeep_kernels::blocks`]), named and laid out as in the Hugging Face checkpoint the
//! file was made from ([`tensors`]), and so are the configuration ([`config`]) and the tokenizer
//! ([`tokenizer`]).

pub mod config;
mod header;
pub mod tensors;
pub mod tokenizer;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::Mmap;

pub use header::{
    MAX_ALIGNMENT, MAX_ARRAY_ITEMS, MAX_DIMS, MAX_METADATA, MAX_NESTING, MAX_STRING_BYTES, MAX_TENSORS, Value,
};
pub use seakeep_kernels::blocks::GgmlType;
use seakeep_kernels::blocks::dequantize;

use super::mapped;
use crate::error::{Error, Result};

/// Where a tensor's bytes are, and what they are.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Row-major shape, outermost dimension first (the reverse of GGUF's `ne`).
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub ggml_type: GgmlType,
    /// Its bytes in the file.
    bytes: Range<usize>,
}

/// An opened GGUF file: its metadata, and its tensors under their GGUF names.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl GgufFile {
    /// Maps and parses `path`.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is not GGUF, cut short, or over a limit;
    /// [`Error::Unsupported`] for a tensor type that cannot be dequantised here.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufFile> {
        let path = path.as_ref().to_path_buf();
        let map = mapped::open(&path)?;
        let header::Header { metadata, tensors } = header::parse(&path, &map)?;
        Ok(GgufFile { path, map, metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Metadata value, if present.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Metadata value of `key` as an unsigned integer; `None` where absent.
    pub fn get_usize(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| {
                value.as_usize().ok_or_else(|| self.wrong_type(key, "a non-negative integer", value))
            })
            .transpose()
    }

    /// Metadata value of `key` as a floating point number; `None` where absent.
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| self.wrong_type(key, "a finite number", value)))
            .transpose()
    }

    /// Metadata value of `key` as a string; `None` where absent.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key)
            .map(|value| match value {
                Value::String(text) => Ok(text.as_str()),
                other => Err(self.wrong_type(key, "a string", other)),
            })
            .transpose()
    }

    /// Metadata value of `key` as a boolean; `None` where absent.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| match value {
                Value::Bool(flag) => Ok(*flag),
                other => Err(self.wrong_type(key, "a boolean", other)),
            })
            .transpose()
    }

    /// Metadata value of `key` as an array; `None` where absent.
    pub fn get_array(&self, key: &str) -> Result<Option<&[Value]>> {
        self.get(key)
            .map(|value| match value {
                Value::Array(items) => Ok(items.as_slice()),
                other => Err(self.wrong_type(key, "an array", other)),
            })
            .transpose()
    }

    /// Metadata value of `key` as an array of strings; `None` where absent.
    pub fn get_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(items) = self.get_array(key)? else { return Ok(None) };
        let texts = items.iter().map(|item| match item {
            Value::String(text) => Ok(text.as_str()),
            other => Err(self.wrong_type(key, "an array of strings", other)),
        });
        texts.collect::<Result<_>>().map(Some)
    }

    /// Tensor names (GGUF's) in alphabetical order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is known of a tensor, by its GGUF name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The values of a tensor, dequantised to f32, in the file's own layout.
    pub fn dequantize(&self, name: &str) -> Result<Vec<f32>> {
        let info = self
            .tensor(name)
            .ok_or_else(|| Error::format(&self.path, format!("no tensor named `{name}` in the file")))?;
        let mut values = vec![0.0; info.shape.iter().product()];
        mapped::read(&self.map, info.bytes.clone(), |bytes| dequantize(info.ggml_type, bytes, &mut values));
        Ok(values)
    }

    /// The bytes of a tensor, as they are stored.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        Some(mapped::copy(&self.map, self.tensor(name)?.bytes.clone()))
    }

    /// The values of a tensor that is stored in bf16, as they are.
    pub fn read_bf16(&self, name: &str) -> Option<Vec<bf16>> {
        let info = self.tensor(name).filter(|info| info.ggml_type == GgmlType::BF16)?;
        Some(mapped::numbers(&self.map, info.bytes.clone(), bf16::from_le_bytes))
    }

    /// The architecture the file states, or an error that lists what is supported.
    pub fn architecture(&self) -> Result<tensors::Arch> {
        let name = self.get_str("general.architecture")?.ok_or_else(|| {
            Error::format(&self.path, "no `general.architecture` in the metadata: is this a model file?")
        })?;
        tensors::Arch::from_gguf(name).ok_or_else(|| {
            Error::unsupported(
                format!("{}: the GGUF architecture is `{name}`", self.path.display()),
                tensors::Arch::SUPPORTED,
            )
        })
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::format(
            &self.path,
            format!("metadata `{key}` is {}, expected {expected}: the file is malformed", found.kind()),
        )
    }
}
