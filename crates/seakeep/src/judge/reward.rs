//! A reward model as the judge of completions.

use super::Judge;
use super::summary::unknown;
use crate::Result;
use crate::data::Text;
use crate::policy_record::Shift;
use crate::progress::Progress;
use crate::reference;
use crate::reward::RewardModel;

/// A reward model that scores `batch_size` completions at a time, which does not change the scores.
pub struct RewardJudge {
    /// The model; its labels are the objectives.
    pub model: RewardModel,
    /// Texts of a pass.
    pub batch_size: usize,
}

impl RewardJudge {
    /// Refuses a shift between objectives that the model does not score.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) with the nearest objective.
    pub fn check_shift(&self, shift: &Shift) -> Result<()> {
        let labels = self.model.labels();
        match shift.objectives.iter().find(|name| !labels.contains(name)) {
            Some(name) => Err(unknown(name, labels.iter().map(String::as_str), "reward model")),
            None => Ok(()),
        }
    }
}

impl Judge for RewardJudge {
    fn objectives(&self) -> Vec<String> {
        self.model.labels().to_vec()
    }

    fn score(&mut self, texts: &[(&Text, &str)], progress: &mut dyn Progress) -> Result<Vec<Vec<f64>>> {
        let tokens = |(prompt, completion): &(&Text, &str)| {
            self.model.tokens(prompt, &Text::Standard(completion.to_string()))
        };
        let mut tokens: Vec<Vec<u32>> = texts.iter().map(tokens).collect::<Result<_>>()?;
        // The judge's tokenizer may need many more tokens than the policy's: a policy that has come apart writes anything.
        let cut =
            tokens.iter_mut().filter_map(|tokens| self.model.truncate(tokens, None).then_some(())).count();
        if cut > 0 {
            progress.note(&format!(
                "{cut} samples are longer than the reward model's positions and lost their end"
            ));
        }
        progress.start("scoring samples", tokens.len() as u64);
        let scores = self.model.score(&tokens, self.batch_size, progress)?;
        progress.finish();
        Ok(scores)
    }

    fn fingerprint(&self) -> Option<String> {
        Some(reference::weights(&self.model.model))
    }
}
