//! `seakeep help`: commands, and topics that no command owns.

use clap::{Arg, ArgMatches, Command};
use seakeep::{Error, Result};

use crate::args;
use crate::config::foreign::{FOREIGN, Fate};
use crate::config::keys::KEYS;
use crate::output;

/// A metric: name, unit, meaning.
pub const METRICS: &[(&str, &str, &str)] = &[
    (
        "loss",
        "nats",
        "What is minimised, penalty included. ln 2 = 0.6931 (DPO) where policy and reference are equal.",
    ),
    (
        "rewards/chosen",
        "nats x beta",
        "Mean of beta (log pi - log ref) of the chosen completions. Negative is common: both branches may become less \
         likely while the margin grows.",
    ),
    ("rewards/rejected", "nats x beta", "The same of the rejected completions."),
    (
        "rewards/accuracies",
        "share",
        "Pairs whose chosen reward is above the rejected one. Pair by pair, not of means.",
    ),
    ("rewards/margins", "nats x beta", "Mean of chosen reward - rejected reward."),
    ("logps/chosen", "nats", "Mean log-probability of the chosen completions, each summed over its tokens."),
    ("logps/rejected", "nats", "The same of the rejected completions."),
    ("logits/chosen", "logits", "Mean logit over the vocabulary and the tokens of chosen completions."),
    ("logits/rejected", "logits", "The same of rejected completions."),
    ("entropy", "nats", "Mean entropy of the next-token distribution at completion tokens."),
    ("mean_token_accuracy", "share", "Tokens of chosen completions that the policy held likeliest."),
    ("kldpo/tau", "nats", "KLDPO's temperature: given, or solved for where kldpo_rho is given."),
    (
        "kldpo/effective_sample_size",
        "pairs",
        "How many pairs carry the weight: the batch size when all weigh the same, 1 when one pair has it all.",
    ),
    ("kldpo/weight_max", "share", "The largest weight of a pair."),
    ("kldpo/dual", "nats", "The worst-case loss over the ball, where kldpo_rho is given."),
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
        "Length of the gradient over all parameters, before it is clipped.",
    ),
    ("learning_rate", "", "The rate of this step."),
    ("epoch", "passes", "Passes over the training rows so far."),
    (
        "num_tokens",
        "tokens",
        "Tokens of all pairs so far, a prompt counted with each of its two completions, as TRL counts.",
    ),
    ("step", "steps", "Optimizer steps so far."),
];

/// The command line.
pub fn command() -> Command {
    Command::new("help")
        .about("Explain a command or a topic: metrics, keys")
        .after_help("Example:\n  seakeep help metrics\n  seakeep help inspect data")
        .arg(
            Arg::new("topic")
                .num_args(0..)
                .help("A command (`train`, `inspect data`, ...), `metrics` or `keys`"),
        )
}

/// Prints the help that was asked for.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let topic = args::texts(matches, "topic");
    let words: Vec<&str> = topic.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
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
        "no command or topic `{word}`; commands: {}; topics: metrics, keys",
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
    use seakeep::logps::BranchLogps;
    use seakeep::objective::kldpo::Kldpo;
    use seakeep::objective::{Objective, Rule, dpo::Dpo};

    use super::*;

    #[test]
    fn every_metric_of_the_objectives_is_explained() {
        let logps = BranchLogps { chosen: vec![-1.0, -2.0], rejected: vec![-2.0, -1.5] };
        let pair = Dpo { beta: 0.1, label_smoothing: 0.0 };
        for rule in [Rule::Mean, Rule::Kldpo(Kldpo::Tau(1.0)), Rule::Kldpo(Kldpo::Rho(0.1))] {
            for (name, _) in (Objective { pair, rule, penalty: None }).evaluate(&logps, &logps, 2).metrics {
                assert!(METRICS.iter().any(|(known, ..)| *known == name), "{name}");
            }
        }
    }

    #[test]
    fn help_is_narrow_enough_to_read() {
        for text in [metrics(), keys()] {
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        }
    }
}
