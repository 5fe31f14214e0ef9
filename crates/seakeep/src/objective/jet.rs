//! Numbers that carry their exact first and second derivatives, so that a pair loss is written once, as its paper
//! has it: values, gradients and what WDPO needs of curvature all follow from the one formula.
//!
//! A jet is a function of three variables, the log-probabilities of a pair's chosen completion, rejected completion and
//! prompt. `f(g)` has `d = f' g_d` and `dd = f' g_dd + f'' g_d g_d^T`.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::math;

/// Largest exponent; beyond it the exponential stands still. `e^300` squared is still finite in f64.
const MAX_EXPONENT: f64 = 300.0;

/// A value with its derivatives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Jet {
    /// The value.
    pub value: f64,
    /// First derivatives.
    pub d: [f64; 3],
    /// Second derivatives.
    pub dd: [[f64; 3]; 3],
}

impl Jet {
    /// The variable of this index.
    pub fn variable(value: f64, index: usize) -> Jet {
        let mut d = [0.0; 3];
        d[index] = 1.0;
        Jet { value, d, ..Jet::default() }
    }

    /// A number that depends on nothing.
    pub fn constant(value: f64) -> Jet {
        Jet { value, ..Jet::default() }
    }

    /// `f` of this, from the value and the first two derivatives of `f` here.
    fn chain(self, value: f64, first: f64, second: f64) -> Jet {
        let d = self.d;
        let dd =
            std::array::from_fn(|i| std::array::from_fn(|j| first * self.dd[i][j] + second * d[i] * d[j]));
        Jet { value, d: d.map(|d| first * d), dd }
    }

    /// `log sigmoid(x)`
    pub fn log_sigmoid(self) -> Jet {
        let (up, down) = (math::sigmoid(self.value), math::sigmoid(-self.value));
        self.chain(math::log_sigmoid(self.value), down, -up * down)
    }

    /// `1 / (1 + e^-x)`
    pub fn sigmoid(self) -> Jet {
        let (up, down) = (math::sigmoid(self.value), math::sigmoid(-self.value));
        self.chain(up, up * down, up * down * (down - up))
    }

    /// `e^x`; constant beyond [`MAX_EXPONENT`], as torch's `clamp` would make it.
    pub fn exp(self) -> Jet {
        self.exp_clamped(MAX_EXPONENT)
    }

    /// `e^min(x, most)`
    pub fn exp_clamped(self, most: f64) -> Jet {
        let e = self.value.min(most).exp();
        let slope = if self.value > most { 0.0 } else { e };
        self.chain(e, slope, slope)
    }

    /// `x^2`
    pub fn square(self) -> Jet {
        self.chain(self.value * self.value, 2.0 * self.value, 2.0)
    }

    /// `max(x, 0)`
    pub fn relu(self) -> Jet {
        if self.value > 0.0 { self } else { Jet::constant(0.0) }
    }

    /// `log(1 - e^x)` of a log-probability. At 0 (probability 1) it has none: the largest below it stands in.
    pub fn log1mexp(self) -> Jet {
        let x = self.value.min(-f64::EPSILON);
        // Each form is exact on its side of -ln 2.
        let value = if x < -std::f64::consts::LN_2 { (-x.exp()).ln_1p() } else { (-x.exp_m1()).ln() };
        let odds = 1.0 / (-x).exp_m1();
        self.chain(value, -odds, -odds * (1.0 + odds))
    }
}

impl Add for Jet {
    type Output = Jet;
    fn add(self, other: Jet) -> Jet {
        Jet {
            value: self.value + other.value,
            d: std::array::from_fn(|i| self.d[i] + other.d[i]),
            dd: std::array::from_fn(|i| std::array::from_fn(|j| self.dd[i][j] + other.dd[i][j])),
        }
    }
}

