//! `seakeep quickstart`: the papers' experiment in small, from nothing, in minutes.
//!
//! A preference world with a known truth ([`crate::world`]); a tiny transformer fitted to its texts; aligned with
//! DPO, KLDPO and WDPO on pairs labelled at the nominal mixture, several seeds each; every policy judged at every
//! mixture by the true reward of its own samples. DPO stands at three values of beta, and the divergence from the
//! reference beside every reward, so that robustness can be told from caution.
//!
//! Everything passes through the same files and the same code as a real run: rows in JSONL, a model directory,
//! [`train::run`], checkpoints. Steps, learning rate and the middle beta were chosen once, looking at DPO alone, so that
//! it learns its nominal task within the time allowed (at the same learning rate beta 0.03 falls below the reference);
//! they are the same for all methods. Tau and rho are the papers' smallest for small models, not searched.

mod judge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::eval_record::{
    Ceiling, DataDescription, EvalRecord, Run, SCHEMA_VERSION, Timing, Training, TrainingPoint,
};
use crate::formats::{ModelSource, SaveDtype, write_atomic};
use crate::model::{Model, Numbers};
use crate::objective::rule::Kldpo;
use crate::objective::wdpo::{Form, Penalty, PromptGradient};
use crate::objective::{Objective, Rule};
use crate::optim::{AdamW, Schedule, Warmup};
use crate::progress::{Progress, Silent};
use crate::train::sft::{SftOptions, Text, sft};
use crate::train::{self, Every, TrainOptions};
use crate::world::{Mixture, NOMINAL_ALPHA, Split, World, WorldConfig};
use crate::{Error, Result, checkpoint, report};
use judge::Judge;

/// What the user may choose.
#[derive(Clone, Debug)]
pub struct QuickstartOptions {
    /// Where everything is written.
    pub output_dir: PathBuf,
    /// Seed of the world, the texts and the model.
    pub seed: u64,
    /// Runs of each method; each draws its own training pairs.
    pub seeds: usize,
    /// The command, for the record.
    pub command_line: String,
}

const RECORD: &str = "eval.json";
const PAGE: &str = "report.html";
/// Every judged mixture.
const ALPHAS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
const SFT: SftOptions = SftOptions { steps: 400, batch_size: 64, learning_rate: 3e-3, seed: 0 };
const SFT_TEXTS: usize = 8192;
const TRAINING_PAIRS: usize = 2048;
const TRAINING_STEPS: usize = 128;
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 3e-4;

/// A method as the table lists it.
struct Method {
    method: &'static str,
    label: &'static str,
    objective: Objective,
    settings: Value,
}

fn methods() -> Vec<Method> {
    let dpo = Objective::dpo;
    let plain =
        |label, beta| Method { method: "dpo", label, objective: dpo(beta), settings: json!({"beta": beta}) };
    let (tau, rho) = (0.5, 0.1);
    let penalty = Penalty { rho, form: Form::Paper, prompt_gradient: PromptGradient::Shared };
    vec![
        plain("DPO beta 0.3", 0.3),
        plain("DPO beta 0.1", 0.1),
        plain("DPO beta 1", 1.0),
        Method {
            method: "kldpo",
            label: "KLDPO beta 0.3, tau 0.5",
            objective: Objective { rule: Rule::Kldpo(Kldpo::Tau(tau)), ..dpo(0.3) },
            settings: json!({"beta": 0.3, "kldpo_tau": tau}),
        },
        Method {
            method: "wdpo",
            label: "WDPO beta 0.3, rho 0.1",
            objective: Objective { penalty: Some(penalty), ..dpo(0.3) },
            settings: json!({"beta": 0.3, "wdpo_rho": rho}),
        },
    ]
}

/// The tiny transformer: a Llama of about 90,000 parameters.
fn model_config(vocabulary: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary,
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "initializer_range": 0.08,
        "bos_token_id": crate::world::BOS, "eos_token_id": crate::world::EOS, "pad_token_id": crate::world::PAD,
        "attention_bias": false, "mlp_bias": false
    })
}

