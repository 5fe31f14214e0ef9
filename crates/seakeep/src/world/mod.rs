//! A small preference world with a known truth, for `seakeep quickstart` and for tests.
//!
//! A *prompt* says who asks, in which state, about what: `a worried child asks about fever ?`. A
//! *completion* is 3 to 23 words from a grammar of optional courtesies around an answer: `be careful :
//! you can try rest and ask a doctor .`. Each completion has a warmth, a brevity, a formality and a
//! caution, read off its words; two populations of annotators weigh them differently; pairs are
//! labelled by Bradley-Terry from a mixture of the two. Everything is a function of one seed.
//!
//! # Why it is as it is
//!
//! The aim is a fair model, small enough for a laptop, of the setting in which the papers compare
//! robust methods (arXiv 2502.01930, section 7): labels at a nominal `alpha0 = 0.1`, so mostly
//! population 2's, and policies judged at every `alpha` in [0, 1], by either mixture. Choices, and why:
//!
//! - *Partly opposed populations.* They disagree on formality, each has a value of its own (warmth,
//!   caution), and both like brevity a little. With nothing shared, robustness would be impossible;
//!   with nothing opposed, it would be free.
//! - *Attributes conflict.* Courtesies and cautions cost words, so no completion maximises everything.
//! - *Rewards read the prompt.* Caution counts more for population 2 the more is at stake; warmth or
//!   brevity counts more for population 1 by the asker's state; the right expert depends on the topic.
//!   A policy that ignores the prompt loses. Who asks counts for nothing, as much in a prompt does.
//! - *Quality multiplies.* Faulty or irrelevant text is worth little to both, so a policy cannot gain
//!   by leaving the language, and tuning too hard shows as a loss at every alpha.
//! - *The scale of Bradley-Terry* ([`REWARD_SCALE`]). The papers put rewards in [0, 1] straight into
//!   the sigmoid. Two completions then differ by about 0.15, labels are nearly coin flips, and the few
//!   thousand pairs of a small run carry next to nothing. The scale is set so that a label agrees with
//!   the better completion in about seven of ten pairs. Two annotators then agree in about six of ten,
//!   a little below the two in three or so of human helpfulness data (arXiv 2204.05862, 2203.02155). It
//!   was chosen before any policy was trained, from that rate alone.
//! - *Human texts* fill the slots independently, with frequencies drawn from the seed, answers always to
//!   the topic. Supervised tuning on them gives a reference policy of middling reward for both
//!   populations: neither is favoured at the start.
//!
//! Nothing here was tuned against the outcome of a training method.
//!
//! # What it is not
//!
//! Not language: no policy's rank here says what it would be on real text. The shift is of the
//! annotators only; prompts of train and test are disjoint but of one distribution.
//!
//! # Reproducibility
//!
//! Draws come from ChaCha8 and are turned into choices by integer arithmetic here, not by a library's
//! samplers, so texts depend on neither platform nor version. Rewards use `exp` and `powf`, which may
//! differ in the last bit between platforms.

mod draw;
mod grammar;
mod lexicon;
mod pairs;
mod reward;
mod tokenizer;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};
use draw::{stream, uniform, weighted};
pub use lexicon::{BOS, EOS, PAD, UNK};
use lexicon::{Field, Mood};
pub use pairs::{WorldPair, WorldText};
pub use reward::{Attributes, BRIEF_WORDS, FAULT_COST, LONG_WORDS, Mixture, OFF_TOPIC, Population, Weights};
use reward::{Situation, attributes};

/// The nominal share of population 1 in the training labels (arXiv 2502.01930).
pub const NOMINAL_ALPHA: f64 = 0.1;
/// What reward differences are multiplied by before the sigmoid of Bradley-Terry; see the module's text.
pub const REWARD_SCALE: f64 = 6.0;

/// Settings of a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorldConfig {
    /// Decides the split of the prompts and the habits of the human authors.
    pub seed: u64,
    /// Share of the prompts kept for the test split, in (0, 1).
    pub test_fraction: f64,
    /// Bradley-Terry: `P(a beats b) = sigmoid(reward_scale (r(a) - r(b)))`. Positive.
    pub reward_scale: f64,
}

impl Default for WorldConfig {
    fn default() -> Self {
        WorldConfig { seed: 0, test_fraction: 0.2, reward_scale: REWARD_SCALE }
    }
}

/// Which prompts to draw from. The two share none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For supervised tuning and training pairs.
    Train,
    /// For evaluation.
    Test,
}

/// A prompt: numbers into the tables of askers, moods, requests and topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prompt {
    asker: u8,
    mood: u8,
    request: u8,
    topic: u8,
}

impl Prompt {
    fn situation(self) -> Situation {
        Situation { mood: self.mood.into(), topic: self.topic.into() }
    }

