"""Label noise: every method of Seakeep on preference pairs of which a share has its labels swapped.

    python3 scripts/label_noise.py --seakeep target/release/seakeep --data ../shared/data --out runs/label-noise

Makes a tiny base policy for each seed, trains every method from it at every flip rate, and judges all of
them on clean held-out pairs. Runs that are finished are not run again, so that it can be stopped and started.
Writes runs.csv, tables.md and accuracy.svg into --out; docs/LABEL_NOISE.md says what came out.
Needs Python's standard library only.
"""

import argparse
import csv
import gzip
import json
import math
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RATES = (0.0, 0.2, 0.4)
TEST_ROWS, BASE_ROWS, SCORED_ROWS = 250, 244, 200
VOCABULARY = 2048
JUDGE_BETA = 0.1
FIRST_SEED = 2  # 1 was the pilot's.

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

COMMON = (
    "--per_device_train_batch_size 16 --lr_scheduler_type linear --warmup_ratio 0.1"
    " --save_strategy no --report_to none"
)
BASE_FLAGS = f"{COMMON} --loss_type sft --learning_rate 3e-3 --num_train_epochs 4"
TUNE_FLAGS = f"{COMMON} --learning_rate 3e-4 --num_train_epochs 2"

BASELINE = "dpo"
DPO_BETAS = {
    "dpo, beta 0.01": "--beta 0.01",
    "dpo, beta 0.05": "--beta 0.05",
    "dpo": "",
    "dpo, beta 0.3": "--beta 0.3",
    "dpo, beta 1": "--beta 1",
    "dpo, beta 3": "--beta 3",
}
METHODS = {
    **DPO_BETAS,
    "kldpo, tau 0.5": "--method kldpo --kldpo_tau 0.5",
    "kldpo, tau 1": "--method kldpo --kldpo_tau 1",
    "wdpo": "--method wdpo",
    "drdpo": "--method drdpo",
    "winsor": "--method winsor",
    "dpo-pro": "--method dpo-pro",
    "causaldpo": "--method causaldpo",
    "chi2": "--method chi2",
    "cvar": "--method cvar",
    "tv": "--method tv",
    "cdpo": "--method cdpo",
    "cdpo, true rate": "--method cdpo --label_smoothing {rate}",
    "rdpo": "--method rdpo",
    "rdpo, true rate": "--method rdpo --label_smoothing {rate}",
    "ipo": "--method ipo",
    "ipo, summed": "--method ipo --ipo_length_normalize false",
    "aot": "--method aot",
    "hinge": "--loss_type hinge",
    "exo_pair": "--loss_type exo_pair --label_smoothing 1e-3",
    "simpo": "--method simpo",
    "cpo": "--method cpo",
    "orpo": "--method orpo",
    "kto": "--method kto",
}
# Without flips the true rate is 0, which makes cdpo and rdpo dpo.
RUNS = [(name, rate) for name, flags in METHODS.items() for rate in RATES if rate or "{rate}" not in flags]

# Two-sided 95% quantiles of Student's t, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


# --- Data -----------------------------------------------------------------------------------------------


