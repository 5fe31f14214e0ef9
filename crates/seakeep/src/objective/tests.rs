use super::rule::causal::Prior;
use super::rule::{Causal, DpoPro, Kldpo, Winsor};
use super::wdpo::{Form, Penalty, PromptGradient};
use super::*;
use crate::logps::Labels;

const KTO: KtoWeights = KtoWeights { desirable: 1.0, undesirable: 0.7 };

/// Every loss of pairs.
fn pair_losses() -> Vec<LossType> {
    vec![
        LossType::Sigmoid,
        LossType::SigmoidNorm,
        LossType::Hinge,
        LossType::Ipo { length_normalize: true },
        LossType::Ipo { length_normalize: false },
        LossType::ExoPair,
        LossType::NcaPair,
        LossType::Robust,
        LossType::BcoPair,
        LossType::SppoHard,
        LossType::Aot,
        LossType::AotUnpaired,
        LossType::ApoZero,
        LossType::ApoDown,
        LossType::Discopop { tau: 0.05 },
        LossType::Sft,
        LossType::Simpo { gamma: 0.5 },
        LossType::Cpo { alpha: 1.0 },
        LossType::Orpo,
        LossType::Softmax,
        LossType::Rebel,
    ]
}

fn rules() -> Vec<Rule> {
    let causal = Causal { lambda: 0.5, prior: Prior::Uniform, bandwidth: None };
    vec![
        Rule::Mean,
        Rule::Kldpo(Kldpo::Tau(0.4)),
        Rule::Kldpo(Kldpo::Rho(0.2)),
        Rule::Kldpo(Kldpo::Official(0.5)),
        Rule::Drdpo { beta: 0.5 },
        Rule::Winsor(Winsor::default()),
        Rule::DpoPro(DpoPro { rho: 0.3, default_q: 0.9 }),
        Rule::Causal(causal),
        Rule::Causal(Causal { prior: Prior::Empirical, bandwidth: Some(0.3), ..causal }),
        Rule::Chi2 { rho: 0.5 },
        Rule::Cvar { alpha: 0.35 },
        Rule::Tv { rho: 0.25 },
        Rule::Group(Group { step_size: 0.5 }),
    ]
}

/// A batch of pairs, each with its prompt as a third branch.
#[derive(Clone)]
struct Pairs {
    policy: BranchLogps,
    reference: BranchLogps,
    facts: Vec<Facts>,
}

impl Pairs {
    fn new(n: usize) -> Pairs {
        let at = |i: usize, s: f64| -30.0 + 9.0 * ((i as f64 + 1.3) * s).sin();
        let logps =
            |s: f64| BranchLogps((0..n).map(|i| [1.0, 2.0, 0.7].map(|b| at(i, s + b)).to_vec()).collect());
        let facts = |i: usize| Facts {
            roles: vec![Role::Chosen, Role::Rejected, Role::Prompt],
            tokens: vec![3 + i % 4, 5, 7],
            predicted: vec![3 + i % 4, 5, 6],
            labels: Labels {
                soft: Some([1.0, 0.5, 0.8][i % 3]),
                group: Some(["a", "b"][i % 2].into()),
                rewards: Some([(i as f64).sin(), (i as f64).cos()]),
            },
            environments: vec![[0.9, 0.4, 0.1][i % 3], [0.1, 0.6, 0.9][i % 3]],
        };
        Pairs { policy: logps(0.3), reference: logps(0.9), facts: (0..n).map(facts).collect() }
    }

    fn scored(&self) -> Scored<'_> {
        Scored { policy: &self.policy, reference: &self.reference, facts: &self.facts }
    }

    fn evaluate(&self, objective: &Objective) -> Evaluation {
        objective.evaluate(&self.scored(), &Context::at_the_end(&self.facts))
    }
}

fn objective(loss: LossType, rule: Rule) -> Objective {
    Objective { pair: PairLoss { label_smoothing: 0.1, ..PairLoss::of(loss, 0.2) }, rule, penalty: None }
}

/// Losses of a rule that asks for nothing but them.
fn weights_of(rule: Rule, losses: &[f64]) -> (f64, Vec<f64>) {
    let out = rule.apply(&RuleInput {
        losses,
        flipped: losses,
        rewards: &vec![[0.0; 2]; losses.len()],
        facts: &vec![Facts::default(); losses.len()],
        n: losses.len(),
        progress: 1.0,
        groups: &Groups::default(),
    });
    (out.loss, out.weights)
}

