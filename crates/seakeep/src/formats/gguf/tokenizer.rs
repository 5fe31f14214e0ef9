//! The `tokenizer.json` and special tokens that a GGUF file's metadata amounts to.
//!
//! Two kinds of vocabulary: byte-level BPE (`gpt2`), where the file names the pre-tokeniser, and
//! SentencePiece (`llama`), whose merges are derived from the scores as transformers does.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{GgufFile, Value};
use crate::error::{Error, Result};

/// Token types of `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// What a GGUF file says about its tokenizer.
pub struct GgufTokenizer {
    /// The content of `tokenizer.json`.
    pub tokenizer_json: Json,
    /// Beginning-of-sequence token.
    pub bos: Option<String>,
    /// End-of-sequence token.
    pub eos: Option<String>,
    /// Padding token.
    pub pad: Option<String>,
    /// Unknown token.
    pub unk: Option<String>,
}

/// Builds the tokenizer. `Ok(None)` for a file without a vocabulary.
///
/// # Errors
/// [`Error::Unsupported`] for a tokenizer model or pre-tokeniser that is not known,
/// [`Error::Format`] for a malformed vocabulary.
pub fn build(file: &GgufFile) -> Result<Option<GgufTokenizer>> {
    let Some(model) = file.get_str("tokenizer.ggml.model")? else { return Ok(None) };
    let tokens = file
        .get_strings("tokenizer.ggml.tokens")?
        .ok_or_else(|| Error::format(file.path(), "no `tokenizer.ggml.tokens` in the metadata"))?;
    let types = token_types(file, tokens.len())?;
    let special = |key: &str| -> Result<Option<String>> {
        let Some(id) = file.get_usize(&format!("tokenizer.ggml.{key}_token_id"))? else { return Ok(None) };
        let token = tokens.get(id).ok_or_else(|| {
            Error::format(
                file.path(),
                format!("`tokenizer.ggml.{key}_token_id` is {id}, but there are {} tokens", tokens.len()),
            )
        })?;
        Ok(Some(token.to_string()))
    };
    let (bos, eos, pad, unk) = (special("bos")?, special("eos")?, special("padding")?, special("unknown")?);
    let pre = file.get_str("tokenizer.ggml.pre")?.unwrap_or("default");

    let (parts, adds_bos) = match model {
        "gpt2" => {
            let kind = PreTokenizer::from_name(file, pre)?;
            (byte_level(file, &tokens, &types, kind)?, kind.adds_bos())
        }
        "llama" => (sentence_piece(file, &tokens, unk.as_deref())?, true),
        other => {
            return Err(Error::unsupported(
                format!("{}: the tokenizer model is `{other}`", file.path().display()),
                "gpt2 (byte-level BPE), llama (SentencePiece)",
            ));
        }
    };
    let add_bos = file.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos);
    let add_eos = file.get_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let id_of = |token: &str| tokens.iter().position(|t| *t == token);
    let post_processor = template_processing(
        bos.as_deref().filter(|_| add_bos).and_then(|t| Some((t, id_of(t)?))),
        eos.as_deref().filter(|_| add_eos).and_then(|t| Some((t, id_of(t)?))),
    );
    let tokenizer_json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&tokens, &types),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": parts.decoder,
        "model": parts.model,
    });
    Ok(Some(GgufTokenizer { tokenizer_json, bos, eos, pad, unk }))
}

/// The parts of `tokenizer.json` that depend on the kind of vocabulary.
struct Parts {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: Json,
}

fn token_types(file: &GgufFile, count: usize) -> Result<Vec<i64>> {
    let key = "tokenizer.ggml.token_type";
    let Some(items) = file.get_array(key)? else { return Ok(vec![1; count]) };
    if items.len() != count {
        return Err(Error::format(
            file.path(),
            format!("`{key}` has {} entries for {count} tokens", items.len()),
        ));
    }
    Ok(items
        .iter()
        .map(|item| match item {
            Value::Signed(n) => *n,
            other => other.as_usize().map_or(1, |n| n as i64),
        })
        .collect())
}

