"""Acceptance run: the built program against transformers and TRL on SmolLM2-135M-Instruct.

    python scripts/parity/smollm2.py --seakeep target/release/seakeep \\
        --model models/smollm2-135m-instruct.gguf --data ../shared/data \\
        [--only logps,grads,trajectory,reload,generate] [--reference-only]

Prints one table (check, seakeep, reference, error, tolerance, ok) and exits 1 if a line fails. PyTorch's
numbers take about twenty minutes on two cores and 12 GB; they are kept in --cache and reused.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

import smollm2_data as source
import smollm2_reference as reference

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("logps", "grads", "trajectory", "reload", "generate")
LOGPS_LENGTH = 512


# ---------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------


class Table:
    """Lines of the report, printed as they come."""

    def __init__(self):
        self.failures = 0
        print(f"{'check':44} {'seakeep':>18} {'reference':>18} {'error':>9} {'allowed':>8}  ok")

    def line(self, check, mine, theirs, error, allowed):
        """One comparison; a NaN error fails."""
        fine = error <= allowed
        self.failures += not fine
        print(f"{check:44} {mine:>18} {theirs:>18} {error:9.1e} {allowed:8.0e}  {'ok' if fine else 'FAIL'}", flush=True)

    def relative(self, check, mine, theirs, allowed):
        """A number with a relative tolerance."""
        self.line(check, f"{mine:.9g}", f"{theirs:.9g}", abs(mine - theirs) / abs(theirs), allowed)

    def absolute(self, check, mine, theirs, allowed):
        """A number with an absolute tolerance."""
        self.line(check, f"{mine:.9g}", f"{theirs:.9g}", abs(mine - theirs), allowed)

    def equal(self, check, mine, theirs):
        """Two things that must be the same."""
        error = 0.0 if mine == theirs else math.inf
        self.line(check, ending(mine), ending(theirs), error, 0.0)

    def broken(self, check, error):
        """A check that could not be made."""
        self.failures += 1
        print(f"{check:44} FAIL {error}", flush=True)


def ending(value):
    """The last characters of a value, on one line."""
    return repr(value)[-18:]


BROKEN = (RuntimeError, OSError, KeyError, IndexError, json.JSONDecodeError)
"""What running the program and reading its output may raise."""


# ---------------------------------------------------------------------------------------------
# The run's inputs
# ---------------------------------------------------------------------------------------------


class Inputs:
    """Paths, tokenizer, models and the chosen rows of every check."""

    def __init__(self, arguments):
        self.seakeep = arguments.seakeep
        self.gguf = arguments.model.resolve()
        self.cache = arguments.cache.resolve()
        self.cache.mkdir(parents=True, exist_ok=True)
        self.trained = None
        self.tokenizer = source.load_tokenizer(arguments.data)
        self.base = source.ensure_base(self.gguf, self.tokenizer, self.cache)
        self.policy = source.ensure_policy(self.base, self.tokenizer, self.cache)
        raw = source.read_hh(arguments.data)
        chat = [source.conversational(row) for row in raw]
        pick = lambda rows, *how: source.pick(rows, self.tokenizer, *how)
        self.rows = {
            "hh-raw": pick(raw, LOGPS_LENGTH, 6, 20, 400, 1000),
            "hh-chat": pick(chat, LOGPS_LENGTH, 6, 60, 400, 1200),
            "hh-digits": pick([row for row in chat if row and has_list(row)], LOGPS_LENGTH, 3, 60, 400, 10),
            "hh-long": pick(chat, 128, 3, 128, 128, 300),
            "grads": pick(chat, LOGPS_LENGTH, 4, 60, 140, 1500),
            "trajectory": pick(chat, reference.TRAJECTORY["max_length"], 40, 60, 200, 0),
        }
        for name, (rows, _) in self.rows.items():
            source.write_rows(self.file(name), rows)

    def file(self, name):
        """The JSONL file of a check's rows."""
        return self.cache / f"{name}.jsonl"

    def tokens(self, name):
        """The token ids of a check's rows."""
        return self.rows[name][1]

    def cached(self, name, tokens, compute):
        """PyTorch's numbers for these tokens and this model."""
        return source.cached(self.cache, name, [self.gguf.stat().st_size, source.NOISE, tokens], compute)

    def run(self, *command):
        """Run the program; its message on failure."""
        words = [str(self.seakeep), *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"exit {done.returncode}: {' '.join(words)}\n{done.stderr[-2000:]}")

    def output(self, name):
        """A fresh directory for the program's output."""
        folder = self.cache / "out" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder


def has_list(row):
    """Whether a completion holds a numbered list: line breaks right before digits, where
    tokenizers without a digit splitter go wrong."""
    return any(re.search(r"\n\s*\d", row[key][-1]["content"]) for key in ("chosen", "rejected"))


