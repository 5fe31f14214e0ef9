//! ArmoRM's gating network (Wang et al., arXiv 2406.12845; `LlamaForRewardModelWithGating`): rewards for several objectives
//! from the last token, mixed by weights that a small network finds from the prompt.
//!
//! ```text
//! r = W h_last                      regression_layer, [objectives]
//! g = s softmax(mlp(h_prompt) / T)  gating.layers (ReLU between them), gating.logit_scale, gating_temperature
//! score = sum_k g_k (r M)_k         reward_transform_matrix, [objectives, objectives]
//! ```
//!
//! `h_prompt` is the hidden state where the assistant's last turn begins: at the first token of its header.

use serde_json::Value;

use super::loss::softmax;
use crate::formats::{ModelSource, Tokenizer};
use crate::{Error, Result};

/// What begins the assistant's turn in Llama 3's chat template, the end of the prompt's last turn included.
const HEADER: &str = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
/// The name of the mixed reward.
pub(super) const SCORE: &str = "score";
/// Where `config.json` does not say otherwise.
const TEMPERATURE: f64 = 10.0;

/// ArmoRM's 19 objectives in the order of its regression layer.
const OBJECTIVES: [&str; 19] = [
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
];

/// A linear layer, `[outputs, inputs]`.
struct Layer {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        self.weight.chunks_exact(x.len()).zip(&self.bias).map(|(row, b)| dot(row) + f64::from(*b)).collect()
    }
}

/// The network and what it is applied to.
pub(super) struct Gating {
    layers: Vec<Layer>,
    temperature: f64,
    scale: f64,
    /// `[objectives, objectives]`
    transform: Vec<f32>,
    /// The tokens of [`HEADER`].
    header: Vec<u32>,
}

impl Gating {
    /// The gating network of a checkpoint for a backbone of `hidden` channels; `None` where it has none.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit each other.
    pub(super) fn load(source: &ModelSource, hidden: usize, objectives: usize) -> Result<Option<Gating>> {
        let weights = &source.weights;
        if weights.shape("gating.layers.0.weight").is_none() {
            return Ok(None);
        }
        let read = |name: &str, shape: &[usize]| match weights.shape(name) {
            Some(found) if found == shape => weights.read_f32(name),
            found => Err(Error::format(
                &source.path,
                format!("tensor `{name}` of the gating network has shape {found:?}, expected {shape:?}"),
            )),
        };
        let (mut layers, mut inputs) = (Vec::new(), hidden);
        while let Some(shape) = weights.shape(&format!("gating.layers.{}.weight", layers.len())) {
            let (name, outputs) = (format!("gating.layers.{}", layers.len()), shape[0]);
            let weight = read(&format!("{name}.weight"), &[outputs, inputs])?;
            let bias = match weights.shape(&format!("{name}.bias")) {
                None => vec![0.0; outputs],
                Some(_) => read(&format!("{name}.bias"), &[outputs])?,
            };
            layers.push(Layer { weight, bias });
            inputs = outputs;
        }
        if inputs != objectives {
            let what = format!("the gating network gives {inputs} weights for {objectives} objectives");
            return Err(Error::format(&source.path, what));
        }
        let transform = read("reward_transform_matrix", &[objectives, objectives])?;
        let scale = f64::from(read("gating.logit_scale", &[1])?[0]);
        let temperature =
            source.config.get("gating_temperature").and_then(Value::as_f64).unwrap_or(TEMPERATURE);
        let header = source.tokenizer()?.encode(HEADER, false)?;
        Ok(Some(Gating { layers, temperature, scale, transform, header }))
    }

    /// Where the prompt ends: the last place where the header begins.
    ///
    /// # Errors
    /// [`Error::Usage`] for a text without an assistant's turn.
    pub(super) fn position(&self, tokens: &[u32], tokenizer: &Tokenizer) -> Result<usize> {
        let found = tokens.windows(self.header.len().max(1)).rposition(|w| w == self.header);
        found.ok_or_else(|| {
            Error::Usage(format!(
                "a text without the header of an assistant's turn ({}): a gated reward model scores conversations in \
                 Llama 3's chat template; give `prompt` and `completion` as messages",
                tokenizer.decode(&self.header, false).unwrap_or_default().trim_end()
            ))
        })
    }

    /// The mixed reward, from the objectives' rewards and the hidden state at the prompt's end.
    pub(super) fn score(&self, rewards: &[f64], prompt: &[f32]) -> f64 {
        let mut x: Vec<f64> = prompt.iter().map(|&x| f64::from(x)).collect();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x);
            if i + 1 < self.layers.len() {
                x.iter_mut().for_each(|x| *x = x.max(0.0));
            }
        }
        x.iter_mut().for_each(|x| *x /= self.temperature);
        let n = rewards.len();
        let adjusted =
            |k: usize| (0..n).map(|j| rewards[j] * f64::from(self.transform[j * n + k])).sum::<f64>();
        softmax(&x).iter().enumerate().map(|(k, g)| self.scale * g * adjusted(k)).sum()
    }
}

/// What the objectives are called where `config.json` does not name them.
pub(super) fn objective_names(n: usize) -> Vec<String> {
    match n == OBJECTIVES.len() {
        true => OBJECTIVES.map(String::from).to_vec(),
        false => (0..n).map(|i| format!("objective_{i}")).collect(),
    }
}
