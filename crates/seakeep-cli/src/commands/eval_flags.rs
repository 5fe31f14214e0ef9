//! The flags of `seakeep eval` that are no keys: what to judge a policy by.

use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use seakeep::error::nearest;
use seakeep::generate::GenerateOptions;
use seakeep::judge::SummaryOptions;
use seakeep::policy_record::Shift;
use seakeep::preferences::Form;
use seakeep::stats::{Ball, Bootstrap};
use seakeep::{Error, Result};

use crate::args;

/// Radii where none are given: a small ball and a large one of each kind.
const RADII: [&str; 5] = ["kl=0.1,0.5", "chi2=0.2,1", "cvar=0.5,0.1", "tv=0.05,0.2", "wasserstein=0.01,0.1"];

/// Most points of a grid of alphas.
const MOST_ALPHAS: usize = 1001;

/// The flags.
pub fn flags() -> Vec<Arg> {
    let flag = |name: &'static str, value: &'static str, parser: ValueParser, help: &'static str| {
        args::spelled(name).value_name(value).value_parser(parser).allow_negative_numbers(true).help(help)
    };
    let text = || ValueParser::string();
    let (whole, real) = (ValueParser::from(value_parser!(usize)), ValueParser::from(value_parser!(f64)));
    let switch = |arg: Arg| arg.num_args(0..=1).default_missing_value("true");
    let sampling = |arg: Arg| arg.requires("prompts").conflicts_with("samples").help_heading("Samples");
    vec![
        flag("prompts", "PATH", text(), "Prompts (column `prompt`) that the policy completes: reward, KL, length, distinct-n of \
             its own samples")
            .conflicts_with("samples")
            .help_heading("Samples"),
        flag("samples", "PATH", text(), "The policy's completions, drawn before, scored or not: rows of `prompt`, `completion`, \
             `scores` ({\"objective\": number, ...}) and perhaps `tokens`, as `generate` writes them")
            .help_heading("Samples"),
        sampling(flag("num_return_sequences", "N", whole.clone(), "Completions of each prompt").default_value("1")),
        sampling(flag("max_new_tokens", "N", whole.clone(), "Longest completion, tokens").default_value("64")),
        sampling(switch(flag("do_sample", "true|false", ValueParser::bool(), "Draw from the distribution; false: the \
             likeliest token, whose KL is no estimate").default_value("true"))),
        sampling(flag("temperature", "X", real.clone(), "Divides the logits before sampling").default_value("1.0")),
        sampling(flag("top_k", "N", whole.clone(), "Sample from the likeliest tokens only; 0: from all").default_value("0")),
        sampling(flag("top_p", "X", real.clone(), "Sample from the likeliest tokens that have this probability together")
            .default_value("1.0")),
        switch(flag("chat_template", "true|false", ValueParser::bool(), "Whether a prompt becomes a user's message in the \
             model's chat template [default: true where it has one]")).help_heading("Samples"),
        flag("reward_model", "PATH", text(), "The reward model that scores the completions of --prompts, or of --samples that have no scores (`seakeep reward train`)")
            .help_heading("Samples"),
        flag("objectives", "R1,R2", text(), "Two objectives between which preferences shift; other scores are kept too")
            .requires("nominal_alpha")
            .help_heading("Shift"),
        flag("mixtures", "NAME,...", text(), "convex (a r1 + (1-a) r2), geometric (r1^a r2^(1-a))")
            .default_value("convex")
            .requires("objectives")
            .help_heading("Shift"),
        flag("nominal_alpha", "X", real, "The alpha of the training labels").requires("objectives").help_heading("Shift"),
        flag("alphas", "FROM:TO:STEP", text(), "The alphas to judge at; or a list, 0,0.1,0.5,1")
            .default_value("0:1:0.1")
            .requires("objectives")
            .help_heading("Shift"),
        switch(flag("wasserstein", "true|false", ValueParser::bool(), "Compute input gradients, for the worst case over a \
             Wasserstein ball (one backward pass more)").default_value("false")).help_heading("Judging"),
        flag("radii", "BALL=X,...", text(), "Radii of worst cases, several balls apart by spaces: kl, chi2, tv, wasserstein; cvar \
             takes the worst share; none. [default: kl=0.1,0.5 chi2=0.2,1 cvar=0.5,0.1 tv=0.05,0.2 wasserstein=0.01,0.1]")
            .num_args(1..)
            .action(ArgAction::Append)
            .help_heading("Judging"),
        flag("bootstrap", "N", whole, "Resamples of the 95% intervals [default: 1000]").help_heading("Judging"),
        flag("compare_with", "FILE", ValueParser::path_buf(), "The policy record of another policy on the same prompts: paired \
             differences of rewards, win rates")
            .requires("objectives")
            .help_heading("Judging"),
        flag("policy_record", "FILE", ValueParser::path_buf(), "Write every measurement there, for `seakeep report` \
             (docs/EVAL.md)")
            .help_heading("Judging"),
        flag("label", "TEXT", text(), "What to call the policy; records with the same label differ in their seed only [default: \
             method and knobs, where the run's directory tells]")
            .help_heading("Judging"),
        flag("policy_method", "NAME", text(), "The method of its training [default: from the run's directory; `reference` where \
             policy and reference are the same]")
            .help_heading("Judging"),
        flag("policy_seed", "N", value_parser!(u64).into(), "The seed of its training [default: from the run's directory]")
            .help_heading("Judging"),
    ]
}

