"""Golden token counts and hashes from TRL's own code, for crates/seakeep/tests/tokens.rs.

    python scripts/parity/trl_tokens.py ../shared/data > crates/seakeep/tests/data/trl_tokens.json

Runs `DPOTrainer._prepare_dataset` and `DataCollatorForPreference` (TRL 1.16) on real pairs with
SmolLM2's tokenizer. No text is written: per row the counts and a hash of the ids, for every
`EVERY`-th row, and one hash over all rows.
"""

import gzip
import json
import pathlib
import sys
import types

import transformers
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

data = pathlib.Path(sys.argv[1])
smollm2 = data / "tokenizers" / "smollm2"
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(smollm2 / "tokenizer.json"),
    bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>",
)
tokenizer.chat_template = (smollm2 / "chat_template.jinja").read_text()


class Hash:
    """64-bit FNV-1a over little-endian 32-bit words."""

    def __init__(self):
        self.state = 0xCBF29CE484222325

    def add(self, words):
        for word in words:
            for byte in int(word).to_bytes(4, "little"):
                self.state = ((self.state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF

    def hex(self):
        return f"{self.state:016x}"


FILES = {"hh-harmless-test.jsonl.gz": 36, "instruction-tone.jsonl.gz": 34}
result = {"made_by": "scripts/parity/trl_tokens.py", "trl": __import__("trl").__version__, "cases": []}
for file, every in FILES.items():
    rows = [json.loads(line) for line in gzip.open(data / file)]
    for limit, mode in [(None, "keep_start"), (96, "keep_start"), (96, "keep_end")]:
        args = types.SimpleNamespace(dataset_num_proc=None, max_length=limit, truncation_mode=mode)
        stub = types.SimpleNamespace(_tokenizer=tokenizer)
        dataset = Dataset.from_list([{**row, "row": i + 1} for i, row in enumerate(rows)])
        prepared = DPOTrainer._prepare_dataset(stub, dataset, tokenizer, args, "train")
        collator = DataCollatorForPreference(pad_token_id=0, max_length=limit, truncation_mode=mode)
        everything, shown, totals = Hash(), [], [0, 0, 0]
        for example in prepared:
            batch = collator([example])
            kept = batch["attention_mask"].sum(1).tolist()
            completion = batch["completion_mask"].sum(1).tolist()
            one = Hash()
            for branch in range(2):
                ids = batch["input_ids"][branch, : kept[branch]].tolist()
                one.add([kept[branch], completion[branch], *ids])
            counts = [len(example["prompt_ids"]), *completion]
            totals = [a + b for a, b in zip(totals, counts)]
            everything.add([example["row"], int(one.hex()[:8], 16), int(one.hex()[8:], 16)])
            if example["row"] % every == 1:
                shown.append([example["row"], *counts, one.hex()])
        result["cases"].append({
            "file": file, "max_length": limit, "truncation_mode": mode, "kept": len(prepared),
            "tokens": totals, "hash": everything.hex(), "rows": shown,
        })

text = json.dumps(result, indent=1)
# One row per line.
import re
print(re.sub(r"\[\s+(\d+),\s+(\d+),\s+(\d+),\s+(\d+),\s+(\"[0-9a-f]+\")\s+\]", r"[\1, \2, \3, \4, \5]", text))
