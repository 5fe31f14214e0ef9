//! From the logits of one position to the next token, with transformers' meaning and order: temperature,
//! then top-k, then top-p, then a draw; or greedily the first maximum.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::GenerateOptions;
use crate::{Error, Result};

/// The randomness of one text: it belongs to the seed, the prompt and the sample, not to the batch they are
/// computed in.
pub(super) fn stream(seed: u64, prompt: usize, sample: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, part) in key.chunks_exact_mut(8).zip([seed, prompt as u64, sample as u64]) {
        bytes.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The next token. `logits` is `[V]`; greedy unless `do_sample`.
///
/// # Errors
/// [`Error::NonFinite`] where no token can be chosen: a logit that is not a number or is positive infinity.
pub fn next_token(logits: &[f32], options: &GenerateOptions, rng: &mut ChaCha8Rng) -> Result<u32> {
    if !options.do_sample {
        return greedy(logits);
    }
    let kept = distribution(logits, options)?;
    // Uniform in [0, 1), a multiple of 2^-53, of the total: the weights need not add up to 1 exactly.
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut left = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
    for &(token, weight) in &kept {
        left -= weight;
        if left < 0.0 {
            return Ok(token);
        }
    }
    // Rounding alone leads here.
    Ok(kept[kept.len() - 1].0)
}

/// The first maximum.
fn greedy(logits: &[f32]) -> Result<u32> {
    let mut best = 0;
    for (token, &z) in logits.iter().enumerate() {
        if z > logits[best] {
            best = token;
        }
    }
    // A NaN is greater than nothing and would go unseen.
    if logits.iter().any(|z| z.is_nan()) || !logits[best].is_finite() {
        Err(broken())
    } else {
        Ok(best as u32)
    }
}

/// The tokens that temperature, top-k and top-p leave, by id, with their probabilities. At least one.
///
/// # Errors
/// As [`next_token`].
pub fn distribution(logits: &[f32], options: &GenerateOptions) -> Result<Vec<(u32, f64)>> {
    let scores: Vec<f64> = logits.iter().map(|&z| z as f64 / options.temperature).collect();
    let floor = if options.top_k > 0 && options.top_k < scores.len() {
        let mut scores = scores.clone();
        // Equals of the k-th largest stay too, as in transformers.
        *scores.select_nth_unstable_by(options.top_k - 1, |a, b| b.total_cmp(a)).1
    } else {
        f64::NEG_INFINITY
    };
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // A NaN stays, so that the sum shows it.
    let mut kept: Vec<(u32, f64)> = (scores.iter().enumerate())
        .filter(|(_, score)| **score >= floor || score.is_nan())
        .map(|(token, score)| (token as u32, (score - top).exp()))
        .collect();
    normalise(&mut kept)?;
    if options.top_p < 1.0 {
        nucleus(&mut kept, options.top_p);
        normalise(&mut kept)?;
    }
    Ok(kept)
}

fn normalise(kept: &mut [(u32, f64)]) -> Result<()> {
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    if !total.is_finite() {
        return Err(broken());
    }
    kept.iter_mut().for_each(|(_, weight)| *weight /= total);
    Ok(())
}

/// Keeps the likeliest tokens up to the one with which their sum reaches `top_p`. As in transformers they are
/// taken from the least likely up and dropped while their sum is at most `1 - top_p`; among equals the
/// smaller id goes first.
fn nucleus(kept: &mut Vec<(u32, f64)>, top_p: f64) {
    let tail = 1.0 - top_p;
    // Together these are at most half the tail, so they go whatever their order, and a short list is left to
    // sort. The likeliest is not among them: it has 1 / length or more.
    let surely_out = 0.5 * tail / kept.len() as f64;
    let mut dropped: f64 = 0.0;
    kept.retain(|&(_, p)| {
        let stays = p >= surely_out;
        dropped += if stays { 0.0 } else { p };
        stays
    });
    kept.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut out = 0;
    for (_, p) in &kept[..kept.len() - 1] {
        dropped += p;
        if dropped > tail {
            break;
        }
        out += 1;
    }
    kept.drain(..out);
    kept.sort_by_key(|&(token, _)| token);
}

fn broken() -> Error {
    Error::NonFinite(
        "the model's logits are not finite: no next token can be chosen; expected finite weights (a training \
         run that diverged saves such a model)"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(temperature: f64, top_k: usize, top_p: f64) -> GenerateOptions {
        GenerateOptions { do_sample: true, temperature, top_k, top_p, ..Default::default() }
    }

    /// Tokens 0..5 have probabilities 0.1, 0.5, 0.05, 0.2, 0.15 before filtering.
    fn check(options: GenerateOptions, want: &[(u32, f64)]) {
        let logits = [0.1f32, 0.5, 0.05, 0.2, 0.15].map(|p| p.ln() + 3.0);
        let got = distribution(&logits, &options).unwrap();
        let tokens = |list: &[(u32, f64)]| list.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(tokens(&got), tokens(want), "{options:?}");
        for (got, want) in got.iter().zip(want) {
            // The rounding of an f32 logit.
            assert!((got.1 - want.1).abs() < 1e-6, "{options:?}: {got:?} instead of {want:?}");
        }
    }

    #[test]
    fn filters_leave_what_is_computed_by_hand() {
        let all = [(0, 0.1), (1, 0.5), (2, 0.05), (3, 0.2), (4, 0.15)];
        check(options(1.0, 0, 1.0), &all);
        check(options(1.0, 5, 1.0), &all);
        check(options(1.0, 99, 1.0), &all);
        check(options(1.0, 1, 1.0), &[(1, 1.0)]);
        check(options(1.0, 2, 1.0), &[(1, 5.0 / 7.0), (3, 2.0 / 7.0)]);
        // 0.5 < 0.6 <= 0.5 + 0.2: the token that crosses the line is in.
        check(options(1.0, 0, 0.6), &[(1, 5.0 / 7.0), (3, 2.0 / 7.0)]);
        check(options(1.0, 0, 0.69), &[(1, 5.0 / 7.0), (3, 2.0 / 7.0)]);
        check(options(1.0, 0, 0.71), &[(1, 0.5 / 0.85), (3, 0.2 / 0.85), (4, 0.15 / 0.85)]);
        check(options(1.0, 0, 0.49), &[(1, 1.0)]);
        check(options(1.0, 0, 1e-12), &[(1, 1.0)]);
        check(options(1.0, 0, 0.96), &all);
    }

    #[test]
    fn temperature_comes_first_and_top_k_before_top_p() {
        // Squares: 0.01, 0.25, 0.0025, 0.04, 0.0225, together 0.325.
        let squares = [0.01, 0.25, 0.0025, 0.04, 0.0225];
        let at_half: Vec<(u32, f64)> = (0..).zip(squares.map(|s| s / 0.325)).collect();
        check(options(0.5, 0, 1.0), &at_half);
        // 0.25 / 0.325 = 0.77 suffices, where 0.5 without the temperature would not.
        check(options(0.5, 0, 0.75), &[(1, 1.0)]);
        // Among the two likeliest the first has 5/7 = 0.714, where it had 0.5 among all.
        check(options(1.0, 2, 0.7), &[(1, 1.0)]);
        check(options(1.0, 2, 0.72), &[(1, 5.0 / 7.0), (3, 2.0 / 7.0)]);
    }

    #[test]
    fn equals_stay_with_top_k_and_go_from_the_front_with_top_p() {
        let equal = [1.0f32; 4];
        assert_eq!(distribution(&equal, &options(1.0, 2, 1.0)).unwrap().len(), 4);
        // Exactly at the line: two of four have 0.5.
        assert_eq!(distribution(&equal, &options(1.0, 0, 0.5)).unwrap(), [(2, 0.5), (3, 0.5)]);
        assert_eq!(distribution(&equal, &options(1.0, 0, 0.25)).unwrap(), [(3, 1.0)]);
    }

    #[test]
    fn the_short_list_of_top_p_is_that_of_the_whole_sort() {
        let mut rng = stream(1, 2, 3);
        for round in 0..200 {
            let spread = 0.1 + round as f32 * 0.1;
            let unit = |rng: &mut ChaCha8Rng| rng.next_u32() as f32 / u32::MAX as f32;
            let logits: Vec<f32> = (0..300).map(|_| spread * unit(&mut rng)).collect();
            let top_p = 0.01 + 0.98 * unit(&mut rng) as f64;
            let mut sorted = distribution(&logits, &options(1.0, 0, 1.0)).unwrap();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut sum = 0.0;
            let size = 1 + sorted.iter().take_while(|(_, p)| (sum += p, sum < top_p).1).count();
            let mut want: Vec<u32> = sorted[..size].iter().map(|t| t.0).collect();
            want.sort_unstable();
            let got = distribution(&logits, &options(1.0, 0, top_p)).unwrap();
            assert_eq!(got.iter().map(|t| t.0).collect::<Vec<_>>(), want, "round {round}");
        }
    }

    #[test]
    fn greedy_takes_the_first_maximum() {
        let greedy = GenerateOptions::default();
        let mut rng = stream(0, 0, 0);
        assert_eq!(next_token(&[0.0, 2.0, -1.0, 2.0], &greedy, &mut rng).unwrap(), 1);
        assert_eq!(next_token(&[f32::NEG_INFINITY, -5.0], &greedy, &mut rng).unwrap(), 1);
    }

    #[test]
    fn logits_that_are_not_finite_are_refused_and_forbidden_tokens_are_not() {
        let mut rng = stream(0, 0, 0);
        for options in [GenerateOptions::default(), options(1.0, 0, 1.0), options(0.7, 1, 0.5)] {
            for bad in [[f32::NAN, 1.0], [1.0, f32::NAN], [1.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
                let error = next_token(&bad, &options, &mut rng).unwrap_err();
                assert!(matches!(error, Error::NonFinite(_)), "{options:?} {bad:?}");
            }
            assert_eq!(next_token(&[f32::NEG_INFINITY, 0.0], &options, &mut rng).unwrap(), 1);
        }
    }
}
