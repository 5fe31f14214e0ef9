//! Memory that is used again. A training step asks for the same few hundred buffers as the step before it; asked of the
//! system each time, their pages come back one fault at a time and set to 0 first, which took a fifth of a step.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

/// A slice of f32, given back when dropped to whoever asks next.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Small(Vec<f32>),
    /// `2^class` elements. Pages that were never written to take no memory, so that lengths need not be exact: those of a batch
    /// follow its tokens.
    Large(MmapMut),
}

/// What was given back, by class.
static FREE: Mutex<Vec<Vec<MmapMut>>> = Mutex::new(Vec::new());

/// Below this many elements the allocator does as well.
const LEAST: usize = 1 << 12;

fn free() -> MutexGuard<'static, Vec<Vec<MmapMut>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn class(len: usize) -> usize {
    len.next_power_of_two().trailing_zeros() as usize
}

impl Buffer {
    /// `len` elements to be written: what stands there is whatever was there before (NaN in debug builds).
    ///
    /// # Panics
    /// If there is no memory.
    pub fn new(len: usize) -> Self {
        let memory =
            if len < LEAST { Memory::Small(vec![0.0; len]) } else { Memory::Large(take(class(len))) };
        let mut buffer = Buffer { memory, len };
        if cfg!(debug_assertions) {
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// `len` times 0.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Buffer::new(len);
        buffer.fill(0.0);
        buffer
    }
}

/// A free one of this class or the next; otherwise a new one, for which one of the class below is let go: where batches grow, those
/// come to nothing. So what lies idle is at most a third of what was in use.
fn take(class: usize) -> MmapMut {
    let mut free = free();
    if free.len() < class + 2 {
        free.resize_with(class + 2, Vec::new);
    }
    if let Some(memory) = free[class].pop().or_else(|| free[class + 1].pop()) {
        return memory;
    }
    let smaller = free[class - 1].pop();
    drop((free, smaller));
    MmapMut::map_anon(size_of::<f32>() << class).expect("memory for a buffer")
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Large(memory) = std::mem::replace(&mut self.memory, Memory::Small(Vec::new())) {
            free()[class(memory.len() / size_of::<f32>())].push(memory);
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::new(0)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.memory {
            Memory::Small(data) => data,
            Memory::Large(data) => &bytemuck::cast_slice(data)[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.memory {
            Memory::Small(data) => data,
            Memory::Large(data) => &mut bytemuck::cast_slice_mut(data)[..self.len],
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut other = Buffer::new(self.len);
        other.copy_from_slice(self);
        other
    }
}

impl From<&[f32]> for Buffer {
    fn from(data: &[f32]) -> Self {
        let mut buffer = Buffer::new(data.len());
        buffer.copy_from_slice(data);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_what_fits_well() {
        // A size that no other test of this process has.
        const N: usize = 5 << 20;
        let at = Buffer::zeros(N).as_ptr();
        let smaller = Buffer::new(N / 2);
        assert_eq!((smaller.as_ptr(), smaller.len()), (at, N / 2), "a little smaller: the same memory");
        drop(smaller);
        assert_ne!(Buffer::new(N / 8).as_ptr(), at, "much smaller: not that");
        assert!(free()[class(N)].len() == 1);
        assert_ne!(Buffer::new(2 * N).as_ptr(), at, "larger: not that, which is let go");
        assert!(free()[class(N)].is_empty());
        assert!(Buffer::zeros(N).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn copies_are_their_own() {
        let (a, empty) = (Buffer::from(&[1.0, 2.0][..]), Buffer::default());
        let mut b = a.clone();
        b[0] = 5.0;
        assert_eq!((&a[..], &b[..], empty.len()), (&[1.0, 2.0][..], &[5.0, 2.0][..], 0));
    }
}
