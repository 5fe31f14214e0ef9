//! The solvers against other algorithms and against limits; duals against distributions; rates on a small run.

use serde_json::Value;

use super::duals::{chi2, chi2_ball, kl, kl_ball, mean};
use super::*;
use crate::progress::Silent;

/// From `scripts/parity/theory.py`: conic programs in Clarabel, and scipy.
const GOLDEN: &str = include_str!("../../tests/golden/theory.json");

fn reals(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

struct Golden {
    json: Value,
    pairs: Pairs,
    reference: Vec<f64>,
    beta: f64,
}

fn golden() -> Golden {
    let json: Value = serde_json::from_str(GOLDEN).unwrap();
    let rows: Vec<Vec<f64>> = json["x"].as_array().unwrap().iter().map(reals).collect();
    let pairs = Pairs { dimension: rows[0].len(), x: rows.concat(), masses: reals(&json["masses"]) };
    Golden { pairs, reference: reals(&json["reference"]), beta: json["beta"].as_f64().unwrap(), json }
}

fn estimator(name: &str, radius: f64) -> Estimator {
    match name {
        "dpo" => Estimator::Dpo,
        "kldpo" => Estimator::Kldpo(radius),
        "wdpo" => Estimator::Wdpo(radius),
        "wdpo_gradient" => Estimator::WdpoGradient(radius),
        "drdpo" => Estimator::Drdpo(radius),
        _ => Estimator::Chi2(radius),
    }
}

impl Golden {
    fn class(&self, bound: f64) -> Class {
        Class { beta: self.beta, bound, reference: self.reference.clone() }
    }
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn optima_are_those_of_other_solvers() {
    let golden = golden();
    let mut boundaries = 0;
    for case in golden.json["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let bound = case["bound"].as_f64().unwrap();
        let estimator = estimator(name, golden.json["radii"][name].as_f64().unwrap());
        let found = golden.class(bound).minimise(estimator, &golden.pairs).unwrap();
        let off = furthest(&found.theta, &reals(&case["theta"]));
        assert!(off < 1e-6, "{name}, bound {bound}: theta off by {off:e}");
        assert!((found.value - case["value"].as_f64().unwrap()).abs() < 1e-9, "{name}, bound {bound}");
        boundaries += usize::from(found.place == Place::Boundary);
    }
    assert_eq!(boundaries, 4);
}

#[test]
fn duals_are_the_largest_losses_of_their_balls() {
    let golden = golden();
    let losses = golden.pairs.losses(golden.beta, &reals(&golden.json["offset"]));
    let masses = &golden.pairs.masses;
    for case in golden.json["worst_cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let radius = golden.json["radii"][name].as_f64().unwrap();
        let worst = estimator(name, radius).reweighting(&losses, masses).unwrap();
        let distance = if name == "chi2" { chi2 } else { kl }(&worst.weights, masses);
        assert!((distance - radius).abs() < 1e-12, "{name}: {distance}");
        assert!((mean(&losses, &worst.weights) - worst.value).abs() < 1e-13, "{name}: dual = primal");
        assert!((worst.value - case["value"].as_f64().unwrap()).abs() < 1e-8, "{name}: directly maximised");
    }
}

#[test]
fn worst_cases_over_a_wide_range_of_radii() {
    let golden = golden();
    let losses = golden.pairs.losses(golden.beta, &[3.0, -2.0, 1.0]);
    let masses = &golden.pairs.masses;
    let mut last = 0.0;
    for radius in [0.0, 1e-8, 1e-4, 1e-2, 0.1, 0.5, 1.0, 2.0] {
        for (worst, distance) in [
            (kl_ball(&losses, masses, radius).unwrap(), kl as fn(&[f64], &[f64]) -> f64),
            (chi2_ball(&losses, masses, radius).unwrap(), chi2),
        ] {
            let total: f64 = worst.weights.iter().sum();
            assert!((total - 1.0).abs() < 1e-12);
            assert!((distance(&worst.weights, masses) - radius).abs() < 1e-9 * radius.max(1e-4), "{radius}");
            assert!((mean(&losses, &worst.weights) - worst.value).abs() < 1e-10, "{radius}");
        }
        let value = kl_ball(&losses, masses, radius).unwrap().value;
        assert!(value > last, "a larger ball has a larger worst case");
        last = value;
    }
    assert!(kl_ball(&losses, masses, 10.0).is_none() && chi2_ball(&losses, masses, 1e3).is_none());
    assert_eq!(kl_ball(&[0.5; 3], &[0.2, 0.3, 0.5], 0.1).unwrap().value, 0.5);
}

#[test]
fn the_wasserstein_dual_is_approached_and_not_exceeded() {
    let golden = golden();
    let case = worst::worst_case("wdpo", Estimator::Wdpo(0.1), &golden.pairs, golden.beta, &[1.0, -0.5, 0.2])
        .unwrap();
    assert!(case.primal.iter().all(|p| (p.distance - 0.1).abs() < 1e-12 && p.value < case.dual));
    let gaps: Vec<f64> = case.primal.iter().map(|p| case.dual - p.value).collect();
    assert!(gaps.windows(2).all(|pair| pair[1] < pair[0]) && gaps[4] < 1e-5, "{gaps:?}");
}

#[test]
fn derivatives_are_those_of_the_value() {
    let golden = golden();
    let w = [0.8, -0.3, 0.4];
    for name in ["dpo", "kldpo", "wdpo", "wdpo_gradient", "drdpo", "chi2"] {
        let estimator = estimator(name, 0.05 + f64::from(u8::from(name == "drdpo")));
        let at = |w: &[f64]| estimator.at(&golden.pairs, golden.beta, w).unwrap();
        let here = at(&w);
        for i in 0..3 {
            let h = 1e-5;
            let (mut up, mut down) = (w, w);
            up[i] += h;
            down[i] -= h;
            let (up, down) = (at(&up), at(&down));
            let slope = (up.value - down.value) / (2.0 * h);
            assert!((slope - here.gradient[i]).abs() < 1e-8, "{name}: gradient {i}");
            for j in 0..3 {
                let second = (up.gradient[j] - down.gradient[j]) / (2.0 * h);
                assert!((second - here.hessian[3 * i + j]).abs() < 1e-7, "{name}: Hessian {i} {j}");
            }
        }
    }
}

#[test]
fn balls_that_shrink_to_a_point_give_dpo() {
    let golden = golden();
    let class = golden.class(50.0);
    let dpo = class.minimise(Estimator::Dpo, &golden.pairs).unwrap().theta;
    for name in ["kldpo", "wdpo", "wdpo_gradient", "chi2"] {
        let mut last = f64::INFINITY;
        for radius in [1e-2, 1e-4, 1e-6, 1e-8, 0.0] {
            let theta = class.minimise(estimator(name, radius), &golden.pairs).unwrap().theta;
            let off = furthest(&theta, &dpo);
            assert!(off < last, "{name} at {radius}: {off:e}");
            last = off;
        }
        assert_eq!(last, 0.0, "{name}: radius 0 is DPO");
    }
    let trusting = class.minimise(Estimator::Drdpo(1e8), &golden.pairs).unwrap().theta;
    assert!(furthest(&trusting, &dpo) < 1e-5);
}

#[test]
fn a_large_ball_leaves_only_the_reference() {
    let golden = golden();
    let class = golden.class(50.0);
    let mean = norm(&golden.pairs.moment(&golden.pairs.masses));
    for (name, edge) in [("wdpo", 0.5 * mean), ("wdpo_gradient", mean)] {
        let place = |radius| class.minimise(estimator(name, radius), &golden.pairs).unwrap().place;
        assert_eq!((place(1.001 * edge), place(0.95 * edge)), (Place::Reference, Place::Inside), "{name}");
    }
    // KLDPO's edge is the least divergence of an indifferent distribution; chi-square's lies above it.
    let edge = solve::divergence_to_indifference(&golden.pairs, f64::INFINITY);
    let find = |estimator| class.minimise(estimator, &golden.pairs).unwrap();
    assert_eq!(find(Estimator::Kldpo(1.001 * edge)).place, Place::Reference);
    let near = find(Estimator::Kldpo(0.95 * edge));
    assert!(near.place == Place::Inside && near.value < std::f64::consts::LN_2, "{edge}: {near:?}");
    assert!(norm(&class.offset(&near.theta)) < 0.3, "{near:?}");
    assert_eq!(find(Estimator::Chi2(edge)).place, Place::Inside);
}

#[test]
fn separable_data_are_held_by_the_ball() {
    let pairs = Pairs { dimension: 2, x: vec![1.0, 0.2, 0.5, -0.3], masses: vec![0.5, 0.5] };
    let class = Class { beta: 1.0, bound: 2.0, reference: vec![0.1, 0.0] };
    for estimator in [Estimator::Dpo, Estimator::Wdpo(0.01), Estimator::Drdpo(1.0)] {
        let found = class.minimise(estimator, &pairs).unwrap();
        assert!(norm(&found.theta) <= 2.0 + 1e-8, "{estimator:?}: {:?}", found.theta);
    }
    assert_eq!(class.minimise(Estimator::Dpo, &pairs).unwrap().place, Place::Boundary);
}

fn small() -> Options {
    Options {
        dimension: 3,
        prompts: 16,
        n_min: 256,
        n_max: 4096,
        repetitions: 60,
        bound: 3.0,
        ..Options::default()
    }
}

#[test]
fn the_population_optimum_of_dpo_is_the_truth() {
    let options = small();
    let simulation = Simulation::new(&options);
    let point = simulation.population_point(&simulation.methods[0], 256).unwrap();
    assert!(point.bias < 1e-8, "{}", point.bias);
    let total: f64 = simulation.population.masses.iter().sum();
    assert!((total - 1.0).abs() < 1e-12);
    // Draws follow the population: every atom's share within six standard errors.
    let n = 200_000;
    let drawn = simulation.sampler.draw(n, 7, 0);
    for (x, p) in simulation.population.atoms() {
        let share: f64 = drawn.atoms().filter(|(y, _)| *y == x).map(|(_, q)| q).sum();
        assert!((share - p).abs() < 6.0 * (p / n as f64).sqrt() + 1e-9, "{share} for {p}");
    }
    // At alpha 0 the judges have the taste of the labels.
    assert_eq!(simulation.world.shifted(0.0), simulation.world.truth);
    assert!(furthest(&simulation.world.shifted(1.0), &simulation.world.other) < 1e-15);
}

#[test]
fn dpo_converges_at_the_root_of_n_and_robust_estimators_not_slower_than_proved() {
    let record = simulate(&small(), "", &mut Silent).unwrap();
    let slope = |method: usize, target: &str| {
        let all = &record.methods[method].slopes;
        all.iter()
            .find(|s| s.target == target && s.norm == "euclidean" && s.from_n == 256)
            .unwrap()
            .slope
            .unwrap()
    };
    let dpo = slope(0, "truth");
    assert!(dpo.low < -0.5 && -0.5 < dpo.high && dpo.high - dpo.low < 0.2, "{dpo:?}");
    for method in 1..record.methods.len() {
        assert!(
            slope(method, "own").high < -0.25,
            "{}: {:?}",
            record.methods[method].label,
            slope(method, "own")
        );
    }
    // KLDPO of fixed radius does not reach the truth.
    assert!(slope(1, "truth").low > -0.3, "{:?}", slope(1, "truth"));
    for point in record.methods.iter().flat_map(|m| &m.points) {
        assert!(point.bound.is_none_or(|bound| point.own.covariance.mean.value < bound));
    }
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<record::SimulationRecord>(&text).unwrap(), record);
}

#[test]
fn the_same_numbers_on_any_number_of_threads() {
    let options = Options { n_max: 1024, repetitions: 8, ..small() };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut record = pool.install(|| simulate(&options, "", &mut Silent).unwrap());
        record.seconds = 0.0;
        record
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn options_out_of_range_are_refused() {
    type Spoil = fn(&mut Options);
    let cases: [(&str, Spoil); 9] = [
        ("--dimension", |o| o.dimension = 0),
        ("--n_max", |o| o.n_max = o.n_min),
        ("--repetitions", |o| o.repetitions = 1),
        ("--bound", |o| o.bound = 1.0),
        ("--bound", |o| o.bound = f64::NAN),
        ("--kldpo_radius", |o| o.kldpo_radius = -0.1),
        ("--wdpo_radius", |o| o.wdpo_radius = f64::NAN),
        ("--beta", |o| o.beta = 0.0),
        ("--prompts", |o| o.prompts = 1),
    ];
    for (name, change) in cases {
        let mut options = Options::default();
        change(&mut options);
        match options.check() {
            Err(Error::Usage(text)) => assert!(text.starts_with(name), "{text}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(Options::default().sizes().len(), 10);
}