#[test]
fn policy_equal_to_reference_costs_ln_2_under_every_rule() {
    let mut same = Pairs::new(7);
    same.reference = same.policy.clone();
    for rule in rules() {
        let dpo = Objective { rule, ..Objective::dpo(0.1) };
        let e = same.evaluate(&dpo);
        // The capped weights of the authors' KLDPO happen to sum to 1 here.
        let want = std::f64::consts::LN_2
            * if matches!(rule, Rule::Group(_)) { e.weights.iter().sum() } else { 1.0 };
        assert!((e.loss - want).abs() < 1e-12, "{rule:?}: {}", e.loss);
    }
}

#[test]
fn losses_that_are_not_finite_end_every_rule() {
    let (cvar, kldpo) = (Rule::Cvar { alpha: 0.5 }, Rule::Kldpo(Kldpo::Rho(0.1)));
    for broken in [f64::NAN, f64::INFINITY] {
        for rule in [cvar, kldpo, Rule::Tv { rho: 0.2 }, Rule::Chi2 { rho: 0.5 }] {
            let (loss, _) = weights_of(rule, &[0.5, broken, 0.7]);
            assert!(!loss.is_finite(), "{rule:?}: {loss}");
        }
    }
}

#[test]
fn losses_that_tie_have_no_scale() {
    let mut same = Pairs::new(3);
    same.reference = same.policy.clone();
    let (chi2, kldpo) = (Rule::Chi2 { rho: 0.5 }, Rule::Kldpo(Kldpo::Rho(0.1)));
    for (rule, scale) in [(chi2, "chi2/eta"), (kldpo, "kldpo/tau")] {
        let names = |pairs: &Pairs| -> Vec<String> {
            let e = pairs.evaluate(&Objective { rule, ..Objective::dpo(0.2) });
            assert!(e.metrics.iter().all(|(_, value)| value.is_finite()), "{:?}", e.metrics);
            e.metrics.into_iter().map(|m| m.0).collect()
        };
        assert!(!names(&same).contains(&scale.to_string()));
        assert!(names(&Pairs::new(3)).contains(&scale.to_string()));
    }
}

#[test]
fn rewards_of_losses_without_a_reference_have_none_whatever_the_rule_asks() {
    let simpo = PairLoss::of(LossType::Simpo { gamma: 0.5 }, 2.0);
    assert_eq!(simpo.reward(-150.0, -150.0, 100), -3.0);
    assert_eq!(PairLoss::dpo(2.0).reward(-150.0, -140.0, 100), -20.0);
}

#[test]
fn derivatives_of_every_loss_follow_differences() {
    let eps = 1e-5;
    for loss in pair_losses() {
        let objective = objective(loss, Rule::Mean);
        let pairs = Pairs::new(5);
        let e = pairs.evaluate(&objective);
        for i in 0..5 {
            for b in 0..3 {
                let moved = |by: f64| {
                    let mut moved = pairs.clone();
                    moved.policy.0[i][b] += by;
                    moved.evaluate(&objective)
                };
                let (up, down) = (moved(eps), moved(-eps));
                let slope = (up.loss - down.loss) / (2.0 * eps);
                assert!(
                    (e.grads.0[i][b] - slope).abs() < 1e-7,
                    "{loss:?}: d[{i}][{b}] {} {slope}",
                    e.grads.0[i][b]
                );
                for a in 0..3 {
                    let slope = (up.pairs[i].d[a] - down.pairs[i].d[a]) / (2.0 * eps);
                    let own = e.pairs[i].dd[a][b];
                    assert!(
                        (own - slope).abs() < 1e-6 || loss == LossType::AotUnpaired,
                        "{loss:?}: dd {own} {slope}"
                    );
                }
            }
        }
    }
}

