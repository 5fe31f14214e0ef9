//! The chat templates of a model: mostly one, sometimes others by name beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::atomic::write_atomic;
use super::gguf::GgufFile;
use super::template::Template;
use crate::error::{Error, Result};

const FILE: &str = "chat_template.jinja";
const DIRECTORY: &str = "additional_chat_templates";
const DEFAULT: &str = "default";
/// The one that transformers takes for a conversation with tools, where there is one.
const TOOLS: &str = "tool_use";

/// Templates by name. Those that nobody here asks for are kept as they are, and never parsed.
#[derive(Debug, Default)]
pub struct ChatTemplates {
    /// For conversations.
    default: Option<Template>,
    /// For conversations with tools.
    tools: Option<Template>,
    sources: BTreeMap<String, String>,
}

impl ChatTemplates {
    /// Those of a Hugging Face directory with this `tokenizer_config.json`: `chat_template.jinja` and
    /// `additional_chat_templates/NAME.jinja`, or else the configuration's `chat_template`, which is a
    /// text or a list of `{"name": ..., "template": ...}`.
    ///
    /// # Errors
    /// [`Error::Format`] for a template that does not parse.
    pub fn open(directory: &Path, config: &Json) -> Result<ChatTemplates> {
        let files = files(directory)?;
        if files.is_empty() {
            let path = directory.join("tokenizer_config.json");
            let sources = from_config(config).into_iter();
            return ChatTemplates::parse(
                sources.map(|(name, source)| (name, path.clone(), source)).collect(),
            );
        }
        let read = |(name, file): (String, PathBuf)| {
            let source = std::fs::read_to_string(&file).map_err(Error::io("read", &file))?;
            Ok((name, file, source))
        };
        ChatTemplates::parse(files.into_iter().map(read).collect::<Result<_>>()?)
    }

    /// Those of a GGUF file: `tokenizer.chat_template`, and `tokenizer.chat_template.NAME` for the names
    /// in `tokenizer.chat_templates`.
    ///
    /// # Errors
    /// [`Error::Format`] for a template that does not parse, or a key of another type.
    pub fn from_gguf(file: &GgufFile) -> Result<ChatTemplates> {
        const KEY: &str = "tokenizer.chat_template";
        let names = file.get_strings("tokenizer.chat_templates")?.unwrap_or_default();
        let keys = names.iter().map(|name| (*name, format!("{KEY}.{name}")));
        let mut sources = Vec::new();
        for (name, key) in keys.chain([(DEFAULT, KEY.to_string())]) {
            if let Some(source) = file.get_str(&key)? {
                sources.push((name.to_string(), file.path().to_path_buf(), source.to_string()));
            }
        }
        ChatTemplates::parse(sources)
    }

    fn parse(sources: Vec<(String, PathBuf, String)>) -> Result<ChatTemplates> {
        let mut templates = ChatTemplates::default();
        for (name, path, source) in sources {
            match name.as_str() {
                DEFAULT => templates.default = Some(Template::parse(&path, &source)?),
                TOOLS => templates.tools = Some(Template::parse(&path, &source)?),
                _ => {}
            }
            templates.sources.insert(name, source);
        }
        Ok(templates)
    }

    /// The template for conversations without tools.
    pub fn main(&self) -> Option<&Template> {
        self.default.as_ref()
    }

    /// The template for a conversation, as transformers chooses it.
    pub fn choose(&self, with_tools: bool) -> Option<&Template> {
        self.tools.as_ref().filter(|_| with_tools).or(self.default.as_ref())
    }

    /// Names of all templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// The template that conversations with tools have of their own.
    pub fn for_tools(&self) -> Option<&Template> {
        self.tools.as_ref()
    }

    /// Writes them as transformers does: `chat_template.jinja`, and the others as
    /// `additional_chat_templates/NAME.jinja`. A name that is no plain file name is left out.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\', '\0']);
        for (name, source) in self.sources.iter().filter(|(name, _)| plain(name)) {
            let mut path = directory.join(FILE);
            if name != DEFAULT {
                let named = directory.join(DIRECTORY);
                std::fs::create_dir_all(&named).map_err(Error::io("create", &named))?;
                path = named.join(format!("{name}.jinja"));
            }
            write_atomic(&path, source.as_bytes())?;
        }
        Ok(())
    }

    /// Removes the templates that stand in a directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(directory: &Path) -> Result<()> {
        for path in files(directory)?.into_values() {
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }
}

/// The files of templates in a directory, by the templates' names.
fn files(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let default = directory.join(FILE);
    if default.is_file() {
        files.insert(DEFAULT.to_string(), default);
    }
    // One that is called `default`, too, counts before the first.
    let named = directory.join(DIRECTORY);
    if named.is_dir() {
        for entry in std::fs::read_dir(&named).map_err(Error::io("list", &named))? {
            let file = entry.map_err(Error::io("list", &named))?.path();
            let stem = file.file_stem().and_then(|stem| stem.to_str()).map(str::to_string);
            if let Some(name) = stem.filter(|_| file.extension().is_some_and(|e| e == "jinja")) {
                files.insert(name, file);
            }
        }
    }
    Ok(files)
}

fn from_config(config: &Json) -> Vec<(String, String)> {
    match &config["chat_template"] {
        Json::String(text) => vec![(DEFAULT.to_string(), text.clone())],
        Json::Array(named) => named
            .iter()
            .filter_map(|entry| {
                Some((entry["name"].as_str()?.to_string(), entry["template"].as_str()?.to_string()))
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources(templates: &ChatTemplates) -> [Option<&str>; 2] {
        [false, true].map(|with_tools| templates.choose(with_tools).map(Template::source))
    }

    #[test]
    fn a_conversation_with_tools_has_a_template_of_its_own() {
        let place = tempfile::tempdir().unwrap();
        let open = |config: Json| ChatTemplates::open(place.path(), &config).unwrap();
        assert_eq!(sources(&open(json!({}))), [None, None]);
        assert_eq!(sources(&open(json!({"chat_template": "a"}))), [Some("a"), Some("a")]);
        let list = json!({"chat_template": [
            {"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"},
            {"name": "../rag", "template": "c"}, {"name": "rag", "template": "{{ never parsed"},
        ]});
        let templates = open(list.clone());
        assert_eq!(sources(&templates), [Some("a"), Some("b")]);

        // Saved and opened again, they are the same, and files come before the configuration.
        templates.save(place.path()).unwrap();
        let names = |t: &ChatTemplates| t.names().map(str::to_string).collect::<Vec<_>>();
        let saved = open(json!({"chat_template": "other"}));
        assert_eq!(sources(&saved), [Some("a"), Some("b")]);
        assert_eq!(names(&saved), ["default", "rag", "tool_use"]);
        ChatTemplates::remove(place.path()).unwrap();
        assert_eq!(sources(&open(json!({"chat_template": "other"}))), [Some("other"); 2]);
    }
}
