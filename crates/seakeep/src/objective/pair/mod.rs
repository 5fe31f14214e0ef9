//! Pair losses: from a pair's log-probabilities to one number and its derivatives. One file each, written as a formula
//! of `Jet`s; the names are TRL's `loss_type`s where TRL has them.

mod aot;
mod apo;
mod bco;
mod cpo;
mod discopop;
mod divergence;
mod exo;
mod hinge;
mod ipo;
mod kto;
mod loss;
mod nca;
mod orpo;
mod rebel;
mod robust;
mod sample;
mod sft;
mod sigmoid;
mod simpo;
mod softmax;
mod sppo;

pub use divergence::Divergence;
pub use loss::Loss;
pub(super) use sample::{Branch, Sample};

use super::jet::Jet;
use super::{Context, Scored};

/// The loss of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossType {
    /// DPO; with label smoothing conservative DPO.
    Sigmoid,
    /// DPO of log-probabilities averaged over tokens.
    SigmoidNorm,
    /// SLiC-HF, RSO.
    Hinge,
    /// IPO.
    Ipo {
        /// Whether log-probabilities are averaged over tokens (TRL) or summed (the paper's formula).
        length_normalize: bool,
    },
    /// EXO.
    ExoPair,
    /// NCA.
    NcaPair,
    /// Robust DPO: unbiased under label noise.
    Robust,
    /// BCO on pairs, without the shift.
    BcoPair,
    /// SPPO with hard labels.
    SppoHard,
    /// Distributional alignment by optimal transport.
    Aot,
    /// The same for chosen and rejected completions that do not belong together.
    AotUnpaired,
    /// APO: chosen up, rejected down.
    ApoZero,
    /// APO: both down, the rejected more.
    ApoDown,
    /// DiscoPOP.
    Discopop {
        /// Temperature of the mixing.
        tau: f64,
    },
    /// The negative log-likelihood of the chosen completion.
    Sft,
    /// The negative log-likelihood of texts that stand alone (supervised fine-tuning).
    Nll,
    /// SimPO (no reference).
    Simpo {
        /// Target margin.
        gamma: f64,
    },
    /// CPO (no reference).
    Cpo {
        /// Weight of the negative log-likelihood.
        alpha: f64,
    },
    /// ORPO (no reference).
    Orpo,
    /// KTO, of labelled completions.
    Kto(kto::Weights),
    /// APO-zero of labelled completions.
    ApoZeroUnpaired(kto::Weights),
    /// One chosen completion against any number of rejected ones.
    Softmax,
    /// Regression of the margin on a difference of rewards.
    Rebel,
}

pub use kto::Weights as KtoWeights;

impl LossType {
    /// The name of its key.
    pub fn name(self) -> &'static str {
        match self {
            LossType::Sigmoid => "sigmoid",
            LossType::SigmoidNorm => "sigmoid_norm",
            LossType::Hinge => "hinge",
            LossType::Ipo { .. } => "ipo",
            LossType::ExoPair => "exo_pair",
            LossType::NcaPair => "nca_pair",
            LossType::Robust => "robust",
            LossType::BcoPair => "bco_pair",
            LossType::SppoHard => "sppo_hard",
            LossType::Aot => "aot",
            LossType::AotUnpaired => "aot_unpaired",
            LossType::ApoZero => "apo_zero",
            LossType::ApoDown => "apo_down",
            LossType::Discopop { .. } => "discopop",
            LossType::Sft => "sft",
            LossType::Nll => "nll",
            LossType::Simpo { .. } => "simpo",
            LossType::Cpo { .. } => "cpo",
            LossType::Orpo => "orpo",
            LossType::Kto(_) => "kto",
            LossType::ApoZeroUnpaired(_) => "apo_zero_unpaired",
            LossType::Softmax => "softmax",
            LossType::Rebel => "rebel",
        }
    }

    /// Whether it compares the policy with a reference.
    pub fn needs_reference(self) -> bool {
        use LossType::{Cpo, Nll, Orpo, Sft, Simpo};
        !matches!(self, Sft | Nll | Simpo { .. } | Cpo { .. } | Orpo)
    }

    /// Whether it averages log-probabilities over tokens.
    pub fn averages(self) -> bool {
        use LossType::{Ipo, Nll, Orpo, Sft, SigmoidNorm, Simpo};
        matches!(self, SigmoidNorm | Ipo { length_normalize: true } | Simpo { .. } | Orpo | Sft | Nll)
    }

    /// Whether it is of labelled completions rather than of pairs.
    pub fn is_unpaired(self) -> bool {
        matches!(self, LossType::Kto(_) | LossType::ApoZeroUnpaired(_))
    }

    /// Whether it is of texts that stand alone, which are learnt and not compared.
    pub fn is_of_texts(self) -> bool {
        self == LossType::Nll
    }

    /// Whether the loss of a pair depends on other pairs.
    pub fn couples_pairs(self) -> bool {
        self.is_unpaired() || matches!(self, LossType::Aot | LossType::AotUnpaired)
    }

    /// Whether it says what a pair would cost if its label were the other: with two completions, if they changed places.
    pub fn can_be_flipped(self) -> bool {
        !matches!(self, LossType::AotUnpaired | LossType::Softmax | LossType::Nll)
    }

    /// Whether it is built on the difference of two scores, for which TRL allows other divergences than the
    /// reverse KL.
    fn takes_divergence(self) -> bool {
        use LossType::{Discopop, ExoPair, Hinge, Ipo, Robust, Sft, Sigmoid, SigmoidNorm};
        matches!(self, Sigmoid | SigmoidNorm | Hinge | Ipo { .. } | ExoPair | Robust | Discopop { .. } | Sft)
    }
}