#[test]
fn unpaired_losses_follow_differences_at_a_fixed_reference_point() {
    let mut pairs = Pairs::new(4);
    for (i, facts) in pairs.facts.iter_mut().enumerate() {
        facts.roles =
            vec![if i % 2 == 0 { Role::Chosen } else { Role::Rejected }, Role::Mismatched, Role::Prompt];
        pairs.policy.0[i][1] = pairs.reference.0[i][1] + 1.0;
    }
    for loss in [LossType::Kto(KTO), LossType::ApoZeroUnpaired(KTO)] {
        let objective = Objective { pair: PairLoss::of(loss, 0.2), rule: Rule::Mean, penalty: None };
        let e = pairs.evaluate(&objective);
        for i in 0..4 {
            let mut up = pairs.clone();
            up.policy.0[i][0] += 1e-5;
            let slope = (up.evaluate(&objective).loss - e.loss) / 1e-5;
            assert!((e.grads.0[i][0] - slope).abs() < 1e-6, "{loss:?}");
            assert_eq!(e.grads.0[i][1], 0.0, "the reference point is constant");
        }
    }
    let kl = pairs
        .evaluate(&Objective { pair: PairLoss::of(LossType::Kto(KTO), 0.2), ..Objective::dpo(0.2) })
        .metrics;
    assert!(kl.iter().any(|m| m.0 == "kl" && (m.1 - 1.0).abs() < 1e-12));
}

#[test]
fn every_loss_is_finite_at_extremes() {
    for loss in pair_losses() {
        for divergence in [Divergence::ReverseKl, Divergence::ForwardKl, Divergence::AlphaDivergence(0.5)] {
            for w in [-1e4, -1.0, 0.0] {
                for l in [-1e4, -1.0, 0.0] {
                    let mut pairs = Pairs::new(2);
                    (pairs.policy.0[0][0], pairs.policy.0[0][1]) = (w, l);
                    let mut objective = objective(loss, Rule::Mean);
                    objective.pair.f_divergence = divergence;
                    let e = pairs.evaluate(&objective);
                    assert!(e.loss.is_finite(), "{loss:?} {divergence:?} at {w}, {l}: {}", e.loss);
                    assert!(
                        e.grads.branches().iter().all(|d| d.is_finite()),
                        "{loss:?} {divergence:?} at {w}, {l}"
                    );
                }
            }
        }
    }
}

#[test]
fn softmax_of_one_is_dpo_and_of_several_follows_differences() {
    let pairs = Pairs::new(6);
    let two = |loss| {
        let mut two = pairs.clone();
        for (facts, (p, r)) in two.facts.iter_mut().zip(two.policy.0.iter_mut().zip(&mut two.reference.0)) {
            facts.roles.truncate(2);
            p.truncate(2);
            r.truncate(2);
        }
        two.evaluate(&Objective { pair: PairLoss::of(loss, 0.2), rule: Rule::Mean, penalty: None })
    };
    let (dpo, softmax) = (two(LossType::Sigmoid), two(LossType::Softmax));
    assert!((dpo.loss - softmax.loss).abs() < 1e-14);
    for (a, b) in dpo.grads.branches().iter().zip(softmax.grads.branches()) {
        assert!((a - b).abs() < 1e-15);
    }
    // A prompt, which another term may ask for, is no completion to compare with.
    let softmax_of = |pairs: &Pairs| {
        pairs.evaluate(&Objective { pair: PairLoss::of(LossType::Softmax, 0.2), ..Objective::dpo(0.2) })
    };
    let with_prompt = softmax_of(&pairs);
    assert_eq!(with_prompt.loss, softmax.loss);
    assert!(with_prompt.grads.0.iter().zip(&softmax.grads.0).all(|(a, b)| a[..2] == b[..] && a[2] == 0.0));
    let mut pairs = pairs;
    pairs.facts.iter_mut().for_each(|f| f.roles[2] = Role::Rejected);
    let found = softmax_of(&pairs);
    for branch in 0..3 {
        let moved = |by: f64| {
            let mut pairs = pairs.clone();
            pairs.policy.0[1][branch] += by;
            softmax_of(&pairs).loss
        };
        let difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        assert!((found.grads.0[1][branch] - difference).abs() < 1e-8, "{branch}");
    }
    let far = [-1e4, 1e4].map(|u| {
        let mut far = pairs.clone();
        far.policy.0[0] = vec![u, 0.0, 5.0];
        far.evaluate(&Objective {
            pair: PairLoss::of(LossType::Softmax, 1.0),
            rule: Rule::Mean,
            penalty: None,
        })
    });
    assert!(far.iter().all(|e| e.loss.is_finite() && e.grads.branches().iter().all(|d| d.is_finite())));
}

