//! Intervals by resampling (Efron 1979), percentile form.
//!
//! The unit is the prompt: its samples belong together, so what enters is one number for each prompt.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::objective::quantile;
use crate::{Error, Result};

/// An estimate and where it may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// The estimate from the data as they are.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How two policies differ on the same prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Paired {
    /// The mean of the first less that of the second.
    pub difference: Interval,
    /// Share of the resamples in which the difference is below 0; where it is 0 they count half.
    pub below_zero: f64,
}

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// How often.
    pub resamples: usize,
    /// The share of the resamples that an interval holds, such as 0.95.
    pub confidence: f64,
    /// Seed.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// Of any statistic of `n` units: it is given the numbers of the units, with repetitions.
    pub fn interval(&self, n: usize, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Interval {
        let all: Vec<usize> = (0..n).collect();
        self.around(statistic(&all), &self.resamples_of(n, &statistic))
    }

    /// The statistic of every resample of `n` units; none of a single unit, which would be the same each time and say nothing of another.
    fn resamples_of(&self, n: usize, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Vec<f64> {
        if n < 2 { Vec::new() } else { self.resampled(|rng| statistic(&drawn(n, rng))) }
    }

    /// Of the mean of one number for each unit.
    pub fn mean(&self, values: &[f64]) -> Interval {
        self.interval(values.len(), |units| mean_of(values, units))
    }

    /// Of the ratio of two sums, such as nats over tokens.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn ratio(&self, numerators: &[f64], denominators: &[f64]) -> Interval {
        assert_eq!(numerators.len(), denominators.len(), "a denominator for each numerator");
        self.interval(numerators.len(), |units| mean_of(numerators, units) / mean_of(denominators, units))
    }

    /// Of the difference of two policies, each `[prompts]`, on the same prompts.
    ///
    /// # Errors
    /// [`Error::Usage`] for different numbers of prompts.
    pub fn paired(&self, first: &[f64], second: &[f64]) -> Result<Paired> {
        if first.len() != second.len() {
            return Err(Error::Usage(format!(
                "{} and {} prompts cannot be paired; policies must be judged on the same prompts",
                first.len(),
                second.len()
            )));
        }
        let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
        let resampled = self.resamples_of(differences.len(), |units| mean_of(&differences, units));
        let below = |d: &f64| if *d < 0.0 { 1.0 } else { 0.5 * f64::from(*d == 0.0) };
        // Of no resamples it is not a number, as it should be.
        let below_zero = resampled.iter().map(below).sum::<f64>() / resampled.len() as f64;
        Ok(Paired { difference: self.around(super::mean(&differences), &resampled), below_zero })
    }

    /// The statistic of every resample, each with randomness of its own, so that threads change nothing.
    pub(super) fn resampled<T: Send>(&self, statistic: impl Fn(&mut ChaCha8Rng) -> T + Sync) -> Vec<T> {
        let one = |b: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(b as u64);
            statistic(&mut rng)
        };
        (0..self.resamples).into_par_iter().map(one).collect()
    }

    pub(super) fn around(&self, value: f64, resampled: &[f64]) -> Interval {
        if resampled.is_empty() || resampled.iter().any(|x| !x.is_finite()) {
            return Interval { value, low: f64::NAN, high: f64::NAN };
        }
        let tail = 0.5 * (1.0 - self.confidence);
        Interval { value, low: quantile(resampled, tail), high: quantile(resampled, 1.0 - tail) }
    }
}

/// `n` of `n` units, with repetitions.
pub(super) fn drawn(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    (0..n).map(|_| rng.random_range(0..n)).collect()
}

fn mean_of(values: &[f64], units: &[usize]) -> f64 {
    units.iter().map(|&i| values[i]).sum::<f64>() / units.len() as f64
}
