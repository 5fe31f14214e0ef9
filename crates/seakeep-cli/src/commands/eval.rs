//! `seakeep eval`: a policy against its reference, on preference data and by its own samples.

use std::path::Path;
use std::time::Instant;

use clap::{ArgAction, ArgMatches, Command};
use seakeep::data::{Pair, Rows, TokenizedPair};
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::generate::{GenerateOptions, eos_ids};
use seakeep::judge::{
    self, Drawn, Evaluated, Evaluator, Judge, Prompt, RewardJudge, RowColumns, RunFacts, Summary, drawn_with,
    input_gradients, prompts_fingerprint,
};
use seakeep::model::Model;
use seakeep::objective::{LossType, Objective, PairLoss, Rule, wdpo};
use seakeep::policy_record::{Column, POLICY_SCHEMA_VERSION, Policy, PolicyRecord, Samples};
use seakeep::progress::{Progress, Silent};
use seakeep::reference::{Known, Reference};
use seakeep::reward::RewardModel;
use seakeep::scoring::{PairLayout, Scores};
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

use super::eval_flags::{self, Flags};
use super::logps::{self, RUN_KEYS};
use crate::config::keys::objective_keys;
use crate::config::{Settings, objective, plan};
use crate::named::{named, path_of};
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "eval",
        "Judge a policy: held-out loss and reward metrics on data sets, rewards of its own samples along a shift of \
         preferences, worst cases, divergence from the reference",
        "seakeep eval --model_name_or_path runs/a --ref_model_name_or_path models/m --dataset_name near.jsonl far=b.jsonl\n  \
         seakeep eval --model_name_or_path runs/a --ref_model_name_or_path models/m --samples scored.jsonl --objectives \
         anger,fear \\\n      --nominal_alpha 0.1 --policy_record records/a.json",
    );
    let own = ["model_name_or_path", "ref_model_name_or_path", "dataset_test_split", "reference_cache_dir"];
    let keys = [&own, args::DATA_KEYS, &objective_keys(), RUN_KEYS, &["seed"]].concat();
    let command = args::keyed(command, &keys)
        .mut_arg("dataset_name", |arg| arg.num_args(1..).action(ArgAction::Append))
        .mut_arg("group_column", |arg| arg.help("Column with the name of a row's group, in data, prompts or samples"))
        .args(eval_flags::flags())
        .arg(logps::output_flag(
            "JSON: for each data set its rows and its metrics, named eval_*; with samples or a shift also a summary with \
             intervals (docs/EVAL.md). Default: standard output",
        ));
    args::accepting_the_rest(command)
}

/// A data set.
struct Set {
    name: String,
    spec: String,
    columns: RowColumns,
    pairs: Vec<TokenizedPair>,
}

/// What is asked, checked.
struct Work {
    settings: Settings,
    flags: Flags,
    method: String,
    objective: Objective,
    group_column: Option<String>,
    source: ModelSource,
    facts: RunFacts,
    reference: Option<ModelSource>,
    batch_size: usize,
}

