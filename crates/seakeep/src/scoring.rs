//! Log-probabilities of preference pairs under a model: laying pairs out as batches, and running them.
//! Training, evaluation, the reference and the `logps` command all come through here.

use seakeep_kernels::projection::Predicted;

use crate::batch::{Batch, Sharing};
use crate::data::tokenize::common_prefix;
use crate::data::{Role, Rows, TokenizedPair};
use crate::logps::BranchLogps;
use crate::model::{Model, ModelConfig};
use crate::objective::Objective;
use crate::progress::Progress;
use crate::{Error, Result};

/// How an objective wants pairs laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLayout {
    /// Whether prompts are shared.
    pub sharing: Sharing,
    /// Whether the prompt's own tokens are predicted too, as one more branch.
    pub prompts: bool,
    /// LD-DPO's weight of tokens beyond the shorter completion.
    pub ld_alpha: Option<f64>,
    /// Whether what all prompts of a batch begin with is computed once for all of them, where it may be. The same
    /// log-probabilities and gradients of weights, less work; what is asked of single pairs' rows is not to be had so.
    pub opening: bool,
}

/// A shorter opening is not worth an attention of its own: a token that begins every text, and little more.
pub(crate) const SHORTEST_OPENING: usize = 16;

impl PairLayout {
    /// Everything once, completions predicted and nothing else.
    pub const PLAIN: PairLayout =
        PairLayout { sharing: Sharing::Shared, prompts: false, ld_alpha: None, opening: true };

    /// For an objective. A penalty is on the gradient of each pair at its own embeddings.
    pub fn of(objective: &Objective) -> PairLayout {
        let (sharing, prompts) = (objective.sharing(), objective.learns_prompts());
        let opening = objective.penalty.is_none();
        PairLayout { sharing, prompts, ld_alpha: objective.pair.ld_alpha, opening }
    }

    /// For an objective where nothing is trained (by the reference, in evaluation): log-probabilities do not depend on how prompts lie.
    pub fn to_score(objective: &Objective) -> PairLayout {
        PairLayout { sharing: Sharing::Shared, opening: true, ..PairLayout::of(objective) }
    }

    /// Branches of a pair.
    pub fn branches(self, pair: &TokenizedPair) -> usize {
        pair.branches.len() + usize::from(self.prompts)
    }

    /// Log-probabilities of a pair's branches for objectives that have no reference.
    pub fn no_reference(self, pair: &TokenizedPair) -> Vec<f64> {
        vec![0.0; self.branches(pair)]
    }

    /// The tokens that stand once for all of `pairs`: what all their prompts begin with, if that is worth it.
    pub fn opening<'a>(self, pairs: &[&'a TokenizedPair]) -> &'a [u32] {
        let [first, _, ..] = pairs else { return &[] };
        self.worth(pairs.iter().fold(first.longest_prompt(), |opening, pair| begin(opening, pair)))
    }

    /// `opening`, which all prompts begin with, where it is to stand once; nothing where it may not, or is too short.
    pub(crate) fn worth(self, opening: &[u32]) -> &[u32] {
        let may = self.opening && !self.prompts && self.sharing == Sharing::Shared;
        if may && opening.len() >= SHORTEST_OPENING { opening } else { &[] }
    }

    /// Lays out pairs: what all begin with, then the branches of each, the prompt shared where all of them keep the same.
    pub fn lay_out<'a>(self, pairs: impl IntoIterator<Item = &'a TokenizedPair>) -> Batch {
        let pairs: Vec<&TokenizedPair> = pairs.into_iter().collect();
        let mut batch = Batch::open(self.opening(&pairs));
        for pair in pairs {
            let (row, branch) = (batch.rows(), batch.branches);
            let completions: Vec<&[u32]> = pair.branches.iter().map(|b| b.completion.as_slice()).collect();
            match pair.shared_prompt() {
                Some(prompt) => batch.push(prompt, &completions, self.sharing),
                None => {
                    let texts = pair.branches.iter().map(|b| (pair.prompt_of(b), b.completion.as_slice()));
                    batch.push_texts(&texts.collect::<Vec<_>>());
                }
            }
            if let Some(alpha) = self.ld_alpha {
                batch.desensitise_length(branch, alpha as f32);
            }
            if self.prompts {
                batch.predict_prompt(row..row + pair.prompt_of(pair.chosen()).len());
            }
        }
        batch
    }

    /// The log-probabilities of `pairs` from those of their batch's branches.
    pub fn logps(self, pairs: &[&TokenizedPair], branches: &[f64]) -> BranchLogps {
        BranchLogps::from_branches(branches, pairs.iter().map(|p| self.branches(p)))
    }
}

/// How much of `opening` every prompt of a pair begins with.
pub(crate) fn begin<'a>(opening: &'a [u32], pair: &TokenizedPair) -> &'a [u32] {
    pair.branches
        .iter()
        .fold(opening, |opening, branch| &opening[..common_prefix(opening, pair.prompt_of(branch))])
}

/// Means over predicted tokens, as TRL logs them. Tokens of mismatched completions and of prompts do not count.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenStats {
    logits: [f64; 2],
    tokens: [usize; 2],
    entropy: f64,
    top1: usize,
}

impl TokenStats {
    /// Counts the tokens of a batch of pairs.
    pub fn add(
        &mut self,
        pairs: &[&TokenizedPair],
        layout: PairLayout,
        batch: &Batch,
        predicted: &[Predicted],
    ) {
        let aside = layout.prompts.then_some(Role::Prompt);
        let roles: Vec<Role> =
            pairs.iter().flat_map(|p| p.branches.iter().map(|b| b.role).chain(aside)).collect();
        for (prediction, p) in batch.predictions.iter().zip(predicted) {
            let kind = match roles[prediction.branch as usize] {
                Role::Chosen => 0,
                Role::Rejected => 1,
                Role::Mismatched | Role::Prompt => continue,
            };
            self.logits[kind] += p.mean_logit as f64;
            self.tokens[kind] += 1;
            self.entropy += p.entropy as f64;
            self.top1 += usize::from(kind == 0 && p.is_top1);
        }
    }

