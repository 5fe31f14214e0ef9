//! Every method on a model: the gradient does not depend on how the batch is split, and is the derivative of the loss. On
//! a tiny random model here; on SmolLM2-135M-Instruct and real pairs where `SEAKEEP_DATA` and `SEAKEEP_MODELS` say where
//! they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use seakeep::data::{
    Branch, Labels, Role, TokenizeOptions, TokenizedPair, add_mismatched, read_pairs, tokenize_pairs,
};
use seakeep::formats::ModelSource;
use seakeep::logps::{BranchLogps, Facts};
use seakeep::model::{Model, Tensors};
use seakeep::objective::rule::causal::Prior;
use seakeep::objective::rule::{Causal, DpoPro, Group, Kldpo, Winsor};
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{Groups, KtoWeights, LossType, Objective, PairLoss, Rule};
use seakeep::progress::Silent;
use seakeep::scoring::{PairLayout, score};
use seakeep::train::data::tokenize_for;
use seakeep::train::step::{GlobalBatch, Gradients, StepOutput, gradient};

const KTO: KtoWeights = KtoWeights { desirable: 1.0, undesirable: 1.0 };

fn of(loss: LossType, rule: Rule) -> Objective {
    let label_smoothing = if loss == LossType::ExoPair { 0.1 } else { 0.0 };
    Objective { pair: PairLoss { label_smoothing, ..PairLoss::of(loss, 0.1) }, rule, penalty: None }
}

fn penalised(objective: Objective, form: Form, prompt_gradient: PromptGradient) -> Objective {
    Objective { penalty: Some(Penalty { rho: 0.3, form, prompt_gradient }), ..objective }
}

/// Every rule with DPO's loss, every loss with the mean, and combinations.
fn methods() -> Vec<(String, Objective)> {
    let causal = |lambda| Rule::Causal(Causal { lambda, prior: Prior::Uniform, bandwidth: None });
    let rules = [
        Rule::Mean,
        Rule::Kldpo(Kldpo::Tau(0.1)),
        Rule::Kldpo(Kldpo::Rho(0.2)),
        Rule::Kldpo(Kldpo::Official(0.5)),
        Rule::Drdpo { beta: 1.0 },
        Rule::Winsor(Winsor::default()),
        Rule::DpoPro(DpoPro { rho: 0.1, default_q: 0.9 }),
        causal(0.1),
        Rule::Chi2 { rho: 0.5 },
        Rule::Cvar { alpha: 0.5 },
        Rule::Tv { rho: 0.1 },
        Rule::Group(Group { step_size: 0.1 }),
    ];
    let losses = [
        LossType::SigmoidNorm,
        LossType::Hinge,
        LossType::Ipo { length_normalize: true },
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
        LossType::Kto(KTO),
        LossType::ApoZeroUnpaired(KTO),
        LossType::Softmax,
        LossType::Rebel,
    ];
    let mut all: Vec<Objective> = rules.map(|rule| of(LossType::Sigmoid, rule)).to_vec();
    all.extend(losses.map(|loss| of(loss, Rule::Mean)));
    let (paper, shared) = (Form::Paper, PromptGradient::Shared);
    all.extend([
        penalised(of(LossType::Sigmoid, Rule::Mean), paper, shared),
        penalised(of(LossType::Sigmoid, Rule::Mean), Form::Official, PromptGradient::Separate),
        penalised(of(LossType::Hinge, Rule::Cvar { alpha: 0.5 }), paper, shared),
        penalised(of(LossType::Ipo { length_normalize: true }, Rule::Kldpo(Kldpo::Rho(0.2))), paper, shared),
        penalised(of(LossType::Sigmoid, Rule::DpoPro(DpoPro { rho: 0.1, default_q: 0.8 })), paper, shared),
        penalised(of(LossType::Sigmoid, Rule::Winsor(Winsor::default())), paper, shared),
        penalised(of(LossType::Sigmoid, causal(0.0)), paper, shared),
        penalised(of(LossType::Orpo, Rule::Chi2 { rho: 0.3 }), paper, shared),
    ]);
    all.push(Objective {
        pair: PairLoss { ld_alpha: Some(0.5), ..PairLoss::dpo(0.1) },
        ..of(LossType::Sigmoid, Rule::Kldpo(Kldpo::Tau(0.1)))
    });
    let name = |o: &Objective| {
        let rule = o.rule.name();
        format!("{:?} {rule} {}", o.pair.terms[0].0, if o.penalty.is_some() { "penalised" } else { "" })
    };
    all.into_iter().map(|o| (name(&o), o)).collect()
}

