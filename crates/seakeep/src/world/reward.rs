//! What a completion is worth: its attributes, the two populations' rewards, and their mixtures.

use serde::{Deserialize, Serialize};

use super::grammar;
use super::lexicon::{Contribution, EXPERTS, Field, MOODS, Mood, RIGHT_EXPERT, TONES, TOPICS, WRONG_EXPERT};

/// Completions of at most this many words (punctuation counts) have brevity 1.
pub const BRIEF_WORDS: usize = 5;
/// Completions of at least this many words have brevity 0; between the two it falls linearly.
pub const LONG_WORDS: usize = 20;
/// Quality lost per fault against the grammar.
pub const FAULT_COST: f64 = 0.2;
/// Share of the quality left to an answer that fits another topic.
pub const OFF_TOPIC: f64 = 0.3;

/// What a completion is like, given its prompt. All in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attributes {
    /// 0.1 plus what the words add.
    pub warmth: f64,
    /// 1 up to [`BRIEF_WORDS`], 0 from [`LONG_WORDS`].
    pub brevity: f64,
    /// 0.5 plus what the words add.
    pub formality: f64,
    /// 0.2 plus what the words add; a referral counts in full only to the right expert.
    pub caution: f64,
    /// Grammatical and to the point: `max(0, 1 - FAULT_COST * faults)`, times 1 with an answer to the
    /// prompt's topic, [`OFF_TOPIC`] with another topic's, 0 without one. Multiplies every reward.
    pub quality: f64,
}

/// The part of a prompt that rewards look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    pub mood: usize,
    pub topic: usize,
}

impl Situation {
    /// All that rewards read of a prompt, but for which words are its answers.
    pub fn case(self) -> (Mood, Field) {
        (MOODS[self.mood].1, TOPICS[self.topic].1)
    }
}

/// The attributes of a completion's words. Defined for every sequence of words, garbled ones too.
pub(super) fn attributes(situation: Situation, words: &[&str]) -> Attributes {
    let (_, field, answers) = &TOPICS[situation.topic];
    let (mut warmth, mut formality, mut caution) = (0.1, 0.5, 0.2);
    for (at, word) in words.iter().enumerate() {
        // A word counts once: repeating "careful" ten times is not ten times as careful.
        if !words[..at].contains(word) {
            let tone = contribution(word, *field);
            warmth += tone.warmth;
            formality += tone.formality;
            caution += tone.caution;
        }
    }
    let spare = LONG_WORDS as f64 - words.len() as f64;
    let brevity = spare / (LONG_WORDS - BRIEF_WORDS) as f64;
    let grammatical = 1.0 - FAULT_COST * grammar::faults(words) as f64;
    let relevant = if words.iter().any(|word| answers.contains(word)) {
        1.0
    } else if words.iter().any(|word| TOPICS.iter().any(|topic| topic.2.contains(word))) {
        OFF_TOPIC
    } else {
        0.0
    };
    Attributes {
        warmth: warmth.clamp(0.0, 1.0),
        brevity: brevity.clamp(0.0, 1.0),
        formality: formality.clamp(0.0, 1.0),
        caution: caution.clamp(0.0, 1.0),
        quality: grammatical.max(0.0) * relevant,
    }
}

fn contribution(word: &str, field: Field) -> Contribution {
    if EXPERTS.contains(&word) {
        let caution = if word == field.expert() { RIGHT_EXPERT } else { WRONG_EXPERT };
        return Contribution { caution, ..Contribution::default() };
    }
    TONES
        .iter()
        .find(|tone| tone.0 == word)
        .map(|&(_, warmth, formality, caution)| Contribution { warmth, formality, caution })
        .unwrap_or_default()
}

/// The two populations of annotators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Population {
    /// Population 1, reward r1: wants warm, short, informal answers; warmer to the distressed,
    /// shorter to the hurried. Does not value caution.
    Companions,
    /// Population 2, reward r2: wants careful and formal answers, the more careful the more is at
    /// stake; likes them short too.
    Professionals,
}

/// How much each attribute counts. The four weights are non-negative and add up to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// On warmth.
    pub warmth: f64,
    /// On brevity.
    pub brevity: f64,
    /// On formality, or on its opposite, `1 - formality`, where `informal` holds.
    pub formality: f64,
    /// On caution.
    pub caution: f64,
    /// Whether informality is what is liked.
    pub informal: bool,
}

impl Population {
    pub(super) fn weights(self, situation: Situation) -> Weights {
        match self {
            Population::Companions => {
                let (warmth, brevity) = match MOODS[situation.mood].1 {
                    Mood::Distressed => (0.6, 0.15),
                    Mood::Hurried => (0.25, 0.5),
                    Mood::Even => (0.45, 0.3),
                };
                Weights { warmth, brevity, formality: 0.25, caution: 0.0, informal: true }
            }
            Population::Professionals => {
                let risk = TOPICS[situation.topic].1.risk();
                Weights {
                    warmth: 0.2 - 0.2 * risk,
                    brevity: 0.2,
                    formality: 0.5 - 0.3 * risk,
                    caution: 0.1 + 0.5 * risk,
                    informal: false,
                }
            }
        }
    }
}

impl Weights {
    /// The reward, in [0, 1]: the weighted attributes times the quality.
    pub fn reward(&self, a: &Attributes) -> f64 {
        let formality = if self.informal { 1.0 - a.formality } else { a.formality };
        let liked = self.warmth * a.warmth
            + self.brevity * a.brevity
            + self.formality * formality
            + self.caution * a.caution;
        (a.quality * liked).clamp(0.0, 1.0)
    }
}

