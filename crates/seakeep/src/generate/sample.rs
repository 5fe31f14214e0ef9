//! From the logits of one position to the next token, with transformers' meaning and order: repetition penalty, the
//! tokens that may not end a text yet, temperature, top-k, top-p, min-p, then a draw; or greedily the first maximum.
//!
//! Without top-p a draw is three passes over the vocabulary in vectors (maximum, exponentials, sums of blocks) and
//! a walk through one block; with top-p only the few tokens that can be in are sorted.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use seakeep_kernels::simd::{exp, max, sum_by};
use seakeep_kernels::vectorise;

use super::GenerateOptions;
use crate::{Error, Result};

/// Tokens whose weights are added up in f32, between sums in f64.
const BLOCK: usize = 512;

/// The randomness of one text: it belongs to the seed, the prompt's place among the prompts and the sample, not to the
/// batch they are computed in.
pub(super) fn stream(seed: u64, prompt: usize, sample: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, part) in key.chunks_exact_mut(8).zip([seed, prompt as u64, sample as u64]) {
        bytes.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Changes logits (`[V]`) in place as the text so far asks for: `seen` are the tokens of prompt and completion, each
/// once, whose logits `repetition_penalty` divides (or multiplies, where they are negative); `forbidden` tokens cannot
/// come next.
///
/// # Errors
/// [`Error::NonFinite`] where a logit is not a number or is positive infinity.
pub fn adjust(logits: &mut [f32], seen: &[u32], forbidden: &[u32], options: &GenerateOptions) -> Result<()> {
    let broken_ones = vectorise!(logits.iter().map(|&z| u32::from(z.is_nan() || z > f32::MAX)).sum::<u32>());
    if broken_ones > 0 {
        return Err(broken());
    }
    if options.repetition_penalty != 1.0 {
        let penalty = options.repetition_penalty as f32;
        for &token in seen {
            let z = &mut logits[token as usize];
            *z = if *z < 0.0 { *z * penalty } else { *z / penalty };
        }
    }
    for &token in forbidden {
        // A token that ends other models' texts may not exist in this one.
        if let Some(z) = logits.get_mut(token as usize) {
            *z = f32::NEG_INFINITY;
        }
    }
    Ok(())
}

/// The next token. `logits` is `[V]`, as [`adjust`] leaves them; greedy unless `do_sample`. `weights` is scratch.
///
/// # Errors
/// [`Error::NonFinite`] where no token can be chosen.
pub fn next_token(
    logits: &[f32],
    options: &GenerateOptions,
    rng: &mut ChaCha8Rng,
    weights: &mut Vec<f32>,
) -> Result<u32> {
    if !options.do_sample {
        let top = top(logits)?;
        return Ok(logits.iter().position(|z| *z == top).expect("the maximum is one of them") as u32);
    }
    // Uniform in [0, 1), a multiple of 2^-53.
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    weigh(logits, options, weights)?;
    if options.top_p < 1.0 {
        let kept = nucleus_of(weights, options);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let at = pick(kept.iter().map(|(_, weight)| *weight), uniform * total);
        return Ok(kept[at].0);
    }
    let sums = block_sums(weights);
    // Of the total, which need not be 1.
    let mut left = uniform * sums.iter().sum::<f64>();
    let block = pick(sums.iter().copied(), left);
    left -= sums[..block].iter().sum::<f64>();
    let start = block * BLOCK;
    let end = weights.len().min(start + BLOCK);
    Ok((start + pick(weights[start..end].iter().map(|&w| f64::from(w)), left)) as u32)
}

/// Where the sum of the weights passes `left`; by rounding perhaps nowhere: then the last that weighs anything.
fn pick(weights: impl Iterator<Item = f64>, mut left: f64) -> usize {
    let mut last = 0;
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = i;
        }
        left -= weight;
        if left < 0.0 {
            return i;
        }
    }
    last
}

/// The tokens that temperature, top-k, top-p and min-p leave, by id, with their probabilities. At least one.
///
/// # Errors
/// As [`next_token`].
pub fn distribution(logits: &[f32], options: &GenerateOptions) -> Result<Vec<(u32, f64)>> {
    let mut weights = Vec::new();
    weigh(logits, options, &mut weights)?;
    let mut kept = if options.top_p < 1.0 {
        nucleus_of(&weights, options)
    } else {
        (0..).zip(weights.iter().map(|&w| f64::from(w))).filter(|(_, weight)| *weight > 0.0).collect()
    };
    normalise(&mut kept);
    Ok(kept)
}

