//! Keys of TRL's and Hugging Face's configurations that Seakeep knows but has no use for, so that a user's file
//! moves over with few edits. A key is accepted only where its value asks for nothing that Seakeep would not do;
//! anything else is refused, never silently ignored.

use serde_json::Value;

/// What becomes of a key.
pub enum Fate {
    /// Any value: there is nothing here that it could change.
    Nil,
    /// Only these values (and null), which ask for what Seakeep does anyway.
    Only(&'static [&'static str]),
}

use Fate::{Nil, Only};

/// A key without an effect.
pub struct Foreign {
    /// Name, with underscores.
    pub name: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// Why it has no effect; for refused values: what there is instead.
    pub why: &'static str,
}

const fn foreign(name: &'static str, fate: Fate, why: &'static str) -> Foreign {
    Foreign { name, fate, why }
}

const OFF: &[&str] = &["false"];
const PRECISION: &str =
    "products are in float32, or with bf16 in bfloat16; to save in 16 bits use save_dtype";
const LOADING: &str = "rows are read and tokenised in parallel before training starts";
const ONE_PROCESS: &str = "training runs in one process";
const DETERMINISTIC: &str = "the same seed, machine and threads always give the same bits";
const ALWAYS_LOGGED: &str = "is always in metrics.jsonl";
const REFERENCE: &str =
    "the reference stays as it is; its log-probabilities are computed once, before training";
const PACKED: &str = "rows always lie end to end in a batch, without padding, and attend only to themselves; a step sees as many \
                      rows either way";
const NO_TORCH: &str = "there is no PyTorch here";
const QUANTISED: &str =
    "load_in_4bit keeps matrices as GGUF's Q4_0 (and says so), not in a form of bitsandbytes";
const NO_HUB: &str = "nothing is sent anywhere";
const OWN_MEMORY: &str = "changes memory, never results, and memory is managed by Seakeep itself";

