//! The theory of distributionally robust DPO (Xu et al., arXiv 2502.01930) put to the test: log-linear policies with a
//! known optimum.
//!
//! The paper proves that on log-linear policies `pi_theta(a|s) ~ exp(<theta, psi(s,a)>)` the robust estimators converge to
//! the robust optimum of the population at `n^(-1/4)`, and non-robust DPO to `theta*` at `n^(-1/2)`. Here n pairs are drawn from a
//! known `theta*` ([`world`]), every objective is solved to optimality with its exact dual ([`estimator`], [`duals`],
//! [`solve`]), and slopes are fitted to the errors over n ([`rates`]) and set beside the bounds ([`bounds`]).
//!
//! Two errors are kept apart: from the population optimum of the method's *own* objective at the same radius, which the
//! theorems are about, and from `theta*`, which no robust estimator of fixed radius converges to.
//!
//! Same options, same numbers, whatever the number of threads: every sample has a stream of its own, and sums run in order.

pub mod bounds;
pub mod duals;
pub mod estimator;
mod linalg;
pub mod rates;
pub mod record;
pub mod solve;
pub mod world;
mod worst;

#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::time::Instant;

use rayon::prelude::*;

use crate::progress::Progress;
use crate::{Error, Result};
use bounds::Constants;
use estimator::{Estimator, Pairs};
use linalg::{eigenvalues, norm, norm_in, plus};
use rates::{Middle, Resamples};
use record::{
    Errors, MethodRecord, Options, PointRecord, SCHEMA_VERSION, ShiftCurve, ShiftRecord, SimulationRecord,
    SlopeRecord, WorldRecord,
};
use solve::{Class, Place, Solution};
use world::{Sampler, World, WorldOptions};

/// Shares of the second taste at which estimates are judged.
const ALPHAS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// A method: an objective whose radius may depend on n.
struct Method {
    name: &'static str,
    label: &'static str,
    at: fn(f64) -> Estimator,
    /// The radius at `n_min`; `None` for DPO.
    radius: Option<f64>,
    shrinks: bool,
}

fn methods(o: &Options) -> Vec<Method> {
    let method = |name, label, at, radius, shrinks| Method { name, label, at, radius, shrinks };
    vec![
        method("dpo", "DPO", |_| Estimator::Dpo, None, false),
        method("kldpo", "KLDPO", Estimator::Kldpo, Some(o.kldpo_radius), false),
        method("kldpo_shrinking", "KLDPO, shrinking", Estimator::Kldpo, Some(o.kldpo_radius), true),
        method("wdpo", "WDPO", Estimator::Wdpo, Some(o.wdpo_radius), false),
        method("wdpo_shrinking", "WDPO, shrinking", Estimator::Wdpo, Some(o.wdpo_radius), true),
        method(
            "wdpo_gradient",
            "WDPO, gradient penalty",
            Estimator::WdpoGradient,
            Some(o.wdpo_radius),
            false,
        ),
        method("drdpo", "Dr. DPO", Estimator::Drdpo, Some(o.drdpo_beta), false),
        method("chi2", "Chi-square", Estimator::Chi2, Some(o.chi2_radius), false),
    ]
}

impl Method {
    fn radius(&self, options: &Options, n: usize) -> Option<f64> {
        let factor = (options.n_min as f64 / n as f64).powf(options.radius_power);
        self.radius.map(|radius| if self.shrinks { radius * factor } else { radius })
    }

    fn estimator(&self, options: &Options, n: usize) -> Estimator {
        (self.at)(self.radius(options, n).unwrap_or_default())
    }
}

