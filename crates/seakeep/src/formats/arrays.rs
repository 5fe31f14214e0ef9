//! Named arrays of numbers in a file, exactly as they are in memory: what the program keeps for itself. A safetensors file,
//! so that Python can open it, with a check of its content, which safetensors does not have.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::atomic::write_atomic;
use super::fingerprint::Fingerprint;
use crate::error::{Error, Result};

/// Under which the check stands in the metadata.
const CHECK: &str = "check";

/// Arrays by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arrays {
    /// Texts that belong to them.
    pub texts: HashMap<String, String>,
    arrays: HashMap<String, (Dtype, Vec<u8>)>,
}

/// A number that an array may hold.
pub trait Number: Copy {
    /// How safetensors calls it.
    const DTYPE: Dtype;
    /// Appends its bytes.
    fn put(self, to: &mut Vec<u8>);
    /// From as many bytes as it has.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! number {
    ($($type:ty: $dtype:ident),*) => {$(
        impl Number for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            fn put(self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                <$type>::from_le_bytes(std::array::from_fn(|i| bytes[i]))
            }
        }
    )*};
}
number!(f64: F64, f32: F32, u64: U64);

impl Arrays {
    /// Adds an array.
    pub fn put<T: Number>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        let mut bytes = Vec::new();
        values.into_iter().for_each(|value| value.put(&mut bytes));
        self.arrays.insert(name.to_string(), (T::DTYPE, bytes));
    }

    /// An array; `None` where there is none of these numbers.
    pub fn get<T: Number>(&self, name: &str) -> Option<Vec<T>> {
        let (dtype, bytes) = self.arrays.get(name)?;
        (*dtype == T::DTYPE).then(|| bytes.chunks_exact(size_of::<T>()).map(T::get).collect())
    }

    /// Writes the file, which appears whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |e: safetensors::SafeTensorError| Error::format(path, e.to_string());
        let mut texts = self.texts.clone();
        texts.insert(CHECK.into(), self.check());
        let views = self
            .arrays
            .iter()
            .map(|(name, (dtype, bytes))| {
                let count = bytes.len() * 8 / dtype.bitsize();
                TensorView::new(*dtype, vec![count], bytes).map(|view| (name.clone(), view))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(failed)?;
        write_atomic(path, &safetensors::serialize(views, Some(texts)).map_err(failed)?)
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// [`Error::Format`] for another, or one that was cut short or changed; the file system's.
    pub fn read(path: &Path) -> Result<Arrays> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let broken =
            |what: &str| Error::format(path, format!("{what}: it was cut short or changed; remove the file"));
        let parsed = SafeTensors::deserialize(&bytes)
            .map_err(|e| broken(&format!("not what this program writes ({e})")))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(&e.to_string()))?;
        let mut found = Arrays { texts: header.metadata().clone().unwrap_or_default(), ..Arrays::default() };
        let check = found.texts.remove(CHECK);
        found.arrays = parsed
            .iter()
            .map(|(name, view)| (name.to_string(), (view.dtype(), view.data().to_vec())))
            .collect();
        if check.is_none_or(|check| check != found.check()) {
            return Err(broken("its content is not what was written"));
        }
        Ok(found)
    }

    fn check(&self) -> String {
        let mut texts: Vec<_> = self.texts.iter().collect();
        let mut arrays: Vec<_> = self.arrays.iter().collect();
        texts.sort();
        arrays.sort_by_key(|a| a.0);
        let mut print = Fingerprint::new();
        for (name, text) in texts {
            print = print.field(name.as_bytes()).field(text.as_bytes());
        }
        for (name, (dtype, bytes)) in arrays {
            // All numbers have whole words.
            let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            print = print.field(name.as_bytes()).field(dtype.to_string().as_bytes()).words(words);
        }
        print.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_every_changed_byte_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut arrays = Arrays::default();
        arrays.put("x", [1.5f64, -0.0, f64::NEG_INFINITY]);
        arrays.put("n", [u64::MAX, 0]);
        arrays.put("none", Vec::<f32>::new());
        arrays.texts.insert("note".into(), "\u{e9}".into());
        arrays.write(&path).unwrap();
        let read = Arrays::read(&path).unwrap();
        assert_eq!(read, arrays);
        assert_eq!(read.get::<f64>("x").unwrap()[1].to_bits(), (-0.0f64).to_bits());
        assert_eq!((read.get::<f32>("x"), read.get::<f32>("none")), (None, Some(vec![])));
        let bytes = std::fs::read(&path).unwrap();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 4;
            std::fs::write(&path, changed).unwrap();
            assert!(Arrays::read(&path).is_err(), "byte {i}");
            std::fs::write(&path, &bytes[..i]).unwrap();
            let error = Arrays::read(&path).unwrap_err().to_string();
            assert!(error.contains("remove the file"), "{error}");
        }
    }
}