    /// The prompt's words joined by single spaces, without special tokens.
    pub fn text(self) -> String {
        let mut words = vec!["a", lexicon::MOODS[self.mood as usize].0, lexicon::ASKERS[self.asker as usize]];
        words.extend(lexicon::REQUESTS[self.request as usize]);
        words.extend([lexicon::TOPICS[self.topic as usize].0, "?"]);
        words.join(" ")
    }
}

/// The world: see the module's text.
#[derive(Clone, Debug)]
pub struct World {
    config: WorldConfig,
    vocabulary: Vec<String>,
    train: Vec<Prompt>,
    test: Vec<Prompt>,
    /// Per slot, the frequency (not normalised) of each of its choices in human texts.
    habits: Vec<Vec<f64>>,
}

/// Random streams of one seed: a draw in one never moves another.
#[derive(Clone, Copy)]
enum Stream {
    Split = 1,
    Habits,
    Texts,
    PairTexts,
    PairLabels,
    Caller,
}

impl World {
    /// Builds the world of `config.seed`.
    ///
    /// # Errors
    /// [`Error::Usage`] where a setting is out of its range.
    pub fn new(config: WorldConfig) -> Result<World> {
        if !(config.test_fraction > 0.0 && config.test_fraction < 1.0) {
            return Err(Error::Usage(format!(
                "test_fraction is {}; it must lie between 0 and 1",
                config.test_fraction
            )));
        }
        if !(config.reward_scale > 0.0 && config.reward_scale.is_finite()) {
            return Err(Error::Usage(format!(
                "reward_scale is {}; it must be positive and finite",
                config.reward_scale
            )));
        }
        let mut train = all_prompts();
        draw::shuffle(&mut train, &mut stream(config.seed, Stream::Split as u64));
        let kept = (train.len() as f64 * config.test_fraction).round() as usize;
        let test = train.split_off(train.len() - kept.clamp(1, train.len() - 1));
        let mut rng = stream(config.seed, Stream::Habits as u64);
        let habits = (0..grammar::SLOT_COUNT)
            .map(|slot| {
                grammar::choices(slot)
                    // An optional slot stays empty about as often as two of its phrases together.
                    .map(|choice| (0.5 + uniform(&mut rng)) * if choice == 0 { 2.0 } else { 1.0 })
                    .collect()
            })
            .collect();
        Ok(World { vocabulary: tokenizer::vocabulary(), config, train, test, habits })
    }

    /// The settings the world was built from.
    pub fn config(&self) -> &WorldConfig {
        &self.config
    }

