//! Functions that must not overflow or cancel.

/// `log sigmoid(x)`, exact to rounding for any `x`.
pub fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-x)`, without overflow and without cancellation for negative `x`.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The largest value.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The smallest value.
pub fn smallest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The quantile `q` in `[0, 1]`, linear between the two nearest values, as NumPy and PyTorch have it.
///
/// # Panics
/// If there are no values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (at - low as f64) * (sorted[high] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        let values = [3.0, 1.0, 2.0, 10.0];
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 0.5), 2.5);
        // At 0.7 x 3 = 2.1: a tenth of the way from 3 to 10.
        assert!((quantile(&values, 0.7) - 3.7).abs() < 1e-12);
        assert_eq!(quantile(&values, 1.0), 10.0);
    }

    #[test]
    fn sigmoids_keep_their_small_end() {
        assert!((log_sigmoid(50.0) / -(-50f64).exp() - 1.0).abs() < 1e-12);
        assert_eq!(log_sigmoid(-1e4), -1e4);
        assert!((sigmoid(-50.0) / (-50f64).exp() - 1.0).abs() < 1e-12);
    }
}
