//! A tokenizer learnt from texts: byte-level BPE as GPT-2's, by the `tokenizers` crate's trainer.
//!
//! One special token, `<|endoftext|>`, begins, ends and pads texts; the tokenizer puts it in front of every text itself, so
//! that a model learns how texts begin. Any text can be spelled, since every byte is a token.

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerImpl};

use super::atomic::write_atomic;
use crate::error::{Error, Result};

/// The special token.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Bytes, and the special token: the smallest vocabulary.
pub const MIN_VOCABULARY: usize = 257;

/// Learns a vocabulary of at most `vocab_size` tokens (fewer where no pair of tokens occurs twice) and writes
/// `tokenizer.json` and `tokenizer_config.json` into `directory`, which must exist. The same texts give the same files.
///
/// # Errors
/// [`Error::Usage`] for a vocabulary too small for all bytes; the file system's.
pub fn train_tokenizer<'a>(
    texts: impl Iterator<Item = &'a str> + Send,
    vocab_size: usize,
    directory: &std::path::Path,
) -> Result<()> {
    if vocab_size < MIN_VOCABULARY {
        return Err(Error::Usage(format!(
            "a vocabulary of {vocab_size} tokens; expected at least {MIN_VOCABULARY}: every byte and {END_OF_TEXT}"
        )));
    }
    let failed = |e: tokenizers::Error| Error::format(directory, format!("learning a tokenizer: {e}"));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let bytes = ByteLevel::default().add_prefix_space(false);
    let mut learnt: TokenizerImpl<
        BPE,
        tokenizers::NormalizerWrapper,
        ByteLevel,
        tokenizers::PostProcessorWrapper,
        ByteLevel,
    > = TokenizerImpl::new(BPE::default());
    learnt.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    learnt.train(&mut trainer, texts).map_err(failed)?;
    let mut file: Value = serde_json::to_value(&learnt).map_err(|e| failed(e.into()))?;
    file["post_processor"] = begin_with(learnt.token_to_id(END_OF_TEXT).unwrap_or_default());
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false
    });
    for (name, value) in [("tokenizer.json", file), ("tokenizer_config.json", config)] {
        write_atomic(directory.join(name), format!("{value:#}\n").as_bytes())?;
    }
    Ok(())
}

/// The post-processor that puts the special token before a text.
fn begin_with(id: u32) -> Value {
    let begin = json!({ "SpecialToken": { "id": END_OF_TEXT, "type_id": 0 } });
    let sequence = |name: &str, type_id: u32| json!({ "Sequence": { "id": name, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [begin, sequence("A", 0)],
        "pair": [begin, sequence("A", 0), sequence("B", 1)],
        "special_tokens": { END_OF_TEXT: { "id": END_OF_TEXT, "ids": [id], "tokens": [END_OF_TEXT] } }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Tokenizer;

    const TEXTS: [&str; 4] =
        ["the sea, the ship", "the ships at sea", "a ship keeps the sea", "sea and ship"];

    fn trained(vocab_size: usize) -> (Vec<u8>, Tokenizer) {
        let directory = tempfile::tempdir().unwrap();
        train_tokenizer(TEXTS.into_iter(), vocab_size, directory.path()).unwrap();
        let bytes = std::fs::read(directory.path().join("tokenizer.json")).unwrap();
        (bytes, Tokenizer::open(directory.path()).unwrap())
    }

    #[test]
    fn texts_become_a_tokenizer_the_same_each_time() {
        let (bytes, tokenizer) = trained(266);
        assert_eq!(bytes, trained(266).0);
        assert_eq!(tokenizer.vocab_size(), 266);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(0), Some(0)));
        let ids = tokenizer.encode("the sea", true).unwrap();
        let tokens: Vec<String> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
        assert_eq!(tokens, [END_OF_TEXT, "the", "Ġsea"]);
        // What was never seen is spelled in bytes.
        let unseen = "Zoë\n船 <|endoftext|>";
        assert_eq!(tokenizer.decode(&tokenizer.encode(unseen, false).unwrap(), false).unwrap(), unseen);
        assert_eq!(tokenizer.encode(unseen, false).unwrap().last(), Some(&0));
        // No more than the texts give.
        assert!((266..400).contains(&trained(4000).1.vocab_size()));
    }

    #[test]
    fn bytes_need_room() {
        let error = train_tokenizer(TEXTS.into_iter(), 256, std::path::Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("at least 257"), "{error}");
    }
}
