//! Keeping others away from a place that is being written to.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};

/// A file or directory that other runs keep out of while this is alive.
///
/// The place itself is locked, so that nothing is left behind; where a file system or a platform cannot lock one, runs do not see each other.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "closing the file ends the claim")] Option<File>);

impl Claim {
    /// Claims a place that exists; `name` is what it is called, to begin an error with.
    ///
    /// # Errors
    /// [`Error::Usage`] where another run has claimed it.
    pub fn on(name: &str, path: &Path) -> Result<Self> {
        let Ok(handle) = File::open(path) else { return Ok(Claim(None)) };
        match handle.try_lock() {
            Ok(()) => Ok(Claim(Some(handle))),
            Err(TryLockError::WouldBlock) => Err(Error::Usage(format!(
                "{name} {}: another run is writing there; wait for its end or choose another",
                path.display()
            ))),
            Err(TryLockError::Error(_)) => Ok(Claim(None)),
        }
    }
}
