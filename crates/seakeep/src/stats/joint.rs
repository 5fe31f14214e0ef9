//! Many statistics of many methods from the same draws: differences of anything, worst cases and frontiers included.

use std::collections::BTreeMap;

use super::bootstrap::{Bootstrap, Interval, drawn};

/// One resample.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// How often each unit (prompt or pair) was drawn, `[n]`; sums to `n`.
    pub counts: Vec<f64>,
    /// Of each method the runs that were drawn, as many as it has.
    pub runs: Vec<Vec<usize>>,
}

impl Draw {
    /// The mean of one number for each unit.
    pub fn mean(&self, values: &[f64]) -> f64 {
        let sum: f64 = self.counts.iter().zip(values).map(|(count, value)| count * value).sum();
        sum / self.counts.len() as f64
    }
}

impl Bootstrap {
    /// Intervals of named statistics, all from the same draws: units are drawn once for all methods, which were measured on
    /// the same ones; runs (seeds) for each method, `runs` being their numbers. The statistics are given a draw and must
    /// return the same names in the same order each time.
    pub fn joint<K: Ord + Send>(
        &self,
        n: usize,
        runs: &[usize],
        statistics: impl Fn(&Draw) -> Vec<(K, f64)> + Sync,
    ) -> BTreeMap<K, Interval> {
        let whole = Draw { counts: vec![1.0; n], runs: runs.iter().map(|r| (0..*r).collect()).collect() };
        let values = statistics(&whole);
        // Of a single unit and single runs every draw is the same: it says nothing of another.
        let draws_vary = n > 1 || runs.iter().any(|r| *r > 1);
        let resampled: Vec<Vec<f64>> = self.resampled(|rng| {
            let mut counts = vec![0.0; n];
            drawn(n, rng).into_iter().for_each(|unit| counts[unit] += 1.0);
            let runs = runs.iter().map(|r| drawn(*r, rng)).collect();
            statistics(&Draw { counts, runs }).into_iter().map(|(_, value)| value).collect()
        });
        let of = |(at, (name, value)): (usize, (K, f64))| {
            let column: Vec<f64> = resampled.iter().map(|row| row[at]).collect();
            (name, if draws_vary { self.around(value, &column) } else { self.around(value, &[]) })
        };
        values.into_iter().enumerate().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joint_intervals_are_those_of_each_alone_and_differences_are_paired() {
        let values: Vec<f64> = (0..200).map(|i| (f64::from(i) * 12.9898).sin()).collect();
        let more: Vec<f64> = values.iter().map(|v| v + 0.5).collect();
        let boot = Bootstrap { resamples: 400, ..Bootstrap::default() };
        let found = boot.joint(200, &[1, 1], |draw| {
            assert_eq!(draw.counts.iter().sum::<f64>(), 200.0);
            let (a, b) = (draw.mean(&values), draw.mean(&more));
            vec![("a", a), ("difference", b - a)]
        });
        let alone = boot.mean(&values);
        assert!((found["a"].low - alone.low).abs() < 1e-12 && (found["a"].high - alone.high).abs() < 1e-12);
        let gap = found["difference"];
        assert!((gap.low - 0.5).abs() < 1e-9 && (gap.high - 0.5).abs() < 1e-9, "{gap:?}");
        // Two runs that differ by 4: drawn anew, both may be the same one.
        let runs = boot.joint(3, &[2], |draw| {
            vec![((), draw.runs[0].iter().map(|r| 4.0 * *r as f64).sum::<f64>() / 2.0)]
        });
        assert_eq!((runs[&()].low, runs[&()].value, runs[&()].high), (0.0, 2.0, 4.0));
    }
}
