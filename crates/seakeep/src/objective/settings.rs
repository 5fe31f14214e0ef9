//! An objective's settings under the names of their keys, for records.

use serde_json::{Value, json};

use super::rule::causal::Prior;
use super::rule::{Causal, DpoPro, Kldpo, Winsor};
use super::wdpo::{Form, PromptGradient};
use super::{Divergence, LossType, Objective, Rule};

impl Objective {
    /// The settings under the names of their keys.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        let pair = &self.pair;
        let mut out = vec![("beta", json!(pair.beta)), ("label_smoothing", json!(pair.label_smoothing))];
        out.push(("loss_type", json!(pair.terms.iter().map(|t| t.0.name()).collect::<Vec<_>>())));
        out.push(("loss_weights", json!(pair.terms.iter().map(|t| t.1).collect::<Vec<_>>())));
        out.extend(pair.terms.iter().flat_map(|t| loss_knobs(t.0)));
        match pair.f_divergence {
            Divergence::ReverseKl => {}
            Divergence::ForwardKl => out.push(("f_divergence_type", json!("forward_kl"))),
            Divergence::JsDivergence => out.push(("f_divergence_type", json!("js_divergence"))),
            Divergence::AlphaDivergence(a) => {
                out.push(("f_divergence_type", json!("alpha_divergence")));
                out.push(("f_alpha_divergence_coef", json!(a)));
            }
        }
        out.extend(pair.ld_alpha.map(|alpha| ("ld_alpha", json!(alpha))));
        out.push(("rule", json!(self.rule.name())));
        out.extend(rule_knobs(self.rule));
        if let Some(penalty) = self.penalty {
            let form = match penalty.form {
                Form::Paper => "paper",
                Form::Official => "official",
            };
            let prompt_gradient = match penalty.prompt_gradient {
                PromptGradient::Shared => "shared",
                PromptGradient::Separate => "separate",
            };
            out.extend([
                ("wdpo_rho", json!(penalty.rho)),
                ("wdpo_form", json!(form)),
                ("wdpo_prompt_gradient", json!(prompt_gradient)),
            ]);
        }
        out
    }
}

fn loss_knobs(loss: LossType) -> Vec<(&'static str, Value)> {
    match loss {
        LossType::Ipo { length_normalize } => vec![("ipo_length_normalize", json!(length_normalize))],
        LossType::Discopop { tau } => vec![("discopop_tau", json!(tau))],
        LossType::Simpo { gamma } => vec![("simpo_gamma", json!(gamma))],
        LossType::Cpo { alpha } => vec![("cpo_alpha", json!(alpha))],
        LossType::Kto(w) | LossType::ApoZeroUnpaired(w) => {
            vec![("desirable_weight", json!(w.desirable)), ("undesirable_weight", json!(w.undesirable))]
        }
        _ => Vec::new(),
    }
}

fn rule_knobs(rule: Rule) -> Vec<(&'static str, Value)> {
    match rule {
        Rule::Mean => Vec::new(),
        Rule::Kldpo(Kldpo::Tau(tau)) => vec![("kldpo_tau", json!(tau))],
        Rule::Kldpo(Kldpo::Rho(rho)) => vec![("kldpo_rho", json!(rho))],
        Rule::Kldpo(Kldpo::Official(tau)) => {
            vec![("kldpo_tau", json!(tau)), ("kldpo_form", json!("official"))]
        }
        Rule::Drdpo { beta } => vec![("drdpo_beta", json!(beta))],
        Rule::Winsor(w) => {
            let Winsor { warmup, tau, flip_budget, quantile, budget_min, budget_max, budget_warmup } = w;
            vec![
                ("winsor_warmup", json!(warmup)),
                ("winsor_tau", json!(tau)),
                ("winsor_flip_budget", json!(flip_budget)),
                ("winsor_quantile", json!(quantile)),
                ("winsor_budget_min", json!(budget_min)),
                ("winsor_budget_max", json!(budget_max)),
                ("winsor_budget_warmup", json!(budget_warmup)),
            ]
        }
        Rule::DpoPro(DpoPro { rho, default_q }) => {
            vec![("dpo_pro_rho", json!(rho)), ("dpo_pro_default_label", json!(default_q))]
        }
        Rule::Causal(Causal { lambda, prior, bandwidth }) => {
            let prior = match prior {
                Prior::Uniform => "uniform",
                Prior::Empirical => "empirical",
            };
            let mut out = vec![("causal_lambda", json!(lambda)), ("causal_prior", json!(prior))];
            out.extend(bandwidth.map(|b| ("causal_bandwidth", json!(b))));
            out
        }
        Rule::Chi2 { rho } => vec![("chi2_rho", json!(rho))],
        Rule::Cvar { alpha } => vec![("cvar_alpha", json!(alpha))],
        Rule::Tv { rho } => vec![("tv_rho", json!(rho))],
        Rule::Group(group) => vec![("group_step_size", json!(group.step_size))],
    }
}