/// The loss of a pair: one or a weighted mix, and what its parts share.
#[derive(Clone, Debug, PartialEq)]
pub struct PairLoss {
    /// Losses and their weights.
    pub terms: Vec<(LossType, f64)>,
    /// Strength of the tie to the reference; reward per nat.
    pub beta: f64,
    /// Share of labels taken to be wrong, in `[0, 0.5)`.
    pub label_smoothing: f64,
    /// The divergence that ties the policy to the reference.
    pub f_divergence: Divergence,
    /// LD-DPO: how much the tokens beyond the shorter completion's length count; `None`: fully.
    pub ld_alpha: Option<f64>,
}

impl PairLoss {
    /// One loss and nothing else.
    pub fn of(loss: LossType, beta: f64) -> Self {
        let f_divergence = Divergence::ReverseKl;
        PairLoss { terms: vec![(loss, 1.0)], beta, label_smoothing: 0.0, f_divergence, ld_alpha: None }
    }

    /// DPO's.
    pub fn dpo(beta: f64) -> Self {
        Self::of(LossType::Sigmoid, beta)
    }

    /// Whether any term has a property.
    pub fn any(&self, of: impl Fn(LossType) -> bool) -> bool {
        self.terms.iter().any(|&(loss, _)| of(loss))
    }

    /// Why these settings cannot be, if so.
    pub fn objection(&self) -> Option<String> {
        let with =
            |of: fn(LossType) -> bool| self.terms.iter().map(|t| t.0).find(|&l| of(l)).map(LossType::name);
        let not_divergent = with(|l| !l.takes_divergence());
        match self {
            _ if self.terms.is_empty() => Some("no `loss_type`".into()),
            _ if self.any(LossType::is_unpaired) && self.terms.len() > 1 => Some(
                "kto and apo_zero_unpaired are of labelled completions, the other losses of pairs: they cannot be mixed"
                    .into(),
            ),
            _ if self.any(LossType::is_of_texts) && self.terms.len() > 1 => {
                Some("nll is of texts that stand alone, the other losses of preferences: they cannot be mixed".into())
            }
            PairLoss { f_divergence, .. } if *f_divergence != Divergence::ReverseKl && not_divergent.is_some() => {
                Some(format!(
                    "loss_type {} has no form for another divergence than reverse_kl; f_divergence_type goes with sigmoid, \
                     sigmoid_norm, hinge, ipo, exo_pair, robust, discopop and sft",
                    not_divergent.unwrap_or_default()
                ))
            }
            PairLoss { label_smoothing, .. } if *label_smoothing == 0.0 && self.any(|l| l == LossType::ExoPair) => {
                Some("loss_type exo_pair needs label_smoothing above 0 (its paper: 1e-3): it takes the logarithm".into())
            }
            PairLoss { ld_alpha: Some(_), .. } => with(|l| {
                l.is_unpaired() || matches!(l, LossType::Sft | LossType::Nll | LossType::Orpo | LossType::Simpo { .. } | LossType::Cpo { .. })
            })
            .map(|name| format!("ld_alpha weights the tokens of a comparison by sums; loss_type {name} is another thing")),
            _ => None,
        }
    }

    /// The losses of all pairs; with `flipped`, as if the label of each were the other.
    pub(super) fn losses(&self, scored: &Scored, context: &Context, flipped: bool) -> Vec<Loss> {
        let mut total: Vec<Loss> = scored.facts.iter().map(|f| Loss::zero(f.roles.len())).collect();
        for &(loss, weight) in &self.terms {
            for (sum, one) in total.iter_mut().zip(self.term(loss, scored, context, flipped)) {
                sum.add_scaled(&one, weight);
            }
        }
        total
    }

