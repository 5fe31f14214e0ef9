//! The methods that `--method` names: each a preset of keys, with what a person needs to choose among them.
//! `seakeep help objectives` and the table in the README are made of this.

/// A method.
pub struct Method {
    /// Name, with dashes.
    pub name: &'static str,
    /// The keys it sets, as flags would spell the values.
    pub sets: &'static [(&'static str, &'static str)],
    /// What it guards against.
    pub guards: &'static str,
    /// What it does.
    pub does: &'static str,
    /// Its knobs.
    pub knobs: &'static str,
    /// What it costs, in time over DPO and in data.
    pub cost: &'static str,
    /// Paper, and the settings it was run with where they differ from the preset.
    pub paper: &'static str,
}

impl Method {
    /// What it sets a key to.
    pub fn sets(&self, key: &str) -> Option<&'static str> {
        self.sets.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

const NOTHING: &str = "as DPO";
const TWICE: &str =
    "one more forward pass with gradient accumulation (weights need all losses first); none without";

/// Every method; the first is the default.
#[rustfmt::skip]
pub const METHODS: &[Method] = &[
    Method { name: "dpo", sets: &[],
        guards: "nothing: the baseline",
        does: "the mean of -log sigmoid(beta h)",
        knobs: "beta, label_smoothing, loss_type", cost: NOTHING,
        paper: "Rafailov et al., arXiv 2305.18290" },
    Method { name: "kldpo", sets: &[("rule", "kldpo")],
        guards: "population shift: other people, topics or times than the data's, by reweighting",
        does: "the worst case over all reweightings within a Kullback-Leibler ball; leans on the pairs of large loss (the \
               opposite of drdpo)",
        knobs: "kldpo_tau or kldpo_rho, kldpo_form", cost: TWICE,
        paper: "Xu et al., arXiv 2502.01930; run at beta 0.01 (learning rate 5e-7, batch 128), Emotion at beta 0.1 with tau \
                0.5-1" },
    Method { name: "wdpo", sets: &[("wdpo_rho", "0.01")],
        guards: "population shift, also to texts that are not in the data",
        does: "the first-order worst case over a Wasserstein ball: a penalty on the gradient of the loss in the input \
               embeddings; goes with any rule that weights pairs",
        knobs: "wdpo_rho, wdpo_form, wdpo_prompt_gradient", cost: "about twice the arithmetic of a DPO step, 2.3 times with gradient accumulation and the root",
        paper: "Xu et al., arXiv 2502.01930; run at beta 0.01 with the official form" },
    Method { name: "drdpo", sets: &[("rule", "drdpo")],
        guards: "label noise: flipped pairs",
        does: "trusts the pairs of low loss, the soft best case (the opposite of kldpo)",
        knobs: "drdpo_beta", cost: TWICE,
        paper: "Wu et al., arXiv 2407.07880" },
    Method { name: "winsor", sets: &[("rule", "winsor")],
        guards: "label noise: flipped pairs, and outliers",
        does: "turns the labels that look most flipped, in part, then caps the largest losses, in part",
        knobs: "winsor_warmup, winsor_tau, winsor_flip_budget, winsor_quantile, winsor_budget_*", cost: TWICE,
        paper: "wDPO, arXiv 2603.07211 (winsorised; not the Wasserstein one)" },
    Method { name: "dpo-pro", sets: &[("rule", "dpo_pro"), ("label_smoothing", "0.1")],
        guards: "unsure labels: annotators who disagree",
        does: "the worst case over how sure each label is: a penalty on confidence where votes were split",
        knobs: "dpo_pro_rho, soft_label_column (or label_smoothing for all rows)",
        cost: "as DPO; wants a column of probabilities or votes",
        paper: "arXiv 2510.23590" },
    Method { name: "causaldpo", sets: &[("rule", "causal")],
        guards: "confounded environments: preferences that go with the kind of prompt",
        does: "clusters the prompts, balances the clusters, and draws the rewards of clusters together",
        knobs: "causal_environments, causal_lambda, causal_prior, causal_bandwidth",
        cost: "as kldpo; prompts are clustered once",
        paper: "arXiv 2603.22335" },
    Method { name: "chi2", sets: &[("rule", "chi2")],
        guards: "population shift by reweighting, gentler than kldpo on single outliers",
        does: "the worst case over a chi-square ball",
        knobs: "chi2_rho", cost: TWICE,
        paper: "Namkoong and Duchi, arXiv 1610.02581; Hashimoto et al., arXiv 1806.08010" },
    Method { name: "cvar", sets: &[("rule", "cvar")],
        guards: "a minority of the data that is badly served, whoever it is",
        does: "the mean of the worst share of the pairs",
        knobs: "cvar_alpha", cost: TWICE,
        paper: "Rockafellar and Uryasev 2000; Levy et al., arXiv 2010.05893" },
    Method { name: "tv", sets: &[("rule", "tv")],
        guards: "a share of the population replaced by the worst case",
        does: "the worst case over a total-variation ball: mass moves from the best pairs to the worst",
        knobs: "tv_rho", cost: TWICE,
        paper: "Rahimian and Mehrotra, arXiv 1908.05659" },
    Method { name: "group", sets: &[("rule", "group")],
        guards: "the worst of named groups",
        does: "group-robust DPO: multiplicative weights on groups, followed from step to step",
        knobs: "group_column, group_step_size", cost: "as kldpo; needs a column of groups",
        paper: "GRPO, Ramesh et al., arXiv 2405.20304" },
    Method { name: "rebel", sets: &[("loss_type", "rebel")],
        guards: "nothing: uses how much better, not only which",
        does: "regresses the margin beta h on the difference of rewards",
        knobs: "beta (1/eta), chosen_reward_column, rejected_reward_column", cost: "as DPO; needs two columns of rewards",
        paper: "Gao et al., arXiv 2404.16767" },
    Method { name: "w-rebel", sets: &[("loss_type", "rebel"), ("wdpo_rho", "0.01")],
        guards: "as wdpo", does: "rebel with the Wasserstein penalty",
        knobs: "those of rebel and wdpo", cost: "as wdpo; needs two columns of rewards",
        paper: "Sahu and Wells, arXiv 2509.19104" },
    Method { name: "kl-rebel", sets: &[("loss_type", "rebel"), ("rule", "kldpo")],
        guards: "as kldpo", does: "rebel under the KL worst case",
        knobs: "those of rebel and kldpo", cost: "as kldpo; needs two columns of rewards",
        paper: "Sahu and Wells, arXiv 2509.19104" },
    Method { name: "chi2-rebel", sets: &[("loss_type", "rebel"), ("rule", "chi2")],
        guards: "as chi2", does: "rebel under the chi-square worst case",
        knobs: "those of rebel and chi2", cost: "as kldpo; needs two columns of rewards",
        paper: "Sahu and Wells, arXiv 2509.19104" },
    Method { name: "cdpo", sets: &[("label_smoothing", "0.1")],
        guards: "label noise at a known rate, symmetric", does: "DPO with smoothed labels",
        knobs: "label_smoothing", cost: NOTHING, paper: "Mitchell 2023" },
    Method { name: "rdpo", sets: &[("loss_type", "robust"), ("label_smoothing", "0.1")],
        guards: "label noise at a known rate", does: "a loss that is unbiased for the clean one",
        knobs: "label_smoothing", cost: NOTHING, paper: "Chowdhury et al., arXiv 2403.00409" },
    Method { name: "ipo", sets: &[("loss_type", "ipo")],
        guards: "overconfidence on deterministic preferences", does: "draws the margin to 1/(2 beta)",
        knobs: "beta, ipo_length_normalize", cost: NOTHING, paper: "Azar et al., arXiv 2310.12036" },
    Method { name: "aot", sets: &[("loss_type", "aot")],
        guards: "margins that are good on average only",
        does: "the distribution of margins dominates the reference's, quantile by quantile",
        knobs: "beta, label_smoothing", cost: TWICE, paper: "Melnyk et al., arXiv 2406.05882" },
    Method { name: "sdpo", sets: &[("loss_type", "softmax")],
        guards: "nothing: several rejected completions at once", does: "the chosen one against all rejected, as a softmax",
        knobs: "beta", cost: "grows with the completions; `rejected` may be a list", paper: "Chen et al., arXiv 2406.09215" },
    Method { name: "kto", sets: &[("loss_type", "kto")],
        guards: "nothing: for completions that are only called good or bad",
        does: "moves each completion against a reference point",
        knobs: "beta, desirable_weight, undesirable_weight",
        cost: "a second, mismatched completion for each; takes `completion` and `label`, or pairs",
        paper: "Ethayarajh et al., arXiv 2402.01306" },
    Method { name: "simpo", sets: &[("loss_type", "simpo"), ("beta", "2.0"), ("simpo_gamma", "1.0")],
        guards: "nothing; length bias", does: "no reference: mean log-probabilities with a target margin",
        knobs: "beta, simpo_gamma", cost: "less than DPO: no reference", paper: "Meng et al., arXiv 2405.14734" },
    Method { name: "cpo", sets: &[("loss_type", "cpo")],
        guards: "nothing", does: "no reference: the margin of log-probabilities, and the likelihood of the chosen",
        knobs: "beta, cpo_alpha", cost: "less than DPO: no reference", paper: "Xu et al., arXiv 2401.08417" },
    Method { name: "orpo", sets: &[("loss_type", "orpo")],
        guards: "nothing", does: "no reference: supervised fine-tuning with the odds ratio of the pair",
        knobs: "beta", cost: "as DPO, prompts are learnt too; no reference", paper: "Hong et al., arXiv 2403.07691" },
];

/// How to choose, in a paragraph.
pub const GUIDE: &str = "If you fear that some labels are wrong, take a method that leans away from large losses (drdpo, winsor, \
    rdpo). If you fear that some people are rare in your data and common later, take one that leans on them (kldpo, chi2, cvar; \
    group where you know them). The two are opposites: a wrong label and a rare opinion both show as a large loss, and no rule \
    can tell them apart. wdpo guards against texts that move, dpo-pro against labels that were never sure, causaldpo against \
    preferences that go with the kind of prompt. None is sure to help: try dpo at several betas first, and compare at equal distance \
    from the reference.";

/// The losses of a pair, in a line each.
#[rustfmt::skip]
pub const LOSSES: &[(&str, &str)] = &[
    ("sigmoid", "DPO; with label_smoothing conservative DPO"),
    ("hinge", "SLiC, RSO: no more push beyond a margin of 1/beta"),
    ("ipo", "draws the margin to 1/(2 beta) instead of ever further (averaged over tokens; ipo_length_normalize)"),
    ("exo_pair", "EXO: reverse KL to the smoothed preference; needs label_smoothing"),
    ("nca_pair", "NCA: raises the chosen one absolutely, not only against the rejected"),
    ("robust", "unbiased where a share label_smoothing of the labels is flipped"),
    ("bco_pair", "BCO: each completion by itself good or bad"),
    ("sppo_hard", "SPPO: draws log-ratios to +-1/(2 beta)"),
    ("aot", "the margins' distribution dominates the reference's, quantile by quantile"),
    ("aot_unpaired", "the chosen completions' distribution dominates the rejected ones'"),
    ("apo_zero", "APO: chosen up, rejected down; for chosen texts better than the model's"),
    ("apo_down", "APO: both down, the rejected more; for chosen texts worse than the model's"),
    ("discopop", "DiscoPOP: a mixture of logistic and exponential found by search"),
    ("sft", "likelihood of the chosen completion; mostly as a part of a mix"),
    ("sigmoid_norm", "DPO of log-ratios averaged over tokens: against length bias"),
    ("simpo", "no reference: mean log-probabilities and a target margin"),
    ("cpo", "no reference: margin of log-probabilities, and likelihood (TRL's CPOTrainer with loss_type sigmoid)"),
    ("orpo", "no reference: likelihood of prompt and chosen completion, and the odds ratio"),
    ("kto", "completions called good or bad, against a reference point"),
    ("apo_zero_unpaired", "the same without the reference point"),
    ("softmax", "one chosen completion against any number of rejected ones"),
    ("rebel", "the margin regressed on a difference of rewards"),
];

/// The method of this name.
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// All names.
pub fn names() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    /// The table as the README has it.
    fn markdown() -> String {
        let mut text = "| `--method` | guards against | what it does | knobs | cost | paper |\n|---|---|---|---|---|---|\n".to_string();
        for m in METHODS {
            let sets: Vec<String> = m.sets.iter().map(|(key, value)| format!("`{key} = {value}`")).collect();
            let sets = if sets.is_empty() { String::new() } else { format!(" ({})", sets.join(", ")) };
            let cells = [m.guards, &format!("{}{sets}", m.does), m.knobs, m.cost, m.paper].join(" | ");
            text += &format!("| `{}` | {cells} |\n", m.name);
        }
        text
    }

    #[test]
    fn presets_set_keys_to_what_the_keys_accept() {
        for method in METHODS {
            for (name, value) in method.sets {
                let key = keys::find(name).unwrap_or_else(|| panic!("{}: {name}", method.name));
                assert!(key.kind.check(&key.kind.of_flag(value)).is_some(), "{}: {name}", method.name);
            }
        }
    }

    #[test]
    fn every_loss_has_its_line() {
        let names: Vec<&str> = LOSSES.iter().map(|l| l.0).collect();
        let expected = keys::find("loss_type").unwrap().kind.expectation();
        assert_eq!(expected, format!("one or several of: {}", names.join(", ")));
    }

    #[test]
    fn the_readme_has_the_table() {
        let readme =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
        assert!(readme.contains(&markdown()), "README.md lacks this table:\n{}", markdown());
    }
}
