"""The SmolLM2 model, its tokenizer and the preference rows of the acceptance run."""

import gzip
import hashlib
import json
import re
from types import SimpleNamespace

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from trl import DPOTrainer

import common

transformers_logging.disable_progress_bar()

NOISE = 0.02
"""Standard deviation of the policy's perturbation, in units of each tensor's root mean square."""


# ---------------------------------------------------------------------------------------------
# Model and tokenizer
# ---------------------------------------------------------------------------------------------


def load_tokenizer(data):
    """SmolLM2's tokenizer from `data/tokenizers/smollm2`.

    Not the one transformers rebuilds from the GGUF: that one forgets the digit splitter.
    """
    folder = data / "tokenizers/smollm2"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").read_text(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


def save_model(model, tokenizer, folder):
    """A Hugging Face directory with float32 weights and the tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ensure_base(gguf, tokenizer, cache):
    """`cache/base`: the GGUF as transformers dequantises it, in float32 safetensors."""
    folder = cache / "base"
    if not (folder / "model.safetensors").exists():
        source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        settings = source.config.to_dict()
        settings.pop("quantization_config", None)
        plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
        plain.load_state_dict(source.state_dict())
        save_model(plain, tokenizer, folder)
    return folder


def ensure_policy(base, tokenizer, cache):
    """`cache/policy`: the base with seeded noise on every tensor, so that policy != reference."""
    folder = cache / "policy"
    if not (folder / "model.safetensors").exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                scale = NOISE * parameter.pow(2).mean().sqrt()
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        save_model(model, tokenizer, folder)
    return folder


def load_float64(folder):
    """A saved model that computes everything in float64."""
    return common.exact_float64(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------


def read_hh(data):
    """Rows of the HH test file: whole transcripts `chosen` and `rejected`, prompt implicit."""
    with gzip.open(data / "hh-harmless-test.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def parse_transcript(text):
    """Messages of a "\\n\\nHuman: ...\\n\\nAssistant: ..." transcript, or None."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = [
        {"role": roles[role], "content": content.strip()} for role, content in zip(parts[1::2], parts[2::2])
    ]
    wanted = [("user", "assistant")[i % 2] for i in range(len(messages))]
    fine = parts[0] == "" and len(messages) >= 2 and len(messages) % 2 == 0
    fine = fine and [m["role"] for m in messages] == wanted and all(m["content"] for m in messages)
    return messages if fine else None


def conversational(row):
    """The row as message lists with an explicit prompt, or None where the prompts differ."""
    chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
    if chosen is None or rejected is None or chosen[:-1] != rejected[:-1] or chosen == rejected:
        return None
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def trl_tokens(rows, tokenizer, max_length):
    """Rows as TRL tokenises and truncates them: `prompt`, `chosen`, `rejected` ids, `cut`, `merged`.

    The tokenising is TRL's own code. `cut` says that `max_length` (keep_start, as in TRL's collator)
    shortened a completion; `merged` that TRL left out the end of the prompt because its tokens merge
    with the completion's. Rows whose prompt alone fills `max_length` are dropped, as TRL does.
    """
    stand_in = SimpleNamespace(_tokenizer=tokenizer)
    settings = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    numbered = [{**row, "row": index} for index, row in enumerate(rows)]
    tokenised = DPOTrainer._prepare_dataset(stand_in, Dataset.from_list(numbered), tokenizer, settings, "rows")
    return [tokenised_row(example, tokenizer, max_length) for example in tokenised]


def tokenised_row(example, tokenizer, max_length):
    """One of TRL's examples, truncated as its collator does."""
    room = max_length - len(example["prompt_ids"])
    prompt = example["prompt"]
    if isinstance(prompt, str):
        whole = len(tokenizer(prompt)["input_ids"])
    else:
        whole = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])
    return {
        "row": example["row"],
        "prompt": example["prompt_ids"],
        "chosen": example["chosen_ids"][:room],
        "rejected": example["rejected_ids"][:room],
        "cut": max(len(example["chosen_ids"]), len(example["rejected_ids"])) > room,
        "merged": len(example["prompt_ids"]) < whole,
    }


def length(tokens):
    """Tokens of the pair's longer sequence."""
    return len(tokens["prompt"]) + max(len(tokens["chosen"]), len(tokens["rejected"]))


def pick(rows, tokenizer, max_length, count, shortest, longest, skip):
    """`count` rows and their tokens with lengths in a range and no merged prompt, from row `skip` on."""
    rows = [row for row in rows[skip:] if row is not None][: 20 * count + 200]
    tokens = [t for t in trl_tokens(rows, tokenizer, max_length) if not t["merged"]]
    tokens = [t for t in tokens if shortest <= length(t) <= longest][:count]
    picked = [rows[t["row"]] for t in tokens]
    return picked, [{**t, "row": index} for index, t in enumerate(tokens)]


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def write_rows(path, rows):
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def fingerprint(value):
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def cached(cache, name, settings, compute):
    """`compute()`, or what `cache/<name>.json` remembers of it under the same settings."""
    path = cache / f"{name}.json"
    key = fingerprint(settings)
    if path.exists():
        memory = json.loads(path.read_text())
        if memory["key"] == key:
            return memory["value"]
    print(f"computing {name} in PyTorch ...", flush=True)
    value = compute()
    path.write_text(json.dumps({"key": key, "value": value}, indent=1) + "\n")
    return value
