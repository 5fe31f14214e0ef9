//! Files that are mapped: what has been read of them need not stay in memory.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use rayon::prelude::*;

use crate::{Error, Result};

/// Maps a file to read it.
///
/// # Errors
/// A file that cannot be opened or mapped.
pub(super) fn open(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    // SAFETY: the map is read-only but shared with the file: who writes the file in place changes what we read, and who truncates it
    // has the system raise SIGBUS. Both are the accepted risk of mapping model files; all our writers replace files by rename, and
    // whatever bytes there are, they are bytes.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}

/// What `read` makes of these bytes of `map`, which are then [released](release).
pub(super) fn read<T>(map: &Mmap, bytes: Range<usize>, read: impl FnOnce(&[u8]) -> T) -> T {
    let bytes = &map[bytes];
    let made = read(bytes);
    release(map, bytes);
    made
}

/// [`read`]s numbers of `N` bytes each, by all threads: most of the time goes into memory that is touched for the first time.
pub(super) fn numbers<const N: usize, T: Send>(
    map: &Mmap,
    bytes: Range<usize>,
    from: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    read(map, bytes, |bytes| bytes.as_chunks::<N>().0.par_iter().map(|number| from(*number)).collect())
}

/// [`read`]s the bytes as they are, by all threads.
pub(super) fn copy(map: &Mmap, bytes: Range<usize>) -> Vec<u8> {
    const PIECE: usize = 1 << 20;
    let mut out = vec![0; bytes.len()];
    read(map, bytes, |from| {
        let pieces = out.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
    });
    out
}

/// Tells the system that these bytes of `map` will not be needed soon. They are read from the file again if they are; without this a
/// model that is converted while it is loaded would count twice, as it is in the file and as it is kept.
fn release(map: &Mmap, bytes: &[u8]) {
    #[cfg(unix)]
    {
        let offset = bytes.as_ptr() as usize - map.as_ptr() as usize;
        // SAFETY: the map is of a file and read-only, so that what is dropped comes back as it was. A refusal does no harm.
        let _ = unsafe { Mmap::unchecked_advise_range(map, UncheckedAdvice::DontNeed, offset, bytes.len()) };
    }
    #[cfg(not(unix))]
    let _ = (map, bytes);
}
