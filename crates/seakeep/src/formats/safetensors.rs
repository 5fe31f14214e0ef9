//! Safetensors files: one, or several with an index; read through a map, written atomically.
//!
//! The `safetensors` crate parses and checks the header (it is the format's own implementation, with
//! its limits); this module adds the shards, the types, and messages that say which file and tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};

use super::atomic::try_write_atomic_with;
use super::mapped::{self, numbers};
use crate::error::{Error, Result};

/// The name of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of a sharded checkpoint's index.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// For error messages.
pub const SUPPORTED_DTYPES: &str = "F32, F16, BF16, F64";
/// Most shards accepted (the largest public checkpoints have fewer than 200).
pub const MAX_SHARDS: usize = 4096;

/// A tensor's place.
#[derive(Clone, Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Opened safetensors files, tensors by name.
#[derive(Debug)]
pub struct SafeTensorsFiles {
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

impl SafeTensorsFiles {
    /// Opens one file.
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensorsFiles> {
        let mut files = SafeTensorsFiles { shards: Vec::new(), tensors: BTreeMap::new() };
        files.add_shard(path.as_ref())?;
        Ok(files)
    }

    /// Opens the shards that an index names, and checks that each tensor is in the shard it says.
    pub fn open_index(index: impl AsRef<Path>) -> Result<SafeTensorsFiles> {
        let index = index.as_ref();
        let weight_map = read_index(index)?;
        let directory = index.parent().unwrap_or(Path::new("."));
        let mut shard_names: Vec<&String> = weight_map.values().collect();
        shard_names.sort();
        shard_names.dedup();
        if shard_names.len() > MAX_SHARDS {
            return Err(Error::format(
                index,
                format!("{} shards, more than the limit of {MAX_SHARDS}", shard_names.len()),
            ));
        }
        let mut files = SafeTensorsFiles { shards: Vec::new(), tensors: BTreeMap::new() };
        for name in shard_names {
            // An index is foreign: a name that leaves the directory is refused.
            if Path::new(name).components().count() != 1 || name.contains("..") {
                return Err(Error::format(
                    index,
                    format!("`{name}` is not the name of a file beside the index"),
                ));
            }
            let shard = directory.join(name);
            if !shard.is_file() {
                return Err(Error::format(
                    index,
                    format!("shard `{name}` is missing: download the checkpoint again"),
                ));
            }
            files.add_shard(&shard)?;
        }
        for (tensor, shard) in &weight_map {
            let found = files.tensors.get(tensor).map(|entry| &files.shards[entry.shard].0);
            if found.and_then(|path| path.file_name()) != Some(shard.as_ref()) {
                return Err(Error::format(
                    index,
                    format!("tensor `{tensor}` should be in `{shard}`, and is not"),
                ));
            }
        }
        Ok(files)
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let map = mapped::open(path)?;
        let shard = self.shards.len();
        let parsed = SafeTensors::deserialize(&map).map_err(|e| explain(path, &map, &e))?;
        for (name, view) in parsed.iter() {
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let entry = Entry {
                shard,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: start..start + view.data().len(),
            };
            if let Some(before) = self.tensors.insert(name.to_string(), entry) {
                let other = self.shards.get(before.shard).map_or(path, |(p, _)| p);
                return Err(Error::format(path, format!("tensor `{name}` is also in {}", other.display())));
            }
        }
        self.shards.push((path.to_path_buf(), map));
        Ok(())
    }

    /// Tensor names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape, row-major.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// How a tensor is stored, such as `BF16`.
    pub fn type_name(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|entry| format!("{:?}", entry.dtype))
    }

    /// The file a tensor is in.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|entry| self.shards[entry.shard].0.as_path())
    }

    /// The values, as f32. `Ok(None)` where there is no such tensor.
    pub fn read_f32(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let (path, map) = &self.shards[entry.shard];
        let values = match entry.dtype {
            Dtype::F32 => numbers(map, entry.bytes.clone(), f32::from_le_bytes),
            Dtype::F16 => numbers(map, entry.bytes.clone(), |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => numbers(map, entry.bytes.clone(), |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => numbers(map, entry.bytes.clone(), |b| f64::from_le_bytes(b) as f32),
            other => {
                return Err(Error::unsupported(
                    format!("{}: tensor `{name}` has type {other:?}", path.display()),
                    SUPPORTED_DTYPES,
                ));
            }
        };
        Ok(Some(values))
    }
}

impl SafeTensorsFiles {
    /// The values of a tensor that is stored in bf16.
    pub fn read_bf16(&self, name: &str) -> Option<Vec<bf16>> {
        let entry = self.tensors.get(name).filter(|entry| entry.dtype == Dtype::BF16)?;
        Some(numbers(&self.shards[entry.shard].1, entry.bytes.clone(), bf16::from_le_bytes))
    }
}

fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read(index).map_err(Error::io("read", index))?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| Error::format(index, format!("not JSON: {e}")))?;
    let map = json.get("weight_map").and_then(|m| m.as_object()).filter(|m| !m.is_empty());
    let map =
        map.ok_or_else(|| Error::format(index, "no `weight_map`, expected an object from tensor to shard"))?;
    map.iter()
        .map(|(tensor, shard)| {
            let shard = shard.as_str().ok_or_else(|| {
                Error::format(
                    index,
                    format!("`weight_map` of `{tensor}` is {shard}, expected the name of a file"),
                )
            })?;
            Ok((tensor.clone(), shard.to_string()))
        })
        .collect()
}