    /// All tokens; a token's position is its id. `<pad>`, `<bos>`, `<eos>`, `<unk>` are 0 to 3.
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// Ids of the words of `text`, split at white space; an unknown word becomes [`UNK`]. Adds no
    /// special tokens.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let id = |word| self.vocabulary.iter().position(|v| v == word).map_or(UNK, |at| at as u32);
        text.split_whitespace().map(id).collect()
    }

    /// The words of `ids` joined by single spaces. Leaves `<pad>`, `<bos>` and `<eos>` out; writes an
    /// id beyond the vocabulary as `<unk>`.
    pub fn decode(&self, ids: &[u32]) -> String {
        let shown = ids.iter().filter(|id| ![PAD, BOS, EOS].contains(id));
        shown.map(|&id| self.word(id)).collect::<Vec<_>>().join(" ")
    }

    fn word(&self, id: u32) -> &str {
        self.vocabulary.get(id as usize).map_or("<unk>", String::as_str)
    }

    /// `<bos>` and the ids of the prompt's words: what a policy is given.
    pub fn prompt_ids(&self, prompt: Prompt) -> Vec<u32> {
        let mut ids = vec![BOS];
        ids.extend(self.encode(&prompt.text()));
        ids
    }

    /// The prompts of a split, in a fixed order.
    pub fn prompts(&self, split: Split) -> &[Prompt] {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }

    /// A prompt of the split, all equally likely.
    pub fn sample_prompt(&self, split: Split, rng: &mut ChaCha8Rng) -> Prompt {
        let prompts = self.prompts(split);
        prompts[draw::below(prompts.len(), rng)]
    }

    /// A completion as the human authors write it: ids of its words, then `<eos>`.
    pub fn sample_completion(&self, prompt: Prompt, rng: &mut ChaCha8Rng) -> Vec<u32> {
        let choice: grammar::Choice =
            std::array::from_fn(|slot| grammar::choices(slot).start() + weighted(&self.habits[slot], rng));
        self.spell(prompt, &choice)
    }

    fn spell(&self, prompt: Prompt, choice: &grammar::Choice) -> Vec<u32> {
        let mut ids = self.encode(&grammar::words(prompt.topic.into(), choice).join(" "));
        ids.push(EOS);
        ids
    }

    /// The attributes of a completion. What follows the first `<eos>` is not looked at; other special
    /// tokens and unknown ids count as faults. Defined for every sequence of ids.
    pub fn attributes(&self, prompt: Prompt, completion: &[u32]) -> Attributes {
        let words: Vec<&str> =
            completion.iter().take_while(|&&id| id != EOS).map(|&id| self.word(id)).collect();
        attributes(prompt.situation(), &words)
    }

    /// The weights of `population` for this prompt.
    pub fn weights(&self, population: Population, prompt: Prompt) -> Weights {
        population.weights(prompt.situation())
    }

    /// The rewards (r1, r2) of the two populations, each in [0, 1].
    pub fn rewards(&self, prompt: Prompt, completion: &[u32]) -> (f64, f64) {
        let found = self.attributes(prompt, completion);
        let of = |population: Population| population.weights(prompt.situation()).reward(&found);
        (of(Population::Companions), of(Population::Professionals))
    }

    /// The mixed reward in [0, 1]; `alpha` in [0, 1] is population 1's share.
    pub fn reward(&self, mixture: Mixture, alpha: f64, prompt: Prompt, completion: &[u32]) -> f64 {
        let (r1, r2) = self.rewards(prompt, completion);
        mixture.mix(alpha, r1, r2)
    }

    /// The probability that an annotator of the mixed population prefers `first` to `second`.
    pub fn preference(
        &self,
        mixture: Mixture,
        alpha: f64,
        prompt: Prompt,
        first: &[u32],
        second: &[u32],
    ) -> f64 {
        let gap = self.reward(mixture, alpha, prompt, first) - self.reward(mixture, alpha, prompt, second);
        1.0 / (1.0 + (-self.config.reward_scale * gap).exp())
    }

    /// One annotator's answer: whether `first` is preferred.
    pub fn label(
        &self,
        mixture: Mixture,
        alpha: f64,
        prompt: Prompt,
        first: &[u32],
        second: &[u32],
        rng: &mut ChaCha8Rng,
    ) -> bool {
        uniform(rng) < self.preference(mixture, alpha, prompt, first, second)
    }

    /// The completion of the grammar with the highest mixed reward, and that reward: the ceiling of
    /// every policy at this prompt.
    pub fn best_completion(&self, mixture: Mixture, alpha: f64, prompt: Prompt) -> (Vec<u32>, f64) {
        let (choice, reward) = possible_rewards(prompt)
            .map(|(choice, (r1, r2))| (choice, mixture.mix(alpha, r1, r2)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("the grammar is not empty");
        (self.spell(prompt, &choice), reward)
    }

    /// For each mixture and alpha, the mean over the split's prompts of the best reward that a
    /// completion of the grammar can have, each prompt answered at its best: no policy's mean is higher.
    pub fn ceilings(&self, split: Split, points: &[(Mixture, f64)]) -> Vec<f64> {
        let prompts = self.prompts(split);
        // Rewards depend on the prompt through the kind of mood and the field only: nine cases.
        let mut known: Vec<((Mood, Field), Vec<f64>)> = Vec::new();
        let mut sums = vec![0.0; points.len()];
        for &prompt in prompts {
            let case = prompt.situation().case();
            if !known.iter().any(|entry| entry.0 == case) {
                let mut best = vec![0.0f64; points.len()];
                for (_, (r1, r2)) in possible_rewards(prompt) {
                    for (best, (mixture, alpha)) in best.iter_mut().zip(points) {
                        *best = best.max(mixture.mix(*alpha, r1, r2));
                    }
                }
                known.push((case, best));
            }
            let best = &known.iter().find(|entry| entry.0 == case).expect("just put in").1;
            sums.iter_mut().zip(best).for_each(|(sum, best)| *sum += best / prompts.len() as f64);
        }
        sums
    }

    /// A generator for a caller's own draws ([`World::sample_prompt`], [`World::label`], [`World::judge`]),
    /// independent of those behind [`World::pairs`] and [`World::sft_texts`].
    pub fn rng(&self, seed: u64) -> ChaCha8Rng {
        self.stream(seed, Stream::Caller)
    }

    /// The generator of a stream for a caller's seed; worlds of different seeds give different ones.
    fn stream(&self, seed: u64, which: Stream) -> ChaCha8Rng {
        stream(self.config.seed ^ seed.rotate_left(32), which as u64)
    }
}

/// Every completion of the grammar at a prompt, with its two rewards.
fn possible_rewards(prompt: Prompt) -> impl Iterator<Item = (grammar::Choice, (f64, f64))> {
    let situation = prompt.situation();
    let w1 = Population::Companions.weights(situation);
    let w2 = Population::Professionals.weights(situation);
    grammar::all_choices().map(move |choice| {
        let found = attributes(situation, &grammar::words(situation.topic, &choice));
        (choice, (w1.reward(&found), w2.reward(&found)))
    })
}

fn all_prompts() -> Vec<Prompt> {
    let mut out = Vec::new();
    for asker in 0..lexicon::ASKERS.len() as u8 {
        for mood in 0..lexicon::MOODS.len() as u8 {
            for request in 0..lexicon::REQUESTS.len() as u8 {
                for topic in 0..lexicon::TOPICS.len() as u8 {
                    out.push(Prompt { asker, mood, request, topic });
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