/// Every such key.
#[rustfmt::skip]
pub const FOREIGN: &[Foreign] = &[
    foreign("fp16", Only(OFF), PRECISION),
    foreign("tf32", Only(OFF), PRECISION),
    foreign("lora_modules_to_save", Only(&["[]"]), "beside adapters nothing is trained"),
    foreign("lora_target_parameters", Only(&["[]"]), "adapters stand beside linear layers; use lora_target_modules"),
    foreign("lora_task_type", Only(&["CAUSAL_LM"]), "models trained with adapters are language models"),
    foreign("gradient_checkpointing_kwargs", Nil, OWN_MEMORY),
    foreign("activation_offloading", Nil, OWN_MEMORY),
    foreign("padding_free", Nil, "nothing is ever padded"),
    foreign("pad_token", Nil, "nothing is ever padded"),
    foreign("padding_value", Nil, "nothing is ever padded"),
    foreign("label_pad_token_id", Nil, "nothing is ever padded"),
    foreign("pad_to_multiple_of", Nil, "nothing is ever padded"),
    foreign("packing", Nil, PACKED),
    foreign("eval_packing", Nil, PACKED),
    foreign("packing_strategy", Nil, PACKED),
    foreign("use_liger_kernel", Nil, "the vocabulary projection and the loss are always one operation"),
    foreign("use_liger_loss", Nil, "the vocabulary projection and the loss are always one operation"),
    foreign("use_logits_to_keep", Nil, "only predicting positions are ever projected"),
    foreign("attn_implementation", Nil, "attention is Seakeep's own"),
    foreign("torch_compile", Nil, "there is no PyTorch here"),
    foreign("trust_remote_code", Nil, "no code that comes with a model is ever run"),
    foreign("model_revision", Only(&["main"]), "models are directories on this machine, not revisions on a hub"),
    foreign("use_cpu", Nil, "the processor computes anyway"),
    foreign("no_cuda", Nil, "the processor computes anyway"),

    foreign("precompute_ref_log_probs", Nil, "they always are, and kept for other runs in reference_cache_dir"),
    foreign("precompute_ref_batch_size", Nil, "use per_device_eval_batch_size; it does not change the result"),
    foreign("reference_free", Only(OFF), "use loss_type simpo, cpo or orpo, which have no reference"),
    foreign("force_use_ref_model", Nil, "ref_model_name_or_path is always used where it is given"),
    foreign("sync_ref_model", Only(OFF), REFERENCE),
    foreign("ref_model_mixup_alpha", Nil, "counts only with sync_ref_model, which is not there yet"),
    foreign("ref_model_sync_steps", Nil, "counts only with sync_ref_model, which is not there yet"),
    foreign("use_weighting", Only(OFF), "pairs are weighted by `rule`; WPO is not there yet"),
    foreign("max_prompt_length", Only(&[]), "max_length and truncation_mode say what is cut"),
    foreign("max_completion_length", Only(&[]), "max_length and truncation_mode say what is cut"),
    foreign("generate_during_eval", Only(OFF), "use `seakeep generate` on a checkpoint"),
    foreign("assistant_only_loss", Only(OFF),
        "which tokens of a rendered conversation are the assistant's, only templates with `{% generation %}` marks would say; \
         give the last turn as `completion` after a `prompt` of messages, and it alone is learnt"),
    foreign("eos_token", Only(&["<EOS_TOKEN>"]), "name it in the model's tokenizer_config.json"),
    foreign("tools", Only(&[]), "give each row a `tools` column"),
    foreign("chat_template_path", Only(&[]), "put a chat_template.jinja into the model directory"),

    foreign("dataset_config", Only(&[]), "dataset_name is a file, directory or pattern"),
    foreign("dataset_kwargs", Only(&["{}"]), "rows are always rendered and tokenised the one way"),
    foreign("dataset_streaming", Only(OFF), "rows are read a few at a time in any case, and their tokens kept on disk"),
    foreign("dataset_num_proc", Nil, LOADING),
    foreign("dataloader_num_workers", Nil, LOADING),
    foreign("dataloader_pin_memory", Nil, LOADING),
    foreign("dataloader_prefetch_factor", Nil, LOADING),
    foreign("dataloader_persistent_workers", Nil, LOADING),
    foreign("dataloader_drop_last", Only(OFF), "the last batch of an epoch is used, however small"),
    foreign("remove_unused_columns", Nil, "columns without a use are never read into a batch"),
    foreign("group_by_length", Only(OFF), "nothing is padded, so nothing is gained by it"),

    foreign("optim_args", Only(&[]), "the optimizer is AdamW as in PyTorch"),
    foreign("lr_scheduler_kwargs", Only(&["{}"]), "write its min_lr_rate as a key of its own"),
    foreign("neftune_noise_alpha", Only(&[]), "no noise is added to embeddings"),
    foreign("data_seed", Only(&[]), "use seed"),
    foreign("full_determinism", Nil, DETERMINISTIC),
    foreign("ignore_data_skip", Only(OFF), "a resumed run sees exactly what the uninterrupted one would"),
    foreign("average_tokens_across_devices", Nil, ONE_PROCESS),
    foreign("auto_find_batch_size", Only(OFF), "set per_device_train_batch_size; it does not change the result"),
    foreign("deepspeed", Only(&[]), ONE_PROCESS),
    foreign("fsdp", Only(&["", "[]"]), ONE_PROCESS),
    foreign("ddp_find_unused_parameters", Nil, ONE_PROCESS),
    foreign("local_rank", Nil, ONE_PROCESS),

    foreign("do_train", Nil, "`seakeep train` trains, as TRL's trainers do whatever it says; to evaluate alone use `seakeep eval`"),
    foreign("do_eval", Nil, "use eval_strategy"),
    foreign("eval_on_start", Only(OFF), "evaluate the start with `seakeep eval`"),
    foreign("eval_delay", Only(&["0", "0.0"]), "evaluation starts with the first interval"),
    foreign("eval_accumulation_steps", Nil, "evaluation never holds logits"),
    foreign("load_best_model_at_end", Only(OFF), "the model of the last step is saved; earlier ones are in the checkpoints"),
    foreign("metric_for_best_model", Nil, "counts only with load_best_model_at_end"),
    foreign("greater_is_better", Nil, "counts only with load_best_model_at_end"),
    foreign("save_safetensors", Only(&["true"]), "models are always saved as safetensors"),
    foreign("save_only_model", Only(OFF), "a checkpoint holds everything that resuming needs"),
    foreign("push_to_hub", Only(OFF), "nothing is uploaded"),
    foreign("run_name", Nil, "a run is named by its output_dir"),
    foreign("logging_dir", Only(&[]), "TensorBoard files go to output_dir/runs"),
    foreign("logging_first_step", Nil, ALWAYS_LOGGED),
    foreign("logging_nan_inf_filter", Nil, "a loss that is not finite stops the run"),
    foreign("include_num_input_tokens_seen", Nil, ALWAYS_LOGGED),
    foreign("include_tokens_per_second", Nil, ALWAYS_LOGGED),
    foreign("skip_memory_metrics", Nil, "memory is not logged"),
    foreign("disable_tqdm", Nil, "bars are drawn on a terminal only"),
    foreign("log_level", Nil, "everything worth reading is said once"),

    foreign("dataloader_multiprocessing_context", Nil, LOADING),
    foreign("dataloader_in_order", Nil, LOADING),
    foreign("length_column_name", Nil, LOADING),
    foreign("log_on_each_node", Nil, ONE_PROCESS),
    foreign("log_level_replica", Nil, ONE_PROCESS),
    foreign("save_on_each_node", Nil, ONE_PROCESS),
    foreign("accelerator_config", Nil, ONE_PROCESS),
    foreign("parallelism_config", Nil, ONE_PROCESS),
    foreign("ddp_bucket_cap_mb", Nil, ONE_PROCESS),
    foreign("ddp_broadcast_buffers", Nil, ONE_PROCESS),
    foreign("ddp_static_graph", Nil, ONE_PROCESS),
    foreign("ddp_backend", Nil, ONE_PROCESS),
    foreign("ddp_timeout", Nil, ONE_PROCESS),
    foreign("fsdp_config", Nil, ONE_PROCESS),
    foreign("activation_checkpointing", Nil, OWN_MEMORY),
    foreign("activation_checkpointing_kwargs", Nil, OWN_MEMORY),
    foreign("torch_empty_cache_steps", Nil, OWN_MEMORY),
    foreign("use_cache", Nil, OWN_MEMORY),
    foreign("eval_do_concat_batches", Nil, OWN_MEMORY),
    foreign("eval_use_gather_object", Nil, OWN_MEMORY),
    foreign("batch_eval_metrics", Nil, OWN_MEMORY),
    foreign("prediction_loss_only", Nil, OWN_MEMORY),
    foreign("torch_compile_backend", Nil, NO_TORCH),
    foreign("torch_compile_mode", Nil, NO_TORCH),
    foreign("liger_kernel_config", Nil, NO_TORCH),
    foreign("ignore_bias_buffers", Nil, NO_TORCH),
    foreign("enable_jit_checkpoint", Nil, NO_TORCH),
    foreign("bnb_4bit_quant_type", Nil, QUANTISED),
    foreign("bnb_4bit_quant_storage", Nil, QUANTISED),
    foreign("use_bnb_nested_quant", Nil, QUANTISED),
    foreign("project", Nil, NO_HUB),
    foreign("trackio_space_id", Nil, NO_HUB),
    foreign("trackio_bucket_id", Nil, NO_HUB),
    foreign("trackio_static_space_id", Nil, NO_HUB),
    foreign("hub_token", Nil, NO_HUB),
    foreign("hub_private_repo", Nil, NO_HUB),
    foreign("hub_model_id", Nil, NO_HUB),
    foreign("hub_strategy", Nil, NO_HUB),
    foreign("hub_always_push", Nil, NO_HUB),
    foreign("hub_revision", Nil, NO_HUB),
    foreign("bf16_full_eval", Only(OFF), PRECISION),
    foreign("fp16_full_eval", Only(OFF), PRECISION),
    foreign("label_smoothing_factor", Only(&["0", "0.0"]), "use label_smoothing, which is of preferences"),
    foreign("optim_target_modules", Only(&[]), "the optimizer is AdamW as in PyTorch"),
    foreign("include_for_metrics", Only(&["[]"]), "every metric is in metrics.jsonl"),
    foreign("restore_callback_states_from_checkpoint", Only(OFF), "there are no callbacks"),
    foreign("label_names", Only(&["[]"]), "the columns of a preference row have fixed names"),
    foreign("train_sampling_strategy", Only(&["random"]), "for rows in the file's order set shuffle_dataset = false"),
    foreign("debug", Only(&["", "[]"]), "there is no debugging mode"),
    foreign("do_predict", Only(OFF), "use `seakeep logps` or `seakeep eval`"),
    foreign("model_init_kwargs", Only(&["{}"]), "a model is loaded as it is"),
    foreign("router_aux_loss_coef", Only(&["0", "0.0"]), "there are no mixtures of experts yet"),
    foreign("is_encoder_decoder", Only(OFF), "there are decoders only"),
    foreign("alpha", Only(&["0", "0.0"]), "AlphaPO is not there yet"),
];

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Foreign> {
    FOREIGN.iter().find(|key| key.name == name)
}

