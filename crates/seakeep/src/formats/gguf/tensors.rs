//! From GGUF tensor names and layouts to those of the Hugging Face checkpoint.
//!
//! llama.cpp's converter renames every tensor, permutes the rows of Llama's Q and K (it rotates
//! neighbouring pairs where Hugging Face rotates halves), transposes GPT-2's `Conv1D` weights, and
//! splits GPT-NeoX's per-head Q, K, V interleaving into three blocks. Each is undone here, as
//! transformers does (`modeling_gguf_pytorch_utils.py`) or as `convert_hf_to_gguf.py` did it.

use super::GgufFile;
use crate::error::{Error, Result};

/// The GGUF architectures that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `llama`: Llama and Mistral.
    Llama,
    /// `qwen2`: Qwen2 and Qwen2.5.
    Qwen2,
    /// `qwen3`.
    Qwen3,
    /// `gpt2`.
    Gpt2,
    /// `gptneox`: GPT-NeoX and Pythia.
    GptNeox,
}

impl Arch {
    /// For error messages.
    pub const SUPPORTED: &str = "llama (Llama and Mistral), qwen2, qwen3, gpt2, gptneox";

    /// By the name in `general.architecture`.
    pub fn from_gguf(name: &str) -> Option<Arch> {
        Some(match name {
            "llama" => Arch::Llama,
            "qwen2" => Arch::Qwen2,
            "qwen3" => Arch::Qwen3,
            "gpt2" => Arch::Gpt2,
            "gptneox" => Arch::GptNeox,
            _ => return None,
        })
    }

    /// The name in `general.architecture`, which is also the prefix of its metadata keys.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Gpt2 => "gpt2",
            Arch::GptNeox => "gptneox",
        }
    }
}

/// What turns a GGUF tensor into the Hugging Face one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same.
    Same,
    /// Rows of each of `heads` heads go from pairs (x0 y0 x1 y1 ...) to halves (x0 x1 ... y0 y1 ...).
    UnpermuteRows {
        /// Query heads for Q, key-value heads for K.
        heads: usize,
    },
    /// A matrix is transposed (GPT-2's `Conv1D` stores [in, out]).
    Transpose,
    /// Rows go from [3, heads, head_dim] to [heads, 3, head_dim].
    InterleaveQkv {
        /// Attention heads.
        heads: usize,
    },
}

/// Head counts, which the layouts depend on.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key-value heads.
    pub key_value: usize,
}

/// The Hugging Face name and layout of GGUF tensor `name`. `Ok(None)` for a tensor that has no
/// counterpart (`rope_freqs.weight`, which is part of the configuration there).
///
/// # Errors
/// [`Error::Format`] for a name that the architecture does not have (a mixture of experts, say):
/// leaving a tensor out would silently give another model.
pub fn map_tensor(file: &GgufFile, arch: Arch, heads: Heads, name: &str) -> Result<Option<(String, Layout)>> {
    if name == "rope_freqs.weight" {
        return Ok(None);
    }
    let mapped = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((block, part)) if !block.is_empty() && block.bytes().all(|b| b.is_ascii_digit()) => {
            in_block(arch, part)
                .map(|hf| (format!("{}.{block}.{hf}", block_prefix(arch)), layout(arch, heads, part)))
        }
        _ => outside(arch, name).map(|hf| (hf.to_string(), Layout::Same)),
    };
    mapped.map(Some).ok_or_else(|| {
        Error::format(
            file.path(),
            format!(
                "tensor `{name}` does not belong to the dense {} architecture (a mixture of experts or a newer variant?)",
                arch.gguf_name()
            ),
        )
    })
}

fn block_prefix(arch: Arch) -> &'static str {
    match arch {
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 => "model.layers",
        Arch::Gpt2 => "transformer.h",
        Arch::GptNeox => "gpt_neox.layers",
    }
}

