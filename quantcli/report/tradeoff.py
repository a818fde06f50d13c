"""The plot of loss against size: which file to take, at one look."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from quantcli.report.drawing import FONT_SIZE, css, draw, on_line

WIDE, NARROW = (740, 400), (340, 360)
MARGINS = (52, 46, 14, 34)
UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
LINE = FONT_SIZE + 4  # height of a label
# Where a label may stand, best first: its centre in units of (half its width, its height).
PLACES = ((1, 0), (1, -0.7), (1, 0.7), (0, -1.1), (0, 1.1), (-1, 0), (-1, -0.7), (-1, 0.7),
          (1, -1.5), (1, 1.5), (-1, 1.5), (-1, -1.5), (0, -2), (0, 2))  # fmt: skip

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One file: what it takes and what it loses, both above 0."""

    label: str
    size_bytes: int
    loss: float
    stderr: float = 0.0


def tradeoff_plots(points: Sequence[Point], loss: str) -> list[str]:
    """The same plot for a wide and for a narrow page; CSS shows one.

    `loss` says what the vertical axis is: "KL divergence".
    """
    best = frontier(points)
    listed = "; ".join(f"{p.label} {p.loss:.3g} at {_scaled(p, points)}" for p in points)
    label = f"{loss} against size, a logarithmic scale against a linear one: {listed}"
    return [
        draw(name, label, size, MARGINS, lambda axes: _paint(axes, points, best, loss))
        for name, size in (("wide-tradeoff", WIDE), ("narrow-tradeoff", NARROW))
    ]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that lose less than every smaller one, smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size_bytes, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def _unit(points: Sequence[Point]) -> tuple[int, str]:
    largest = max(point.size_bytes for point in points)
    return next((scale, name) for scale, name in UNITS if largest >= scale or scale == 1)


def _scaled(point: Point, points: Sequence[Point]) -> str:
    scale, unit = _unit(points)
    return f"{point.size_bytes / scale:.3g} {unit}"


def _paint(axes: Axes, points: Sequence[Point], best: Sequence[Point], loss: str) -> None:
    scale, unit = _unit(points)
    axes.set_yscale("log")
    _limits(axes, points, scale)
    wide = max(p.loss for p in points) > 100 * min(p.loss for p in points)
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(f"Size, {unit}", loc="right")
    axes.set_title(loss, loc="left", x=-0.002, fontsize=FONT_SIZE, color=css("muted"), pad=14)
    places = [(point.size_bytes / scale, point.loss) for point in best]
    axes.plot(*zip(*places, strict=True), color=css("accent"), linewidth=1.5, alpha=0.55, zorder=2)
    for point in points:
        x = point.size_bytes / scale
        if 0 < point.stderr < point.loss:
            spread = (point.loss - point.stderr, point.loss + point.stderr)
            axes.vlines(x, *spread, color=css("accent"), linewidth=1.5, zorder=3)
        inside = css("accent" if point in best else "paper")
        axes.plot(
            x, point.loss, "o", markersize=9, markeredgewidth=1.75, zorder=4,
            markerfacecolor=inside, markeredgecolor=css("accent"),
        )  # fmt: skip
    _label(axes, points, places, scale)


def _limits(axes: Axes, points: Sequence[Point], scale: int) -> None:
    sizes = [point.size_bytes / scale for point in points]
    losses = [point.loss for point in points]
    room = max(0.08 * (max(sizes) - min(sizes)), 0.02 * max(sizes))
    axes.set_xlim(max(0.0, min(sizes) - room), max(sizes) + 2 * room)
    air = max((max(losses) / min(losses)) ** 0.1, 1.3)
    axes.set_ylim(min(losses) / air, max(losses) * air)


def _label(
    axes: Axes, points: Sequence[Point], line: Sequence[tuple[float, float]], scale: int
) -> None:
    """Name each point beside it, where the name covers least of what is drawn already."""
    pixels = axes.transData.transform
    x0, y0, x1, y1 = axes.get_window_extent().extents
    marks = [pixels((point.size_bytes / scale, point.loss)) for point in points]
    drawn = [(x - 7, y - 7, x + 7, y + 7) for x, y in marks]
    along = on_line([tuple(pixels(place)) for place in line], 6)
    drawn += [(x - 1, y - 1, x + 1, y + 1) for x, y in along]
    for point, (x, y) in sorted(zip(points, marks, strict=True), key=lambda pair: tuple(pair[1])):
        half = 0.31 * FONT_SIZE * len(point.label) + 3
        boxes = [_box(x + dx * (half + 9), y + dy * LINE, half) for dx, dy in PLACES]
        box = min(boxes, key=lambda box: sum(_shared(box, other) for other in drawn)
                  + 9 * (_area(box) - _shared(box, (x0, y0, x1, y1))))  # fmt: skip
        drawn.append(box)
        middle = ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y)
        axes.annotate(
            point.label,
            (point.size_bytes / scale, point.loss),
            middle,
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            annotation_clip=False,
            zorder=5,
        )


def _box(x: float, y: float, half: float) -> Box:
    return (x - half, y - LINE / 2, x + half, y + LINE / 2)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(one: Box, other: Box) -> float:
    """The area that both boxes cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