impl Foreign {
    /// Whether this value may stand; what it would change is nothing.
    pub fn accepts(&self, value: &Value) -> bool {
        let spelled = match value {
            Value::Null => return true,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match self.fate {
            Nil => true,
            // Flags may say `False`, as Python does.
            Only(values) => {
                values.contains(&spelled.as_str()) || values.contains(&spelled.to_lowercase().as_str())
            }
        }
    }

    /// The error for a value that asks for something Seakeep does not do. `place` names the key and where it stands.
    pub fn refusal(&self, place: &str, value: &Value) -> String {
        let Only(values) = self.fate else { return String::new() };
        let instead = match values {
            [] | ["", ..] => "leave it out".to_string(),
            values => format!("{} is accepted", values[0]),
        };
        format!("{place} is {value}: Seakeep does not do that (yet): {}; {instead}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::keys;

    #[test]
    fn a_key_has_a_meaning_or_none_but_not_both() {
        for (i, key) in FOREIGN.iter().enumerate() {
            assert!(keys::find(key.name).is_none(), "{}", key.name);
            assert!(FOREIGN[..i].iter().all(|other| other.name != key.name), "{}", key.name);
        }
    }

    #[test]
    fn what_asks_for_nothing_is_accepted_and_the_rest_refused() {
        let accepts = |name: &str, value: Value| find(name).unwrap().accepts(&value);
        assert!(accepts("fp16", json!(false)));
        assert!(accepts("fp16", json!("False")));
        assert!(!accepts("fp16", json!(true)));
        assert!(accepts("activation_offloading", json!(true)));
        assert!(accepts("max_prompt_length", json!(null)));
        assert!(!accepts("max_prompt_length", json!(128)));
        let text = find("fp16").unwrap().refusal("a.toml: `fp16`", &json!(true));
        assert!(text.contains("a.toml: `fp16` is true") && text.contains("bf16"), "{text}");
    }
}