/// Measures and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let (started, mut progress) = (Instant::now(), progress::on_stderr());
    let output = logps::output_path(matches);
    let (mut work, specs) = Work::read(matches)?;
    let outputs = [("policy_record", work.flags.policy_record.as_deref()), ("output", output)];
    output::check(&outputs, &work.inputs(&specs))?;
    super::set_threads(&work.settings)?;
    let tokenizer = work.source.tokenizer()?;
    let rows: Vec<Vec<Pair>> = specs.iter().map(|spec| work.rows(spec)).collect::<Result<_>>()?;
    work.keep_pairs_whole(&rows, &mut *progress);
    let sets: Vec<Set> = specs
        .iter()
        .zip(rows)
        .map(|(spec, rows)| work.set(spec, rows, &tokenizer, &mut *progress))
        .collect::<Result<_>>()?;
    let (prompts, mut drawn) = work.prompts_or_samples(&tokenizer, &mut *progress)?;
    let other = work.flags.compare_with.as_ref().map(PolicyRecord::read).transpose()?;
    let mut judge = work.judge()?;
    work.check(&sets, &prompts, drawn.as_ref(), (other.as_ref(), judge.as_ref()))?;

    // One model in memory at a time.
    let (policy, logps) = work.by_policy(&sets, prompts, &mut drawn, &mut *progress)?;
    if let (Some(judge), Some(drawn)) = (&mut judge, &mut drawn) {
        drawn.judge(judge, &mut *progress)?;
        work.flags.shift.iter().try_for_each(|shift| drawn.check_shift(shift))?;
    }
    drop(judge);
    let (reference, ref_logps) =
        work.by_reference(&sets, &policy, (drawn.as_ref(), &logps), &tokenizer, &mut *progress)?;
    let evaluator = Evaluator {
        objective: &work.objective,
        environments: objective::environments(&work.settings, &work.objective)
            .map(|k| (k, work.settings.seed("seed"))),
    };
    let known = sets.iter().zip(policy.iter().zip(&reference));
    let mut evaluated: Vec<Evaluated> = known
        .map(|(set, (policy, reference))| evaluator.evaluate(&set.pairs, policy, reference, &set.columns))
        .collect::<Result<_>>()?;
    if work.flags.wasserstein {
        work.add_input_gradients(&sets, &mut evaluated, &mut *progress)?;
    }
    let mut record = work.record(&sets, evaluated);
    record.samples = drawn.map(|drawn| drawn.into_samples(logps, ref_logps));
    record.seconds = started.elapsed().as_secs_f64();

    if let Some(path) = &work.flags.policy_record {
        record.write(path)?;
    }
    let mut result = work.result(&record);
    if !sets.is_empty() {
        progress.note(&table(result["datasets"].as_array().map_or(&[], Vec::as_slice)));
    }
    if work.flags.any || work.group_column.is_some() {
        let summary = Summary::of(&record, other.as_ref(), &work.flags.summary)?;
        progress.note(&judge::table(&summary, work.flags.summary.bootstrap.confidence));
        result["summary"] = json!(summary);
    }
    output::emit(output, &format!("{result:#}\n"))
}

/// What a command line asks for, nothing opened yet.
struct Asked {
    settings: Settings,
    flags: Flags,
    group_column: Option<String>,
    method: String,
    objective: Objective,
    /// The data sets.
    specs: Vec<String>,
}

/// Whether the flags go together.
///
/// # Errors
/// [`Error::Usage`] where they do not.
pub fn check(matches: &ArgMatches) -> Result<()> {
    Asked::read(matches).map(drop)
}

impl Asked {
    fn read(matches: &ArgMatches) -> Result<Asked> {
        let mut settings = Settings::read(matches)?;
        let group_rule = settings.text("rule").as_deref() == Some("group");
        let group_column = match settings.is_given("group_column") {
            true => settings.text("group_column"),
            false => None,
        };
        if !group_rule {
            // Here it names groups to judge by, whatever the rule.
            settings.take("group_column");
        }
        let flags = Flags::read(matches, settings.seed("seed"))?;
        let mut specs = args::texts(matches, "dataset_name");
        if specs.is_empty() {
            specs.extend(settings.text("dataset_name"));
        }
        // A record's data sets are told apart by their names.
        let counts = |spec: &&String| flags.policy_record.is_some() || path_of(spec) != *spec;
        let mut names: Vec<String> = specs.iter().filter(counts).map(|spec| named(spec).0).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::Usage(format!(
                "--dataset_name: two data sets are named `{}`; give names: NAME=PATH",
                twice[0]
            )));
        }
        if specs.is_empty() && flags.prompts.is_none() && flags.samples.is_none() {
            return Err(Error::Usage(
                "nothing to judge on: give --dataset_name, --prompts or --samples".into(),
            ));
        }
        let (method, objective) = objective::objective(&settings)?;
        if flags.wasserstein {
            let (form, prompt_gradient) = (wdpo::Form::Paper, wdpo::PromptGradient::Shared);
            let penalty = Some(wdpo::Penalty { rho: 1.0, form, prompt_gradient });
            // Gradients are those of single pairs' losses, whatever a rule makes of them.
            Objective { penalty, rule: Rule::Mean, ..objective.clone() }.check()?;
        }
        plan::numbers(&settings)?;
        Ok(Asked { settings, flags, group_column, method, objective, specs })
    }
}

