//! A finite world of preferences in which every population quantity is a sum.
//!
//! Prompts, each with the same number of answers, each answer with features on the unit sphere of `R^d`. A pair is a
//! uniform prompt and two different answers drawn from the reference policy `pi_ref(a|s) ~ exp(<theta_ref, psi(s,a)>)`,
//! labelled by Bradley-Terry at the reward whose DPO optimum is `theta*`:
//! `P(a beats b) = sigmoid(beta <theta* - theta_ref, psi_a - psi_b>)`. Since there are finitely many labelled pairs
//! (atoms), the robust optima of the population are solved exactly and not estimated from a large sample, and n pairs are
//! n draws of atoms, of which only the counts matter.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::estimator::{Pairs, sigmoid};
use super::linalg::{dot, norm, plus};

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Number of features, d.
    pub dimension: usize,
    /// Number of prompts.
    pub prompts: usize,
    /// Answers of each prompt.
    pub answers: usize,
    /// The factor of the margin.
    pub beta: f64,
    /// `|theta_ref|`.
    pub reference_norm: f64,
    /// `|theta* - theta_ref|`.
    pub signal: f64,
    /// Seed of all draws.
    pub seed: u64,
}

/// The world.
#[derive(Clone, Debug)]
pub struct World {
    /// `theta_ref`.
    pub reference: Vec<f64>,
    /// `theta*`.
    pub truth: Vec<f64>,
    /// The parameters of the second population's taste: as strong as the first's, at 120 degrees to it.
    pub other: Vec<f64>,
    beta: f64,
    /// `psi_a - psi_b` of each unordered pair, `[pairs, d]`, and its probability.
    unlabelled: Pairs,
}

/// The cosine between the two populations' tastes: they disagree more often than not.
const TASTES: f64 = -0.5;

/// Streams of the generator: the world's own, and from here on one for each repetition.
const FIRST_SAMPLE: u64 = 1;

impl World {
    /// Draws a world. The options must be in range: at least one feature, prompt and two answers.
    pub fn draw(options: &WorldOptions) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let d = options.dimension;
        let scaled = |v: Vec<f64>, t: f64| v.iter().map(|v| t * v).collect::<Vec<f64>>();
        let reference = scaled(direction(&mut rng, d), options.reference_norm);
        let taste = direction(&mut rng, d);
        let second = direction(&mut rng, d);
        let across = plus(&second, -dot(&second, &taste), &taste);
        // In one dimension there is no second direction: the other taste is the opposite one, half as strong.
        let size = norm(&across).max(1e-12);
        let across = scaled(across, (1.0 - TASTES * TASTES).sqrt() / size);
        let other = plus(&scaled(taste.clone(), TASTES), if d > 1 { 1.0 } else { 0.0 }, &across);
        let mut unlabelled = Pairs { dimension: d, x: Vec::new(), masses: Vec::new() };
        for _ in 0..options.prompts {
            let psi: Vec<Vec<f64>> = (0..options.answers).map(|_| direction(&mut rng, d)).collect();
            let mut chance: Vec<f64> = psi.iter().map(|psi| dot(&reference, psi).exp()).collect();
            let total: f64 = chance.iter().sum();
            chance.iter_mut().for_each(|c| *c /= total);
            // Two answers independently, given that they differ.
            let differ = 1.0 - dot(&chance, &chance);
            for a in 0..options.answers {
                for b in a + 1..options.answers {
                    unlabelled.x.extend(plus(&psi[a], -1.0, &psi[b]));
                    unlabelled.masses.push(2.0 * chance[a] * chance[b] / differ / options.prompts as f64);
                }
            }
        }
        World {
            truth: plus(&reference, options.signal, &taste),
            other: plus(&reference, options.signal, &other),
            reference,
            beta: options.beta,
            unlabelled,
        }
    }

    /// The parameters of the population that is a share `alpha` of the second: the mixture of the two rewards.
    pub fn shifted(&self, alpha: f64) -> Vec<f64> {
        plus(&self.truth.iter().map(|t| (1.0 - alpha) * t).collect::<Vec<_>>(), alpha, &self.other)
    }

    /// The labelled population of the taste `theta`: two atoms for each pair, one a label.
    pub fn population(&self, theta: &[f64]) -> Pairs {
        let w = plus(theta, -1.0, &self.reference);
        let mut out = Pairs { dimension: w.len(), x: Vec::new(), masses: Vec::new() };
        for (x, mass) in self.unlabelled.atoms() {
            let wins = sigmoid(self.beta * dot(&w, x));
            out.x.extend(x);
            out.x.extend(x.iter().map(|x| -x));
            out.masses.extend([mass * wins, mass * (1.0 - wins)]);
        }
        out
    }
}

/// Draws n labelled pairs of a population at a time.
#[derive(Clone, Debug)]
pub struct Sampler {
    population: Pairs,
    /// Alias method: cell i is atom i below the threshold (of 2^32) and its alias above.
    thresholds: Vec<u32>,
    aliases: Vec<u32>,
}

impl Sampler {
    /// A sampler of the atoms in proportion to their masses.
    pub fn new(population: Pairs) -> Sampler {
        let m = population.masses.len();
        let mut share: Vec<f64> = population.masses.iter().map(|p| p * m as f64).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..m).partition(|&i| share[i] < 1.0);
        let (mut thresholds, mut aliases) = (vec![u32::MAX; m], (0..m as u32).collect::<Vec<u32>>());
        while let (Some(s), Some(&l)) = (small.pop(), large.last()) {
            thresholds[s] = (share[s] * 4294967296.0) as u32;
            aliases[s] = l as u32;
            share[l] -= 1.0 - share[s];
            if share[l] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        Sampler { population, thresholds, aliases }
    }

    /// `n` pairs, as the atoms that were drawn with their shares. The same seed and stream give the same pairs.
    pub fn draw(&self, n: usize, seed: u64, stream: u64) -> Pairs {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(FIRST_SAMPLE + stream);
        let m = self.thresholds.len() as u64;
        let mut counts = vec![0u32; m as usize];
        for _ in 0..n {
            let bits = rng.next_u64();
            let cell = (((bits >> 32) * m) >> 32) as usize;
            let below = (bits as u32) < self.thresholds[cell];
            counts[if below { cell } else { self.aliases[cell] as usize }] += 1;
        }
        let d = self.population.dimension;
        let mut out = Pairs { dimension: d, x: Vec::new(), masses: Vec::new() };
        for ((x, _), &count) in self.population.atoms().zip(&counts).filter(|(_, count)| **count > 0) {
            out.x.extend(x);
            out.masses.push(f64::from(count) / n as f64);
        }
        out
    }
}

/// A uniform direction: Gaussian coordinates (Box and Muller), normalised.
fn direction(rng: &mut ChaCha8Rng, d: usize) -> Vec<f64> {
    // In (0, 1): the middle of one of 2^53 cells.
    let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / 9007199254740992.0;
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let v: Vec<f64> = (0..d).map(|_| normal()).collect();
    let length = norm(&v);
    v.iter().map(|v| v / length).collect()
}
