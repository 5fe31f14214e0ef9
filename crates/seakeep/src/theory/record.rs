//! What a simulation found, as it is written to `simulate.json` and read by the report.

use serde::{Deserialize, Serialize};

use super::rates::{Interval, Middle};

/// The version of the record's layout that this program writes.
pub const SCHEMA_VERSION: u32 = 1;

/// A simulation: errors of each method against the number of pairs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SimulationRecord {
    /// [`SCHEMA_VERSION`] of the program that wrote it.
    pub schema_version: u32,
    /// The program and its version.
    pub program: String,
    /// The command that made the record, as typed.
    pub command_line: String,
    /// The settings.
    pub options: Options,
    /// The world that was drawn.
    pub world: WorldRecord,
    /// One entry for each method, DPO first.
    pub methods: Vec<MethodRecord>,
    /// Duals against distributions of their balls, on the first sample of the smallest n.
    pub worst_cases: Vec<WorstCase>,
    /// The methods judged under shifted tastes.
    pub shift: ShiftRecord,
    /// Wall-clock time, seconds. The only field that differs between two runs of the same settings.
    pub seconds: f64,
}

/// The settings of a simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Number of features, d.
    pub dimension: usize,
    /// Prompts of the world.
    pub prompts: usize,
    /// Answers of each prompt.
    pub answers: usize,
    /// The factor of the margin.
    pub beta: f64,
    /// The largest `|theta|`, B.
    pub bound: f64,
    /// `|theta_ref|`.
    pub reference_norm: f64,
    /// `|theta* - theta_ref|`.
    pub signal: f64,
    /// Radius of KLDPO's ball, nats.
    pub kldpo_radius: f64,
    /// Radius of WDPO's ball, in units of the features (which have norm 1).
    pub wdpo_radius: f64,
    /// Radius of the chi-square ball.
    pub chi2_radius: f64,
    /// Dr. DPO's `beta'`.
    pub drdpo_beta: f64,
    /// Shrinking radii are the radius times `(n_min / n)` to this power.
    pub radius_power: f64,
    /// The smallest n.
    pub n_min: usize,
    /// The largest n; n doubles from `n_min` up to it.
    pub n_max: usize,
    /// Samples drawn at each n.
    pub repetitions: usize,
    /// Seed of the world and the samples.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            dimension: 8,
            prompts: 64,
            answers: 4,
            beta: 1.0,
            bound: 2.5,
            reference_norm: 0.5,
            signal: 1.5,
            kldpo_radius: 0.01,
            wdpo_radius: 0.03,
            chi2_radius: 0.02,
            drdpo_beta: 1.0,
            radius_power: 0.5,
            n_min: 128,
            n_max: 65536,
            repetitions: 400,
            seed: 0,
        }
    }
}

/// What was drawn, and the theory's constants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorldRecord {
    /// Labelled pairs with a probability of their own.
    pub atoms: usize,
    /// `theta_ref`, `[d]`.
    pub theta_ref: Vec<f64>,
    /// `theta*`, `[d]`.
    pub theta_star: Vec<f64>,
    /// Eigenvalues of the covariance `E x x^T`, ascending; the first is lambda.
    pub covariance_eigenvalues: Vec<f64>,
    /// Strong convexity.
    pub gamma: f64,
    /// K, nats.
    pub largest_loss: f64,
    /// The largest distance in the ball in the covariance norm: what a bound must be below to say something.
    pub diameter: f64,
}

/// A method over n.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MethodRecord {
    /// `dpo`, `kldpo`, `kldpo_shrinking`, `wdpo`, `wdpo_shrinking`, `wdpo_gradient`, `drdpo`, `chi2`.
    pub name: String,
    /// For people.
    pub label: String,
    /// By growing n.
    pub points: Vec<PointRecord>,
    /// Slopes of log mean error over log n.
    pub slopes: Vec<SlopeRecord>,
}

/// A method at one n.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PointRecord {
    /// Number of pairs.
    pub n: usize,
    /// The radius (or Dr. DPO's `beta'`); absent for DPO.
    pub radius: Option<f64>,
    /// The optimum of the method's objective on the population, `[d]`, exact.
    pub population_optimum: Vec<f64>,
    /// Its Euclidean distance from `theta*`: what robustness costs here, whatever n.
    pub bias: f64,
    /// KLDPO's tau at the population optimum, nats.
    pub tau: Option<f64>,
    /// The theorem's bound on `own.covariance`, where there is one.
    pub bound: Option<f64>,
    /// The bound on `own.euclidean`.
    pub bound_euclidean: Option<f64>,
    /// Errors from the population optimum of the method's own objective: what the theorems bound.
    pub own: Errors,
    /// Errors from `theta*`.
    pub truth: Errors,
    /// Share of the samples whose optimum lies on the boundary of the ball `|theta| <= B`.
    pub on_boundary: f64,
    /// Share of the samples whose optimum is the reference itself.
    pub at_reference: f64,
}

/// Errors over repetitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// In the Euclidean norm.
    pub euclidean: Middle,
    /// In the norm of the population's covariance, `(v^T E[x x^T] v)^(1/2)`.
    pub covariance: Middle,
}

/// A fitted slope.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlopeRecord {
    /// `own` or `truth`.
    pub target: String,
    /// `euclidean` or `covariance`.
    pub norm: String,
    /// Fitted from this n to the largest.
    pub from_n: usize,
    /// The slope; absent where a mean error is zero.
    pub slope: Option<Interval>,
}

/// A dual value beside distributions of its ball.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstCase {
    /// The method's name.
    pub method: String,
    /// The ball's radius.
    pub radius: f64,
    /// The mean loss at the method's estimate, nats.
    pub mean_loss: f64,
    /// The dual value there, nats: no distribution of the ball has a larger loss.
    pub dual: f64,
    /// Distributions constructed in the ball.
    pub primal: Vec<Primal>,
}

/// A distribution in a ball.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Primal {
    /// How it is made.
    pub what: String,
    /// Its distance from the data, in the ball's own measure.
    pub distance: f64,
    /// Its mean loss, nats.
    pub value: f64,
}

/// Estimates judged under shifted tastes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShiftRecord {
    /// The n of the estimates.
    pub n: usize,
    /// Shares of the second taste in the judging reward.
    pub alphas: Vec<f64>,
    /// The least expected loss of any policy at each alpha, nats.
    pub best: Vec<f64>,
    /// One entry for each method.
    pub methods: Vec<ShiftCurve>,
}

/// A method's expected loss under shifted tastes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShiftCurve {
    /// The method's name.
    pub name: String,
    /// Mean over repetitions of `|theta - theta_ref|`: timid is not robust.
    pub distance: f64,
    /// Mean over repetitions of the expected loss at each alpha, nats.
    pub loss: Vec<Interval>,
}