/// What a pair would cost if its label were the other is what the pair with its completions exchanged costs; likelihoods
/// stay those of the chosen completion.
#[test]
fn flipped_losses_are_those_of_exchanged_pairs() {
    let pairs = Pairs::new(5);
    let mut turned = pairs.clone();
    for i in 0..5 {
        for values in [&mut turned.policy.0[i], &mut turned.reference.0[i]] {
            values.swap(0, 1);
        }
        turned.facts[i].tokens.swap(0, 1);
        turned.facts[i].predicted.swap(0, 1);
        turned.facts[i].labels.rewards = pairs.facts[i].labels.rewards.map(|[w, l]| [l, w]);
    }
    let context = Context::at_the_end(&pairs.facts);
    for loss in pair_losses().into_iter().filter(|l| l.can_be_flipped()) {
        if matches!(loss, LossType::Aot | LossType::Sft | LossType::Orpo | LossType::Cpo { .. }) {
            continue;
        }
        let pair = objective(loss, Rule::Mean).pair;
        let flipped = pair.losses(&pairs.scored(), &context, true);
        let exchanged = pair.losses(&turned.scored(), &context, false);
        for (f, e) in flipped.iter().zip(&exchanged) {
            assert!((f.value - e.value).abs() < 1e-12, "{loss:?}");
            assert_eq!(
                (f.d[0], f.d[1], f.dd[0][0], f.dd[0][1]),
                (e.d[1], e.d[0], e.dd[1][1], e.dd[1][0]),
                "{loss:?}"
            );
        }
    }
    let (cpo, sft) = (PairLoss::of(LossType::Cpo { alpha: 2.0 }, 0.2), PairLoss::of(LossType::Sft, 0.2));
    let margin = PairLoss::of(LossType::Cpo { alpha: 0.0 }, 0.2);
    let flipped = |pair: &PairLoss| pair.losses(&pairs.scored(), &context, true)[0].clone();
    let likelihood = sft.losses(&pairs.scored(), &context, false)[0].clone();
    assert_eq!(flipped(&sft), likelihood);
    assert!((flipped(&cpo).value - flipped(&margin).value - 2.0 * likelihood.value).abs() < 1e-12);
}

/// The equalities that the mathematics promises.
#[test]
fn rules_end_at_dpo() {
    let mut pairs = Pairs::new(9);
    let plain = pairs.evaluate(&Objective::dpo(0.2));
    let winsor = Winsor { warmup: 1.1, budget_warmup: 0.0, ..Winsor::default() };
    let causal = Causal { lambda: 0.0, prior: Prior::Uniform, bandwidth: None };
    let same = |rule: Rule, pairs: &Pairs| {
        let e = pairs.evaluate(&Objective { rule, ..Objective::dpo(0.2) });
        assert!((e.loss - plain.loss).abs() < 1e-11, "{rule:?}: {} {}", e.loss, plain.loss);
        for (a, b) in e.grads.branches().iter().zip(plain.grads.branches()) {
            assert!((a - b).abs() < 1e-12, "{rule:?}");
        }
    };
    for kldpo in [Kldpo::Tau(1e12), Kldpo::Tau(f64::INFINITY), Kldpo::Rho(0.0), Kldpo::Official(1e12)] {
        same(Rule::Kldpo(kldpo), &pairs);
    }
    for rule in [
        Rule::Drdpo { beta: 1e12 },
        Rule::Drdpo { beta: f64::INFINITY },
        Rule::Winsor(winsor),
        Rule::Chi2 { rho: 0.0 },
        Rule::Cvar { alpha: 1.0 },
        Rule::Tv { rho: 0.0 },
    ] {
        same(rule, &pairs);
    }
    for facts in &mut pairs.facts {
        facts.labels.soft = Some(1.0);
        facts.environments = vec![1.0];
    }
    same(Rule::DpoPro(DpoPro { rho: 10.0, default_q: 0.0 }), &pairs);
    same(Rule::Causal(causal), &pairs);
    pairs.facts.iter_mut().for_each(|f| f.environments.clear());
    same(Rule::Causal(Causal { lambda: 3.0, ..causal }), &pairs);
    // One group, and no memory of anything else.
    pairs.facts.iter_mut().for_each(|f| f.labels.group = Some("all".into()));
    same(Rule::Group(Group { step_size: 7.0 }), &pairs);
}

