//! Log-probabilities of preference pairs, and derivatives with respect to them: the seam between models
//! and objectives.

/// Log-probabilities of both branches of every pair, in nats, summed over completion tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BranchLogps {
    /// `[n]`
    pub chosen: Vec<f64>,
    /// `[n]`
    pub rejected: Vec<f64>,
}

/// One number for each branch: a derivative with respect to [`BranchLogps`], or a direction in it.
pub type LogpGrads = BranchLogps;

impl BranchLogps {
    /// From branches in the order of a batch: chosen and rejected of pair 0, of pair 1, ...
    pub fn from_branches(branches: &[f64]) -> Self {
        let (chosen, rejected) = branches.chunks_exact(2).map(|b| (b[0], b[1])).unzip();
        BranchLogps { chosen, rejected }
    }

    /// The reverse of [`from_branches`](Self::from_branches).
    pub fn branches(&self) -> Vec<f64> {
        self.chosen.iter().zip(&self.rejected).flat_map(|(&c, &r)| [c, r]).collect()
    }

    /// Pairs.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Appends the pairs of `other`.
    pub fn extend(&mut self, other: &BranchLogps) {
        self.chosen.extend_from_slice(&other.chosen);
        self.rejected.extend_from_slice(&other.rejected);
    }

    /// The pairs `range`.
    pub fn slice(&self, range: std::ops::Range<usize>) -> BranchLogps {
        BranchLogps { chosen: self.chosen[range.clone()].to_vec(), rejected: self.rejected[range].to_vec() }
    }
}