/// Runs the experiment; writes `data/`, `reference/`, `runs/`, `eval.json` and `report.html` into the output
/// directory; returns the record.
///
/// # Errors
/// An output directory that holds something already or cannot be written.
pub fn run(options: &QuickstartOptions, progress: &mut dyn Progress) -> Result<EvalRecord> {
    let started = Instant::now();
    prepare(options, progress)?;
    let world = World::new(WorldConfig { seed: options.seed, ..WorldConfig::default() })?;
    let mut timing = Timing::default();
    let mut phase = |name: &str, since: &mut Instant| {
        timing.phases.push((name.to_string(), since.elapsed().as_secs_f64()));
        *since = Instant::now();
    };
    let mut since = Instant::now();

    write_data(options, &world)?;
    let reference = fit_reference(options, &world, progress)?;
    phase("supervised fine-tuning", &mut since);
    let judge = Judge::new(&world, &reference, options.seed, &ALPHAS)?;
    let reference_eval = judge.policy(&reference, None)?;
    let (runs, samples) = align(options, &judge, progress)?;
    phase("alignment and evaluation", &mut since);
    timing.total_seconds = started.elapsed().as_secs_f64();
    timing.machine = format!("{} threads", rayon::current_num_threads());

    let record = EvalRecord {
        schema_version: SCHEMA_VERSION,
        program: format!("seakeep {}", env!("CARGO_PKG_VERSION")),
        command_line: options.command_line.clone(),
        title: "Seakeep quickstart: alignment under a shift of preferences".into(),
        question: "A policy is aligned with preferences labelled by a population that is mostly one kind of annotator \
                   (alpha 0.1). How much reward does it get when the mixture shifts? Does a robust objective keep \
                   more of it than DPO does at the same distance from the reference?"
            .into(),
        data: describe(&world, options),
        nominal_alpha: NOMINAL_ALPHA,
        reference: reference_eval.eval,
        ceilings: ceilings(&world),
        runs,
        samples: judge.side_by_side(&reference_eval.texts, &samples),
        config: json!({
            "model": model_config(world.vocabulary().len()),
            "sft": {"steps": SFT.steps, "batch_size": SFT.batch_size, "learning_rate": SFT.learning_rate, "texts": SFT_TEXTS},
            "alignment": {"steps": TRAINING_STEPS, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "pairs": TRAINING_PAIRS},
            "world": world.config(),
            "seed": options.seed, "seeds": options.seeds,
        }),
        timing,
    };
    let json = serde_json::to_string_pretty(&record).expect("a record serialises");
    write_atomic(options.output_dir.join(RECORD), json.as_bytes())?;
    write_atomic(options.output_dir.join(PAGE), report::render(&report::of_eval(&record)).as_bytes())?;
    Ok(record)
}

/// The file that tells a quickstart's directory from any other.
const MARKER: &str = "quickstart.json";

