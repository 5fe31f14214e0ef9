"""What is run: each case is one process, and gives the numbers that rows are made of."""

import copy
import json
import random
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import arithmetic
from runs import Bench, Failed

RHO = 0.01
"""WDPO's radius, the default of `--method wdpo`."""

GIGA = 1e9

BF16 = ("--bf16", "true")
"""Products in bf16; the weights stay in f32."""
BASE = ("--dtype", "auto", "--bf16", "true", "--use_peft", "true", "--gradient_checkpointing", "true")
"""Adapters on a frozen base that stays as the GGUF has it, in bf16 or 4 bits; layers computed again rather than kept."""


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    steps: int = 4
    batch: int = 4
    max_length: int = 512
    prompts: int = 64
    new_tokens: int = 128
    lengths: tuple = (128, 512, 2048, 4096)
    rows: tuple = (1_000, 100_000)
    large_length: int = 512
    product_seconds: float = 2.0

    @property
    def pairs(self):
        """Pairs of all steps."""
        return self.steps * self.batch

    @property
    def length_batches(self):
        """[length, pairs]: every length with about the same number of rows."""
        longest = max(self.lengths)
        return [[length, max(1, longest // length)] for length in self.lengths]


QUICK = Sizes(
    steps=1, batch=2, max_length=256, prompts=4, new_tokens=8, lengths=(128, 256), rows=(100, 1_000),
    large_length=256, product_seconds=0.2,
)
"""Enough to see every case work; too little to mean anything."""


class Cases:
    """The cases, over one set of inputs."""

    def __init__(self, bench: Bench, sizes: Sizes, gguf: Path, data: Path):
        self.bench, self.sizes, self.gguf = bench, sizes, gguf
        self.counts = self.inputs({
            "pairs": sizes.pairs, "prompts": sizes.prompts, "lengths": sizes.length_batches, "max_length": sizes.max_length,
            "gguf": str(gguf), "data": str(data),
        })

    def inputs(self, settings):
        """Makes the files that both sides read, if the last run did not make the same: tokens of every pair, by file."""
        kept = self.bench.file("inputs.json")
        if kept.exists() and (known := json.loads(kept.read_text()))["settings"] == settings:
            return known["counts"]
        print_progress("making inputs ...")
        counts, _ = self.bench.rival("prepare", **settings)
        kept.write_text(json.dumps({"settings": settings, "counts": counts}))
        return counts

    def run(self, name):
        """The case of this name (dashes for underscores; after a colon its argument)."""
        name, _, argument = name.partition(":")
        method = getattr(self, name.replace("-", "_"))
        return method(int(argument)) if argument else method()

    def warm_up(self):
        """One step by each side that is not counted: the first run after a pause waits for memory that the machine has
        given away (a virtual machine's host most of all) and for files that are no longer in memory."""
        few = copy.copy(self)
        few.sizes = replace(self.sizes, steps=1)
        few.dpo()
        few.trl()
        return {}

    # Training on the HH pairs -------------------------------------------------------------------

    def on_pairs(self, *flags, references=None):
        """`seakeep train` on the first batches, every step logged."""
        sizes = self.sizes
        made = self.bench.train(
            "--model_name_or_path", self.bench.file("base"), "--dataset_name", self.bench.file("pairs.jsonl"),
            "--max_length", sizes.max_length, "--max_steps", sizes.steps, "--logging_steps", 1,
            "--per_device_train_batch_size", sizes.batch, *flags, references=references,
        )
        return {**made, "pairs": sizes.pairs}

    def dpo(self):
        """DPO, every parameter, f32; the reference's pass is made (its cache is fresh)."""
        return self.on_pairs("--method", "dpo")

    def dpo_again(self):
        """A second run, as another beta or seed would be: the reference is in the cache that the first one filled."""
        with tempfile.TemporaryDirectory(prefix="references-", dir=self.bench.folder) as references:
            self.on_pairs("--method", "dpo", references=references)
            return self.on_pairs("--method", "dpo", references=references)

    def dpo_bf16(self):
        """The same in bf16."""
        return self.on_pairs("--method", "dpo", *BF16)

    def wdpo(self):
        """WDPO, every parameter, f32."""
        return self.on_pairs("--method", "wdpo", "--wdpo_rho", RHO)

    def lora(self):
        """DPO with adapters on every linear layer."""
        return self.on_pairs("--method", "dpo", "--use_peft", "true")

    def on_trl(self, **settings):
        """TRL's DPOTrainer on the same batches."""
        sizes = self.sizes
        same = {"steps": sizes.steps, "batch": sizes.batch, "max_length": sizes.max_length}
        made, done = self.bench.rival("trl", **same, **settings)
        return {**made, "process_seconds": done.seconds, "peak_bytes": done.peak_bytes, "pairs": sizes.pairs}

    def trl(self):
        """f32, the reference in every step."""
        return self.on_trl()

    def trl_cached(self):
        """f32, the reference before training."""
        return self.on_trl(precompute=True)

    def trl_bf16(self):
        """bf16, the reference in every step."""
        return self.on_trl(dtype="bfloat16")

    def torch_wdpo(self, **settings):
        """WDPO by double backward."""
        sizes = self.sizes
        same = {"steps": sizes.steps, "batch": sizes.batch, "max_length": sizes.max_length}
        made, done = self.bench.rival("wdpo", rho=RHO, **same, **settings)
        return {**made, "process_seconds": done.seconds, "peak_bytes": done.peak_bytes, "pairs": sizes.pairs}

    def torch_wdpo_as_trl(self):
        """The same from TRL's batches."""
        return self.torch_wdpo(as_trl=True)

    # Generation ---------------------------------------------------------------------------------

    def generate(self):
        """Greedy, exactly `new_tokens` each."""
        out, count = self.bench.file("generated.jsonl"), self.sizes.new_tokens
        done = self.bench.program(
            "generate", "--model_name_or_path", self.bench.file("base"), "--dataset_name", self.bench.file("prompts.jsonl"),
            "--min_new_tokens", count, "--max_new_tokens", count, "--batch_size", self.sizes.prompts,
            "--do_sample", "false", "--overwrite_output", "true", "--output", out,
        )
        tokens = [json.loads(line)["tokens"] for line in out.read_text().splitlines()]
        seconds = [float(s) for s in re.findall(r"^.*: \d+/\d+ \(([0-9.]+) s\)", done.stderr, re.MULTILINE)]
        if not seconds:
            raise Failed("`seakeep generate` told no time")
        return {
            "seconds": seconds[-1], "new_tokens": sum(map(len, tokens)), "tokens": tokens, "peak_bytes": done.peak_bytes,
        }

    def torch_generate(self):
        """transformers."""
        sizes = self.sizes
        made, done = self.bench.rival("generate", prompts=sizes.prompts, new_tokens=sizes.new_tokens)
        return {**made, "peak_bytes": done.peak_bytes}

    # The machine --------------------------------------------------------------------------------

    def machine(self):
        """`seakeep inspect machine`: {name: number}, in GFLOP/s and GB/s."""
        said = self.bench.program("inspect", "machine").stdout
        return {name.strip(): float(value) for name, value in re.findall(r"^(.+?)  +([0-9.]+)", said, re.MULTILINE)}

    def torch_products(self):
        """torch.mm."""
        made, _ = self.bench.rival("products", seconds=self.sizes.product_seconds)
        return made

    # Scale --------------------------------------------------------------------------------------

    def rows(self, count):
        """One epoch of a tiny model on `count` short pairs, from process start to end; of few the median of several runs."""
        folder = self.tiny_model()
        file = self.bench.file(f"rows-{count}.jsonl")
        if not file.exists():
            file.write_text("".join(short_pair(random.Random(i)) for i in range(count)))
        # Few pairs take a tenth of a second: one run of them says little.
        again = 9 if count <= 1_000 else 1
        made = [
            self.bench.train(
                "--model_name_or_path", folder, "--dataset_name", file, "--num_train_epochs", 1, "--max_length", 128,
                "--per_device_train_batch_size", 32, "--per_device_eval_batch_size", 32, "--logging_steps", 1_000_000,
            )
            for _ in range(again)
        ]
        return sorted(made, key=lambda run: run["process_seconds"])[again // 2]

    def tiny_model(self):
        """A Llama of 2 layers with a tokenizer of its own, made once."""
        folder = self.bench.file("tiny")
        if folder.exists():
            return folder
        texts, config = self.bench.file("texts.txt"), self.bench.file("tiny.json")
        texts.write_text("".join(sentence(random.Random(i), 12) + "\n" for i in range(2_000)))
        config.write_text(json.dumps(TINY))
        self.bench.program(
            "init", "--config_json", config, "--train_tokenizer", 512, "--dataset_name", texts, "--output_dir", folder
        )
        return folder

    def length(self, length):
        """One DPO step on pairs of this length."""
        pairs = self.counts[f"length-{length}"]
        made = self.bench.train(
            "--model_name_or_path", self.bench.file("base"), "--dataset_name", self.bench.file(f"length-{length}.jsonl"),
            "--max_length", length, "--max_steps", 1, "--per_device_train_batch_size", len(pairs),
        )
        return {
            **made, "positions": sum(map(sum, pairs)), "operations": arithmetic.operations(pairs, arithmetic.SMOLLM2),
            "attention": sum(arithmetic.attention(pair, arithmetic.SMOLLM2) for pair in pairs),
        }

    # Large models -------------------------------------------------------------------------------

    def large(self, shape, kind, pairs, most_bytes, *flags):
        """One step with adapters on a random model of this shape."""
        made, _ = self.bench.rival("random_gguf", gguf=str(self.gguf), shape=shape, kind=kind)
        data = self.bench.file(f"large-{pairs}.jsonl")
        data.write_text("".join(f"{line}\n" for line in self.bench.file("pairs.jsonl").read_text().splitlines()[:pairs]))
        trained = self.bench.train(
            "--model_name_or_path", made["path"], "--dataset_name", data, "--max_length", self.sizes.large_length,
            "--truncated_completion", "drop", "--max_steps", 1, "--per_device_train_batch_size", pairs, *BASE, *flags,
            most_bytes=most_bytes,
        )
        return {**trained, "model_bytes": made["bytes"]}

    def llama_1b(self):
        """LoRA DPO on a base in bf16."""
        return self.large("llama-3.2-1b", "BF16", self.sizes.batch, 8e9, "--method", "dpo")

    def llama_8b(self):
        """LoRA WDPO, one pair, on a base in 4 bits."""
        return self.large("llama-3.1-8b", "Q4_0", 1, 20e9, "--method", "wdpo", "--wdpo_rho", RHO)


TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
}

WORDS = "the a sea ship sails under wind and stars while small boats follow harbour lights home again through rain".split()


def sentence(rng, words):
    """Some words."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def short_pair(rng):
    """A line of JSON with a pair of some twenty words; the completions differ."""
    prompt = sentence(rng, 10) + ":"
    pair = {"prompt": prompt, "chosen": f" {sentence(rng, 8)} yes", "rejected": f" {sentence(rng, 8)} no"}
    return json.dumps(pair) + "\n"


def print_progress(text):
    """A line for the person who waits."""
    import sys

    print(text, file=sys.stderr, flush=True)
