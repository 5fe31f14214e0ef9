//! `seakeep recommend rank`: where a model ranks what users chose.

use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, Command, value_parser};
use seakeep::data::TokenizedPair;
use seakeep::formats::ModelSource;
use seakeep::progress::Progress;
use seakeep::recommend::metrics::groups;
use seakeep::recommend::{
    Inferred, MissingTarget, RankRow, RankScores, Ranking, Summary, infer, rank_of, read_rows, score,
    summarise, tokenize,
};
use seakeep::stats::Bootstrap;
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::logps::{self, RUN_KEYS, output_flag, output_path};
use crate::config::Settings;
use crate::named::named;
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "rank",
        "Rank candidates by their log-probability as completions, with the token that ends them: HR@K, NDCG@K (K = 1, 5, 10) and MRR, by file and group",
        "seakeep recommend rank --model_name_or_path runs/rec --dataset_name familiar=data/rec/test.jsonl \
         shifted=data/rec/test_shifted.jsonl --output ranked.json",
    );
    let keys = [&["model_name_or_path", "dataset_name", "prompt_mismatch", "seed"], RUN_KEYS].concat();
    let command = args::keyed(command, &keys)
        .mut_arg("dataset_name", |arg| {
            arg.num_args(1..).action(ArgAction::Append).value_name("[NAME=]PATH").help(
                "Rows with prompt, candidates, target and perhaps user and group, as `recommend prepare` writes them; several \
                 files, each with a name if wished",
            )
        })
        .args([
            args::spelled("length_normalize").action(ArgAction::SetTrue).help(
                "The mean log-probability of a candidate's tokens in place of their sum, which favours short titles",
            ),
            args::spelled("missing_target")
                .value_name("NAME")
                .value_parser(["error", "miss"])
                .default_value("error")
                .help("What to do with rows whose target is not among the candidates; misses lower the valid ratio"),
            args::spelled("environments").value_name("N").value_parser(value_parser!(usize)).help(
                "Infers this many environments from the prompts as CausalDPO does (from the first file, by this model's hidden \
                 states) and shows them beside the groups",
            ),
            args::spelled("resamples")
                .value_name("N")
                .value_parser(value_parser!(usize))
                .default_value("1000")
                .help("Draws of users for the 95% intervals"),
            args::spelled("ranks").value_name("FILE").value_parser(value_parser!(PathBuf)).help(
                "JSON lines: of each row its data set, row, user, group, rank and the candidates' log-probabilities",
            ),
            output_flag("JSON: the metrics of each file and group, with intervals. Default: standard output"),
        ]);
    args::accepting_the_rest(command)
}

/// A file and what came of it.
struct Set {
    name: String,
    spec: String,
    rows: Vec<RankRow>,
    tokens: Vec<TokenizedPair>,
    scores: RankScores,
    ranks: Vec<Ranking>,
}

/// What is asked for besides the files and the model.
struct Flags {
    diverge: bool,
    environments: Option<usize>,
    missing: MissingTarget,
    intervals: Bootstrap,
    normalize: bool,
    seed: u64,
}

impl Flags {
    fn read(matches: &ArgMatches, settings: &Settings) -> Result<Self> {
        let diverge = match settings.text("prompt_mismatch").as_deref() {
            Some("drop") => {
                return Err(Error::Usage(format!(
                    "{} is drop; a ranking leaves no candidate out: expected error or diverge",
                    settings.place("prompt_mismatch")
                )));
            }
            other => other == Some("diverge"),
        };
        let environments = matches.get_one::<usize>("environments").copied();
        if environments == Some(0) {
            return Err(Error::Usage("--environments is 0; expected at least 1".into()));
        }
        let missing = match args::texts(matches, "missing_target").pop().as_deref() {
            Some("miss") => MissingTarget::Miss,
            _ => MissingTarget::Error,
        };
        let resamples = matches.get_one::<usize>("resamples").copied().unwrap_or_default();
        if resamples == 0 {
            return Err(Error::Usage(
                "--resamples is 0; expected at least 1; an interval needs some hundred".into(),
            ));
        }
        let seed = settings.seed("seed");
        let intervals = Bootstrap { resamples, seed, ..Bootstrap::default() };
        let normalize = matches.get_flag("length_normalize");
        Ok(Flags { diverge, environments, missing, intervals, normalize, seed })
    }
}

