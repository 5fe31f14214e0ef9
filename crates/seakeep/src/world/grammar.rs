//! The grammar of completions: nine slots in a fixed order, each one of a few phrases or, where the
//! slot is optional, nothing.
//!
//! No two phrases of the grammar begin with the same word, so reading a text back is a single pass
//! without backtracking, and a text that a trained model garbled can be graded word by word.

use super::lexicon::{EXPERTS, TOPICS};

/// A phrase of a slot. `{answer}` and `{expert}` stand for a word that depends on the topic.
type Phrase = &'static [&'static str];

/// One slot of a completion.
struct Slot {
    /// Whether a completion without it is faulty.
    required: bool,
    /// The phrases that can fill it, leaving it empty not counted.
    phrases: &'static [Phrase],
}

const fn optional(phrases: &'static [Phrase]) -> Slot {
    Slot { required: false, phrases }
}

const fn required(phrases: &'static [Phrase]) -> Slot {
    Slot { required: true, phrases }
}

/// Greeting, sympathy, stance, opening of the answer, answer, manner, referral, full stop, closing.
const SLOTS: [Slot; 9] = [
    optional(&[&["hello", ","], &["hey", ","], &["dear", "friend", ","], &["greetings", ","]]),
    optional(&[&["i", "am", "sorry", "."], &["lovely", "question", "."], &["thank", "you", "."]]),
    optional(&[&["perhaps"], &["that", "depends", ":"], &["be", "careful", ":"], &["surely"]]),
    required(&[&["use"], &["just", "grab"], &["you", "can", "try"], &["one", "should", "consider"]]),
    required(&[&["{answer}"]]),
    optional(&[&["slowly"], &["daily"], &["together"]]),
    optional(&[&["and", "ask", "a", "{expert}"]]),
    required(&[&["."]]),
    optional(&[
        &["take", "care", "."],
        &["best", "wishes", "."],
        &["kind", "regards", "."],
        &["cheers", "."],
    ]),
];

/// Number of slots.
pub const SLOT_COUNT: usize = SLOTS.len();
/// The slot of the answer itself, whose choices are the topic's three answers.
const ANSWER: usize = 4;

/// Which phrase fills each slot: 0 leaves an optional slot empty, otherwise a phrase counted from 1;
/// in the answer slot the topic's answers counted from 1.
pub type Choice = [usize; SLOT_COUNT];

/// The values that `slot` may take in a [`Choice`], smallest and largest.
pub fn choices(slot: usize) -> std::ops::RangeInclusive<usize> {
    let most = if slot == ANSWER { TOPICS[0].2.len() } else { SLOTS[slot].phrases.len() };
    usize::from(SLOTS[slot].required)..=most
}

/// The words of the completion that `choice` spells out for topic number `topic`.
pub fn words(topic: usize, choice: &Choice) -> Vec<&'static str> {
    let (_, field, answers) = &TOPICS[topic];
    let mut out = Vec::with_capacity(24);
    for (index, (slot, &chosen)) in SLOTS.iter().zip(choice).enumerate() {
        if chosen == 0 {
            continue;
        }
        if index == ANSWER {
            out.push(answers[chosen - 1]);
            continue;
        }
        out.extend(
            slot.phrases[chosen - 1].iter().map(|&w| if w == "{expert}" { field.expert() } else { w }),
        );
    }
    out
}

/// Every completion that the grammar has for a topic, as choices.
pub fn all_choices() -> impl Iterator<Item = Choice> {
    let total: usize = (0..SLOT_COUNT).map(|slot| choices(slot).count()).product();
    (0..total).map(|mut number| {
        std::array::from_fn(|slot| {
            let range = choices(slot);
            let size = range.clone().count();
            let chosen = range.start() + number % size;
            number /= size;
            chosen
        })
    })
}

/// Every word that completions use, topic words included, in the order of first use.
pub fn vocabulary() -> Vec<&'static str> {
    let mut out = Vec::new();
    for word in SLOTS.iter().flat_map(|slot| slot.phrases.iter().flat_map(|phrase| phrase.iter())) {
        match *word {
            "{answer}" => out.extend(TOPICS.iter().flat_map(|topic| topic.2)),
            "{expert}" => out.extend(EXPERTS),
            word => out.push(word),
        }
    }
    out
}

fn fits(pattern: &str, word: &str) -> bool {
    match pattern {
        "{answer}" => TOPICS.iter().any(|topic| topic.2.contains(&word)),
        "{expert}" => EXPERTS.contains(&word),
        _ => pattern == word,
    }
}

/// Number of faults of a text against the grammar: words that no phrase in order accounts for, and
/// required slots left empty. 0 exactly for the texts of the grammar (any topic's answer, any expert).
pub fn faults(text: &[&str]) -> usize {
    let (mut faults, mut next_slot, mut at) = (0, 0, 0);
    while at < text.len() {
        let found = SLOTS.iter().enumerate().skip(next_slot).find_map(|(index, slot)| {
            let phrase = slot.phrases.iter().find(|phrase| {
                text.len() - at >= phrase.len() && phrase.iter().zip(&text[at..]).all(|(p, w)| fits(p, w))
            })?;
            Some((index, phrase.len()))
        });
        match found {
            Some((index, length)) => {
                faults += missing(next_slot, index);
                next_slot = index + 1;
                at += length;
            }
            None => {
                faults += 1;
                at += 1;
            }
        }
    }
    faults + missing(next_slot, SLOT_COUNT)
}

/// Required slots among `from..to`.
fn missing(from: usize, to: usize) -> usize {
    SLOTS[from..to].iter().filter(|slot| slot.required).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        text.split(' ').collect()
    }

    #[test]
    fn spells_out_and_grades_texts() {
        assert_eq!(words(0, &[0, 0, 0, 1, 2, 0, 0, 1, 0]).join(" "), "use water .");
        assert_eq!(
            words(3, &[3, 1, 3, 4, 2, 1, 1, 1, 3]).join(" "),
            "dear friend , i am sorry . be careful : one should consider bonds slowly and ask a lawyer . \
             kind regards ."
        );
        assert_eq!(faults(&split("use water .")), 0);
        assert_eq!(faults(&split("use water")), 1, "no full stop");
        assert_eq!(faults(&split("water .")), 1, "no opening");
        assert_eq!(faults(&split("use .")), 1, "no answer");
        assert_eq!(faults(&split("use water hello , .")), 2, "greeting out of order");
        assert_eq!(faults(&split("use water water water .")), 2);
        assert_eq!(faults(&split("")), 4, "an empty word and three slots missing");
        assert_eq!(faults(&[]), 3);
    }

    #[test]
    fn every_text_of_the_grammar_is_faultless() {
        let mut seen = 0;
        for choice in all_choices() {
            assert_eq!(faults(&words(7, &choice)), 0, "{choice:?}");
            seen += 1;
        }
        assert_eq!(seen, 5 * 4 * 5 * 4 * 3 * 4 * 2 * 5);
    }

    #[test]
    fn phrases_begin_with_distinct_words() {
        let mut firsts: Vec<&str> =
            SLOTS.iter().flat_map(|s| s.phrases.iter().map(|phrase| phrase[0])).collect();
        firsts.sort_unstable();
        let all = firsts.len();
        firsts.dedup();
        assert_eq!(firsts.len(), all);
    }
}
