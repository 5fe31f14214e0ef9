use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::data::{Branch, Labels};
use crate::formats::ModelSource;
use crate::formats::adapter::LoraConfig;
use crate::objective::wdpo::{Form, PromptGradient};
use crate::objective::{Rule, rule::Kldpo};
use crate::scoring::SHORTEST_OPENING;

fn model(name: &str) -> Model {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    Model::load(&ModelSource::open(directory).unwrap()).unwrap()
}

/// With adapters that do something: fresh ones do not.
fn adapted(name: &str) -> Model {
    let mut model = model(name);
    let target_modules = Vec::new();
    let config = LoraConfig { target_modules, ..LoraConfig::plain(2, 4.0) };
    model.add_adapters(&config, 1).unwrap();
    for (k, x) in model.weights.f32_mut().skip(1).flatten().enumerate() {
        *x += 0.02 * ((k % 101) as f32 * 0.37).sin();
    }
    model
}

/// Norms and biases of all kinds, tied and untied embeddings, fused and separate maps.
fn models() -> Vec<(&'static str, Model)> {
    let plain = ["llama", "qwen3", "gpt2", "gpt_neox"].map(|name| (name, model(name)));
    plain.into_iter().chain(["llama", "gpt2"].map(|name| (name, adapted(name)))).collect()
}

fn pairs() -> Vec<TokenizedPair> {
    let ids = |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed * 5 + 3) % 40) as u32).collect();
    let branch =
        |role, n, seed| Branch { role, completion: ids(n, seed), prompt_skip: 0, truncated: 0, cut: vec![] };
    let pair = |i: usize| TokenizedPair {
        file: Arc::from(Path::new("tiny")),
        row: i + 1,
        index: i,
        prompt: ids(3 + i % 4, i),
        branches: vec![branch(Role::Chosen, 2 + i, i + 1), branch(Role::Rejected, 3 + i % 2, i + 9)],
        labels: Labels::default(),
        backed_off: 0,
    };
    (0..3).map(pair).collect()
}

fn penalised(form: Form, prompt_gradient: PromptGradient, rule: Rule) -> Objective {
    Objective { penalty: Some(Penalty { rho: 0.3, form, prompt_gradient }), rule, ..Objective::dpo(0.1) }
}

fn run(model: &Model, objective: &Objective, micro_batch: usize, at_once: bool) -> (StepOutput, Tensors) {
    let (pairs, mut grads) = (pairs(), Gradients::new(model));
    // What the step before left counts for nothing.
    grads.total.iter_mut().flatten().for_each(|g| *g = f32::NAN);
    let pairs: Vec<&TokenizedPair> = pairs.iter().collect();
    let facts: Vec<Facts> = pairs.iter().map(|p| Facts::of(p, false)).collect();
    let reference = &BranchLogps::of_pairs(&[-9.0, -8.0, -14.0], &[-11.0, -16.0, -15.0]);
    let global = GlobalBatch {
        pairs: &pairs,
        facts: &facts,
        reference,
        progress: 1.0,
        groups: Groups::default(),
        dropout: None,
    };
    let out = gradient_with(model, objective, &global, micro_batch, at_once, &mut grads).unwrap();
    assert_eq!(
        grads.penalty.is_some(),
        objective.penalty.is_some() && !at_once,
        "a buffer of the penalty's own only where it is needed"
    );
    (out, grads.total)
}

