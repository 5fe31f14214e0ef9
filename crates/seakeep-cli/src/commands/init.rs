//! `seakeep init`: a model with random weights, perhaps with a tokenizer learnt from texts.

use std::path::Path;
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command};
use seakeep::data::{Pair, read_texts};
use seakeep::formats::bpe::{MIN_VOCABULARY, train_tokenizer};
use seakeep::formats::{AtomicDir, Tokenizer};
use seakeep::model::RandomModel;
use seakeep::progress::Progress;
use seakeep::train::data::select;
use seakeep::{Error, Result};
use serde_json::{Map, Value};

use super::grouped;
use crate::config::{Settings, plan};
use crate::{args, output, progress};

/// The keys of the texts that a tokenizer is learnt from.
const TEXT_KEYS: [&str; 3] = ["dataset_name", "dataset_train_split", "dataset_text_field"];

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "init",
        "Make a model with random weights from a config.json, and perhaps a tokenizer from texts",
        "seakeep init --config_json config.json --tokenizer models/m --seed 1 --output_dir models/random\n  \
         seakeep init --config_json config.json --train_tokenizer 4096 --dataset_name texts.jsonl --output_dir models/tiny",
    );
    let given = |name: &'static str, value: &'static str, help: &'static str| -> Arg {
        args::spelled(name).value_name(value).help(help)
    };
    let keys = [&["output_dir", "seed", "save_dtype", "num_threads"], &TEXT_KEYS[..]].concat();
    let config = "The architecture: a Hugging Face config.json. Of the tokenizer it takes vocab_size, bos_token_id, eos_token_id \
                  and pad_token_id, where it has none itself (pad_token_id not where it is one of the others: transformers \
                  would not train that token's embedding)";
    let train = "Learn a byte-level BPE of this many tokens from the texts of --dataset_name (see `seakeep help sft`). One \
                 special token, <|endoftext|>, begins, ends and pads texts; ids of another tokenizer in config.json are left out";
    args::keyed(command, &keys)
        .mut_arg("seed", |arg| arg.help("Seed of the weights [default: 42]"))
        .mut_arg("output_dir", |arg| arg.help("Where the model goes: a new directory"))
        .mut_arg("dataset_name", |arg| {
            arg.help("Texts to learn a tokenizer from, as `seakeep sft` reads them")
        })
        .mut_arg("dataset_train_split", |arg| arg.help("Which of their rows [default: train]"))
        .arg(given("config_json", "PATH", config).required(true))
        .arg(given("tokenizer", "PATH", "A directory whose tokenizer is copied beside the model"))
        .arg(
            given("train_tokenizer", "N", train)
                .conflicts_with("tokenizer")
                .value_parser(clap::value_parser!(u32).range(MIN_VOCABULARY as i64..)),
        )
}

/// Makes it.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    super::set_threads(&settings)?;
    let target = settings.required("output_dir")?;
    let config_path = args::texts(matches, "config_json").pop().unwrap_or_default();
    let bytes = std::fs::read(&config_path).map_err(Error::io("read", &config_path))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::format(&config_path, format!("not JSON, or not an object: {e}")))?;
    let vocabulary = matches.get_one::<u32>("train_tokenizer").map(|n| *n as usize);
    if let (None, Some(key)) = (vocabulary, TEXT_KEYS.iter().find(|key| settings.is_given(key))) {
        return Err(Error::Usage(format!(
            "{} has no meaning without --train_tokenizer",
            settings.place(key)
        )));
    }
    let texts = vocabulary.map(|_| texts(&settings)).transpose()?;
    let copied =
        args::texts(matches, "tokenizer").pop().map(|path| super::logps::tokenizer(&path)).transpose()?;
    let directory = AtomicDir::new(&target)?;
    let tokenizer = match (&texts, vocabulary) {
        (Some(texts), Some(size)) => Some(learn(texts, size, directory.path())?),
        _ => copied,
    };
    if let Some(tokenizer) = &tokenizer {
        if texts.is_some() {
            forget_ids(&mut config, tokenizer, &mut *progress::on_stderr());
        }
        take_over(&mut config, tokenizer);
    }
    let config = Value::Object(config);
    let model = RandomModel::new(&config, settings.seed("seed"))?;
    if let Some(tokenizer) = &tokenizer {
        check_vocabulary(tokenizer, &model)?;
    }
    let parameters = model.map.count();
    model.save(directory.path(), &config, plan::save_dtype(&settings))?;
    if let Some(tokenizer) = &tokenizer {
        tokenizer.save(directory.path())?;
    }
    directory.commit()?;
    let tokens = tokenizer.map(|t| format!(", {} tokens", grouped(t.vocab_size()))).unwrap_or_default();
    output::print(&format!("{target}: {} parameters{tokens}\n", grouped(parameters)))
}

/// The texts to learn a tokenizer from.
fn texts(settings: &Settings) -> Result<Vec<Pair>> {
    let (spec, field) = (settings.required("dataset_name")?, settings.required("dataset_text_field")?);
    select(read_texts(&spec, &field)?, &spec, &settings.required("dataset_train_split")?)
}

fn learn(texts: &[Pair], size: usize, directory: &Path) -> Result<Arc<Tokenizer>> {
    train_tokenizer(texts.iter().flat_map(Pair::said), size, directory)?;
    Tokenizer::open(directory).map(Arc::new)
}

/// Ids that a config.json has of another tokenizer than the one that was learnt: they would be any tokens of this one.
fn forget_ids(config: &mut Map<String, Value>, tokenizer: &Tokenizer, progress: &mut dyn Progress) {
    let own = [tokenizer.bos_id(), tokenizer.eos_id()].into_iter().flatten().map(Value::from);
    let own: Vec<Value> = own.collect();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(key).filter(|id| !id.is_null() && !own.contains(id)).cloned() {
            config.shift_remove(key);
            progress.note(&format!("{key} of --config_json, {id}, is another tokenizer's and left out"));
        }
    }
}

/// What a config.json leaves to the tokenizer. A padding token that is also another token is left out: transformers gives
/// the embedding of `pad_token_id` no gradient, and texts begin with it here.
fn take_over(config: &mut Map<String, Value>, tokenizer: &Tokenizer) {
    let (bos, eos) = (tokenizer.bos_id(), tokenizer.eos_id());
    let pad = tokenizer.pad_id().filter(|pad| Some(*pad) != bos && Some(*pad) != eos);
    let known = [
        ("vocab_size", Some(tokenizer.vocab_size() as u64)),
        ("bos_token_id", bos.map(u64::from)),
        ("eos_token_id", eos.map(u64::from)),
        ("pad_token_id", pad.map(u64::from)),
    ];
    for (key, value) in known {
        if let (None | Some(Value::Null), Some(value)) = (config.get(key), value) {
            config.insert(key.into(), value.into());
        }
    }
}

/// A token without an embedding would only be found in the middle of a run.
fn check_vocabulary(tokenizer: &Tokenizer, model: &RandomModel) -> Result<()> {
    let (tokens, rows) = (tokenizer.vocab_size(), model.config.vocab_size);
    if tokens <= rows {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "the tokenizer has {tokens} tokens, but `vocab_size` in --config_json is {rows}; expected at least as many"
    )))
}
