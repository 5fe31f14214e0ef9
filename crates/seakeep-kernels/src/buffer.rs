//! Memory that is used again. A training step asks for the same few hundred buffers as the step before it; asked of the
//! system each time, their pages come back one fault at a time and set to 0 first, which took a fifth of a step.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// A slice of f32 on the heap, given back when dropped to whoever asks next.
#[derive(Default, Debug)]
pub struct Buffer {
    /// Whole, so that all of it is initialised whatever `len` is.
    data: Vec<f32>,
    len: usize,
}

/// What was given back, in the order of that.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Below this many elements the allocator does as well.
const LEAST: usize = 1 << 12;

impl Buffer {
    /// `len` elements to be written: what stands there is whatever was there before (NaN in debug builds).
    pub fn new(len: usize) -> Self {
        let data = if len < LEAST { vec![0.0; len] } else { take(len) };
        let mut buffer = Buffer { data, len };
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

/// The smallest free buffer that fits and is not more than twice as large, of these the one given back last (it is
/// likeliest to be in a cache). If there is none, a new one, and as much is let go of what has been free for longest: so
/// no more is ever held than was once in use together.
fn take(len: usize) -> Vec<f32> {
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |b: &Vec<f32>| b.len() >= len && b.len() / 2 <= len;
    let best = free.iter().enumerate().rev().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.len());
    if let Some((i, _)) = best {
        return free.remove(i);
    }
    let mut released = 0;
    let wanted = |b: &&Vec<f32>| {
        let more = released < len;
        released += b.len();
        more
    };
    let oldest = free.iter().take_while(wanted).count();
    let oldest: Vec<Vec<f32>> = free.drain(..oldest).collect();
    drop(free);
    drop(oldest);
    vec![0.0; len]
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.data.len() >= LEAST {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.data));
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
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
        // Sizes that no other test of this process has.
        const N: usize = 7_777_777;
        let (first, at) = {
            let buffer = Buffer::zeros(N);
            (buffer.len(), buffer.as_ptr())
        };
        assert_eq!(first, N);
        let smaller = Buffer::new(N - 7);
        assert_eq!((smaller.as_ptr(), smaller.len()), (at, N - 7), "a little smaller: the same memory");
        drop(smaller);
        let half = Buffer::new(N / 3);
        assert!(half.as_ptr() != at, "much smaller: not that");
        let again = Buffer::zeros(N);
        assert!(again.as_ptr() == at || again.iter().all(|&x| x == 0.0));
    }

    #[test]
    fn copies_are_their_own() {
        let (a, empty) = (Buffer::from(&[1.0, 2.0][..]), Buffer::default());
        let mut b = a.clone();
        b[0] = 5.0;
        assert_eq!((&a[..], &b[..], empty.len()), (&[1.0, 2.0][..], &[5.0, 2.0][..], 0));
    }
}
