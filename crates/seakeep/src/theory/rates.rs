//! Errors over repetitions: means and medians with bootstrap intervals, and slopes of log error over log n.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Bootstrap resamples of every interval.
pub const RESAMPLES: usize = 1000;

/// A number with its 95% bootstrap interval (percentiles).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// The 2.5% percentile of the resamples.
    pub low: f64,
    /// The 97.5% percentile.
    pub high: f64,
}

/// The middle of errors over repetitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Middle {
    /// The mean over repetitions.
    pub mean: Interval,
    /// The median over repetitions.
    pub median: Interval,
}

/// Which repetitions each resample holds: the same for every method, so that methods are compared on the same draws.
#[derive(Clone, Debug)]
pub struct Resamples {
    /// `[RESAMPLES][repetitions]`
    picks: Vec<Vec<u32>>,
}

impl Resamples {
    /// Draws the resamples for a number of repetitions.
    pub fn draw(repetitions: usize, seed: u64, stream: u64) -> Resamples {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // From the far end of the streams, away from the samples'.
        rng.set_stream(u64::MAX - stream);
        let mut pick = || (((rng.next_u64() >> 32) * repetitions as u64) >> 32) as u32;
        Resamples { picks: (0..RESAMPLES).map(|_| (0..repetitions).map(|_| pick()).collect()).collect() }
    }

    /// The mean of every resample.
    fn means(&self, values: &[f64]) -> Vec<f64> {
        let mean =
            |picks: &Vec<u32>| picks.iter().map(|&i| values[i as usize]).sum::<f64>() / picks.len() as f64;
        self.picks.iter().map(mean).collect()
    }

    /// The mean of values over repetitions.
    pub fn mean(&self, values: &[f64]) -> Interval {
        interval(values.iter().sum::<f64>() / values.len() as f64, self.means(values))
    }

    /// Mean and median of values over repetitions.
    pub fn middle(&self, values: &[f64]) -> Middle {
        let medians = self.picks.iter().map(|p| median(p.iter().map(|&i| values[i as usize]).collect()));
        Middle { mean: self.mean(values), median: interval(median(values.to_vec()), medians.collect()) }
    }
}

fn interval(value: f64, mut resampled: Vec<f64>) -> Interval {
    resampled.sort_by(f64::total_cmp);
    let at = |q: f64| resampled[(q * (resampled.len() - 1) as f64).round() as usize];
    Interval { value, low: at(0.025), high: at(0.975) }
}

fn median(mut values: Vec<f64>) -> f64 {
    let (n, half) = (values.len(), values.len() / 2);
    let upper = *values.select_nth_unstable_by(half, f64::total_cmp).1;
    if n % 2 == 1 {
        return upper;
    }
    let lower = values[..half].iter().fold(f64::NEG_INFINITY, |a, &v| a.max(v));
    0.5 * (lower + upper)
}

/// The least-squares slope of `log mean error` over `log n`. `errors` has, for each n, the repetitions' errors and
/// their resamples (repetitions at different n are independent draws). `None` where a mean error is zero: a method that stays at
/// the reference for every sample has no slope.
pub fn slope(n: &[f64], errors: &[(&[f64], &Resamples)]) -> Option<Interval> {
    let x: Vec<f64> = n.iter().map(|n| n.ln()).collect();
    let centre = x.iter().sum::<f64>() / x.len() as f64;
    let spread: f64 = x.iter().map(|x| (x - centre) * (x - centre)).sum();
    let fit = |y: &dyn Fn(usize) -> f64| -> f64 {
        (0..x.len()).map(|i| (x[i] - centre) * y(i).ln()).sum::<f64>() / spread
    };
    let whole: Vec<f64> = errors.iter().map(|(e, _)| e.iter().sum::<f64>() / e.len() as f64).collect();
    let means: Vec<Vec<f64>> = errors.iter().map(|(e, resamples)| resamples.means(e)).collect();
    let resampled: Vec<f64> = (0..RESAMPLES).map(|b| fit(&|i| means[i][b])).collect();
    let value = fit(&|i| whole[i]);
    let finite = n.len() > 1 && value.is_finite() && resampled.iter().all(|s| s.is_finite());
    finite.then(|| interval(value, resampled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_has_its_slope() {
        let n = [100.0, 200.0, 400.0, 800.0];
        let wobble = [0.9, 1.0, 1.1, 1.0, 0.95, 1.05];
        let errors: Vec<Vec<f64>> =
            n.iter().map(|n: &f64| wobble.iter().map(|w| 3.0 * w * n.powf(-0.25)).collect()).collect();
        let resamples: Vec<Resamples> = (0..4).map(|i| Resamples::draw(6, 1, i)).collect();
        let pairs: Vec<_> = errors.iter().map(Vec::as_slice).zip(&resamples).collect();
        let fit = slope(&n, &pairs).unwrap();
        assert!((fit.value + 0.25).abs() < 1e-12, "{fit:?}");
        assert!(fit.low < -0.25 && fit.high > -0.25 && fit.high - fit.low < 0.2, "{fit:?}");
        assert_eq!(slope(&n, &[(&[0.0; 6][..], &resamples[0]); 4]), None);
    }

    #[test]
    fn middles_by_hand() {
        let resamples = Resamples::draw(4, 0, 0);
        let middle = resamples.middle(&[4.0, 1.0, 2.0, 9.0]);
        assert_eq!((middle.mean.value, middle.median.value), (4.0, 3.0));
        assert!(middle.mean.low < 4.0 && middle.mean.high > 4.0 && middle.mean.low >= 1.0);
        assert_eq!(resamples.mean(&[2.0; 4]), Interval { value: 2.0, low: 2.0, high: 2.0 });
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
