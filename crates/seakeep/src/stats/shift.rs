//! What a policy is worth when preferences move from one objective to another (arXiv 2502.01930, section 7).

use crate::preferences::Form;

/// The reward of each completion at `alpha`: the mixture of `r1` (weight alpha) and `r2` (weight 1 - alpha).
pub fn mixed(form: Form, alpha: f64, r1: &[f64], r2: &[f64]) -> Vec<f64> {
    r1.iter().zip(r2).map(|(&a, &b)| form.mix(&[(alpha, a), (1.0 - alpha, b)])).collect()
}

/// By how much the mixture at `alpha` prefers the chosen completion of each pair. For each of the two objectives the
/// difference of scores, chosen less rejected, and the chosen one's score, which only a geometric mixture looks at.
pub fn mixed_preferences(form: Form, alpha: f64, r1: (&[f64], &[f64]), r2: (&[f64], &[f64])) -> Vec<f64> {
    let weights = [alpha, 1.0 - alpha];
    let of = |i: usize| {
        let (differences, chosen) = ([r1.0[i], r2.0[i]], [r1.1, r2.1].map(|c| c.get(i).copied()));
        match (form, chosen) {
            (Form::Convex, _) => difference(weights[0] * differences[0], -weights[1] * differences[1]),
            (Form::Geometric, [Some(a), Some(b)]) => {
                let reward = |scores: [f64; 2]| form.mix(&[(weights[0], scores[0]), (weights[1], scores[1])]);
                difference(reward([a, b]), reward([a - differences[0], b - differences[1]]))
            }
            (Form::Geometric, _) => f64::NAN,
        }
    };
    (0..r1.0.len()).map(of).collect()
}

/// `a - b`; 0 where no more than rounding is left: scores of a decimal or two are equal then, and nothing is preferred.
fn difference(a: f64, b: f64) -> f64 {
    let rounding = 1e-12 * (a.abs() + b.abs());
    if (a - b).abs() <= rounding { 0.0 } else { a - b }
}

/// Of each pair whether the policy's margin has the sign of the preference, 1 or 0; a margin of 0 agrees with nothing.
/// `None` where there is no preference.
pub fn agreement(margins: &[f64], preferences: &[f64]) -> Vec<Option<f64>> {
    let of = |(margin, preference): (&f64, &f64)| match margin * preference {
        _ if *preference == 0.0 => None,
        product if product.is_nan() => Some(f64::NAN),
        // Not the product's sign: it may underflow.
        _ => Some(f64::from(*margin != 0.0 && (*margin > 0.0) == (*preference > 0.0))),
    };
    margins.iter().zip(preferences).map(of).collect()
}

/// The mean over each prompt's samples, `[prompts * samples]` to `[prompts]`.
///
/// # Panics
/// If `samples` is 0.
pub fn per_prompt(values: &[f64], samples: usize) -> Vec<f64> {
    values.chunks(samples).map(super::mean).collect()
}

/// Of each prompt the share of meetings of a sample of the first policy with one of the second that the first wins; ties
/// count half. `[prompts]`; its mean is the win rate.
///
/// # Panics
/// If a number of samples is 0.
pub fn wins(first: (&[f64], usize), second: (&[f64], usize)) -> Vec<f64> {
    let won = |a: f64, b: f64| {
        if a.is_nan() || b.is_nan() { f64::NAN } else { f64::from(a > b) + 0.5 * f64::from(a == b) }
    };
    let of = |(a, b): (&[f64], &[f64])| {
        let sum: f64 = a.iter().map(|&x| b.iter().map(|&y| won(x, y)).sum::<f64>()).sum();
        sum / (a.len() * b.len()) as f64
    };
    first.0.chunks(first.1).zip(second.0.chunks(second.1)).map(of).collect()
}

/// Divergence from the reference and tokens of each prompt's samples, summed, for a ratio of sums: nats per token.
///
/// # Panics
/// If `samples` is 0.
pub fn divergence_per_token(ratios: &[f64], tokens: &[u32], samples: usize) -> (Vec<f64>, Vec<f64>) {
    let tokens: Vec<f64> = tokens.iter().map(|t| f64::from(*t)).collect();
    let sums = |values: &[f64]| values.chunks(samples).map(|own| own.iter().sum()).collect();
    (sums(ratios), sums(&tokens))
}
