//! An axis with round ticks: linear, or of decimal logarithms.

use super::text::number;

/// What the numbers of a chart's axes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The values themselves.
    Linear,
    /// Decimal logarithms; ticks are labelled with the values.
    Log,
}

/// An axis from data to the drawing.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Its beginning.
    pub low: f64,
    /// Its end.
    pub high: f64,
    /// Where the ticks are, and their labels.
    pub ticks: Vec<(f64, String)>,
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
        self.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0)
    }

    /// An axis over the values, drawn between `from` and `to`: with round ends, or of logarithms.
    pub fn over(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64) -> Axis {
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
        let (low, high, ticks) = match scale {
            Scale::Linear => round_ends(low, high),
            Scale::Log => (low, high, powers(low, high)),
        };
        Axis { low, high, ticks, from, to }
    }

    /// Where a value lies.
    pub fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

/// The range made round, and its ticks.
fn round_ends(low: f64, high: f64) -> (f64, f64, Vec<(f64, String)>) {
    let raw = (high - low) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
    // The slack keeps a value that is a tick but for rounding from adding a tick.
    let low = (low / step + 1e-6).floor() * step;
    let high = (high / step - 1e-6).ceil() * step;
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let count = ((high - low) / step).round() as usize;
    let ticks = (0..=count).map(|at| low + at as f64 * step).map(|tick| (tick, number(tick, digits)));
    (low, high, ticks.collect())
}

/// The ticks of a logarithmic axis between the decimal logarithms `low` and `high`: powers of ten, and with few of
/// them 3, or 2 and 5, times those.
fn powers(low: f64, high: f64) -> Vec<(f64, String)> {
    let (multiples, every): (&[f64], i32) = match high - low {
        width if width <= 2.2 => (&[1.0, 2.0, 5.0], 1),
        width if width <= 3.5 => (&[1.0, 3.0], 1),
        width if width <= 7.0 => (&[1.0], 1),
        width => (&[1.0], (width / 5.0).ceil() as i32),
    };
    let label = |exponent: i32, m: f64| match exponent {
        -3..0 => number(m * 10f64.powi(exponent), -exponent as usize),
        0..5 => number(m * 10f64.powi(exponent), 0),
        _ => format!("{m}e{exponent}").replace('-', "−"),
    };
    let exponents = (low.floor() as i32..=high.ceil() as i32).filter(|e| e.rem_euclid(every) == 0);
    let all = exponents.flat_map(|e| multiples.iter().map(move |m| (f64::from(e) + m.log10(), label(e, *m))));
    all.filter(|(at, _)| *at >= low - 1e-9 && *at <= high + 1e-9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ends_around_the_data() {
        let axis = Axis::over([0.31, 0.58].into_iter(), Scale::Linear, 0.0, 100.0);
        assert!(
            (axis.low - 0.3).abs() < 1e-12 && (axis.high - 0.6).abs() < 1e-12,
            "{} {}",
            axis.low,
            axis.high
        );
        assert!((axis.place(axis.high) - 100.0).abs() < 1e-9);
        let unit = Axis::over((0..=10).map(|a| f64::from(a) / 10.0), Scale::Linear, 0.0, 1.0);
        assert_eq!(unit.ticks.len(), 6);
        assert_eq!(unit.ticks[1].1, "0.2");
        for odd in [vec![], vec![0.0], vec![5.0, 5.0], vec![f64::NAN], vec![-3.0]] {
            for scale in [Scale::Linear, Scale::Log] {
                let axis = Axis::over(odd.clone().into_iter(), scale, 0.0, 1.0);
                assert!(axis.high > axis.low && axis.ticks.len() < 20, "{odd:?}");
            }
        }
    }

    #[test]
    fn logarithmic_axes_are_labelled_with_values() {
        let labels = |low: f64, high: f64| {
            let axis = Axis::over([low.log10(), high.log10()].into_iter(), Scale::Log, 0.0, 1.0);
            axis.ticks.into_iter().map(|tick| tick.1).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(labels(0.02, 1.5), "0.02 0.05 0.1 0.2 0.5 1");
        assert_eq!(labels(128.0, 65536.0), "300 1000 3000 10000 30000");
        assert_eq!(labels(0.0005, 2e6), "0.01 1 100 10000 1e6");
    }
}
