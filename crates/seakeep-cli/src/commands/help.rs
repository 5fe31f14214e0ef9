//! `seakeep help`: commands, and topics that no command owns.

use clap::{Arg, ArgMatches, Command};
use seakeep::{Error, Result};

use crate::args;
use crate::config::foreign::{FOREIGN, Fate};
use crate::config::keys::{KEYS, RULES};
use crate::config::methods::{GUIDE, LOSSES, METHODS};
use crate::output;

/// A metric: name, unit, meaning.
pub const METRICS: &[(&str, &str, &str)] = &[
    (
        "loss",
        "nats",
        "What is minimised, penalty included (eval_loss leaves WDPO's penalty out). ln 2 = 0.6931 (DPO) where policy and \
         reference are equal. sft: the mean negative log-likelihood of a token.",
    ),
    (
        "rewards/chosen",
        "nats x beta",
        "Mean of beta (log pi - log ref) of the chosen completions; without a reference (cpo) of beta log pi, for simpo and \
         orpo averaged over tokens. Negative is common: both branches may become less likely while the margin grows.",
    ),
    ("rewards/rejected", "nats x beta", "The same of the rejected completions."),
    (
        "rewards/accuracies",
        "share",
        "Pairs whose chosen reward is above the rejected one. Pair by pair, not of means.",
    ),
    ("rewards/margins", "nats x beta", "Mean of chosen reward - rejected reward."),
    (
        "logps/chosen",
        "nats",
        "Mean log-probability of the chosen completions, each summed over its tokens (simpo, orpo: averaged; ld_alpha: its weights).",
    ),
    ("logps/rejected", "nats", "The same of the rejected completions."),
    ("logits/chosen", "logits", "Mean logit over the vocabulary and the tokens of chosen completions."),
    ("logits/rejected", "logits", "The same of rejected completions."),
    ("entropy", "nats", "Mean entropy of the next-token distribution at completion tokens."),
    (
        "mean_token_accuracy",
        "share",
        "Tokens of chosen completions (sft: of what is learnt) that the policy held likeliest.",
    ),
    (
        "nll_loss",
        "nats per token",
        "Mean negative log-likelihood of the chosen completions' tokens (sft, cpo); of prompts and chosen completions (orpo).",
    ),
    ("log_odds_ratio", "nats", "orpo: mean log sigmoid of the log-odds of chosen over rejected."),
    ("log_odds_chosen", "nats", "orpo: mean log-odds of chosen over rejected."),
    ("kl", "nats", "kto: the reference point, the policy's drift on mismatched completions, at least 0."),
    (
        "weights/effective_sample_size",
        "pairs",
        "How many pairs carry the weight of the rule: the batch size when all weigh the same, 1 when one pair has it all.",
    ),
    ("weights/max", "share", "The largest weight of a pair."),
    ("weights/min", "share", "The smallest weight of a pair."),
    ("kldpo/tau", "nats", "kldpo: the temperature in force: given, or solved for where kldpo_rho is given."),
    ("kldpo/dual", "nats", "kldpo: the worst-case loss over the ball, where kldpo_rho is given."),
    ("chi2/eta", "nats", "chi2: the loss below which pairs have no weight."),
    ("chi2/dual", "nats", "chi2: the worst-case loss over the ball."),
    ("cvar/value_at_risk", "nats", "cvar: the smallest loss that still has weight."),
    ("winsor/flips", "pairs", "winsor: how many labels are turned, partial ones added up."),
    ("winsor/flip_max", "share", "winsor: how far the most suspicious label is turned."),
    ("winsor/capped", "pairs", "winsor: how many losses are capped, partial ones added up."),
    ("winsor/cap", "nats", "winsor: the quantile to which losses are drawn."),
    ("winsor/budget", "share", "winsor: the budget of the caps in force."),
    (
        "dpo_pro/soft_label",
        "share",
        "dpo_pro: mean probability that the chosen completion is the better one.",
    ),
    ("dpo_pro/label_shift", "share", "dpo_pro: how far the worst case moves that probability, mean."),
    (
        "causal/mmd",
        "",
        "causal: squared discrepancy of the rewards between environments, mean over pairs of them.",
    ),
    ("causal/bandwidth", "reward", "causal: width of the kernel in force."),
    ("causal/environment_E", "share", "causal: share of the batch in environment E."),
    ("group/NAME/loss", "nats", "group: mean loss of the group's pairs, over the steps that had any."),
    (
        "group/NAME/weight",
        "share",
        "group: the weight of the group in force; evaluated, of the groups that the rows have.",
    ),
    (
        "wdpo/penalty",
        "nats",
        "WDPO's part of the loss: rho times the root mean squared gradient (official: no root).",
    ),
    (
        "wdpo/input_gradient_norm",
        "nats per unit of embedding",
        "Root mean square over pairs of the loss's gradient in the input embeddings.",
    ),
    (
        "grad_norm",
        "nats per unit of weight",
        "Length of the gradient over all parameters that are trained, before it is clipped.",
    ),
    ("learning_rate", "", "The rate of this step."),
    (
        "epoch",
        "passes",
        "Passes over the training rows so far, counted by micro-batches as transformers does.",
    ),
    (
        "num_tokens",
        "tokens",
        "Tokens of all rows so far, a prompt counted with each of its completions, as TRL counts.",
    ),
    ("step", "steps", "Optimizer steps so far."),
];

