//! `seakeep generate`: completions of prompts.

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use seakeep::data::{Text, read_prompts};
use seakeep::formats::{Message, ModelSource, Tokenizer};
use seakeep::generate::{GenerateOptions, Generation, PromptForm, eos_ids, generate};
use seakeep::model::Model;
use seakeep::{Error, Result};
use serde_json::{Value, json};

use super::logps::{output_flag, output_path};
use crate::config::Settings;
use crate::{args, output, progress};

/// The command line.
pub fn command() -> Command {
    let command = args::command(
        "generate",
        "Complete prompts, greedily or by sampling",
        "seakeep generate --model_name_or_path runs/hh-smollm2 --prompt \"What is the capital of France?\"",
    );
    let flag = |name: &'static str, value: &'static str, parser: ValueParser, help: &'static str| {
        args::spelled(name).value_name(value).value_parser(parser).allow_negative_numbers(true).help(help)
    };
    let (whole, real) = (ValueParser::from(value_parser!(usize)), ValueParser::from(value_parser!(f64)));
    let text = || ValueParser::string();
    let switch = |arg: Arg| arg.num_args(0..=1).default_missing_value("true");
    let truth = || ValueParser::bool();
    args::keyed(command, &["model_name_or_path", "num_threads"]).args([
        flag("prompt", "TEXT", text(), "A prompt; may be given several times")
            .action(ArgAction::Append)
            .allow_hyphen_values(true),
        flag("dataset_name", "PATH", text(), "A data file whose column `prompt` (text or messages) is completed"),
        flag("system", "TEXT", text(), "A system message before each prompt, where the chat template is used"),
        switch(flag(
            "chat_template",
            "true|false",
            truth(),
            "Whether a prompt becomes a user's message in the model's chat template [default: true where it has one]",
        )),
        flag("max_new_tokens", "N", whole.clone(), "Longest completion, tokens").default_value("64"),
        switch(flag("do_sample", "true|false", truth(), "Draw from the distribution; false: the likeliest token"))
            .default_value("false"),
        flag("temperature", "X", real.clone(), "Divides the logits before sampling").default_value("1.0"),
        flag("top_k", "N", whole.clone(), "Sample from the likeliest tokens only; 0: from all").default_value("50"),
        flag("top_p", "X", real, "Sample from the likeliest tokens that have this probability together")
            .default_value("1.0"),
        flag("num_return_sequences", "N", whole.clone(), "Completions of each prompt").default_value("1"),
        flag("seed", "N", value_parser!(u64).into(), "Seed of the sampling").default_value("42"),
        flag("batch_size", "N", whole, "Texts computed at a time").default_value("8"),
        output_flag("JSON lines: prompt, completion, tokens (the generated ids). Default: text to standard output"),
    ])
}

/// Generates and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let options = options(matches);
    options.check()?;
    let output = output_path(matches);
    output::check(output)?;
    let prompts = prompts(matches)?;
    super::set_threads(&settings)?;
    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let tokenizer = source.tokenizer()?;
    let system = args::texts(matches, "system").pop();
    let wanted = matches.get_one::<bool>("chat_template").copied();
    let chat = prompts.iter().any(|prompt| matches!(prompt, Text::Chat(_)));
    // Messages mean nothing without the template.
    let templated = chat || wanted.unwrap_or(tokenizer.has_chat_template());
    if system.is_some() && !templated {
        return Err(Error::Usage("--system needs the model's chat template, which is not used here".into()));
    }
    let form = if templated { PromptForm::Templated } else { PromptForm::Raw };
    let texts: Vec<String> = prompts
        .iter()
        .map(|prompt| rendered(prompt, templated, system.as_deref(), &tokenizer))
        .collect::<Result<_>>()?;
    let model = Model::load(&source)?;
    let eos = eos_ids(&source, Some(&tokenizer))?;
    let mut progress = progress::on_stderr();
    let generations = generate(&model, &tokenizer, &texts, form, &options, &eos, &mut *progress)?;
    // As many completions of each prompt as were asked for, one after another.
    let given = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, options.num_return_sequences));
    let shown = given.zip(&generations);
    let text: String = match output {
        Some(_) => shown.map(|(prompt, generation)| line(prompt, generation)).collect(),
        None if generations.len() == 1 => format!("{}\n", generations[0].completion),
        None => shown.map(|(prompt, g)| format!("> {}\n{}\n\n", spoken(prompt), g.completion)).collect(),
    };
    output::emit(output, &text)
}

fn options(matches: &ArgMatches) -> GenerateOptions {
    // Every one has a default.
    let whole = |name: &str| matches.get_one::<usize>(name).copied().unwrap_or_default();
    let real = |name: &str| matches.get_one::<f64>(name).copied().unwrap_or_default();
    GenerateOptions {
        max_new_tokens: whole("max_new_tokens"),
        do_sample: matches.get_one::<bool>("do_sample").copied().unwrap_or_default(),
        temperature: real("temperature"),
        top_k: whole("top_k"),
        top_p: real("top_p"),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
        batch_size: whole("batch_size"),
        num_return_sequences: whole("num_return_sequences"),
    }
}

fn prompts(matches: &ArgMatches) -> Result<Vec<Text>> {
    let mut prompts: Vec<Text> = args::texts(matches, "prompt").into_iter().map(Text::Standard).collect();
    if let Some(spec) = args::texts(matches, "dataset_name").pop() {
        prompts.extend(read_prompts(&spec)?.into_iter().map(|prompt| prompt.text));
    }
    match prompts.is_empty() {
        true => Err(Error::Usage("no prompt: give --prompt TEXT or --dataset_name FILE".into())),
        false => Ok(prompts),
    }
}

/// The text that the model continues.
fn rendered(prompt: &Text, templated: bool, system: Option<&str>, tokenizer: &Tokenizer) -> Result<String> {
    let messages = match prompt {
        Text::Standard(text) if !templated => return Ok(text.clone()),
        Text::Standard(text) => vec![Message::new("user", text)],
        Text::Chat(messages) => messages.clone(),
    };
    let system = system.map(|text| Message::new("system", text));
    tokenizer.apply_chat_template(&system.into_iter().chain(messages).collect::<Vec<_>>(), true)
}

/// A prompt in one line of JSON: as it was given.
fn line(prompt: &Text, generation: &Generation) -> String {
    let prompt = match prompt {
        Text::Standard(text) => Value::from(text.as_str()),
        Text::Chat(messages) => {
            messages.iter().map(|m| json!({ "role": m.role, "content": m.content })).collect()
        }
    };
    let Generation { completion, tokens, .. } = generation;
    format!("{}\n", json!({ "prompt": prompt, "completion": completion, "tokens": tokens }))
}

/// A prompt to read: of a conversation what was said last.
fn spoken(prompt: &Text) -> &str {
    match prompt {
        Text::Standard(text) => text,
        Text::Chat(messages) => messages.last().and_then(Message::text).unwrap_or_default(),
    }
}
