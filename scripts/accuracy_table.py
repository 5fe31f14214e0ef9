"""Accuracies of a sweep's policies on pairs, as tables for documents: by data set and group, and at equal divergence from the reference.

    python3 scripts/accuracy_table.py runs/natural-to-adversarial/sweep

Reads the policy records (docs/EVAL.md). The accuracy is the share of pairs with a margin above 0; intervals are 95%, percentile
bootstrap over pairs (the same for all policies) and seeds. At equal divergence a policy is compared with DPO, interpolated
between its betas in the logarithm of KL per token, which is measured on samples and held as measured. Needs Python's
standard library only.
"""

import argparse
import json
import math
import random
import statistics
from pathlib import Path

RESAMPLES, SEED = 1000, 0


def read(sweep):
    """Records by label, and by seed; the reference, which has no margins, apart from them."""
    labels = {}
    for path in sorted(sweep.glob("*/seed*/policy.json")):
        record = json.loads(path.read_text())
        if record["policy"]["method"] != "reference":
            labels.setdefault(record["policy"]["label"], {})[record["policy"]["seed"]] = record
    return labels


def kl(seeds):
    """Nats per token from the reference, over the samples of all seeds."""
    samples = [record["samples"] for record in seeds.values()]
    nats = sum(sum(s["logps"]) - sum(s["ref_logps"]) for s in samples)
    return nats / sum(sum(s["tokens"]) for s in samples)


def hits(seeds, name, group=None):
    """By seed: of each pair of a data set whether it is ordered right."""
    found = {}
    for seed, record in seeds.items():
        part = next(d for d in record["datasets"] if d["name"] == name)
        groups = part.get("groups") or [None] * len(part["margins"])
        found[seed] = [float(margin > 0) for margin, own in zip(part["margins"], groups) if group in (None, own)]
    return found


def parts(labels):
    """Data sets, and the groups of those that have several."""
    for part in next(iter(next(iter(labels.values())).values()))["datasets"]:
        yield part["name"], None
        groups = sorted(set(part.get("groups") or []))
        yield from ((part["name"], group) for group in groups if len(groups) > 1)


class Part:
    """The accuracies of all policies on one set of pairs: as measured, and in each resample."""

    def __init__(self, labels, name, group):
        self.title = group or name
        self.kl = {label: kl(seeds) for label, seeds in labels.items()}
        self.dpo = sorted((label for label in labels if label.split()[0] == "dpo"), key=self.kl.get)
        found = {label: hits(seeds, name, group) for label, seeds in labels.items()}
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
        self.pairs, self.seeds = len(next(iter(found.values()))[seeds[0]]), len(seeds)
        rng = random.Random(SEED)
        draws = [(range(self.pairs), seeds)]
        draws += [(rng.choices(range(self.pairs), k=self.pairs), rng.choices(seeds, k=len(seeds))) for _ in range(RESAMPLES)]
        self.draws = [
            {label: statistics.fmean(statistics.fmean(map(by_seed[s].__getitem__, rows)) for s in some)
             for label, by_seed in found.items()}
            for rows, some in draws
        ]

    def interval(self, of):
        """A number of every draw: as measured, and the ends of its interval; none where it cannot be made."""
        values = [of(draw) for draw in self.draws]
        if None in values:
            return None
        drawn = sorted(values[1:])
        return values[0], *(drawn[round(share * (RESAMPLES - 1))] for share in (0.025, 0.975))

    def at_kl(self, draw, nats):
        """DPO's accuracy at a divergence, straight in its logarithm between two betas; none beyond them."""
        for left, right in zip(self.dpo, self.dpo[1:]):
            low, high = self.kl[left], self.kl[right]
            if 0 < low <= nats <= high:
                share = math.log(nats / low) / math.log(high / low) if high > low else 0
                return draw[left] + share * (draw[right] - draw[left])
        return None

    def over_dpo(self, label):
        """How far a policy's accuracy lies above DPO's at its divergence, as an interval; none for DPO."""
        if label in self.dpo:
            return None

        def gap(draw):
            level = self.at_kl(draw, self.kl[label])
            return None if level is None else draw[label] - level

        return self.interval(gap)


def told(interval):
    """An interval as a cell of a table."""
    if interval is None:
        return "–"
    whole, low, high = interval
    return f"{whole:.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")


def table(title, labels, cells):
    """In Markdown: a line for each label."""
    lines = [f"| {' | '.join(title)} |", "|---" * len(title) + "|"]
    return "\n".join(lines + [f"| {' | '.join([label, *cells(label)])} |" for label in labels]) + "\n"


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="the directory of `seakeep sweep`")
    labels = read(parser.parse_args().sweep)
    made = [Part(labels, *part) for part in parts(labels)]
    heads = [f"{part.title} ({part.pairs})" for part in made]
    print(f"{made[0].seeds} seeds. Accuracy:\n")
    print(table(["method", "KL, nats/token", *heads], labels,
                lambda label: [f"{made[0].kl[label]:.3f}", *(told(part.interval(lambda d: d[label])) for part in made)]))
    print("Less DPO's accuracy at the same KL:\n")
    others = [label for label in labels if label not in made[0].dpo]
    print(table(["method", *heads], others, lambda label: [told(part.over_dpo(label)) for part in made]))


if __name__ == "__main__":
    main()
