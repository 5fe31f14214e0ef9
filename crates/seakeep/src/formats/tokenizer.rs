//! A tokenizer with its special tokens and chat template, from a Hugging Face directory or from GGUF.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tokenizers::AddedToken;

use super::atomic::write_atomic;
use super::chat_templates::ChatTemplates;
use super::fingerprint::Fingerprint;
use super::gguf::{self, GgufFile};
use super::guard::guarded;
use super::source::read_json;
use super::template::{Message, Template};
use crate::error::{Error, Result};

/// Files that belong to a tokenizer and are carried over to a saved model as they are.
const COMPANIONS: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];
/// The special tokens that have a name of their own, and which templates may use.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// An opened tokenizer. Cheap to share between threads; encoding does not change it.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    special: Vec<(&'static str, String)>,
    templates: ChatTemplates,
    /// What [`Tokenizer::save`] writes: name and content.
    files: Vec<(String, Vec<u8>)>,
    fingerprint: String,
}

impl Tokenizer {
    /// Opens a Hugging Face directory, a directory with one `.gguf`, a `.gguf` file, or a bare
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Format`] where there is no `tokenizer.json` or a file is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        if path.extension().is_some_and(|e| e == "gguf") {
            return Tokenizer::from_gguf(&GgufFile::open(path)?);
        }
        if path.file_name().is_some_and(|n| n == "tokenizer.json") {
            return Tokenizer::open(path.parent().unwrap_or(Path::new(".")));
        }
        if !path.join("tokenizer.json").is_file() {
            return Err(Error::format(
                path,
                "no tokenizer.json; write one with python -c \"from transformers import AutoTokenizer as T; \
                 T.from_pretrained('DIR').save_pretrained('DIR')\"",
            ));
        }
        Tokenizer::open_directory(path)
    }

    fn open_directory(directory: &Path) -> Result<Tokenizer> {
        let mut files = Vec::new();
        for name in COMPANIONS {
            let file = directory.join(name);
            if file.is_file() {
                files.push((name.to_string(), std::fs::read(&file).map_err(Error::io("read", &file))?));
            }
        }
        let optional = |name: &str| -> Result<Json> {
            let file = directory.join(name);
            if file.is_file() { read_json(&file) } else { Ok(Json::Null) }
        };
        let config = optional("tokenizer_config.json")?;
        let map = optional("special_tokens_map.json")?;
        let mut special: Vec<(&'static str, String)> = NAMED
            .iter()
            .filter_map(|name| Some((*name, token_text(&config[*name]).or_else(|| token_text(&map[*name]))?)))
            .collect();

        let tokenizer_path = directory.join("tokenizer.json");
        let mut inner = load(&tokenizer_path, &files[0].1)?;
        if config.is_null() && map.is_null() {
            special = special_from_model_config(&optional("config.json")?, &inner);
        }
        if config["split_special_tokens"] == true {
            return Err(Error::unsupported(
                format!("{}: split_special_tokens = true", directory.join("tokenizer_config.json").display()),
                "false: special tokens written in a text are recognised",
            ));
        }
        let declared = add_declared_tokens(&mut inner, &config, &special);
        let templates = ChatTemplates::open(directory, &config)?;
        if config.is_null() {
            // Only a tokenizer.json: say the rest in the form transformers reads.
            files.push(config_file(&special));
        }
        Ok(Tokenizer::assemble(directory, inner, (special, &declared), templates, files))
    }

    /// Builds the tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// [`Error::Format`] where there is none or it is malformed, [`Error::Unsupported`] for a kind
    /// that is not known.
    pub fn from_gguf(file: &GgufFile) -> Result<Tokenizer> {
        let path = file.path();
        let built = gguf::tokenizer::build(file)?
            .ok_or_else(|| Error::format(path, "no tokenizer in the metadata (`tokenizer.ggml.model`)"))?;
        let bytes =
            serde_json::to_vec(&built.tokenizer_json).map_err(|e| Error::format(path, e.to_string()))?;
        let inner = load(path, &bytes)?;
        let named = [
            ("bos_token", built.bos),
            ("eos_token", built.eos),
            ("unk_token", built.unk),
            ("pad_token", built.pad),
        ];
        let special: Vec<(&'static str, String)> =
            named.into_iter().filter_map(|(n, t)| Some((n, t?))).collect();
        let files = vec![("tokenizer.json".to_string(), bytes), config_file(&special)];
        let templates = ChatTemplates::from_gguf(file)?;
        Ok(Tokenizer::assemble(path, inner, (special, &[]), templates, files))
    }

    fn assemble(
        path: &Path,
        inner: tokenizers::Tokenizer,
        (special, declared): (Vec<(&'static str, String)>, &[String]),
        templates: ChatTemplates,
        files: Vec<(String, Vec<u8>)>,
    ) -> Tokenizer {
        let tokenizer_json =
            files.iter().find(|(name, _)| name == "tokenizer.json").map_or(&[][..], |(_, b)| b);
        let mut print = Fingerprint::new().field(tokenizer_json);
        for (name, token) in &special {
            print = print.field(name.as_bytes()).field(token.as_bytes());
        }
        for token in declared {
            print = print.field(token.as_bytes());
        }
        print = print.field(templates.main().map_or("", Template::source).as_bytes());
        if let Some(template) = templates.for_tools() {
            print = print.field(template.source().as_bytes());
        }
        Tokenizer { path: path.to_path_buf(), inner, special, templates, files, fingerprint: print.hex() }
    }

    /// Where it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids of `text`; `add_special_tokens` adds what the tokenizer itself puts around a text
    /// (BOS for Llama). Special tokens written in the text are recognised either way.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let what = "the tokenizer cannot encode a text";
        let encoding = guarded(&self.path, what, || {
            let encoded = self.inner.encode_fast(text, add_special_tokens);
            encoded.map_err(|e| Error::format(&self.path, format!("{what}: {e}")))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Where in `text`, in bytes, its first `tokens` end (without what the tokenizer itself puts around a text).
    ///
    /// # Errors
    /// [`Error::Format`] where it cannot be encoded.
    pub fn end_of(&self, text: &str, tokens: usize) -> Result<usize> {
        let what = "the tokenizer cannot encode a text";
        let encoding = guarded(&self.path, what, || {
            self.inner.encode(text, false).map_err(|e| Error::format(&self.path, format!("{what}: {e}")))
        })?;
        let mut end = encoding
            .get_offsets()
            .iter()
            .take(tokens)
            .map(|(_, end)| *end)
            .max()
            .unwrap_or(0)
            .min(text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        Ok(end)
    }

    /// [`encode`](Self::encode) with what the tokenizer puts before a text, but without the end tokens that some put after it: what goes on
    /// has not ended, and what has ended says so itself.
    pub fn encode_open(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        let Some(eos) = self.eos_token().filter(|eos| !eos.is_empty()) else { return Ok(ids) };
        let Some(id) = self.inner.token_to_id(eos) else { return Ok(ids) };
        let found = ids.iter().rev().take_while(|i| **i == id).count();
        let (mut rest, mut written) = (text, 0);
        while let Some(before) = rest.strip_suffix(eos) {
            (rest, written) = (before, written + 1);
        }
        ids.truncate(ids.len() - found.saturating_sub(written));
        Ok(ids)
    }

    /// Text of `ids`; `skip_special` leaves special tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::format(&self.path, format!("the tokenizer cannot decode ids: {e}")))
    }

    /// The token with this id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, the added ones included. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn named(&self, name: &str) -> Option<&str> {
        self.special.iter().find(|(n, _)| *n == name).map(|(_, token)| token.as_str())
    }

    /// Beginning-of-sequence token.
    pub fn bos_token(&self) -> Option<&str> {
        self.named("bos_token")
    }

    /// End-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.named("eos_token")
    }

    /// Padding token.
    pub fn pad_token(&self) -> Option<&str> {
        self.named("pad_token")
    }

    /// Id of the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_token().and_then(|t| self.id(t))
    }

    /// Id of the end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_token().and_then(|t| self.id(t))
    }

    /// Id of the padding token.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_token().and_then(|t| self.id(t))
    }

    /// Whether conversations can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.templates.main().is_some()
    }

    /// The chat template's source; where there are several, that of the one without tools.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.main().map(Template::source)
    }

    /// Renders a conversation to text, as `tokenizer.apply_chat_template(tokenize=False)`. Encode the
    /// result with `add_special_tokens = false`: the template writes them itself.
    ///
    /// # Errors
    /// [`Error::Format`] where there is no template, or it refuses, fails or does not end.
    pub fn apply_chat_template(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.apply_chat_template_with(messages, add_generation_prompt, &serde_json::Map::new())
    }

    /// [`Tokenizer::apply_chat_template`] with further variables for the template (`tools`,
    /// `enable_thinking`, ...), as the keyword arguments of transformers' method. With `tools` the template
    /// named `tool_use` is taken, where there is one.
    pub fn apply_chat_template_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, Json>,
    ) -> Result<String> {
        let with_tools = variables.get("tools").is_some_and(|tools| !tools.is_null());
        let template = self.templates.choose(with_tools).ok_or_else(|| {
            let names: Vec<&str> = self.templates.names().collect();
            let others = if names.is_empty() { String::new() } else { format!(" (but {})", names.join(", ")) };
            Error::format(
                &self.path,
                format!(
                    "the tokenizer has no chat template{others}, which conversational data needs; put a chat_template.jinja \
                     into the model directory, or use data with plain strings"
                ),
            )
        })?;
        let special: Vec<(&'static str, &str)> = self.special.iter().map(|(n, t)| (*n, t.as_str())).collect();
        template.render(messages, add_generation_prompt, &special, variables)
    }

    /// Writes the tokenizer into `directory` so that transformers' `AutoTokenizer` loads it: the
    /// original files where it came from a directory, and the chat templates. Files of another tokenizer
    /// that stand there are removed.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<()> {
        let directory = directory.as_ref();
        ChatTemplates::remove(directory)?;
        for name in COMPANIONS {
            let path = directory.join(name);
            if path.is_file() && self.files.iter().all(|(kept, _)| kept != name) {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        for (name, content) in &self.files {
            let path = directory.join(name);
            write_atomic(&path, content)?;
        }
        self.templates.save(directory)
    }

    /// A stable name for the vocabulary, the special tokens and the template together: 32 hexadecimal
    /// digits. Two tokenizers with the same fingerprint give the same tokens.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

fn load(path: &Path, bytes: &[u8]) -> Result<tokenizers::Tokenizer> {
    // Cut short, it would be taken for another kind of tokenizer on the way to an error, or a panic.
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
        .map_err(|e| Error::format(path, format!("not JSON: {e}; was it cut short? copy it again")))?;
    let mut inner = guarded(path, "not a tokenizer that the `tokenizers` library reads", || {
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
            Error::format(path, format!("not a tokenizer that the `tokenizers` library reads: {e}"))
        })
    })?;
    // transformers sets both aside when it tokenizes; so do we.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|e| Error::format(path, e.to_string()))?;
    Ok(inner)
}

/// A token in `tokenizer_config.json`: text, or an object with `content`.
fn token_text(value: &Json) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

/// Without a tokenizer configuration, the ids of the model's `config.json` name the tokens.
fn special_from_model_config(config: &Json, inner: &tokenizers::Tokenizer) -> Vec<(&'static str, String)> {
    let token = |key: &str| {
        let id = match &config[key] {
            Json::Array(ids) => ids.first()?.as_u64()?,
            other => other.as_u64()?,
        };
        inner.id_to_token(u32::try_from(id).ok()?)
    };
    [("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("pad_token", "pad_token_id")]
        .into_iter()
        .filter_map(|(name, key)| Some((name, token(key)?)))
        .collect()
}

/// transformers also adds the tokens that only `tokenizer_config.json` declares, and makes the named
/// special tokens special. Gives those that are of the configuration alone.
fn add_declared_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Json,
    special: &[(&'static str, String)],
) -> Vec<String> {
    let known: std::collections::HashSet<String> =
        inner.get_added_tokens_decoder().into_values().map(|t| t.content).collect();
    let mut declared: Vec<(u64, AddedToken)> = config["added_tokens_decoder"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| {
            let content = token["content"].as_str()?.to_string();
            let flag = |key: &str| token[key].as_bool().unwrap_or(false);
            let added = AddedToken {
                content,
                single_word: flag("single_word"),
                lstrip: flag("lstrip"),
                rstrip: flag("rstrip"),
                normalized: flag("normalized"),
                special: flag("special"),
            };
            Some((id.parse().ok()?, added))
        })
        .filter(|(_, token)| !known.contains(&token.content))
        .collect();
    // New tokens take the next free id in turn, so the declared order matters.
    declared.sort_by_key(|(id, _)| *id);
    let mut new: Vec<String> = Vec::new();
    for (_, token) in declared {
        new.push(token.content.clone());
        if token.special {
            inner.add_special_tokens(&[token])
        } else {
            inner.add_tokens(&[token])
        };
    }
    // Tokens that are listed by themselves, in either of transformers' forms.
    for list in ["additional_special_tokens", "extra_special_tokens"].map(|key| &config[key]) {
        let texts: Vec<String> = match list {
            Json::Array(tokens) => tokens.iter().filter_map(token_text).collect(),
            Json::Object(named) => named.values().filter_map(token_text).collect(),
            _ => Vec::new(),
        };
        for text in texts.into_iter().filter(|text| !known.contains(text)) {
            inner.add_special_tokens(&[AddedToken::from(text.as_str(), true)]);
            new.push(text);
        }
    }
    for (_, token) in special {
        if !known.contains(token) && inner.token_to_id(token).is_some() {
            inner.add_special_tokens(&[AddedToken::from(token.as_str(), true)]);
        }
    }
    new
}

/// A `tokenizer_config.json` under which transformers reads `tokenizer.json` as it is.
fn config_file(special: &[(&'static str, String)]) -> (String, Vec<u8>) {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000_000_000_000_019_884_624_838_656u128 as f64,
    });
    for (name, token) in special {
        config[*name] = token.as_str().into();
    }
    ("tokenizer_config.json".to_string(), format!("{config:#}\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words, and a post-processor that puts `<s>` before a text and `</s>` after it.
    fn place(config: Json) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": true})
        };
        let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let named = |id: &str, number: u32| json!({"id": id, "ids": [number], "tokens": [id]});
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
            "added_tokens": [special(1, "<s>"), special(2, "</s>")],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [piece("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, piece("</s>")],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": named("<s>", 1), "</s>": named("</s>", 2)},
            },
            "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "<s>": 1, "</s>": 2, "b": 3}},
        });
        std::fs::write(place.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(place.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        place
    }

    #[test]
    fn a_text_ends_once_or_not_at_all() {
        let place = place(json!({"eos_token": "</s>"}));
        let tokenizer = Tokenizer::open(place.path()).unwrap();
        assert_eq!(tokenizer.encode("a b", true).unwrap(), [1, 0, 3, 2]);
        for (text, ids) in
            [("a b", vec![1, 0, 3]), ("a b</s>", vec![1, 0, 3, 2]), ("a</s></s>", vec![1, 0, 2, 2])]
        {
            assert_eq!(tokenizer.encode_open(text).unwrap(), ids, "{text}");
        }
    }

    #[test]
    fn tokens_that_the_configuration_lists_are_tokens() {
        let plain = Tokenizer::open(place(json!({"eos_token": "</s>"})).path()).unwrap();
        for config in
            [json!({"additional_special_tokens": ["<x>"]}), json!({"extra_special_tokens": {"image": "<x>"}})]
        {
            let tokenizer = Tokenizer::open(place(config).path()).unwrap();
            assert_eq!(tokenizer.encode("a<x>b", false).unwrap(), [0, 4, 3]);
            assert_ne!(tokenizer.fingerprint(), plain.fingerprint());
        }
        let split = place(json!({"split_special_tokens": true}));
        assert!(Tokenizer::open(split.path()).unwrap_err().to_string().contains("split_special_tokens"));
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error() {
        let place = place(json!({}));
        let path = place.path().join("tokenizer.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for length in (1..text.len()).step_by(7) {
            std::fs::write(&path, &text[..length]).unwrap();
            let message = Tokenizer::open(place.path()).unwrap_err().to_string();
            assert!(message.contains("tokenizer.json") && message.contains("cut short"), "{message}");
        }
    }
}