/// What the crate found, in words that help.
fn explain(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    let again = "it was cut short or is not a safetensors file; download or copy it again";
    if bytes.starts_with(b"version https://git-lfs") {
        return Error::format(path, "a Git LFS pointer, not the file itself: run `git lfs pull`");
    }
    let what = match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            format!("the file ({} bytes) ends inside its header: {again}", bytes.len())
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("the file ({} bytes) has not the length its header states: {again}", bytes.len())
        }
        other => format!("malformed safetensors header ({other}): {again}"),
    };
    Error::format(path, what)
}

/// What a checkpoint's values are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveDtype {
    /// 32-bit float: exact.
    F32,
    /// 16-bit float: values beyond 65,504 are refused.
    F16,
    /// bfloat16: rounded to nearest, ties to even.
    BF16,
}

impl SaveDtype {
    /// The name in `config.json` (`dtype`).
    pub fn torch_name(self) -> &'static str {
        match self {
            SaveDtype::F32 => "float32",
            SaveDtype::F16 => "float16",
            SaveDtype::BF16 => "bfloat16",
        }
    }

    fn header_name(self) -> &'static str {
        match self {
            SaveDtype::F32 => "F32",
            SaveDtype::F16 => "F16",
            SaveDtype::BF16 => "BF16",
        }
    }

    fn bytes(self) -> usize {
        if self == SaveDtype::F32 { 4 } else { 2 }
    }
}

/// Writes `tensors` (name, row-major shape, values) to `path`, atomically.
///
/// # Errors
/// As [`write_safetensors_by`].
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(&str, &[usize], &[f32])],
    dtype: SaveDtype,
) -> Result<()> {
    let shapes: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape, _)| (*name, *shape)).collect();
    write_safetensors_by(path, &shapes, dtype, |i| Cow::Borrowed(tensors[i].2))
}

/// Writes `tensors` (name, row-major shape) to `path`, atomically, asking for the values of one after another, so that no more than
/// one need be there at a time.
///
/// # Errors
/// [`Error::NonFinite`] for NaN or infinity (after conversion to `dtype`), [`Error::Usage`] for a
/// shape that does not fit its values or a name given twice, [`Error::Io`]. Nothing is left under `path` then but what was there.
pub fn write_safetensors_by<'v>(
    path: impl AsRef<Path>,
    tensors: &[(&str, &[usize])],
    dtype: SaveDtype,
    mut values: impl FnMut(usize) -> Cow<'v, [f32]>,
) -> Result<()> {
    let path = path.as_ref();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut offset = 0usize;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bytes();
        let entry =
            serde_json::json!({"dtype": dtype.header_name(), "shape": shape, "data_offsets": [offset, end]});
        if header.insert(name.to_string(), entry).is_some() {
            return Err(Error::Usage(format!("tensor `{name}` is given twice")));
        }
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    try_write_atomic_with(path, |writer| {
        let start = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        writer.write_all(&start).map_err(Error::io("write", path))?;
        for (i, (name, shape)) in tensors.iter().enumerate() {
            let values = values(i);
            check(name, shape, &values, dtype)?;
            write_values(writer, &values, dtype).map_err(Error::io("write", path))?;
        }
        Ok(())
    })
}

fn check(name: &str, shape: &[usize], values: &[f32], dtype: SaveDtype) -> Result<()> {
    if shape.iter().product::<usize>() != values.len() {
        let what = format!("tensor `{name}` has shape {shape:?} but {} values", values.len());
        return Err(Error::Usage(what));
    }
    check_finite(name, values, dtype)
}

fn check_finite(name: &str, values: &[f32], dtype: SaveDtype) -> Result<()> {
    let finite = |x: f32| match dtype {
        SaveDtype::F32 => x.is_finite(),
        SaveDtype::F16 => f16::from_f32(x).is_finite(),
        SaveDtype::BF16 => bf16::from_f32(x).is_finite(),
    };
    match values.iter().position(|&x| !finite(x)) {
        None => Ok(()),
        Some(i) => Err(Error::NonFinite(format!(
            "tensor `{name}` has the value {} at {i}, which {} cannot hold; nothing was written",
            values[i],
            dtype.torch_name()
        ))),
    }
}

fn write_values(writer: &mut impl Write, values: &[f32], dtype: SaveDtype) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 16);
    for chunk in values.chunks(1 << 14) {
        buffer.clear();
        for &x in chunk {
            match dtype {
                SaveDtype::F32 => buffer.extend_from_slice(&x.to_le_bytes()),
                SaveDtype::F16 => buffer.extend_from_slice(&f16::from_f32(x).to_le_bytes()),
                SaveDtype::BF16 => buffer.extend_from_slice(&bf16::from_f32(x).to_le_bytes()),
            }
        }
        writer.write_all(&buffer)?;
    }
    Ok(())
}