    fn term(&self, loss: LossType, scored: &Scored, context: &Context, flipped: bool) -> Vec<Loss> {
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let each = |of: &dyn Fn(&Sample) -> Jet| -> Vec<Loss> {
            let one = |i| {
                let sample = Sample::new(scored, i, self.f_divergence, context, flipped);
                Loss::of(of(&sample), scored.facts[i].roles.len())
            };
            (0..scored.policy.len()).map(one).collect()
        };
        match loss {
            LossType::Sigmoid => each(&|s| sigmoid::loss(beta, smoothing, s)),
            LossType::SigmoidNorm => each(&|s| sigmoid::per_token(beta, s)),
            LossType::Hinge => each(&|s| hinge::loss(beta, s)),
            LossType::Ipo { length_normalize } => each(&|s| ipo::loss(beta, length_normalize, s)),
            LossType::ExoPair => each(&|s| exo::loss(beta, smoothing, s)),
            LossType::NcaPair => each(&|s| nca::loss(beta, s)),
            LossType::Robust => each(&|s| robust::loss(beta, smoothing, s)),
            LossType::BcoPair => each(&|s| bco::loss(beta, s)),
            LossType::SppoHard => each(&|s| sppo::loss(beta, s)),
            LossType::Aot => aot::paired(beta, smoothing, scored, flipped),
            LossType::AotUnpaired => aot::unpaired(beta, smoothing, scored),
            LossType::ApoZero => each(&|s| apo::zero(beta, s)),
            LossType::ApoDown => each(&|s| apo::down(beta, s)),
            LossType::Discopop { tau } => each(&|s| discopop::loss(beta, tau, s)),
            LossType::Sft | LossType::Nll => each(&|s| sft::loss(s)),
            LossType::Simpo { gamma } => each(&|s| simpo::loss(beta, gamma, smoothing, s)),
            LossType::Cpo { alpha } => each(&|s| cpo::loss(beta, alpha, smoothing, s)),
            LossType::Orpo => each(&|s| orpo::loss(beta, s)),
            LossType::Kto(weights) => {
                let kl = kto::reference_point(scored);
                each(&|s| kto::loss(beta, weights, kl, s))
            }
            LossType::ApoZeroUnpaired(weights) => each(&|s| kto::apo_zero(beta, weights, s)),
            LossType::Softmax => softmax::losses(beta, scored),
            LossType::Rebel => each(&|s| rebel::loss(beta, s)),
        }
    }

    /// What the terms have to log besides rewards.
    pub(super) fn metrics(&self, scored: &Scored, context: &Context) -> Vec<(String, f64)> {
        let mut out = Vec::new();
        let samples =
            || (0..scored.policy.len()).map(|i| Sample::new(scored, i, self.f_divergence, context, false));
        let mean = |of: &dyn Fn(&Sample) -> f64| samples().map(|s| of(&s)).sum::<f64>() / context.n as f64;
        if self.any(|l| matches!(l, LossType::Orpo)) {
            out.push(("nll_loss".to_string(), mean(&|s| sft::whole(s).value)));
            out.push(("log_odds_ratio".to_string(), mean(&|s| orpo::log_odds(s).log_sigmoid().value)));
            out.push(("log_odds_chosen".to_string(), mean(&|s| orpo::log_odds(s).value)));
        } else if self.any(|l| matches!(l, LossType::Sft | LossType::Cpo { .. })) {
            out.push(("nll_loss".to_string(), mean(&|s| sft::loss(s).value)));
        }
        if self.any(|l| matches!(l, LossType::Kto(_))) {
            out.push(("kl".to_string(), kto::reference_point(scored)));
        }
        out
    }

    /// The implicit reward of a branch with log-probability `logp` under the policy, `reference` under the reference:
    /// `beta (log pi - log ref)`; of losses without a reference `beta log pi`, of SimPO and ORPO the mean over tokens (TRL).
    pub fn reward(&self, logp: f64, reference: f64, predicted: usize) -> f64 {
        // A rule may have asked for the reference nevertheless.
        let reference = if self.any(LossType::needs_reference) { reference } else { 0.0 };
        self.beta * (self.reported_logp(logp, predicted) - reference)
    }

    /// A log-probability as TRL logs it: a sum over tokens; SimPO's and ORPO's trainers report the mean.
    pub fn reported_logp(&self, logp: f64, predicted: usize) -> f64 {
        // Also where a likelihood is mixed in, as TRL's CPO-SimPO does.
        let of = |l: LossType| matches!(l, LossType::Simpo { .. } | LossType::Orpo);
        let averages = self.any(of) && self.terms.iter().all(|t| of(t.0) || t.0 == LossType::Sft);
        if averages { logp / predicted.max(1) as f64 } else { logp }
    }
}