/// A model, a reference that differs from it, and rows of both kinds.
struct Place {
    model: Model,
    pairs: Vec<TokenizedPair>,
    unpaired: Vec<TokenizedPair>,
}

impl Place {
    fn rows(&self, objective: &Objective) -> Vec<&TokenizedPair> {
        let unpaired = objective.pair.any(LossType::is_unpaired);
        if unpaired { self.unpaired.iter().collect() } else { self.pairs.iter().collect() }
    }

    /// Log-probabilities under a reference that differs from the policy, so that weights and penalties do.
    fn reference(&self, objective: &Objective) -> BranchLogps {
        let (rows, layout) = (self.rows(objective), PairLayout::of(objective));
        let own = score(&self.model, &rows, layout, false, rows.len(), &mut Silent).unwrap().logps;
        // No two alike: where log-ratios tie, AOT's order is that of the rows, and rounding decides who ties.
        let shift = |i: usize, b: usize| {
            [3.0, -8.0, 5.0, 12.0, -2.0][(2 * i + 3 * b) % 5] + 0.1 * (i * (b + 1)) as f64
        };
        let shifted = own.0.iter().enumerate().map(|(i, branches)| {
            branches.iter().enumerate().map(|(b, l)| (l - shift(i, b)).min(-0.5)).collect()
        });
        BranchLogps(shifted.collect())
    }

    fn run(
        &self,
        objective: &Objective,
        reference: &BranchLogps,
        micro_batch: usize,
    ) -> (StepOutput, Tensors) {
        let (pairs, layout) = (self.rows(objective), PairLayout::of(objective));
        let of = |(i, p): (usize, &&TokenizedPair)| {
            let labels = Labels {
                soft: Some([0.9, 0.6, 0.75][i % 3]),
                group: Some(["a", "b"][i % 2].into()),
                rewards: Some([1.0 + i as f64 * 0.1, 0.5]),
            };
            let environments = vec![[0.8, 0.3, 0.6][i % 3], [0.2, 0.7, 0.4][i % 3]];
            Facts { environments, labels, ..Facts::of(p, layout.prompts) }
        };
        let facts: Vec<Facts> = pairs.iter().enumerate().map(of).collect();
        let groups = Groups::of(facts.iter().map(|f| f.labels.group.clone()));
        let global =
            GlobalBatch { pairs: &pairs, facts: &facts, reference, progress: 1.0, groups, dropout: None };
        let mut grads = Gradients::new(&self.model);
        (gradient(&self.model, objective, &global, micro_batch, &mut grads).unwrap(), grads.total)
    }

    /// The loss and the gradient with micro-batches of each size against those of the whole.
    fn splits_agree(&self, methods: Vec<(String, Objective)>, sizes: &[usize]) {
        for (name, objective) in methods {
            objective.check().unwrap();
            let reference = self.reference(&objective);
            let (whole, want) = self.run(&objective, &reference, 1000);
            assert!(whole.loss.is_finite() && want.norm() > 0.0, "{name}");
            for &micro in sizes.iter().filter(|&&micro| micro < self.pairs.len()) {
                let (out, mut got) = self.run(&objective, &reference, micro);
                // f32 log-probabilities (relative 1e-7), amplified by weights such as exp(l / 0.1).
                assert!(
                    (out.loss - whole.loss).abs() <= 1e-5 * whole.loss.abs(),
                    "{name}: {} {}",
                    out.loss,
                    whole.loss
                );
                got.add_scaled(&want, -1.0);
                let error = got.norm() / want.norm();
                assert!(error <= 1e-5, "{name}, micro-batch {micro}: {error:e}");
                println!("{name}, micro-batch {micro}: {error:.1e}");
            }
        }
    }
}

fn tiny() -> Place {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let model = Model::load(&ModelSource::open(directory).unwrap()).unwrap();
    let ids =
        |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed * 5 + 3) % 40) as u32).collect::<Vec<u32>>();
    let branch =
        |role, n, seed| Branch { role, completion: ids(n, seed), prompt_skip: 0, truncated: 0, cut: vec![] };
    let row = |i: usize, branches: Vec<Branch>| TokenizedPair {
        file: Arc::from(Path::new("tiny")),
        row: i + 1,
        index: i,
        prompt: ids(3 + i % 4, i),
        branches,
        labels: Labels::default(),
        backed_off: 0,
    };
    let pair =
        |i| row(i, vec![branch(Role::Chosen, 2 + i % 5, i + 1), branch(Role::Rejected, 3 + i % 3, i + 9)]);
    let alone = |i: usize| row(i, vec![branch([Role::Chosen, Role::Rejected][i % 2], 2 + i % 5, i + 1)]);
    let mut unpaired: Vec<TokenizedPair> = (0..8).map(alone).collect();
    add_mismatched(&mut unpaired, &TokenizeOptions::default()).unwrap();
    Place { model, pairs: (0..8).map(pair).collect(), unpaired }
}

