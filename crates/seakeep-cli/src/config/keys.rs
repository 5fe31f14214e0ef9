//! The one table of keys. Each is a flag (`--beta 0.1`) and a key of the configuration file (`beta = 0.1`).
//!
//! Names and defaults are those of TRL's `DPOConfig`, `ModelConfig` and `ScriptArguments` and of Hugging Face's
//! `TrainingArguments`; "Seakeep's own" marks the others.

use super::kind::{Kind, Range};
use super::methods::LOSSES;

/// A key.
pub struct Key {
    /// Name, with underscores.
    pub name: &'static str,
    /// What the value may be.
    pub kind: Kind,
    /// The value when none is given, as a flag would spell it.
    pub default: Option<&'static str>,
    /// Heading in the help.
    pub group: &'static str,
    /// One or two sentences.
    pub help: &'static str,
}

const MODEL: &str = "Model";
const DATA: &str = "Data";
const TEXTS: &str = "Texts";
const OBJECTIVE: &str = "Objective";
const TRAINING: &str = "Training";
const ADAPTERS: &str = "Adapters";
const KEEPING: &str = "Evaluating, saving, logging";
const MACHINE: &str = "Machine";

const fn key(
    group: &'static str,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
) -> Key {
    Key { name, kind, default, group, help }
}

/// The names of the pair losses.
const LOSS_TYPES: &[&str] = &{
    let mut names = [""; LOSSES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = LOSSES[i].0;
        i += 1;
    }
    names
};

/// The robust rules.
pub const RULES: &[&str] =
    &["mean", "kldpo", "drdpo", "winsor", "dpo_pro", "causal", "chi2", "cvar", "tv", "group"];

/// The names of the keys that say what is minimised.
pub fn objective_keys() -> Vec<&'static str> {
    of_group(OBJECTIVE)
}

/// The names of the keys that have a meaning only for texts that are learnt as they are.
pub fn text_keys() -> Vec<&'static str> {
    of_group(TEXTS)
}

/// The names of the keys that have a meaning only with adapters.
pub fn adapter_keys() -> Vec<&'static str> {
    of_group(ADAPTERS).into_iter().filter(|name| *name != "use_peft").collect()
}

/// The names of the keys that have a meaning only for preferences.
pub fn preference_keys() -> Vec<&'static str> {
    [&of_group(OBJECTIVE)[..], &["ref_model_name_or_path", "reference_cache_dir"]].concat()
}

fn of_group(group: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|key| key.group == group).map(|key| key.name).collect()
}