/// Ranks and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let specs = match args::texts(matches, "dataset_name") {
        none if none.is_empty() => vec![settings.required("dataset_name")?],
        several => several,
    };
    let (to, ranks_to) = (output_path(matches), matches.get_one::<PathBuf>("ranks").map(PathBuf::as_path));
    let named = names(&specs)?;
    let inputs: Vec<(&str, &str)> = named.iter().map(|(_, path)| ("dataset_name", path.as_str())).collect();
    output::check(&[("ranks", ranks_to), ("output", to)], &inputs)?;
    let flags = Flags::read(matches, &settings)?;
    super::set_threads(&settings)?;
    let mut progress = progress::on_stderr();
    let mut sets: Vec<Set> = Vec::with_capacity(specs.len());
    for (name, spec) in named {
        let rows = read_rows(&spec, flags.missing)?;
        let (tokens, scores, ranks) = (Vec::new(), RankScores::default(), Vec::new());
        sets.push(Set { name, spec, rows, tokens, scores, ranks });
    }
    let rows = sets.first().map_or(0, |set| set.rows.len());
    if let Some(k) = flags.environments.filter(|k| *k > rows) {
        let what =
            format!("--environments is {k}, but {} has only {rows} rows to find them in", sets[0].spec);
        return Err(Error::Usage(what));
    }
    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    rank(&mut sets, &source, &settings, &flags, &mut *progress)?;
    let (results, table) = results(&sets, &flags)?;
    if let Some(path) = ranks_to {
        output::emit(Some(path), &sets.iter().map(lines).collect::<String>())?;
    }
    progress.note(&table.text());
    let record = json!({
        "model_name_or_path": source.path,
        "score": if flags.normalize { "mean" } else { "sum" },
        "ties": "pessimistic",
        "datasets": results,
    });
    output::emit(to, &format!("{record:#}\n"))
}

/// Has the model score all candidates. Every file is checked before the first is scored.
fn rank(
    sets: &mut [Set],
    source: &ModelSource,
    settings: &Settings,
    flags: &Flags,
    progress: &mut dyn Progress,
) -> Result<()> {
    let tokenizer = source.tokenizer()?;
    let model = logps::load(source, settings, progress)?;
    for set in &mut *sets {
        set.tokens = tokenize(&set.rows, &tokenizer, flags.diverge, model.config.max_positions)?;
    }
    let how = (flags.normalize, flags.environments.is_some());
    let batch = settings.count("per_device_eval_batch_size").unwrap_or(1);
    for set in sets {
        progress.start(&set.name, set.tokens.len() as u64);
        set.scores = score(&model, &set.tokens, how, batch, progress)?;
        progress.finish();
        set.ranks = rankings(&set.rows, &set.scores);
    }
    Ok(())
}