/// The command line.
pub fn command() -> Command {
    Command::new("help")
        .about("Explain a command or a topic: objectives, metrics, keys")
        .after_help("Example:\n  seakeep help objectives\n  seakeep help inspect data")
        .arg(
            Arg::new("topic")
                .num_args(0..)
                .help("A command (`train`, `inspect data`, ...), `objectives`, `metrics` or `keys`"),
        )
}

/// Prints the help that was asked for.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let topic = args::texts(matches, "topic");
    let words: Vec<&str> = topic.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        ["objectives" | "methods"] => objectives(),
        ["metrics"] => metrics(),
        ["keys"] => keys(),
        path => {
            let mut command = super::cli();
            for word in path {
                command = command.find_subcommand(word).cloned().ok_or_else(|| unknown(word))?;
            }
            let name = std::iter::once("seakeep").chain(words).collect::<Vec<_>>().join(" ");
            format!("{}\n", command.bin_name(name).render_long_help())
        }
    };
    output::print(&text)
}

fn unknown(word: &str) -> Error {
    let cli = super::cli();
    let commands: Vec<&str> = cli.get_subcommands().map(Command::get_name).collect();
    Error::Usage(format!(
        "no command or topic `{word}`; commands: {}; topics: objectives, metrics, keys",
        commands.join(", ")
    ))
}

fn metrics() -> String {
    let mut text = "Metrics, in metrics.jsonl, TensorBoard and the output of `seakeep eval`. In training, loss and\nthose below it are \
                    means over the optimizer steps since the last line; grad_norm and what follows\nare of the line's own \
                    step. With `eval_` in front: of all held-out pairs as one batch.\n\n"
        .to_string();
    for (name, unit, meaning) in METRICS {
        let unit = if unit.is_empty() { String::new() } else { format!(" [{unit}]") };
        text += &format!("{name}{unit}\n{}\n", wrapped(meaning));
    }
    text += &format!(
        "\nBeside the bar and at the end of a run, but in no file: they depend on what else the machine does\n{}\n",
        wrapped(SPEED)
    );
    text
}

const SPEED: &str = "tokens/s: tokens, counted as num_tokens is, over the seconds that the steps took. mfu (model FLOPs utilization): \
    the floating-point operations that the steps need, over these seconds, as a share of the best f32 matrix product that this \
    machine was seen to do at the start of the run. Needed are forward, backward and tangent passes with every prompt computed \
    once, nothing padded and only predicted tokens projected onto the vocabulary; what is computed a second time to save memory \
    does not count. `seakeep train --dry_run` says how many they are.";

fn objectives() -> String {
    let mut text = format!(
        "Methods, for --method NAME.\n{}\n\n",
        wrapped(
            "Each is a preset of keys. Knobs that are given besides win, and what a method leaves open can be chosen: --method \
             wdpo --rule kldpo --loss_type hinge is the Wasserstein penalty on hinge losses under the KL worst case. A rule \
             sees the whole batch of an optimizer step, however it is split into passes."
        )
    );
    text += &format!("Which one?\n{}\n\n", wrapped(GUIDE));
    for m in METHODS {
        let sets: Vec<String> = m.sets.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        text += &format!("{}\n{}\n", m.name, wrapped(&format!("{}.", m.does)));
        text += &format!("{}\n", wrapped(&format!("Guards against: {}.", m.guards)));
        if !sets.is_empty() {
            text += &format!("{}\n", wrapped(&format!("Sets: {}.", sets.join(", "))));
        }
        text += &format!("{}\n", wrapped(&format!("Knobs: {}. Cost: {}.", m.knobs, m.cost)));
        text += &format!("{}\n\n", wrapped(&format!("Paper: {}.", m.paper)));
    }
    text += "Losses of a pair, for --loss_type (several, separated by commas, are mixed)\n";
    for (name, meaning) in LOSSES {
        text += &format!("{}\n", wrapped(&format!("{name}: {meaning}.")));
    }
    text.push('\n');
    text += &format!("Rules over the batch, for --rule\n{}\n", wrapped(&RULES.join(", ")));
    text
}

