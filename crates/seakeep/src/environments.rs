//! Environments inferred from prompts, for CausalDPO (arXiv 2603.22335): clusters of the reference model's mean hidden
//! states over each prompt, computed once.
//!
//! k-means places the centres; a row then belongs to environment e with the probability that a mixture of equal spherical
//! Gaussians around them gives it,
//!
//! ```text
//! p_e(i) = exp(-|x_i - c_e|^2 / (2 s^2)) / sum_e' exp(-|x_i - c_e'|^2 / (2 s^2)),    s^2 = mean_i min_e |x_i - c_e|^2
//! ```
//! `s` is the whole distance to the nearest centre rather than one coordinate's share of it: with hundreds of coordinates
//! that share would make every probability 0 or 1.

use serde::{Deserialize, Serialize};
use smartcore::cluster::kmeans::{KMeans, KMeansParameters};
use smartcore::linalg::basic::matrix::DenseMatrix;

use crate::{Error, Result};

/// Most rounds of k-means.
const MAX_ROUNDS: usize = 100;

/// The clusters of a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environments {
    /// `c_e`, `[k][C]`.
    pub centres: Vec<Vec<f32>>,
    /// `s^2`
    pub variance: f64,
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum()
}

impl Environments {
    /// Finds `k` clusters among `features`, `[n][C]`. The same features and seed give the same clusters.
    ///
    /// # Errors
    /// Fewer features than clusters.
    pub fn find(features: &[Vec<f32>], k: usize, seed: u64) -> Result<Environments> {
        if features.len() < k {
            return Err(Error::Usage(format!(
                "causal_environments is {k}, but there are only {} rows to find them in",
                features.len()
            )));
        }
        let labels: Vec<usize> = match k {
            0 | 1 => vec![0; features.len()],
            _ => cluster(features, k, seed)?,
        };
        let mean = |e: usize| {
            let own: Vec<&Vec<f32>> =
                features.iter().zip(&labels).filter(|(_, l)| **l == e).map(|(f, _)| f).collect();
            let of = |c: usize| own.iter().map(|f| f[c] as f64).sum::<f64>() / own.len().max(1) as f64;
            (0..features[0].len()).map(|c| of(c) as f32).collect()
        };
        let mut found = Environments { centres: (0..k.max(1)).map(mean).collect(), variance: 0.0 };
        let nearest =
            |x: &Vec<f32>| found.centres.iter().map(|c| squared_distance(x, c)).fold(f64::INFINITY, f64::min);
        found.variance = features.iter().map(nearest).sum::<f64>() / features.len() as f64;
        Ok(found)
    }

    /// How likely a row with these features belongs to each environment; sums to 1.
    pub fn of(&self, features: &[f32]) -> Vec<f64> {
        let distances: Vec<f64> = self.centres.iter().map(|c| squared_distance(features, c)).collect();
        let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
        // Rows that are all alike lie on their centres.
        let scale = (2.0 * self.variance).max(f64::MIN_POSITIVE);
        let likely: Vec<f64> = distances.iter().map(|d| (-(d - nearest) / scale).exp()).collect();
        let total: f64 = likely.iter().sum();
        likely.iter().map(|p| p / total).collect()
    }
}

fn cluster(features: &[Vec<f32>], k: usize, seed: u64) -> Result<Vec<usize>> {
    let failed =
        |e: smartcore::error::Failed| Error::Usage(format!("the prompts could not be clustered: {e}"));
    let wide: Vec<Vec<f64>> = features.iter().map(|f| f.iter().map(|&x| x as f64).collect()).collect();
    let matrix = DenseMatrix::from_2d_vec(&wide).map_err(failed)?;
    let parameters = KMeansParameters { k, max_iter: MAX_ROUNDS, seed: Some(seed) };
    let means = KMeans::<f64, i32, _, Vec<i32>>::fit(&matrix, parameters).map_err(failed)?;
    let labels: Vec<i32> = means.predict(&matrix).map_err(failed)?;
    Ok(labels.into_iter().map(|l| l as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Vec<Vec<f32>> {
        let near =
            |centre: f32, i: usize| vec![centre + (i as f32 * 1.7).sin() * 0.2, (i as f32 * 2.3).cos() * 0.2];
        (0..20).map(|i| near(if i % 2 == 0 { -1.0 } else { 1.0 }, i)).collect()
    }

    #[test]
    fn two_heaps_are_two_environments() {
        let features = features();
        let found = Environments::find(&features, 2, 7).unwrap();
        let first = found.of(&features[0]);
        for (i, x) in features.iter().enumerate() {
            let p = found.of(x);
            assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let same = p[0].max(p[1]) > 0.9 && ((p[0] > p[1]) == (first[0] > first[1])) == (i % 2 == 0);
            assert!(same, "{i}: {p:?}");
        }
        assert_eq!(found, Environments::find(&features, 2, 7).unwrap());
        // Half way between, nobody knows.
        let middle: Vec<f32> = (0..2).map(|c| (found.centres[0][c] + found.centres[1][c]) / 2.0).collect();
        assert!((found.of(&middle)[0] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn edges() {
        let features = features();
        let one = Environments::find(&features, 1, 7).unwrap();
        assert_eq!(one.of(&features[3]), [1.0]);
        assert!(Environments::find(&features[..1], 2, 7).unwrap_err().to_string().contains("only 1 rows"));
        let alike = Environments::find(&vec![vec![1.0, 2.0]; 6], 2, 7).unwrap();
        assert!((alike.of(&[1.0, 2.0]).iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
