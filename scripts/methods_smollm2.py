"""Every method of Seakeep on a real model and real pairs: 30 steps each, and whether what they log is sane.

    python3 scripts/methods_smollm2.py --seakeep target/release/seakeep --model models/smollm2-135m-instruct.gguf \
        --data ../shared/data --out runs/methods

A method sees 40 pairs three times, four a step, so that the first pass and the last can be compared on the same pairs.
Runs that are finished are not run again, so that it can be stopped and started. Writes table.md into --out;
docs/evidence/methods.md says what came out. Needs Python's standard library only.
"""

import argparse
import gzip
import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

PAIRS, BATCH, PASSES, SEED = 40, 4, 3, 1
STEPS = PAIRS * PASSES // BATCH
VOCABULARY = 49_152
SHORT = {"tone": 160, "votes": 250}  # Longest prompt with both completions, characters.

# Which data each method is given, and what it wants besides.
METHODS = {
    "dpo": "tone", "kldpo": "tone", "wdpo": "tone", "drdpo": "tone", "winsor": "tone",
    "dpo-pro": "votes", "causaldpo": "tone", "chi2": "tone", "cvar": "tone", "tv": "tone", "group": "groups",
    "rebel": "votes", "w-rebel": "votes", "kl-rebel": "votes", "chi2-rebel": "votes",
    "cdpo": "tone", "rdpo": "tone", "ipo": "tone", "aot": "tone", "sdpo": "several", "kto": "tone",
    "simpo": "tone", "cpo": "tone", "orpo": "tone",
}
FLAGS = {
    "dpo-pro": ("--soft_label_column", "votes"),
    # A pair is two rows there.
    "kto": ("--per_device_train_batch_size", str(2 * BATCH)),
}
# Their loss is that of the worst pairs or groups, whose choice changes from step to step.
WORST_CASE = {"kldpo", "chi2", "cvar", "tv", "group", "kl-rebel", "chi2-rebel"}
NO_REFERENCE = {"simpo", "cpo", "orpo"}


# --- Data -----------------------------------------------------------------------------------------------


def content(messages):
    """The text of a conversation."""
    return "".join(message["content"] for message in messages)


def short(rows, name):
    """Those with two different completions, none of them empty, and few characters."""
    size = lambda row: sum(len(content(row[key])) for key in ("prompt", "chosen", "rejected"))
    told_apart = lambda row: content(row["chosen"]) and content(row["rejected"]) and row["chosen"] != row["rejected"]
    return [row for row in rows if told_apart(row) and size(row) <= SHORT[name]]


