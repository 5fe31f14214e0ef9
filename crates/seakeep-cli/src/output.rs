//! Where results go: standard output, or a file that appears whole or not at all.

use std::io::{ErrorKind, Write};
use std::path::Path;

use seakeep::formats::write_atomic;
use seakeep::{Error, Result};

/// Refuses an output file that could not be written in the end, before the work is done.
///
/// # Errors
/// [`Error::Usage`] for a directory, [`Error::Format`] where something that is not a directory is in the way.
pub fn check(output: Option<&Path>) -> Result<()> {
    let Some(path) = output else { return Ok(()) };
    if path.is_dir() {
        return Err(Error::Usage(format!("--output {} is a directory; expected a file", path.display())));
    }
    // The first that exists of the directories above.
    let above = path.ancestors().skip(1).find(|p| p.as_os_str().is_empty() || p.exists());
    match above {
        Some(file) if !file.as_os_str().is_empty() && !file.is_dir() => {
            Err(Error::format(file, format!("not a directory, so {} cannot be written", path.display())))
        }
        _ => Ok(()),
    }
}

/// Writes `text` to the file, or to standard output.
pub fn emit(output: Option<&Path>, text: &str) -> Result<()> {
    match output {
        Some(path) => {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            }
            write_atomic(path, text.as_bytes())
        }
        None => print(text),
    }
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", "standard output")(e)),
        _ => Ok(()),
    }
}
