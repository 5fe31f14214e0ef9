//! Data sets drawn from a world: texts for supervised tuning, and labelled pairs.

use rand_chacha::ChaCha8Rng;

use super::draw::uniform;
use super::{Mixture, Prompt, Split, Stream, World};

/// A labelled pair.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldPair {
    /// The prompt.
    pub prompt: Prompt,
    /// `<bos>` and the prompt's words.
    pub prompt_ids: Vec<u32>,
    /// The preferred completion's words and `<eos>`.
    pub chosen_ids: Vec<u32>,
    /// The other completion's words and `<eos>`.
    pub rejected_ids: Vec<u32>,
    /// The probability that the population prefers `chosen`, in (0, 1); below 1/2 where the drawn label
    /// went against the odds.
    pub probability: f64,
}

/// A text of the human authors, for supervised tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldText {
    /// The prompt.
    pub prompt: Prompt,
    /// `<bos>` and the prompt's words.
    pub prompt_ids: Vec<u32>,
    /// The completion's words and `<eos>`.
    pub completion_ids: Vec<u32>,
}

impl World {
    /// `n` human texts for supervised tuning, on training prompts.
    pub fn sft_texts(&self, n: usize, seed: u64) -> Vec<WorldText> {
        let mut rng = self.stream(seed, Stream::Texts);
        (0..n)
            .map(|_| {
                let prompt = self.sample_prompt(Split::Train, &mut rng);
                let completion_ids = self.sample_completion(prompt, &mut rng);
                WorldText { prompt, prompt_ids: self.prompt_ids(prompt), completion_ids }
            })
            .collect()
    }

    /// `n` pairs of different human completions, labelled by the mixed population.
    ///
    /// Prompts, completions and the annotators' luck depend on the split and the seed only: the same
    /// seed at another alpha gives the same pairs, some of them turned round. Curves over alpha are
    /// smoother for it, and a change between two alphas is a change of taste alone.
    pub fn pairs(&self, n: usize, split: Split, mixture: Mixture, alpha: f64, seed: u64) -> Vec<WorldPair> {
        let mut texts = self.stream(seed, Stream::PairTexts);
        let mut labels = self.stream(seed, Stream::PairLabels);
        (0..n)
            .map(|_| {
                let prompt = self.sample_prompt(split, &mut texts);
                let first = self.sample_completion(prompt, &mut texts);
                let second = loop {
                    let other = self.sample_completion(prompt, &mut texts);
                    if other != first {
                        break other;
                    }
                };
                self.judge(mixture, alpha, prompt, first, second, &mut labels)
            })
            .collect()
    }

    /// Labels two completions (of a policy, for instance) and makes a pair of them.
    pub fn judge(
        &self,
        mixture: Mixture,
        alpha: f64,
        prompt: Prompt,
        first: Vec<u32>,
        second: Vec<u32>,
        rng: &mut ChaCha8Rng,
    ) -> WorldPair {
        let probability = self.preference(mixture, alpha, prompt, &first, &second);
        let prompt_ids = self.prompt_ids(prompt);
        if uniform(rng) < probability {
            WorldPair { prompt, prompt_ids, chosen_ids: first, rejected_ids: second, probability }
        } else {
            let probability = 1.0 - probability;
            WorldPair { prompt, prompt_ids, chosen_ids: second, rejected_ids: first, probability }
        }
    }
}
