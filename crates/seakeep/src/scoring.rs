//! Log-probabilities of preference pairs under a model: laying pairs out as batches, and running them.
//! Training, evaluation, the reference and the `logps` command all come through here.

use seakeep_kernels::projection::Predicted;

use crate::batch::{Batch, Sharing};
use crate::data::TokenizedPair;
use crate::logps::BranchLogps;
use crate::model::Model;
use crate::progress::Progress;
use crate::{Error, Result};

/// Lays out pairs: chosen and rejected of each, the prompt shared where both branches keep the same.
pub fn lay_out<'a>(pairs: impl IntoIterator<Item = &'a TokenizedPair>, sharing: Sharing) -> Batch {
    let mut batch = Batch::default();
    for pair in pairs {
        let branches = [&pair.chosen, &pair.rejected];
        match pair.shared_prompt() {
            Some(prompt) => batch.push(prompt, &branches.map(|b| b.completion.as_slice()), sharing),
            None => batch.push_texts(&branches.map(|b| (pair.prompt_of(b), b.completion.as_slice()))),
        }
    }
    batch
}

/// Means over predicted tokens, as TRL logs them.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenStats {
    logits: [f64; 2],
    tokens: [usize; 2],
    entropy: f64,
    top1: usize,
}

impl TokenStats {
    /// Counts the tokens of a batch of pairs.
    pub fn add(&mut self, batch: &Batch, predicted: &[Predicted]) {
        for (prediction, p) in batch.predictions.iter().zip(predicted) {
            let branch = prediction.branch as usize % 2;
            self.logits[branch] += p.mean_logit as f64;
            self.tokens[branch] += 1;
            self.entropy += p.entropy as f64;
            self.top1 += usize::from(branch == 0 && p.is_top1);
        }
    }

    /// `logits/chosen`, `logits/rejected` (mean logit over vocabulary and tokens), `entropy` (nats, mean over
    /// all completion tokens), `mean_token_accuracy` (share of chosen tokens that were the likeliest).
    pub fn metrics(&self) -> [(&'static str, f64); 4] {
        let share = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        [
            ("logits/chosen", share(self.logits[0], self.tokens[0])),
            ("logits/rejected", share(self.logits[1], self.tokens[1])),
            ("entropy", share(self.entropy, self.tokens[0] + self.tokens[1])),
            ("mean_token_accuracy", share(self.top1 as f64, self.tokens[0])),
        ]
    }
}

/// Log-probabilities of `pairs`, `batch_size` of them at a time, and means over their tokens.
///
/// # Errors
/// A token or a length that the model does not have.
pub fn score(
    model: &Model,
    pairs: &[&TokenizedPair],
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<(BranchLogps, TokenStats)> {
    let mut logps = BranchLogps::default();
    let mut stats = TokenStats::default();
    for pair in pairs {
        check_length(model, pair)?;
    }
    for part in pairs.chunks(batch_size) {
        let batch = lay_out(part.iter().copied(), Sharing::Shared);
        // Lengths were checked above, where the row has a name.
        model.check_tokens(&batch.tokens)?;
        let predicted = model.predictions(&batch);
        stats.add(&batch, &predicted);
        let branches = batch.branch_sums(predicted.iter().map(|p| p.logp));
        if let Some(b) = branches.iter().position(|l| !l.is_finite()) {
            let (pair, what) = (part[b / 2], if b % 2 == 0 { "chosen" } else { "rejected" });
            return Err(Error::row(
                &pair.file,
                pair.row,
                what,
                format!(
                    "its log-probability is {}: the model's weights or configuration are broken",
                    branches[b]
                ),
            ));
        }
        logps.extend(&BranchLogps::from_branches(&branches));
        progress.advance(part.len() as u64, "");
    }
    Ok((logps, stats))
}

/// Names the row whose text is longer than the model.
fn check_length(model: &Model, pair: &TokenizedPair) -> Result<()> {
    let most = model.config.max_positions;
    for (key, branch) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        let length = pair.prompt_of(branch).len() + branch.completion.len();
        if length > most {
            let what = format!(
                "{length} tokens with its prompt; the model has {most} positions: set `max_length` to {most} or less"
            );
            return Err(Error::row(&pair.file, pair.row, key, what));
        }
    }
    Ok(())
}

/// Log-probabilities of `pairs` in nats, summed over completion tokens; `batch_size` pairs at a time, which does
/// not change them.
///
/// # Errors
/// A token or a length that the model does not have.
pub fn pair_logps(
    model: &Model,
    pairs: &[TokenizedPair],
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<BranchLogps> {
    let pairs: Vec<&TokenizedPair> = pairs.iter().collect();
    Ok(score(model, &pairs, batch_size, progress)?.0)
}
