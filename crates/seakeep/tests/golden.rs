//! Every family against PyTorch: log-probabilities, losses, and the gradient of every parameter tensor for
//! DPO, KLDPO and WDPO. The values come from `scripts/parity/golden.py` (float64, double backward for WDPO); the
//! models are tiny and random.
//!
//! Tolerances: the arithmetic here is f32 through two layers, with gradients of order 0.1 to 30. Log-probabilities
//! agree to 2e-6 relative, norms of gradients to 2e-5, gradients element by element to 5e-5 of the tensor's
//! largest element (WDPO's second derivatives: 2e-4).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use seakeep::data::{Branch, Labels, Role, TokenizedPair};
use seakeep::formats::{ModelSource, Weights};
use seakeep::logps::{BranchLogps, Facts};
use seakeep::model::{Model, Tensors};
use seakeep::objective::rule::Kldpo;
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{Groups, LossType, Objective, PairLoss, Rule};
use seakeep::progress::Silent;
use seakeep::scoring::{PairLayout, score};
use seakeep::train::step::{GlobalBatch, Gradients, StepOutput, gradient};
use serde_json::Value;

const CASES: [&str; 8] = ["llama", "llama3", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gpt_neox_seq"];
const OBJECTIVES: [&str; 10] = [
    "dpo",
    "kldpo_tau",
    "kldpo_rho",
    "kldpo_official",
    "wdpo_shared",
    "wdpo_separate",
    "wdpo_official",
    "wdpo_kldpo",
    "wdpo_ipo",
    "wdpo_bco",
];

struct Case {
    name: &'static str,
    directory: PathBuf,
    golden: Value,
    model: Model,
    pairs: Vec<TokenizedPair>,
    reference: BranchLogps,
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn tokens(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn logps(v: &Value) -> BranchLogps {
    BranchLogps::of_pairs(&floats(&v["chosen"]), &floats(&v["rejected"]))
}

fn case(name: &'static str) -> Case {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let golden: Value =
        serde_json::from_slice(&std::fs::read(directory.join("golden.json")).unwrap()).unwrap();
    let model = Model::load(&ModelSource::open(&directory).unwrap()).unwrap();
    let branch =
        |role, v: &Value| Branch { role, completion: tokens(v), prompt_skip: 0, truncated: 0, cut: vec![] };
    let pairs = golden["pairs"].as_array().unwrap().iter().enumerate().map(|(index, p)| TokenizedPair {
        file: Arc::from(Path::new("golden")),
        row: index + 1,
        index,
        prompt: tokens(&p["prompt"]),
        branches: vec![branch(Role::Chosen, &p["chosen"]), branch(Role::Rejected, &p["rejected"])],
        labels: Labels::default(),
        backed_off: 0,
    });
    let pairs = pairs.collect();
    let reference = logps(&golden["ref_logps"]);
    Case { name, directory, golden, model, pairs, reference }
}

fn objective(name: &str, golden: &Value) -> Objective {
    let number = |key: &str| golden["objectives"][name][key].as_f64().unwrap();
    let penalty = |form, prompt_gradient| Some(Penalty { rho: number("rho"), form, prompt_gradient });
    let (rule, penalty) = match name {
        "dpo" => (Rule::Mean, None),
        "kldpo_tau" => (Rule::Kldpo(Kldpo::Tau(number("tau"))), None),
        "kldpo_rho" => (Rule::Kldpo(Kldpo::Rho(number("rho"))), None),
        "kldpo_official" => (Rule::Kldpo(Kldpo::Official(number("tau"))), None),
        "wdpo_shared" => (Rule::Mean, penalty(Form::Paper, PromptGradient::Shared)),
        "wdpo_separate" => (Rule::Mean, penalty(Form::Paper, PromptGradient::Separate)),
        "wdpo_official" => (Rule::Mean, penalty(Form::Official, PromptGradient::Separate)),
        "wdpo_kldpo" => {
            (Rule::Kldpo(Kldpo::Tau(number("tau"))), penalty(Form::Paper, PromptGradient::Shared))
        }
        "wdpo_ipo" | "wdpo_bco" => (Rule::Mean, penalty(Form::Paper, PromptGradient::Shared)),
        _ => unreachable!(),
    };
    let beta = golden["beta"].as_f64().unwrap();
    let loss = match name {
        "wdpo_ipo" => LossType::Ipo { length_normalize: true },
        "wdpo_bco" => LossType::BcoPair,
        _ => LossType::Sigmoid,
    };
    Objective { pair: PairLoss::of(loss, beta), rule, penalty }
}

fn run(case: &Case, objective: &Objective, micro_batch: usize) -> (StepOutput, Tensors) {
    let pairs: Vec<&TokenizedPair> = case.pairs.iter().collect();
    let mut grads = Gradients::new(&case.model);
    let facts: Vec<Facts> = pairs.iter().map(|p| Facts::of(p, false)).collect();
    let (reference, groups) = (&case.reference, Groups::default());
    let global =
        GlobalBatch { pairs: &pairs, facts: &facts, reference, progress: 1.0, groups, dropout: None };
    let out = gradient(&case.model, objective, &global, micro_batch, &mut grads).unwrap();
    (out, grads.total)
}

fn relative(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs(), "{what}: got {got}, want {want}");
}

#[test]
fn log_probabilities_and_token_statistics() {
    for case in CASES.map(case) {
        let pairs: Vec<&TokenizedPair> = case.pairs.iter().collect();
        for batch_size in [1, 3] {
            let scores =
                score(&case.model, &pairs, PairLayout::PLAIN, false, batch_size, &mut Silent).unwrap();
            let (got, stats) = (scores.logps, scores.stats);
            let want = logps(&case.golden["policy_logps"]);
            for (g, w) in got.branches().iter().zip(want.branches()) {
                relative(*g, w, 2e-6, &format!("{}: logps", case.name));
            }
            for (name, value) in stats.metrics(&Objective::dpo(0.1)) {
                relative(
                    value,
                    case.golden["batch"][&name].as_f64().unwrap(),
                    1e-5,
                    &format!("{}: {name}", case.name),
                );
            }
        }
    }
}

#[test]
fn losses_and_gradients_of_every_tensor() {
    for case in CASES.map(case) {
        let whole = Weights::open(case.directory.join("golden.safetensors")).unwrap();
        for name in OBJECTIVES {
            let (out, grads) = run(&case, &objective(name, &case.golden), 3);
            let want = &case.golden["objectives"][name];
            let what = format!("{}: {name}", case.name);
            relative(out.loss, want["loss"].as_f64().unwrap(), 1e-5, &format!("{what}: loss"));
            relative(grads.norm(), want["grad_norm"].as_f64().unwrap(), 2e-5, &format!("{what}: grad_norm"));
            for file in &case.model.map.files {
                let got = case.model.map.export(file, &grads);
                let (norm, dot) = (&want["tensors"][&file.name][0], &want["tensors"][&file.name][1]);
                let norm = norm.as_f64().unwrap_or_else(|| panic!("{what}: no golden for {}", file.name));
                let what = format!("{what}: {}", file.name);
                let got_norm = got.iter().map(|&g| g as f64 * g as f64).sum::<f64>().sqrt();
                let got_dot: f64 =
                    got.iter().enumerate().map(|(k, &g)| g as f64 * (0.37 * (k + 1) as f64).cos()).sum();
                let tolerance = if name.starts_with("wdpo") { 2e-4 } else { 5e-5 };
                // Norm and dot in units of the norm, floored at what f32 leaves of a vanishing gradient.
                let scale = norm.max(1e-3);
                assert!((got_norm - norm).abs() <= tolerance * scale, "{what}: norm {got_norm}, want {norm}");
                let dot = dot.as_f64().unwrap();
                assert!((got_dot - dot).abs() <= tolerance * scale, "{what}: dot {got_dot}, want {dot}");
                let key = format!("{name}/{}", file.name);
                if whole.shape(&key).is_some() {
                    let want = whole.read_f32(&key).unwrap();
                    let scale = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                    for (g, w) in got.iter().zip(&want) {
                        assert!((g - w).abs() <= tolerance as f32 * scale, "{what}: got {g}, want {w}");
                    }
                }
            }
        }
    }
}

#[test]
fn micro_batches_do_not_change_the_gradient() {
    for case in CASES.map(case) {
        for name in OBJECTIVES {
            let objective = objective(name, &case.golden);
            let (whole, want) = run(&case, &objective, 3);
            for micro in [1, 2] {
                let (out, mut got) = run(&case, &objective, micro);
                let what = format!("{}: {name}, micro-batch {micro}", case.name);
                // f32 log-probabilities (relative 1e-7), amplified by weights exp(l / tau).
                relative(out.loss, whole.loss, 5e-6, &what);
                for ((n, g), (m, w)) in out.metrics.iter().zip(&whole.metrics) {
                    assert_eq!(n, m);
                    // Rewards are small differences of log-probabilities of order 20.
                    assert!((g - w).abs() <= 1e-5 * w.abs().max(0.2), "{what}: {n}: {g} and {w}");
                }
                got.add_scaled(&want, -1.0);
                assert!(got.norm() <= 1e-5 * want.norm(), "{what}: {} of {}", got.norm(), want.norm());
            }
        }
    }
}

#[test]
fn robust_objectives_end_at_dpo() {
    let case = case("llama");
    let plain = objective("dpo", &case.golden);
    let (want, grads) = run(&case, &plain, 3);
    let wdpo = Penalty { rho: 0.0, form: Form::Paper, prompt_gradient: PromptGradient::Shared };
    for other in [
        Objective { rule: Rule::Kldpo(Kldpo::Rho(0.0)), ..plain.clone() },
        Objective { rule: Rule::Kldpo(Kldpo::Tau(f64::INFINITY)), ..plain.clone() },
        Objective { penalty: Some(wdpo), ..plain.clone() },
    ] {
        let (got, mut g) = run(&case, &other, 3);
        relative(got.loss, want.loss, 1e-12, "loss");
        g.add_scaled(&grads, -1.0);
        assert!(g.norm() <= 1e-6 * grads.norm());
    }
}
