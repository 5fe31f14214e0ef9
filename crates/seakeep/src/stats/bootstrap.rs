//! Intervals by resampling (Efron 1979), percentile form.
//!
//! The unit is the prompt: its samples belong together, so what enters is one number for each prompt. Where runs of
//! several seeds were judged on the same prompts, seeds and prompts are crossed, and both are drawn anew, each by itself (the
//! pigeonhole bootstrap: Owen 2007, arXiv 0711.4024): an interval over prompts alone would say nothing of another training.

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
        let resampled = self.resampled(|rng| statistic(&drawn(n, rng)));
        self.around(statistic(&all), &resampled)
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

    /// Of the mean over runs and prompts, `runs` being `[seeds][prompts]` on the same prompts.
    ///
    /// # Errors
    /// [`Error::Usage`] for runs on different numbers of prompts.
    pub fn over_seeds(&self, runs: &[Vec<f64>]) -> Result<Interval> {
        let n = prompts(&[runs])?;
        let resampled = self.resampled(|rng| {
            let units = drawn(n, rng);
            mean_of_runs(runs, &units, rng)
        });
        Ok(self.around(mean_of_all(runs), &resampled))
    }

    /// Of the difference of two policies, each `[prompts]`, on the same prompts.
    ///
    /// # Errors
    /// [`Error::Usage`] for different numbers of prompts.
    pub fn paired(&self, first: &[f64], second: &[f64]) -> Result<Paired> {
        self.paired_over_seeds(&[first.to_vec()], &[second.to_vec()])
    }

    /// The same of two methods, each `[seeds][prompts]`: one draw of prompts for both, seeds drawn for each.
    ///
    /// # Errors
    /// [`Error::Usage`] for runs on different numbers of prompts.
    pub fn paired_over_seeds(&self, first: &[Vec<f64>], second: &[Vec<f64>]) -> Result<Paired> {
        let n = prompts(&[first, second])?;
        let resampled = self.resampled(|rng| {
            let units = drawn(n, rng);
            mean_of_runs(first, &units, rng) - mean_of_runs(second, &units, rng)
        });
        let difference = self.around(mean_of_all(first) - mean_of_all(second), &resampled);
        let below = |d: &f64| if *d < 0.0 { 1.0 } else { 0.5 * f64::from(*d == 0.0) };
        let below_zero = resampled.iter().map(below).sum::<f64>() / resampled.len() as f64;
        Ok(Paired { difference, below_zero })
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

/// The mean over as many runs as there are, drawn anew.
fn mean_of_runs(runs: &[Vec<f64>], units: &[usize], rng: &mut ChaCha8Rng) -> f64 {
    if let [only] = runs {
        return mean_of(only, units);
    }
    let seeds = drawn(runs.len(), rng);
    seeds.iter().map(|&s| mean_of(&runs[s], units)).sum::<f64>() / runs.len() as f64
}

fn mean_of_all(runs: &[Vec<f64>]) -> f64 {
    runs.iter().map(|run| super::mean(run)).sum::<f64>() / runs.len() as f64
}

/// The number of prompts of all runs.
fn prompts(methods: &[&[Vec<f64>]]) -> Result<usize> {
    let mut counts = methods.iter().flat_map(|runs| runs.iter().map(Vec::len));
    let first = counts.next().unwrap_or(0);
    match counts.find(|n| *n != first) {
        None => Ok(first),
        Some(other) => Err(Error::Usage(format!(
            "{first} and {other} prompts cannot be paired; policies must be judged on the same prompts"
        ))),
    }
}
