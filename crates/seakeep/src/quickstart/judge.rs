//! Judging a policy in the preference world: true rewards of its own samples, preference accuracy, divergence.

use std::collections::BTreeMap;

use crate::Result;
use crate::batch::{Batch, Sharing};
use crate::eval_record::{Answer, Curve, CurvePoint, PolicyEval, Sample};
use crate::generate::{GenerateOptions, generate_ids};
use crate::logps::BranchLogps;
use crate::model::Model;
use crate::objective::log_sigmoid;
use crate::progress::Silent;
use crate::world::{EOS, Mixture, Prompt, Split, World, WorldPair};

/// Samples for each test prompt.
const SAMPLES: usize = 4;
/// Held-out pairs.
const PAIRS: usize = 512;
/// Texts computed at a time.
const BATCH: usize = 128;
/// Prompts whose samples are shown side by side.
const SHOWN: usize = 6;

/// The world, its test prompts and pairs, and the reference policy.
pub struct Judge<'a> {
    world: &'a World,
    reference: &'a Model,
    seed: u64,
    alphas: &'a [f64],
    prompts: Vec<Prompt>,
    /// Held-out pairs, for each mixture and alpha the same completions with the labels of that population.
    labelled: Vec<(Mixture, f64, Vec<WorldPair>)>,
    /// Log-probabilities under the reference of the first set of pairs.
    reference_logps: BranchLogps,
}

/// What the judge found.
pub struct Judged {
    /// Curves over alpha.
    pub eval: PolicyEval,
    /// Divergence from the reference on the policy's own samples, nats per token.
    pub kl_per_token: f64,
    /// The first sample of each shown prompt, as token ids.
    pub texts: Vec<Vec<u32>>,
}

impl<'a> Judge<'a> {
    pub fn new(world: &'a World, reference: &'a Model, seed: u64, alphas: &'a [f64]) -> Result<Self> {
        let points = Mixture::ALL.into_iter().flat_map(|m| alphas.iter().map(move |&alpha| (m, alpha)));
        let labelled: Vec<_> =
            points.map(|(m, alpha)| (m, alpha, world.pairs(PAIRS, Split::Test, m, alpha, seed))).collect();
        let reference_logps = pair_logps(reference, &labelled[0].2);
        let prompts = world.prompts(Split::Test).to_vec();
        Ok(Judge { world, reference, seed, alphas, prompts, labelled, reference_logps })
    }

    /// Judges a policy; with `beta` also its implicit rewards.
    pub fn policy(&self, policy: &Model, beta: Option<f64>) -> Result<Judged> {
        let prompts: Vec<Vec<u32>> = self.prompts.iter().map(|&p| self.world.prompt_ids(p)).collect();
        let options = GenerateOptions {
            max_new_tokens: 40,
            do_sample: true,
            seed: self.seed,
            batch_size: BATCH,
            num_return_sequences: SAMPLES,
            ..GenerateOptions::default()
        };
        let samples = generate_ids(policy, &prompts, &options, &[EOS], &mut Silent)?;
        let rewards: Vec<(f64, f64)> = samples
            .iter()
            .enumerate()
            .map(|(i, s)| self.world.rewards(self.prompts[i / SAMPLES], s))
            .collect();
        let logps = beta.map(|_| pair_logps(policy, &self.labelled[0].2));
        let mut curves = Vec::new();
        for (m, mixture) in Mixture::ALL.into_iter().enumerate() {
            let points = self.alphas.iter().enumerate().map(|(a, &alpha)| {
                let (reward, reward_se) = mean_over_prompts(&rewards, |r1, r2| mixture.mix(alpha, r1, r2));
                let pairs = &self.labelled[m * self.alphas.len() + a].2;
                let judged =
                    logps.as_ref().zip(beta).map(|(logps, beta)| self.preferences(logps, beta, pairs));
                let (accuracy, loss) = judged.unzip();
                CurvePoint { alpha, reward, reward_se, accuracy, loss }
            });
            curves.push(Curve { mixture: mixture.name().into(), points: points.collect() });
        }
        let mean_length = samples.iter().map(Vec::len).sum::<usize>() as f64 / samples.len() as f64;
        Ok(Judged {
            eval: PolicyEval { curves, mean_length },
            kl_per_token: self.divergence(policy, &prompts, &samples),
            texts: samples.iter().step_by(SAMPLES).take(SHOWN).cloned().collect(),
        })
    }

