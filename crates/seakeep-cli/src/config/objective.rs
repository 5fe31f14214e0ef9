//! From settings to an objective: which knob belongs to what, and what does not go together.

use seakeep::data::LabelColumns;
use seakeep::objective::rule::causal::Prior;
use seakeep::objective::rule::{Causal, DpoPro, Group, Kldpo, Winsor};
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{Divergence, KtoWeights, LossType, Objective, PairLoss, Rule};
use seakeep::{Error, Result};

use super::Settings;
use super::keys::{KEYS, RULES};
use super::methods::METHODS;
use super::plan::{number, switch, usage};

/// The objective, and the name of the method for the record.
///
/// # Errors
/// [`Error::Usage`] for a knob of another rule, knobs that exclude each other, or parts that do not go together.
pub fn objective(settings: &Settings) -> Result<(String, Objective)> {
    check_knobs(settings)?;
    let rule = rule(settings)?;
    let objective = Objective { pair: pair(settings, rule)?, rule, penalty: penalty(settings) };
    objective.check().map_err(|e| match e {
        // Say where the user chose it, if there is a place.
        Error::Usage(why) if settings.is_given("method") => {
            Error::Usage(format!("method {}: {why}", settings.method().name))
        }
        other => other,
    })?;
    let name = settings.method().name;
    // `dpo` with a rule or loss of another kind is no longer what the word means.
    let other = |key: &str| settings.is_given(key) && !settings.is_default(key);
    let composed = name == "dpo" && (other("rule") || other("loss_type") || objective.penalty.is_some());
    Ok((if composed { "custom" } else { name }.to_string(), objective))
}

/// The columns that the objective reads.
pub fn label_columns(settings: &Settings, objective: &Objective) -> LabelColumns {
    let rewards =
        ["chosen_reward_column", "rejected_reward_column"].map(|key| settings.text(key).unwrap_or_default());
    LabelColumns {
        soft: settings.text("soft_label_column").filter(|_| matches!(objective.rule, Rule::DpoPro(_))),
        group: settings.text("group_column").filter(|_| matches!(objective.rule, Rule::Group(_))),
        rewards: objective.pair.any(|l| l == LossType::Rebel).then_some(rewards),
    }
}

/// How many environments are to be inferred.
pub fn environments(settings: &Settings, objective: &Objective) -> Option<usize> {
    matches!(objective.rule, Rule::Causal(_)).then(|| settings.count("causal_environments").unwrap_or(1))
}

/// Which method has the penalty, and how it goes with others.
const WDPO: &str = "wdpo, whose penalty goes with any loss_type and rule (--method wdpo --rule kldpo)";

/// Whether the settings ask for the input-gradient penalty: by the method, or beside a rule or loss of their own.
fn is_penalised(settings: &Settings) -> bool {
    let composed = settings.is_given("rule") || settings.is_given("loss_type");
    settings.method().sets("wdpo_rho").is_some() || (settings.is_given("wdpo_rho") && composed)
}

/// Knobs that were given but have no effect are mistakes, and so is a method whose loss or rule is replaced.
fn check_knobs(settings: &Settings) -> Result<()> {
    let (method, rule) = (settings.method(), settings.required("rule")?);
    for key in ["rule", "loss_type"] {
        let given = settings.text(key).unwrap_or_else(|| settings.words(key).join(","));
        if let Some(set) = method.sets(key).filter(|set| settings.is_given(key) && *set != given) {
            return usage(format!(
                "{} is {given}, but method {} is {key} {set}: leave one of the two out",
                settings.place(key),
                method.name
            ));
        }
    }
    let in_force =
        if settings.is_given("rule") { format!("rule {rule}") } else { format!("method {}", method.name) };
    for key in KEYS.iter().filter(|key| settings.is_given(key.name)) {
        let owner =
            RULES.iter().find(|rule| key.name.strip_prefix(**rule).is_some_and(|rest| rest.starts_with('_')));
        let owner = if key.name == "soft_label_column" { Some(&"dpo_pro") } else { owner };
        let (belongs, choose) = match owner {
            Some(owner) => (*owner == rule, preset_of(owner)),
            None if key.name.starts_with("wdpo_") => (is_penalised(settings), WDPO),
            None => (true, ""),
        };
        if !belongs {
            return usage(format!(
                "{} has no meaning with {in_force}; leave it out or choose method {choose}",
                settings.place(key.name)
            ));
        }
        // A moved configuration may spell out the default of a knob that it does not use.
        if let Some(owners) = losses_of(key.name)
            && !settings.words("loss_type").iter().any(|name| owners.contains(&name.as_str()))
            && !settings.is_default(key.name)
        {
            return usage(format!(
                "{} has no meaning with loss_type {}; leave it out or use loss_type {}",
                settings.place(key.name),
                settings.words("loss_type").join(","),
                owners.join(" or ")
            ));
        }
    }
    let alpha = settings.text("f_divergence_type").as_deref() == Some("alpha_divergence");
    if !alpha
        && settings.is_given("f_alpha_divergence_coef")
        && !settings.is_default("f_alpha_divergence_coef")
    {
        return usage(format!(
            "{} has no meaning without f_divergence_type alpha_divergence",
            settings.place("f_alpha_divergence_coef")
        ));
    }
    Ok(())
}