/// The output directory must be new, empty, or an earlier quickstart, which is replaced: the same command gives the
/// same files again.
fn prepare(options: &QuickstartOptions, progress: &mut dyn Progress) -> Result<()> {
    let dir = &options.output_dir;
    let used = dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if used && !dir.join(MARKER).is_file() {
        return Err(Error::Usage(format!(
            "output_dir {} is not empty and not an earlier quickstart; choose another",
            dir.display()
        )));
    }
    if used {
        progress.note(&format!("replacing the earlier quickstart in {}", dir.display()));
    }
    for part in ["data", "reference", "runs"] {
        let path = dir.join(part);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    for file in [RECORD, PAGE] {
        let path = dir.join(file);
        if path.exists() {
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    let text =
        json!({"command": options.command_line, "seed": options.seed, "seeds": options.seeds}).to_string();
    write_atomic(dir.join(MARKER), text.as_bytes())
}

fn training_file(options: &QuickstartOptions, seed: usize) -> PathBuf {
    options.output_dir.join(format!("data/train-{seed}.jsonl"))
}

/// One file of training pairs for each seed, labelled at the nominal mixture.
fn write_data(options: &QuickstartOptions, world: &World) -> Result<()> {
    for seed in 0..options.seeds {
        let data_seed = options.seed.wrapping_mul(1000).wrapping_add(seed as u64);
        let rows = world.rows(TRAINING_PAIRS, Split::Train, Mixture::Convex, NOMINAL_ALPHA, data_seed);
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        write_atomic(training_file(options, seed), text.as_bytes())?;
    }
    Ok(())
}

/// Fits a random model to the world's texts and writes it to `reference/`.
fn fit_reference(options: &QuickstartOptions, world: &World, progress: &mut dyn Progress) -> Result<Model> {
    let directory = options.output_dir.join("reference");
    for (name, value) in
        [("tokenizer.json", world.tokenizer_json()), ("tokenizer_config.json", world.tokenizer_config_json())]
    {
        write_atomic(directory.join(name), value.to_string().as_bytes())?;
    }
    let config = model_config(world.vocabulary().len());
    let mut model = Model::random(&config, options.seed)?;
    let texts: Vec<Text> = world
        .sft_texts(SFT_TEXTS, options.seed)
        .into_iter()
        .map(|text| (text.prompt_ids, text.completion_ids))
        .collect();
    sft(&mut model, &texts, &SftOptions { seed: options.seed, ..SFT }, progress)?;
    model.save(&directory, &config, SaveDtype::F32)?;
    Ok(model)
}

/// A method's label, and the tokens of its policy's samples.
type LabelledSamples = Vec<(String, Vec<Vec<u32>>)>;

/// Trains and judges every method and seed, as many at a time as there are threads: small models keep one core
/// busy, not several.
fn align(
    options: &QuickstartOptions,
    judge: &Judge,
    progress: &mut dyn Progress,
) -> Result<(Vec<Run>, LabelledSamples)> {
    let methods = methods();
    let work: Vec<(&Method, usize)> =
        (0..options.seeds).flat_map(|s| methods.iter().map(move |m| (m, s))).collect();
    progress.start("aligning and judging", work.len() as u64);
    let shared = Mutex::new(progress);
    let done: Vec<(Run, Vec<Vec<u32>>)> = work
        .par_iter()
        .map(|&(method, seed)| {
            let one = align_one(options, judge, method, seed)?;
            shared.lock().expect("no thread panicked").advance(1, method.label);
            Ok(one)
        })
        .collect::<Result<_>>()?;
    shared.into_inner().expect("no thread panicked").finish();
    let samples =
        done.iter().take(methods.len()).map(|(run, texts)| (run.label.clone(), texts.clone())).collect();
    let mut runs: Vec<Run> = done.into_iter().map(|(run, _)| run).collect();
    runs.sort_by_key(|run| methods.iter().position(|m| m.label == run.label));
    Ok((runs, samples))
}

fn align_one(
    options: &QuickstartOptions,
    judge: &Judge,
    method: &Method,
    seed: usize,
) -> Result<(Run, Vec<Vec<u32>>)> {
    let started = Instant::now();
    let slug: String = method.label.to_lowercase().replace(", ", "-").replace(' ', "-");
    let output_dir = options.output_dir.join(format!("runs/{slug}-seed-{seed}"));
    let plan = TrainOptions {
        numbers: Numbers::default(),
        lora: None,
        model_name_or_path: options.output_dir.join("reference"),
        ref_model_name_or_path: None,
        dataset_name: training_file(options, seed).display().to_string(),
        dataset_text_field: "text".into(),
        dataset_train_split: "train".into(),
        dataset_test_split: None,
        eval_dataset_name: None,
        dataset_cache_dir: None,
        dry_run: false,
        reference_cache_dir: None,
        output_dir: output_dir.clone(),
        overwrite_output_dir: false,
        method: method.method.into(),
        objective: method.objective.clone(),
        environments: None,
        tokenize: Default::default(),
        shuffle_dataset: true,
        per_device_train_batch_size: BATCH,
        per_device_eval_batch_size: 64,
        gradient_accumulation_steps: 1,
        gradient_checkpointing: false,
        num_train_epochs: 1.0,
        max_steps: Some(TRAINING_STEPS),
        learning_rate: LEARNING_RATE,
        schedule: Schedule::Linear,
        warmup: Warmup::Ratio(0.1),
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        logging: Every::Steps(4),
        eval: Every::No,
        save: Every::Steps(TRAINING_STEPS),
        save_total_limit: Some(1),
        seed: seed as u64,
        resume_from_checkpoint: None,
        tensorboard: true,
        save_dtype: SaveDtype::F32,
    };
    train::run(&plan, &mut Silent)?;
    let seconds = started.elapsed().as_secs_f64();
    // From the checkpoint, as a user would take it.
    let newest = checkpoint::list(&output_dir).pop().map_or(output_dir.clone(), |(_, path)| path);
    let policy = Model::load(&ModelSource::open(&newest)?)?;
    let judged = judge.policy(&policy, Some(method.objective.pair.beta))?;
    let settings: BTreeMap<String, Value> =
        method.settings.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let run = Run {
        method: method.method.into(),
        label: method.label.into(),
        settings,
        seed: seed as u64,
        kl_per_token: judged.kl_per_token,
        eval: judged.eval,
        training: Some(Training { steps: training_points(&output_dir)?, seconds }),
    };
    Ok((run, judged.texts))
}

/// What `metrics.jsonl` says of loss and margin.
fn training_points(output_dir: &Path) -> Result<Vec<TrainingPoint>> {
    let path = output_dir.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines
        .map(|v| TrainingPoint {
            step: v["step"].as_u64().unwrap_or(0),
            loss: number(&v["loss"]),
            margin: number(&v["rewards/margins"]),
        })
        .collect())
}

fn describe(world: &World, options: &QuickstartOptions) -> DataDescription {
    let facts = [
        ("training pairs of each seed", json!(TRAINING_PAIRS)),
        ("training prompts", json!(world.prompts(Split::Train).len())),
        ("test prompts", json!(world.prompts(Split::Test).len())),
        ("vocabulary", json!(world.vocabulary().len())),
        ("Bradley-Terry scale", json!(world.config().reward_scale)),
    ];
    DataDescription {
        name: format!("preference world, seed {}", options.seed),
        description: "Short requests and answers from a grammar; two populations of annotators weigh warmth, brevity, \
                      formality and caution differently. Training pairs are labelled by Bradley-Terry from the convex \
                      mixture at alpha 0.1; alpha is the share of population 1. Test prompts never occur in training."
            .into(),
        facts: facts.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
    }
}

fn ceilings(world: &World) -> Vec<Ceiling> {
    let points: Vec<(Mixture, f64)> =
        Mixture::ALL.into_iter().flat_map(|m| ALPHAS.map(|alpha| (m, alpha))).collect();
    let rewards = world.ceilings(Split::Test, &points);
    points
        .into_iter()
        .zip(rewards)
        .map(|((mixture, alpha), reward)| Ceiling { mixture: mixture.name().into(), alpha, reward })
        .collect()
}
