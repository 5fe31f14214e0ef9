"""What a training step needs, what this machine can do at best, and what the kernels reach.

    python3 scripts/bench/roofline.py                    operations and bytes alone
    python3 scripts/bench/roofline.py --bench --write    runs the benches (ten minutes), fills docs/PERFORMANCE.md

Each part of a step has its floating-point operations and the bytes that it must read and write at least once; its
floor is the longer of the two times at the ceilings that `seakeep inspect machine` measures. What was reached is the
sum of the medians that criterion found, as often as the step calls each kernel. Run it on a machine that does nothing
else.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import arithmetic
from arithmetic import SMOLLM2 as MODEL

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/PERFORMANCE.md"
FLOAT = 4

PAIR = (134, 45, 45)
"""The average of the first 64 HH pairs: tokens of prompt, chosen and rejected."""
PAIRS = 4
T = PAIRS * arithmetic.positions(PAIR)
N = PAIRS * arithmetic.predictions(PAIR)
WIDE = MODEL.heads * MODEL.head
NARROW = MODEL.kv * MODEL.head
MAPS = {
    (MODEL.hidden, WIDE): 2,
    (MODEL.hidden, NARROW): 2,
    (MODEL.hidden, MODEL.intermediate): 2,
    (MODEL.intermediate, MODEL.hidden): 1,
}
"""{(inputs, outputs): how many of a layer's maps have this shape}."""
PARAMETERS = MODEL.linear + MODEL.vocab * MODEL.hidden + (2 * MODEL.layers + 1) * MODEL.hidden


@dataclass(frozen=True)
class Part:
    """A part of a step."""

    name: str
    operations: float
    bytes: float
    benches: tuple = ()
    """(criterion's group/name, calls in a step); none where there is no bench."""


# ---------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------


def linear(name, kernel, products=1):
    """A product of every linear layer, `products` times: both operands read, the result written."""
    floats = sum(count * (i * o + T * (i + o)) for (i, o), count in MAPS.items())
    benches = tuple((f"linear/{kernel} {i}x{o}", products * count * MODEL.layers) for (i, o), count in MAPS.items())
    return Part(name, products * 2 * T * MODEL.linear, products * FLOAT * MODEL.layers * floats, benches)


def attention(name, kernel, products, buffers):
    """Attention's products; `buffers` of the queries' size and two thirds of that for keys and values."""
    one = arithmetic.attention(PAIR, MODEL, 1) / 2 * PAIRS
    floats = buffers * T * (WIDE + 2 * NARROW)
    return Part(name, products * one, FLOAT * MODEL.layers * floats, ((f"attention/{kernel}", MODEL.layers),))


HEAD = MODEL.hidden * MODEL.vocab
PROJECTION = 2 * N * HEAD
"""Operations of one product of the vocabulary projection."""


def projection(name, kernel, products):
    """The vocabulary projection; its weight is read once for each product."""
    return Part(name, products * PROJECTION, products * FLOAT * HEAD, ((f"projection/{kernel}", 1),))


def moved(name, floats, *benches):
    """What only memory limits."""
    return Part(name, 0, FLOAT * floats, benches)


NORMS = 2 * MODEL.layers + 1
ROPE = MODEL.layers * (WIDE + NARROW) / WIDE

FORWARD = (
    linear("linear layers", "forward"),
    attention("attention", "forward", 2, 1),
    projection("vocabulary projection, and what its inputs' gradient will be made of", "forward with gradient", 2),
    moved("norms", NORMS * 2 * T * MODEL.hidden, ("rmsnorm/forward", NORMS)),
    moved("gated silu", MODEL.layers * 3 * T * MODEL.intermediate, ("gated silu/forward", MODEL.layers)),
    moved("rotary embedding", ROPE * 2 * T * WIDE, ("rope/forward", ROPE)),
)
REFERENCE = tuple(
    projection("vocabulary projection", "forward", 1) if part.name.startswith("vocabulary") else part for part in FORWARD
)
BACKWARD = (
    linear("linear layers, inputs", "backward_input"),
    linear("linear layers, weights", "backward_weight"),
    attention("attention (scores again)", "backward", 5, 3),
    projection("vocabulary projection, weight", "backward by weight, kept", 1),
    moved("norms", NORMS * 3 * T * MODEL.hidden, ("rmsnorm/backward", NORMS)),
    moved("gated silu", MODEL.layers * 5 * T * MODEL.intermediate, ("gated silu/backward", MODEL.layers)),
    moved("rotary embedding", ROPE * 2 * T * WIDE, ("rope/forward", ROPE)),
)
OPTIMIZER = (
    moved("their norm", PARAMETERS, ("optimizer/norm", 1)),
    moved("AdamW", 7 * PARAMETERS, ("optimizer/adamw", 1)),
)
SECOND = (
    linear("first backward pass: linear layers, inputs", "backward_input"),
    attention("first backward pass: attention (scores again)", "backward", 5, 3),
    linear("tangent: linear layers", "forward"),
    attention("tangent: attention (scores again)", "tangent", 5, 2),
    linear("curvature: linear layers, weights", "backward_weight"),
    attention("curvature: attention (scores and tangents again)", "curvature", 10, 5),
    # In place of DPO's backward pass of the projection, which is counted above.
    Part("curvature: vocabulary projection, four products more", 4 * PROJECTION, 4 * FLOAT * HEAD,
         (("projection/backward_with_curvature", 1), ("projection/backward by weight, kept", -1))),
    moved("norms, three passes", NORMS * 10 * T * MODEL.hidden,
          *((f"rmsnorm/{kernel}", NORMS) for kernel in ("backward", "tangent", "curvature"))),
    moved("gated silu, three passes", MODEL.layers * 17 * T * MODEL.intermediate,
          *((f"gated silu/{kernel}", MODEL.layers) for kernel in ("backward", "tangent", "curvature"))),
    moved("rotary embedding, three passes", 3 * ROPE * 2 * T * WIDE, ("rope/forward", 3 * ROPE)),
)
STAGES = {
    "forward": FORWARD,
    "backward": BACKWARD,
    "optimizer": OPTIMIZER,
    "what WDPO adds": SECOND,
}


# ---------------------------------------------------------------------------------------------
# What was measured
# ---------------------------------------------------------------------------------------------


def ceilings(seakeep):
    """(operations, bytes) per second, and what the program said."""
    said = subprocess.run([str(seakeep), "inspect", "machine"], check=True, capture_output=True, text=True).stdout
    number = lambda name: float(re.search(rf"^{name} +([0-9.]+)", said, re.MULTILINE)[1]) * 1e9
    return (number("float32 product"), number("memory, updating")), said


def measured(folder):
    """Of all that criterion has measured: {group/name: seconds}, and {group/name: (rate, its unit)}."""
    times, rates = {}, {}
    for path in folder.glob("*/*/new/estimates.json"):
        about = json.loads((path.parent / "benchmark.json").read_text())
        name = f"{about['group_id']}/{about['function_id']}"
        times[name] = json.loads(path.read_text())["median"]["point_estimate"] / 1e9
        ((kind, amount),) = about["throughput"].items()
        rates[name] = (amount / times[name], "GB/s" if kind == "Bytes" else "GFLOP/s")
    return times, rates


def reached(part, times):
    """Seconds of a part, or None where a bench is missing."""
    if not part.benches or any(name not in times for name, _ in part.benches):
        return None
    return sum(calls * times[name] for name, calls in part.benches)


# ---------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------


def table(rates, times):
    """Every part, then sums."""
    lines = ["| part | GFLOP | GB | floor, ms | reached, ms | share |", "|---|---:|---:|---:|---:|---:|"]
    for stage, parts in STAGES.items():
        lines.append(f"| **{stage}** | | | | | |")
        lines += [line(part.name, [part], rates, times) for part in parts]
    step = (*FORWARD, *BACKWARD, *OPTIMIZER)
    lines.append("| **sums** | | | | | |")
    lines += [
        line("the reference's pass", REFERENCE, rates, times),
        line("DPO step", step, rates, times),
        line("WDPO step", (*step, *SECOND), rates, times),
    ]
    return "\n".join(lines)


def line(name, parts, rates, times):
    """A line for some parts together."""
    floor = sum(max(part.operations / rates[0], part.bytes / rates[1]) for part in parts) if rates else None
    found = [reached(part, times) for part in parts]
    total = None if None in found else sum(found)
    work = f"{sum(p.operations for p in parts) / 1e9:.1f} | {sum(p.bytes for p in parts) / 1e9:.2f}"
    share = "-" if floor is None or total is None else f"{floor / total:.0%}"
    return f"| {name} | {work} | {milliseconds(floor)} | {milliseconds(total)} | {share} |"


def milliseconds(seconds):
    """Or a dash."""
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def kernels(rates):
    """The rates of kernels that the parts of a step leave out."""
    parts = {name for parts in STAGES.values() for part in parts for name, _ in part.benches}
    lines = ["| kernel besides | rate |", "|---|---:|"]
    for name, (rate, unit) in sorted(rates.items()):
        if name not in parts and not name.endswith(" scalar"):
            lines.append(f"| {name.replace('/', ', ')} | {rate / 1e9:.1f} {unit} |")
    return "\n".join(lines)


def write(text):
    """Puts the tables between the document's marks."""
    document = DOCUMENT.read_text()
    begin, end = "<!-- measured by scripts/bench/roofline.py -->", "<!-- end -->"
    head, rest = document.split(begin)
    _, tail = rest.split(end)
    DOCUMENT.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}")


def main():
    """Measures if asked to, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seakeep", type=Path, default=ROOT / "target/release/seakeep", help="the built program")
    parser.add_argument("--bench", action="store_true", help="run the benches first")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/PERFORMANCE.md")
    options = parser.parse_args()
    if options.write and not options.bench:
        parser.error("--write needs --bench: the document's numbers would become dashes")
    text = table(None, {})
    if options.bench:
        subprocess.run(["cargo", "bench", "-p", "seakeep-kernels", "-p", "seakeep"], check=True, cwd=ROOT)
        best, said = ceilings(options.seakeep)
        times, rates = measured(ROOT / "target/criterion")
        text = f"```\n{said}```\n\n{table(best, times)}\n\n{kernels(rates)}"
    print(text)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
