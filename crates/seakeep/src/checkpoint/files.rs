//! Fingerprints of a checkpoint's files of tensors: a bit that a disk or a copy turned would go on training unseen.

use std::collections::BTreeMap;
use std::path::Path;

use crate::formats::Fingerprint;
use crate::{Error, Result};

/// Of every `.safetensors` file in `directory`, by name.
pub(super) fn fingerprints(directory: &Path) -> Result<BTreeMap<String, String>> {
    let entries = std::fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.ends_with(".safetensors"))
        .map(|name| {
            let print = Fingerprint::of_file(&directory.join(&name))?;
            Ok((name, print.hex()))
        })
        .collect()
}

/// Checks that the files in `directory` are those of which `expected` has the fingerprints.
///
/// # Errors
/// One that is missing or has another content, by name.
pub(super) fn check(directory: &Path, expected: &BTreeMap<String, String>) -> Result<()> {
    for (name, print) in expected {
        let path = directory.join(name);
        if !path.is_file() {
            return Err(Error::format(
                directory,
                format!("{name} is missing; resume from another checkpoint, or remove this one"),
            ));
        }
        if Fingerprint::of_file(&path)?.hex() != *print {
            let what = "not what was saved: the file was damaged or replaced; resume from another checkpoint, or remove this one";
            return Err(Error::format(path, what));
        }
    }
    Ok(())
}
