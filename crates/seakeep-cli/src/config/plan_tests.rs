use std::path::{Path, PathBuf};

use clap::Command;

use super::*;
use crate::args;
use seakeep::objective::rule::Kldpo;
use seakeep::objective::wdpo::{Form, Penalty, PromptGradient};
use seakeep::objective::{LossType, PairLoss, Rule};

fn settings(flags: &str) -> Result<Settings> {
    let command = args::all_keyed(Command::new("train").args_override_self(true));
    let words = std::iter::once("train").chain(flags.split_whitespace());
    Settings::read(&command.try_get_matches_from(words).unwrap())
}

const NEEDED: &str = "--model_name_or_path m --dataset_name d.jsonl --output_dir out";

fn planned(flags: &str) -> TrainOptions {
    plan(&settings(&format!("{NEEDED} {flags}")).unwrap()).unwrap()
}

/// The message of the usage error that these flags make.
fn refused(flags: &str) -> String {
    match settings(&format!("{NEEDED} {flags}")).and_then(|s| plan(&s)) {
        Err(Error::Usage(what)) => what,
        other => panic!("{flags}: {other:?}"),
    }
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn defaults_are_those_of_trl_and_hugging_face() {
    let o = planned("");
    assert_eq!(o.model_name_or_path, Path::new("m"));
    assert_eq!(o.ref_model_name_or_path, None);
    assert_eq!((o.dataset_name.as_str(), o.dataset_train_split.as_str()), ("d.jsonl", "train"));
    assert_eq!((o.dataset_test_split, o.eval_dataset_name), (None, None));
    assert_eq!((o.method.as_str(), o.objective.rule, o.objective.penalty), ("dpo", Rule::Mean, None));
    assert_eq!(o.objective.pair, PairLoss::dpo(0.1));
    assert_eq!(o.tokenize.max_length, Some(1024));
    assert_eq!(o.tokenize.truncation_mode, TruncationMode::KeepStart);
    assert_eq!(o.tokenize.prompt_mismatch, PromptMismatch::Error);
    assert_eq!(o.tokenize.truncated_completion, TruncatedCompletion::Error);
    assert!(o.shuffle_dataset && !o.overwrite_output_dir && o.tensorboard);
    assert_eq!((o.per_device_train_batch_size, o.per_device_eval_batch_size), (8, 8));
    assert_eq!((o.gradient_accumulation_steps, o.num_train_epochs, o.max_steps), (1, 3.0, None));
    assert_eq!((o.learning_rate, o.schedule, o.warmup), (1e-6, Schedule::Linear, Warmup::Steps(0)));
    assert_eq!(o.optimizer, AdamW::default());
    assert_eq!((o.max_grad_norm, o.logging, o.seed), (1.0, Every::Steps(10), 42));
    assert_eq!((o.eval, o.save, o.save_total_limit), (Every::No, Every::Steps(500), None));
    assert_eq!((o.resume_from_checkpoint, o.save_dtype), (None, SaveDtype::F32));
}

#[test]
fn flags_override_the_file_and_the_file_the_defaults() {
    let (_keep, path) =
        file("run.toml", "beta = 0.3\nseed = 7\nshuffle_dataset = false\nbf16 = false\nmax_length = 0\n");
    let o = planned(&format!("--config {} --beta 0.2 --max-steps 5", path.display()));
    assert_eq!((o.objective.pair.beta, o.seed, o.shuffle_dataset), (0.2, 7, false));
    assert_eq!((o.max_steps, o.tokenize.max_length), (Some(5), None));
}

#[test]
fn yaml_and_json_say_the_same() {
    let yaml =
        "learning_rate: 5.0e-7\nreport_to: [none]\neval_steps:\nsave_strategy: no\nloss_type: [sigmoid]\n";
    let json = r#"{"learning_rate": 5e-7, "report_to": "none", "save_strategy": "no"}"#;
    for (name, text) in [("a.yaml", yaml), ("a.json", json)] {
        let (_keep, path) = file(name, text);
        let o = planned(&format!("--config {}", path.display()));
        assert_eq!((o.learning_rate, o.tensorboard, o.save), (5e-7, false, Every::No), "{name}");
    }
}

#[test]
fn what_trl_writes_out_means_what_it_means_there() {
    // QLoRA as TRL has it: `dtype` is then the form of what is not quantised.
    let o = planned("--load_in_4bit true --dtype bfloat16 --use_peft true");
    assert_eq!(o.numbers.keep.name(), "q4_0");
    let (_keep, path) =
        file("a.json", r#"{"report_to": [], "do_train": false, "train_sampling_strategy": "random"}"#);
    assert!(!planned(&format!("--config {}", path.display())).tensorboard);
    let (_keep, path) = file("a.json", r#"{"train_sampling_strategy": "sequential"}"#);
    assert!(refused(&format!("--config {}", path.display())).contains("set shuffle_dataset = false"));
    let (_keep, path) = file("a.yaml", "torch_dtype: float16\n");
    assert!(refused(&format!("--config {}", path.display())).contains("`torch_dtype` is \"float16\""));

    let (_keep, path) = file("a.json", r#"{"loss_type": "nll", "dataset_kwargs": null}"#);
    let command = args::all_keyed(Command::new("sft"));
    let words = format!("sft {NEEDED} --config {}", path.display());
    let matches = command.try_get_matches_from(words.split_whitespace()).unwrap();
    let settings = Settings::read_with(&matches, SFT_DEFAULTS, SFT_WORDS).unwrap();
    assert_eq!(sft(&settings).unwrap().learning_rate, 2e-5);
}

#[test]
fn a_file_is_refused_with_file_key_and_what_was_expected() {
    for (name, text, wanted) in [
        ("a.toml", "betta = 0.1", "`betta` is not a key of Seakeep; did you mean `beta`?"),
        ("a.toml", "max_lenght = 5", "did you mean `max_length`?"),
        ("a.toml", "qqqq = 5", "`seakeep help keys` lists them all"),
        ("a.toml", "beta = \"high\"", "`beta` is \"high\"; expected a number above 0"),
        ("a.toml", "beta = 0", "`beta` is 0; expected a number above 0"),
        ("a.toml", "max_steps = true", "`max_steps` is true; expected a whole number above 0 (-1: none)"),
        ("a.toml", "[train]\nbeta = 0.1", "`train` is not a key"),
        ("a.toml", "beta = 0.1\nbeta = 0.2", "duplicate key"),
        ("a.toml", "beta 0.1", "line 1"),
        ("a.yaml", "beta: 0.1\nbeta: 0.2", "duplicate"),
        ("a.json", r#"{"beta": 0.1, "beta": 0.2}"#, "`beta` is given twice"),
        (
            "a.json",
            r#"{"eval_strategy": "no", "evaluation_strategy": "epoch"}"#,
            "is another name of it; give it once",
        ),
        ("a.yaml", "- beta", "expected keys and values"),
        (
            "a.toml",
            "reference_free = true",
            "`reference_free` is true: Seakeep does not do that (yet): use loss_type simpo",
        ),
        ("a.txt", "beta = 0.1", "expected .toml, .yaml"),
    ] {
        let (_keep, path) = file(name, text);
        let message = refused(&format!("--config {}", path.display()));
        assert!(message.contains(wanted) && message.contains(name), "{text}: {message}");
    }
}

#[test]
fn flags_are_refused_with_key_value_and_what_was_expected() {
    for (flags, wanted) in [
        ("--beta 0", "--beta is 0.0; expected a number above 0"),
        ("--gradient_accumulation_steps 9223372036854775808", "rows a step; expected fewer"),
        ("--adam_epsilon 0", "--adam_epsilon is 0.0; expected a number above 0"),
        ("--beta abc", "--beta is \"abc\"; expected a number above 0"),
        ("--lora_r 8", "--lora_r has no meaning without adapters; add use_peft = true"),
        ("--use_peft --lora_r 0", "--lora_r is 0; expected a whole number, 1 or above"),
        ("--use_peft --lora_target_modules all-linear,q_proj", "names all-linear and others"),
        ("--use_peft --lora_dropout 1", "--lora_dropout is 1.0; expected a number from 0 to below 1"),
        ("--use_dora", "--use_dora has no meaning without adapters; add use_peft = true"),
        ("--label_smoothing 0.5", "expected a number from 0 to below 0.5"),
        ("--kldpo_tau -1 --method kldpo", "--kldpo_tau is -1.0; expected a number above 0"),
        ("--wdpo_rho -0.5 --method wdpo", "expected a number, 0 or above"),
        ("--per_device_train_batch_size 0", "expected a whole number, 1 or above"),
        ("--gradient_accumulation_steps 1.5", "expected a whole number, 1 or above"),
        ("--max_length 1", "expected a whole number, 2 or above (0 or none: no limit)"),
        ("--shuffle_dataset maybe", "expected true or false"),
        ("--method ppo", "--method is \"ppo\"; expected one of: dpo, kldpo, wdpo"),
        ("--loss_type tdpo", "--loss_type is [\"tdpo\"]; expected one or several of: sigmoid, hinge"),
        ("--rule median", "--rule is \"median\"; expected one of: mean, kldpo"),
        ("--cvar_alpha 0 --rule cvar", "expected a number above 0, up to 1"),
        ("--loss_weights 1,x", "expected a number, or several"),
        ("--dtype float16", "expected one of: float32, bfloat16, auto"),
        ("--load_in_4bit true", "add use_peft = true to train adapters on it"),
        ("--load_in_4bit true --load_in_8bit true --use_peft true", "ask for two forms"),
        ("--report_to wandb", "expected one or several of: tensorboard, none"),
        ("--fp16", "products are in float32, or with bf16 in bfloat16"),
        ("--optim adafactor", "expected one of: adamw_torch"),
        ("--adam_beta2 1", "expected a number from 0 to below 1"),
    ] {
        let message = refused(flags);
        assert!(message.contains(wanted), "{flags}: {message}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (flags, wanted) in [
        ("--wdpo_rho 1 --method kldpo", "--wdpo_rho has no meaning with method kldpo"),
        ("--wdpo_rho 1", "--wdpo_rho has no meaning with method dpo; leave it out or choose method wdpo"),
        ("--kldpo_tau 1", "--kldpo_tau has no meaning with method dpo; leave it out or choose method kldpo"),
        (
            "--rule cvar --tv_rho 0.1",
            "--tv_rho has no meaning with rule cvar; leave it out or choose method tv",
        ),
        ("--soft_label_column votes", "no meaning with method dpo; leave it out or choose method dpo-pro"),
        ("--method kldpo --kldpo_tau 1 --kldpo_rho 1", "give one of them"),
        ("--method kldpo --kldpo_rho 1 --kldpo_form official", "give kldpo_tau"),
        (
            "--method kldpo --rule cvar",
            "--rule is cvar, but method kldpo is rule kldpo: leave one of the two out",
        ),
        ("--method simpo --loss_type hinge", "method simpo is loss_type simpo"),
        ("--loss_type sigmoid,hinge --loss_weights 1", "--loss_weights has 1 numbers for 2 losses"),
        ("--loss_type exo_pair", "label_smoothing above 0"),
        (
            "--simpo_gamma 1",
            "--simpo_gamma has no meaning with loss_type sigmoid; leave it out or use loss_type simpo",
        ),
        ("--f_alpha_divergence_coef 0.7", "without f_divergence_type alpha_divergence"),
        ("--method cdpo --loss_type ipo", "label_smoothing is 0.1, which loss_type ipo takes no notice of"),
        ("--rule winsor --winsor_budget_min 0.6", "above winsor_budget_max"),
        ("--method winsor --loss_type softmax", "method winsor: rule winsor asks"),
        ("--loss_type nca_pair --f_divergence_type js_divergence", "f_divergence_type goes with sigmoid"),
        ("--method causaldpo --loss_type kto", "kto has no pairs"),
        ("--method wdpo --rule causal", "causal_lambda = 0"),
        ("--min_lr_rate 0.1", "no meaning with lr_scheduler_type linear"),
        ("--lr_scheduler_type cosine_with_min_lr", "needs min_lr_rate"),
        ("--lr_scheduler_type constant --warmup_steps 5", "constant_with_warmup"),
        ("--warmup_steps 5 --warmup_ratio 0.1", "give one of them"),
        ("--warmup_steps 5.5", "expected a whole number"),
        ("--eval_strategy steps", "dataset_test_split"),
    ] {
        let message = refused(flags);
        assert!(message.contains(wanted), "{flags}: {message}");
    }
}

#[test]
fn what_is_needed_is_asked_for() {
    for key in ["model_name_or_path", "dataset_name", "output_dir"] {
        let flags: Vec<&str> = NEEDED.split(' ').collect();
        let rest: Vec<&str> =
            flags.chunks(2).filter(|pair| pair[0] != format!("--{key}")).flatten().copied().collect();
        let error = settings(&rest.join(" ")).and_then(|s| plan(&s)).unwrap_err();
        assert!(error.to_string().contains(&format!("give --{key}")), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn methods_have_their_knobs() {
    let objective = |flags: &str| planned(flags).objective;
    let penalty = |flags: &str| objective(flags).penalty.unwrap();
    assert_eq!(objective("--method kldpo").rule, Rule::Kldpo(Kldpo::Tau(0.5)));
    assert_eq!(objective("--method kldpo --beta 0.01").rule, Rule::Kldpo(Kldpo::Tau(0.05)));
    assert_eq!(objective("--method kldpo --kldpo_rho 0.2").rule, Rule::Kldpo(Kldpo::Rho(0.2)));
    let official = objective("--method kldpo --kldpo_tau 2 --kldpo_form official").rule;
    assert_eq!(official, Rule::Kldpo(Kldpo::Official(2.0)));
    let (paper, shared, separate) = (Form::Paper, PromptGradient::Shared, PromptGradient::Separate);
    let expected = Penalty { rho: 0.01, form: paper, prompt_gradient: shared };
    assert_eq!(penalty("--method wdpo"), expected);
    assert_eq!(penalty("--method wdpo --wdpo_prompt_gradient separate").prompt_gradient, separate);
    assert_eq!(penalty("--method wdpo --wdpo_form official").prompt_gradient, separate);
    // Well defined, if nobody's published choice.
    let both = penalty("--method wdpo --wdpo_form official --wdpo_prompt_gradient shared --wdpo_rho 1");
    assert_eq!(both, Penalty { rho: 1.0, form: Form::Official, prompt_gradient: shared });
    // Every method makes an objective; what is given besides wins.
    for method in crate::config::methods::METHODS {
        let o = planned(&format!("--method {}", method.name));
        assert_eq!(o.method, method.name);
        assert_eq!(o.environments, (method.name == "causaldpo").then_some(2));
    }
    assert_eq!(planned("--method dpo_pro").method, "dpo-pro");
    let simpo = objective("--method simpo --simpo_gamma 1.6").pair;
    assert_eq!(simpo, PairLoss::of(LossType::Simpo { gamma: 1.6 }, 2.0));
    let dpo_pro = planned("--method dpo-pro --soft_label_column votes");
    assert_eq!(
        (dpo_pro.objective.pair.label_smoothing, dpo_pro.tokenize.labels.soft.as_deref()),
        (0.0, Some("votes"))
    );
}

#[test]
fn losses_rules_and_the_penalty_compose() {
    let objective = |flags: &str| planned(flags).objective;
    let mixed =
        objective("--loss_type sigmoid,bco_pair,sft --loss_weights 0.8,0.2,1 --rpo_alpha 0.5").pair.terms;
    let names: Vec<(&str, f64)> = mixed.iter().map(|t| (t.0.name(), t.1)).collect();
    assert_eq!(names, [("sigmoid", 0.8), ("bco_pair", 0.2), ("sft", 1.0), ("sft", 0.5)]);
    let o = objective("--method wdpo --rule kldpo --kldpo_rho 0.3 --loss_type hinge --wdpo_rho 2");
    assert_eq!((o.rule, o.penalty.map(|p| p.rho)), (Rule::Kldpo(Kldpo::Rho(0.3)), Some(2.0)));
    assert_eq!(o.pair.terms, [(LossType::Hinge, 1.0)]);
    assert_eq!(objective("--rule dpo-pro").rule.name(), "dpo_pro");
    let (_keep, path) = file("text.yaml", "loss_type: sigmoid, sft\n");
    assert_eq!(objective(&format!("--config {}", path.display())).pair.terms.len(), 2);
    let o = planned("--rule cvar --cvar_alpha 0.2 --wdpo_rho 0.1");
    assert_eq!((o.method.as_str(), o.objective.rule), ("custom", Rule::Cvar { alpha: 0.2 }));
    assert!(o.objective.penalty.is_some());
    let (_keep, path) = file(
        "mix.yaml",
        "loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.2]\nld_alpha:\ndiscopop_tau: 0.05\n",
    );
    assert_eq!(objective(&format!("--config {}", path.display())).pair.terms.len(), 2);
}

#[test]
fn schedules_warm_up_and_intervals() {
    let o = planned("--lr_scheduler_type cosine_with_min_lr --min_lr_rate 0.1 --warmup_ratio 0.1");
    assert_eq!((o.schedule, o.warmup), (Schedule::Cosine { min_lr_rate: 0.1 }, Warmup::Ratio(0.1)));
    assert_eq!(planned("--warmup_steps 0.03").warmup, Warmup::Ratio(0.03));
    assert_eq!(planned("--warmup_steps 12").warmup, Warmup::Steps(12));
    let o = planned("--lr_scheduler_type constant_with_warmup --warmup_steps 1");
    assert_eq!((o.schedule, o.warmup), (Schedule::Constant, Warmup::Steps(1)));
    let o = planned(
        "--eval_strategy steps --dataset_test_split train[:9] --save_strategy epoch --save_total_limit 2",
    );
    assert_eq!((o.eval, o.save, o.save_total_limit), (Every::Steps(10), Every::Epoch, Some(2)));
    let o = planned("--evaluation_strategy steps --eval_steps 3 --eval_dataset_name e.jsonl");
    assert_eq!(o.eval, Every::Steps(3));
    let o =
        planned("--logging_steps 0.1 --save_steps 0.25 --eval_strategy steps --eval_dataset_name e.jsonl");
    assert_eq!((o.logging, o.eval, o.save), (Every::Share(0.1), Every::Share(0.1), Every::Share(0.25)));
    assert_eq!(planned("--logging_strategy epoch").logging, Every::Epoch);
    assert_eq!(planned("--resume_from_checkpoint").resume_from_checkpoint, Some(Resume::Latest));
    assert_eq!(planned("--resume_from_checkpoint false").resume_from_checkpoint, None);
    let from = planned("--resume_from_checkpoint out/checkpoint-5").resume_from_checkpoint;
    assert_eq!(from, Some(Resume::From("out/checkpoint-5".into())));
}

#[test]
fn sft_has_the_defaults_of_trls_sftconfig() {
    let read = |flags: &str| {
        let command = args::text_keyed(Command::new("sft"));
        let words = format!("sft {NEEDED} {flags}");
        Settings::read_with(
            &command.try_get_matches_from(words.split_whitespace()).unwrap(),
            SFT_DEFAULTS,
            SFT_WORDS,
        )
    };
    let o = sft(&read("").unwrap()).unwrap();
    assert_eq!((o.method.as_str(), &o.objective), ("sft", &Objective::sft()));
    assert_eq!((o.learning_rate, o.num_train_epochs, o.tokenize.max_length), (2e-5, 3.0, Some(1024)));
    assert_eq!((o.dataset_text_field.as_str(), o.tokenize.learn_prompts), ("text", false));
    assert_eq!((o.per_device_train_batch_size, o.logging, o.save), (8, Every::Steps(10), Every::Steps(500)));
    let o = sft(&read("--learning_rate 1e-6 --completion_only_loss false").unwrap()).unwrap();
    assert_eq!((o.learning_rate, o.tokenize.learn_prompts), (1e-6, true));
    // Of a run on preferences nothing changes.
    assert!(!planned("").tokenize.learn_prompts);
}
