//! LoRA adapters as PEFT keeps them: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! PEFT's configuration has some fifty keys. Those that change nothing in what a finished adapter computes are
//! passed over by name; any other must ask for nothing, or the adapter is refused rather than read wrongly.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::source::read_json;
use super::weights::Weights;
use crate::error::{Error, Result};

/// The name of the configuration, which makes a directory an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The name of the tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// What a LoRA is, under the names of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Width of the low-rank path.
    pub r: usize,
    /// Strength of the path: it is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Whether by `lora_alpha / sqrt(r)` instead (Kalajdzievski, arXiv 2312.03732).
    pub use_rslora: bool,
    /// Whether the rows of a layer's weight get lengths of their own (DoRA; Liu et al., arXiv 2402.09353).
    pub use_dora: bool,
    /// Dropout of what goes into the path while it is trained.
    pub lora_dropout: f64,
    /// The linear layers that have one, by the last parts of their names; empty: all of the model's blocks.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// On all linear layers of the blocks, without anything special.
    pub fn plain(r: usize, lora_alpha: f64) -> Self {
        LoraConfig {
            r,
            lora_alpha,
            use_rslora: false,
            use_dora: false,
            lora_dropout: 0.0,
            target_modules: Vec::new(),
        }
    }

    /// The factor of the path.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }
}

/// Keys that say how an adapter came to be or which parts of the model have one, which its tensors say too.
const WITHOUT_EFFECT: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Starting values that leave the base as it is; others (PiSSA, OLoRA, LoftQ ...) subtract from it what the adapter starts with.
const INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// An opened adapter: its configuration, and its tensors (mapped, not yet read).
#[derive(Debug)]
pub struct AdapterFiles {
    /// The directory.
    pub path: PathBuf,
    /// What it is.
    pub config: LoraConfig,
    /// The model that it was made for, as the configuration names it.
    pub base_model_name_or_path: String,
    /// The tensors under PEFT's names.
    pub weights: Weights,
}

impl AdapterFiles {
    /// Whether a directory holds an adapter.
    pub fn are_in(directory: &Path) -> bool {
        directory.join(CONFIG_FILE).is_file()
    }

    /// Opens the adapter in a directory.
    ///
    /// # Errors
    /// [`Error::Format`] for a configuration that is none, [`Error::Unsupported`] for one that asks for what Seakeep does not
    /// do, naming the key; what [`Weights::open`] refuses.
    pub fn open(directory: &Path) -> Result<AdapterFiles> {
        let path = directory.join(CONFIG_FILE);
        let json = read_json(&path)?;
        let wrong = |what: &str| Error::format(&path, what);
        let object = json.as_object().ok_or_else(|| wrong("expected an object of keys and values"))?;
        check(&path, object)?;
        let none = Value::Null;
        let found = |key: &str| object.get(key).unwrap_or(&none);
        let not = |key: &str, what: &str| wrong(&format!("`{key}` is {}; expected {what}", found(key)));
        let switch = |key: &str| match found(key) {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| not(key, "true or false")),
        };
        let r = found("r").as_u64().filter(|r| *r > 0);
        let lora_alpha = found("lora_alpha").as_f64().filter(|x| x.is_finite() && *x > 0.0);
        let text = |value: &Value| value.as_str().map(str::to_string);
        let tensors = directory.join(TENSORS_FILE);
        if !tensors.is_file() {
            let what = format!("no {TENSORS_FILE} beside it; save the adapter with PEFT's save_pretrained");
            return Err(wrong(&what));
        }
        Ok(AdapterFiles {
            path: directory.to_path_buf(),
            config: LoraConfig {
                r: r.ok_or_else(|| not("r", "a whole number above 0"))? as usize,
                lora_alpha: lora_alpha.ok_or_else(|| not("lora_alpha", "a number above 0"))?,
                use_rslora: switch("use_rslora")?,
                use_dora: switch("use_dora")?,
                // Of a finished adapter it means nothing; one that is trained on keeps it.
                lora_dropout: object.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
                target_modules: match object.get("target_modules") {
                    Some(Value::Array(names)) => names.iter().filter_map(text).collect(),
                    other => other.and_then(text).into_iter().collect(),
                },
            },
            base_model_name_or_path: object.get("base_model_name_or_path").and_then(text).ok_or_else(
                || wrong("no `base_model_name_or_path`, which names the model below the adapter"),
            )?,
            weights: Weights::open(&tensors)?,
        })
    }

    /// Where the model below it is: as named, or relative to the adapter.
    ///
    /// # Errors
    /// [`Error::Format`] where there is nothing.
    pub fn base(&self) -> Result<PathBuf> {
        let named = PathBuf::from(&self.base_model_name_or_path);
        let beside = self.path.join(&named);
        [named, beside].into_iter().find(|path| path.exists()).ok_or_else(|| {
            let what = format!(
                "`base_model_name_or_path` is {:?}, which is not on this machine; set it to the directory or .gguf file of the \
                 model that the adapter was made for",
                self.base_model_name_or_path
            );
            Error::format(self.path.join(CONFIG_FILE), what)
        })
    }
}

