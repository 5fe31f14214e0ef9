use super::*;
use crate::preferences::Form;

fn boot(resamples: usize) -> Bootstrap {
    Bootstrap { resamples, ..Bootstrap::default() }
}

/// Deterministic numbers that look like noise, in (-0.5, 0.5).
fn noise(n: usize) -> Vec<f64> {
    (0..n).map(|i| ((i as f64 * 12.9898).sin() * 43758.5453).fract().abs() - 0.5).collect()
}

/// The primal problems, solved by Clarabel (scripts/parity/worst_cases.py); 1e-6 of the largest loss, which is also what
/// the width of a tie can change.
#[test]
fn worst_cases_are_a_convex_solvers() {
    let text = include_str!("../../tests/golden/worst_cases.json");
    let cases: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut count = 0;
    for case in cases.as_array().unwrap() {
        let numbers = |v: &serde_json::Value| -> Vec<f64> {
            v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let losses = numbers(&case["losses"]);
        let largest = losses.iter().fold(0.0f64, |a, b| a.max(*b));
        for ball in &Ball::ALL[..4] {
            for point in case["worst"][ball.name()].as_array().unwrap() {
                let [rho, want] = numbers(point)[..] else { panic!("{point}") };
                let got = worst_case(*ball, rho, &losses, None);
                assert!(
                    (got - want).abs() <= 1e-6 * largest.max(1.0),
                    "{ball:?} {rho} {losses:?}: {got} {want}"
                );
                count += 1;
            }
        }
    }
    assert_eq!(count, 220);
}

#[test]
fn worst_cases_have_their_closed_forms() {
    // Errors of m among n: KL's sup is the q with KL(q || m/n) = rho.
    let errors = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let q = worst_case(Ball::Kl, 0.1, &errors, None);
    let kl = q * (q / 0.25f64).ln() + (1.0 - q) * ((1.0 - q) / 0.75f64).ln();
    assert!((kl - 0.1).abs() < 1e-9 && q > 0.25, "{q}");
    // Chi-square inside the simplex: mean + sqrt(rho variance).
    let losses = [1.0, 2.0, 3.0, 4.0];
    assert!((worst_case(Ball::Chi2, 0.01, &losses, None) - (2.5 + (0.01f64 * 1.25).sqrt())).abs() < 1e-9);
    assert!((worst_case(Ball::Cvar, 0.375, &losses, None) - (4.0 + 0.5 * 3.0) / 1.5).abs() < 1e-12);
    assert!((worst_case(Ball::Tv, 0.3, &losses, None) - (2.5 + 0.25 * 3.0 + 0.05 * 2.0)).abs() < 1e-12);
    let gradients = [1.0, 2.0, 2.0, 4.0];
    assert!((worst_case(Ball::Wasserstein, 0.5, &losses, Some(&gradients)) - 3.75).abs() < 1e-12);
    assert!(worst_case(Ball::Wasserstein, 0.5, &losses, None).is_nan());
    for ball in &Ball::ALL[..4] {
        assert!(
            worst_case(*ball, 0.5, &[1.0, f64::NAN], None).is_nan()
                && worst_case(*ball, 0.5, &[], None).is_nan()
        );
        assert!(!ball.has_radius(f64::NAN) && !ball.has_radius(-0.1));
    }
}

#[test]
fn groups_have_their_means_and_a_worst() {
    let groups: Vec<String> = ["b", "a", "b", "c"].map(String::from).to_vec();
    let means = by_group(&[1.0, 3.0, 2.0, 0.0], &groups);
    assert_eq!(means["b"], GroupMean { rows: 2, mean: 1.5 });
    assert_eq!(worst_group(&means), Some(("a", 3.0)));
    assert_eq!(worst_group(&by_group(&[], &[])), None);
    assert_eq!(errors(&[-1.0, 0.0, 2.0]), [1.0, 1.0, 0.0]);
}

/// The percentile interval of a mean is close to the normal one: 1.96 standard errors, within a tenth of their width.
#[test]
fn intervals_of_means_have_the_width_of_the_normal_ones() {
    let values: Vec<f64> = noise(400).iter().map(|x| 2.0 + x).collect();
    let found = boot(4000).mean(&values);
    let se = (values.iter().map(|x| (x - mean(&values)).powi(2)).sum::<f64>() / 400.0 / 400.0).sqrt();
    assert_eq!(found.value, mean(&values));
    for end in [found.value - found.low, found.high - found.value] {
        assert!((end / (1.96 * se) - 1.0).abs() < 0.1, "{found:?} {se}");
    }
    assert_eq!(boot(4000).mean(&values), found);
    assert_ne!(Bootstrap { seed: 1, ..boot(4000) }.mean(&values), found);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one.install(|| boot(4000).mean(&values)), found);
    let ratio = boot(50).ratio(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0]);
    assert!([ratio.value, ratio.low, ratio.high].iter().all(|x| (x - 2.0).abs() < 1e-12), "{ratio:?}");
    let broken = boot(50).mean(&[1.0, f64::NAN]);
    assert!(broken.value.is_nan() && broken.low.is_nan());
}

