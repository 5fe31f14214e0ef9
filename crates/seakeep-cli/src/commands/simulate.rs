//! `seakeep simulate`: the theory put to the test, on log-linear policies with a known optimum.

use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{ArgMatches, Command, value_parser};
use seakeep::formats::{AtomicDir, write_atomic};
use seakeep::report::simulation;
use seakeep::theory::{record::Options, simulate};
use seakeep::{Error, Result};

use crate::config::Settings;
use crate::{args, output, progress};

/// Whole-number options, their help, and where they stand.
type Whole = (&'static str, &'static str, fn(&mut Options) -> &mut usize);
/// The same of real numbers.
type Real = (&'static str, &'static str, fn(&mut Options) -> &mut f64);

const WHOLE: [Whole; 6] = [
    ("dimension", "Number of features of the policies", |o| &mut o.dimension),
    ("prompts", "Prompts of the world", |o| &mut o.prompts),
    ("answers", "Answers of each prompt", |o| &mut o.answers),
    ("n_min", "The smallest number of pairs; it doubles from there", |o| &mut o.n_min),
    ("n_max", "The largest number of pairs, at least four times n_min", |o| &mut o.n_max),
    ("repetitions", "Samples drawn at each number of pairs", |o| &mut o.repetitions),
];

const REAL: [Real; 9] = [
    ("beta", "DPO's beta", |o| &mut o.beta),
    ("bound", "B, the largest norm of the parameters", |o| &mut o.bound),
    ("reference_norm", "Norm of the reference's parameters", |o| &mut o.reference_norm),
    ("signal", "Distance of the true parameters from the reference's", |o| &mut o.signal),
    ("kldpo_radius", "Radius of KLDPO's ball, nats", |o| &mut o.kldpo_radius),
    ("wdpo_radius", "Radius of WDPO's ball, in units of the features, which have norm 1", |o| {
        &mut o.wdpo_radius
    }),
    ("chi2_radius", "Radius of the chi-square ball", |o| &mut o.chi2_radius),
    ("drdpo_beta", "Dr. DPO's beta'", |o| &mut o.drdpo_beta),
    ("radius_power", "Shrinking radii are the radius times (n_min / n) to this power", |o| {
        &mut o.radius_power
    }),
];

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "simulate",
        "Put the theory to the test: errors of DPO, KLDPO and WDPO, solved exactly, against the number of pairs",
        "seakeep simulate --dimension 8 --n_max 65536 --output_dir simulation",
    );
    let mut defaults = Options::default();
    let flag = |name: &'static str,
                value: &'static str,
                default: String,
                parser: ValueParser,
                help: &'static str| {
        args::spelled(name)
            .value_name(value)
            .value_parser(parser)
            .default_value(default)
            .allow_negative_numbers(true)
            .help(help)
    };
    let whole: Vec<_> = WHOLE
        .iter()
        .map(|(name, help, at)| {
            flag(name, "N", at(&mut defaults).to_string(), value_parser!(usize).into(), help)
        })
        .collect();
    let real: Vec<_> = REAL
        .iter()
        .map(|(name, help, at)| {
            flag(name, "X", at(&mut defaults).to_string(), value_parser!(f64).into(), help)
        })
        .collect();
    let seed =
        flag("seed", "N", "0".into(), value_parser!(u64).into(), "Seed of the world and of the samples");
    // All of it has defaults.
    let command = command.arg_required_else_help(false);
    args::keyed(command, &["num_threads"]).args(whole).args(real).arg(seed).arg(
        args::spelled("output_dir")
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .default_value("simulation")
            .help("A new directory for simulate.json and report.html"),
    )
}

/// Runs it, writes record and report, and prints the table.
pub fn run(matches: &ArgMatches) -> Result<()> {
    super::set_threads(&Settings::read(matches)?)?;
    let mut options = Options::default();
    for (name, _, at) in WHOLE {
        *at(&mut options) = matches.get_one::<usize>(name).copied().unwrap_or_default();
    }
    for (name, _, at) in REAL {
        *at(&mut options) = matches.get_one::<f64>(name).copied().unwrap_or_default();
    }
    options.seed = matches.get_one::<u64>("seed").copied().unwrap_or_default();
    options.check()?;
    let to = matches.get_one::<PathBuf>("output_dir").cloned().unwrap_or_default();
    if std::fs::read_dir(&to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Usage(format!(
            "output_dir {} exists and is not empty; choose another",
            to.display()
        )));
    }
    // Made before the work, so that a place that cannot be written to is known at once.
    let directory = AtomicDir::new(&to)?;
    let command_line = std::env::args().collect::<Vec<_>>().join(" ");
    let record = simulate(&options, &command_line, &mut *progress::on_stderr())?;
    let json = serde_json::to_string_pretty(&record).map_err(|e| Error::format(&to, e.to_string()))?;
    write_atomic(directory.path().join("simulate.json"), json.as_bytes())?;
    write_atomic(directory.path().join("report.html"), simulation::render(&record).as_bytes())?;
    directory.commit()?;
    let report = to.join("report.html");
    output::print(&format!("{}\nThe curves: {}\n", simulation::table(&record).trim_end(), report.display()))
}
