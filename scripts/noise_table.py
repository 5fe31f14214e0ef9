#!/usr/bin/env python3
"""The table of docs/evidence/noise.md and its picture, from the records that `seakeep run recipes/noise.toml` leaves.

    python3 scripts/noise_table.py runs/noise docs/evidence/noise.svg

Accuracies, intervals and differences from DPO at equal divergence are those of accuracy_table.py; "from DPO" are differences
from DPO at beta 0.1 on the same pairs. Needs Python's standard library only.
"""

import sys
from pathlib import Path

from accuracy_table import Part, read, table, told

RATES = (0, 20, 40)
BASE = "dpo beta 0.1"


def main():
    """Prints the table, draws the picture."""
    run, picture = Path(sys.argv[1]), Path(sys.argv[2])
    sweeps = {rate: read(run / f"sweep-{rate}") for rate in RATES}
    parts = {rate: Part(labels, "clean", None) for rate, labels in sweeps.items()}
    level = lambda rate, label: parts[rate].interval(lambda d: d[label])
    labels = sorted(sweeps[40], key=lambda label: -level(40, label)[0])

    def cells(label):
        yield from (told(level(rate, label)) for rate in RATES)
        for rate in RATES:
            yield "" if label == BASE else firm(parts[rate].interval(lambda d: d[label] - d[BASE]))
        yield from (firm(parts[rate].over_dpo(label)) for rate in RATES)
        yield " / ".join(f"{parts[rate].kl[label]:.3f}" for rate in RATES)

    head = [f"{rate}%" for rate in RATES]
    head = ["method", *head, *(f"{h}, from DPO" for h in head), *(f"{h}, equal KL" for h in head), "KL, nats/token"]
    print(table(head, labels, cells))
    picture.write_text(drawn({label: {rate: level(rate, label) for rate in RATES} for label in labels}, parts[0].pairs))


def firm(interval):
    """A difference, in bold where its interval leaves out 0."""
    apart = interval is not None and (interval[1] > 0 or interval[2] < 0)
    return f"**{told(interval)}**" if apart else told(interval)


def drawn(points, pairs):
    """Accuracy by method, a mark of its own shape for each rate, with its interval."""
    width, left, top, row = 760, 210, 60, 24
    height = top + row * len(points) + 50
    x = lambda value: left + (width - left - 20) * (value - 0.3) / 0.7
    look = {0: ("#1b4965", "circle"), 20: ("#2a9d8f", "square"), 40: ("#c1440e", "triangle")}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img">',
        "<title>Accuracy on clean pairs by method, with 0, 20 and 40% of the training labels turned</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for tick in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        dash = ' stroke-dasharray="4 3"' if tick == 0.5 else ""
        out.append(f'<path d="M{x(tick):.1f} {top - 8}V{height - 40}" stroke="#d5d5d5"{dash}/>')
        out.append(f'<text x="{x(tick):.1f}" y="{height - 24}" text-anchor="middle" fill="#333">{tick:.1f}</text>')
    out.append(f'<text x="{x(0.65):.1f}" y="{height - 6}" text-anchor="middle" fill="#333">accuracy on {pairs} clean pairs, 95% intervals</text>')
    for i, rate in enumerate(RATES):
        out.append(mark(left + 20 + 130 * i, 24, *look[rate]))
        out.append(f'<text x="{left + 32 + 130 * i}" y="28" fill="#333">{rate}% turned</text>')
    for i, (label, accuracy) in enumerate(points.items()):
        y = top + row * i + 6
        out.append(f'<text x="{left - 14}" y="{y + 4}" text-anchor="end" fill="#111">{label}</text>')
        for k, rate in enumerate(RATES):
            mean, low, high = accuracy[rate]
            at = y - 6 + 6 * k
            out.append(f'<path d="M{x(low):.1f} {at}H{x(high):.1f}" stroke="{look[rate][0]}" stroke-width="1.2"/>')
            out.append(mark(x(mean), at, *look[rate]))
    return "\n".join(out + ["</svg>"]) + "\n"


def mark(x, y, colour, shape):
    """A small mark."""
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y}" r="3.4" fill="{colour}"/>'
    if shape == "square":
        return f'<rect x="{x - 3:.1f}" y="{y - 3}" width="6" height="6" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 4}l4 7h-8z" fill="{colour}"/>'


if __name__ == "__main__":
    main()
