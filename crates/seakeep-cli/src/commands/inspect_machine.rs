//! `seakeep inspect machine`: the ceilings that a run's speed is compared with.

use std::time::Duration;

use clap::{ArgMatches, Command};
use seakeep::Result;
use seakeep::ceiling::{self, Precision, instruction_set};

use crate::config::Settings;
use crate::{args, output};

/// How long each ceiling is looked for: long enough for a processor to reach its clock, short enough to wait for.
const BUDGET: Duration = Duration::from_secs(2);

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "machine",
        "Measure what this machine can do at best: products and memory bandwidth (takes 6 seconds)",
        "seakeep inspect machine",
    );
    args::keyed(command, &["num_threads"]).arg_required_else_help(false)
}

/// Measures and prints.
pub fn run(matches: &ArgMatches) -> Result<()> {
    super::set_threads(&Settings::read(matches)?)?;
    let (reading, updating) = ceiling::bandwidth(BUDGET);
    let giga = |rate: f64, unit: &str| format!("{:.1} G{unit}/s", rate / 1e9);
    let rows = [
        ("threads", rayon::current_num_threads().to_string()),
        ("instructions", instruction_set().0.to_string()),
        ("float32 product", giga(ceiling::product(Precision::F32, BUDGET), "FLOP")),
        (
            "bfloat16 product",
            giga(ceiling::product(Precision::Bf16, BUDGET), "FLOP")
                + if instruction_set().1 { "" } else { "  (this processor multiplies it in float32)" },
        ),
        ("memory, reading", giga(reading, "B")),
        ("memory, updating", giga(updating, "B") + "  (two buffers read, one written)"),
    ];
    output::print(&rows.map(|(name, value)| format!("{name:<18} {value}\n")).concat())
}