def read_pairs(data):
    """The tone pairs, without those whose two sides are the same."""
    with gzip.open(data / "instruction-tone.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if row["chosen"] != row["rejected"]]


def read_texts(data):
    """PandaLM's instructions with both responses, the short ones, as pairs in no order of preference."""
    pairs = []
    for row in json.loads((data / "pandalm-testset-v1.json").read_text()):
        prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        sides = (row["response1"], row["response2"])
        if all(isinstance(text, str) and text for text in sides) and len(prompt) + max(map(len, sides)) <= 400:
            pairs.append({"prompt": message("user", prompt), "chosen": message("assistant", sides[0]),
                          "rejected": message("assistant", sides[1])})
    return pairs


def message(role, content):
    """A conversation of one message."""
    return [{"role": role, "content": content}]


def swapped(row):
    """The pair with the other label."""
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def texts(pair):
    """Both sides as rows of their own for fine-tuning, which wants a rejected side but does not learn from it."""
    unused = message("assistant", "-")
    return [{"prompt": pair["prompt"], "chosen": pair[side], "rejected": unused} for side in ("chosen", "rejected")]


def split(rows, seed):
    """Test, base and training pairs; no prompt of the test pairs stands in the others."""
    rows = rows[:]
    random.Random(seed).shuffle(rows)
    test, rest = rows[:TEST_ROWS], rows[TEST_ROWS:]
    held_out = {row["prompt"][0]["content"] for row in test}
    rest = [row for row in rest if row["prompt"][0]["content"] not in held_out]
    return test, rest[:BASE_ROWS], rest[BASE_ROWS:]


def flipped_rows(count, rate, seed):
    """Which rows are flipped: exactly that share; what is flipped at 20% is also flipped at 40%."""
    order = list(range(count))
    random.Random(f"flip {seed}").shuffle(order)
    return set(order[: round(rate * count)])


def write_jsonl(path, rows):
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tokenizer(data, folder):
    """SmolLM2's tokenizer cut to its first VOCABULARY tokens, with ChatML that adds no system message."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = json.loads((data / "tokenizers/smollm2/tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < VOCABULARY}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) in model["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


# --- Runs -----------------------------------------------------------------------------------------------


class Experiment:
    """The program, its data and the folder of the results."""

    def __init__(self, seakeep, data, out):
        self.seakeep, self.data, self.out = seakeep, data, out

    def call(self, command, **settings):
        """Runs the program; settings become flags. Its messages are shown when it fails."""
        flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        line = ["nice", "-n", "5", str(self.seakeep), *command.split(), *flags]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(line)}\n{done.stderr}")
        return done.stdout

    def prepare(self, seed):
        """The folder of a seed: its pairs, its base policy and the base's log-probabilities."""
        folder = self.out / f"seed-{seed}"
        if (folder / "base.jsonl").exists():
            return folder
        (folder / "results").mkdir(parents=True, exist_ok=True)
        test, base, train = split(read_pairs(self.data), seed)
        write_jsonl(folder / "scored.jsonl", test + train[:SCORED_ROWS])
        for rate in RATES:
            flips = flipped_rows(len(train), rate, seed)
            rows = [swapped(row) if at in flips else row for at, row in enumerate(train)]
            write_jsonl(folder / f"train-{rate}.jsonl", rows)
        pairs = read_texts(self.data) + base
        write_jsonl(folder / "texts.jsonl", [text for pair in pairs for text in texts(pair)])
        self.make_base(folder, seed)
        self.logps(folder / "base", folder, folder / "base.jsonl")
        return folder

    def make_base(self, folder, seed):
        """A random model, fitted to both sides of the base's pairs and of PandaLM's."""
        write_tokenizer(self.data, self.out / "tokenizer")
        config = self.out / "config.json"
        config.write_text(json.dumps(CONFIG))
        shutil.rmtree(folder / "random", ignore_errors=True)
        self.call("init", config_json=config, tokenizer=self.out / "tokenizer", seed=seed, output_dir=folder / "random")
        self.train(BASE_FLAGS, folder / "random", folder / "texts.jsonl", folder / "base", seed)

    def train(self, flags, model, pairs, output, seed):
        """Trains a model on pairs, with one thread."""
        self.call(f"train {flags}", model_name_or_path=model, dataset_name=pairs, output_dir=output,
                  overwrite_output_dir="true", seed=seed, num_threads=1)

    def logps(self, model, folder, output):
        """Log-probabilities of the test pairs, then of some training pairs, all under their true labels."""
        part = output.with_suffix(".part")
        self.call("logps", model_name_or_path=model, dataset_name=folder / "scored.jsonl", output=part,
                  num_threads=1)
        part.rename(output)

    def run(self, name, rate, seed):
        """Trains and judges one policy, or finds what came of it."""
        flags = METHODS[name].format(rate=rate)
        settings = f"{TUNE_FLAGS} {flags}".strip()
        folder = self.prepare(seed)
        file = folder / "results" / f"{name.replace(', ', '-').replace(' ', '-')}-{rate}.json"
        if file.exists() and (result := json.loads(file.read_text()))["settings"] == settings:
            return result
        start = time.time()
        self.train(settings, folder / "base", folder / f"train-{rate}.jsonl", folder / "policy", seed)
        self.logps(folder / "policy", folder, folder / "policy.jsonl")
        result = {"method": name, "rate": rate, "seed": seed} | judge(folder, rate)
        result |= {"seconds": round(time.time() - start, 1), "settings": settings}
        file.write_text(json.dumps(result))
        return result


def judge(folder, rate):
    """What a policy's log-ratios to its base say of the test pairs and of the labels it was given."""

    def lines(name):
        """The rows of a file of the folder."""
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    base = lines("base.jsonl")
    ratios = [
        {side: new[f"{side}_logps"] - old[f"{side}_logps"] for side in ("chosen", "rejected")}
        for new, old in zip(lines("policy.jsonl"), base, strict=True)
    ]
    margins = [ratio["chosen"] - ratio["rejected"] for ratio in ratios]
    test, train = margins[:TEST_ROWS], margins[TEST_ROWS:]
    moves = [
        abs(ratio[side]) / row[f"{side}_tokens"]
        for ratio, row in zip(ratios[:TEST_ROWS], base)
        for side in ("chosen", "rejected")
    ]
    given, true = lines(f"train-{rate}.jsonl"), lines("train-0.0.jsonl")
    flips = [row != clean for row, clean in zip(given, true)][:SCORED_ROWS]
    fitted = [-margin if flip else margin for margin, flip in zip(train, flips, strict=True)]
    turned = [margin for margin, flip in zip(fitted, flips) if flip]
    return {
        "accuracy": share_positive(test),
        "margin": JUDGE_BETA * statistics.mean(test),
        "loss": statistics.mean(softplus(-JUDGE_BETA * margin) for margin in test),
        "movement": statistics.mean(moves),
        "train_accuracy": share_positive(fitted),
        "flipped_accuracy": share_positive(turned) if turned else "",
    }


def share_positive(values):
    """The share of values above zero."""
    return sum(value > 0 for value in values) / len(values)


def softplus(x):
    """log(1 + exp x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# --- Report ---------------------------------------------------------------------------------------------


class Table:
    """The results of all seeds, by method and flip rate."""

    def __init__(self, results):
        self.results = results

    def values(self, name, rate, key):
        """One number for each seed, in the order of the seeds."""
        return [row[key] for row in self.results if (row["method"], row["rate"]) == (name, rate)]

    def mean(self, name, rate, key):
        """The mean over seeds; none where the method has no such run."""
        values = self.values(name, rate, key)
        return statistics.mean(values) if values else None

    def error(self, name, rate, key):
        """The standard error of that mean."""
        values = self.values(name, rate, key)
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan

    def against_baseline(self, name, rate):
        """The accuracy less the baseline's, seed by seed."""
        pairs = zip(self.values(name, rate, "accuracy"), self.values(BASELINE, rate, "accuracy"), strict=True)
        return [mine - other for mine, other in pairs]

    def at_equal_movement(self, name, rate):
        """The accuracy less that of DPO at the beta that moves as far, interpolated between betas, seed by seed.

        Empty where a seed's policy moves more, or less, than DPO at any beta.
        """
        curves = zip(*(zip(*(self.values(beta, rate, key) for key in ("movement", "accuracy"))) for beta in DPO_BETAS))
        points = zip(self.values(name, rate, "movement"), self.values(name, rate, "accuracy"))
        values = []
        for (movement, accuracy), curve in zip(points, curves):
            level = interpolate(movement, sorted(curve))
            if level is None:
                return []
            values.append(accuracy - level)
        return values

    def ranked(self):
        """The methods, the most accurate at the highest flip rate first."""
        return sorted(METHODS, key=lambda name: -self.mean(name, RATES[-1], "accuracy"))

    def best_beta(self, rate):
        """DPO at the beta that the test pairs themselves call best."""
        return max(DPO_BETAS, key=lambda name: self.mean(name, rate, "accuracy"))


def write_csv(results, path):
    """One line for each run."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, results[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{value:.4f}" if isinstance(value, float) and key not in ("rate", "seconds") else value
                          for key, value in row.items()} for row in results)


def interpolate(x, curve):
    """The height of a line through points sorted by x, straight in log x; none outside."""
    for (left, low), (right, high) in zip(curve, curve[1:]):
        if left <= x <= right:
            return low + (high - low) * math.log(x / left) / math.log(right / left)
    return None


def write_tables(table, path):
    """The page's tables, in Markdown."""
    lines = ["| method | accuracy, 0% | 20% | 40% | loss, 0 / 20 / 40% | moved, 0 / 20 / 40% | flips learnt, 40% |",
             "|---|---|---|---|---|---|---|"]
    lines += [measures_line(table, name, [name] * len(RATES)) for name in table.ranked()]
    best = [table.best_beta(rate) for rate in RATES]
    betas = ", ".join(name.removeprefix("dpo, beta ").replace(BASELINE, "0.1") for name in best)
    lines.append(measures_line(table, f"*dpo, best beta by the test: {betas}*", best))
    lines += ["", "| method | 0% | 20% | 40% | 40%, at equal movement |", "|---|---|---|---|---|"]
    lines += [differences_line(table, name) for name in table.ranked() if name != BASELINE]
    path.write_text("\n".join(lines).replace("-0.", "−0.") + "\n")


def measures_line(table, title, names):
    """A method's accuracy, loss and movement; names says whose numbers stand under each rate."""
    cells = [title]
    for name, rate in zip(names, RATES):
        mean = table.mean(name, rate, "accuracy")
        cells.append("–" if mean is None else f"{mean:.3f} ± {table.error(name, rate, 'accuracy'):.3f}")
    for key in ("loss", "movement"):
        means = [table.mean(name, rate, key) for name, rate in zip(names, RATES)]
        cells.append(" / ".join("–" if mean is None else f"{mean:.2f}" for mean in means))
    cells.append(f"{table.mean(names[-1], RATES[-1], 'flipped_accuracy'):.2f}")
    return f"| {' | '.join(cells)} |"


def differences_line(table, name):
    """How far a method's accuracy lies from the baseline's, with 95% intervals over seeds."""
    cells = [name] + [interval(table.against_baseline(name, rate)) if table.values(name, rate, "accuracy") else "–"
                      for rate in RATES]
    equal = [] if name in DPO_BETAS else table.at_equal_movement(name, RATES[-1])
    return f"| {' | '.join(cells + [interval(equal)])} |"


def interval(values):
    """The mean of paired differences and its 95% interval by Student's t."""
    if len(values) < 2:
        return "–"
    mean = statistics.mean(values)
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


ROW, LEFT, WIDTH, TOP = 22, 150, 720, 74
LOWEST, HIGHEST = 0.4, 1.0


def write_picture(table, path):
    """Accuracies as marks: one row for each method, one shape for each flip rate."""
    names = table.ranked()
    bottom = TOP + ROW * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 48}"',
        '  font-family="sans-serif" font-size="13">',
        '<title>Accuracy on clean test pairs, by method and share of flipped training labels</title>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">Accuracy on clean test pairs</text>',
    ]
    for rate, at in zip(RATES, (LEFT + 6, LEFT + 150, LEFT + 300)):
        parts += [mark(at, 42, rate), f'<text x="{at + 12}" y="47">{rate:.0%} of labels flipped</text>']
    for tenth in range(round(LOWEST * 10), round(HIGHEST * 10) + 1):
        x = across(tenth / 10)
        parts.append(f'<line x1="{x}" y1="{TOP - 8}" x2="{x}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{tenth / 10}</text>')
    level = across(table.mean(BASELINE, RATES[-1], "accuracy"))
    dashed = 'stroke="black" stroke-dasharray="4 4"'
    legend = f"Dashed: {BASELINE} at {RATES[-1]:.0%}. Whiskers: one standard error over seeds."
    parts.append(f'<line x1="{level}" y1="{TOP - 8}" x2="{level}" y2="{bottom}" {dashed}/>')
    parts.append(f'<text x="{LEFT}" y="{bottom + 38}">{legend}</text>')
    for row, name in enumerate(names):
        y = TOP + ROW * row + ROW // 2
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{name}</text>')
        parts += [whisker(table, name, rate, y) for rate in RATES if table.values(name, rate, "accuracy")]
    path.write_text("\n".join(parts) + "\n</svg>\n")