fn added_tokens(tokens: &[&str], types: &[i64]) -> Json {
    tokens
        .iter()
        .zip(types)
        .enumerate()
        .filter(|(_, (token, kind))| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty())
        .map(|(id, (token, kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL,
            })
        })
        .collect()
}

/// What adds BOS and EOS; null where nothing is added.
fn template_processing(bos: Option<(&str, usize)>, eos: Option<(&str, usize)>) -> Json {
    if bos.is_none() && eos.is_none() {
        return Json::Null;
    }
    let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let token = |t: Option<(&str, usize)>| t.map(|(t, _)| json!({"SpecialToken": {"id": t, "type_id": 0}}));
    let around =
        |name: &str| [token(bos), Some(sequence(name)), token(eos)].into_iter().flatten().collect::<Vec<_>>();
    let mut special = Map::new();
    for (text, id) in [bos, eos].into_iter().flatten() {
        special.insert(text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let pair: Vec<Json> = around("A").into_iter().chain(around("B")).collect();
    json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": special})
}

/// How text is cut into words before the merges apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    Gpt2Nfc,
    Digits,
    Llama3,
    Qwen2,
    Tekken,
}

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    fn from_name(file: &GgufFile, name: &str) -> Result<PreTokenizer> {
        Ok(match name {
            "default" | "gpt-2" | "phi-2" => PreTokenizer::Gpt2,
            // Pythia, GPT-NeoX and OLMo share a vocabulary, whose tokenizer.json normalises to NFC.
            "olmo" | "gpt-neox" | "dolma" => PreTokenizer::Gpt2Nfc,
            "smollm" | "starcoder" | "refact" | "command-r" => PreTokenizer::Digits,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" | "pixtral" => PreTokenizer::Llama3,
            "qwen2" | "deepseek-r1-qwen" => PreTokenizer::Qwen2,
            "tekken" => PreTokenizer::Tekken,
            other => {
                return Err(Error::unsupported(
                    format!("{}: the pre-tokeniser is `{other}`", file.path().display()),
                    "default, gpt-2, smollm, llama-bpe, qwen2, tekken, gpt-neox, olmo; \
                     or put the model's tokenizer.json into a Hugging Face directory",
                ));
            }
        })
    }

    fn split(self) -> Option<&'static str> {
        match self {
            PreTokenizer::Llama3 => Some(LLAMA3_SPLIT),
            PreTokenizer::Qwen2 => Some(QWEN2_SPLIT),
            PreTokenizer::Tekken => Some(TEKKEN_SPLIT),
            PreTokenizer::Gpt2 | PreTokenizer::Gpt2Nfc | PreTokenizer::Digits => None,
        }
    }

    /// Whether llama.cpp adds BOS where the file does not say.
    fn adds_bos(self) -> bool {
        matches!(self, PreTokenizer::Llama3 | PreTokenizer::Tekken)
    }

    /// The tokenizer.json of Llama 3 and Mistral's Tekken take a word that is a token as it is.
    fn ignores_merges(self) -> bool {
        matches!(self, PreTokenizer::Llama3 | PreTokenizer::Tekken)
    }
}

fn byte_level(file: &GgufFile, tokens: &[&str], types: &[i64], kind: PreTokenizer) -> Result<Parts> {
    let merges = file.get_strings("tokenizer.ggml.merges")?.ok_or_else(|| {
        Error::format(file.path(), "no `tokenizer.ggml.merges`, which a `gpt2` tokenizer needs")
    })?;
    let alphabet = byte_alphabet();
    let spelled = |c: char| alphabet.contains(&c);
    let mut vocab = Map::new();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        // An added token is matched in the raw text and keeps its raw spelling; every other token must
        // be spelled in the byte alphabet, or no merge could ever make it.
        let raw = matches!(*kind, CONTROL | USER_DEFINED) || token.chars().all(spelled);
        let text =
            if raw { token.to_string() } else { token.bytes().map(|b| alphabet[b as usize]).collect() };
        vocab.insert(text, id.into());
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let pre_tokenizer = match kind.split() {
        Some(regex) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]}),
        None if kind == PreTokenizer::Digits => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            byte_level(true),
        ]}),
        None => byte_level(true),
    };
    let normalizer = match kind {
        // The original tokenizer.json of these families does so; llama.cpp does not carry it.
        PreTokenizer::Qwen2 | PreTokenizer::Gpt2Nfc => json!({"type": "NFC"}),
        _ => Json::Null,
    };
    Ok(Parts {
        normalizer,
        pre_tokenizer,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: bpe(None, false, kind.ignores_merges(), vocab, merges.into_iter().map(Json::from).collect()),
    })
}

