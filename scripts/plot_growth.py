#!/usr/bin/env python3
"""Draws the figures of `scripts/bench-store growth` as an SVG: rate, CPU, memory and bytes an event over the events in the store.

  scripts/plot_growth.py FILE.json FILE.svg
"""

import json
import math
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 330, 190, 58, 66, 22, 60
# Both are readable on white and on black.
COLOURS = {"SQLite": "#2f81f7", "PostgreSQL": "#d97706"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLE = """
text{fill:#57606a}.title{font-weight:bold;fill:#24292f}.grid{stroke:#8b949e;stroke-opacity:.3}
@media(prefers-color-scheme:dark){text{fill:#9aa4af}.title{fill:#e6edf3}}
"""


def points(data, store, value):
    """Pairs of the events in the store and a value, where it was measured."""
    return [(mark["events"], value(mark["stores"][store])) for mark in data["marks"] if store in mark["stores"]]


def nice_step(greatest):
    """A step of 1, 2 or 5 times a power of ten of which three to five reach the greatest value."""
    power = 10 ** math.floor(math.log10(greatest / 3))
    return next(factor * power for factor in (1, 2, 5, 10) if greatest / (factor * power) <= 5)


def number(value):
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


class Panel:
    def __init__(self, place, title, low, high, greatest):
        self.x0 = LEFT + place % 2 * (WIDTH + LEFT + RIGHT)
        self.y0 = TOP + place // 2 * (HEIGHT + TOP)
        self.low, self.high = low, high
        self.step = nice_step(greatest)
        self.greatest = math.ceil(greatest / self.step) * self.step
        self.out = [f'<text class="title" x="{self.x0}" y="{self.y0 - 14}">{title}</text>']
        for line in range(round(self.greatest / self.step) + 1):
            y = self.y(line * self.step)
            self.out.append(f'<line class="grid" x1="{self.x0}" x2="{self.x0 + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
                            f'<text x="{self.x0 - 7}" y="{y + 4:.1f}" text-anchor="end">{number(line * self.step)}</text>')
        for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
            x = self.x(10 ** power)
            self.out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.y0}" y2="{self.y0 + HEIGHT}"/>'
                            f'<text x="{x:.1f}" y="{self.y0 + HEIGHT + 18}" text-anchor="middle">10{str(power).translate(SUPERSCRIPT)}</text>')

    def x(self, events):
        return self.x0 + (math.log10(events) - self.low) / (self.high - self.low) * WIDTH

    def y(self, value):
        return self.y0 + HEIGHT - value / self.greatest * HEIGHT

    def line(self, store, pairs, dashed=False):
        path = " L".join(f"{self.x(events):.1f} {self.y(value):.1f}" for events, value in pairs)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.out.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[store]}" stroke-width="2"{dash}/>')
        for events, value in pairs:
            self.out.append(mark(store, self.x(events), self.y(value)))

    def band(self, store, value, share):
        """The values that differ from this one by the share at most."""
        top, bottom = self.y(min(value * (1 + share), self.greatest)), self.y(value * (1 - share))
        self.out.append(f'<rect x="{self.x0}" y="{top:.1f}" width="{WIDTH}" height="{bottom - top:.1f}" fill="{COLOURS[store]}" fill-opacity=".12"/>')


def mark(store, x, y):
    """Shapes tell the stores apart, too."""
    if store == "SQLite":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[store]}"/>'
    return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{COLOURS[store]}"/>'


def draw(data):
    stores = [store for store in COLOURS if points(data, store, lambda figures: 0)]
    events = [mark["events"] for mark in data["marks"]]
    low, high = math.floor(math.log10(min(events)) + 1e-9), math.log10(max(events))
    high = max(high, low + 1)
    total = lambda figures: sum(figures["cpu_us"].values())
    panels = [
        ("Thousand events/s", lambda figures: figures["events_per_s"] / 1000),
        ("CPU µs an event (shaded: ±15 % of the first)", total),
        ("Peak memory of dashi, MiB", lambda figures: figures["peak_mib"]["dashi"]),
        ("Bytes an event in the store", lambda figures: figures["bytes_per_event"]),
    ]
    width, height = 2 * (LEFT + WIDTH + RIGHT), 2 * (TOP + HEIGHT) + BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           f'font-family="system-ui,sans-serif" font-size="12"><style>{STYLE}</style>']
    for place, (title, value) in enumerate(panels):
        greatest = max(y for store in stores for _, y in points(data, store, value)) * 1.1
        panel = Panel(place, title, low, high, greatest)
        for store in stores:
            pairs = points(data, store, value)
            if value is total:
                panel.band(store, pairs[0][1], 0.15)
            panel.line(store, pairs)
            if value is total and any(figures for _, figures in points(data, store, lambda figures: figures["cpu_us"].get("server", 0))):
                panel.line(store, points(data, store, lambda figures: figures["cpu_us"]["dashi"]), dashed=True)
        out += panel.out
    y = height - 18
    x = LEFT
    for store in stores:
        out.append(f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" stroke="{COLOURS[store]}" stroke-width="2"/>{mark(store, x + 12, y)}'
                   f'<text x="{x + 31}" y="{y + 4}">{store}{" (dashed: dashi without the server)" if store == "PostgreSQL" else ""}</text>')
        x += 110
    per = data["about"]["events_per_session"]
    each = "one of a new session each" if per == 1 else f"a new session every {per}"
    out.append(f'<text x="{x + 230}" y="{y + 4}">x: events in the store, {each}</text>')
    return "\n".join(out) + "\n</svg>\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())))