#[test]
fn what_policies_share_leaves_their_difference() {
    // Prompts differ by far more than the policies do.
    let hard: Vec<f64> = noise(100).iter().map(|x| 50.0 * x).collect();
    let better: Vec<f64> = hard.iter().map(|x| x + 0.25).collect();
    let paired = boot(500).paired(&better, &hard).unwrap();
    assert!((paired.difference.low - 0.25).abs() < 1e-9 && (paired.difference.high - 0.25).abs() < 1e-9);
    assert_eq!(paired.below_zero, 0.0);
    assert_eq!(boot(500).paired(&hard, &better).unwrap().below_zero, 1.0);
    assert_eq!(boot(500).paired(&hard, &hard).unwrap().below_zero, 0.5);
    let message = boot(10).paired(&hard, &hard[1..]).unwrap_err().to_string();
    assert!(message.contains("100 and 99 prompts cannot be paired"), "{message}");
    // One prompt says nothing of another.
    let alone = boot(10).paired(&[2.0], &[1.0]).unwrap();
    assert!(alone.difference.value == 1.0 && alone.difference.low.is_nan() && alone.below_zero.is_nan());
}

#[test]
fn rewards_mix_and_preferences_follow_the_mixture() {
    let (r1, r2) = ([0.9, 0.04], [0.1, 0.25]);
    assert!((mixed(Form::Convex, 0.25, &r1, &r2)[0] - 0.3).abs() < 1e-15);
    assert!((mixed(Form::Geometric, 0.5, &r1, &r2)[1] - 0.1).abs() < 1e-15);
    assert!(mixed(Form::Geometric, 0.5, &[-0.1], &[0.1])[0].is_nan());
    // Chosen (0.9, 0.1), rejected (0.4, 0.3).
    let (d1, d2) = (([0.5], [0.9]), ([-0.2], [0.1]));
    for (form, alpha, want) in [
        (Form::Convex, 0.0, -0.2),
        (Form::Convex, 0.5, 0.15),
        (Form::Geometric, 0.5, 0.09f64.sqrt() - 0.12f64.sqrt()),
        (Form::Geometric, 1.0, 0.5),
    ] {
        let got = mixed_preferences(form, alpha, (&d1.0, &d1.1), (&d2.0, &d2.1))[0];
        assert!((got - want).abs() < 1e-12, "{form:?} {alpha}: {got} {want}");
    }
    let agreed = agreement(&[1.0, -1.0, 0.0, 1.0, -2.0], &[2.0, 2.0, 1.0, 0.0, -1e-300]);
    assert_eq!(agreed, [Some(1.0), Some(0.0), Some(0.0), None, Some(1.0)]);
}

#[test]
fn win_rates_count_ties_half() {
    assert_eq!(wins((&[1.0, 3.0, 5.0, 5.0], 2), (&[2.0, 5.0], 1)), [0.5, 0.5]);
    assert_eq!(wins((&[1.0], 1), (&[0.0, 1.0, 2.0], 3)), [0.5]);
    assert!(wins((&[f64::NAN], 1), (&[0.0], 1))[0].is_nan());
    assert_eq!(per_prompt(&[1.0, 3.0, 5.0, 5.0], 2), [2.0, 5.0]);
    assert_eq!(
        divergence_per_token(&[1.0, 2.0, 3.0, 4.0], &[1, 2, 3, 4], 2),
        (vec![3.0, 7.0], vec![3.0, 7.0])
    );
}

/// Scores of a decimal or two come out of a mixture with rounding, which is no preference.
#[test]
fn what_only_rounding_tells_apart_is_a_tie() {
    let (chosen, rejected) =
        ([[0.9, 0.3], [0.7, 0.1], [0.9, 0.3]], [[0.6, 0.6], [0.1, 0.7], [0.6, 0.6 - 1e-9]]);
    let column = |of: usize| -> (Vec<f64>, Vec<f64>) {
        let pairs = chosen.iter().zip(&rejected);
        (pairs.map(|(c, r)| c[of] - r[of]).collect(), chosen.iter().map(|c| c[of]).collect())
    };
    let (first, second) = (column(0), column(1));
    let at_half = mixed_preferences(Form::Convex, 0.5, (&first.0, &first.1), (&second.0, &second.1));
    assert_eq!(at_half[..2], [0.0, 0.0]);
    assert!((at_half[2] - 5e-10).abs() < 1e-12, "{at_half:?}");
}
