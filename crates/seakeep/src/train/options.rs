//! Everything that decides a training run. Names and defaults are TRL's `DPOConfig` and Hugging Face's
//! `TrainingArguments` where such a key exists.

use std::path::PathBuf;

use crate::data::TokenizeOptions;
use crate::formats::{LoraConfig, SaveDtype};
use crate::model::Numbers;
use crate::objective::Objective;
use crate::optim::{AdamW, Schedule, Warmup};

/// When something is done during training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    /// Not at all.
    No,
    /// After this many optimizer steps.
    Steps(usize),
    /// After this share of all of them, rounded up to whole steps, as transformers rounds it.
    Share(f64),
    /// At the end of each epoch.
    Epoch,
}

impl Every {
    /// Optimizer steps from one time to the next in a run of `total`, `per_epoch` to an epoch; `None`: never.
    pub fn steps(self, per_epoch: usize, total: usize) -> Option<usize> {
        match self {
            Every::No => None,
            Every::Steps(n) => Some(n),
            Every::Share(share) => Some(((share * total as f64).ceil() as usize).max(1)),
            Every::Epoch => Some(per_epoch),
        }
    }
}

/// Where a run goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint in the output directory; an error if there is none.
    Latest,
    /// This checkpoint directory.
    From(PathBuf),
}

/// A validated training run.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Model to train: Hugging Face directory or `.gguf`.
    pub model_name_or_path: PathBuf,
    /// In what form the weights of the policy and of the reference are kept, and what products are computed in.
    pub numbers: Numbers,
    /// Reference model; `None`: the model to train, as it is at the start.
    pub ref_model_name_or_path: Option<PathBuf>,
    /// Preference data, or for an objective of texts ([`Objective::is_of_texts`]) those: file, glob or directory.
    pub dataset_name: String,
    /// The column that holds a text, for such an objective.
    pub dataset_text_field: String,
    /// Which rows to train on, in the notation of Hugging Face datasets: `train`, `train[:1000]`, `train[10%:]`.
    pub dataset_train_split: String,
    /// Which rows to evaluate on.
    pub dataset_test_split: Option<String>,
    /// Where the evaluation rows are, if not in `dataset_name`.
    pub eval_dataset_name: Option<String>,
    /// Where tokenised rows are kept from run to run; `None`: in memory, for this run.
    pub dataset_cache_dir: Option<PathBuf>,
    /// Where what the reference says of rows is kept from run to run; `None`: only in the run's checkpoints.
    pub reference_cache_dir: Option<PathBuf>,
    /// Whether nothing is to be written: only [`estimate`](super::estimate) does anything then.
    pub dry_run: bool,
    /// Where checkpoints, `metrics.jsonl` and the trained model go.
    pub output_dir: PathBuf,
    /// Whether an earlier run in `output_dir` may be replaced.
    pub overwrite_output_dir: bool,
    /// The name of the method, for the record (`dpo`, `kldpo`, `wdpo`, ...).
    pub method: String,
    /// The objective.
    pub objective: Objective,
    /// How many environments CausalDPO infers; `None`: the objective asks for none.
    pub environments: Option<usize>,
    /// Tokens, truncation, and the columns the objective asks for.
    pub tokenize: TokenizeOptions,
    /// Whether each epoch visits the rows in a new random order (a function of `seed` and the epoch).
    pub shuffle_dataset: bool,
    /// Pairs per forward and backward pass. Does not change the result.
    pub per_device_train_batch_size: usize,
    /// Pairs per forward pass in evaluation and for the reference. Does not change the result.
    pub per_device_eval_batch_size: usize,
    /// Passes per optimizer step; an optimizer step sees `per_device_train_batch_size` times this many pairs.
    pub gradient_accumulation_steps: usize,
    /// Whether activations are computed again in the backward pass rather than kept. Does not change the result.
    pub gradient_checkpointing: bool,
    /// Passes over the data; may be a fraction.
    pub num_train_epochs: f64,
    /// Optimizer steps; overrides the epochs.
    pub max_steps: Option<usize>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// How it starts.
    pub warmup: Warmup,
    /// Optimizer.
    pub optimizer: AdamW,
    /// Gradients longer than this are shortened to it; 0: never.
    pub max_grad_norm: f64,
    /// When a line of `metrics.jsonl` is written (the first and the last step always have one).
    pub logging: Every,
    /// When to evaluate.
    pub eval: Every,
    /// When to write a checkpoint.
    pub save: Every,
    /// Checkpoints kept; older ones are removed.
    pub save_total_limit: Option<usize>,
    /// The adapters to train in place of the model's own parameters, if any.
    pub lora: Option<LoraConfig>,
    /// Seed of the order of rows, and of new adapters.
    pub seed: u64,
    /// Checkpoint to go on from.
    pub resume_from_checkpoint: Option<Resume>,
    /// Whether TensorBoard event files are written (`output_dir/runs`).
    pub tensorboard: bool,
    /// Number format of the saved model (checkpoints are always exact).
    pub save_dtype: SaveDtype,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_all_steps_become_steps() {
        // transformers: math.ceil(max_steps * share).
        for (every, steps) in [
            (Every::No, None),
            (Every::Steps(7), Some(7)),
            (Every::Share(0.1), Some(3)),
            (Every::Share(0.3), Some(8)),
            (Every::Share(1e-9), Some(1)),
            (Every::Epoch, Some(5)),
        ] {
            assert_eq!(every.steps(5, 25), steps, "{every:?}");
        }
    }
}
