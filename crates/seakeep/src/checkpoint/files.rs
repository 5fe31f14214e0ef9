//! Fingerprints of a checkpoint's files of tensors: a bit that a disk or a copy turned would go on training unseen.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::TrainerState;
use crate::formats::Fingerprint;
use crate::{Error, Result};

/// Of every `.safetensors` file in `directory`, by name.
pub(super) fn fingerprints(directory: &Path) -> Result<BTreeMap<String, String>> {
    let entries = std::fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<String> = names.filter(|name| name.ends_with(".safetensors")).collect();
    let named = |name: String| {
        let print = Fingerprint::of_file(&directory.join(&name))?;
        Ok((name, print.hex()))
    };
    names.into_par_iter().map(named).collect()
}

/// Checks that a checkpoint's files of tensors are those that were saved.
///
/// # Errors
/// One that is missing or has another content, by name.
pub fn check_files(directory: &Path, state: &TrainerState) -> Result<()> {
    let is_as_saved = |(name, print): (&String, &String)| {
        let path = directory.join(name);
        if !path.is_file() {
            let what = format!("{name} is missing; resume from another checkpoint, or remove this one");
            return Err(Error::format(directory, what));
        }
        if Fingerprint::of_file(&path)?.hex() != *print {
            let what = "not what was saved: the file was damaged or replaced; resume from another checkpoint, or remove this one";
            return Err(Error::format(path, what));
        }
        Ok(())
    };
    state.files.par_iter().try_for_each(is_as_saved)
}