def write_data(args, folder):
    """Four files of 40 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(args.data / "instruction-tone.jsonl.gz", "rt") as file:
        tone = short(map(json.loads, file), "tone")
    pandalm = folder / "pandalm.jsonl"
    prepare = [args.seakeep, "prepare", "--input", args.data / "pandalm-testset-v1.json", "--layout", "pandalm"]
    subprocess.run([*prepare, "--output", pandalm], check=True, capture_output=True)
    votes = short(map(json.loads, pandalm.read_text().splitlines()), "votes")
    for rows in (tone, votes):
        random.Random(SEED).shuffle(rows)
    # Half of them are pairs on which the three annotators were not of one mind.
    split = [row for row in votes if len(set(row["votes"])) > 1]
    unanimous = [row for row in votes if len(set(row["votes"])) == 1]
    votes = split[: PAIRS // 2] + unanimous[: PAIRS // 2]
    for row in votes:
        share = statistics.mean(row["votes"])
        row |= {"score_chosen": share, "score_rejected": 1 - share}
    # A second rejected completion: the good answer to another prompt.
    several = [
        {**row, "rejected": [row["rejected"], other["chosen"]]}
        for row, other in zip(tone[:PAIRS], tone[PAIRS : 2 * PAIRS], strict=True)
    ]
    strip = lambda row, group: {key: row[key] for key in ("prompt", "chosen", "rejected")} | {"group": group}
    groups = [strip(row, "tone") for row in tone[: PAIRS // 2]] + [strip(row, "pandalm") for row in votes[::2]]
    for name, rows in {"tone": tone[:PAIRS], "votes": votes, "several": several, "groups": groups}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- Runs -----------------------------------------------------------------------------------------------


def run(args, method):
    """What a run logged, step by step, and its seconds; found if it was run before."""
    file = args.out / "results" / f"{method}.json"
    if file.exists():
        return json.loads(file.read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    output = args.out / "policy"
    flags = {
        "model_name_or_path": args.model, "dataset_name": args.out / "data" / f"{METHODS[method]}.jsonl",
        "method": method, "max_steps": STEPS, "learning_rate": "1e-5", "warmup_ratio": 0.1, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "seed": SEED, "output_dir": output, "overwrite_output_dir": "true",
    }
    if args.num_threads:
        flags["num_threads"] = args.num_threads
    if method not in FLAGS or "--per_device_train_batch_size" not in FLAGS[method]:
        flags["per_device_train_batch_size"] = BATCH
    words = [str(word) for key, value in flags.items() for word in (f"--{key}", value)]
    start = time.time()
    done = subprocess.run([args.seakeep, "train", *words, *FLAGS.get(method, ())], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method}\n{done.stderr}")
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    result = {"method": method, "seconds": round(time.time() - start), "steps": steps}
    file.write_text(json.dumps(result))
    return result


# --- Verdict --------------------------------------------------------------------------------------------


def mean(steps, key):
    """The mean of a metric over steps."""
    return statistics.mean(step[key] for step in steps)


def passes(result):
    """The steps of the first pass and of the last: the same pairs."""
    size = STEPS // PASSES
    return result["steps"][:size], result["steps"][-size:]


def faults(result):
    """What is not as it must be, whatever the method."""
    method, steps = result["method"], result["steps"]
    first, last = passes(result)
    found = []

    def must(holds, what):
        if not holds:
            found.append(what)

    values = [(key, value) for step in steps for key, value in step.items() if isinstance(value, (int, float))]
    must(all(math.isfinite(value) for _, value in values), "not finite")
    must([step["step"] for step in steps] == list(range(1, STEPS + 1)), "steps missing")
    must(all(step["grad_norm"] > 0 for step in steps), "no gradient")
    must(all(0 < step["entropy"] < math.log(VOCABULARY) for step in steps if "entropy" in step), "entropy")
    shares = ("rewards/accuracies", "mean_token_accuracy", "weights/max", "weights/min", "winsor/flip_max")
    must(all(0 <= step[key] <= 1 for step in steps for key in shares if key in step), "a share beyond [0, 1]")
    size = "weights/effective_sample_size"
    must(all(1 - 1e-9 <= step[size] <= BATCH + 1e-9 for step in steps if size in step), "effective sample size")
    must(all(a["num_tokens"] < b["num_tokens"] for a, b in zip(steps, steps[1:])), "num_tokens")
    if method not in NO_REFERENCE:
        start = ("rewards/chosen", "rewards/rejected", "rewards/margins")
        must(all(abs(steps[0][key]) < 1e-4 for key in start), "policy is not the reference at the start")
    if "kldpo/tau" in steps[0]:
        must(all(abs(step["kldpo/tau"] - 0.5) < 1e-9 for step in steps), "tau")
    if "wdpo/penalty" in steps[0]:
        must(all(step["wdpo/penalty"] > 0 for step in steps), "penalty")
    if "winsor/flips" in steps[0]:
        must(all(step["winsor/flips"] <= 0.15 * BATCH + 1e-9 for step in steps), "flips beyond the budget")
    must(mean(last, "rewards/margins") > max(0, mean(first, "rewards/margins")), "margin does not grow")
    must(mean(last, "rewards/accuracies") > 0.5, "accuracy is that of chance")
    return found


def verdict(result):
    """In words."""
    first, last = passes(result)
    falls = mean(last, "loss") < mean(first, "loss")
    words = ["falls" if falls else "**rises**" + (", a worst case" if result["method"] in WORST_CASE else "")]
    return "; ".join(words + [f"**{what}**" for what in faults(result)])


COMMON = ("rewards/", "logps/", "logits/")


def logged(result):
    """What only this method logs, means over the last pass."""
    _, last = passes(result)
    keys = [key for key in last[0] if "/" in key and not key.startswith(COMMON)]
    keys += [key for key in ("kl", "nll_loss", "log_odds_ratio") if key in last[0]]
    return ", ".join(f"{key} {statistics.mean(step.get(key, 0) for step in last):.3g}" for key in keys) or "–"


def table(results):
    """In Markdown."""
    lines = ["| method | pairs | loss, step 1 | first pass | last pass | last five | accuracy, first → last pass | margin, first → last pass "
             "| logged besides, last pass | verdict | s |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for result in results:
        steps, (first, last) = result["steps"], passes(result)
        two = lambda key, form: f"{mean(first, key):{form}} → {mean(last, key):{form}}"
        cells = [f"`{result['method']}`", METHODS[result["method"]], f"{steps[0]['loss']:.4f}", f"{mean(first, 'loss'):.4f}",
                 f"{mean(last, 'loss'):.4f}", f"{mean(steps[-5:], 'loss'):.4f}", two("rewards/accuracies", ".2f"),
                 two("rewards/margins", ".3f"), logged(result), verdict(result), str(result["seconds"])]
        lines.append(f"| {' | '.join(cells)} |".replace(" -", " −"))
    return "\n".join(lines) + "\n"


def main():
    """Runs what is missing and writes the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seakeep", type=Path, required=True, help="the program")
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="the shared data")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="these only; default: all")
    parser.add_argument("--num_threads", type=int, help="threads; default: all cores")
    args = parser.parse_args()
    if not (args.out / "data" / "groups.jsonl").exists():
        write_data(args, args.out / "data")
    results = []
    for method in args.methods:
        results.append(run(args, method))
        print(f"{method:12} {verdict(results[-1])}, {results[-1]['seconds']} s", flush=True)
        (args.out / "table.md").write_text(table(results))


if __name__ == "__main__":
    main()
