"""The rows of the table: what each compares, and what is to be reached."""

from dataclasses import dataclass
from typing import Callable, Optional

import arithmetic
from cases import GIGA, Sizes
from runs import Failed


@dataclass(frozen=True)
class Found:
    """A row's numbers in one repetition."""

    seakeep: float
    other: Optional[float]
    ratio: float


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    title: str
    unit: str
    """Of both numbers."""
    floor: float
    aim: float
    cases: Callable[[Sizes], tuple]
    """The cases it needs."""
    compare: Callable
    """From {case: what it gave} and the sizes to `Found`."""
    more_is_better: bool = True

    def verdict(self, ratio):
        """In words."""
        reached = (lambda target: ratio >= target) if self.more_is_better else (lambda target: ratio <= target)
        return "aim reached" if reached(self.aim) else "floor reached" if reached(self.floor) else "below the floor"


# ---------------------------------------------------------------------------------------------
# Comparisons
# ---------------------------------------------------------------------------------------------


def speed(case, rival):
    """Pairs per second over a first epoch, each side's pass of the reference included; both must have seen the same tokens and
    found the same losses."""

    def compare(runs, _):
        mine, theirs = runs[case], runs[rival]
        if mine["num_tokens"] != theirs["num_tokens"]:
            raise Failed(f"not the same tokens: {mine['num_tokens']} and {theirs['num_tokens']}")
        agree(mine, theirs, 0.1 if "bf16" in case else 1e-3)
        rate = lambda run: run["pairs"] / (run["reference_seconds"] + run["train_seconds"])
        return Found(rate(mine), rate(theirs), rate(mine) / rate(theirs))

    return compare


def agree(mine, theirs, tolerance):
    """Both sides' losses, step by step."""
    pairs = list(zip(mine["losses"], theirs["losses"], strict=True))
    if any(abs(a - b) > tolerance * abs(b) for a, b in pairs):
        raise Failed(f"not the same losses: {pairs}")


def step(run, sizes):
    """Seconds of a step."""
    return run["train_seconds"] / sizes.steps


def peak(run, _):
    """Memory in GB."""
    return run["peak_bytes"] / GIGA


def ratio_of(quantity, case, other):
    """One quantity of two cases, the first over the second."""

    def compare(runs, sizes):
        mine, theirs = (quantity(runs[name], sizes) for name in (case, other))
        return Found(mine, theirs, mine / theirs)

    return compare


def share_of_product(runs, sizes):
    """Necessary operations of a DPO step per second over the best f32 product that either side makes."""
    best = max(runs["machine"]["float32 product"], runs["torch-products"]["float32"])
    pairs = runs["counts"]["pairs"][: sizes.pairs]
    rate = arithmetic.operations(pairs, arithmetic.SMOLLM2) / runs["dpo"]["train_seconds"] / GIGA
    return Found(rate, best, rate / best)


def against_double_backward(rival):
    """Seconds of a WDPO step; the losses must agree."""

    def compare(runs, sizes):
        mine, theirs = runs["wdpo"], runs[rival]
        agree(mine, theirs, 2e-3)
        ours, others = step(mine, sizes), step(theirs, sizes)
        return Found(ours, others, others / ours)

    return compare


def generation(runs, _):
    """Tokens per second; most greedy tokens must agree (a tie decided otherwise changes what follows)."""
    mine, theirs = runs["generate"], runs["torch-generate"]
    if mine["new_tokens"] != theirs["new_tokens"]:
        raise Failed(f"not as many tokens: {mine['new_tokens']} and {theirs['new_tokens']}")
    same = sum(a[:8] == b[:8] for a, b in zip(mine["tokens"], theirs["tokens"], strict=True))
    if same < 0.8 * len(mine["tokens"]):
        raise Failed(f"only {same} of {len(mine['tokens'])} texts begin alike")
    rate = lambda run: run["new_tokens"] / run["seconds"]
    return Found(rate(mine), rate(theirs), rate(mine) / rate(theirs))


def by_rows(runs, sizes):
    """Microseconds per token of many pairs over that of few, start-up taken off by a run on few pairs."""
    few, many = (runs[f"rows:{count}"] for count in sizes.rows)
    start = runs["rows:32"]
    cost = lambda run: (
        1e6 * (run["process_seconds"] - start["process_seconds"]) / (run["num_tokens"] - start["num_tokens"])
    )
    return Found(cost(many), cost(few), cost(many) / cost(few))


