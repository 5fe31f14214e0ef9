//! Log-probabilities of preference pairs, derivatives with respect to them, and what else an objective may know of
//! a pair: the seam between models and objectives.

use crate::data::{Branch, TokenizedPair};
pub use crate::data::{Labels, Role};

/// Log-probabilities of the branches of every pair, in nats, summed over completion tokens. Of a pair: the chosen,
/// then those rejected, then perhaps its prompt; of a labelled completion: it, then perhaps the mismatched one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BranchLogps(pub Vec<Vec<f64>>);

/// One number for each branch: a derivative with respect to [`BranchLogps`], or a direction in it.
pub type LogpGrads = BranchLogps;

impl BranchLogps {
    /// Pairs of two branches.
    pub fn of_pairs(chosen: &[f64], rejected: &[f64]) -> Self {
        BranchLogps(chosen.iter().zip(rejected).map(|(c, r)| vec![*c, *r]).collect())
    }

    /// From branches in the order of a batch, of which pair i has `counts[i]`.
    pub fn from_branches(branches: &[f64], counts: impl IntoIterator<Item = usize>) -> Self {
        let mut rest = branches;
        let mut next = |count| {
            let (own, others) = rest.split_at(count);
            rest = others;
            own.to_vec()
        };
        BranchLogps(counts.into_iter().map(&mut next).collect())
    }

    /// The branches of all pairs, in the order of a batch.
    pub fn branches(&self) -> Vec<f64> {
        self.0.concat()
    }

    /// One branch of every pair.
    ///
    /// # Panics
    /// If a pair does not have it.
    pub fn branch(&self, branch: usize) -> Vec<f64> {
        self.0.iter().map(|pair| pair[branch]).collect()
    }

    /// Pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the pairs of `other`.
    pub fn extend(&mut self, other: BranchLogps) {
        self.0.extend(other.0);
    }

    /// The pairs `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> BranchLogps {
        BranchLogps(self.0[range].to_vec())
    }
}

/// What an objective may know of a pair besides its log-probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The part each branch plays.
    pub roles: Vec<Role>,
    /// Tokens of each branch.
    pub tokens: Vec<usize>,
    /// Those of them that are predicted: all, or one fewer where nothing stands before the first.
    pub predicted: Vec<usize>,
    /// What the row says besides its texts.
    pub labels: Labels,
    /// How likely the pair belongs to each inferred environment (CausalDPO); empty where none are inferred.
    pub environments: Vec<f64>,
}

impl Facts {
    /// Of a row; with its prompt as one more branch if that is learnt too.
    pub fn of(pair: &TokenizedPair, with_prompt: bool) -> Facts {
        let each = |of: &dyn Fn(&Branch) -> usize, prompt: usize| -> Vec<usize> {
            pair.branches.iter().map(of).chain(with_prompt.then_some(prompt)).collect()
        };
        let prompt = pair.prompt_of(pair.chosen()).len();
        Facts {
            roles: pair.branches.iter().map(|b| b.role).chain(with_prompt.then_some(Role::Prompt)).collect(),
            tokens: each(&|b| b.completion.len(), prompt),
            predicted: each(&|b| pair.predicted(b), prompt.saturating_sub(1)),
            labels: pair.labels.clone(),
            environments: Vec::new(),
        }
    }

    /// The branch that plays a part.
    pub fn branch(&self, role: Role) -> Option<usize> {
        self.roles.iter().position(|r| *r == role)
    }
}
