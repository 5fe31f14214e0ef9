use super::kldpo::Kldpo;
use super::wdpo::{Form, Penalty, PromptGradient};
use super::*;

fn objective(beta: f64, rule: Rule) -> Objective {
    Objective { pair: dpo::Dpo { beta, label_smoothing: 0.0 }, rule, penalty: None }
}

fn logps(n: usize, seed: f64) -> BranchLogps {
    let at = |i: usize, s: f64| -30.0 + 9.0 * ((i as f64 + 1.3) * (s + seed)).sin();
    BranchLogps {
        chosen: (0..n).map(|i| at(i, 1.0)).collect(),
        rejected: (0..n).map(|i| at(i, 2.0)).collect(),
    }
}

#[test]
fn policy_equal_to_reference_costs_ln_2() {
    let same = logps(5, 0.1);
    for rule in [
        Rule::Mean,
        Rule::Kldpo(Kldpo::Tau(0.05)),
        Rule::Kldpo(Kldpo::Rho(0.3)),
        Rule::Kldpo(Kldpo::Official(1.0)),
    ] {
        let e = objective(0.1, rule).evaluate(&same, &same, 5);
        assert!((e.loss - std::f64::consts::LN_2).abs() < 1e-15, "{rule:?}: {}", e.loss);
    }
}

#[test]
fn derivatives_follow_differences() {
    let dpo = dpo::Dpo { beta: 0.3, label_smoothing: 0.1 };
    let eps = 1e-5;
    for (w, l) in [(0.0, 0.0), (3.0, -2.0), (-40.0, 10.0), (25.0, -9.0)] {
        let at = dpo.loss(w, l);
        let by = |f: &dyn Fn(&PairLoss) -> f64, dw: f64, dl: f64| {
            (f(&dpo.loss(w + dw, l + dl)) - f(&dpo.loss(w - dw, l - dl))) / (2.0 * eps)
        };
        assert!((at.d[0] - by(&|p| p.value, eps, 0.0)).abs() < 1e-8);
        assert!((at.d[1] - by(&|p| p.value, 0.0, eps)).abs() < 1e-8);
        for b in 0..2 {
            assert!((at.dd[b][0] - by(&|p| p.d[b], eps, 0.0)).abs() < 1e-8);
            assert!((at.dd[b][1] - by(&|p| p.d[b], 0.0, eps)).abs() < 1e-8);
            assert!((at.d_along([2.0, -1.0])[b] - (2.0 * at.dd[b][0] - at.dd[b][1])).abs() < 1e-15);
        }
    }
}

#[test]
fn extremes_stay_finite_and_exact() {
    let dpo = dpo::Dpo { beta: 1.0, label_smoothing: 0.0 };
    let far = dpo.loss(-1e4, 0.0);
    assert_eq!((far.value, far.d[0]), (1e4, -1.0));
    let right = dpo.loss(50.0, 0.0);
    assert!((right.value / (-50f64).exp() - 1.0).abs() < 1e-12, "no cancellation in the small loss");
    assert!((right.d[0] / -(-50f64).exp() - 1.0).abs() < 1e-12);
}

#[test]
fn kldpo_ends_at_dpo() {
    let (policy, reference) = (logps(7, 0.3), logps(7, 0.7));
    let plain = objective(0.1, Rule::Mean).evaluate(&policy, &reference, 7);
    for rule in [Kldpo::Tau(1e12), Kldpo::Tau(f64::INFINITY), Kldpo::Rho(0.0), Kldpo::Official(1e12)] {
        let e = objective(0.1, Rule::Kldpo(rule)).evaluate(&policy, &reference, 7);
        assert!((e.loss - plain.loss).abs() < 1e-11, "{rule:?}");
        for (a, b) in e.grads().chosen.iter().zip(plain.grads().chosen) {
            assert!((a - b).abs() < 1e-12, "{rule:?}");
        }
    }
}