impl Mul for Jet {
    type Output = Jet;
    #[allow(clippy::suspicious_arithmetic_impl)] // the product rule adds
    fn mul(self, other: Jet) -> Jet {
        let (a, b) = (self, other);
        Jet {
            value: a.value * b.value,
            d: std::array::from_fn(|i| a.value * b.d[i] + b.value * a.d[i]),
            dd: std::array::from_fn(|i| {
                std::array::from_fn(|j| {
                    a.value * b.dd[i][j] + b.value * a.dd[i][j] + a.d[i] * b.d[j] + a.d[j] * b.d[i]
                })
            }),
        }
    }
}

impl Mul<Jet> for f64 {
    type Output = Jet;
    fn mul(self, jet: Jet) -> Jet {
        jet.chain(self * jet.value, self, 0.0)
    }
}

impl Neg for Jet {
    type Output = Jet;
    fn neg(self) -> Jet {
        -1.0 * self
    }
}

impl Sub for Jet {
    type Output = Jet;
    fn sub(self, other: Jet) -> Jet {
        self + -other
    }
}

impl Div<f64> for Jet {
    type Output = Jet;
    fn div(self, divisor: f64) -> Jet {
        self.chain(self.value / divisor, 1.0 / divisor, 0.0)
    }
}

impl Add<f64> for Jet {
    type Output = Jet;
    fn add(self, number: f64) -> Jet {
        Jet { value: self.value + number, ..self }
    }
}

impl Sub<f64> for Jet {
    type Output = Jet;
    fn sub(self, number: f64) -> Jet {
        self + -number
    }
}

impl Add<Jet> for f64 {
    type Output = Jet;
    fn add(self, jet: Jet) -> Jet {
        jet + self
    }
}

impl Sub<Jet> for f64 {
    type Output = Jet;
    fn sub(self, jet: Jet) -> Jet {
        -jet + self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation against central differences of values and of first derivatives.
    #[test]
    fn derivatives_follow_differences() {
        type Function = fn(Jet, Jet) -> Jet;
        let functions: [(&str, Function); 9] = [
            ("log_sigmoid", |x, y| (2.0 * x - y).log_sigmoid()),
            ("sigmoid", |x, y| (x + y).sigmoid()),
            ("exp", |x, y| (x - 0.5 * y).exp()),
            ("square", |x, y| (x - y + 3.0).square()),
            ("relu", |x, y| (1.0 - x * y).relu()),
            ("product", |x, y| x * y * (x - 2.0)),
            ("quotient", |x, y| (x.exp() + y) / 7.0),
            ("log1mexp", |x, y| (-(x * x + y * y) - 0.1).log1mexp()),
            ("mixture", |x, y| x.sigmoid() * (-y).log_sigmoid() + (x * y).exp()),
        ];
        let eps = 1e-5;
        for (name, f) in functions {
            let at = |x: f64, y: f64| f(Jet::variable(x, 0), Jet::variable(y, 1));
            for (x, y) in [(0.3, -0.7), (-1.2, 0.4), (0.9, 1.1), (-0.2, -0.1)] {
                let jet = at(x, y);
                let by = |of: &dyn Fn(Jet) -> f64, dx: f64, dy: f64| {
                    (of(at(x + dx, y + dy)) - of(at(x - dx, y - dy))) / (2.0 * eps)
                };
                for (i, (dx, dy)) in [(eps, 0.0), (0.0, eps)].into_iter().enumerate() {
                    assert!((jet.d[i] - by(&|j| j.value, dx, dy)).abs() < 1e-7, "{name}: d[{i}]");
                    for k in 0..2 {
                        assert!(
                            (jet.dd[k][i] - by(&|j| j.d[k], dx, dy)).abs() < 1e-7,
                            "{name}: dd[{k}][{i}]"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn extremes_stay_finite() {
        for x in [-1e4, -800.0, -40.0, 0.0, 40.0, 800.0, 1e4] {
            let x = Jet::variable(x, 0);
            for jet in [x.log_sigmoid(), x.sigmoid(), x.exp(), x.exp().square(), x.relu(), x.log1mexp()] {
                assert!(
                    jet.value.is_finite() && jet.d[0].is_finite() && jet.dd[0][0].is_finite(),
                    "{x:?}: {jet:?}"
                );
            }
        }
    }
}
