//! `--dry_run` of `train` and `sft`: what the run would cost. Nothing is written.

use clap::{Arg, ArgAction, ArgMatches};
use seakeep::Result;
use seakeep::ceiling::Precision;
use seakeep::model::Keep;
use seakeep::train::cost::{Cost, SHARES};
use seakeep::train::{TrainOptions, estimate};

use super::grouped;
use crate::{output, progress};

/// The flag.
pub fn flag() -> Arg {
    Arg::new("dry_run").long("dry_run").alias("dry-run").action(ArgAction::SetTrue).help(
        "Counts rows, tokens, steps, floating-point operations, memory and time of the run, and what to change if memory does \
         not do; trains and writes nothing",
    )
}

/// Whether it was given.
pub fn is_asked(matches: &ArgMatches) -> bool {
    matches.get_flag("dry_run")
}

/// Counts and prints.
pub fn run(options: TrainOptions) -> Result<()> {
    let cost = estimate(&options, &mut *progress::on_stderr())?;
    output::print(&told(&cost, &options))
}

fn told(cost: &Cost, options: &TrainOptions) -> String {
    let epochs = cost.steps as f64 / cost.steps_per_epoch as f64;
    let batch = options.per_device_train_batch_size * options.gradient_accumulation_steps;
    let left_out =
        if cost.left_out > 0 { format!(", {} more left out", cost.left_out) } else { String::new() };
    let tokens = cost.tokens;
    let mut lines = vec![
        ("rows", format!("{}{left_out}", grouped(cost.rows))),
        ("steps", format!("{} of {batch} rows, {epochs:.2} epochs", grouped(cost.steps))),
        (
            "tokens",
            format!(
                "{} of prompts, {} of completions, {} predicted; {} positions are computed in an epoch",
                grouped(tokens.prompts),
                grouped(tokens.completions),
                grouped(tokens.predicted),
                grouped(tokens.computed)
            ),
        ),
        (
            "a step",
            format!(
                "{}: forward {}, backward {}{}; attention {} of it",
                flop(cost.step.total()),
                flop(cost.step.forward),
                flop(cost.step.backward),
                match cost.step.tangent > 0.0 {
                    true => format!(", tangents {}", flop(cost.step.tangent)),
                    false => String::new(),
                },
                flop(cost.step.attention)
            ),
        ),
    ];
    let once = [
        ("all steps", cost.run.total()),
        ("again", cost.again),
        ("reference", cost.reference),
        ("evaluation", cost.evaluation),
    ];
    for (name, operations) in once.into_iter().filter(|(_, operations)| *operations > 0.0) {
        let why = match name {
            "again" => {
                ": what is computed more than once, since activations are not kept or pairs of a step wait for each other"
            }
            "reference" => ": its log-probabilities once, if none are known from before",
            _ => "",
        };
        lines.push((name, format!("{}{why}", flop(operations))));
    }
    let [least, most] = cost.seconds();
    lines.push((
        "time",
        format!(
            "{} to {}, at {:.0} to {:.0}% of the {:.0} GFLOP/s that this machine's best {} product reaches",
            time(least),
            time(most),
            100.0 * SHARES[0],
            100.0 * SHARES[1],
            cost.ceiling / 1e9,
            if options.numbers.precision == Precision::Bf16 { "bfloat16" } else { "float32" }
        ),
    ));
    let there = cost.available.map(|bytes| format!(" of the {} there are", size(bytes as usize)));
    lines.push((
        "memory",
        format!("{} at the fullest moment{}", size(cost.peak()), there.unwrap_or_default()),
    ));
    lines.extend(cost.memory.iter().map(|(what, bytes)| ("", format!("{:>9}  {what}", size(*bytes)))));
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    if cost.available.is_some_and(|bytes| cost.peak() as u64 > bytes) {
        text += "\nThis does not fit.";
        advice(options).iter().for_each(|line| text += &format!(" {line}"));
        text.push('\n');
    }
    text
}

/// What makes a run smaller, the first that costs least.
fn advice(options: &TrainOptions) -> Vec<String> {
    let mut advice = Vec::new();
    let (size, times) = (options.per_device_train_batch_size, options.gradient_accumulation_steps);
    if size > 1 {
        advice.push(format!(
            "The same run with fewer rows at a time: --per_device_train_batch_size 1 --gradient_accumulation_steps {}.",
            size * times
        ));
    }
    if !options.gradient_checkpointing {
        advice.push(
            "The same run, a third slower, without keeping activations: --gradient_checkpointing.".into(),
        );
    }
    if options.tokenize.max_length.is_none_or(|length| length > 512) {
        advice.push("Shorter texts: --max_length 512.".into());
    }
    if options.lora.is_none() {
        advice.push("Adapters have small gradients and moments: --use_peft.".into());
    } else if options.numbers.keep == Keep::F32 {
        advice.push(
            "Weights that are not trained may be small: --load_in_8bit, --load_in_4bit or --dtype bfloat16."
                .into(),
        );
    }
    advice.push("A smaller model.".into());
    advice
}

fn flop(operations: f64) -> String {
    match operations {
        x if x >= 1e15 => format!("{:.2} PFLOP", x * 1e-15),
        x if x >= 1e12 => format!("{:.2} TFLOP", x * 1e-12),
        x if x >= 1e9 => format!("{:.1} GFLOP", x * 1e-9),
        x => format!("{:.3} MFLOP", x * 1e-6),
    }
}

fn size(bytes: usize) -> String {
    match bytes as f64 {
        x if x >= 1e9 => format!("{:.2} GB", x * 1e-9),
        x => format!("{:.0} MB", x * 1e-6),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 172_800.0 => format!("{:.1} days", s / 86_400.0),
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.0} min", s / 60.0),
        s if s >= 10.0 => format!("{s:.0} s"),
        s => format!("{s:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            [158.4e9, 2.5e12, 7e15, 3e6].map(flop),
            ["158.4 GFLOP", "2.50 TFLOP", "7.00 PFLOP", "3.000 MFLOP"]
        );
        assert_eq!([5e6, 2.25e9].map(|x| size(x as usize)), ["5 MB", "2.25 GB"]);
        assert_eq!(
            [3.21, 45.0, 600.0, 9000.0, 2e5].map(time),
            ["3.2 s", "45 s", "10 min", "2.5 h", "2.3 days"]
        );
    }
}
