//! The flat batch: real tokens only, prompts once, and which rows predict what.

use seakeep_kernels::attention::{Layout, Segment};
use seakeep_kernels::dropout::mix;

/// Whether the branches of a prompt share its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The prompt is computed once; branches look back at it.
    Shared,
    /// Every branch carries a copy of its prompt. The same log-probabilities, more work; WDPO's
    /// `prompt_gradient = separate` is defined on this layout.
    Separate,
}

/// A row whose next token is known and counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Row of the hidden state.
    pub row: u32,
    /// The token that follows.
    pub target: u32,
    /// Which branch its log-probability belongs to.
    pub branch: u32,
    /// How much of it counts there: 1, but for LD-DPO's tails.
    pub weight: f32,
}

/// Prompts and their branches laid end to end, `T` rows in all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[T]`
    pub tokens: Vec<u32>,
    /// Position of each row in its own text, `[T]`.
    pub positions: Vec<u32>,
    /// Segments and groups, as attention sees them. One group for the [opening](Self::open), one for each call of
    /// [`push`](Self::push) (shared) or for each branch (separate).
    pub layout: Layout,
    /// `[N]`, in order of branches.
    pub predictions: Vec<Prediction>,
    /// Branches so far: those of pair 0, of pair 1, ...
    pub branches: usize,
    /// Pair (call of [`push`](Self::push)) of each row, `[T]`. The rows of an opening belong to all pairs and say 0.
    pub pair_of_row: Vec<u32>,
    /// Dropout of what goes into adapters, in training.
    pub dropout: Option<Dropout>,
    /// Rows of what all texts begin with.
    opening: std::ops::Range<usize>,
    pairs: usize,
}

/// Dropout in the passes over a batch: which elements are dropped follows from the keys of their rows.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability of being dropped.
    pub p: f32,
    /// `[T]`
    pub rows: Vec<u32>,
}

impl Batch {
    /// A batch of texts that all begin with `opening`: it stands once, and what is pushed goes on after it. Every prompt that is
    /// pushed must begin with it. What is said of single pairs (gradients at their embeddings, dropout, features of prompts) cannot
    /// be said of such a batch.
    pub fn open(opening: &[u32]) -> Self {
        let mut batch = Batch::default();
        if !opening.is_empty() {
            batch.opening = batch.segment(opening, 0..0);
            batch.layout.groups.push(0..1);
        }
        batch
    }

    /// Adds a prompt and its branches. A branch's tokens are all predicted, except one that stands first
    /// in its text (an empty prompt): nothing precedes it. Its last token predicts nothing, and no other looks back at it: it has no row.
    pub fn push(&mut self, prompt: &[u32], branches: &[&[u32]], sharing: Sharing) {
        match sharing {
            Sharing::Shared => {
                let first = self.layout.segments.len();
                let prompt_rows = self.segment(self.after_opening(prompt), 0..0);
                let before = self.last_of(prompt_rows.clone());
                for branch in branches {
                    let rows = self.segment(but_last(branch), prompt_rows.clone());
                    self.predict(branch, before, rows.start);
                }
                self.layout.groups.push(first..self.layout.segments.len());
            }
            Sharing::Separate => {
                let texts: Vec<(&[u32], &[u32])> = branches.iter().map(|&b| (prompt, b)).collect();
                return self.push_texts(&texts);
            }
        }
        self.pairs += 1;
    }

    /// Adds the branches of one pair as texts of their own, each `(prompt, completion)`: for branches that
    /// truncation left with different prompts.
    pub fn push_texts(&mut self, texts: &[(&[u32], &[u32])]) {
        for (prompt, completion) in texts {
            let first = self.layout.segments.len();
            let prompt = self.after_opening(prompt);
            let rows = self.segment(&[prompt, but_last(completion)].concat(), 0..0);
            let start = rows.start + prompt.len();
            let before = self.last_of(rows.start..start);
            self.predict(completion, before, start);
            self.layout.groups.push(first..first + 1);
        }
        self.pairs += 1;
    }

