<<<<<<< HEAD
//! Objectives alone, on forty batches without a model: `tests/golden/objectives.json`, made by
//! `scripts/parity/objectives.py` with float64 autograd, and tau by bisection in 50-digit arithmetic.
//!
//! Tolerances. The file has 12 digits. Margins are differences of numbers in the hundreds, so losses carry about 1e-14
//! absolute, which a temperature of 0.05 and the weights `exp(l / tau)` make 1e-12; a solved tau carries about 1e-9
//! relative where losses differ by 1e-4 only.

use std::path::Path;

use seakeep::logps::BranchLogps;
use seakeep::objective::dpo::Dpo;
use seakeep::objective::kldpo::Kldpo;
use seakeep::objective::{Evaluation, Objective, Rule};
=======
//! Objectives against PyTorch autograd in float64 (and SciPy for the dual): `scripts/parity/objectives.py`. Margins up to
//! +-1e4 nats. Both sides are f64: losses and derivatives agree to 1e-8 relative; for the dual, whose solution both
//! find by iteration, to 1e-6.

use seakeep::logps::BranchLogps;
use seakeep::objective::kldpo::Kldpo;
use seakeep::objective::{Objective, Rule, dpo::Dpo};
>>>>>>> main
use serde_json::Value;

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

<<<<<<< HEAD
fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{what}: got {got}, want {want}");
}

fn metric(evaluation: &Evaluation, name: &str) -> f64 {
    evaluation.metrics.iter().find(|m| m.0 == name).unwrap_or_else(|| panic!("no {name}")).1
}

fn objective(batch: &Value, given: &Value) -> Objective {
    let number = |key: &str| given[key].as_f64().unwrap();
    let rule = match given["name"].as_str().unwrap() {
        "dpo" => Rule::Mean,
        "kldpo_tau" => Rule::Kldpo(Kldpo::Tau(number("tau"))),
        "kldpo_official" => Rule::Kldpo(Kldpo::Official(number("tau"))),
        "kldpo_rho" => Rule::Kldpo(Kldpo::Rho(number("rho"))),
        other => panic!("{other}"),
    };
    let label_smoothing = given["label_smoothing"].as_f64().unwrap_or(0.0);
    let pair = Dpo { beta: batch["beta"].as_f64().unwrap(), label_smoothing };
    Objective { pair, rule, penalty: None }
}

#[test]
fn losses_weights_and_derivatives_are_those_of_autograd() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/objectives.json");
    let batches: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = 0;
    for (i, batch) in batches.iter().enumerate() {
        let logps = |prefix: &str| BranchLogps {
            chosen: floats(&batch[format!("{prefix}chosen_logps")]),
            rejected: floats(&batch[format!("{prefix}rejected_logps")]),
        };
        let (policy, reference) = (logps(""), logps("ref_"));
        for given in batch["objectives"].as_array().unwrap() {
            let what = format!("batch {i} ({}), {given}", batch["kind"]);
            let found = objective(batch, given).evaluate(&policy, &reference, policy.len());
            close(found.loss, given["loss"].as_f64().unwrap(), 1e-9, &what);
            let grads = found.grads();
            for (got, key) in [(grads.chosen, "d_chosen"), (grads.rejected, "d_rejected")] {
                for (got, want) in got.iter().zip(floats(&given[key])) {
                    close(*got, want, 1e-9, &what);
                }
            }
            for (pair, want) in found.pairs.iter().zip(given["pair_losses"].as_array().into_iter().flatten())
            {
                close(pair.value, want.as_f64().unwrap(), 1e-11, &what);
            }
            if let Some(size) = given["effective_size"].as_f64() {
                close(metric(&found, "kldpo/effective_sample_size"), size, 1e-7, &what);
            }
            if let Some(dual) = given["dual"].as_f64() {
                close(metric(&found, "kldpo/dual"), dual, 1e-9, &what);
            }
            if let (Some(tau), true) = (given["tau"].as_f64(), given["name"] == "kldpo_rho") {
                let got = metric(&found, "kldpo/tau");
                assert!((got - tau).abs() <= 1e-7 * tau, "{what}: tau {got}");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 520);
=======
fn logps(batch: &Value, prefix: &str) -> BranchLogps {
    let of = |branch: &str| floats(&batch[format!("{prefix}{branch}_logps")]);
    BranchLogps { chosen: of("chosen"), rejected: of("rejected") }
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
            let pair = Dpo { beta: batch["beta"].as_f64().unwrap(), label_smoothing };
            let objective = Objective { pair, rule, penalty: None };
            let e = objective.evaluate(&policy, &reference, policy.len());
            let what = format!("batch {b} ({}), {name} {}", batch["kind"], golden["rho"]);
            close(e.loss, number("loss").unwrap(), tolerance, &format!("{what}: loss"));
            let grads = e.grads();
            let scale = floats(&golden["d_chosen"]).iter().fold(0.0f64, |m, d| m.max(d.abs()));
            for (got, key) in [(&grads.chosen, "d_chosen"), (&grads.rejected, "d_rejected")] {
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
>>>>>>> main
}