/// Every key.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key(MODEL, "model_name_or_path", Kind::Path, None,
        "The model: a Hugging Face directory (config.json, safetensors, tokenizer.json) or a .gguf file."),
    key(MODEL, "ref_model_name_or_path", Kind::Path, None,
        "The reference model. Default: the model itself, as it is at the start."),
    key(MODEL, "reference_cache_dir", Kind::Path, None,
        "Where what the reference says of each row is kept for other runs, by the model's weights and the row's tokens; none: \
         nowhere. Default: $SEAKEEP_CACHE, or seakeep in $XDG_CACHE_HOME or ~/.cache. (Seakeep's own.)"),
    key(MODEL, "dtype", Kind::Choice(&["float32", "bfloat16", "auto"]), Some("float32"),
        "Form in which the model's matrices are kept in memory (everything else is in float32): bfloat16 halves them, rounding each update up or \
         down at random; auto: as the file has them, so that a quantised .gguf stays quantised (to be trained by adapters)."),
    key(MODEL, "load_in_8bit", Kind::Switch, Some("false"),
        "Quantises the matrices to 8 bits (Q8_0) when they are loaded, to train adapters on (use_peft)."),
    key(MODEL, "load_in_4bit", Kind::Switch, Some("false"),
        "Quantises the matrices to 4 bits (Q4_0, whatever bnb_4bit_quant_type says) when they are loaded, to train adapters on (use_peft): \
         QLoRA. Beside it dtype changes nothing."),
    key(MODEL, "bf16", Kind::Switch, Some("false"),
        "Computes matrix products in bfloat16 with float32 sums, everything else in float32, as PyTorch's autocast: about twice as fast on a \
         processor with AVX512-BF16. (TRL's default is true.)"),
    key(MODEL, "save_dtype", Kind::Choice(&["float32", "bfloat16", "float16"]), Some("float32"),
        "Number format of the saved model. Checkpoints for resuming are always exact. (Seakeep's own.)"),

    key(DATA, "dataset_name", Kind::Path, None,
        "Preference data on this machine: a .jsonl, .json (also .gz) or .parquet file, a directory, or a quoted glob \
         pattern. Rows have `chosen` and `rejected` (for loss_type softmax perhaps a list) and may have `prompt`, or for \
         kto `prompt`, `completion` and `label`; strings or message lists."),
    key(DATA, "dataset_train_split", Kind::Text, Some("train"),
        "Rows to train on, as Hugging Face datasets slice: train, train[:1000], train[10%:]."),
    key(DATA, "dataset_test_split", Kind::Text, None,
        "Rows to evaluate on, such as train[1000:1100]."),
    key(DATA, "eval_dataset_name", Kind::Path, None,
        "Where the rows to evaluate on are, if not in dataset_name. (Seakeep's own.)"),
    key(DATA, "dataset_cache_dir", Kind::Path, None,
        "train and sft: where rows as tokens are kept for other runs, by files, tokenizer and what is set here; none: in memory, for \
         this run. Default: as of reference_cache_dir. (Seakeep's own.)"),
    key(DATA, "shuffle_dataset", Kind::Switch, Some("true"),
        "Whether every epoch visits the rows in a new random order; false: in the file's order."),
    key(DATA, "max_length", Kind::Limit(2), Some("1024"),
        "Longest sequence in tokens, prompt and completion together; 0 or none: no limit."),
    key(DATA, "truncation_mode", Kind::Choice(&["keep_start", "keep_end"]), Some("keep_start"),
        "Which end of a sequence that is too long is kept."),
    key(DATA, "prompt_mismatch", Kind::Choice(&["error", "diverge", "drop"]), Some("error"),
        "What to do where a given prompt's tokens do not begin the whole's: stop, let the completion start where they \
         diverge (TRL's rule), or leave the row out. (Seakeep's own.)"),
    key(DATA, "truncated_completion", Kind::Choice(&["error", "drop"]), Some("error"),
        "What to do where a prompt alone fills max_length: stop, or leave the row out (TRL's rule). (Seakeep's own.)"),

    key(TEXTS, "dataset_text_field", Kind::Text, Some("text"),
        "sft: the column that holds a text. A line of a .txt file is a row with the column `text`."),
    key(TEXTS, "completion_only_loss", Kind::Switch, Some("true"),
        "sft: whether of `prompt` and `completion` only the completion is learnt. Texts that stand alone are learnt whole."),

    key(OBJECTIVE, "method", Kind::Method, Some("dpo"),
        "A preset: sets loss_type, rule and knobs as a paper has them (`seakeep help objectives`). Knobs that are given \
         besides win; a loss_type or rule that the method has is not replaced. (Seakeep's own.)"),
    key(OBJECTIVE, "loss_type", Kind::Choices(LOSS_TYPES), Some("sigmoid"),
        "The loss of a pair; several, separated by commas, are mixed by loss_weights."),
    key(OBJECTIVE, "loss_weights", Kind::Numbers, None,
        "Weights of the losses of loss_type. Default: 1 each."),
    key(OBJECTIVE, "rule", Kind::Choice(RULES), Some("mean"),
        "How the losses of a step's pairs become one: their mean, or a robust rule over all of them. (Seakeep's own.)"),
    key(OBJECTIVE, "beta", Kind::Number(Range::Positive), Some("0.1"),
        "Strength of the tie to the reference model."),
    key(OBJECTIVE, "label_smoothing", Kind::Number(Range::BelowHalf), Some("0"),
        "Share of labels taken to be wrong: sigmoid (conservative DPO), robust, exo_pair, aot, simpo, cpo; with rule dpo_pro \
         how unsure labels without a column are."),
    key(OBJECTIVE, "f_divergence_type",
        Kind::Choice(&["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]), Some("reverse_kl"),
        "The divergence that ties the policy to the reference (f-DPO)."),
    key(OBJECTIVE, "f_alpha_divergence_coef", Kind::Number(Range::Any), Some("0.5"),
        "The alpha of alpha_divergence."),
    key(OBJECTIVE, "ld_alpha", Kind::Number(Range::Share), None,
        "LD-DPO: how much tokens beyond the shorter completion's length count. Default: fully."),
    key(OBJECTIVE, "rpo_alpha", Kind::Number(Range::NotNegative), None,
        "Adds this times the negative log-likelihood of the chosen completions (loss_type sft)."),
    key(OBJECTIVE, "discopop_tau", Kind::Number(Range::Positive), Some("0.05"),
        "discopop: temperature of its mixture."),
    key(OBJECTIVE, "simpo_gamma", Kind::Number(Range::NotNegative), Some("0.5"),
        "simpo: target margin."),
    key(OBJECTIVE, "cpo_alpha", Kind::Number(Range::NotNegative), Some("1.0"),
        "cpo: weight of the negative log-likelihood. With simpo only where it is given (CPO-SimPO)."),
    key(OBJECTIVE, "ipo_length_normalize", Kind::Switch, Some("true"),
        "ipo: log-probabilities averaged over tokens (TRL) or summed (the paper's formula, other trainers); the same beta \
         means different things. (Seakeep's own.)"),
    key(OBJECTIVE, "desirable_weight", Kind::Number(Range::NotNegative), Some("1.0"),
        "kto: weight of completions called good."),
    key(OBJECTIVE, "undesirable_weight", Kind::Number(Range::NotNegative), Some("1.0"),
        "kto: weight of completions called bad."),
    key(OBJECTIVE, "chosen_reward_column", Kind::Text, Some("score_chosen"),
        "rebel: column with the chosen completion's reward. (Seakeep's own.)"),
    key(OBJECTIVE, "rejected_reward_column", Kind::Text, Some("score_rejected"),
        "rebel: column with the rejected completion's reward. (Seakeep's own.)"),
    key(OBJECTIVE, "kldpo_tau", Kind::Number(Range::Positive), None,
        "kldpo: temperature in nats: the smaller, the more the worst pairs weigh. Default: 5 beta (the paper, at beta 0.01: \
         0.05-0.1 at 1B parameters, 0.005-0.01 at 3B and 8B; at beta 0.1: 0.5-1)."),
    key(OBJECTIVE, "kldpo_rho", Kind::Number(Range::NotNegative), None,
        "kldpo: radius in nats, in place of kldpo_tau: the temperature is then solved for in each batch."),
    key(OBJECTIVE, "kldpo_form", Kind::Choice(&["paper", "official"]), Some("paper"),
        "kldpo: paper: normalised weights; official: the authors' code (weights capped at 10, not normalised)."),
    key(OBJECTIVE, "drdpo_beta", Kind::Number(Range::Positive), Some("1.0"),
        "drdpo: temperature beta' in nats: the smaller, the less the worst pairs weigh."),
    key(OBJECTIVE, "winsor_warmup", Kind::Number(Range::Share), Some("0.3"),
        "winsor: share of all steps before labels are turned; 1: never."),
    key(OBJECTIVE, "winsor_tau", Kind::Number(Range::Positive), Some("1.0"),
        "winsor: temperature of the selection of labels to turn."),
    key(OBJECTIVE, "winsor_flip_budget", Kind::Number(Range::Share), Some("0.15"),
        "winsor: share of the batch whose labels may be turned."),
    key(OBJECTIVE, "winsor_quantile", Kind::Number(Range::Share), Some("0.7"),
        "winsor: quantile of the losses beyond which they are capped."),
    key(OBJECTIVE, "winsor_budget_min", Kind::Number(Range::Share), Some("0.02"),
        "winsor: smallest budget of the caps after the warm-up."),
    key(OBJECTIVE, "winsor_budget_max", Kind::Number(Range::Share), Some("0.5"),
        "winsor: largest budget of the caps after the warm-up."),
    key(OBJECTIVE, "winsor_budget_warmup", Kind::Number(Range::Share), Some("0.15"),
        "winsor: budget of the caps during the warm-up."),
    key(OBJECTIVE, "dpo_pro_rho", Kind::Number(Range::NotNegative), Some("0.1"),
        "dpo_pro: radius of the chi-square ball around each label."),
    key(OBJECTIVE, "soft_label_column", Kind::Text, None,
        "dpo_pro: column with the probability that `chosen` is better, or with a list of votes. Default: 1 - label_smoothing \
         for all rows. (Seakeep's own.)"),
    key(OBJECTIVE, "causal_environments", Kind::Whole(1), Some("2"),
        "causal: how many environments are inferred from the prompts."),
    key(OBJECTIVE, "causal_lambda", Kind::Number(Range::NotNegative), Some("1e-3"),
        "causal: weight of the discrepancy of rewards between environments."),
    key(OBJECTIVE, "causal_prior", Kind::Choice(&["uniform", "empirical"]), Some("uniform"),
        "causal: whether environments count the same or as they occur in the batch."),
    key(OBJECTIVE, "causal_bandwidth", Kind::Number(Range::Positive), None,
        "causal: width of the kernel, in units of reward. Default: the median distance in the batch."),
    key(OBJECTIVE, "chi2_rho", Kind::Number(Range::NotNegative), Some("0.5"),
        "chi2: radius of the chi-square ball."),
    key(OBJECTIVE, "cvar_alpha", Kind::Number(Range::Fraction), Some("0.5"),
        "cvar: the share of worst pairs whose mean is taken; 1: the mean of all."),
    key(OBJECTIVE, "tv_rho", Kind::Number(Range::Share), Some("0.1"),
        "tv: radius of the total-variation ball: the mass that may move to the worst pairs."),
    key(OBJECTIVE, "group_column", Kind::Text, Some("group"),
        "group: column with the name of a row's group. (Seakeep's own.)"),
    key(OBJECTIVE, "group_step_size", Kind::Number(Range::NotNegative), Some("0.01"),
        "group: how fast the weights follow the groups' losses."),
    key(OBJECTIVE, "wdpo_rho", Kind::Number(Range::NotNegative), None,
        "WDPO's radius: factor of the penalty on the loss's gradient in the input embeddings. Method wdpo: 0.01 (the paper: \
         0.005-0.01 for language models at beta 0.01, 50-100 for Emotion). Goes with any rule that weights pairs."),
    key(OBJECTIVE, "wdpo_form", Kind::Choice(&["paper", "official"]), Some("paper"),
        "paper: rho times the root of the mean squared gradient norm; official: the authors' code, without the root."),
    key(OBJECTIVE, "wdpo_prompt_gradient", Kind::Choice(&["shared", "separate"]), None,
        "shared: the prompt stands once in a pair, as in the paper; separate: two sequences, as in the authors' code. \
         Default: shared, with wdpo_form official separate."),

    key(TRAINING, "per_device_train_batch_size", Kind::Whole(1), Some("8"),
        "Rows in one forward and backward pass. Changes memory and speed, not the result."),
    key(TRAINING, "gradient_accumulation_steps", Kind::Whole(1), Some("1"),
        "Passes in one optimizer step; the step sees this times per_device_train_batch_size rows."),
    key(TRAINING, "gradient_checkpointing", Kind::Switch, Some("false"),
        "Keep only what flows from layer to layer, and compute the rest again for the backward pass: less memory, the same bits, \
         more time. (TRL's default is true, for the memory of a GPU. Here it is off: mostly there is memory enough, and who \
         runs short may first lower per_device_train_batch_size, which costs next to nothing.)"),
    key(TRAINING, "num_train_epochs", Kind::Number(Range::Positive), Some("3"),
        "Passes over the data; may be a fraction."),
    key(TRAINING, "max_steps", Kind::Steps, Some("-1"),
        "Optimizer steps in all, in place of num_train_epochs; -1: as many as the epochs make."),
    key(TRAINING, "learning_rate", Kind::Number(Range::NotNegative), Some("1e-6"),
        "Peak learning rate. (seakeep sft: 2e-5 where none is given.)"),
    key(TRAINING, "lr_scheduler_type",
        Kind::Choice(&["linear", "cosine", "constant", "constant_with_warmup", "cosine_with_min_lr"]), Some("linear"),
        "How the learning rate changes."),
    key(TRAINING, "min_lr_rate", Kind::Number(Range::Share), None,
        "With cosine_with_min_lr: what is left at the end, as a share of the peak. (In Hugging Face a key of \
         lr_scheduler_kwargs.)"),
    key(TRAINING, "warmup_steps", Kind::Number(Range::NotNegative), Some("0"),
        "Steps over which the learning rate rises; below 1: that share of all steps."),
    key(TRAINING, "warmup_ratio", Kind::Number(Range::BelowOne), Some("0"),
        "The same as a share of all steps."),
    key(TRAINING, "optim",
        Kind::Choice(&["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_8bit", "adamw_bnb_8bit"]), Some("adamw_torch"),
        "The optimizer: AdamW as in PyTorch; adamw_8bit and adamw_bnb_8bit: with its moments in 8 bits, a quarter of their memory."),
    key(TRAINING, "weight_decay", Kind::Number(Range::NotNegative), Some("0"),
        "AdamW's weight decay; not applied to biases and norm gains."),
    key(TRAINING, "adam_beta1", Kind::Number(Range::BelowOne), Some("0.9"),
        "Decay of AdamW's mean gradient."),
    key(TRAINING, "adam_beta2", Kind::Number(Range::BelowOne), Some("0.999"),
        "Decay of AdamW's mean squared gradient."),
    key(TRAINING, "adam_epsilon", Kind::Number(Range::Positive), Some("1e-8"),
        "AdamW's epsilon."),
    key(TRAINING, "max_grad_norm", Kind::Number(Range::NotNegative), Some("1.0"),
        "Gradients longer than this are shortened to it; 0: never."),
    key(TRAINING, "seed", Kind::Whole(0), Some("42"),
        "Seed of the order of the rows, and of new adapters."),
    key(TRAINING, "resume_from_checkpoint", Kind::SwitchOrPath, None,
        "true: go on from the newest checkpoint in output_dir; or the directory of a checkpoint."),

    key(ADAPTERS, "use_peft", Kind::Switch, Some("false"),
        "Whether to train LoRA adapters beside the linear layers of the model, which itself stays as it is. output_dir then holds \
         an adapter as PEFT has it; `seakeep merge` makes a model of it. Adapters take learning rates about ten times as large."),
    key(ADAPTERS, "lora_r", Kind::Whole(1), Some("16"),
        "Rank of the adapters."),
    key(ADAPTERS, "lora_alpha", Kind::Number(Range::Positive), Some("32"),
        "Strength of the adapters: their outputs are multiplied by lora_alpha / lora_r."),
    key(ADAPTERS, "lora_target_modules", Kind::Words, Some("all-linear"),
        "The layers that have one, by the last parts of their names, such as q_proj,v_proj. all-linear: every linear layer but the \
         vocabulary projection. (PEFT's own default depends on the family; in Llama's it is q_proj,v_proj.)"),
    key(ADAPTERS, "use_rslora", Kind::Switch, Some("false"),
        "Whether outputs are multiplied by lora_alpha / sqrt(lora_r) instead (rank-stabilised LoRA)."),
    key(ADAPTERS, "use_dora", Kind::Switch, Some("false"),
        "Whether the rows of each layer's weight, adapter included, get trained lengths (DoRA, arXiv 2402.09353). A step takes about \
         1.6 times as long."),
    key(ADAPTERS, "lora_dropout", Kind::Number(Range::BelowOne), Some("0.05"),
        "Dropout of what goes into the adapters, in training, where disable_dropout is false."),
    key(ADAPTERS, "disable_dropout", Kind::Switch, Some("true"),
        "Whether there is no dropout, as in TRL's DPO. (Here in sft as well; nothing else than adapters ever has dropout.)"),

    key(KEEPING, "output_dir", Kind::Path, None,
        "Where the trained model, checkpoints and metrics.jsonl go."),
    key(KEEPING, "overwrite_output_dir", Kind::Switch, Some("false"),
        "Whether an earlier run in output_dir may be replaced: its checkpoints and its model are removed before the first step. (Seakeep's own.)"),
    key(KEEPING, "logging_strategy", Kind::Choice(&["no", "steps", "epoch"]), Some("steps"),
        "When a line of metrics.jsonl is written; the first and the last step always have one."),
    key(KEEPING, "logging_steps", Kind::Interval, Some("10"),
        "Optimizer steps between lines with logging_strategy steps; a number below 1 is a share of all steps."),
    key(KEEPING, "eval_strategy", Kind::Choice(&["no", "steps", "epoch"]), Some("no"),
        "When to evaluate."),
    key(KEEPING, "eval_steps", Kind::Interval, None,
        "Steps between evaluations with eval_strategy steps, or a share of all. Default: logging_steps."),
    key(KEEPING, "per_device_eval_batch_size", Kind::Whole(1), Some("8"),
        "Rows in one forward pass when nothing is learned. Changes memory and speed, not the result."),
    key(KEEPING, "save_strategy", Kind::Choice(&["no", "steps", "epoch"]), Some("steps"),
        "When to write a checkpoint."),
    key(KEEPING, "save_steps", Kind::Interval, Some("500"),
        "Steps between checkpoints with save_strategy steps, or a share of all."),
    key(KEEPING, "save_total_limit", Kind::Limit(1), Some("none"),
        "Checkpoints kept; older ones are removed."),
    key(KEEPING, "report_to", Kind::Choices(&["tensorboard", "none"]), Some("tensorboard"),
        "Where metrics go besides metrics.jsonl."),

    key(MACHINE, "num_threads", Kind::Whole(1), None,
        "Threads to compute with. Default: all cores. (Seakeep's own.)"),
];

/// Other spellings of keys, from older releases of transformers.
pub const ALIASES: &[(&str, &str)] = &[("torch_dtype", "dtype"), ("evaluation_strategy", "eval_strategy")];

/// The key of this name (or alias).
pub fn find(name: &str) -> Option<&'static Key> {
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_what_the_keys_accept() {
        for key in KEYS {
            if let Some(default) = key.default {
                assert!(key.kind.check(&key.kind.of_flag(default)).is_some(), "{}", key.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..i].iter().all(|other| other.name != key.name), "{}", key.name);
        }
        assert!(ALIASES.iter().all(|(alias, name)| {
            KEYS.iter().all(|key| key.name != *alias) && KEYS.iter().any(|key| key.name == *name)
        }));
    }
}
