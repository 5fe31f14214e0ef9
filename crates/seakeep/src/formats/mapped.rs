//! Files that are mapped: what has been read of them need not stay in memory.

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

/// Tells the system that these bytes of `map` will not be needed soon. They are read from the file again if they are; without this a
/// model that is converted while it is loaded would count twice, as it is in the file and as it is kept.
pub(super) fn release(map: &Mmap, bytes: &[u8]) {
    #[cfg(unix)]
    {
        let offset = bytes.as_ptr() as usize - map.as_ptr() as usize;
        // SAFETY: the map is of a file and read-only, so that what is dropped comes back as it was. A refusal does no harm.
        let _ = unsafe { Mmap::unchecked_advise_range(map, UncheckedAdvice::DontNeed, offset, bytes.len()) };
    }
    #[cfg(not(unix))]
    let _ = (map, bytes);
}