/// How the two populations' rewards are put together (arXiv 2502.01930, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixture {
    /// `alpha r1 + (1 - alpha) r2`.
    Convex,
    /// `r1^alpha r2^(1 - alpha)`, with `0^0 = 1`, so that alpha 0 is r2 and alpha 1 is r1.
    Geometric,
}

impl Mixture {
    /// Both mixtures, in the order reports show them.
    pub const ALL: [Mixture; 2] = [Mixture::Convex, Mixture::Geometric];

    /// The name used in records and files.
    pub fn name(self) -> &'static str {
        match self {
            Mixture::Convex => "convex",
            Mixture::Geometric => "geometric",
        }
    }

    /// The mixed reward in [0, 1] of rewards in [0, 1]; `alpha` in [0, 1] is population 1's share.
    pub fn mix(self, alpha: f64, r1: f64, r2: f64) -> f64 {
        match self {
            Mixture::Convex => alpha * r1 + (1.0 - alpha) * r2,
            Mixture::Geometric => r1.powf(alpha) * r2.powf(1.0 - alpha),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    fn of(mood: usize, topic: usize, text: &str) -> Attributes {
        attributes(Situation { mood, topic }, &text.split_whitespace().collect::<Vec<_>>())
    }

    /// Worked out by hand from the table in `lexicon.rs`.
    #[test]
    fn attributes_of_fixed_sentences() {
        let plain = of(0, 0, "use water .");
        close(plain.warmth, 0.1);
        close(plain.brevity, 1.0);
        close(plain.formality, 0.5);
        close(plain.caution, 0.2);
        close(plain.quality, 1.0);

        // 12 words: brevity (20 - 12) / 15. careful 0.4, ask 0.1, doctor 0.3.
        let careful = of(0, 0, "be careful : you can try rest and ask a doctor .");
        close(careful.warmth, 0.1 + 0.05);
        close(careful.brevity, 8.0 / 15.0);
        close(careful.formality, 0.5 - 0.05);
        close(careful.caution, 1.0);
        close(careful.quality, 1.0);

        // The wrong expert: 0.05 instead of 0.3.
        close(of(0, 0, "be careful : you can try rest and ask a lawyer .").caution, 0.75);

        // 14 words; formality 0.5 + 0.25 + 0.15 + 0.35 + 0.1 + 0.2 is held at 1.
        let formal = of(0, 9, "greetings , thank you . one should consider scales daily . kind regards .");
        close(formal.warmth, 0.1 + 0.05 + 0.15 + 0.1 + 0.05);
        close(formal.brevity, 6.0 / 15.0);
        close(formal.formality, 1.0);
        close(formal.caution, 0.2 + 0.05 - 0.05);
    }

    #[test]
    fn garbled_text_does_not_pay() {
        close(of(0, 0, "").quality, 0.0);
        close(of(0, 0, "careful careful careful careful .").quality, 0.0);
        close(of(0, 0, "use garlic .").quality, OFF_TOPIC);
        close(of(0, 0, "use water").quality, 0.8);
        close(of(0, 0, "use water water water .").quality, 0.6);
        close(of(0, 0, "a a a a a a water").quality, 0.0);
        // Said twice counts once.
        close(of(0, 0, "perhaps perhaps use water .").caution, 0.4);
    }

    #[test]
    fn weights_add_up_to_one_everywhere() {
        for mood in 0..MOODS.len() {
            for topic in 0..TOPICS.len() {
                for population in [Population::Companions, Population::Professionals] {
                    let w = population.weights(Situation { mood, topic });
                    close(w.warmth + w.brevity + w.formality + w.caution, 1.0);
                    assert!([w.warmth, w.brevity, w.formality, w.caution].iter().all(|&x| x >= 0.0));
                }
            }
        }
    }

    #[test]
    fn rewards_by_hand() {
        // Worried asker, fever: r1 = 0.6 w + 0.15 b + 0.25 (1 - f); r2 = 0.2 b + 0.2 f + 0.6 c.
        let situation = Situation { mood: 0, topic: 0 };
        let plain = of(0, 0, "use water .");
        close(Population::Companions.weights(situation).reward(&plain), 0.06 + 0.15 + 0.125);
        close(Population::Professionals.weights(situation).reward(&plain), 0.2 + 0.1 + 0.12);
    }

    #[test]
    fn mixtures_have_their_closed_forms() {
        let (r1, r2) = (0.9, 0.4);
        close(Mixture::Convex.mix(0.1, r1, r2), 0.45);
        close(Mixture::Geometric.mix(0.5, r1, r2), 0.6);
        for mixture in Mixture::ALL {
            close(mixture.mix(0.0, r1, r2), r2);
            close(mixture.mix(1.0, r1, r2), r1);
            close(mixture.mix(0.0, 0.0, r2), r2);
            close(mixture.mix(0.3, 0.7, 0.7), 0.7);
            for step in 0..=10 {
                let mixed = mixture.mix(f64::from(step) / 10.0, r1, r2);
                assert!((r2..=r1).contains(&mixed));
            }
        }
        assert!(Mixture::Geometric.mix(0.5, r1, r2) < Mixture::Convex.mix(0.5, r1, r2));
    }
}