/// No other reweighting of a ball does worse than what the rule found.
#[test]
fn rules_over_balls_are_worst_cases() {
    let losses: Vec<f64> = (0..9).map(|i| (i as f64 * 1.7).sin() + 1.0).collect();
    let n = losses.len() as f64;
    let kl = |p: &[f64]| p.iter().filter(|p| **p > 0.0).map(|p| p * (p * n).ln()).sum::<f64>();
    let chi2 = |p: &[f64]| n * p.iter().map(|p| (p - 1.0 / n).powi(2)).sum::<f64>();
    let tv = |p: &[f64]| 0.5 * p.iter().map(|p| (p - 1.0 / n).abs()).sum::<f64>();
    let cap = |p: &[f64]| n * p.iter().copied().fold(0.0, f64::max) - 1.0;
    type Divergence<'a> = &'a dyn Fn(&[f64]) -> f64;
    for rho in [1e-6, 0.01, 0.3, 0.7, 2.0] {
        let balls: [(Rule, Divergence, f64); 4] = [
            (Rule::Kldpo(Kldpo::Rho(rho)), &kl, rho),
            (Rule::Chi2 { rho }, &chi2, rho),
            (Rule::Tv { rho: rho.min(1.0) }, &tv, rho.min(1.0)),
            (Rule::Cvar { alpha: 1.0 / (1.0 + rho) }, &cap, rho),
        ];
        for (rule, divergence, radius) in balls {
            let (worst, weights) = weights_of(rule, &losses);
            assert!(
                (weights.iter().sum::<f64>() - 1.0).abs() < 1e-12 && weights.iter().all(|p| *p >= -1e-15)
            );
            assert!(divergence(&weights) <= radius * (1.0 + 1e-9) + 1e-12, "{rule:?} leaves its ball");
            for seed in 0..200 {
                // A random direction, drawn towards the centre until it lies in the ball.
                let raw: Vec<f64> =
                    (0..9).map(|i| (((i * 37 + seed * 101) as f64 * 0.37).sin() * 5.0).exp()).collect();
                let total: f64 = raw.iter().sum();
                let mut share = 1.0;
                let feasible = loop {
                    let p: Vec<f64> = raw.iter().map(|r| share * r / total + (1.0 - share) / n).collect();
                    if divergence(&p) <= radius {
                        break p;
                    }
                    share *= 0.9;
                };
                let value: f64 = feasible.iter().zip(&losses).map(|(p, l)| p * l).sum();
                assert!(value <= worst + 1e-12, "{rule:?}: {value} beats {worst}");
            }
        }
    }
    let top = losses.iter().copied().fold(f64::MIN, f64::max);
    for rule in [
        Rule::Kldpo(Kldpo::Rho(n.ln())),
        Rule::Chi2 { rho: n - 1.0 },
        Rule::Tv { rho: 1.0 },
        Rule::Cvar { alpha: 1e-3 },
    ] {
        assert!((weights_of(rule, &losses).0 - top).abs() < 1e-12, "{rule:?}: the worst pair alone");
    }
}

#[test]
fn kldpos_dual_is_its_primal() {
    let losses: Vec<f64> = (0..9).map(|i| (i as f64 * 1.7).sin() + 1.0).collect();
    for rho in [1e-6, 0.01, 0.3, 1.0, 2.0] {
        let out = Kldpo::Rho(rho).rule(&losses);
        let tau = out.metrics.iter().find(|m| m.0 == "kldpo/tau").unwrap().1;
        let dual = tau * rho + tau * (losses.iter().map(|l| (l / tau).exp()).sum::<f64>() / 9.0).ln();
        assert!((out.loss - dual).abs() < 1e-9 * dual, "rho {rho}: {} and {dual}", out.loss);
    }
}

/// Pairs that tie get the same weight, and noise of the size of f32's does not change it.
#[test]
fn ties_share() {
    let noise = |i: usize| 1.0 + 1e-8 * ((i * 7 % 5) as f64 - 2.0);
    let losses: Vec<f64> = (0..8).map(|i| 0.7 * noise(i) + if i < 3 { 0.5 } else { 0.0 }).collect();
    for rule in [
        Rule::Cvar { alpha: 0.5 },
        Rule::Cvar { alpha: 0.2 },
        Rule::Tv { rho: 0.3 },
        Rule::Chi2 { rho: 100.0 },
        Rule::Kldpo(Kldpo::Rho(10.0)),
    ] {
        let weights = weights_of(rule, &losses).1;
        for group in [&weights[..3], &weights[3..]] {
            assert!(group.iter().all(|w| (w - group[0]).abs() < 1e-6), "{rule:?}: {weights:?}");
        }
    }
}

