//! `seakeep generate`: completions of prompts.

use std::path::Path;

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use seakeep::data::{Prompt, Text, read_prompts};
use seakeep::formats::{ModelSource, Tokenizer, is_special};
use seakeep::generate::{
    GenerateOptions, Header, Job, Partial, Sample, Stop, completion, encode_prompt, eos_ids, generate_each,
    is_templated, refusal,
};
use seakeep::model::Model;
use seakeep::progress::Progress;
use seakeep::{Error, Result};
use serde_json::{Map, Value, json};

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
    let ids = |name: &'static str, help: &'static str| {
        flag(name, "ID,..", value_parser!(u32).into(), help).value_delimiter(',').action(ArgAction::Append)
    };
    args::keyed(command, &["model_name_or_path", "num_threads", "dtype", "load_in_8bit", "load_in_4bit"]).args([
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
        flag("top_p", "X", real.clone(), "Sample from the likeliest tokens that have this probability together")
            .default_value("1.0"),
        flag("min_p", "X", real.clone(), "Sample from the tokens at least this share as likely as the likeliest")
            .default_value("0.0"),
        flag("repetition_penalty", "X", real, "Divides the logits of tokens of the prompt and the text; 1: none")
            .default_value("1.0"),
        flag("min_new_tokens", "N", whole.clone(), "Shortest completion, tokens: nothing ends it before")
            .default_value("0"),
        ids("eos_token_id", "Tokens that end a text [default: those of the model's files]"),
        ids("stop_token_ids", "Further tokens that end a text"),
        flag("stop_strings", "TEXT", text(), "Ends a text, which is cut before it; may be given several times")
            .action(ArgAction::Append)
            .allow_hyphen_values(true),
        flag("num_return_sequences", "N", whole.clone(), "Completions of each prompt").default_value("1"),
        flag("limit", "N", whole.clone(), "The first N prompts only"),
        flag(
            "seed",
            "N",
            value_parser!(u64).into(),
            "Seed of the sampling; a text's randomness also belongs to its prompt's row and its number",
        )
        .default_value("42"),
        flag(
            "batch_size",
            "N",
            whole,
            "Texts computed at a time; changes no text. Each needs memory for the keys and values of its tokens",
        )
        .default_value("64"),
        output_flag(
            "JSON lines, a completion each: prompt, completion, tokens (the generated ids), sample (from 0), finish_reason \
            (stop, length), and the other columns of the prompt's row. While it runs, finished texts are in FILE.partial; \
            started again, it goes on there. Default: text to standard output",
        ),
        switch(flag("overwrite_output", "true|false", truth(), "Start afresh where there is a FILE.partial"))
            .default_value("false"),
    ])
}

