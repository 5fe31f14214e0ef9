//! `seakeep inspect model`: family, sizes, tensors, tokenizer.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command};
use seakeep::Result;
use seakeep::formats::{ModelSource, Tokenizer};
use seakeep::model::{Model, families};

use super::grouped;
use crate::config::Settings;
use crate::{args, output};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "model",
        "Show a model's family, sizes, number formats, special tokens and chat template",
        "seakeep inspect model --model_name_or_path models/smollm2-135m-instruct.gguf --tensors",
    );
    args::keyed(command, &["model_name_or_path"]).arg(
        Arg::new("tensors")
            .long("tensors")
            .action(ArgAction::SetTrue)
            .help("List every tensor with its shape and type"),
    )
}

/// Prints it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let config = Model::config(&source)?;
    let (map, _) = families::tensors(&config);
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_string();
    let mut rows = vec![
        ("model", source.path.display().to_string()),
        ("family", source.model_type().to_string()),
        ("parameters", grouped(map.count())),
        ("layers", config.layers.to_string()),
        ("hidden size", config.hidden.to_string()),
        (
            "heads",
            format!(
                "{} of {} channels, {} for keys and values",
                config.heads, config.head_dim, config.kv_heads
            ),
        ),
        ("feed-forward size", config.intermediate.to_string()),
        ("longest text", format!("{} tokens", grouped(config.max_positions))),
        ("vocabulary", grouped(config.vocab_size)),
        ("tied embeddings", yes_no(config.tied)),
    ];
    if let Some(adapter) = &source.adapter {
        let (config, base) = (&adapter.config, &adapter.base_model_name_or_path);
        let text = format!(
            "{} of rank {}, multiplied by {}, on {base}; below: the model's own tensors",
            if config.use_dora { "DoRA" } else { "LoRA" },
            config.r,
            config.scale()
        );
        rows.insert(1, ("adapter", text));
    }
    // A model without a tokenizer is still a model.
    match source.tokenizer() {
        Ok(tokenizer) => rows.extend(tokenizer_rows(&tokenizer)),
        Err(error) => rows.push(("tokenizer", format!("none: {error}"))),
    }
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<18} {value}\n")).collect();
    text += &tensor_table(&source, matches.get_flag("tensors"));
    output::print(&text)
}

fn tokenizer_rows(tokenizer: &Tokenizer) -> Vec<(&'static str, String)> {
    let special = [
        ("bos token", tokenizer.bos_token(), tokenizer.bos_id()),
        ("eos token", tokenizer.eos_token(), tokenizer.eos_id()),
        ("pad token", tokenizer.pad_token(), tokenizer.pad_id()),
    ];
    let mut rows = vec![("tokenizer", format!("{} tokens", grouped(tokenizer.vocab_size())))];
    rows.extend(special.map(|(name, token, id)| {
        let id = id.map_or("not in the vocabulary".to_string(), |id| id.to_string());
        (name, token.map_or("none".to_string(), |token| format!("{token:?} ({id})")))
    }));
    let template = match tokenizer.chat_template() {
        Some(source) => format!("yes ({} characters)", grouped(source.chars().count())),
        None => "none".to_string(),
    };
    rows.push(("chat template", template));
    rows
}

/// Number formats with counts; every tensor, if asked for.
fn tensor_table(source: &ModelSource, all: bool) -> String {
    let names = source.weights.names();
    let mut kinds: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut lines = String::new();
    for name in &names {
        let shape = source.weights.shape(name).unwrap_or_default();
        let kind = source.weights.type_name(name).unwrap_or_default();
        lines += &format!("  {kind:<6} {:<20} {name}\n", format!("{shape:?}"));
        let (tensors, values) = kinds.entry(kind).or_default();
        *tensors += 1;
        *values += shape.iter().product::<usize>();
    }
    let kinds = kinds.iter().map(|(kind, (tensors, values))| {
        format!("  {kind:<6} {tensors:>5} tensors {:>18} values\n", grouped(*values))
    });
    let table = format!("tensors            {}\n{}", names.len(), kinds.collect::<String>());
    if all { table + "\n" + &lines } else { table }
}