fn bpe(
    unk: Option<&str>,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Map<String, Json>,
    merges: Vec<Json>,
) -> Json {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
    })
}

/// GPT-2's spelling of the 256 bytes in printable characters.
fn byte_alphabet() -> [char; 256] {
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let printable =
            (0x21..=0x7e).contains(&byte) || (0xa1..=0xac).contains(&byte) || (0xae..=0xff).contains(&byte);
        let code = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

fn sentence_piece(file: &GgufFile, tokens: &[&str], unk: Option<&str>) -> Result<Parts> {
    let prefix = file.get_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let vocab: Map<String, Json> =
        tokens.iter().enumerate().map(|(id, t)| (t.to_string(), id.into())).collect();
    let merges = match file.get_strings("tokenizer.ggml.merges")? {
        Some(merges) => merges.into_iter().map(Json::from).collect(),
        None => merges_from_scores(tokens, &scores(file, tokens.len())?),
    };
    // As the tokenizer.json of Llama 2 and TinyLlama: spaces become U+2581, and one is put in front.
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut normalizers = vec![];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(replace);
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Json::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: bpe(
            unk.or(Some("<unk>")).filter(|t| vocab.contains_key(*t)),
            true,
            false,
            vocab.clone(),
            merges,
        ),
    })
}

fn scores(file: &GgufFile, count: usize) -> Result<Vec<f32>> {
    let key = "tokenizer.ggml.scores";
    let items = file.get_array(key)?.ok_or_else(|| {
        Error::format(
            file.path(),
            format!("no `{key}` and no `tokenizer.ggml.merges`: the merges cannot be derived"),
        )
    })?;
    if items.len() != count {
        return Err(Error::format(
            file.path(),
            format!("`{key}` has {} entries for {count} tokens", items.len()),
        ));
    }
    items
        .iter()
        .map(|item| match item {
            Value::F32(x) => Ok(*x),
            other => Err(Error::format(
                file.path(),
                format!("`{key}` holds {}, expected 32-bit floats", other.kind()),
            )),
        })
        .collect()
}

/// The merges that a scored vocabulary implies: every way to cut a token into two others, best score
/// first, then longest left part, then longest right part (transformers' `generate_merges`).
fn merges_from_scores(tokens: &[&str], scores: &[f32]) -> Vec<Json> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let mut local: Vec<(usize, usize, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(cut, _)| {
                let (left, right) = token.split_at(cut);
                Some((*ids.get(left)?, *ids.get(right)?, left, right))
            })
            .collect();
        local.sort_by_key(|&(left, right, ..)| (left, right));
        merges.extend(
            local.into_iter().map(|(_, _, l, r)| (score, l.chars().count(), r.chars().count(), l, r)),
        );
    }
    // Stable, descending: Python's sorted(..., reverse=True) keeps the order of equals too.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    merges.into_iter().map(|(.., l, r)| json!([l, r])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet[b' ' as usize], 'Ġ');
        assert_eq!(alphabet[b'\n' as usize], 'Ċ');
        assert_eq!(alphabet[b'A' as usize], 'A');
        assert_eq!(alphabet[0xad], 'Ń');
        let distinct: std::collections::HashSet<_> = alphabet.iter().collect();
        assert_eq!(distinct.len(), 256);
    }

    #[test]
    fn merges_follow_the_scores() {
        let tokens = ["a", "b", "ab", "abb", "bb"];
        let scores = [-1.0, -2.0, -3.0, -5.0, -4.0];
        let merges = merges_from_scores(&tokens, &scores);
        assert_eq!(merges, [json!(["a", "b"]), json!(["b", "b"]), json!(["ab", "b"]), json!(["a", "bb"])]);
    }
}
