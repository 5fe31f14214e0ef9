//! The header of a GGUF file: metadata and tensor table. Foreign bytes, so every length is checked
//! against a limit and against what is left of the file before anything is allocated for it.

use std::collections::BTreeMap;
use std::path::Path;

use super::{GgmlType, TensorInfo};
use crate::error::{Error, Result};

/// Most metadata entries accepted (real files have 20 to 60).
pub const MAX_METADATA: u64 = 65_536;
/// Most tensors accepted (a 126-layer Llama has about 1,200).
pub const MAX_TENSORS: u64 = 65_536;
/// Longest string accepted, in bytes (chat templates are the longest, some 10 kB).
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// Most items of one array (vocabularies reach 262,144; merges about 500,000).
pub const MAX_ARRAY_ITEMS: u64 = 4 << 20;
/// Most dimensions of a tensor: ggml's own limit.
pub const MAX_DIMS: u32 = 4;
/// Deepest array of arrays.
pub const MAX_NESTING: usize = 4;
/// Largest `general.alignment`.
pub const MAX_ALIGNMENT: usize = 1 << 20;

const DEFAULT_ALIGNMENT: usize = 32;

/// A metadata value. Integer widths are folded: nothing downstream depends on them.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32 or u64.
    Unsigned(u64),
    /// i8, i16, i32 or i64.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// UTF-8 text.
    String(String),
    /// Values of one type.
    Array(Vec<Value>),
}

impl Value {
    /// A non-negative integer of any width.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Value::Unsigned(n) => usize::try_from(n).ok(),
            Value::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        }
    }

    /// A finite number. An f32 becomes the f64 with the same shortest decimal form, so that a stored
    /// 1e-5 reads as 1e-5 and not as 9.999999747378752e-6.
    pub fn as_f64(&self) -> Option<f64> {
        let value = match *self {
            Value::F32(x) => x.to_string().parse().ok()?,
            Value::F64(x) => x,
            Value::Unsigned(n) => n as f64,
            Value::Signed(n) => n as f64,
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// What kind of value this is, for error messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) | Value::Signed(_) => "an integer",
            Value::F32(_) | Value::F64(_) => "a floating point number",
            Value::Bool(_) => "a boolean",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
        }
    }
}

/// The parsed header.
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// Parses the header of the mapped file `bytes`; `path` is for messages.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { path, bytes, pos: 0 };
    if bytes.len() < 4 || &bytes[..4] != b"GGUF" {
        return Err(Error::format(path, "not a GGUF file: it does not begin with the four letters GGUF"));
    }
    cursor.pos = 4;
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => {}
        1 => {
            return Err(
                cursor.fail("GGUF version 1, expected 2 or 3: convert it again with a current llama.cpp")
            );
        }
        v if matches!(v.swap_bytes(), 1..=3) => {
            return Err(cursor.fail(
                "a big-endian GGUF file, expected little endian: convert it again without --bigendian",
            ));
        }
        v => return Err(cursor.fail(format!("GGUF version {v}, expected 2 or 3"))),
    }
    let tensor_count = cursor.count("number of tensors", MAX_TENSORS)?;
    let metadata_count = cursor.count("number of metadata entries", MAX_METADATA)?;

    let mut metadata = BTreeMap::new();
    for _ in 0..metadata_count {
        let key = cursor.string("metadata key")?;
        let kind = cursor.u32(&key)?;
        let value = cursor.value(&key, kind, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(cursor.fail(format!("metadata key `{key}` appears twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => {
            value.as_usize().filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT).ok_or_else(|| {
                cursor.fail(format!(
                    "`general.alignment` is {value:?}, expected a power of two up to {MAX_ALIGNMENT}"
                ))
            })?
        }
    };

    let mut raw = Vec::with_capacity(tensor_count.min(4096));
    for _ in 0..tensor_count {
        raw.push(cursor.tensor_info()?);
    }
    let data_start = cursor.pos.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for tensor in raw {
        let (name, info) = place(&cursor, tensor, data_start, alignment)?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(cursor.fail(format!("tensor `{name}` appears twice")));
        }
    }
    Ok(Header { metadata, tensors })
}

/// A row of the tensor table before it is checked against the file.
struct RawTensor {
    name: String,
    shape: Vec<usize>,
    ggml_type: GgmlType,
    offset: u64,
}