impl Options {
    /// The numbers of pairs: doubling from `n_min` to `n_max`.
    pub fn sizes(&self) -> Vec<usize> {
        std::iter::successors(Some(self.n_min), |n| n.checked_mul(2))
            .take_while(|n| *n <= self.n_max)
            .collect()
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    /// [`Error::Usage`] with the option, its value and what was expected.
    pub fn check(&self) -> Result<()> {
        let whole = |name: &str, value: usize, low: usize, high: usize| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(Error::Usage(format!("--{name} is {value}; expected {low} to {high}"))),
        };
        whole("dimension", self.dimension, 1, 64)?;
        whole("prompts", self.prompts, 1, 10_000)?;
        whole("answers", self.answers, 2, 32)?;
        whole("n_min", self.n_min, 16, 1 << 24)?;
        whole("n_max", self.n_max, self.n_min.saturating_mul(4), 1 << 26)?;
        whole("repetitions", self.repetitions, 2, 100_000)?;
        let pairs = self.prompts * self.answers * (self.answers - 1) / 2;
        if pairs < 2 * self.dimension {
            return Err(Error::Usage(format!(
                "--prompts {} and --answers {} make {pairs} pairs; expected at least twice --dimension, {}, so that the \
                 data cover every direction",
                self.prompts, self.answers, self.dimension
            )));
        }
        let real = |name: &str, value: f64, low: f64, high: f64| match value >= low && value <= high {
            true => Ok(()),
            false => {
                Err(Error::Usage(format!("--{name} is {value}; expected a number from {low} to {high}")))
            }
        };
        real("beta", self.beta, 1e-3, 1e3)?;
        real("reference_norm", self.reference_norm, 0.0, 1e3)?;
        real("signal", self.signal, 1e-3, 1e3)?;
        real("kldpo_radius", self.kldpo_radius, 0.0, 1.0)?;
        real("wdpo_radius", self.wdpo_radius, 0.0, 10.0)?;
        real("chi2_radius", self.chi2_radius, 0.0, 1.0)?;
        real("drdpo_beta", self.drdpo_beta, 1e-2, 1e6)?;
        real("radius_power", self.radius_power, 0.0, 4.0)?;
        let furthest = self.reference_norm + self.signal;
        if !(self.bound >= furthest && self.bound <= 1e4) {
            return Err(Error::Usage(format!(
                "--bound is {}; expected at least --reference_norm + --signal, {furthest}, so that theta* lies in the \
                 ball (and at most 10000)",
                self.bound
            )));
        }
        Ok(())
    }
}

/// One method's estimate from one sample.
struct Estimate {
    theta: Vec<f64>,
    place: Place,
}

/// What every part of a simulation knows.
struct Simulation<'a> {
    options: &'a Options,
    methods: Vec<Method>,
    world: World,
    class: Class,
    population: Pairs,
    sampler: Sampler,
    covariance: Vec<f64>,
    constants: Constants,
}