def read_lines(path):
    """A JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------------------------------------
# Checks. Each first has PyTorch's numbers, then asks the program unless there is none.
# ---------------------------------------------------------------------------------------------


def compare_logps(inputs, table, check, model, name, max_length, theirs):
    """`seakeep logps` on one file against reference log-probs, tokens included."""
    out = inputs.output(f"{check}.jsonl".replace("/", "-"))
    inputs.run(
        "logps", "--model_name_or_path", model, "--dataset_name", inputs.file(name), "--max_length", max_length, "--output", out
    )
    lines = read_lines(out)
    table.equal(f"{check} rows", len(lines), len(theirs))
    for line, tokens, logps in zip(lines, inputs.tokens(name), theirs):
        counts = [len(tokens[key]) for key in ("prompt", "chosen", "rejected")]
        mine = [line[f"{key}_tokens"] for key in ("prompt", "chosen", "rejected")]
        table.equal(f"{check} row {tokens['row']} tokens", mine, counts)
        table.relative(f"{check} row {tokens['row']} chosen", line["chosen_logps"], logps[0], 2e-5)
        table.relative(f"{check} row {tokens['row']} rejected", line["rejected_logps"], logps[1], 2e-5)


def check_logps(inputs, table):
    """Log-probs of HH rows: raw, conversational, with numbered lists, and cut by max_length."""
    for name in ("hh-raw", "hh-chat", "hh-digits", "hh-long"):
        max_length = 128 if name == "hh-long" else LOGPS_LENGTH
        tokens = inputs.tokens(name)
        theirs = inputs.cached(f"logps-{name}", tokens, lambda: reference.logps(inputs.base, tokens))
        if table:
            compare_logps(inputs, table, name, inputs.gguf, name, max_length, theirs)


def gradient_runs(numbers):
    """(name, flags, loss, gradient norm) of every gradient check."""
    dpo, kldpo = numbers["dpo"], numbers["kldpo"]
    kl_flags = ["--method", "kldpo", "--kldpo_tau", reference.TAU]
    yield "dpo", ["--method", "dpo"], dpo["loss"], dpo["norm"]
    yield "kldpo", kl_flags, kldpo["loss"], kldpo["norm"]
    yield "kldpo 2x2", kl_flags + split(2), kldpo["loss"], kldpo["norm"]
    for form, prompt_gradient in (("paper", "shared"), ("paper", "separate"), ("official", "separate")):
        for rho in (0.1, 1.0):
            flags = ["--method", "wdpo", "--wdpo_rho", rho]
            flags += ["--wdpo_prompt_gradient", prompt_gradient, "--wdpo_form", form]
            yield f"wdpo {form} {prompt_gradient} {rho}", flags, *reference.wdpo(numbers, rho, prompt_gradient, form)
    flags = ["--method", "wdpo", "--wdpo_rho", 1.0, *split(1)]
    yield "wdpo paper shared 1.0 4x1", flags, *reference.wdpo(numbers, 1.0, "shared", "paper")


def split(micro_batch):
    """Flags that spread the batch of four over micro-batches."""
    return ["--per_device_train_batch_size", micro_batch, "--gradient_accumulation_steps", 4 // micro_batch]


def check_grads(inputs, table):
    """Loss and gradient norm of the first step, policy != reference."""
    tokens = inputs.tokens("grads")
    numbers = inputs.cached("grads", tokens, lambda: reference.gradient_numbers(inputs.base, inputs.policy, tokens))
    for name, flags, loss, norm in gradient_runs(numbers):
        if not table:
            print(f"{name:32} loss {loss:.10g}  grad_norm {norm:.10g}")
            continue
        try:
            first = first_step(inputs, name, flags)
        except BROKEN as error:
            table.broken(name, error)
            continue
        table.relative(f"{name} loss", first["loss"], loss, 1e-4)
        table.relative(f"{name} grad_norm", first["grad_norm"], norm, 1e-4)


def first_step(inputs, name, flags):
    """What the program logs at step 1 of a run with these flags."""
    out = inputs.output(f"grads-{name}".replace(" ", "-"))
    if "--per_device_train_batch_size" not in flags:
        flags = flags + split(4)
    inputs.run(
        "train", "--model_name_or_path", inputs.policy, "--ref_model_name_or_path", inputs.gguf,
        "--dataset_name", inputs.file("grads"), "--beta", reference.BETA, "--shuffle_dataset", "false",
        "--max_steps", 1, "--logging_steps", 1, "--learning_rate", 1e-6, "--max_length", LOGPS_LENGTH,
        "--output_dir", out, *flags,
    )
    first = read_lines(out / "metrics.jsonl")[0]
    shutil.rmtree(out)
    return first


def train_trajectory(inputs):
    """The program's run of the trajectory, made once; its output directory."""
    if inputs.trained:
        return inputs.trained
    out = inputs.output("trajectory")
    how = reference.TRAJECTORY
    inputs.run(
        "train", "--model_name_or_path", inputs.gguf, "--dataset_name", inputs.file("trajectory"), "--method", "dpo",
        "--beta", reference.BETA, "--shuffle_dataset", "false", "--per_device_train_batch_size", how["batch"],
        "--gradient_accumulation_steps", 1, "--max_steps", how["steps"], "--logging_steps", 1,
        "--learning_rate", how["learning_rate"], "--lr_scheduler_type", "linear", "--max_grad_norm", 1.0,
        "--max_length", how["max_length"], "--output_dir", out,
    )
    inputs.trained = out
    return out