/// Turns an offset of the tensor table into a checked range of the file.
fn place(
    cursor: &Cursor,
    tensor: RawTensor,
    data_start: usize,
    alignment: usize,
) -> Result<(String, TensorInfo)> {
    let RawTensor { name, shape, ggml_type, offset } = tensor;
    let (block_items, block_bytes) = ggml_type.block();
    let row = shape.last().copied().unwrap_or(1);
    if row % block_items != 0 {
        return Err(cursor.fail(format!(
            "tensor `{name}` has rows of {row} values, which {} (blocks of {block_items}) cannot hold",
            ggml_type.name()
        )));
    }
    let overflow =
        || cursor.fail(format!("tensor `{name}` with shape {shape:?} is larger than memory can be"));
    let items = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    // The f32 result must be addressable too, not only the packed bytes.
    items.checked_mul(4).filter(|&n| n <= isize::MAX as usize).ok_or_else(overflow)?;
    let len = (items / block_items).checked_mul(block_bytes).ok_or_else(overflow)?;
    let offset = usize::try_from(offset).map_err(|_| overflow())?;
    if offset % alignment != 0 {
        return Err(cursor.fail(format!("tensor `{name}` starts at {offset}, not a multiple of {alignment}")));
    }
    let start = data_start.checked_add(offset).ok_or_else(overflow)?;
    let end = start.checked_add(len).ok_or_else(overflow)?;
    if end > cursor.bytes.len() {
        return Err(cursor.fail(format!(
            "tensor `{name}` ends at byte {end}, but the file has {}: it was cut short; download or copy it again",
            cursor.bytes.len()
        )));
    }
    Ok((name, TensorInfo { shape, ggml_type, bytes: start..end }))
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn fail(&self, what: impl Into<String>) -> Error {
        Error::format(self.path, what)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.pos.checked_add(len).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.fail(format!(
                "the file ends inside its header ({what}, byte {}): it was cut short; download or copy it again",
                self.pos
            )));
        };
        let slice = &self.bytes[self.pos..end];
        self.pos = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<usize> {
        let n = self.u64(what)?;
        if n > limit {
            return Err(self.fail(format!("{what} is {n}, over the limit of {limit}: the file is malformed")));
        }
        Ok(n as usize)
    }

    fn string(&mut self, what: &str) -> Result<String> {
        let len = self.count(&format!("length of the {what}"), MAX_STRING_BYTES)?;
        let bytes = self.take(len, what)?;
        // Some vocabularies in the wild hold byte tokens that are not UTF-8; llama.cpp shows them
        // with the replacement character as well.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>(key)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => match self.array::<1>(key)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                b => return Err(self.fail(format!("metadata `{key}` is a boolean with value {b}"))),
            },
            8 => Value::String(self.string(key)?),
            9 => self.array_value(key, depth)?,
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.fail(format!("metadata `{key}` has type {other}, expected 0 to 12"))),
        })
    }

    fn array_value(&mut self, key: &str, depth: usize) -> Result<Value> {
        if depth == MAX_NESTING {
            return Err(self.fail(format!("metadata `{key}` nests arrays deeper than {MAX_NESTING}")));
        }
        let kind = self.u32(key)?;
        let len = self.count(&format!("length of array `{key}`"), MAX_ARRAY_ITEMS)?;
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        if len.saturating_mul(smallest) > self.bytes.len() - self.pos {
            return Err(self.fail(format!(
                "array `{key}` claims {len} items, more than the rest of the file can hold: it was cut short"
            )));
        }
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.value(key, kind, depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn tensor_info(&mut self) -> Result<RawTensor> {
        let name = self.string("tensor name")?;
        let dims = self.u32(&name)?;
        if dims > MAX_DIMS {
            return Err(
                self.fail(format!("tensor `{name}` has {dims} dimensions, at most {MAX_DIMS} are allowed"))
            );
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let d = self.u64(&name)?;
            if d == 0 {
                return Err(self.fail(format!("tensor `{name}` has a dimension of length 0")));
            }
            shape.push(usize::try_from(d).map_err(|_| self.fail(format!("tensor `{name}` is too large")))?);
        }
        shape.reverse();
        let id = self.u32(&name)?;
        let ggml_type = GgmlType::from_id(id).ok_or_else(|| {
            Error::unsupported(
                format!("{}: tensor `{name}` has type {}", self.path.display(), dequant_name(id)),
                GgmlType::SUPPORTED,
            )
        })?;
        let offset = self.u64(&name)?;
        Ok(RawTensor { name, shape, ggml_type, offset })
    }
}

/// The name of a type that is not supported, where it has one.
fn dequant_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return format!("number {id}, which is unknown"),
    };
    format!("{name} (number {id})")
}
