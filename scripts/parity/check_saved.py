"""Loads a saved model directory with transformers, as it is, and prints what it sees as JSON.

    python scripts/parity/check_saved.py DIR    # called by crates/seakeep/tests/transformers.rs

Texts and conversations to encode come on standard input as JSON {"texts": [...], "chats": [...]}.
"""

import json
import sys

import transformers

directory = sys.argv[1]
asked = json.load(sys.stdin)
seen = {}
model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
seen["missing"] = sorted(info["missing_keys"])
seen["unexpected"] = sorted(info["unexpected_keys"])
seen["class"] = type(model).__name__
seen["sums"] = {name: float(t.double().sum()) for name, t in model.state_dict().items()}
seen["tied"] = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
config = model.config.to_dict()
seen["config"] = {k: v for k, v in config.items() if isinstance(v, (int, float, str, bool, dict, type(None)))}
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
seen["special"] = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)]
seen["texts"] = [tokenizer(text)["input_ids"] for text in asked["texts"]]
seen["decoded"] = [tokenizer.decode(ids) for ids in seen["texts"]]
seen["chats"] = [
    tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    for chat in asked["chats"]
]
print(json.dumps(seen))