impl Work {
    /// From the command line; with the data sets that it names.
    fn read(matches: &ArgMatches) -> Result<(Work, Vec<String>)> {
        let Asked { settings, flags, group_column, method, objective, specs } = Asked::read(matches)?;
        let source = ModelSource::open(settings.required("model_name_or_path")?)?;
        let reference = settings.text("ref_model_name_or_path").map(ModelSource::open).transpose()?;
        let batch_size = settings.count("per_device_eval_batch_size").unwrap_or(1);
        let facts = RunFacts::of(&source.path)?;
        let work =
            Work { settings, flags, method, objective, group_column, source, facts, reference, batch_size };
        Ok((work, specs))
    }

    /// What is read besides models: flags, and what they name.
    fn inputs<'a>(&'a self, specs: &'a [String]) -> Vec<(&'static str, &'a str)> {
        let datasets = specs.iter().map(|spec| ("dataset_name", path_of(spec)));
        let Flags { prompts, samples, compare_with, .. } = &self.flags;
        let others = [
            ("prompts", prompts.as_deref()),
            ("samples", samples.as_deref()),
            ("compare_with", compare_with.as_deref().and_then(Path::to_str)),
        ];
        datasets.chain(others.into_iter().filter_map(|(flag, path)| Some((flag, path?)))).collect()
    }

    fn rows(&self, spec: &str) -> Result<Vec<Pair>> {
        logps::read(path_of(spec), self.settings.text("dataset_test_split").as_deref())
    }

    /// Records are compared pair by pair. kto and its kin judge completions one by one: for a record, their policies are judged by
    /// DPO's loss where the data have pairs.
    fn keep_pairs_whole(&mut self, sets: &[Vec<Pair>], progress: &mut dyn Progress) {
        let unpaired = self.objective.pair.any(LossType::is_unpaired);
        let pairs = !sets.is_empty() && sets.iter().flatten().all(|row| row.completions.len() == 2);
        if unpaired && pairs && self.flags.policy_record.is_some() {
            let beta = self.objective.pair.beta;
            self.objective = Objective { pair: PairLoss::dpo(beta), rule: Rule::Mean, penalty: None };
            let of = &self.method;
            progress.note(&format!(
                "{of} judges completions one by one; the record is of pairs, eval_loss DPO's"
            ));
        }
    }

    fn set(
        &self,
        spec: &str,
        rows: Vec<Pair>,
        tokenizer: &Tokenizer,
        progress: &mut dyn Progress,
    ) -> Result<Set> {
        let (name, path) = named(spec);
        let columns = RowColumns::of(&rows, self.group_column.as_deref())?;
        let pairs = self.tokens(&path, rows, tokenizer, progress)?;
        Ok(Set { name, spec: path, columns, pairs })
    }

    fn tokens(
        &self,
        spec: &str,
        rows: Vec<Pair>,
        tokenizer: &Tokenizer,
        progress: &mut dyn Progress,
    ) -> Result<Vec<TokenizedPair>> {
        logps::tokenize(spec, rows, tokenizer, &self.settings, Some(&self.objective), progress)
    }

    fn prompts_or_samples(
        &self,
        tokenizer: &Tokenizer,
        progress: &mut dyn Progress,
    ) -> Result<(Option<Vec<Prompt>>, Option<Drawn>)> {
        let (groups, how) = (self.group_column.as_deref(), (tokenizer, self.flags.chat_template));
        let prompts = self
            .flags
            .prompts
            .as_ref()
            .map(|spec| judge::read_prompts(spec, groups, progress))
            .transpose()?;
        let samples = self.flags.samples.as_ref().map(|spec| Drawn::read(spec, groups, how, progress));
        Ok((prompts, samples.transpose()?))
    }

    /// The reward model, where samples are to be scored.
    fn judge(&self) -> Result<Option<RewardJudge>> {
        let Some(path) = &self.flags.reward_model else { return Ok(None) };
        let model = RewardModel::load(&ModelSource::open(path)?)?;
        Ok(Some(RewardJudge { model, batch_size: self.batch_size }))
    }

    /// Refuses before any model runs what could not be judged in the end.
    fn check(
        &self,
        sets: &[Set],
        prompts: &Option<Vec<Prompt>>,
        drawn: Option<&Drawn>,
        (other, judge): (Option<&PolicyRecord>, Option<&RewardJudge>),
    ) -> Result<()> {
        if let (Some(shift), Some(judge)) = (&self.flags.shift, judge) {
            judge.check_shift(shift)?;
        }
        if judge.is_some() && prompts.is_none() {
            match drawn.map(Drawn::is_scored) {
                Some(true) => {
                    return Err(Error::Usage(
                        "--reward_model would replace the scores that --samples have; leave it out".into(),
                    ));
                }
                None => {
                    return Err(Error::Usage(
                        "--reward_model scores completions; give --prompts or --samples".into(),
                    ));
                }
                Some(false) => {}
            }
        }
        if let Some(shift) = &self.flags.shift {
            drawn.filter(|_| judge.is_none()).map_or(Ok(()), |drawn| drawn.check_shift(shift))?;
            sets.iter().try_for_each(|set| set.columns.check_shift(shift, &set.spec))?;
            if drawn.is_none()
                && judge.is_none()
                && sets.iter().all(|set| set.columns.objectives().is_empty())
            {
                return Err(Error::Usage(
                    "--objectives: nothing here has scores; give --reward_model, --samples with `scores`, or data with `scores_chosen` and \
                     `scores_rejected` (`seakeep pairs` writes them)"
                        .into(),
                ));
            }
        }
        let Some(other) = other else { return Ok(()) };
        let asked = prompts.as_deref().or(drawn.map(Drawn::prompts)).unwrap_or_default();
        let samples = Samples {
            prompts: asked.len(),
            prompts_fingerprint: prompts_fingerprint(asked),
            generation: match drawn {
                Some(drawn) => drawn.generation().clone(),
                None => drawn_with(&self.flags.generation),
            },
            judge: judge.and_then(Judge::fingerprint),
            ..Samples::default()
        };
        if judge.is_none() && !drawn.is_some_and(Drawn::is_scored) {
            return Err(Error::Usage(
                "--compare_with: policies are compared by rewards; give --reward_model, or --samples with `scores`".into(),
            ));
        }
        let own = PolicyRecord {
            policy: self.policy(),
            samples: (!asked.is_empty()).then_some(samples),
            ..PolicyRecord::default()
        };
        let (_, others) = own.paired_with(other)?;
        let missing = |name: &&String| !others.scores.contains_key(*name);
        match self.flags.shift.iter().flat_map(|shift| &shift.objectives).find(missing) {
            Some(name) => Err(Error::Usage(format!(
                "--compare_with: the samples of {} have no score `{name}`; there are: {}",
                other.policy.label,
                others.scores.keys().cloned().collect::<Vec<_>>().join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// What the policy says: of the pairs, and of its samples, which it draws if it was given prompts.
    fn by_policy(
        &self,
        sets: &[Set],
        prompts: Option<Vec<Prompt>>,
        drawn: &mut Option<Drawn>,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<Scores>, Vec<f64>)> {
        let model = logps::load(&self.source, &self.settings, progress)?;
        let features =
            objective::environments(&self.settings, &self.objective).is_some() && self.reference.is_none();
        let how = (PairLayout::to_score(&self.objective), features);
        let score = |set: &Set| {
            let what = format!("policy on {}", set.spec);
            logps::score(&model, &set.pairs, how, &self.settings, &what, progress)
        };
        let scores = sets.iter().map(score).collect::<Result<_>>()?;
        if let Some(prompts) = prompts {
            let tokenizer = self.source.tokenizer()?;
            let eos = eos_ids(&self.source, Some(&tokenizer))?;
            let options = GenerateOptions { batch_size: self.batch_size, ..self.flags.generation.clone() };
            let template = self.flags.chat_template;
            let GenerateOptions { do_sample, temperature, top_k, top_p, .. } = options;
            if !do_sample || temperature != 1.0 || top_k != 0 || top_p != 1.0 {
                let what = "samples are not drawn from the policy as it is (do_sample, temperature, top_k, top_p): what is called KL is then the mean \
                            log-ratio of these texts, and no estimate of the divergence";
                progress.note(what);
            }
            *drawn =
                Some(Drawn::generate((&model, &tokenizer, &eos), prompts, template, &options, progress)?);
        }
        Ok((scores, self.sample_logps(drawn.as_ref(), &model, "policy", progress)?))
    }

    fn sample_logps(
        &self,
        drawn: Option<&Drawn>,
        model: &Model,
        who: &str,
        progress: &mut dyn Progress,
    ) -> Result<Vec<f64>> {
        let Some(drawn) = drawn else { return Ok(Vec::new()) };
        progress.start(&format!("{who} on samples"), drawn.len() as u64);
        let logps = drawn.logps(model, self.batch_size, progress)?;
        progress.finish();
        Ok(logps)
    }

    /// What the reference says of the same; without one, the policy is its own.
    fn by_reference(
        &self,
        sets: &[Set],
        policy: &[Scores],
        (drawn, logps): (Option<&Drawn>, &[f64]),
        tokenizer: &Tokenizer,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<Vec<Known>>, Vec<f64>)> {
        let (layout, needed) = (PairLayout::of(&self.objective), self.objective.needs_reference());
        let zeros = |set: &Set| {
            let of = |p: &TokenizedPair| Known { logps: layout.no_reference(p), ..Known::default() };
            set.pairs.iter().map(of).collect::<Vec<Known>>()
        };
        let Some(source) = &self.reference else {
            if !needed && drawn.is_none() {
                return Ok((sets.iter().map(zeros).collect(), Vec::new()));
            }
            let follows = if needed { "every implicit reward is 0" } else { "its samples have a KL of 0" };
            progress
                .note(&format!("no --ref_model_name_or_path: the policy is its own reference, so {follows}"));
            let own = |(set, scores)| if needed { Known::of(scores) } else { zeros(set) };
            return Ok((sets.iter().zip(policy).map(own).collect(), logps.to_vec()));
        };
        if !needed && drawn.is_none() {
            return Ok((sets.iter().map(zeros).collect(), Vec::new()));
        }
        let others = source.tokenizer()?;
        if others.fingerprint() != tokenizer.fingerprint() {
            for set in sets {
                let rows = logps::read(&set.spec, self.settings.text("dataset_test_split").as_deref())?;
                check_tokens(&set.pairs, &self.tokens(&set.spec, rows, &others, &mut Silent)?)?;
            }
            let template = self.flags.chat_template;
            drawn.map_or(Ok(()), |drawn| drawn.check_tokens(tokenizer, &others, template))?;
        }
        let (model, cache) =
            (logps::load(source, &self.settings, progress)?, plan::reference_cache_dir(&self.settings));
        let mut known = Vec::with_capacity(sets.len());
        if needed && !sets.is_empty() {
            let features = objective::environments(&self.settings, &self.objective).is_some();
            let how = (PairLayout::to_score(&self.objective), features);
            let mut reference = Reference::open(&model, how, cache.as_deref(), self.batch_size)?;
            for set in sets {
                progress.start(&format!("reference on {}", set.spec), set.pairs.len() as u64);
                let rows = Rows::of(&set.pairs)?;
                known.push(reference.known(&rows, &(0..rows.len()).collect::<Vec<_>>(), progress)?);
                progress.finish();
            }
        } else {
            known.extend(sets.iter().map(zeros));
        }
        Ok((known, self.sample_logps(drawn, &model, "reference", progress)?))
    }

    /// The policy once more: a pair's gradient needs what the reference said of it.
    fn add_input_gradients(
        &self,
        sets: &[Set],
        evaluated: &mut [Evaluated],
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let (model, layout) =
            (logps::load(&self.source, &self.settings, &mut Silent)?, PairLayout::of(&self.objective));
        for (set, found) in sets.iter().zip(evaluated) {
            progress.start(&format!("input gradients on {}", set.spec), set.pairs.len() as u64);
            let rows = (set.pairs.as_slice(), found.losses.as_slice());
            let norms = input_gradients(&model, layout, rows, self.batch_size, progress)?;
            found.set.input_gradients = Some(Column(norms));
            progress.finish();
        }
        Ok(())
    }

    fn policy(&self) -> Policy {
        let facts = &self.facts;
        let (flags, path) = (&self.flags, |p: &Path| p.display().to_string());
        let reference = self.reference.as_ref().unwrap_or(&self.source);
        let itself = output::is_same_place(&self.source.path, &reference.path);
        let (model_name_or_path, ref_model_name_or_path) = (path(&self.source.path), path(&reference.path));
        // What is its own reference is that, however it was made.
        let (own_method, own_label) = match itself {
            true => (Some("reference".to_string()), None),
            false => (facts.method().map(str::to_string), facts.label()),
        };
        let method = flags.policy_method.clone().or(own_method).unwrap_or_else(|| "unknown".into());
        let label = flags.label.clone().or(own_label).unwrap_or_else(|| method.clone());
        let (settings, seed) =
            (facts.settings.clone(), flags.policy_seed.or(facts.seed()).unwrap_or_default());
        Policy { model_name_or_path, ref_model_name_or_path, method, label, settings, seed }
    }

    /// The record, but for samples and time.
    fn record(&self, sets: &[Set], evaluated: Vec<Evaluated>) -> PolicyRecord {
        let named = sets.iter().zip(evaluated).map(|(set, mut found)| {
            (found.set.name, found.set.dataset_name) = (set.name.clone(), set.spec.clone());
            found.set
        });
        PolicyRecord {
            schema_version: POLICY_SCHEMA_VERSION,
            program: format!("seakeep {}", env!("CARGO_PKG_VERSION")),
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
            policy: self.policy(),
            shift: self.flags.shift.clone(),
            datasets: named.collect(),
            training: self.facts.training.clone(),
            ..PolicyRecord::default()
        }
    }

    /// What goes to standard output.
    fn result(&self, record: &PolicyRecord) -> Value {
        let set = |set: &seakeep::policy_record::PairSet| {
            let mut result = Map::from_iter([
                ("dataset_name".to_string(), json!(set.dataset_name)),
                ("name".to_string(), json!(set.name)),
                ("rows".to_string(), json!(set.margins.0.len())),
            ]);
            result.extend(set.metrics.clone());
            Value::Object(result)
        };
        let objective = self.objective.settings().into_iter().map(|(k, v)| (k.to_string(), v));
        json!({
            "model_name_or_path": record.policy.model_name_or_path,
            "ref_model_name_or_path": record.policy.ref_model_name_or_path,
            "method": self.method,
            "objective": objective.collect::<Map<_, _>>(),
            "datasets": record.datasets.iter().map(set).collect::<Vec<_>>(),
        })
    }
}

/// Two tokenizers may differ in their files and still give the same tokens; only then can log-probabilities be
/// compared.
fn check_tokens(policy: &[TokenizedPair], reference: &[TokenizedPair]) -> Result<()> {
    match policy.iter().zip(reference).find(|(a, b)| a != b) {
        None if policy.len() == reference.len() => Ok(()),
        differing => Err(Error::Usage(format!(
            "{}: model_name_or_path and ref_model_name_or_path make different tokens of row {}, so their \
             log-probabilities cannot be compared; the reference needs the policy's tokenizer and chat template",
            policy[0].file.display(),
            differing.map_or(policy[policy.len() - 1].row, |(a, _)| a.row)
        ))),
    }
}

/// The numbers a person compares first.
fn table(results: &[Value]) -> String {
    let columns = ["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"];
    let mut lines = vec![format!("{:>6} {:>10} {:>10} {:>10}  data", "rows", "loss", "accuracy", "margin")];
    for result in results {
        let numbers: String = columns
            .iter()
            .map(|c| result[*c].as_f64().map_or(format!(" {:>10}", "-"), |x| format!(" {x:>10.4}")))
            .collect();
        let name = result["dataset_name"].as_str().unwrap_or_default();
        lines.push(format!("{:>6}{numbers}  {name}", result["rows"].to_string()));
    }
    lines.join("\n")
}
