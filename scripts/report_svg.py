"""Charts of a report as one SVG file that stands alone, for documents.

    python3 scripts/report_svg.py simulation/report.html docs/evidence/theory.svg error0 error1

The charts are named as in the page (the start of the ids of their titles). The page's style sheet goes with them, so
that they follow light and dark mode, and its legend stands below them.
"""

import re
import sys
from pathlib import Path

WIDTH, HEIGHT, LINE = 420, 300, 18


def plain(html):
    return re.sub("<[^>]*>", "", html)


def main(page, out, *names):
    html = Path(page).read_text()
    style = re.search(r"<style>\n(.*?)</style>", html, re.S).group(1)
    parts, legend = [], ""
    for at, name in enumerate(names):
        found = re.search(rf'<svg viewBox="[^"]*" role="img" aria-labelledby="{name}-t .*?</svg>', html, re.S)
        if found is None:
            sys.exit(f"{page} has no chart {name}")
        chart = found.group().replace("<svg ", f'<svg x="{at * WIDTH}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        parts.append(chart)
        legend = legend or html[: found.start()].rsplit('<ul class="legend">', 1)[1].split("</ul>")[0]
    items = re.findall(r"<li><svg [^>]*>(.*?)</svg>(.*?)</li>", legend, re.S)
    for at, (mark, label) in enumerate(items):
        x, y = 20 + at % 4 * WIDTH * len(names) / 4, HEIGHT + 8 + at // 4 * LINE
        parts.append(f'<g transform="translate({x:.0f} {y})">{mark}<text x="42" y="10">{plain(label)}</text></g>')
    height = HEIGHT + 14 + -(-len(items) // 4) * LINE
    width = WIDTH * len(names)
    Path(out).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<style>{style}</style>"
        f'<rect width="{width}" height="{height}" style="fill:var(--bg)"/>' + "".join(parts) + "</svg>\n"
    )


main(*sys.argv[1:])