def check_trajectory(inputs, table):
    """Twenty steps of DPO against TRL."""
    rows, tokens = inputs.rows["trajectory"]
    scratch = inputs.cache / "trl"
    compute = lambda: reference.trajectory(inputs.base, inputs.tokenizer, rows, scratch)
    theirs = inputs.cached("trajectory", [reference.TRAJECTORY, tokens], compute)
    if not table:
        return
    mine = [line for line in read_lines(train_trajectory(inputs) / "metrics.jsonl") if "loss" in line]
    table.equal("trajectory steps", len(mine), len(theirs))
    for step, (line, want) in enumerate(zip(mine, theirs), start=1):
        table.relative(f"step {step} loss", line["loss"], want["loss"], 1e-3)
        table.relative(f"step {step} grad_norm", line["grad_norm"], want["grad_norm"], 1e-3)
        table.absolute(f"step {step} rewards/margins", line["rewards/margins"], want["rewards/margins"], 1e-3)


def check_reload(inputs, table):
    """The saved model in transformers: the same tokenizer, template and log-probs."""
    if not table:
        return
    folder = train_trajectory(inputs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, tokens = inputs.rows["hh-chat"]
    for row, ids in zip(rows, tokens):
        mine = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        table.equal(f"reload row {ids['row']} prompt ids", mine, ids["prompt"])
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        table.equal(f"reload {name}", getattr(tokenizer, name), getattr(inputs.tokenizer, name))
    compare_logps(inputs, table, "reload", folder, "hh-chat", LOGPS_LENGTH, reference.logps(folder, tokens))


def check_generate(inputs, table):
    """Greedy generation through the chat template, token by token."""
    compute = lambda: reference.generations(inputs.base, inputs.tokenizer)
    theirs = inputs.cached("generate", [list(reference.PROMPTS), reference.NEW_TOKENS], compute)
    for want in theirs:
        if not table:
            print(f"{want['prompt']} -> {want['text']!r} (lead {want['smallest_lead']:.3f})")
            continue
        out = inputs.output("generate.jsonl")
        out.unlink(missing_ok=True)
        inputs.run(
            "generate", "--model_name_or_path", inputs.gguf, "--prompt", want["prompt"],
            "--max_new_tokens", reference.NEW_TOKENS, "--do_sample", "false", "--output", out,
        )
        line = read_lines(out)[0]
        mine = [token for token in line["tokens"] if token != inputs.tokenizer.eos_token_id]
        table.equal(f"generate {want['prompt'][:30]!r}", mine, want["tokens"])
        table.equal("  completion text", line["completion"].strip(), want["text"].strip())


# ---------------------------------------------------------------------------------------------


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seakeep", type=Path, default=ROOT / "target/release/seakeep", help="the built program")
    parser.add_argument("--model", type=Path, default=ROOT / "models/smollm2-135m-instruct.gguf", help="SmolLM2's GGUF")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="the shared data directory")
    parser.add_argument("--cache", type=Path, default=ROOT.parent / "parity-cache", help="where PyTorch's numbers stay")
    parser.add_argument("--only", default=",".join(CHECKS), help="comma-separated checks (default: all)")
    parser.add_argument("--reference-only", action="store_true", help="compute PyTorch's numbers, do not run the program")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch threads")
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(CHECKS)
    if unknown:
        parser.error(f"unknown checks {sorted(unknown)}; there are {', '.join(CHECKS)}")
    return arguments


def main():
    """Run the checks; exit 1 if one fails."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    inputs = Inputs(arguments)
    table = None if arguments.reference_only else Table()
    for check in arguments.only.split(","):
        try:
            globals()[f"check_{check}"](inputs, table)
        except BROKEN as error:
            if not table:
                raise
            table.broken(check, error)
    if table:
        print(f"{table.failures} failures")
        sys.exit(1 if table.failures else 0)


if __name__ == "__main__":
    main()
