//! Files and directories that appear under their final name whole, or not at all.
//!
//! The new content is written into a temporary sibling (same file system), synced, and renamed. A
//! process that dies half way leaves a `.name.PID.N.tmp` beside the target and never a torn target.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A sibling of `path` that no other process or thread of ours uses.
fn sibling(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        Error::Usage(format!("{}: not a name that a file or directory can be written under", path.display()))
    })?;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = format!(".{}.{}.{serial}.{suffix}", name.to_string_lossy(), std::process::id());
    Ok(path.with_file_name(name))
}

/// What died half way on its way to a name that begins with `prefix` in `directory`; and what was moved aside for
/// something that stands in its place now.
pub fn unfinished(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let is_one = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        // `.NAME.PID.SERIAL.SUFFIX`
        let mut parts = name.to_str()?.strip_prefix('.')?.rsplitn(4, '.');
        let (suffix, target) = (parts.next()?, parts.nth(2)?);
        let over = suffix == "tmp" || suffix == "old" && directory.join(target).exists();
        Some(target.starts_with(prefix) && over)
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| is_one(entry) == Some(true)).map(|entry| entry.path()).collect()
}

/// The directory that holds `path`; "." for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename in `directory` durable. Not every file system can sync a directory; those that
/// cannot have nothing better to offer, so a refusal is not an error.
fn sync_directory(directory: &Path) {
    if let Ok(handle) = File::open(directory) {
        let _ = handle.sync_all();
    }
}

/// Writes a file through `fill`, atomically: `path` holds its old content (or nothing) until the
/// new content is complete and on the disk.
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut std::io::BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    try_write_atomic_with(path, |writer| fill(writer).map_err(Error::io("write", path)))
}

/// [`write_atomic_with`] for content that may fail to come into being.
pub fn try_write_atomic_with(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut std::io::BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    if is_special(path) {
        // A pipe or a device: there is nothing to keep whole, and nothing to be put in its place.
        let file = fs::OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
        let mut writer = std::io::BufWriter::new(file);
        fill(&mut writer)?;
        return writer.flush().map_err(Error::io("write", path));
    }
    // What a link names is replaced, not the link.
    let target = if path.is_symlink() { fs::canonicalize(path).ok() } else { None };
    let path = target.as_deref().unwrap_or(path);
    let temporary = sibling(path, "tmp")?;
    let result = (|| {
        let file = File::create(&temporary).map_err(Error::io("create", path))?;
        let mut writer = std::io::BufWriter::with_capacity(1 << 20, file);
        fill(&mut writer)?;
        let file = writer.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("sync", path))?;
        fs::rename(&temporary, path).map_err(Error::io("rename into place", path))
    })();
    match result {
        Ok(()) => sync_directory(parent(path)),
        Err(_) => drop(fs::remove_file(&temporary)),
    }
    result
}

/// Whether something stands there that is neither file nor directory: a device, a pipe.
pub fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir())
}

/// [`write_atomic_with`] for content that is already in memory.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |writer| writer.write_all(bytes))
}

/// Finds out whether something could be written in `directory`, without leaving anything behind.
///
/// # Errors
/// The file system's.
pub fn check_writable(directory: &Path) -> Result<()> {
    // Dropped at once, the temporary directory is gone again.
    AtomicDir::new(directory.join("seakeep-probe")).map(drop)
}

/// A directory that is filled under a temporary name and then takes its final one.
///
/// Dropped without [`AtomicDir::commit`] or [`AtomicDir::replace`], it removes what was written.
#[derive(Debug)]
pub struct AtomicDir {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl AtomicDir {
    /// Creates the temporary directory beside `target` (and the parents of `target`).
    ///
    /// # Errors
    /// [`Error::Io`] where the parent cannot be created or written to.
    pub fn new(target: impl AsRef<Path>) -> Result<AtomicDir> {
        let target = target.as_ref().to_path_buf();
        let temporary = sibling(&target, "tmp")?;
        fs::create_dir_all(parent(&target)).map_err(Error::io("create", parent(&target)))?;
        fs::create_dir(&temporary).map_err(Error::io("create", &target))?;
        Ok(AtomicDir { temporary, target, committed: false })
    }