/// Generates and writes.
pub fn run(matches: &ArgMatches) -> Result<()> {
    let settings = Settings::read(matches)?;
    let options = options(matches);
    options.check()?;
    let strings = args::texts(matches, "stop_strings");
    if strings.iter().any(String::is_empty) {
        return Err(Error::Usage(
            "`stop_strings` has an empty string; expected at least one character".into(),
        ));
    }
    let output = output_path(matches);
    let prompts_from = args::texts(matches, "dataset_name").pop().unwrap_or_default();
    output::check(&[("output", output)], &[("dataset_name", &prompts_from)])?;
    let mut progress = progress::on_stderr();
    let given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
    let unused: Vec<&str> = ["temperature", "top_k", "top_p", "min_p"].into_iter().filter(given).collect();
    if !options.do_sample && !unused.is_empty() {
        progress.note(&format!(
            "{} without effect: do_sample is not set, so the likeliest token is taken",
            unused.join(", ")
        ));
    }
    let prompts = prompts(matches)?;
    super::set_threads(&settings)?;
    let source = ModelSource::open(settings.required("model_name_or_path")?)?;
    let tokenizer = source.tokenizer()?;
    let encoded = encoded(matches, &prompts, &tokenizer)?;
    let model = super::logps::load(&source, &settings, &mut *progress)?;
    for (prompt, tokens) in prompts.iter().zip(&encoded) {
        if let Some(what) = refusal(&model, tokens) {
            return Err(Error::row(&prompt.file, prompt.row, "prompt", format!("the prompt {what}")));
        }
    }
    let ends = ends(matches, &model, eos_ids(&source, Some(&tokenizer))?)?;
    let mut work = Work {
        model: &model,
        encoded: &encoded,
        options: &options,
        stop: Stop { tokens: &ends, strings: &strings, tokenizer: Some(&tokenizer) },
        progress: &mut *progress,
    };
    let texts = |samples: &[Sample]| -> Result<Vec<String>> {
        let text = |sample: &Sample| completion(&tokenizer, &sample.tokens, &strings, options.min_new_tokens);
        samples.iter().map(text).collect()
    };
    let written = |all: &mut dyn Iterator<Item = &Vec<Sample>>| -> Result<String> {
        let mut lines = String::new();
        for (prompt, samples) in prompts.iter().zip(all) {
            for (i, (sample, text)) in samples.iter().zip(texts(samples)?).enumerate() {
                lines.push_str(&line(prompt, i, sample, text));
            }
        }
        Ok(lines)
    };
    // Beside a pipe or a device nothing is kept.
    let Some(path) = output.filter(|path| !is_special(path)) else {
        let mut all = vec![Vec::new(); prompts.len()];
        work.complete(|_| true, &mut |row, samples| {
            all[row] = samples;
            Ok(())
        })?;
        return match output {
            None => show(&prompts, &all.iter().map(|samples| texts(samples)).collect::<Result<Vec<_>>>()?),
            pipe => output::emit(pipe, &written(&mut all.iter())?),
        };
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let partial_path = Partial::path(path);
    let afresh = matches.get_one::<bool>("overwrite_output").copied().unwrap_or_default();
    if afresh && partial_path.is_file() {
        std::fs::remove_file(&partial_path).map_err(Error::io("remove", &partial_path))?;
    }
    let header = Header::new(&model, tokenizer.fingerprint(), &encoded, recorded(&options, &work.stop));
    let mut partial = Partial::open(&partial_path, &header)?;
    let known: Vec<bool> = (0..prompts.len()).map(|row| partial.done().contains_key(&row)).collect();
    let found = known.iter().filter(|known| **known).count();
    if found > 0 {
        let name = partial_path.display();
        work.progress.note(&format!("{name}: goes on after {found} of {} prompts", prompts.len()));
    }
    work.complete(|row| !known[row], &mut |row, samples| partial.add(row, samples))?;
    output::emit(output, &written(&mut partial.done().values())?)?;
    partial.remove()
}

/// What is to be completed, and how.
struct Work<'a> {
    model: &'a Model,
    encoded: &'a [Vec<u32>],
    options: &'a GenerateOptions,
    stop: Stop<'a>,
    progress: &'a mut dyn Progress,
}

impl Work<'_> {
    /// Completes the prompts of the wanted rows.
    fn complete(
        &mut self,
        wanted: impl Fn(usize) -> bool,
        done: &mut dyn FnMut(usize, Vec<Sample>) -> Result<()>,
    ) -> Result<()> {
        let rows = self.encoded.iter().enumerate().filter(|(row, _)| wanted(*row));
        let jobs: Vec<Job> = rows.map(|(row, prompt)| Job { row, prompt: prompt.clone() }).collect();
        generate_each(self.model, &jobs, self.options, self.stop, self.progress, done)
    }
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
        min_p: real("min_p"),
        repetition_penalty: real("repetition_penalty"),
        min_new_tokens: whole("min_new_tokens"),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or_default(),
        batch_size: whole("batch_size"),
        num_return_sequences: whole("num_return_sequences"),
    }
}