#[test]
fn rules_follow_the_order_of_pairs() {
    let pairs = Pairs::new(8);
    let order = [4, 2, 7, 0, 1, 6, 5, 3];
    let turned = Pairs {
        policy: BranchLogps(order.iter().map(|&i| pairs.policy.0[i].clone()).collect()),
        reference: BranchLogps(order.iter().map(|&i| pairs.reference.0[i].clone()).collect()),
        facts: order.iter().map(|&i| pairs.facts[i].clone()).collect(),
    };
    let losses = [LossType::Sigmoid, LossType::Aot, LossType::AotUnpaired, LossType::Orpo, LossType::Sft];
    for (loss, rule) in losses.into_iter().flat_map(|l| rules().into_iter().map(move |r| (l, r))) {
        let objective = objective(loss, rule);
        if objective.check().is_err() {
            continue;
        }
        let (a, b) = (pairs.evaluate(&objective), turned.evaluate(&objective));
        assert!((a.loss - b.loss).abs() < 1e-12, "{loss:?} {rule:?}");
        for (i, &from) in order.iter().enumerate() {
            for (x, y) in a.grads.0[from].iter().zip(&b.grads.0[i]) {
                assert!((x - y).abs() < 1e-11, "{loss:?} {rule:?}");
            }
        }
    }
}

#[test]
fn parts_of_a_separable_objective_add_up() {
    let pairs = Pairs::new(6);
    let mix = PairLoss {
        terms: vec![(LossType::Sigmoid, 0.8), (LossType::Sft, 0.3), (LossType::Orpo, 0.1)],
        ..PairLoss::dpo(0.2)
    };
    let objectives = [
        Objective::dpo(0.2),
        Objective { rule: Rule::DpoPro(DpoPro { rho: 0.2, default_q: 1.0 }), ..Objective::dpo(0.2) },
        Objective { pair: mix, ..Objective::dpo(0.2) },
    ];
    for o in objectives {
        assert!(!o.couples_pairs());
        let whole = pairs.evaluate(&o);
        let context = Context::at_the_end(&pairs.facts);
        let parts = [0..2, 2..6].map(|r| {
            let (policy, reference) = (pairs.policy.slice(r.clone()), pairs.reference.slice(r.clone()));
            o.evaluate(&Scored { policy: &policy, reference: &reference, facts: &pairs.facts[r] }, &context)
        });
        assert!((parts[0].loss + parts[1].loss - whole.loss).abs() < 1e-14);
        assert_eq!([&parts[0].grads.0[..], &parts[1].grads.0[..]].concat(), whole.grads.0);
        for (i, (name, value)) in whole.metrics.iter().enumerate() {
            assert!((parts[0].metrics[i].1 + parts[1].metrics[i].1 - value).abs() < 1e-12, "{name}");
        }
    }
}

/// The invariance term is differentiated: with the weights as they are, the whole gradient follows differences.
#[test]
fn the_gradient_of_mmd_follows_differences() {
    let pairs = Pairs::new(6);
    let causal = Causal { lambda: 2.0, prior: Prior::Uniform, bandwidth: Some(0.6) };
    let objective = Objective { rule: Rule::Causal(causal), ..Objective::dpo(0.2) };
    let e = pairs.evaluate(&objective);
    for (i, b) in (0..6).flat_map(|i| [(i, 0), (i, 1)]) {
        let moved = |by: f64| {
            let mut moved = pairs.clone();
            moved.policy.0[i][b] += by;
            moved.evaluate(&objective).loss
        };
        let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!((e.grads.0[i][b] - slope).abs() < 1e-8, "{} {slope}", e.grads.0[i][b]);
    }
}

