//! Memory that is used again. A training step asks for the same few hundred buffers as the step before it; asked of the
//! system each time, their pages come back one fault at a time and set to 0 first, which took a fifth of a step.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

/// A slice of f32, given back when dropped to whoever asks next.
#[derive(Debug)]
pub struct Buffer {
    memory: Memory,
    len: usize,
    width: usize,
}

#[derive(Debug)]
enum Memory {
    Small(Vec<f32>),
    /// Has room for more than was asked for. Pages that were never written to take no memory, so this costs none, and a
    /// batch that is longer than the last keeps those that there are.
    Large(MmapMut),
}

/// What was given back, by the width of its rows. A pass asks for as many buffers of each width as the one before: each remains one of
/// its width, however long batches are, and does not come to have the pages of a wider one.
static FREE: Mutex<BTreeMap<usize, Vec<MmapMut>>> = Mutex::new(BTreeMap::new());

/// Times the room that was asked for: batches differ in length, and a buffer that is too small for the next is given back for one whose pages
/// come as slowly as its own did.
const SPARE: usize = 4;

/// Below this many elements the allocator does as well.
const LEAST: usize = 1 << 12;

fn free() -> MutexGuard<'static, BTreeMap<usize, Vec<MmapMut>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buffer {
    /// `len` elements to be written, in rows of `width`: what stands there is whatever was there before (NaN in debug builds).
    ///
    /// # Panics
    /// If there is no memory.
    pub fn new(len: usize, width: usize) -> Self {
        let memory =
            if len < LEAST { Memory::Small(vec![0.0; len]) } else { Memory::Large(take(len, width)) };
        let mut buffer = Buffer { memory, len, width };
        if cfg!(debug_assertions) {
            buffer.fill(f32::NAN);
        }
        buffer
    }

    /// [`new`](Self::new) for what has no rows of a constant width.
    pub fn scratch(len: usize) -> Self {
        Buffer::new(len, 1)
    }

    /// [`new`](Self::new), of the shape of another.
    pub fn like(other: &Buffer) -> Self {
        Buffer::new(other.len, other.width)
    }

    /// `len` times 0, in rows of `width`.
    pub fn zeros(len: usize, width: usize) -> Self {
        let mut buffer = Buffer::new(len, width);
        buffer.fill(0.0);
        buffer
    }
}

/// The last given back of this width that has room; otherwise a new one, in exchange for one that is too small. So there are never more of a
/// width than were once in use together.
fn take(len: usize, width: usize) -> MmapMut {
    let mut free = free();
    let stack = free.entry(width).or_default();
    if let Some(at) = stack.iter().rposition(|memory| memory.len() >= size_of::<f32>() * len) {
        return stack.remove(at);
    }
    let too_small = stack.pop();
    drop((free, too_small));
    let bytes = size_of::<f32>() * len;
    MmapMut::map_anon(SPARE * bytes).or_else(|_| MmapMut::map_anon(bytes)).expect("memory for a buffer")
}

/// Gives all that is free back to the system: for what comes next is of another size.
pub fn release() {
    let all = std::mem::take(&mut *free());
    drop(all);
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Large(memory) = std::mem::replace(&mut self.memory, Memory::Small(Vec::new())) {
            free().entry(self.width).or_default().push(memory);
        }
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
        let mut other = Buffer::like(self);
        other.copy_from_slice(self);
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_the_same_width() {
        // A width that no other test of this process has.
        let (width, at) = (11_111, Buffer::zeros(111_110, 11_111).as_ptr());
        let longer = Buffer::new(12 * width, width);
        assert_eq!((longer.as_ptr(), longer.len()), (at, 12 * width), "a little longer: there is room");
        let (beside, too_long) = (Buffer::like(&longer), 2 * SPARE * longer.len());
        assert_ne!(beside.as_ptr(), at);
        drop((beside, longer));
        assert_eq!(free()[&width].len(), 2);
        let longest = Buffer::new(too_long, width);
        assert_eq!(free()[&width].len(), 1, "a new one, in exchange for one that is too small");
        assert_eq!(longest.len(), too_long);
        assert!(Buffer::zeros(width, width).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn copies_are_their_own() {
        let (mut a, empty) = (Buffer::new(2, 2), Buffer::new(0, 1));
        a.copy_from_slice(&[1.0, 2.0]);
        let mut b = a.clone();
        b[0] = 5.0;
        assert_eq!((&a[..], &b[..], empty.len()), (&[1.0, 2.0][..], &[5.0, 2.0][..], 0));
    }
}