    /// Adds a text and others that continue it, with rows for all of their tokens; nothing is predicted.
    pub fn push_whole(&mut self, start: &[u32], ends: &[&[u32]]) {
        let first = self.layout.segments.len();
        let context = self.segment(start, 0..0);
        for end in ends {
            self.segment(end, context.clone());
        }
        self.layout.groups.push(first..self.layout.segments.len());
        self.pairs += 1;
    }

    /// Has the rows of a prompt, the first rows of the last pair, predict each other: one more branch of that pair.
    pub fn predict_prompt(&mut self, rows: std::ops::Range<usize>) {
        let prompt = self.tokens[rows.clone()].to_vec();
        self.predict(&prompt, None, rows.start);
    }

    /// LD-DPO (Liu et al., arXiv 2409.06411, eq. 9): of the branches from `first` on, the log-probabilities of tokens
    /// beyond the length of the shortest of them count only `alpha`.
    pub fn desensitise_length(&mut self, first: usize, alpha: f32) {
        let mut lengths = vec![0; self.branches - first];
        let own = |p: &Prediction| (p.branch as usize).checked_sub(first);
        self.predictions.iter().filter_map(own).for_each(|b| lengths[b] += 1);
        let shared = lengths.iter().copied().min().unwrap_or(0);
        let mut position = vec![0; lengths.len()];
        for prediction in &mut self.predictions {
            if let Some(b) = own(prediction) {
                position[b] += 1;
                prediction.weight = if position[b] > shared { alpha } else { 1.0 };
            }
        }
    }

    /// Sets dropout. A row's key is that of its pair (of the pair's number, counted from `first` on) and its place in it, so that
    /// it does not depend on what else is in the batch.
    pub fn drop_out(&mut self, p: f32, key: u32, first: usize) {
        assert!(self.opening.is_empty(), "a row that pairs share would need the masks of all of them");
        let (mut rows, mut before, mut place) = (Vec::with_capacity(self.rows()), None, 0);
        for &pair in &self.pair_of_row {
            place = if before == Some(pair) { place + 1 } else { 0 };
            before = Some(pair);
            rows.push(mix(mix(key ^ mix(first as u32 + pair)) ^ place));
        }
        self.dropout = Some(Dropout { p, rows });
    }

    /// What a prompt goes on with.
    fn after_opening<'a>(&self, prompt: &'a [u32]) -> &'a [u32] {
        let (opening, rest) = prompt.split_at(self.opening.len());
        debug_assert_eq!(opening, &self.tokens[self.opening.clone()], "every prompt begins with the opening");
        rest
    }

    /// The last row of a prompt, of which `rows` come after the opening.
    fn last_of(&self, rows: std::ops::Range<usize>) -> Option<usize> {
        rows.last().or(self.opening.clone().last())
    }

    fn segment(&mut self, tokens: &[u32], context: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let start = self.tokens.len();
        let opening = self.opening.clone();
        let position = opening.len() + context.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        self.pair_of_row.extend(std::iter::repeat_n(self.pairs as u32, tokens.len()));
        self.layout.segments.push(Segment { start, len: tokens.len(), opening, context });
        start..start + tokens.len()
    }

    /// Every token of `branch` is predicted by the row before it; the first by `before`, if any.
    fn predict(&mut self, branch: &[u32], before: Option<usize>, start: usize) {
        for (i, &target) in branch.iter().enumerate() {
            let row = if i > 0 { Some(start + i - 1) } else { before };
            if let Some(row) = row {
                let branch = self.branches as u32;
                self.predictions.push(Prediction { row: row as u32, target, branch, weight: 1.0 });
            }
        }
        self.branches += 1;
    }

    /// `T`.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The rows of the predictions, `[N]`.
    pub fn predicting_rows(&self) -> Vec<u32> {
        self.predictions.iter().map(|p| p.row).collect()
    }

    /// Weighted sums of one number for each prediction over the predictions of each branch, in f64.
    pub fn branch_sums(&self, values: impl Iterator<Item = f32>) -> Vec<f64> {
        let mut sums = vec![0.0; self.branches];
        for (prediction, value) in self.predictions.iter().zip(values) {
            sums[prediction.branch as usize] += prediction.weight as f64 * value as f64;
        }
        sums
    }

    /// The targets of the predictions, `[N]`.
    pub fn targets(&self) -> Vec<u32> {
        self.predictions.iter().map(|p| p.target).collect()
    }
}