    /// Accuracy and mean DPO loss on pairs that are those of the first set, some of them turned round.
    fn preferences(&self, logps: &BranchLogps, beta: f64, pairs: &[WorldPair]) -> (f64, f64) {
        let (mut right, mut loss) = (0, 0.0);
        for (i, (pair, first)) in pairs.iter().zip(&self.labelled[0].2).enumerate() {
            let [chosen, rejected] = [0, 1].map(|b| logps.0[i][b] - self.reference_logps.0[i][b]);
            let (w, l) =
                if pair.chosen_ids == first.chosen_ids { (chosen, rejected) } else { (rejected, chosen) };
            right += usize::from(w > l);
            loss -= log_sigmoid(beta * (w - l));
        }
        (right as f64 / pairs.len() as f64, loss / pairs.len() as f64)
    }

    /// `E[log policy - log reference]` over the policy's own samples, nats per sampled token.
    fn divergence(&self, policy: &Model, prompts: &[Vec<u32>], samples: &[Vec<u32>]) -> f64 {
        let (mut nats, mut tokens) = (0.0, 0);
        for (prompts, samples) in
            prompts.chunks(BATCH / SAMPLES).zip(samples.chunks(BATCH / SAMPLES * SAMPLES))
        {
            let mut batch = Batch::default();
            for (prompt, samples) in prompts.iter().zip(samples.chunks(SAMPLES)) {
                let branches: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
                batch.push(prompt, &branches, Sharing::Shared);
            }
            let sum = |model: &Model| model.predictions(&batch).iter().map(|p| p.logp as f64).sum::<f64>();
            nats += sum(policy) - sum(self.reference);
            tokens += batch.predictions.len();
        }
        nats / tokens as f64
    }

    /// The shown prompts, answered by the reference and by each policy.
    pub fn side_by_side(&self, reference: &[Vec<u32>], policies: &[(String, Vec<Vec<u32>>)]) -> Vec<Sample> {
        let answer = |label: &str, prompt: Prompt, ids: &[u32]| {
            let (r1, r2) = self.world.rewards(prompt, ids);
            let rewards = BTreeMap::from([("r1".to_string(), r1), ("r2".to_string(), r2)]);
            Answer { label: label.to_string(), text: self.world.decode(ids), rewards }
        };
        let shown = self.prompts.iter().take(reference.len()).enumerate();
        shown
            .map(|(i, &prompt)| {
                let mut answers = vec![answer("reference", prompt, &reference[i])];
                answers.extend(policies.iter().map(|(label, texts)| answer(label, prompt, &texts[i])));
                Sample { prompt: prompt.text(), answers }
            })
            .collect()
    }
}

/// Mean over samples, and its standard error over prompts.
fn mean_over_prompts(rewards: &[(f64, f64)], of: impl Fn(f64, f64) -> f64) -> (f64, f64) {
    let each: Vec<f64> = rewards
        .chunks(SAMPLES)
        .map(|samples| samples.iter().map(|&(r1, r2)| of(r1, r2)).sum::<f64>() / samples.len() as f64)
        .collect();
    let n = each.len() as f64;
    let mean = each.iter().sum::<f64>() / n;
    let variance = each.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

fn pair_logps(model: &Model, pairs: &[WorldPair]) -> BranchLogps {
    let mut branches = Vec::new();
    for pairs in pairs.chunks(BATCH) {
        let mut batch = Batch::default();
        for pair in pairs {
            batch.push(&pair.prompt_ids, &[&pair.chosen_ids, &pair.rejected_ids], Sharing::Shared);
        }
        branches.extend(batch.branch_sums(model.predictions(&batch).iter().map(|p| p.logp)));
    }
    BranchLogps::from_branches(&branches, pairs.iter().map(|_| 2))
}
