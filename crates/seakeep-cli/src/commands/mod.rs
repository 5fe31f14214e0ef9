//! The subcommands: each a `command()` for the command line and a `run()`.

mod dry_run;
mod eval;
mod eval_flags;
mod generate;
mod help;
mod init;
mod inspect;
mod inspect_checkpoint;
mod inspect_data;
mod inspect_machine;
mod inspect_model;
mod logps;
mod merge;
mod objective;
mod pairs;
mod prepare;
mod quickstart;
mod recommend;
mod recommend_prepare;
mod recommend_rank;
mod recommend_world;
mod report;
mod reward;
mod run;
mod sft;
mod simulate;
mod sweep;
mod sweep_results;
mod train;

use clap::{ArgMatches, Command};
use seakeep::{Error, Result};

use crate::config::Settings;
use crate::output;

/// The whole command line.
pub fn cli() -> Command {
    Command::new("seakeep")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Aligns language models so that they hold up when preferences shift")
        .after_help(
            "First steps:\n  seakeep quickstart                                see it work, without any data\n  \
             seakeep train --config recipes/hh-smollm2.toml    tune a model on preference pairs\n  \
             seakeep help train                                every flag, with its default\n  \
             seakeep help objectives                           which method for what\n  \
             seakeep help metrics                              what the numbers mean",
        )
        .max_term_width(110)
        .subcommand_required(true)
        .arg_required_else_help(true)
        // Ours knows topics besides commands.
        .disable_help_subcommand(true)
        .subcommands([
            quickstart::command(),
            train::command(),
            sft::command(),
            logps::command(),
            eval::command(),
            objective::command(),
            prepare::command(),
            pairs::command(),
            sweep::command(),
            run::command(),
            report::command(),
            simulate::command(),
            generate::command(),
            merge::command(),
            reward::command(),
            recommend::command(),
            inspect::command(),
            init::command(),
            help::command(),
        ])
}

/// Runs the subcommand that was asked for.
pub fn run(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("quickstart", matches)) => quickstart::run(matches),
        Some(("train", matches)) => train::run(matches),
        Some(("sft", matches)) => sft::run(matches),
        Some(("logps", matches)) => logps::run(matches),
        Some(("eval", matches)) => eval::run(matches),
        Some(("pairs", matches)) => pairs::run(matches),
        Some(("prepare", matches)) => prepare::run(matches),
        Some(("sweep", matches)) => sweep::run(matches),
        Some(("run", matches)) => run::run(matches),
        Some(("simulate", matches)) => simulate::run(matches),
        Some(("objective", matches)) => objective::run(matches),
        Some(("report", matches)) => report::run(matches),
        Some(("generate", matches)) => generate::run(matches),
        Some(("merge", matches)) => merge::run(matches),
        Some(("reward", matches)) => reward::run(matches),
        Some(("recommend", matches)) => recommend::run(matches),
        Some(("inspect", matches)) => inspect::run(matches),
        Some(("init", matches)) => init::run(matches),
        Some(("help", matches)) => help::run(matches),
        other => unreachable!("clap lets no other command through: {other:?}"),
    }
}

/// Far more threads than cores bring a machine to a stand.
const MOST_THREADS: usize = 512;

/// Sets the number of threads, before anything is computed. A stage of a recipe or sweep runs in a pool of its own that has so many
/// ([`on_threads`]).
///
/// # Errors
/// [`Error::Usage`] where the system does not give so many.
fn set_threads(settings: &Settings) -> Result<()> {
    let Some(threads) = settings.count("num_threads") else { return Ok(()) };
    if threads > MOST_THREADS {
        return Err(Error::Usage(format!(
            "{} is {threads}; expected 1 to {MOST_THREADS} (as many as the machine has cores is best)",
            settings.place("num_threads")
        )));
    }
    // In a pool of a stage's own the process's stays as it is, for the stages after it.
    if rayon::current_thread_index().is_some() && rayon::current_num_threads() == threads {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|e| Error::Usage(format!("{} is {threads}: {e}", settings.place("num_threads"))))
}

/// Runs a command beside or after others of this process, on as many threads as its `num_threads` asks for. What it says goes where this
/// thread's words go.
///
/// # Errors
/// What the command fails with; [`Error::Usage`] where the system does not give so many threads.
pub fn on_threads(num_threads: Option<&str>, command: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    // What is no number, or too large a one, the command itself refuses.
    match num_threads.and_then(|given| given.parse().ok()) {
        Some(threads) if (1..=MOST_THREADS).contains(&threads) => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.map_err(|e| Error::Usage(format!("--num_threads is {threads}: {e}")))?;
            match output::log() {
                Some(log) => pool.install(|| output::logged(log, command)),
                None => pool.install(command),
            }
        }
        _ => command(),
    }
}

/// A number with separators, as people read it.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        cli().debug_assert();
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 12, 999, 1000, 134515008].map(grouped), ["0", "12", "999", "1,000", "134,515,008"]);
    }
}