/// What was asked for.
pub struct Flags {
    pub prompts: Option<String>,
    pub samples: Option<String>,
    pub reward_model: Option<String>,
    pub generation: GenerateOptions,
    pub chat_template: Option<bool>,
    pub shift: Option<Shift>,
    pub wasserstein: bool,
    pub summary: SummaryOptions,
    pub compare_with: Option<PathBuf>,
    pub policy_record: Option<PathBuf>,
    pub label: Option<String>,
    pub policy_method: Option<String>,
    pub policy_seed: Option<u64>,
    /// Whether anything beyond the metrics of data sets is asked for.
    pub any: bool,
}

impl Flags {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::Usage`] for a value that is not what it should be.
    pub fn read(matches: &ArgMatches, seed: u64) -> Result<Flags> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let whole = |name: &str| matches.get_one::<usize>(name).copied().unwrap_or_default();
        let real = |name: &str| matches.get_one::<f64>(name).copied().unwrap_or_default();
        let truth = |name: &str| matches.get_one::<bool>(name).copied();
        let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
        let generation = GenerateOptions {
            max_new_tokens: whole("max_new_tokens"),
            do_sample: truth("do_sample").unwrap_or(true),
            temperature: real("temperature"),
            top_k: whole("top_k"),
            top_p: real("top_p"),
            seed,
            num_return_sequences: whole("num_return_sequences"),
            ..Default::default()
        };
        generation.check()?;
        let given = |name: &str| matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine);
        let asked = [
            "prompts",
            "samples",
            "wasserstein",
            "radii",
            "bootstrap",
            "policy_record",
            "label",
            "objectives",
        ];
        let resamples =
            matches.get_one::<usize>("bootstrap").copied().unwrap_or(Bootstrap::default().resamples);
        if resamples == 0 {
            return Err(Error::Usage("--bootstrap is 0; expected a whole number above 0".into()));
        }
        let wasserstein = truth("wasserstein").unwrap_or_default();
        Ok(Flags {
            prompts: text("prompts"),
            samples: text("samples"),
            reward_model: text("reward_model"),
            generation,
            chat_template: truth("chat_template"),
            shift: text("objectives").map(|objectives| shift(&objectives, matches)).transpose()?,
            wasserstein,
            summary: SummaryOptions {
                bootstrap: Bootstrap { resamples, ..Bootstrap::default() },
                radii: radii(&args::texts(matches, "radii"), wasserstein)?,
            },
            compare_with: path("compare_with"),
            policy_record: path("policy_record"),
            label: text("label"),
            policy_method: text("policy_method"),
            policy_seed: matches.get_one::<u64>("policy_seed").copied(),
            any: asked.into_iter().any(given),
        })
    }
}

fn shift(objectives: &str, matches: &ArgMatches) -> Result<Shift> {
    let names: Vec<String> = objectives.split(',').map(|name| name.trim().to_string()).collect();
    let wrong = || Error::Usage(format!("--objectives is {objectives}; expected two, such as anger,fear"));
    let objectives: [String; 2] = names.try_into().map_err(|_| wrong())?;
    if objectives[0] == objectives[1] || objectives.iter().any(String::is_empty) {
        return Err(wrong());
    }
    let word = |name: &str| args::texts(matches, name).pop().unwrap_or_default();
    let mut mixtures: Vec<String> = Vec::new();
    for name in word("mixtures").split(',').map(str::trim) {
        let known = Form::ALL.map(Form::name);
        if Form::of(name).is_none() {
            let near = nearest(name, known).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
            return Err(Error::Usage(format!("--mixtures: `{name}`; expected {}{near}", known.join(" or "))));
        }
        if !mixtures.iter().any(|m| m == name) {
            mixtures.push(name.to_string());
        }
    }
    let nominal_alpha = matches.get_one::<f64>("nominal_alpha").copied().unwrap_or_default();
    if !(0.0..=1.0).contains(&nominal_alpha) {
        return Err(Error::Usage(format!(
            "--nominal_alpha is {nominal_alpha}; expected a number from 0 to 1"
        )));
    }
    Ok(Shift { objectives, mixtures, nominal_alpha, alphas: alphas(&word("alphas"))? })
}

/// `0:1:0.1`, both ends included, or `0,0.1,1`; growing, each once.
fn alphas(text: &str) -> Result<Vec<f64>> {
    let wrong = || {
        Error::Usage(format!(
            "--alphas is {text}; expected numbers from 0 to 1: FROM:TO:STEP (0:1:0.1) or a list (0,0.5,1)"
        ))
    };
    let numbers = |by: char| -> Result<Vec<f64>> {
        text.split(by).map(|part| part.trim().parse().map_err(|_| wrong())).collect()
    };
    let mut alphas = if text.contains(':') {
        let [from, to, step] = numbers(':')?[..] else { return Err(wrong()) };
        // Half a thousandth of a step is rounding.
        let steps = ((to - from) / step + 5e-4).floor();
        if !(0.0..MOST_ALPHAS as f64).contains(&steps) {
            return Err(wrong());
        }
        // As a person writes them: 0.3, not 0.30000000000000004.
        (0..=steps as usize).map(|i| ((from + i as f64 * step) * 1e9).round() / 1e9).collect()
    } else {
        numbers(',')?
    };
    if alphas.iter().any(|a| !(0.0..=1.0).contains(a)) {
        return Err(wrong());
    }
    alphas.sort_by(f64::total_cmp);
    alphas.dedup();
    Ok(alphas)
}

/// Those of a Wasserstein ball, if given, need input gradients, which are made where `wasserstein` asks for them.
fn radii(given: &[String], wasserstein: bool) -> Result<Vec<(Ball, Vec<f64>)>> {
    if given == ["none"] {
        return Ok(Vec::new());
    }
    let default = RADII.map(String::from);
    let given = if given.is_empty() { &default[..] } else { given };
    let mut out = Vec::new();
    for text in given {
        let names = Ball::ALL.map(Ball::name);
        let (name, numbers) = text.split_once('=').unwrap_or((text, ""));
        let Some(ball) = Ball::ALL.into_iter().find(|b| b.name() == name) else {
            let near = nearest(name, names).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
            let known = names.join(", ");
            return Err(Error::Usage(format!(
                "--radii: `{text}`; expected BALL=X,... with one of {known}{near}"
            )));
        };
        let radius = |x: &str| x.trim().parse().ok().filter(|rho| ball.has_radius(*rho));
        let expected = match ball {
            Ball::Cvar => "shares above 0 and at most 1",
            Ball::Tv => "numbers from 0 to 1",
            _ => "numbers of at least 0",
        };
        let radii: Option<Vec<f64>> = numbers.split(',').map(radius).collect();
        let radii =
            radii.ok_or_else(|| Error::Usage(format!("--radii: `{text}`; expected {name}={expected}")))?;
        if ball == Ball::Wasserstein && !wasserstein && given != &default[..] {
            return Err(Error::Usage(format!("--radii: `{text}` needs input gradients; add --wasserstein")));
        }
        out.push((ball, radii));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_and_lists_are_read() {
        assert_eq!(alphas("0:1:0.25").unwrap(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(alphas("0:1:0.1").unwrap().len(), 11);
        assert_eq!(alphas("0:1:0.1").unwrap()[3], 0.3);
        assert_eq!(alphas("1,0,0.5,0.5").unwrap(), [0.0, 0.5, 1.0]);
        for bad in ["0:1", "0:1:0", "0:1:-1", "0,2", "x", "0:1:1e-9", "nan"] {
            assert!(alphas(bad).unwrap_err().to_string().contains("expected numbers from 0 to 1"), "{bad}");
        }
    }

    #[test]
    fn radii_belong_to_balls() {
        let given = |texts: &[&str]| radii(&texts.iter().map(|t| t.to_string()).collect::<Vec<_>>(), true);
        assert!(
            radii(&["wasserstein=0.1".to_string()], false)
                .unwrap_err()
                .to_string()
                .contains("add --wasserstein")
        );
        assert!(radii(&[], false).is_ok());
        assert_eq!(
            given(&["kl=0,0.5", "cvar=1"]).unwrap(),
            [(Ball::Kl, vec![0.0, 0.5]), (Ball::Cvar, vec![1.0])]
        );
        assert_eq!((given(&[]).unwrap().len(), given(&["none"]).unwrap().len()), (5, 0));
        for (bad, said) in
            [("kll=1", "did you mean kl?"), ("cvar=0", "above 0"), ("tv=2", "from 0 to 1"), ("kl", "kl=")]
        {
            assert!(given(&[bad]).unwrap_err().to_string().contains(said), "{bad}");
        }
    }
}