fn keys() -> String {
    let mut text =
        "Keys of the file that --config names, each also a flag. `seakeep help train` groups them.\n\n"
            .to_string();
    for key in KEYS {
        let default = key.default.map(|d| format!(" (default {d})")).unwrap_or_default();
        text += &format!("{} = {}{default}\n{}\n", key.name, key.kind.value_name(), wrapped(key.help));
    }
    text += "\nKeys of TRL and Hugging Face that have no effect here, and why. Where values are named, others are\nrefused.\n\n";
    for key in FOREIGN {
        let values = match key.fate {
            Fate::Nil => "any value".to_string(),
            Fate::Only([]) => "not accepted".to_string(),
            Fate::Only(values) => format!("only {}", values.join(", ")),
        };
        text += &format!("{} ({values})\n{}\n", key.name, wrapped(key.why));
    }
    text
}

/// Text in lines of at most 96 columns, indented.
fn wrapped(text: &str) -> String {
    let mut lines = vec!["   ".to_string()];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| line.len() + word.len() > 95) {
            lines.push("   ".to_string());
        }
        if let Some(line) = lines.last_mut() {
            *line += " ";
            *line += word;
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use seakeep::logps::{BranchLogps, Facts, Labels, Role};
    use seakeep::objective::rule::causal::Prior;
    use seakeep::objective::rule::{Causal, DpoPro, Group, Kldpo, Winsor};
    use seakeep::objective::{Context, KtoWeights, LossType, Objective, PairLoss, Rule, Scored};

    use super::*;

    /// Whether a metric is in the table, whose E and NAME stand for anything.
    fn is_explained(name: &str) -> bool {
        let generic = match name.split('/').collect::<Vec<_>>()[..] {
            ["group", _, what] => format!("group/NAME/{what}"),
            ["causal", what] if what.starts_with("environment_") => "causal/environment_E".to_string(),
            _ => name.to_string(),
        };
        METRICS.iter().any(|(known, ..)| *known == generic)
    }

    #[test]
    fn every_metric_of_the_objectives_is_explained() {
        let facts = |roles: [Role; 3]| {
            let labels = Labels { soft: Some(0.8), group: Some("a".into()), rewards: Some([1.0, 0.0]) };
            Facts {
                roles: roles.to_vec(),
                tokens: vec![3; 3],
                predicted: vec![3; 3],
                labels,
                environments: vec![0.5; 2],
            }
        };
        let logps = BranchLogps(vec![vec![-1.0, -2.0, -3.0], vec![-2.0, -1.5, -3.5]]);
        let weights = KtoWeights { desirable: 1.0, undesirable: 1.0 };
        let causal = Causal { lambda: 1.0, prior: Prior::Uniform, bandwidth: None };
        let rules = [
            Rule::Mean,
            Rule::Kldpo(Kldpo::Rho(0.1)),
            Rule::Drdpo { beta: 1.0 },
            Rule::Winsor(Winsor::default()),
            Rule::DpoPro(DpoPro { rho: 0.1, default_q: 1.0 }),
            Rule::Causal(causal),
            Rule::Chi2 { rho: 0.1 },
            Rule::Cvar { alpha: 0.5 },
            Rule::Tv { rho: 0.1 },
            Rule::Group(Group { step_size: 0.1 }),
        ];
        let pairs = rules.map(|rule| (LossType::Sigmoid, rule));
        let losses =
            [LossType::Orpo, LossType::Kto(weights), LossType::Cpo { alpha: 1.0 }].map(|l| (l, Rule::Mean));
        for (loss, rule) in pairs.into_iter().chain(losses) {
            let third = if loss == LossType::Orpo { Role::Prompt } else { Role::Mismatched };
            let facts = [
                facts([Role::Chosen, Role::Rejected, third]),
                facts([Role::Rejected, Role::Rejected, third]),
            ];
            let scored = Scored { policy: &logps, reference: &logps, facts: &facts };
            let objective = Objective { pair: PairLoss::of(loss, 0.1), rule, penalty: None };
            for (name, _) in objective.evaluate(&scored, &Context::at_the_end(&facts)).metrics {
                assert!(is_explained(&name), "{name}");
            }
        }
    }

    #[test]
    fn help_is_narrow_enough_to_read() {
        for text in [objectives(), metrics(), keys()] {
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        }
    }
}