#[test]
fn both_gradients_at_once_are_one_after_the_other() {
    use PromptGradient::{Separate, Shared};
    let kldpo = Rule::Kldpo(Kldpo::Tau(0.5));
    for (name, model) in models() {
        for (objective, micro_batches) in [
            (penalised(Form::Paper, Shared, Rule::Mean), &[3][..]),
            (penalised(Form::Paper, Separate, kldpo), &[3]),
            (penalised(Form::Official, Separate, Rule::Mean), &[1, 2, 3]),
            (penalised(Form::Official, Shared, kldpo), &[1, 2, 3]),
        ] {
            let (whole, want) = run(&model, &objective, 3, false);
            let (_, plain) = run(&model, &Objective { penalty: None, ..objective.clone() }, 3, true);
            for &micro_batch in micro_batches {
                let (out, mut got) = run(&model, &objective, micro_batch, true);
                assert!(
                    (out.loss - whole.loss).abs() <= 5e-6 * whole.loss,
                    "{name}: {} {}",
                    out.loss,
                    whole.loss
                );
                got.add_scaled(&want, -1.0);
                // f32 sums in another order; the tolerance of micro-batches.
                assert!(got.norm() <= 1e-5 * want.norm(), "{name}: {} of {}", got.norm(), want.norm());
                let mut penalty = want.clone();
                penalty.add_scaled(&plain, -1.0);
                assert!(
                    penalty.norm() > 1e-2 * want.norm(),
                    "{name}: a penalty that does nothing tests nothing"
                );
            }
        }
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for (name, mut model) in models() {
        for (objective, at_once) in [
            (Objective::dpo(0.1), true),
            (penalised(Form::Paper, PromptGradient::Shared, Rule::Mean), true),
            (penalised(Form::Paper, PromptGradient::Separate, Rule::Mean), false),
        ] {
            model.gradient_checkpointing = false;
            let (kept, want) = run(&model, &objective, 3, at_once);
            model.gradient_checkpointing = true;
            let (again, got) = run(&model, &objective, 3, at_once);
            assert_eq!((again.loss, again.metrics), (kept.loss, kept.metrics), "{name}");
            assert!(got == want, "{name}: gradients");
        }
    }
}

#[test]
fn what_all_pairs_begin_with_is_computed_once_and_changes_nothing() {
    let mut begun = pairs();
    let opening: Vec<u32> = (0..SHORTEST_OPENING as u32).collect();
    begun.iter_mut().for_each(|pair| pair.prompt.splice(0..0, opening.iter().copied()).for_each(drop));
    let all: Vec<&TokenizedPair> = begun.iter().collect();
    let facts: Vec<Facts> = all.iter().map(|p| Facts::of(p, false)).collect();
    let reference = &BranchLogps::of_pairs(&[-9.0, -8.0, -14.0], &[-11.0, -16.0, -15.0]);
    for (name, model) in models() {
        let step = |objective: &Objective, micro_batch| {
            let (groups, mut grads) = (Groups::default(), Gradients::new(&model));
            let global =
                GlobalBatch { pairs: &all, facts: &facts, reference, progress: 1.0, groups, dropout: None };
            let out = gradient(&model, objective, &global, micro_batch, &mut grads).unwrap();
            (out.loss, grads.total)
        };
        let kldpo = Rule::Kldpo(Kldpo::Tau(0.5));
        for objective in [Objective::dpo(0.1), Objective { rule: kldpo, ..Objective::dpo(0.1) }] {
            assert_eq!(PairLayout::of(&objective).opening(&all), opening);
            // One at a time there is nobody to share with.
            let ((loss, mut together), (want_loss, want)) = (step(&objective, 3), step(&objective, 1));
            assert!((loss - want_loss).abs() <= 1e-6 * want_loss.abs(), "{name}: {loss}, {want_loss}");
            together.add_scaled(&want, -1.0);
            assert!(together.norm() <= 5e-6 * want.norm(), "{name}: {} of {}", together.norm(), want.norm());
        }
    }
    let dpo = PairLayout::of(&Objective::dpo(0.1));
    assert!(dpo.opening(&all[..1]).is_empty(), "a single pair");
    begun[1].prompt.remove(0);
    assert!(dpo.opening(&begun.iter().collect::<Vec<_>>()).is_empty(), "another beginning");
    let penalty = penalised(Form::Paper, PromptGradient::Shared, Rule::Mean);
    assert!(!PairLayout::of(&penalty).opening, "gradients of each pair's own embeddings");
}

#[test]
fn more_rows_than_fill_the_products_are_run_apart_where_that_costs_nothing() {
    let rows = [400, 200, 100, 650, 30, 30, 40, 50];
    let dpo = Objective::dpo(0.1);
    let full = most_room(true, false);
    assert_eq!(runs(&dpo, 8, (&rows, 0), full), [0..2, 2..3, 3..4, 4..8]);
    assert_eq!(runs(&dpo, 2, (&rows, 0), full), [0..2, 2..3, 3..4, 4..6, 6..8]);
    assert_eq!(
        runs(&dpo, 3, (&rows, 0), most_room(false, false)),
        [0..3, 3..6, 6..8],
        "weights in another form"
    );
    assert_eq!(runs(&dpo, 8, (&[310, 330, 330], 20), full), [0..2, 2..3], "20 of 640 rows stand once");
    let coupled = Objective { rule: Rule::Kldpo(crate::objective::rule::Kldpo::Tau(0.5)), ..dpo.clone() };
    for whole in [coupled, penalised(Form::Paper, PromptGradient::Shared, Rule::Mean)] {
        assert_eq!(runs(&whole, 3, (&rows, 0), full), [0..3, 3..6, 6..8], "{whole:?}");
    }
    let official = penalised(Form::Official, PromptGradient::Shared, Rule::Mean);
    assert_eq!(runs(&official, 8, (&rows, 0), full), [0..2, 2..3, 3..4, 4..8], "the factor is a constant");
    assert!(runs(&dpo, 2, (&[], 0), full).is_empty());
    assert_eq!(runs(&dpo, 8, (&rows, 0), most_room(true, true)), [0..3, 3..8], "adapters alone");
}
