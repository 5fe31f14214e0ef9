//! A stable name for a piece of content: 128-bit FNV-1a, as hexadecimal.
//!
//! It guards against *accidents* (a cache made with another tokenizer), not against an adversary, so a
//! twenty-line hash without a dependency is enough. The same content gives the same name on every
//! machine and in every release.

/// Incremental 128-bit FNV-1a.
#[derive(Clone, Debug)]
pub struct Fingerprint(u128);

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Default for Fingerprint {
    fn default() -> Self {
        Fingerprint(OFFSET)
    }
}

impl Fingerprint {
    /// An empty fingerprint.
    pub fn new() -> Fingerprint {
        Fingerprint::default()
    }

    /// Adds one field. The length goes in too, so that ("ab", "c") and ("a", "bc") differ.
    pub fn field(mut self, bytes: &[u8]) -> Fingerprint {
        self.absorb(&(bytes.len() as u64).to_le_bytes());
        self.absorb(bytes);
        self
    }

    /// Adds numbers of 32 bits, a word at a time: four times as fast as their bytes, and another name than theirs.
    pub fn words(mut self, words: impl IntoIterator<Item = u32>) -> Fingerprint {
        for word in words {
            self.0 = (self.0 ^ u128::from(word)).wrapping_mul(PRIME);
        }
        self
    }

    fn absorb(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }

    /// As a number.
    pub fn number(&self) -> u128 {
        self.0
    }

    /// 32 hexadecimal digits.
    pub fn hex(&self) -> String {
        format!("{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vectors() {
        let mut hash = Fingerprint::new();
        assert_eq!(hash.hex(), "6c62272e07bb014262b821756295c58d");
        hash.absorb(b"a");
        assert_eq!(hash.hex(), "d228cb696f1a8caf78912b704e4a8964");
    }

    #[test]
    fn field_boundaries_count() {
        let join = |a: &[u8], b: &[u8]| Fingerprint::new().field(a).field(b).hex();
        assert_ne!(join(b"ab", b"c"), join(b"a", b"bc"));
    }
}