def by_length(runs, sizes):
    """Picoseconds per operation of the longest pairs over that of the shortest, attention taken off at the price that fits all lengths
    best: least squares of `seconds = a * operations but attention's + b * attention's`."""
    measured = [runs[f"length:{length}"] for length in sorted(sizes.lengths)]
    points = [(run["operations"] - run["attention"], run["attention"], run["train_seconds"]) for run in measured]
    of = lambda x, y: sum(point[x] * point[y] for point in points)
    price = (of(0, 0) * of(1, 2) - of(0, 1) * of(0, 2)) / (of(0, 0) * of(1, 1) - of(0, 1) ** 2)
    cost = lambda point: 1e12 * (point[2] - price * point[1]) / point[0]
    return Found(cost(points[-1]), cost(points[0]), cost(points[-1]) / cost(points[0]))


def by_length_with_attention(runs, sizes):
    """Picoseconds per necessary operation (attention's included) of the longest pairs over that of the shortest."""
    short, long = (runs[f"length:{length}"] for length in (min(sizes.lengths), max(sizes.lengths)))
    cost = lambda run: 1e12 * run["train_seconds"] / run["operations"]
    return Found(cost(long), cost(short), cost(long) / cost(short))


def memory(case):
    """Peak memory in GB, compared with nothing."""

    def compare(runs, sizes):
        most = peak(runs[case], sizes)
        return Found(most, None, most)

    return compare


def just(*names):
    """These cases, whatever the sizes."""
    return lambda _: names


def all_lengths(sizes):
    """The cases of all lengths."""
    return tuple(f"length:{length}" for length in sizes.lengths)


ROWS = (
    Row("dpo_f32", "DPO, f32, first epoch, reference included: against TRL", "pairs/s", 6, 8,
        just("dpo", "trl"), speed("dpo", "trl")),
    Row("dpo_cached", "the same, reference cached, each side's pass included once", "pairs/s", 6, 8,
        just("dpo", "trl-cached"), speed("dpo", "trl-cached")),
    Row("dpo_again", "the same, Seakeep's from an earlier run's cache, TRL's pass included once", "pairs/s", 6, 8,
        just("dpo-again", "trl-cached"), speed("dpo-again", "trl-cached")),
    Row("dpo_bf16", "both bf16, reference included", "pairs/s", 5, 9,
        just("dpo-bf16", "trl-bf16"), speed("dpo-bf16", "trl-bf16")),
    Row("memory", "peak memory of DPO over TRL's, f32", "GB", 1 / 4, 1 / 5,
        just("dpo", "trl"), ratio_of(peak, "dpo", "trl"), more_is_better=False),
    Row("product", "DPO step: necessary operations over the best f32 product", "GFLOP/s", 0.65, 0.80,
        just("dpo", "machine", "torch-products"), share_of_product),
    Row("wdpo", "WDPO step over DPO step, reference cached, f32", "s", 2.6, 2.1,
        just("wdpo", "dpo"), ratio_of(step, "wdpo", "dpo"), more_is_better=False),
    Row("wdpo_memory", "WDPO's peak memory over DPO's", "GB", 1.8, 1.5,
        just("wdpo", "dpo"), ratio_of(peak, "wdpo", "dpo"), more_is_better=False),
    Row("wdpo_torch", "WDPO step against double backward in PyTorch, nothing padded", "s", 6, 10,
        just("wdpo", "torch-wdpo"), against_double_backward("torch-wdpo")),
    Row("wdpo_as_trl", "the same, each pair laid out as TRL does", "s", 6, 10,
        just("wdpo", "torch-wdpo-as-trl"), against_double_backward("torch-wdpo-as-trl")),
    Row("lora", "LoRA DPO step over full DPO step", "s", 0.8, 0.7,
        just("lora", "dpo"), ratio_of(step, "lora", "dpo"), more_is_better=False),
    Row("generate", "generation, batched, f32: against transformers", "tokens/s", 3, 6,
        just("generate", "torch-generate"), generation),
    Row("rows", "cost per token: many pairs over few", "us", 1.1, 1.05,
        lambda sizes: ("rows:32", *(f"rows:{count}" for count in sizes.rows)), by_rows, more_is_better=False),
    Row("length", "cost per operation but attention's: long pairs over short", "ps", 1.1, 1.05,
        all_lengths, by_length, more_is_better=False),
    Row("length_whole", "the same, attention and its operations included", "ps", 1.1, 1.05,
        all_lengths, by_length_with_attention, more_is_better=False),
    Row("llama_1b", "Llama-3.2-1B's shape, LoRA DPO, bf16 base: peak memory", "GB", 8, 5,
        just("llama-1b"), memory("llama-1b"), more_is_better=False),
    Row("llama_8b", "Llama-3.1-8B's shape, LoRA WDPO, quantised base: peak memory", "GB", 20, 10,
        just("llama-8b"), memory("llama-8b"), more_is_better=False),
)