fn outside(arch: Arch, name: &str) -> Option<&'static str> {
    Some(match (arch, name) {
        (Arch::Llama | Arch::Qwen2 | Arch::Qwen3, name) => match name {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            "output.weight" => "lm_head.weight",
            _ => return None,
        },
        (Arch::Gpt2, name) => match name {
            "token_embd.weight" => "transformer.wte.weight",
            "position_embd.weight" => "transformer.wpe.weight",
            "output_norm.weight" => "transformer.ln_f.weight",
            "output_norm.bias" => "transformer.ln_f.bias",
            "output.weight" => "lm_head.weight",
            _ => return None,
        },
        (Arch::GptNeox, name) => match name {
            "token_embd.weight" => "gpt_neox.embed_in.weight",
            "output_norm.weight" => "gpt_neox.final_layer_norm.weight",
            "output_norm.bias" => "gpt_neox.final_layer_norm.bias",
            "output.weight" => "embed_out.weight",
            _ => return None,
        },
    })
}

/// Within a block: `attn_q.weight` and so on.
fn in_block(arch: Arch, part: &str) -> Option<String> {
    let (stem, suffix) = part.rsplit_once('.')?;
    if !matches!(suffix, "weight" | "bias") {
        return None;
    }
    let hf = match arch {
        Arch::Llama | Arch::Qwen2 | Arch::Qwen3 => match stem {
            "attn_norm" => "input_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" if arch == Arch::Qwen3 => "self_attn.q_norm",
            "attn_k_norm" if arch == Arch::Qwen3 => "self_attn.k_norm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        },
        Arch::Gpt2 => match stem {
            "attn_norm" => "ln_1",
            "ffn_norm" => "ln_2",
            "attn_qkv" => "attn.c_attn",
            "attn_output" => "attn.c_proj",
            "ffn_up" => "mlp.c_fc",
            "ffn_down" => "mlp.c_proj",
            _ => return None,
        },
        Arch::GptNeox => match stem {
            "attn_norm" => "input_layernorm",
            "ffn_norm" => "post_attention_layernorm",
            "attn_qkv" => "attention.query_key_value",
            "attn_output" => "attention.dense",
            "ffn_up" => "mlp.dense_h_to_4h",
            "ffn_down" => "mlp.dense_4h_to_h",
            _ => return None,
        },
    };
    Some(format!("{hf}.{suffix}"))
}

fn layout(arch: Arch, heads: Heads, part: &str) -> Layout {
    match (arch, part) {
        (Arch::Llama, "attn_q.weight" | "attn_q.bias") => Layout::UnpermuteRows { heads: heads.query },
        (Arch::Llama, "attn_k.weight" | "attn_k.bias") => Layout::UnpermuteRows { heads: heads.key_value },
        (Arch::Gpt2, "attn_qkv.weight" | "attn_output.weight" | "ffn_up.weight" | "ffn_down.weight") => {
            Layout::Transpose
        }
        (Arch::GptNeox, "attn_qkv.weight" | "attn_qkv.bias") => Layout::InterleaveQkv { heads: heads.query },
        _ => Layout::Same,
    }
}

/// Checks that `shape` can be laid out so, and gives the resulting shape; the message says what is
/// wrong otherwise.
pub fn laid_out_shape(layout: Layout, shape: &[usize]) -> std::result::Result<Vec<usize>, String> {
    let rows = shape.first().copied().unwrap_or(0);
    match layout {
        Layout::Same => Ok(shape.to_vec()),
        Layout::Transpose => match shape {
            [rows, columns] => Ok(vec![*columns, *rows]),
            _ => Err(format!("has shape {shape:?}, expected a matrix")),
        },
        Layout::UnpermuteRows { heads } if heads > 0 && rows > 0 && rows % (2 * heads) == 0 => {
            Ok(shape.to_vec())
        }
        Layout::InterleaveQkv { heads } if heads > 0 && rows > 0 && rows % (3 * heads) == 0 => {
            Ok(shape.to_vec())
        }
        _ => Err(format!(
            "has {rows} rows, which do not divide into the heads the metadata states ({layout:?})"
        )),
    }
}

/// Lays the values out as Hugging Face has them. `shape` is the GGUF file's; it has passed
/// [`laid_out_shape`].
pub fn lay_out<T: Copy>(layout: Layout, shape: &[usize], values: Vec<T>) -> Vec<T> {
    let rows = shape.first().copied().unwrap_or(1);
    let columns = values.len() / rows.max(1);
    match layout {
        Layout::Same => values,
        Layout::Transpose => {
            let mut out = Vec::with_capacity(values.len());
            for c in 0..columns {
                out.extend((0..rows).map(|r| values[r * columns + c]));
            }
            out
        }
        Layout::UnpermuteRows { heads } => {
            let half = rows / heads / 2;
            // Row (head, part, i) comes from row (head, i, part).
            gather_rows(&values, columns, rows, |row| {
                let (head, part, i) = (row / (2 * half), row / half % 2, row % half);
                head * 2 * half + i * 2 + part
            })
        }
        Layout::InterleaveQkv { heads } => {
            let dim = rows / heads / 3;
            // Row (head, part, i) comes from row (part, head, i).
            gather_rows(&values, columns, rows, |row| {
                let (head, part, i) = (row / (3 * dim), row / dim % 3, row % dim);
                part * heads * dim + head * dim + i
            })
        }
    }
}

fn gather_rows<T: Copy>(values: &[T], columns: usize, rows: usize, from: impl Fn(usize) -> usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let start = from(row) * columns;
        out.extend_from_slice(&values[start..start + columns]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermuting_undoes_the_converter() {
        // convert_hf_to_gguf.py: w.reshape(heads, 2, half, ...).swapaxes(1, 2)
        let (heads, half, columns) = (3, 2, 2);
        let rows = heads * 2 * half;
        let hf: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let mut gguf = Vec::new();
        for head in 0..heads {
            for i in 0..half {
                for part in 0..2 {
                    let row = (head * 2 + part) * half + i;
                    gguf.extend_from_slice(&hf[row * columns..(row + 1) * columns]);
                }
            }
        }
        assert_eq!(lay_out(Layout::UnpermuteRows { heads }, &[rows, columns], gguf), hf);
    }

    #[test]
    fn interleaving_undoes_the_converter() {
        let (heads, dim) = (2, 2);
        // Hugging Face rows, named head-part-index, as [heads, 3, dim].
        let hf: Vec<f32> = (0..heads * 3 * dim).map(|i| i as f32).collect();
        let mut gguf = Vec::new();
        for part in 0..3 {
            for head in 0..heads {
                gguf.extend_from_slice(&hf[(head * 3 + part) * dim..][..dim]);
            }
        }
        assert_eq!(lay_out(Layout::InterleaveQkv { heads }, &[heads * 3 * dim], gguf), hf);
    }

    #[test]
    fn transposing() {
        let out = lay_out(Layout::Transpose, &[2, 3], vec![1., 2., 3., 4., 5., 6.]);
        assert_eq!(out, [1., 4., 2., 5., 3., 6.]);
        assert_eq!(laid_out_shape(Layout::Transpose, &[2, 3]).unwrap(), [3, 2]);
        assert!(laid_out_shape(Layout::Transpose, &[6]).unwrap_err().contains("matrix"));
    }

    #[test]
    fn heads_that_do_not_divide_the_rows_are_refused() {
        assert!(laid_out_shape(Layout::UnpermuteRows { heads: 5 }, &[12, 2]).is_err());
        assert!(laid_out_shape(Layout::UnpermuteRows { heads: 0 }, &[12, 2]).is_err());
        assert!(laid_out_shape(Layout::InterleaveQkv { heads: 2 }, &[4]).is_err());
    }
}