#[test]
fn kldpo_dual_is_the_worst_case_of_its_ball() {
    let losses: Vec<f64> = (0..9).map(|i| (i as f64 * 1.7).sin() + 1.0).collect();
    let n = losses.len() as f64;
    for rho in [1e-6, 0.01, 0.3, 1.0, 2.0] {
        let out = Kldpo::Rho(rho).rule(&losses);
        let tau = out.metrics.iter().find(|m| m.0 == "kldpo/tau").unwrap().1;
        // Strong duality: the primal value equals the dual objective at tau.
        let dual = tau * rho + tau * (losses.iter().map(|l| (l / tau).exp()).sum::<f64>() / n).ln();
        assert!((out.loss - dual).abs() < 1e-9 * dual, "rho {rho}: {} and {dual}", out.loss);
        // No other reweighting of the ball does worse: tilt towards random directions, shrink into the ball.
        for seed in 0..200 {
            let tilt: Vec<f64> = (0..9).map(|i| ((i * 37 + seed * 101) as f64 * 0.37).sin() * 5.0).collect();
            let mut lambda = 1.0;
            let feasible = loop {
                let raw: Vec<f64> = tilt.iter().map(|t| (lambda * t).exp()).collect();
                let total: f64 = raw.iter().sum();
                let p: Vec<f64> = raw.iter().map(|r| r / total).collect();
                if p.iter().map(|p| p * (p * n).ln()).sum::<f64>() <= rho {
                    break p;
                }
                lambda *= 0.9;
            };
            let value: f64 = feasible.iter().zip(&losses).map(|(p, l)| p * l).sum();
            assert!(value <= out.loss + 1e-12);
        }
    }
    let all = Kldpo::Rho(n.ln()).rule(&losses);
    assert_eq!(
        all.loss,
        losses.iter().copied().fold(f64::MIN, f64::max),
        "rho >= log n: the worst pair alone"
    );
}

#[test]
fn rules_follow_the_order_of_pairs() {
    let losses = [0.3, 2.0, 0.7, 0.7, 5.0];
    let turned = [5.0, 0.7, 2.0, 0.3, 0.7];
    for rule in [Kldpo::Tau(0.4), Kldpo::Rho(0.2), Kldpo::Official(0.5)] {
        let (a, b) = (rule.rule(&losses), rule.rule(&turned));
        assert!((a.loss - b.loss).abs() < 1e-12);
        for (i, j) in [(0, 3), (1, 2), (2, 1), (3, 4), (4, 0)] {
            assert!((a.weights[i] - b.weights[j]).abs() < 1e-12);
        }
    }
}

#[test]
fn parts_of_a_separable_objective_add_up() {
    let (policy, reference) = (logps(6, 0.3), logps(6, 0.7));
    let o = objective(0.2, Rule::Mean);
    let whole = o.evaluate(&policy, &reference, 6);
    let parts: Vec<_> =
        [0..2, 2..6].map(|r| o.evaluate(&policy.slice(r.clone()), &reference.slice(r), 6)).into();
    assert!((parts[0].loss + parts[1].loss - whole.loss).abs() < 1e-15);
    for (i, (name, value)) in whole.metrics.iter().enumerate() {
        assert!((parts[0].metrics[i].1 + parts[1].metrics[i].1 - value).abs() < 1e-12, "{name}");
    }
}

#[test]
fn penalty_derivative_follows_differences() {
    let g = [0.3, 1.2, 0.01];
    for form in [Form::Paper, Form::Official] {
        let p = Penalty { rho: 0.7, form, prompt_gradient: PromptGradient::Shared };
        let mut up = g;
        up[1] += 1e-6;
        let mut down = g;
        down[1] -= 1e-6;
        assert!(((p.value(&up) - p.value(&down)) / 2e-6 - p.derivative(&g)).abs() < 1e-8);
        assert_eq!(p.derivative(&[0.0, 0.0]), if form == Form::Paper { 0.0 } else { 0.35 });
    }
}