/// The losses that a knob belongs to; `None`: it is of no loss in particular.
fn losses_of(knob: &str) -> Option<&'static [&'static str]> {
    match knob {
        "discopop_tau" => Some(&["discopop"]),
        "simpo_gamma" => Some(&["simpo"]),
        "cpo_alpha" => Some(&["cpo", "simpo"]),
        "ipo_length_normalize" => Some(&["ipo"]),
        "desirable_weight" | "undesirable_weight" => Some(&["kto", "apo_zero_unpaired"]),
        "chosen_reward_column" | "rejected_reward_column" => Some(&["rebel"]),
        _ => None,
    }
}

/// The method that stands for a rule: the first that sets it.
fn preset_of(rule: &str) -> &'static str {
    METHODS.iter().find(|m| m.sets("rule") == Some(rule)).map_or("", |m| m.name)
}

/// The losses that smooth labels.
const SMOOTHED: [&str; 7] = ["sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "simpo", "cpo"];

fn pair(settings: &Settings, rule: Rule) -> Result<PairLoss> {
    let names = settings.words("loss_type");
    let weights = settings.numbers("loss_weights").unwrap_or_else(|| vec![1.0; names.len()]);
    if weights.len() != names.len() {
        return usage(format!(
            "{} has {} numbers for {} losses in loss_type; give one for each",
            settings.place("loss_weights"),
            weights.len(),
            names.len()
        ));
    }
    let mut terms: Vec<(LossType, f64)> =
        names.iter().map(|name| loss_type(settings, name)).zip(weights).collect();
    let simpo = names.iter().any(|name| name == "simpo");
    for (key, counts) in [("rpo_alpha", true), ("cpo_alpha", simpo)] {
        if counts && settings.is_given(key) {
            terms.push((LossType::Sft, number(settings, key)));
        }
    }
    let f_divergence = match settings.text("f_divergence_type").as_deref() {
        Some("forward_kl") => Divergence::ForwardKl,
        Some("js_divergence") => Divergence::JsDivergence,
        Some("alpha_divergence") => Divergence::AlphaDivergence(number(settings, "f_alpha_divergence_coef")),
        _ => Divergence::ReverseKl,
    };
    let smoothing = number(settings, "label_smoothing");
    let label_smoothing = match rule {
        // DPO-PRO has its own use for how unsure labels are, but for losses that are made of it.
        Rule::DpoPro(_) if !names.iter().any(|n| ["robust", "exo_pair"].contains(&n.as_str())) => 0.0,
        _ => smoothing,
    };
    if label_smoothing > 0.0 && !names.iter().any(|name| SMOOTHED.contains(&name.as_str())) {
        return usage(format!(
            "label_smoothing is {label_smoothing}, which loss_type {} takes no notice of; it belongs to {}",
            names.join(","),
            SMOOTHED.join(", ")
        ));
    }
    Ok(PairLoss {
        terms,
        beta: number(settings, "beta"),
        label_smoothing,
        f_divergence,
        ld_alpha: settings.number("ld_alpha"),
    })
}

fn loss_type(settings: &Settings, name: &str) -> LossType {
    let weights = || KtoWeights {
        desirable: number(settings, "desirable_weight"),
        undesirable: number(settings, "undesirable_weight"),
    };
    match name {
        "sigmoid" => LossType::Sigmoid,
        "sigmoid_norm" => LossType::SigmoidNorm,
        "hinge" => LossType::Hinge,
        "ipo" => LossType::Ipo { length_normalize: switch(settings, "ipo_length_normalize") },
        "exo_pair" => LossType::ExoPair,
        "nca_pair" => LossType::NcaPair,
        "robust" => LossType::Robust,
        "bco_pair" => LossType::BcoPair,
        "sppo_hard" => LossType::SppoHard,
        "aot" => LossType::Aot,
        "aot_unpaired" => LossType::AotUnpaired,
        "apo_zero" => LossType::ApoZero,
        "apo_down" => LossType::ApoDown,
        "discopop" => LossType::Discopop { tau: number(settings, "discopop_tau") },
        "sft" => LossType::Sft,
        "simpo" => LossType::Simpo { gamma: number(settings, "simpo_gamma") },
        "cpo" => LossType::Cpo { alpha: number(settings, "cpo_alpha") },
        "orpo" => LossType::Orpo,
        "kto" => LossType::Kto(weights()),
        "apo_zero_unpaired" => LossType::ApoZeroUnpaired(weights()),
        "softmax" => LossType::Softmax,
        "rebel" => LossType::Rebel,
        other => unreachable!("`{other}` is not among the choices of loss_type"),
    }
}

fn rule(settings: &Settings) -> Result<Rule> {
    let of = |key| number(settings, key);
    Ok(match settings.required("rule")?.as_str() {
        "mean" => Rule::Mean,
        "kldpo" => Rule::Kldpo(kldpo(settings)?),
        "drdpo" => Rule::Drdpo { beta: of("drdpo_beta") },
        "winsor" if of("winsor_budget_min") > of("winsor_budget_max") => {
            return usage(format!(
                "winsor_budget_min is {}, above winsor_budget_max, {}",
                of("winsor_budget_min"),
                of("winsor_budget_max")
            ));
        }
        "winsor" => Rule::Winsor(Winsor {
            warmup: of("winsor_warmup"),
            tau: of("winsor_tau"),
            flip_budget: of("winsor_flip_budget"),
            quantile: of("winsor_quantile"),
            budget_min: of("winsor_budget_min"),
            budget_max: of("winsor_budget_max"),
            budget_warmup: of("winsor_budget_warmup"),
        }),
        "dpo_pro" => Rule::DpoPro(DpoPro { rho: of("dpo_pro_rho"), default_q: 1.0 - of("label_smoothing") }),
        "causal" => Rule::Causal(Causal {
            lambda: of("causal_lambda"),
            prior: match settings.text("causal_prior").as_deref() {
                Some("empirical") => Prior::Empirical,
                _ => Prior::Uniform,
            },
            bandwidth: settings.number("causal_bandwidth"),
        }),
        "chi2" => Rule::Chi2 { rho: of("chi2_rho") },
        "cvar" => Rule::Cvar { alpha: of("cvar_alpha") },
        "tv" => Rule::Tv { rho: of("tv_rho") },
        "group" => Rule::Group(Group { step_size: of("group_step_size") }),
        other => unreachable!("`{other}` is not among the choices of rule"),
    })
}

fn kldpo(settings: &Settings) -> Result<Kldpo> {
    let official = settings.text("kldpo_form").as_deref() == Some("official");
    match settings.number("kldpo_rho") {
        Some(_) if settings.is_given("kldpo_tau") => usage(format!(
            "{} and {} are both given: the radius decides the temperature, so give one of them",
            settings.place("kldpo_tau"),
            settings.place("kldpo_rho")
        )),
        Some(_) if official => usage(format!(
            "{} official has a temperature and no radius: give kldpo_tau in place of {}",
            settings.place("kldpo_form"),
            settings.place("kldpo_rho")
        )),
        Some(rho) => Ok(Kldpo::Rho(rho)),
        None => {
            // The paper's pairs of the two: (0.01, 0.05) for language models, (0.1, 0.5) for Emotion.
            let tau = settings.number("kldpo_tau").unwrap_or(5.0 * number(settings, "beta"));
            Ok(if official { Kldpo::Official(tau) } else { Kldpo::Tau(tau) })
        }
    }
}

fn penalty(settings: &Settings) -> Option<Penalty> {
    let rho = settings.number("wdpo_rho").filter(|_| is_penalised(settings))?;
    let form = match settings.text("wdpo_form").as_deref() {
        Some("official") => Form::Official,
        _ => Form::Paper,
    };
    let prompt_gradient = match settings.text("wdpo_prompt_gradient").as_deref() {
        Some("separate") => PromptGradient::Separate,
        Some(_) => PromptGradient::Shared,
        // The authors' code has two sequences; the paper one sample.
        None if form == Form::Official => PromptGradient::Separate,
        None => PromptGradient::Shared,
    };
    Some(Penalty { rho, form, prompt_gradient })
}
