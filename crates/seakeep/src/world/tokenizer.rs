//! The world's vocabulary, and the files by which transformers opens a model trained on it.

use serde_json::{Value, json};

use super::lexicon::{ASKERS, BOS, EOS, MOODS, PAD, REQUESTS, SPECIALS, TOPICS, UNK};
use super::{Mixture, Split, World, WorldPair, grammar};

/// Special tokens, then every word of prompts and completions, each once, in a fixed order.
pub(super) fn vocabulary() -> Vec<String> {
    let mut words: Vec<&str> = SPECIALS.to_vec();
    words.extend(["a", "?"]);
    words.extend(ASKERS);
    words.extend(MOODS.map(|mood| mood.0));
    words.extend(REQUESTS.iter().flat_map(|request| request.iter()));
    words.extend(TOPICS.map(|topic| topic.0));
    words.extend(grammar::vocabulary());
    let mut out: Vec<String> = Vec::new();
    for word in words {
        if !out.iter().any(|known| known == word) {
            out.push(word.to_owned());
        }
    }
    out
}

impl World {
    /// The contents of a Hugging Face `tokenizer.json`: words at white space, `<bos>` put in front.
    pub fn tokenizer_json(&self) -> Value {
        let vocab: serde_json::Map<String, Value> =
            self.vocabulary().iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
        let special = |id: u32| {
            json!({
                "id": id, "content": SPECIALS[id as usize], "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            })
        };
        let begin = json!({ "SpecialToken": { "id": "<bos>", "type_id": 0 } });
        let sequence = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(PAD), special(BOS), special(EOS), special(UNK)],
            "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [begin, sequence("A", 0)],
                "pair": [begin, sequence("A", 0), sequence("B", 1)],
                "special_tokens": { "<bos>": { "id": "<bos>", "ids": [BOS], "tokens": ["<bos>"] } }
            },
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
        })
    }

    /// The contents of the `tokenizer_config.json` beside it.
    pub fn tokenizer_config_json(&self) -> Value {
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": false
        })
    }

    /// A pair as a row of a preference file: `prompt`, `chosen`, `rejected`, `probability`. Completions
    /// begin with a space, so that prompt and completion joined split into the same words.
    pub fn row(&self, pair: &WorldPair) -> Value {
        json!({
            "prompt": pair.prompt.text(),
            "chosen": format!(" {}", self.decode(&pair.chosen_ids)),
            "rejected": format!(" {}", self.decode(&pair.rejected_ids)),
            "probability": pair.probability
        })
    }

    /// [`World::pairs`] as rows of a preference file.
    pub fn rows(&self, n: usize, split: Split, mixture: Mixture, alpha: f64, seed: u64) -> Vec<Value> {
        self.pairs(n, split, mixture, alpha, seed).iter().map(|pair| self.row(pair)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn tokenizer_json_gives_the_worlds_ids() {
        let world = World::new(WorldConfig::default()).unwrap();
        let bytes = serde_json::to_vec(&world.tokenizer_json()).unwrap();
        let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), world.vocabulary().len());
        for pair in world.pairs(50, Split::Train, Mixture::Convex, 0.1, 5) {
            let row = world.row(&pair);
            let prompt = row["prompt"].as_str().unwrap();
            assert_eq!(tokenizer.encode(prompt, true).unwrap().get_ids(), pair.prompt_ids);
            let whole = format!("{prompt}{}<eos>", row["chosen"].as_str().unwrap());
            let ids = tokenizer.encode(whole, true).unwrap().get_ids().to_vec();
            assert_eq!(ids, [pair.prompt_ids, pair.chosen_ids.clone()].concat());
            assert_eq!(tokenizer.decode(&pair.chosen_ids, true).unwrap(), world.decode(&pair.chosen_ids));
        }
        assert_eq!(tokenizer.encode("zebra", false).unwrap().get_ids(), [UNK]);
    }
}
