//! How long work tells its caller where it stands. The program draws bars; a library caller may be silent.

/// A listener to long work.
pub trait Progress: Send {
    /// A piece of work of `total` units begins.
    fn start(&mut self, what: &str, total: u64);
    /// `by` more units are done; `detail` is a word on how it goes (may be empty).
    fn advance(&mut self, by: u64, detail: &str);
    /// The piece of work is done.
    fn finish(&mut self);
    /// Something a person should read.
    fn note(&mut self, line: &str);
}

/// Nobody listens.
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64, _: &str) {}
    fn finish(&mut self) {}
    fn note(&mut self, _: &str) {}
}
