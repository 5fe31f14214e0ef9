"""Golden values of supervised fine-tuning, for crates/seakeep/tests/sft.rs.

    python scripts/parity/sft.py

writes crates/seakeep/tests/golden/sft.json: rows and a small tokenizer; token ids and labels as
`SFTTrainer._prepare_dataset` (TRL 1.16) makes them; and on the tiny Llama beside it the loss (mean over
trained tokens of the whole batch), entropy, token accuracy and the gradient of every tensor (norm and a
dot product, as in golden.py), in float64. The loss is checked against transformers' own with
`num_items_in_batch`.
"""

import json
import math
import tempfile
import types
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
import trl
from datasets import Dataset
from trl.trainer.sft_trainer import SFTTrainer

import common
from golden import fingerprint

GOLDEN = Path(__file__).resolve().parents[2] / "crates/seakeep/tests/golden"

# 40 tokens, as many as the tiny Llama has embeddings.
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>"]
WORDS = """how are you fine thanks bad very today the sea is wide and deep ship sails on wind calm storm
harbour light north south far near home we go now then never always fog""".split()
VOCABULARY = SPECIAL + WORDS
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}<{{ m.role }}> {{ m.content }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer_files():
    special = lambda id: dict(
        id=id, content=SPECIAL[id], single_word=False, lstrip=False, rstrip=False, normalized=False, special=True
    )
    begin = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    sequence = lambda name, type_id: {"Sequence": {"id": name, "type_id": type_id}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(i) for i in range(len(SPECIAL))],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": [begin, sequence("A", 0)],
            "pair": [begin, sequence("A", 0), sequence("B", 1)],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
        },
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(VOCABULARY)}, "unk_token": "<unk>"},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "chat_template": TEMPLATE,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TEXTS = [
    {"text": "the sea is wide and deep"},
    {"text": "ship sails on"},
    {"text": " we go home now <eos>"},
]
COMPLETIONS = [
    {"prompt": "how are you", "completion": " fine thanks"},
    {"prompt": "the wind is", "completion": " calm and the sea is far far near"},
    {"prompt": "storm", "completion": " never go north <eos>"},
]
CHATS = [
    {"messages": [user("how are you"), assistant("fine thanks")]},
    {"messages": [user("the sea"), assistant("is deep"), user("today"), assistant("always")]},
]
PROMPTED_CHATS = [
    {"prompt": [user("how are you")], "completion": [assistant("fine thanks")]},
    {"prompt": [user("the sea"), assistant("is deep"), user("today")], "completion": [assistant("always very deep")]},
]
# name, rows, completion_only_loss, max_length, truncation_mode
CASES = [
    ("text", TEXTS, True, None, "keep_start"),
    ("text_short", TEXTS, True, 5, "keep_start"),
    ("text_end", TEXTS, True, 4, "keep_end"),
    ("completion", COMPLETIONS, True, None, "keep_start"),
    ("completion_short", COMPLETIONS, True, 6, "keep_start"),
    ("completion_dropped", COMPLETIONS, True, 4, "keep_start"),
    ("completion_end", COMPLETIONS, True, 5, "keep_end"),
    ("whole", COMPLETIONS, False, None, "keep_start"),
    ("whole_short", COMPLETIONS, False, 6, "keep_start"),
    ("messages", CHATS, True, None, "keep_start"),
    ("prompted_messages", PROMPTED_CHATS, True, None, "keep_start"),
    ("whole_messages", PROMPTED_CHATS, False, 9, "keep_start"),
]


def prepared(tokenizer, rows, completion_only, max_length, truncation_mode):
    """Ids and labels by TRL's own code. A batch of rows is what the collator would only pad."""
    args = types.SimpleNamespace(
        dataset_num_proc=None, dataset_text_field="text", assistant_only_loss=False, max_length=max_length,
        truncation_mode=truncation_mode, shuffle_dataset=False,
    )
    stub = types.SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=completion_only)
    dataset = Dataset.from_list([{**row, "row": i + 1} for i, row in enumerate(rows)])
    dataset = SFTTrainer._prepare_dataset(stub, dataset, tokenizer, args, False, None, "train")
    return [{key: list(row[key]) if key != "row" else row[key] for key in ("row", "input_ids", "labels")} for row in dataset]


def numbers(model, plain, rows):
    """Loss, metrics and gradients over all rows as one batch."""
    targets = [torch.tensor(row["labels"])[1:] for row in rows]
    trained = sum(int((t != -100).sum()) for t in targets)
    model.zero_grad()
    total, entropy, right, theirs = 0.0, 0.0, 0, 0.0
    for row, target in zip(rows, targets):
        ids = torch.tensor([row["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        assert logits.dtype == torch.float64
        total = total + F.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
        kept = target != -100
        logp = F.log_softmax(logits[kept].detach(), -1)
        entropy -= float((logp.exp() * logp).sum())
        right += int((logp.argmax(-1) == target[kept]).sum())
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            theirs += float(plain(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(trained)).loss)
    loss = total / trained
    assert math.isclose(float(loss), theirs, rel_tol=1e-5), (float(loss), theirs)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {
        "trained": trained,
        "loss": float(loss),
        "entropy": entropy / trained,
        "mean_token_accuracy": right / trained,
        "grad_norm": math.sqrt(sum(float(g.pow(2).sum()) for g in grads.values())),
        "tensors": {name: fingerprint(grad) for name, grad in grads.items()},
    }


def main():
    assert len(VOCABULARY) == 40 and len(set(VOCABULARY)) == 40, len(VOCABULARY)
    files = tokenizer_files()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_text(json.dumps(content))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / "llama", dtype=torch.float32)
    model, plain = common.exact_float64(load()) or None, load().eval()
    cases = []
    for name, rows, completion_only, max_length, mode in CASES:
        kept = prepared(tokenizer, rows, completion_only, max_length, mode)
        cases.append({
            "name": name, "completion_only_loss": completion_only, "max_length": max_length, "truncation_mode": mode,
            "rows": rows, "tokens": kept, **numbers(model, plain, kept),
        })
        print(name, len(kept), cases[-1]["trained"], cases[-1]["loss"])
    golden = {"made_by": "scripts/parity/sft.py", "trl": trl.__version__, "tokenizer": files, "cases": cases}
    lines = json.dumps(golden, ensure_ascii=False).replace('{"name": "', '\n{"name": "')
    (GOLDEN / "sft.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
