//! A linear axis with round ticks.

use super::text::number;

/// A linear axis from data to the drawing.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Its first tick.
    pub low: f64,
    /// Its last tick.
    pub high: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// The same values drawn between other ends.
    pub fn between(self, from: f64, to: f64) -> Axis {
        Axis { from, to, ..self }
    }

    /// Characters of its longest label.
    pub fn widest(&self) -> usize {
        self.ticks().map(|tick| number(tick, self.digits()).chars().count()).max().unwrap_or(0)
    }

    /// An axis over the values with round ends, drawn between `from` and `to`.
    pub fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-9 * low.abs().max(1e-3) {
            (low, high) = (low - 0.5 * low.abs().max(0.1), high + 0.5 * high.abs().max(0.1));
        }
        let raw = (high - low) / 6.0;
        let power = 10f64.powf(raw.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
        // The slack keeps a value that is a tick but for rounding from adding a tick.
        let low = (low / step + 1e-6).floor() * step;
        let high = (high / step - 1e-6).ceil() * step;
        Axis { low, high, step, from, to }
    }

    /// Where a value lies.
    pub fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// The values with a label.
    pub fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(|at| self.low + at as f64 * self.step)
    }

    /// Decimals of the labels.
    pub fn digits(&self) -> usize {
        (-self.step.log10().floor()).max(0.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ends_around_the_data() {
        let axis = Axis::over([0.31, 0.58].into_iter(), 0.0, 100.0);
        assert!(
            (axis.low - 0.3).abs() < 1e-12 && (axis.high - 0.6).abs() < 1e-12,
            "{} {}",
            axis.low,
            axis.high
        );
        assert!((axis.place(axis.high) - 100.0).abs() < 1e-9);
        let unit = Axis::over((0..=10).map(|a| f64::from(a) / 10.0), 0.0, 1.0);
        assert_eq!(unit.ticks().count(), 6);
        assert_eq!(unit.digits(), 1);
        for odd in [vec![], vec![0.0], vec![5.0, 5.0], vec![f64::NAN], vec![-3.0]] {
            let axis = Axis::over(odd.clone().into_iter(), 0.0, 1.0);
            assert!(axis.high > axis.low && axis.ticks().count() < 20, "{odd:?}");
        }
    }
}
