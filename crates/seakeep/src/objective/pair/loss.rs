//! The loss of a pair with its derivatives in the log-probabilities of its branches.

use super::Jet;

/// What one pair contributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// The loss, nats.
    pub value: f64,
    /// Derivatives with respect to the log-probabilities of the pair's own branches, `[B]`.
    pub d: Vec<f64>,
    /// Second derivatives, `[B, B]`.
    pub dd: Vec<Vec<f64>>,
    /// Derivatives with respect to branches of other pairs: (pair, branch, derivative). Only where a loss compares
    /// completions of different pairs.
    pub elsewhere: Vec<(usize, usize, f64)>,
}

impl Loss {
    /// Nothing, of `branches` branches.
    pub fn zero(branches: usize) -> Loss {
        Loss {
            value: 0.0,
            d: vec![0.0; branches],
            dd: vec![vec![0.0; branches]; branches],
            elsewhere: Vec::new(),
        }
    }

    /// From a jet in the pair's own branches (chosen, rejected, prompt).
    pub(super) fn of(jet: Jet, branches: usize) -> Loss {
        let dd = jet.dd[..branches].iter().map(|row| row[..branches].to_vec()).collect();
        Loss { value: jet.value, d: jet.d[..branches].to_vec(), dd, elsewhere: Vec::new() }
    }

    /// Adds `factor` times another loss of the same pair.
    pub fn add_scaled(&mut self, other: &Loss, factor: f64) {
        self.value += factor * other.value;
        for (a, b) in self.d.iter_mut().zip(&other.d) {
            *a += factor * b;
        }
        for (a, b) in self.dd.iter_mut().flatten().zip(other.dd.iter().flatten()) {
            *a += factor * b;
        }
        self.elsewhere.extend(other.elsewhere.iter().map(|&(pair, branch, d)| (pair, branch, factor * d)));
    }

    /// The derivative of `d` along a direction in the log-probabilities.
    pub fn d_along(&self, t: &[f64]) -> Vec<f64> {
        self.dd.iter().map(|row| row.iter().zip(t).map(|(dd, t)| dd * t).sum()).collect()
    }
}