/// What the ranks come to, for the record and for a person.
fn results(sets: &[Set], flags: &Flags) -> Result<(Vec<Value>, Table)> {
    let inferred = match flags.environments {
        Some(k) => {
            let sets: Vec<_> = sets.iter().map(|s| (&s.scores.features[..], &s.ranks[..])).collect();
            infer(&sets, k, flags.seed, flags.intervals)?
        }
        None => Vec::new(),
    };
    let mut results = Vec::with_capacity(sets.len());
    let mut table = Table::default();
    for (at, set) in sets.iter().enumerate() {
        let whole = summarise(&set.ranks, flags.intervals);
        table.line(&set.name, &whole);
        let mut result = Map::from_iter([
            ("name".to_string(), json!(set.name)),
            ("dataset_name".to_string(), json!(set.spec)),
        ]);
        if let Value::Object(numbers) = whole.json() {
            result.extend(numbers);
        }
        let mut by_group = Map::new();
        for (group, rows) in groups(&set.ranks) {
            let own = summarise(&rows, flags.intervals);
            table.line(&format!("{}, group {group}", set.name), &own);
            by_group.insert(group, own.json());
        }
        if !by_group.is_empty() {
            result.insert("groups".into(), by_group.into());
        }
        if let Some(inferred) = inferred.get(at) {
            table.environments(&set.name, inferred);
            result.insert("inferred_environments".into(), json!(inferred));
        }
        results.push(Value::Object(result));
    }
    Ok((results, table))
}

/// The files with their names, no two the same.
fn names(specs: &[String]) -> Result<Vec<(String, String)>> {
    let all: Vec<(String, String)> = specs.iter().map(|spec| named(spec)).collect();
    for (at, (name, spec)) in all.iter().enumerate() {
        if let Some((_, other)) = all[..at].iter().find(|(before, _)| before == name) {
            return Err(Error::Usage(format!(
                "--dataset_name: {other} and {spec} are both called `{name}`; name them: NAME=PATH"
            )));
        }
    }
    Ok(all)
}

fn rankings(rows: &[RankRow], scores: &RankScores) -> Vec<Ranking> {
    let of = |(row, scores): (&RankRow, &Vec<f64>)| Ranking {
        user: row.user.clone(),
        group: row.group.clone(),
        rank: row.target.map(|target| rank_of(scores, target)),
        candidates: scores.len(),
    };
    rows.iter().zip(&scores.candidates).map(of).collect()
}

fn lines(set: &Set) -> String {
    let each = set.rows.iter().zip(&set.ranks).zip(&set.scores.candidates);
    each.map(|((row, ranking), scores)| {
        let line = json!({
            "dataset": set.name, "row": row.pair.row, "user": ranking.user, "group": ranking.group,
            "target": row.target, "rank": ranking.rank, "scores": scores,
        });
        format!("{line}\n")
    })
    .collect()
}

/// What a person compares first.
#[derive(Default)]
struct Table {
    lines: Vec<String>,
}

impl Table {
    fn line(&mut self, name: &str, summary: &Summary) {
        let cells = ["hr@1", "hr@5", "ndcg@5", "mrr"].map(|metric| match summary.of(metric) {
            Some(e) if e.value.is_nan() => "-".into(),
            Some(e) if e.low.is_nan() => format!("{:.3}", e.value),
            Some(e) => format!("{:.3} [{:.3}, {:.3}]", e.value, e.low, e.high),
            None => "-".into(),
        });
        let cells: String = cells.iter().map(|cell| format!(" {cell:>21}")).collect();
        self.lines.push(format!("{:>6}{cells} {:>6.3}  {name}", summary.rows, summary.valid_ratio));
    }

    fn environments(&mut self, name: &str, inferred: &Inferred) {
        let sizes = |s: &[f64]| s.iter().map(|n| format!("{n:.1}")).collect::<Vec<_>>().join(" + ");
        let mut text = format!("  environments inferred in {name}: {} rows", sizes(&inferred.sizes));
        for (group, own) in &inferred.groups {
            text += &format!("; {group} {}", sizes(own));
        }
        if let Some(purity) = inferred.purity {
            text += &format!("; purity {purity:.3}");
        }
        self.lines.push(text);
    }

    fn text(&self) -> String {
        let head = ["HR@1", "HR@5", "NDCG@5", "MRR"].map(|h| format!(" {h:>21}")).concat();
        format!("{:>6}{head} {:>6}  data\n{}", "rows", "valid", self.lines.join("\n"))
    }
}