def across(accuracy):
    """Where an accuracy stands, in pixels from the left."""
    return round(LEFT + (WIDTH - LEFT - 20) * (accuracy - LOWEST) / (HIGHEST - LOWEST), 1)


def whisker(table, name, rate, y):
    """A mean with its standard error."""
    mean, error = table.mean(name, rate, "accuracy"), table.error(name, rate, "accuracy")
    line = f'<line x1="{across(mean - error)}" y1="{y}" x2="{across(mean + error)}" y2="{y}" stroke="#666"/>'
    return (line if error == error else "") + mark(across(mean), y, rate)


def mark(x, y, rate):
    """A circle, a grey square or a black triangle: the flip rates differ in shape and in brightness."""
    if rate == RATES[0]:
        return f'<circle cx="{x}" cy="{y}" r="5" fill="white" stroke="black" stroke-width="1.5"/>'
    if rate == RATES[1]:
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5}" width="9" height="9" fill="#999" stroke="black"/>'
    return f'<path d="M{x} {y - 6} l6 11 h-12 z" fill="black"/>'


def main():
    """Runs what is missing, seed by seed, and writes the report after each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seakeep", type=Path, required=True, help="the program")
    parser.add_argument("--data", type=Path, required=True, help="the shared data")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 6), help="how many")
    args = parser.parse_args()
    experiment = Experiment(args.seakeep.resolve(), args.data, args.out)
    results = []
    for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
        for name, rate in RUNS:
            result = experiment.run(name, rate, seed)
            print(f"seed {seed}  {name:16} {rate:.0%}  accuracy {result['accuracy']:.3f}  loss {result['loss']:.3f}"
                  f"  movement {result['movement']:.3f}  {result['seconds']} s", flush=True)
            results.append(result)
        table = Table(results)
        write_csv(results, args.out / "runs.csv")
        write_tables(table, args.out / "tables.md")
        write_picture(table, args.out / "accuracy.svg")
    print((args.out / "tables.md").read_text(), end="")


if __name__ == "__main__":
    main()