    /// Where to write: the temporary directory.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the directory its final name.
    ///
    /// # Errors
    /// [`Error::Usage`] when the target already exists (an empty directory counts as absent): nothing
    /// of the user's is replaced by accident.
    pub fn commit(mut self) -> Result<()> {
        if self.target.exists() && !is_empty_directory(&self.target) {
            return Err(Error::Usage(format!(
                "{} already exists and is not empty; remove it or choose another output directory",
                self.target.display()
            )));
        }
        self.sync_content()?;
        if self.target.exists() {
            fs::remove_dir(&self.target).map_err(Error::io("replace", &self.target))?;
        }
        self.rename_into_place()
    }

    /// Gives the directory its final name, replacing what stands there. The old directory is moved
    /// aside first and removed last; if the second rename fails, it is moved back.
    pub fn replace(mut self) -> Result<()> {
        self.sync_content()?;
        if !self.target.exists() {
            return self.rename_into_place();
        }
        let old = sibling(&self.target, "old")?;
        fs::rename(&self.target, &old).map_err(Error::io("move aside", &self.target))?;
        if let Err(error) = self.rename_into_place() {
            fs::rename(&old, &self.target).map_err(Error::io("move back", &self.target))?;
            return Err(error);
        }
        fs::remove_dir_all(&old).map_err(Error::io("remove", &old))
    }

    fn sync_content(&self) -> Result<()> {
        let mut pending = vec![self.temporary.clone()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
                let path = entry.map_err(Error::io("list", &directory))?.path();
                if path.is_dir() {
                    pending.push(path);
                } else {
                    File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io("sync", &path))?;
                }
            }
            sync_directory(&directory);
        }
        Ok(())
    }

    fn rename_into_place(&mut self) -> Result<()> {
        fs::rename(&self.temporary, &self.target).map_err(Error::io("rename into place", &self.target))?;
        self.committed = true;
        sync_directory(parent(&self.target));
        Ok(())
    }
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: there is no one left to tell.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        let error = write_atomic_with(&path, |writer| {
            writer.write_all(b"half")?;
            Err(std::io::Error::other("disk full"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("disk full"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(root.path()), ["a.json"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_a_pipe_a_pipe() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("a"), root.path().join("l"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic(&link, b"new").unwrap();
        assert!(link.is_symlink() && fs::read_to_string(&file).unwrap() == "new");
        assert!(is_special(Path::new("/dev/null")) && !is_special(&link));
        write_atomic("/dev/null", b"gone").unwrap();
        assert!(is_special(Path::new("/dev/null")));
    }

    #[test]
    fn a_dropped_directory_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        let dir = AtomicDir::new(&target).unwrap();
        fs::write(dir.path().join("x"), "1").unwrap();
        drop(dir);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn commit_refuses_and_replace_replaces_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("deep/model");
        for (content, explicit) in [("1", false), ("2", true)] {
            let dir = AtomicDir::new(&target).unwrap();
            fs::write(dir.path().join("x"), content).unwrap();
            if explicit {
                dir.replace().unwrap()
            } else {
                dir.commit().unwrap()
            }
            assert_eq!(fs::read_to_string(target.join("x")).unwrap(), content);
        }
        let dir = AtomicDir::new(&target).unwrap();
        assert!(dir.commit().unwrap_err().to_string().contains("already exists"));
        assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "2");
        assert_eq!(names(&root.path().join("deep")), ["model"]);
    }

    #[test]
    fn what_was_moved_aside_is_kept_until_something_stands_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        for name in [".a-1.7.0.old", ".a-2.7.1.tmp", ".b-1.7.2.tmp", ".a", ".a-1.old", "a-2.7.0.tmp"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        let found = || {
            let mut found: Vec<_> = unfinished(root.path(), "a-");
            found.sort();
            found.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(), [".a-2.7.1.tmp"]);
        fs::write(root.path().join("a-1"), "").unwrap();
        assert_eq!(found(), [".a-1.7.0.old", ".a-2.7.1.tmp"]);
    }

    #[test]
    fn an_unwritable_parent_is_an_error_with_the_path() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = AtomicDir::new(file.join("model")).unwrap_err().to_string();
        assert!(error.contains("file"), "{error}");
    }
}