/// Refuses what would be read wrongly.
fn check(path: &Path, object: &Map<String, Value>) -> Result<()> {
    let refuse = |key: &str, value: &Value, supported: &str| {
        Err(Error::unsupported(format!("{}: `{key}` is {value}", path.display()), supported.to_string()))
    };
    // First of all: every other kind has keys of its own, and to leave those out would not help.
    if let Some(kind) = object.get("peft_type").filter(|kind| *kind != "LORA") {
        return refuse("peft_type", kind, "LORA");
    }
    for (key, value) in object {
        let text = value.as_str().unwrap_or_default();
        let nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        match key.as_str() {
            "bias" if text != "none" => {
                return refuse(key, value, "none: adapters that leave biases as they are");
            }
            "init_lora_weights" if !(value.is_boolean() || nothing || INITS.contains(&text)) => {
                let instead = "true, gaussian: starts that leave the base as it is (PEFT converts others when it saves)";
                return refuse(key, value, instead);
            }
            "peft_type" | "bias" | "init_lora_weights" | "r" | "lora_alpha" | "use_rslora" | "use_dora" => {}
            known if WITHOUT_EFFECT.contains(&known) => {}
            _ if nothing => {}
            _ => return refuse(key, value, "plain LoRA, without this"),
        }
    }
    Ok(())
}

/// `adapter_config.json` of an adapter to a model whose linear layers lie transposed (`fan_in_fan_out`, GPT-2) or not.
pub fn config_json(config: &LoraConfig, targets: &[&str], base: &Path, fan_in_fan_out: bool) -> Value {
    let alpha = config.lora_alpha;
    // PEFT's is a whole number.
    let alpha = if alpha.fract() == 0.0 && alpha < 1e15 { json!(alpha as u64) } else { json!(alpha) };
    json!({
        "base_model_name_or_path": base.to_string_lossy(),
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str, value: Value) -> std::result::Result<(), String> {
        let base = config_json(&LoraConfig::plain(2, 4.0), &["q_proj"], Path::new("base"), false);
        let mut object = base.as_object().unwrap().clone();
        object.insert(key.into(), value);
        check(Path::new("adapter_config.json"), &object).map_err(|e| e.to_string())
    }

    #[test]
    fn what_would_be_read_wrongly_is_refused_by_name() {
        for (key, value) in [
            ("peft_type", json!("IA3")),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"q_proj": 4})),
            ("init_lora_weights", json!("pissa")),
            ("some_key_of_the_future", json!(1)),
        ] {
            let message = checked(key, value).unwrap_err();
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
        for (key, value) in [
            ("lora_dropout", json!(0.05)),
            ("init_lora_weights", json!("gaussian")),
            ("modules_to_save", json!(null)),
            ("some_key_of_the_future", json!(false)),
        ] {
            checked(key, value).unwrap();
        }
    }

    #[test]
    fn another_kind_of_adapter_is_named_whatever_keys_it_has_besides() {
        let ia3 = json!({"feedforward_modules": ["down_proj"], "peft_type": "IA3"});
        let message = check(Path::new("a.json"), ia3.as_object().unwrap()).unwrap_err().to_string();
        assert!(message.contains("`peft_type` is \"IA3\"; supported: LORA"), "{message}");
    }

    #[test]
    fn values_of_another_kind_are_refused() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join(TENSORS_FILE), b"").unwrap();
        for (key, value, expected) in [
            ("use_rslora", json!("true"), "true or false"),
            ("use_dora", json!(1), "true or false"),
            ("r", json!(0), "a whole number above 0"),
            ("lora_alpha", json!(-4), "a number above 0"),
        ] {
            let mut config = config_json(&LoraConfig::plain(2, 4.0), &["q_proj"], Path::new("base"), false);
            config[key] = value.clone();
            std::fs::write(place.path().join(CONFIG_FILE), config.to_string()).unwrap();
            let message = AdapterFiles::open(place.path()).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}` is {value}; expected {expected}")), "{message}");
        }
    }

    #[test]
    fn the_factor_follows_rank_or_its_root() {
        let of = |use_rslora| LoraConfig { use_rslora, ..LoraConfig::plain(16, 32.0) };
        assert_eq!((of(false).scale(), of(true).scale()), (2.0, 8.0));
    }
}