/// What is read of a branch in order to predict all of it.
fn but_last(branch: &[u32]) -> &[u32] {
    &branch[..branch.len().saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prompt_stands_once_and_positions_continue() {
        let mut batch = Batch::default();
        batch.push(&[1, 2], &[&[3, 4], &[5]], Sharing::Shared);
        assert_eq!(batch.tokens, [1, 2, 3]);
        assert_eq!(batch.positions, [0, 1, 2]);
        let p = |row, target, branch| Prediction { row, target, branch, weight: 1.0 };
        assert_eq!(batch.predictions, [p(1, 3, 0), p(2, 4, 0), p(1, 5, 1)]);
        assert_eq!((batch.layout.groups.len(), &batch.layout.groups[0]), (1, &(0..3)));
        assert_eq!(batch.layout.segments[2], Segment { start: 3, len: 0, opening: 0..0, context: 0..2 });
    }

    #[test]
    fn an_opening_stands_once_before_all_pairs() {
        let mut batch = Batch::open(&[8, 9]);
        batch.push(&[8, 9, 1], &[&[3, 4], &[5]], Sharing::Shared);
        batch.push(&[8, 9], &[&[6, 7]], Sharing::Shared);
        batch.push_texts(&[(&[8, 9, 2], &[3]), (&[8, 9], &[4])]);
        assert_eq!(batch.tokens, [8, 9, 1, 3, 6, 2]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 2, 2]);
        let p = |row, target, branch| Prediction { row, target, branch, weight: 1.0 };
        let texts = [p(5, 3, 3), p(1, 4, 4)];
        assert_eq!(
            batch.predictions,
            [&[p(2, 3, 0), p(3, 4, 0), p(2, 5, 1), p(1, 6, 2), p(4, 7, 2)], &texts[..]].concat()
        );
        assert_eq!(batch.layout.groups, [0..1, 1..4, 4..6, 6..7, 7..8]);
        assert_eq!(batch.layout.segments[2], Segment { start: 3, len: 1, opening: 0..2, context: 2..3 });
        assert_eq!(batch.pair_of_row, [0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn separate_branches_carry_their_prompt() {
        let mut batch = Batch::default();
        batch.push(&[1, 2], &[&[3, 4], &[5]], Sharing::Separate);
        assert_eq!(batch.tokens, [1, 2, 3, 1, 2]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
        assert_eq!(batch.targets(), [3, 4, 5]);
        assert_eq!(batch.predicting_rows(), [1, 2, 4]);
        assert_eq!(batch.layout.groups, [0..1, 1..2]);
        assert_eq!(batch.pair_of_row, [0; 5]);
    }

    #[test]
    fn a_prompt_can_be_one_more_branch() {
        for sharing in [Sharing::Shared, Sharing::Separate] {
            let mut batch = Batch::default();
            batch.push(&[9], &[&[8], &[7]], sharing);
            let first = batch.rows();
            batch.push(&[1, 2, 6], &[&[3, 4], &[5]], sharing);
            batch.predict_prompt(first..first + 3);
            assert_eq!(batch.branches, 5);
            let own: Vec<(u32, u32)> =
                batch.predictions.iter().filter(|p| p.branch == 4).map(|p| (p.row, p.target)).collect();
            assert_eq!(own, [(first as u32, 2), (first as u32 + 1, 6)]);
        }
    }

    #[test]
    fn tails_beyond_the_shorter_branch_count_less() {
        let mut batch = Batch::default();
        batch.push(&[1], &[&[8], &[7, 7, 7]], Sharing::Shared);
        batch.push(&[1], &[&[8, 8, 8], &[7, 7]], Sharing::Shared);
        batch.desensitise_length(2, 0.25);
        assert_eq!(batch.branch_sums([1.0; 9].into_iter()), [1.0, 3.0, 2.25, 2.0]);
    }

    #[test]
    fn the_first_token_of_a_text_is_not_predicted() {
        for sharing in [Sharing::Shared, Sharing::Separate] {
            let mut batch = Batch::default();
            batch.push(&[], &[&[3, 4], &[5]], sharing);
            assert_eq!(batch.targets(), [4]);
            assert_eq!(batch.branches, 2);
        }
    }
}
