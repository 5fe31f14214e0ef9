"""Seakeep beside TRL, PyTorch and transformers, on one machine in one run: a table of ratios.

    python3 scripts/bench/against_trl.py                     everything: an hour or more
    python3 scripts/bench/against_trl.py --only dpo_f32,wdpo
    python3 scripts/bench/against_trl.py --quick             does every row work? numbers that mean nothing

Makes its own virtual environment with the rivals (once). Every case is a process of its own; after a step by each side
that is not counted, a repetition runs each selected case once, in turn, so that both sides of a ratio see the same
machine; shown are medians over repetitions and, of ratios, the range. Times leave out start-up, loading and saving;
memory is the largest resident set. Model: SmolLM2-135M-Instruct in f32, the same file for both sides; data: the first
HH pairs, in the file's order, with the tokens of TRL. Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cases import QUICK, Cases, Sizes, print_progress
from rows import ROWS
from runs import PACKAGES, Bench, Failed, Unavailable, ensure_venv

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seakeep-bench"
MODEL = "smollm2-135m-instruct.gguf"
LARGE = ("llama_1b", "llama_8b")
"""Rows that need gigabytes of memory and disk; --quick leaves them out unless they are named."""


# ---------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------


def measure(cases, rows, sizes, repetitions):
    """{case: [what each repetition gave, or {"reason": why it gave nothing}]}; Ctrl-C ends it with what there is."""
    names = list(dict.fromkeys(case for row in rows for case in row.cases(sizes)))
    found = {name: [] for name in names}
    try:
        for repetition in range(repetitions):
            for name in names:
                # What failed once is not tried again.
                known = found[name] and "reason" in found[name][-1]
                found[name].append(found[name][-1] if known else attempt(cases, name, f"{repetition + 1}/{repetitions}"))
    except KeyboardInterrupt:
        print_progress("interrupted: this is what was measured before")
    return found


def attempt(cases, name, where):
    """One case once."""
    begun = time.monotonic()
    try:
        result = cases.run(name)
    except Unavailable as error:
        result = {"reason": f"not available: {error}"}
    except Failed as error:
        result = {"reason": str(error)}
    print_progress(f"{where} {name}: {result.get('reason', 'done')} ({time.monotonic() - begun:.1f} s)")
    return result


def summarise(row, found, counts, sizes):
    """A row's medians and the range of its ratio, or why there are none."""
    made = []
    for runs in zip(*(found[case] for case in row.cases(sizes))):
        by_case = dict(zip(row.cases(sizes), runs))
        reasons = [f"{case}: {run['reason']}" for case, run in by_case.items() if "reason" in run]
        if reasons:
            return {"reason": "; ".join(reasons)}
        try:
            made.append(row.compare({**by_case, "counts": counts}, sizes))
        except Failed as error:
            return {"reason": str(error)}
        except ZeroDivisionError:
            return {"reason": "too short to be timed"}
    if not made:
        return {"reason": "not measured"}
    ratios = [found.ratio for found in made]
    middle = lambda values: statistics.median(values) if None not in values else None
    return {
        "seakeep": middle([found.seakeep for found in made]),
        "other": middle([found.other for found in made]),
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "verdict": row.verdict(statistics.median(ratios)),
    }


# ---------------------------------------------------------------------------------------------
# Showing
# ---------------------------------------------------------------------------------------------


def number(value):
    """Three digits that count; a dash for nothing."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(rows, summaries):
    """The table as Markdown, aligned to be read as it is."""
    lines = [("", "Seakeep", "other", "", "ratio", "range", "floor", "aim", "")]
    for row in rows:
        of = summaries[row.name]
        sign = "" if row.more_is_better else "<= "
        targets = (f"{sign}{number(row.floor)}", f"{sign}{number(row.aim)}")
        if "reason" in of:
            lines.append((row.title, "-", "-", row.unit, "-", "-", *targets, of["reason"]))
            continue
        spread = "-".join(map(number, of["range"]))
        found = (number(of["seakeep"]), number(of["other"]), row.unit, number(of["ratio"]), spread)
        lines.append((row.title, *found, *targets, of["verdict"]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    shown = ["| " + " | ".join([*map(str.ljust, line[:-1], widths), line[-1]]) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|---|"
    return "\n".join([shown[0], rule, *shown[1:]])


def describe(options, sizes):
    """What was run, in lines below the table."""
    subset = f"the first {sizes.pairs} pairs ({sizes.steps} steps of {sizes.batch}), max_length {sizes.max_length}"
    return [
        f"{options.repetitions} repetitions, {options.threads} threads, {processor()}; {', '.join(PACKAGES[:3])}",
        f"training on {subset}; generation {sizes.prompts} prompts x {sizes.new_tokens} tokens",
        f"many and few pairs: {sizes.rows[1]:,} and {sizes.rows[0]:,}; "
        f"long and short: {max(sizes.lengths):,} and {min(sizes.lengths)} tokens",
    ]


def processor():
    """Its name, as Linux has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated rows (default: all)")
    parser.add_argument("--list", action="store_true", help="print the rows and their names, and stop")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, one repetition")
    parser.add_argument("--full", action="store_true", help="all 16 steps of 64 pairs (default: the first 4, since TRL is slow)")
    parser.add_argument("--steps", type=int, help="steps of training")
    parser.add_argument("--repetitions", type=int, help="default: 3")
    parser.add_argument("--seakeep", type=Path, default=ROOT / "target/release/seakeep", help="the built program")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="where scripts/fetch-smollm2.sh put the model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="the shared data directory")
    parser.add_argument("--venv", type=Path, default=CACHE / "venv", help="the virtual environment, made if absent")
    parser.add_argument("--work", type=Path, default=CACHE / "work", help="inputs that are made once (some GB), and scratch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either side")
    parser.add_argument("--json", type=Path, default=Path("against_trl.json"), help="everything measured [against_trl.json]")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    names = [row.name for row in ROWS]
    if options.only:
        options.only = options.only.split(",")
        if unknown := sorted(set(options.only) - set(names)):
            parser.error(f"no rows {', '.join(unknown)}; there are {', '.join(names)}")
    for path in (options.seakeep, options.data, options.models / MODEL):
        if not options.list and not path.exists():
            parser.error(f"{path} does not exist")
    return options


def main():
    """Measures and prints."""
    options = parse_arguments()
    if options.list:
        print("\n".join(f"{row.name:12} {row.title}" for row in ROWS))
        return
    wanted = options.only or [row.name for row in ROWS if not (options.quick and row.name in LARGE)]
    rows = [row for row in ROWS if row.name in wanted]
    sizes = QUICK if options.quick else Sizes(steps=16) if options.full else Sizes()
    sizes = replace(sizes, steps=options.steps) if options.steps else sizes
    python = ensure_venv(options.venv.absolute())
    bench = Bench(options.seakeep.absolute(), python, options.work.absolute(), options.threads)
    cases = Cases(bench, sizes, options.models.absolute() / MODEL, options.data.absolute())
    if not options.quick:
        attempt(cases, "warm_up", "not counted:")
    found = measure(cases, rows, sizes, options.repetitions)
    summaries = {row.name: summarise(row, found, cases.counts, sizes) for row in rows}
    lines = ["--quick: these numbers mean nothing"] * options.quick + describe(options, sizes)
    everything = {"about": lines, "sizes": asdict(sizes), "rows": summaries, "cases": found}
    options.json.write_text(json.dumps(everything, indent=1) + "\n")
    print(table(rows, summaries))
    print("\n" + "\n".join(lines))
    print(f"{options.json}: every run's numbers")


if __name__ == "__main__":
    main()
