"""SVG drawings by matplotlib whose colours are the page's CSS variables.

matplotlib wants colours when it draws; the page has them only when it is shown, in light or dark.
So each variable is drawn as a stand-in colour, which the finished SVG replaces by its name.
"""

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from itertools import pairwise

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

HEAT_LEVELS = 16
BIT_LEVELS = (2, 3, 4, 5, 6, 8, 16, 32)
FONT_SIZE = 12

_HEAT = tuple(f"heat-{level}" for level in range(HEAT_LEVELS))
_BITS = tuple(f"bits-{bits}" for bits in BIT_LEVELS)
_FILLS = (*_HEAT, *_BITS)
_VARIABLES = ("ink", "muted", "rule", "paper", "blank", "accent")
# Black is no stand-in: SVG's default, which matplotlib leaves out.
_STAND_INS = {
    name: f"#0000{number:02x}"
    for number, name in enumerate((*_VARIABLES, *_FILLS, *(f"on-{fill}" for fill in _FILLS)), 1)
}
_NAMES = {code: name for name, code in _STAND_INS.items()}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, small
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": _STAND_INS["muted"],
    "axes.labelcolor": _STAND_INS["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _STAND_INS["rule"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "text.color": _STAND_INS["ink"],
    "figure.dpi": 72,  # one point is one unit of the SVG is one CSS pixel
    "savefig.dpi": 72,
}


def css(variable: str) -> str:
    """The colour to draw with where the page shall show that CSS variable."""
    return _STAND_INS[variable]


def draw(
    name: str, label: str, size: tuple[int, int], margins: tuple[int, int, int, int],
    paint: Callable[[Axes], None],
) -> str:  # fmt: skip
    """An inline <svg> of `size` CSS pixels, what `paint` draws on its axes.

    `name` is unique in the page, `label` is read to those who do not see, `margins` are the pixels
    left of, below, right of and above the axes.
    """
    (width, height), (left, below, right, above) = size, margins
    with style.context(["default", _STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has its own
        figure = Figure(figsize=(width / 72, height / 72))
        box = (left, below, width - left - right, height - below - above)
        axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        paint(axes)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    opening = (
        f'<svg class="{escape(name.split("-")[0])}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(label)}">'
    )
    return opening + _inline(text.getvalue())


def _inline(svg: str) -> str:
    """The inside and the end of matplotlib's SVG file, fit for an HTML page."""
    svg = re.sub(r"(?s)^.*?<svg[^>]*>\s*", "", svg)
    svg = re.sub(r"(?s)<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every drawing, and never referred to
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(
        r"(fill|stroke): (#0000[0-9a-f]{2})\b",
        lambda found: f"{found[1]}: var(--{_NAMES[found[2]]})" if found[2] in _NAMES else found[0],
        svg,
    )
    return re.sub(r"\s*\n\s*(?=[MLCQz])", "", re.sub(r"\n\s+", "\n", svg))


def theme() -> str:
    """CSS: the scales' colours, and on each the ink that is read best, in light and dark."""
    magma, sea = matplotlib.colormaps["magma"], matplotlib.colormaps["YlGnBu"]
    light, dark = {}, {}
    for level, name in enumerate(_HEAT):  # the further from the paper, the larger the error
        part = level / (HEAT_LEVELS - 1)
        light[name], dark[name] = magma(0.98 - 0.78 * part), magma(0.22 + 0.76 * part)
    for level, name in enumerate(_BITS):
        part = level / (len(_BITS) - 1)
        light[name] = dark[name] = sea(0.12 + 0.86 * part)
    lines = []
    for name in _FILLS:
        lines.append(f"--{name}:light-dark({to_hex(light[name])},{to_hex(dark[name])});")
        lines.append(f"--on-{name}:light-dark({_ink_on(light[name])},{_ink_on(dark[name])});")
    return ":root{" + "".join(lines) + "}"


def _ink_on(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever has more contrast (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def on_line(points: list[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Points every `step` pixels along a line through `points`, ends included."""
    found = list(points[:1])
    for (x0, y0), (x1, y1) in pairwise(points):
        n = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) / step))
        found += [(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(1, n + 1)]
    return found