/// Writes `e^((z - top) / temperature)`, 0 where top-k (and, without top-p, min-p) leaves a token out.
fn weigh(logits: &[f32], options: &GenerateOptions, weights: &mut Vec<f32>) -> Result<()> {
    let top = top(logits)?;
    let floor = top_k_floor(logits, options.top_k, weights);
    // The likeliest token has weight 1 and is always in, so min-p's line does not depend on the other filters. It comes
    // last all the same: what it leaves out counts where top-p adds up.
    let least = if options.top_p < 1.0 { 0.0 } else { options.min_p as f32 };
    // Finite: it is multiplied with 0 for the likeliest token.
    let inverse = ((1.0 / options.temperature) as f32).min(f32::MAX);
    weights.clear();
    weights.resize(logits.len(), 0.0);
    vectorise!({
        for (weight, &z) in weights.iter_mut().zip(logits) {
            let w = exp((z - top) * inverse);
            *weight = if z >= floor && w >= least { w } else { 0.0 };
        }
    });
    Ok(())
}

fn top(logits: &[f32]) -> Result<f32> {
    let top = vectorise!(max(logits));
    if top.is_finite() { Ok(top) } else { Err(broken()) }
}

/// The `k`-th largest logit. Its equals stay too, as in transformers.
fn top_k_floor(logits: &[f32], k: usize, scratch: &mut Vec<f32>) -> f32 {
    /// Tokens of which the largest is looked at first.
    const GROUP: usize = 32;
    if k == 0 || k >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let largest = |list: &mut [f32]| *list.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
    scratch.clear();
    // With k groups whose largest is at least x, at least k logits are: most of the vocabulary is out of the question.
    let mut floor = f32::NEG_INFINITY;
    if logits.len() / GROUP > k {
        vectorise!(scratch.extend(logits.chunks(GROUP).map(max)));
        floor = largest(scratch);
        scratch.clear();
    }
    scratch.extend(logits.iter().filter(|z| **z >= floor));
    largest(scratch)
}

fn block_sums(weights: &[f32]) -> Vec<f64> {
    vectorise!(weights.chunks(BLOCK).map(|block| f64::from(sum_by(block.len(), |i| block[i]))).collect())
}

/// What top-p and then min-p leave, with weights that need not add up to 1.
fn nucleus_of(weights: &[f32], options: &GenerateOptions) -> Vec<(u32, f64)> {
    let total: f64 = block_sums(weights).iter().sum();
    // Together these are at most half the tail that goes, so they go whatever their order, and a short list is left to
    // sort. The likeliest is not among them: it has 1 / length or more.
    let surely_out = (0.5 * (1.0 - options.top_p) * total / weights.len() as f64) as f32;
    let mut kept: Vec<(u32, f64)> = (0..)
        .zip(weights)
        .filter(|(_, w)| **w >= surely_out && **w > 0.0)
        .map(|(token, &w)| (token, f64::from(w) / total))
        .collect();
    nucleus(&mut kept, options.top_p);
    let top = kept.iter().fold(0.0, |top: f64, (_, p)| top.max(*p));
    kept.retain(|(_, p)| *p >= options.min_p * top);
    kept
}

fn normalise(kept: &mut [(u32, f64)]) {
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    kept.iter_mut().for_each(|(_, weight)| *weight /= total);
}

/// Keeps the likeliest tokens up to the one with which their sum reaches `top_p`; what is missing from 1 has been
/// dropped before. As in transformers they are taken from the least likely up and dropped while their sum is at
/// most `1 - top_p`; among equals the smaller id goes first.
fn nucleus(kept: &mut Vec<(u32, f64)>, top_p: f64) {
    let tail = 1.0 - top_p;
    kept.sort_by(|a, b| a.1.total_cmp(&b.1));
    // What was dropped before, from what is left: rounding must not drop more than was.
    let mut dropped = (1.0 - kept.iter().map(|(_, p)| p).sum::<f64>()).max(0.0);
    let mut out = 0;
    for (_, p) in &kept[..kept.len() - 1] {
        dropped += p;
        // The weights are f32: a sum that is the tail but for their rounding is the tail.
        if dropped > tail + 1e-9 {
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
        assert_eq!(next_token(&[0.0, 2.0, -1.0, 2.0], &greedy, &mut rng, &mut Vec::new()).unwrap(), 1);
        assert_eq!(next_token(&[f32::NEG_INFINITY, -5.0], &greedy, &mut rng, &mut Vec::new()).unwrap(), 1);
    }

    #[test]
    fn logits_that_are_not_finite_are_refused_and_forbidden_tokens_are_not() {
        let mut rng = stream(0, 0, 0);
        for options in [GenerateOptions::default(), options(1.0, 0, 1.0), options(0.7, 1, 0.5)] {
            for bad in [[f32::NAN, 1.0], [1.0, f32::NAN], [1.0, f32::INFINITY], [f32::NEG_INFINITY; 2]] {
                let mut logits = bad;
                let error = adjust(&mut logits, &[], &[], &options)
                    .and_then(|()| next_token(&logits, &options, &mut rng, &mut Vec::new()))
                    .unwrap_err();
                assert!(matches!(error, Error::NonFinite(_)), "{options:?} {bad:?}");
            }
            assert_eq!(
                next_token(&[f32::NEG_INFINITY, 0.0], &options, &mut rng, &mut Vec::new()).unwrap(),
                1
            );
        }
    }
}
