//! How rows lie in their file: the record of a row, its entry, and what closes the file (`rows/mod.rs` has the picture).

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::labels::{Labels, Role};
use crate::data::report::TokenizeReport;
use crate::data::tokenize::{Branch, TokenizedPair};
use crate::formats::Fingerprint;

/// Begins the foot; the digit changes with the format.
const MAGIC: &[u8; 8] = b"SKROWS.1";
pub(super) const FOOT: usize = 48;
pub(super) const ENTRY: usize = 48;
/// Stands for a number that there is none of.
pub(super) const NONE: u32 = u32::MAX;

/// What is known of a row without its tokens.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Of its tokens, without those of a partner ([`TokenizedPair::fingerprint`]).
    pub(super) name: u128,
    /// First word of its record.
    pub(super) start: u64,
    pub(super) check: u32,
    /// Tokens of its longest sequence.
    pub(super) longest: u32,
    pub(super) row: u32,
    pub(super) file: u32,
    pub(super) group: u32,
    /// The row whose completion is this one's mismatched one.
    pub(super) partner: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) made_from: String,
    pub(super) files: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) report: TokenizeReport,
    pub(super) fingerprint: String,
    /// Most tokens of a sequence, which also bounds mismatched completions.
    pub(super) max_length: Option<usize>,
}

impl Entry {
    pub(super) fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..16].copy_from_slice(&self.name.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.start.to_le_bytes());
        let words = [self.check, self.longest, self.row, self.file, self.group, self.partner];
        for (to, word) in bytes[24..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Entry {
        let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|b| bytes[24 + 4 * i + b]));
        Entry {
            name: u128::from_le_bytes(std::array::from_fn(|b| bytes[b])),
            start: u64::from_le_bytes(std::array::from_fn(|b| bytes[16 + b])),
            check: word(0),
            longest: word(1),
            row: word(2),
            file: word(3),
            group: word(4),
            partner: word(5),
        }
    }
}

/// Notices accidents: FNV-1a by words, folded.
pub(super) fn check(words: &[u32]) -> u32 {
    let mix = |sum: u64, word: &u32| (sum ^ u64::from(*word)).wrapping_mul(0x0000_0100_0000_01b3);
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    (sum ^ (sum >> 32)) as u32
}

pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

const ROLES: [Role; 4] = [Role::Chosen, Role::Rejected, Role::Mismatched, Role::Prompt];

/// A row's record. `None` for lengths that do not fit, which no text has.
pub(super) fn encode(pair: &TokenizedPair) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u32>, n: usize| {
        out.push(u32::try_from(n).ok().filter(|n| *n != NONE)?);
        Some(())
    };
    let float = |out: &mut Vec<u32>, x: f64| {
        let bits = x.to_bits();
        out.extend([bits as u32, (bits >> 32) as u32]);
    };
    number(&mut out, pair.index)?;
    number(&mut out, pair.backed_off)?;
    number(&mut out, pair.prompt.len())?;
    out.extend(&pair.prompt);
    number(&mut out, pair.branches.len())?;
    for branch in &pair.branches {
        number(&mut out, ROLES.iter().position(|role| *role == branch.role)?)?;
        number(&mut out, branch.prompt_skip)?;
        number(&mut out, branch.truncated)?;
        number(&mut out, branch.completion.len())?;
        out.extend(&branch.completion);
        number(&mut out, branch.cut.len())?;
        out.extend(&branch.cut);
    }
    let Labels { soft, group: _, rewards } = &pair.labels;
    out.extend([u32::from(soft.is_some()), u32::from(rewards.is_some())]);
    soft.iter().chain(rewards.iter().flatten()).for_each(|x| float(&mut out, *x));
    Some(out)
}

/// The reverse of [`encode`], without file, row and group. `None` for what it never gives.
pub(super) fn decode(record: &[u32]) -> Option<TokenizedPair> {
    fn take<'a>(rest: &mut &'a [u32], n: usize) -> Option<&'a [u32]> {
        let (own, others) = rest.split_at_checked(n)?;
        *rest = others;
        Some(own)
    }
    fn number(rest: &mut &[u32]) -> Option<usize> {
        take(rest, 1).map(|own| own[0] as usize)
    }
    fn float(rest: &mut &[u32]) -> Option<f64> {
        take(rest, 2).map(|own| f64::from_bits(u64::from(own[0]) | u64::from(own[1]) << 32))
    }
    let rest = &mut &record[..];
    let (index, backed_off, length) = (number(rest)?, number(rest)?, number(rest)?);
    let prompt = take(rest, length)?.to_vec();
    let mut branches = Vec::new();
    for _ in 0..number(rest)? {
        let role = *ROLES.get(number(rest)?)?;
        let (prompt_skip, truncated, length) = (number(rest)?, number(rest)?, number(rest)?);
        let completion = take(rest, length)?.to_vec();
        prompt.get(prompt_skip..)?;
        let length = number(rest)?;
        let cut = take(rest, length)?.to_vec();
        branches.push(Branch { role, completion, prompt_skip, truncated, cut });
    }
    let (soft, rewards) = (number(rest)? != 0, number(rest)? != 0);
    let soft = if soft { Some(float(rest)?) } else { None };
    let rewards = if rewards { Some([float(rest)?, float(rest)?]) } else { None };
    let labels = Labels { soft, group: None, rewards };
    let whole = rest.is_empty() && !branches.is_empty();
    whole.then(|| TokenizedPair {
        file: Arc::from(Path::new("")),
        row: 0,
        index,
        prompt,
        branches,
        labels,
        backed_off,
    })
}

/// The end of a file: the version, the sizes, and a check of these and of what stands before.
pub(super) fn foot(sizes: [u64; 3], tail: &[u8]) -> Vec<u8> {
    let mut foot: Vec<u8> = MAGIC.to_vec();
    sizes.iter().for_each(|size| foot.extend(size.to_le_bytes()));
    let (whole, rest) = tail.as_chunks::<4>();
    let print =
        Fingerprint::new().field(&foot).words(whole.iter().map(|w| u32::from_le_bytes(*w))).field(rest);
    foot.extend(print.number().to_le_bytes());
    foot
}

/// The sizes that a foot gives, where they make up the length of the file: words of records, rows, bytes of what is between.
pub(super) fn sizes(foot: &[u8], length: u64) -> Option<[u64; 3]> {
    let size = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| foot[8 + 8 * i + b]));
    let sizes @ [words, rows, tail] = [size(0), size(1), size(2)];
    let sum = words.checked_mul(4)?.checked_add(tail)?.checked_add(FOOT as u64)?;
    let fits = sum == length && rows.checked_add(1)?.checked_mul(ENTRY as u64)? <= tail;
    (foot.starts_with(MAGIC) && fits).then_some(sizes)
}

/// Head and entries, where each is what it can be.
pub(super) fn parse(tail: &[u8], rows: u64) -> Option<(Head, Vec<Entry>)> {
    let (entries, head) = tail.split_at_checked((rows as usize + 1) * ENTRY)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let entries: Vec<Entry> = entries.chunks_exact(ENTRY).map(Entry::of_bytes).collect();
    Some((head, entries))
}