#[test]
fn splitting_the_batch_changes_nothing() {
    tiny().splits_agree(methods(), &[1, 2, 3]);
}

/// Along a random direction of all weights the loss changes as the gradient says, the penalty's second derivatives
/// included. For objectives whose weights do not change with the weights of the model, so that their loss is what is
/// differentiated.
#[test]
fn gradients_follow_differences_of_the_loss() {
    let mut place = tiny();
    let constant = |o: &Objective| {
        matches!(o.rule, Rule::Mean | Rule::Drdpo { .. } | Rule::Cvar { .. } | Rule::Tv { .. })
            && !o.pair.any(|l| matches!(l, LossType::Kto(_)))
    };
    for (name, objective) in methods().into_iter().filter(|(_, o)| constant(o)) {
        let reference = place.reference(&objective);
        let (_, grads) = place.run(&objective, &reference, 4);
        let mut direction = Tensors::zeros(&place.model.map);
        for (k, x) in direction.iter_mut().flatten().enumerate() {
            *x = ((k % 1009) as f32 * 0.731).sin();
        }
        let products = grads.iter().flatten().zip(direction.iter().flatten());
        let slope: f64 = products.map(|(g, d)| *g as f64 * *d as f64).sum();
        let eps = 2e-4f32;
        let mut loss = |by: f32| {
            place.model.weights.add_scaled(&direction, by);
            let loss = place.run(&objective, &reference, 1000).0.loss;
            place.model.weights.add_scaled(&direction, -by);
            loss
        };
        let difference = (loss(eps) - loss(-eps)) / (2.0 * eps as f64);
        // The loss is of order 1 and of f32: over a step of 2e-4 its rounding is worth 1e-3.
        assert!(
            (slope - difference).abs() <= 0.01 * slope.abs().max(1.0),
            "{name}: {slope} and {difference}"
        );
    }
}

fn file(variable: &str, name: &str) -> PathBuf {
    let directory = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"));
    let path = PathBuf::from(directory).join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// A few short pairs on a real model.
fn smollm2(rows: usize) -> Place {
    let source = ModelSource::open(file("SEAKEEP_MODELS", "smollm2-135m-instruct.gguf")).unwrap();
    let count = rows;
    let mut rows = read_pairs(file("SEAKEEP_DATA", "instruction-tone.jsonl.gz").to_str().unwrap()).unwrap();
    rows.truncate(count);
    let tokenizer = source.tokenizer().unwrap();
    let options = TokenizeOptions::default();
    let pairs = tokenize_pairs(&rows, &tokenizer, &options).unwrap().0;
    let kto = of(LossType::Kto(KTO), Rule::Mean);
    let mut unpaired = tokenize_for(&kto, rows, &tokenizer, &options).unwrap().0;
    unpaired.truncate(count);
    Place { model: Model::load(&source).unwrap(), pairs, unpaired }
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn splitting_the_batch_changes_nothing_on_a_real_model() {
    // `SEAKEEP_THOROUGH=12`: all methods on so many pairs, half an hour on two cores. Otherwise a quarter of them, of all kinds.
    let pairs = std::env::var("SEAKEEP_THOROUGH").ok().and_then(|n| n.parse().ok());
    let all = methods().into_iter().enumerate().filter(|(i, _)| pairs.is_some() || i % 4 == 1);
    smollm2(pairs.unwrap_or(3)).splits_agree(all.map(|(_, m)| m).collect(), &[1, 2, 8]);
}

#[test]
#[ignore = "needs SEAKEEP_DATA and SEAKEEP_MODELS"]
fn step_0_costs_ln_2_on_a_real_model() {
    let place = smollm2(6);
    let rows = place.rows(&Objective::dpo(0.1));
    // Scored in other batches than the step's: log-probabilities agree to rounding, and so does ln 2.
    let own = score(&place.model, &rows, PairLayout::PLAIN, false, 5, &mut Silent).unwrap().logps;
    for rule in
        [Rule::Mean, Rule::Kldpo(Kldpo::Rho(0.5)), Rule::Cvar { alpha: 0.3 }, Rule::Winsor(Winsor::default())]
    {
        let loss = place.run(&of(LossType::Sigmoid, rule), &own, 2).0.loss;
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-6, "{rule:?}: loss at step 0: {loss}");
    }
}
