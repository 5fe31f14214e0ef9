"""Cases for `seakeep objective`: writing them as goldens, and comparing the built program with them.

A case is one global batch: settings, input rows and what is expected of them. `expect` is None where
the reference overflows or hangs on a near tie; then the program's answer only has to be finite.
"""

import argparse
import json
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common

GOLDEN = Path(__file__).resolve().parents[2] / "crates/seakeep-cli/tests/golden"

TOLERANCE = 1e-6
"""Largest relative error allowed."""

FLOOR = 1e-14
"""Errors below this are rounding: TRL's `1 - sigmoid(x)`, and exo_pair's sum of terms that cancel, are exact
only to the last bit of 1, times the slope of an f-divergence's score."""

BATCH_FLOOR = 1e-12
"""The same relative to the batch's largest value: log-probs of 1e4 nats are known to 1e-12, and a
derivative that is a difference (of a square, of two branches) inherits that."""


@dataclass
class Case:
    """One global batch. `label` names the line of the report that it counts towards."""

    label: str
    name: str
    settings: dict
    rows: list
    expect: dict | None


# ---------------------------------------------------------------------------------------------
# Goldens
# ---------------------------------------------------------------------------------------------


def as_text(settings):
    """Settings as the command line takes them."""
    return {key: value if isinstance(value, str) else repr(value) for key, value in settings.items()}


def write_goldens(name, cases, limit=250_000):
    """Write `name` for the Rust tests: all cases with a finite reference."""
    made = [
        {"name": case.name, "settings": as_text(case.settings), "rows": case.rows, "expect": case.expect}
        for case in cases
        if case.expect is not None
    ]
    GOLDEN.mkdir(parents=True, exist_ok=True)
    path = GOLDEN / name
    lines = [json.dumps(common.rounded(case, digits=12), separators=(",", ":")) for case in made]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    size = path.stat().st_size
    print(f"{path.name}: {len(made)} cases, {sum(len(case['rows']) for case in made)} rows, {size / 1000:.0f} kB")
    assert size < limit, size


# ---------------------------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------------------------


def run_program(program, settings, cases):
    """The program's batches for cases of the same settings, in the cases' order."""
    flags = [part for key, value in as_text(settings).items() for part in (f"--{key}", value)]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "rows.jsonl"), Path(folder, "out.json")
        rows = [json.dumps(row | {"batch": i}) for i, case in enumerate(cases) for row in case.rows]
        source.write_text("\n".join(rows) + "\n")
        command = [program, "objective", *flags, "--input", str(source), "--output", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()}")
        answered = {str(batch["batch"]): batch for batch in json.loads(target.read_text())["batches"]}
    return [answered[str(i)] for i in range(len(cases))]


# ---------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------


def flat(value):
    """A number or a list of numbers as a list; null (a number that JSON cannot hold) as nan."""
    values = value if isinstance(value, list) else [value]
    return [math.nan if number is None else float(number) for number in values]


def field(rows, name):
    """The numbers under `name` in all `rows` that expect it, with the row's index."""
    return [(i, number) for i, row in enumerate(rows) if name in row for number in flat(row[name])]


def finite(answer):
    """Whether the loss and every derivative and weight of an answered batch is finite."""
    rows = [number for row in answer["rows"] for value in row.values() for number in flat(value)]
    return all(math.isfinite(number) for number in flat(answer["loss"]) + rows)


def relative_error(ours, reference, largest):
    """|ours - reference| over |reference| and what rounding allows; infinite if ours is not finite."""
    if not math.isfinite(ours):
        return math.inf
    return abs(ours - reference) / (abs(reference) + (FLOOR + BATCH_FLOOR * largest) / TOLERANCE)


def errors(case, answer):
    """[(error, what, ours, reference)]: the worst of each field of a batch."""
    if case.expect is None:
        return [(0.0 if finite(answer) else math.inf, "not finite", math.nan, math.nan)]
    loss, reference = flat(answer["loss"])[0], case.expect["loss"]
    made = [(relative_error(loss, reference, 0.0), "loss", loss, reference)]
    for name in sorted({key for row in case.expect["rows"] for key in row}):
        wanted = field(case.expect["rows"], name)
        ours = field([{name: row[name]} if name in asked else {}
                      for row, asked in zip(answer["rows"], case.expect["rows"])], name)
        assert len(ours) == len(wanted), (case.name, name)
        largest = max(abs(number) for _, number in wanted)
        pairs = [(relative_error(a, b, largest), f"row {i} {name}", a, b) for (i, b), (_, a) in zip(wanted, ours)]
        made.append(max(pairs))
    return made


def kind_of(what):
    """Which of a line's three figures an error counts towards."""
    return what if what == "loss" else "weight" if what.endswith("weight") else "derivative"


def report(label, judged, shown=3):
    """Print one line for the (case, errors) of a label, and its worst failures; True if it passes."""
    found = [(case, *item) for case, items in judged for item in items]
    worst = {"loss": 0.0, "derivative": 0.0, "weight": 0.0}
    for _, error, what, *_ in found:
        worst[kind_of(what)] = max(worst[kind_of(what)], error)
    failures = sorted((item for item in found if item[1] > TOLERANCE), key=lambda item: -item[1])
    cases = [case for case, _ in judged]
    unknown = sum(case.expect is None for case in cases)
    counts = f"{len(cases)} batches, {sum(len(case.rows) for case in cases)} rows"
    counts += f", {unknown} batches only finite" if unknown else ""
    figures = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
    print(f"{'FAIL' if failures else 'ok  '} {label}: {counts}; worst {figures}")
    for case, error, what, ours, wanted in failures[:shown]:
        print(f"     {case.name} {as_text(case.settings)}")
        print(f"       {what}: {ours!r}, reference {wanted!r} ({error:.1e})")
    if failures:
        print(f"     {len(failures)} of {len(found)} comparisons failed")
    return not failures


def compare(program, cases):
    """Run every case through the program, print one line a label; True if all pass."""
    by_settings, judged = {}, {}
    for case in cases:
        by_settings.setdefault(json.dumps(as_text(case.settings), sort_keys=True), []).append(case)
    for same in by_settings.values():
        for case, answer in zip(same, run_program(program, same[0].settings, same)):
            judged.setdefault(case.label, []).append((case, errors(case, answer)))
    return all([report(label, rows) for label, rows in judged.items()])


# ---------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------


def main(description, goldens, fresh):
    """`--write` writes goldens() = (file name, cases); `--seakeep PATH` compares with fresh(seed)."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write the goldens of the Rust tests")
    mode.add_argument("--seakeep", metavar="PATH", help="compare the built program with fresh random examples")
    parser.add_argument("--seed", type=int, default=0, help="of the fresh examples (default 0)")
    arguments = parser.parse_args()
    if arguments.write:
        write_goldens(*goldens())
    elif not compare(arguments.seakeep, fresh(arguments.seed)):
        raise SystemExit(1)
