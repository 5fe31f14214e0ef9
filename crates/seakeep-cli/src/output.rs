//! Where results go: standard output, or a file that appears whole or not at all.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use seakeep::data::read::data_files;
use seakeep::formats::{check_writable, is_special, write_atomic};
use seakeep::{Error, Result};

/// Refuses output files, each the value of a flag, that could not be written in the end, or over what is read or another of them, before the
/// work is done. `inputs` are flags too, with the files, directories or patterns that they name.
///
/// # Errors
/// [`Error::Usage`] for a directory or a file that is named twice, [`Error::Format`] where something that is not a directory is in the way.
pub fn check(outputs: &[(&str, Option<&Path>)], inputs: &[(&str, &str)]) -> Result<()> {
    // What cannot be read is said by who reads it.
    let mut known: Vec<(&str, PathBuf)> = Vec::new();
    for (flag, spec) in inputs {
        known.extend(data_files(spec).unwrap_or_default().into_iter().map(|file| (*flag, file)));
    }
    for (flag, path) in outputs {
        let Some(path) = path else { continue };
        check_place(flag, path)?;
        if is_special(path) {
            continue;
        }
        if let Some((other, _)) = known.iter().find(|(_, other)| is_same_place(other, path)) {
            let path = path.display();
            return Err(Error::Usage(format!(
                "--{flag} and --{other} are the same file, {path}; expected another one"
            )));
        }
        known.push((flag, path.to_path_buf()));
    }
    Ok(())
}

fn check_place(flag: &str, path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::Usage(format!("--{flag} {} is a directory; expected a file", path.display())));
    }
    // The first that exists of the directories above.
    let above = path.ancestors().skip(1).find(|p| p.as_os_str().is_empty() || p.exists());
    match above {
        Some(file) if !file.as_os_str().is_empty() && !file.is_dir() => {
            Err(Error::format(file, format!("not a directory, so {} cannot be written", path.display())))
        }
        // A pipe or a device is written to as it is.
        _ if path.exists() && !path.is_file() => Ok(()),
        _ => check_writable(above.unwrap_or(Path::new("")))
            .map_err(|e| Error::format(path, format!("cannot be written: {e}"))),
    }
}

/// Whether two paths are one place, by whatever names.
pub fn is_same_place(a: &Path, b: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    absolute(a) == absolute(b)
        || a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b)
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

thread_local! {
    /// Where this thread's words go in place of the terminal.
    static LOG: RefCell<Option<File>> = const { RefCell::new(None) };
}

/// Does `work` with everything that it says (progress, notes, results) written to `log` in place of the terminal. For work
/// that runs beside other work.
pub fn logged<T>(log: File, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<File>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOG.set(self.0.take());
        }
    }
    let _restore = Restore(LOG.replace(Some(log)));
    work()
}

/// The log of this thread, where it has one.
pub fn log() -> Option<File> {
    LOG.with_borrow(|log| log.as_ref().and_then(|file| file.try_clone().ok()))
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    if let Some(mut log) = log() {
        return log.write_all(text.as_bytes()).map_err(Error::io("write", "the log"));
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", "standard output")(e)),
        _ => Ok(()),
    }
}