#[test]
fn groups_that_cost_more_gain_weight_from_step_to_step() {
    let pairs = Pairs::new(8);
    let rule = Rule::Group(Group { step_size: 0.5 });
    let objective = Objective { rule, ..Objective::dpo(0.2) };
    let mut context = Context::at_the_end(&pairs.facts);
    let mut before = context.groups.weights["a"];
    assert_eq!(before, 0.5);
    let losses = pairs.evaluate(&Objective::dpo(0.2)).pairs;
    let mean = |parity: usize| losses.iter().skip(parity).step_by(2).map(|l| l.value).sum::<f64>() / 4.0;
    for _ in 0..3 {
        let e = objective.evaluate(&pairs.scored(), &context);
        context.groups = e.groups.unwrap();
        let after = context.groups.weights["a"];
        assert_eq!(after > before, mean(0) > mean(1));
        // With the whole data in a batch the loss is the weighted mean of the groups' own means.
        assert!((e.loss - (after * mean(0) + (1.0 - after) * mean(1))).abs() < 1e-12);
        before = after;
    }
    // Evaluated on other rows, groups count with the weights that they have, whatever their shares there.
    let b = context.groups.weights["b"];
    let loss = |pairs: &Pairs| {
        let found = crate::eval::evaluate(&pairs.scored(), &context, &objective);
        let of = |name: &str| found.iter().find(|(n, _)| n == name).unwrap().1;
        (of("loss"), of("group/b/weight"))
    };
    assert!((loss(&pairs).0 - (before * mean(0) + b * mean(1))).abs() < 1e-12 && loss(&pairs).1 == b);
    let mut others = pairs.clone();
    others.facts.iter_mut().for_each(|f| f.labels.group = Some("b".into()));
    let (of_one, weight) = loss(&others);
    assert!((of_one - 0.5 * (mean(0) + mean(1))).abs() < 1e-12 && weight == 1.0);
    others.facts[0].labels.group = Some("new".into());
    others.policy = others.reference.clone();
    assert!((loss(&others).0 - 2f64.ln()).abs() < 1e-12);
}

/// Also where the last step is reached, or an evaluation after it.
#[test]
fn a_warm_up_that_never_ends_turns_no_label() {
    let pairs = Pairs::new(8);
    let never = Winsor { warmup: 1.0, budget_warmup: 0.0, ..Winsor::default() };
    let found = pairs.evaluate(&Objective { rule: Rule::Winsor(never), ..Objective::dpo(0.2) });
    assert!((found.loss - pairs.evaluate(&Objective::dpo(0.2)).loss).abs() < 1e-12);
}

#[test]
fn penalty_derivative_follows_differences() {
    for form in [Form::Paper, Form::Official] {
        let p = Penalty { rho: 0.7, form, prompt_gradient: PromptGradient::Shared };
        let slope = (p.value(0.5 + 1e-6) - p.value(0.5 - 1e-6)) / 2e-6;
        assert!((slope - p.derivative(0.5)).abs() < 1e-8);
        assert_eq!(p.derivative(0.0), if form == Form::Paper { 0.0 } else { 0.7 });
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let penalty = Some(Penalty { rho: 0.1, form: Form::Paper, prompt_gradient: PromptGradient::Shared });
    let causal = |lambda| Rule::Causal(Causal { lambda, prior: Prior::Uniform, bandwidth: None });
    let refused = |objective: Objective, part: &str| {
        let message = objective.check().unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    let of = |loss, rule| Objective { pair: PairLoss::of(loss, 0.1), rule, penalty: None };
    refused(of(LossType::ExoPair, Rule::Mean), "label_smoothing above 0");
    refused(of(LossType::Softmax, Rule::Winsor(Winsor::default())), "loss_type softmax does not say");
    refused(of(LossType::Kto(KTO), causal(1.0)), "kto has no pairs");
    refused(Objective { penalty, ..of(LossType::AotUnpaired, Rule::Mean) }, "use aot");
    refused(Objective { penalty, ..of(LossType::Sigmoid, causal(1.0)) }, "causal_lambda = 0");
    Objective { penalty, ..of(LossType::Sigmoid, causal(0.0)) }.check().unwrap();
    let mixed = |terms, f_divergence| PairLoss { terms, f_divergence, ..PairLoss::dpo(0.1) };
    let terms = vec![(LossType::Kto(KTO), 1.0), (LossType::Sigmoid, 1.0)];
    let mix = Objective { pair: mixed(terms, Divergence::ReverseKl), ..Objective::dpo(0.1) };
    refused(mix, "cannot be mixed");
    let nca = mixed(vec![(LossType::NcaPair, 1.0)], Divergence::JsDivergence);
    refused(Objective { pair: nca, ..Objective::dpo(0.1) }, "loss_type nca_pair has no form");
    let ld = PairLoss { ld_alpha: Some(0.5), ..PairLoss::of(LossType::Orpo, 0.1) };
    refused(Objective { pair: ld, ..Objective::dpo(0.1) }, "loss_type orpo is another thing");
}
