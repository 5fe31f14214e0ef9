//! Objectives against PyTorch autograd in float64 (and SciPy for the dual): `scripts/parity/objectives.py`. Margins up to
//! +-1e4 nats. Both sides are f64: losses and derivatives agree to 1e-8 relative; for the dual, whose solution both
//! find by iteration, to 1e-6.

use seakeep::logps::{BranchLogps, Facts, Role};
use seakeep::objective::rule::Kldpo;
use seakeep::objective::{Context, Objective, PairLoss, Rule, Scored};
use serde_json::Value;

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn logps(batch: &Value, prefix: &str) -> BranchLogps {
    let of = |branch: &str| floats(&batch[format!("{prefix}{branch}_logps")]);
    BranchLogps::of_pairs(&of("chosen"), &of("rejected"))
}

fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    // An underflowed derivative may be 0 on one side and 1e-300 on the other.
    assert!((got - want).abs() <= tolerance * want.abs() + 1e-14, "{what}: got {got:e}, want {want:e}");
    assert!(got.is_finite(), "{what}");
}

#[test]
fn values_and_derivatives() {
    let text = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/objectives.json")).unwrap();
    let batches: Value = serde_json::from_slice(&text).unwrap();
    let mut checked = 0;
    for (b, batch) in batches.as_array().unwrap().iter().enumerate() {
        let (policy, reference) = (logps(batch, ""), logps(batch, "ref_"));
        let roles = vec![Role::Chosen, Role::Rejected];
        let one = Facts { roles, tokens: vec![1; 2], predicted: vec![1; 2], ..Facts::default() };
        let facts = vec![one; policy.len()];
        for golden in batch["objectives"].as_array().unwrap() {
            let name = golden["name"].as_str().unwrap();
            let number = |key: &str| golden[key].as_f64();
            let (rule, tolerance) = match name {
                "dpo" => (Rule::Mean, 1e-8),
                "kldpo_tau" => (Rule::Kldpo(Kldpo::Tau(number("tau").unwrap())), 1e-8),
                "kldpo_rho" => (Rule::Kldpo(Kldpo::Rho(number("rho").unwrap())), 1e-6),
                "kldpo_official" => (Rule::Kldpo(Kldpo::Official(number("tau").unwrap())), 1e-8),
                other => panic!("no such objective: {other}"),
            };
            let label_smoothing = number("label_smoothing").unwrap_or(0.0);
            let pair = PairLoss { label_smoothing, ..PairLoss::dpo(batch["beta"].as_f64().unwrap()) };
            let objective = Objective { pair, rule, penalty: None };
            let scored = Scored { policy: &policy, reference: &reference, facts: &facts };
            let e = objective.evaluate(&scored, &Context::at_the_end(&facts));
            let what = format!("batch {b} ({}), {name} {}", batch["kind"], golden["rho"]);
            close(e.loss, number("loss").unwrap(), tolerance, &format!("{what}: loss"));
            let scale = floats(&golden["d_chosen"]).iter().fold(0.0f64, |m, d| m.max(d.abs()));
            for (got, key) in [(e.grads.branch(0), "d_chosen"), (e.grads.branch(1), "d_rejected")] {
                for (g, w) in got.iter().zip(floats(&golden[key])) {
                    // Weights far below the largest carry the rounding of the largest.
                    let floor = tolerance * 1e-3 * scale;
                    assert!(
                        (g - w).abs() <= tolerance * w.abs() + floor + 1e-14,
                        "{what}: {key} {g:e} {w:e}"
                    );
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 300, "{checked}");
}