    /// `logits/chosen`, `logits/rejected` (mean logit over vocabulary and tokens), `entropy` (nats, mean over
    /// all completion tokens), `mean_token_accuracy` (share of chosen tokens that were the likeliest). Of texts that are
    /// learnt and not compared the last two.
    pub fn metrics(&self, objective: &Objective) -> Vec<(String, f64)> {
        let share = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        let all = [
            ("logits/chosen", share(self.logits[0], self.tokens[0])),
            ("logits/rejected", share(self.logits[1], self.tokens[1])),
            ("entropy", share(self.entropy, self.tokens[0] + self.tokens[1])),
            ("mean_token_accuracy", share(self.top1 as f64, self.tokens[0])),
        ];
        let own = if objective.is_of_texts() { &all[2..] } else { &all[..] };
        own.iter().map(|(name, value)| (name.to_string(), *value)).collect()
    }
}

/// What scoring finds.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Log-probabilities.
    pub logps: BranchLogps,
    /// Means over tokens.
    pub stats: TokenStats,
    /// Of each pair the mean last hidden state over its prompt, `[n][C]`, if asked for.
    pub features: Vec<Vec<f32>>,
}

/// Log-probabilities of `pairs`, `batch_size` of them at a time, and means over their tokens; `with_features` also the
/// features of their prompts.
///
/// # Errors
/// A token or a length that the model does not have.
pub fn score(
    model: &Model,
    pairs: &[&TokenizedPair],
    layout: PairLayout,
    with_features: bool,
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<Scores> {
    for pair in pairs {
        check_length(&model.config, pair)?;
    }
    let mut scores = Scores::default();
    pairs.chunks(batch_size).try_for_each(|part| {
        scores.add(model, part, layout, with_features)?;
        progress.advance(part.len() as u64, "");
        Ok::<(), Error>(())
    })?;
    Ok(scores)
}

/// As [`score`], of rows that are fetched when their turn comes.
///
/// # Errors
/// As [`score`], and where a row cannot be fetched.
pub fn score_rows(
    model: &Model,
    (rows, visited): (&Rows, &[usize]),
    layout: PairLayout,
    with_features: bool,
    batch_size: usize,
    progress: &mut dyn Progress,
) -> Result<Scores> {
    check_lengths(&model.config, rows, visited)?;
    let mut scores = Scores::default();
    for part in visited.chunks(batch_size) {
        let pairs = rows.several(part)?;
        scores.add(model, &pairs.iter().collect::<Vec<_>>(), layout, with_features)?;
        progress.advance(part.len() as u64, "");
    }
    Ok(scores)
}

impl Scores {
    /// Scores a batch.
    fn add(
        &mut self,
        model: &Model,
        part: &[&TokenizedPair],
        layout: PairLayout,
        with_features: bool,
    ) -> Result<()> {
        let layout = PairLayout { opening: layout.opening && !with_features, ..layout };
        let batch = layout.lay_out(part.iter().copied());
        // Lengths were checked before, where the row has a name.
        model.check_batch_tokens(&batch)?;
        let prompts = if with_features { prompt_rows(part, &batch) } else { Vec::new() };
        // On a thread of the pool, as a training step.
        let (predicted, features) = rayon::scope(|_| model.predictions_and_means(&batch, &prompts));
        self.features.extend(features);
        self.stats.add(part, layout, &batch, &predicted);
        let logps = layout.logps(part, &batch.branch_sums(predicted.iter().map(|p| p.logp)));
        if let Some(i) = logps.0.iter().position(|b| b.iter().any(|l| !l.is_finite())) {
            return Err(Error::row(
                &part[i].file,
                part[i].row,
                "",
                format!(
                    "its log-probabilities are {:?}: the model's weights or configuration are broken",
                    logps.0[i]
                ),
            ));
        }
        self.logps.extend(logps);
        Ok(())
    }
}

/// The rows of each pair's prompt: the first rows of the pair.
fn prompt_rows(pairs: &[&TokenizedPair], batch: &Batch) -> Vec<std::ops::Range<usize>> {
    let first = |i: usize| batch.pair_of_row.partition_point(|&p| (p as usize) < i);
    pairs.iter().enumerate().map(|(i, p)| first(i)..first(i) + p.prompt_of(p.chosen()).len()).collect()
}

/// Names the first of `visited` whose text is longer than the model.
///
/// # Errors
/// [`Error::Row`].
pub fn check_lengths(config: &ModelConfig, rows: &Rows, visited: &[usize]) -> Result<()> {
    let may_be_longer = |i: &&usize| rows.longest(**i) > config.max_positions;
    visited.iter().filter(may_be_longer).try_for_each(|&i| check_length(config, &rows.get(i)?))
}

/// Names the row whose text is longer than the model.
///
/// # Errors
/// [`Error::Row`].
pub fn check_length(config: &ModelConfig, pair: &TokenizedPair) -> Result<()> {
    let most = config.max_positions;
    for branch in &pair.branches {
        let key = match branch.role {
            // A text, or a completion: the row knows its name, its tokens do not.
            _ if pair.branches.len() == 1 => "",
            Role::Chosen => "chosen",
            Role::Rejected => "rejected",
            Role::Mismatched | Role::Prompt => "prompt",
        };
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
    Ok(score(model, &pairs, PairLayout::PLAIN, false, batch_size, progress)?.logps)
}