/// Runs a simulation.
///
/// # Errors
/// [`Error::Usage`] for options out of range; [`Error::NonFinite`] where an objective cannot be solved to
/// [`solve::TOLERANCE`], which is never passed over.
pub fn simulate(
    options: &Options,
    command_line: &str,
    progress: &mut dyn Progress,
) -> Result<SimulationRecord> {
    options.check()?;
    let begun = Instant::now();
    let simulation = Simulation::new(options);
    let sizes = options.sizes();
    progress.start("simulating", (sizes.len() * options.repetitions) as u64);
    let shared = Mutex::new(&mut *progress);
    // [sizes][repetitions][methods]
    let mut samples: Vec<Vec<Vec<Estimate>>> = Vec::new();
    for (at, &n) in sizes.iter().enumerate() {
        let repetitions: Result<Vec<_>> = (0..options.repetitions)
            .into_par_iter()
            .map(|repetition| {
                let estimates = simulation.repetition(n, stream(at, repetition));
                shared.lock().unwrap_or_else(|e| e.into_inner()).advance(1, &format!("n {n}"));
                estimates
            })
            .collect();
        samples.push(repetitions?);
    }
    progress.finish();
    let resamples: Vec<Resamples> =
        (0..sizes.len()).map(|at| Resamples::draw(options.repetitions, options.seed, at as u64)).collect();
    let methods: Result<Vec<MethodRecord>> = (0..simulation.methods.len())
        .into_par_iter()
        .map(|method| simulation.method(method, &sizes, &samples, &resamples))
        .collect();
    // In the middle of the grid: where estimates are neither noise nor truth.
    let middle = sizes.len() / 2;
    Ok(SimulationRecord {
        schema_version: SCHEMA_VERSION,
        program: concat!("seakeep ", env!("CARGO_PKG_VERSION")).into(),
        command_line: command_line.into(),
        options: options.clone(),
        world: simulation.world_record(),
        methods: methods?,
        worst_cases: simulation.worst_cases(&samples[0][0]),
        shift: simulation.shift(sizes[middle], &samples[middle], &resamples[middle]),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// The random stream of a sample.
fn stream(size: usize, repetition: usize) -> u64 {
    ((size as u64) << 32) | repetition as u64
}

impl<'a> Simulation<'a> {
    fn new(options: &'a Options) -> Simulation<'a> {
        let world = World::draw(&WorldOptions {
            dimension: options.dimension,
            prompts: options.prompts,
            answers: options.answers,
            beta: options.beta,
            reference_norm: options.reference_norm,
            signal: options.signal,
            seed: options.seed,
        });
        let population = world.population(&world.truth);
        Simulation {
            options,
            methods: methods(options),
            class: Class { beta: options.beta, bound: options.bound, reference: world.reference.clone() },
            covariance: population.second_moment(&population.masses),
            sampler: Sampler::new(population.clone()),
            constants: Constants::new(options.beta, options.bound),
            population,
            world,
        }
    }

    /// Every method's estimate from one sample.
    fn repetition(&self, n: usize, stream: u64) -> Result<Vec<Estimate>> {
        let pairs = self.sampler.draw(n, self.options.seed, stream);
        let estimate = |method| {
            let Solution { theta, place, .. } = self.solve(method, n, &pairs)?;
            Ok(Estimate { theta, place })
        };
        self.methods.iter().map(estimate).collect()
    }

    fn solve(&self, method: &Method, n: usize, pairs: &Pairs) -> Result<Solution> {
        let estimator = method.estimator(self.options, n);
        self.class.minimise(estimator, pairs).ok_or_else(|| {
            Error::NonFinite(format!(
                "{} at n = {n}: the objective {estimator:?} cannot be solved to {:e}; take its knob (radius, tau, \
                 drdpo_beta) or beta nearer to the default",
                method.label,
                solve::TOLERANCE
            ))
        })
    }

    fn world_record(&self) -> WorldRecord {
        let eigenvalues = eigenvalues(&self.covariance, self.options.dimension);
        let largest = eigenvalues.last().copied().unwrap_or_default();
        WorldRecord {
            atoms: self.population.masses.len(),
            theta_ref: self.world.reference.clone(),
            theta_star: self.world.truth.clone(),
            covariance_eigenvalues: eigenvalues,
            gamma: self.constants.gamma,
            largest_loss: self.constants.largest_loss,
            diameter: 2.0 * self.options.bound * largest.sqrt(),
        }
    }

    fn method(
        &self,
        at: usize,
        sizes: &[usize],
        samples: &[Vec<Vec<Estimate>>],
        resamples: &[Resamples],
    ) -> Result<MethodRecord> {
        let method = &self.methods[at];
        // Errors of the repetitions: [own euclidean, own covariance, truth euclidean, truth covariance][sizes]
        let mut errors: [Vec<Vec<f64>>; 4] = Default::default();
        let mut points = Vec::new();
        for ((&n, repetitions), resamples) in sizes.iter().zip(samples).zip(resamples) {
            let mut point = self.population_point(method, n)?;
            let estimates: Vec<&Estimate> = repetitions.iter().map(|r| &r[at]).collect();
            let distances = |to: &[f64], norm: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
                estimates.iter().map(|e| norm(&plus(&e.theta, -1.0, to))).collect()
            };
            let in_covariance = |v: &[f64]| norm_in(&self.covariance, v);
            let targets = [&point.population_optimum, &self.world.truth];
            let mut middles = Vec::new();
            for (target, to) in targets.into_iter().enumerate() {
                for (kind, values) in
                    [distances(to, &norm), distances(to, &in_covariance)].into_iter().enumerate()
                {
                    middles.push(resamples.middle(&values));
                    errors[2 * target + kind].push(values);
                }
            }
            let pair = |m: &[Middle]| Errors { euclidean: m[0], covariance: m[1] };
            (point.own, point.truth) = (pair(&middles[..2]), pair(&middles[2..]));
            let share =
                |place| estimates.iter().filter(|e| e.place == place).count() as f64 / estimates.len() as f64;
            (point.on_boundary, point.at_reference) = (share(Place::Boundary), share(Place::Reference));
            points.push(point);
        }
        let mut slopes = Vec::new();
        for (errors, (target, norm)) in errors.iter().zip([
            ("own", "euclidean"),
            ("own", "covariance"),
            ("truth", "euclidean"),
            ("truth", "covariance"),
        ]) {
            // The whole grid, and its upper half: the theory is about large n.
            for from in [0, sizes.len() / 2] {
                let n: Vec<f64> = sizes[from..].iter().map(|&n| n as f64).collect();
                let data: Vec<_> = errors[from..].iter().map(Vec::as_slice).zip(&resamples[from..]).collect();
                slopes.push(SlopeRecord {
                    target: target.into(),
                    norm: norm.into(),
                    from_n: sizes[from],
                    slope: rates::slope(&n, &data),
                });
            }
        }
        Ok(MethodRecord { name: method.name.into(), label: method.label.into(), points, slopes })
    }

    /// What is known of a method at n without a sample.
    fn population_point(&self, method: &Method, n: usize) -> Result<PointRecord> {
        let estimator = method.estimator(self.options, n);
        let optimum = self.solve(method, n, &self.population)?.theta;
        let masses = &self.population.masses;
        let losses = self.population.losses(self.options.beta, &self.class.offset(&optimum));
        let worst = estimator.reweighting(&losses, masses);
        let tau = worst.as_ref().map(|w| w.dual).filter(|_| matches!(estimator, Estimator::Kldpo(_)));
        let bound = match (estimator, tau) {
            (Estimator::Dpo, _) => Some(self.constants.dpo(self.options.dimension, n)),
            (Estimator::Wdpo(_), _) => Some(self.constants.wdpo(n)),
            (Estimator::Kldpo(_), Some(tau)) if tau.is_finite() => Some(self.constants.kldpo(tau, n)),
            (Estimator::Kldpo(_), _) => Some(self.constants.wdpo(n)),
            _ => None,
        };
        // The covariance under the worst case, which the bound is in the norm of.
        let weights = worst.as_ref().map_or(masses, |w| &w.weights);
        let covariance = self.population.second_moment(weights);
        let lambda = eigenvalues(&covariance, self.options.dimension)[0];
        // From that norm to the nominal covariance's: a worst case keeps at least this share of every atom.
        let kept = weights.iter().zip(masses).map(|(q, p)| q / p).fold(1.0, f64::min);
        Ok(PointRecord {
            n,
            radius: method.radius(self.options, n),
            bias: norm(&plus(&optimum, -1.0, &self.world.truth)),
            population_optimum: optimum,
            tau: tau.filter(|tau| tau.is_finite()),
            bound: bound.map(|b| b / kept.sqrt()).filter(|b| b.is_finite()),
            bound_euclidean: bound.map(|b| b / lambda.sqrt()).filter(|b| b.is_finite()),
            ..PointRecord::default()
        })
    }

    fn worst_cases(&self, estimates: &[Estimate]) -> Vec<record::WorstCase> {
        let n = self.options.n_min;
        let pairs = self.sampler.draw(n, self.options.seed, stream(0, 0));
        let of = |(method, estimate): (&Method, &Estimate)| {
            let w = self.class.offset(&estimate.theta);
            worst::worst_case(method.name, method.estimator(self.options, n), &pairs, self.options.beta, &w)
        };
        // At n_min the shrinking radii are the constant ones.
        self.methods.iter().zip(estimates).filter(|(method, _)| !method.shrinks).filter_map(of).collect()
    }

    fn shift(&self, n: usize, repetitions: &[Vec<Estimate>], resamples: &Resamples) -> ShiftRecord {
        let populations = ALPHAS.map(|alpha| {
            let taste = self.world.shifted(alpha);
            (self.world.population(&taste), taste)
        });
        let expected = |theta: &[f64], population: &Pairs| {
            duals::mean(&population.losses(self.options.beta, &self.class.offset(theta)), &population.masses)
        };
        let methods = self.methods.iter().enumerate().map(|(at, method)| {
            let distances = repetitions.iter().map(|r| norm(&self.class.offset(&r[at].theta)));
            ShiftCurve {
                name: method.name.into(),
                distance: distances.sum::<f64>() / repetitions.len() as f64,
                loss: populations
                    .iter()
                    .map(|(population, _)| {
                        let losses: Vec<f64> =
                            repetitions.par_iter().map(|r| expected(&r[at].theta, population)).collect();
                        resamples.mean(&losses)
                    })
                    .collect(),
            }
        });
        ShiftRecord {
            n,
            alphas: ALPHAS.to_vec(),
            best: populations.iter().map(|(population, taste)| expected(taste, population)).collect(),
            methods: methods.collect(),
        }
    }
}