/// What the texts depend on besides model and prompts: not the batch size.
fn recorded(options: &GenerateOptions, stop: &Stop) -> Map<String, Value> {
    let GenerateOptions {
        max_new_tokens,
        do_sample,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        min_new_tokens,
        seed,
        batch_size: _,
        num_return_sequences,
    } = options;
    let all = json!({
        "max_new_tokens": max_new_tokens, "do_sample": do_sample, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty, "min_new_tokens": min_new_tokens,
        "seed": seed, "num_return_sequences": num_return_sequences, "stop_token_ids": stop.tokens,
        "stop_strings": stop.strings,
    });
    match all {
        Value::Object(options) => options,
        _ => unreachable!("written as an object"),
    }
}

/// The tokens that end a text, in order.
fn ends(matches: &ArgMatches, model: &Model, of_model: Vec<u32>) -> Result<Vec<u32>> {
    let given = |name: &str| -> Vec<u32> { matches.get_many(name).into_iter().flatten().copied().collect() };
    let size = model.config.vocab_size;
    for name in ["eos_token_id", "stop_token_ids"] {
        if let Some(id) = given(name).into_iter().find(|id| *id as usize >= size) {
            return Err(Error::Usage(format!(
                "`{name}` is {id}; expected a token of the model: 0 to {}",
                size - 1
            )));
        }
    }
    let eos = given("eos_token_id");
    let mut ends = if eos.is_empty() { of_model } else { eos };
    ends.extend(given("stop_token_ids"));
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// Where a prompt of the command line is from, for messages.
const COMMAND_LINE: &str = "--prompt";

fn prompts(matches: &ArgMatches) -> Result<Vec<Prompt>> {
    let given = |(i, text)| Prompt {
        file: Path::new(COMMAND_LINE).into(),
        row: i + 1,
        text: Text::Standard(text),
        columns: Map::new(),
    };
    let mut prompts: Vec<Prompt> =
        args::texts(matches, "prompt").into_iter().enumerate().map(given).collect();
    if let Some(spec) = args::texts(matches, "dataset_name").pop() {
        prompts.extend(read_prompts(&spec)?);
    }
    if let Some(&limit) = matches.get_one::<usize>("limit") {
        if limit == 0 {
            return Err(Error::Usage("`limit` is 0; expected a whole number above 0".into()));
        }
        prompts.truncate(limit);
    }
    match prompts.is_empty() {
        true => Err(Error::Usage("no prompt: give --prompt TEXT or --dataset_name FILE".into())),
        false => Ok(prompts),
    }
}

/// The tokens of every prompt.
fn encoded(matches: &ArgMatches, prompts: &[Prompt], tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let system = args::texts(matches, "system").pop();
    let wanted = matches.get_one::<bool>("chat_template").copied();
    let templated = |prompt: &Prompt| is_templated(tokenizer, &prompt.text, wanted);
    if system.is_some() && !prompts.iter().all(templated) {
        return Err(Error::Usage("--system needs the model's chat template, which is not used here".into()));
    }
    prompts.iter().map(|prompt| encode_prompt(tokenizer, prompt, wanted, system.as_deref())).collect()
}

/// A completion in one line of JSON: the prompt as it was given, and every other column of its row but those that are
/// the completion's own.
fn line(prompt: &Prompt, number: usize, sample: &Sample, text: String) -> String {
    let mut line = json!({
        "prompt": prompt.text.to_json(), "completion": text, "tokens": sample.tokens, "sample": number, "finish_reason": sample.finish,
    });
    if let Value::Object(line) = &mut line {
        for (name, value) in &prompt.columns {
            line.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    format!("{line}\n")
}

/// Completions to read, on standard output.
fn show(prompts: &[Prompt], completions: &[Vec<String>]) -> Result<()> {
    let text = match completions {
        [one] if one.len() == 1 => format!("{}\n", one[0]),
        all => {
            let of = |(prompt, texts): (&Prompt, &Vec<String>)| -> String {
                texts.iter().map(|text| format!("> {}\n{text}\n\n", prompt.text.last_said())).collect()
            };
            prompts.iter().zip(all).map(of).collect()
        }
    };
    output::emit(None, &text)
}
