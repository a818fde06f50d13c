"""Maps of a model, transformer blocks across and tensor roles down: error, and tensor type."""

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from quantcli.report.drawing import BIT_LEVELS, FONT_SIZE, HEAT_LEVELS, css, draw
from quantcli.report.model import Output, TensorReport
from quantcli.report.words import percent
from quantcli.tensor_types import stored

LEFT, TOP, ROW, GAP = 104, 22, 24, 8  # pixels: names, block numbers, height of a row, extra space
NARROWEST, WIDEST = 10, 60  # pixels: limits of a cell's width
HALF, WHOLE = 420, 940  # pixels for all cells: two maps beside each other, or one below the other
LETTER = 0.62 * FONT_SIZE
LABELLED = 36  # pixels: a cell with its number in it
DEEPEST = 128  # how many times the largest error is above the scale's lower end, at most
USUAL = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Grid:
    """The matrices of a model by place. Vectors (norms, biases) have none: they are not quantized.

    `roles` are rows of (role, block -> tensor), `outside` the matrices of no block.
    """

    blocks: list[int]
    roles: list[tuple[str, dict[int, TensorReport]]]
    outside: list[tuple[str, TensorReport]]

    @property
    def cell(self) -> int:
        """The width of a cell in pixels."""
        n = max(1, len(self.blocks))
        room = HALF if n * LABELLED <= HALF else WHOLE
        return max(NARROWEST, min(WIDEST, room // n))

    @property
    def size(self) -> tuple[int, int]:
        """The size of a drawing in pixels."""
        rows = len(self.roles) + len(self.outside)
        return LEFT + self.width + 1, TOP + rows * ROW + (GAP if self.outside else 0) + 1

    @property
    def width(self) -> int:
        """The width of a whole row in pixels."""
        return max(self.cell * len(self.blocks), 2 * WIDEST)

    def rows(self) -> Iterator[tuple[str, int, list[tuple[int, int, TensorReport]]]]:
        """Each row as drawn: its name, its y, and its cells as (x, width, tensor)."""
        for index, (role, tensors) in enumerate(self.roles):
            columns = [(i, tensors[b]) for i, b in enumerate(self.blocks) if b in tensors]
            cells = [(LEFT + i * self.cell, self.cell, tensor) for i, tensor in columns]
            yield role, TOP + index * ROW, cells
        below = TOP + len(self.roles) * ROW + GAP
        for index, (name, tensor) in enumerate(self.outside):
            yield name, below + index * ROW, [(LEFT, self.width, tensor)]


def grid(output: Output) -> Grid:
    """Where each matrix of an output stands, by its GGUF name "blk.N.ROLE.weight"."""
    roles: dict[str, dict[int, TensorReport]] = defaultdict(dict)
    outside = []
    for tensor in output.tensors:
        if len(tensor.shape) < 2:
            continue
        name = tensor.name.removesuffix(".weight")
        if found := re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name, re.DOTALL | re.ASCII):
            roles[found[2]][int(found[1])] = tensor
        else:
            outside.append((name, tensor))
    known = {role: place for place, role in enumerate(USUAL)}
    ordered = sorted(roles.items(), key=lambda row: known.get(row[0], len(USUAL)))
    return Grid(sorted({block for row in roles.values() for block in row}), ordered, outside)


@dataclass(frozen=True)
class HeatScale:
    """Relative errors to levels of heat, logarithmic: each bit less about doubles the error."""

    low: float
    high: float

    @classmethod
    def over(cls, outputs: Iterable[Output]) -> "HeatScale":
        """One scale for all outputs, so that their maps compare; seven doublings at most."""
        errors = [t.cost.relative_error for output in outputs for t in output.tensors]
        lossy = [error for error in errors if error > 0 and math.isfinite(error)] or [0.01]
        high = max(max(lossy), 2 * min(lossy))
        return cls(max(min(lossy), high / DEEPEST), high)

    def level(self, error: float) -> int | None:
        """The level of an error, None for none."""
        if error <= 0 or not math.isfinite(error):
            return None
        part = math.log(error / self.low) / math.log(self.high / self.low)
        return max(0, min(HEAT_LEVELS - 1, int(part * HEAT_LEVELS)))


def bits(type_name: str) -> int:
    """The step of the colour scale for a tensor type: its bits per weight, rounded down."""
    kind = stored(type_name)
    whole = int(8 * kind.type_size / kind.block_size)
    return BIT_LEVELS[max(0, bisect_right(BIT_LEVELS, whole) - 1)]


def error_map(name: str, output: Output, places: Grid, scale: HeatScale) -> str:
    """A heat map of relative error; numbers in the cells where they fit."""

    def paint(axes: Axes) -> None:
        rectangles = defaultdict(list)
        for _, y, cells in places.rows():
            for x, width, tensor in cells:
                error = tensor.cost.relative_error
                level = scale.level(error)
                fill = "blank" if level is None else f"heat-{level}"
                rectangles[fill].append((x, y, width))
                if len(text := _brief(error)) * LETTER < width - 4:
                    _text(axes, x + width / 2, y, text, "muted" if level is None else f"on-{fill}")
        _cells(axes, places, rectangles)

    worst = output.worst[0]
    label = (
        f"Relative error of {output.file_type} by block and tensor role, in percent: "
        f"at most {percent(worst.cost.relative_error)}, in {worst.name}"
    )
    return draw(f"map-error-{name}", label, places.size, (0, 0, 0, 0), paint)


def _brief(error: float) -> str:
    """A relative error in percent, in the space of a cell."""
    return f"{100 * error:.{0 if error >= 0.0995 else 1 if error >= 0.00095 else 2}f}"


def type_map(name: str, output: Output, places: Grid) -> str:
    """Which tensor type each matrix has; neighbours of one type are one field with its name."""

    def paint(axes: Axes) -> None:
        rectangles = defaultdict(list)
        for _, y, cells in places.rows():
            for kind, x, width in _runs(cells):
                fill = f"bits-{bits(kind)}"
                rectangles[fill].append((x, y, width))
                if len(kind) * LETTER < width - 4:
                    _text(axes, x + width / 2, y, kind, f"on-{fill}")
        _cells(axes, places, rectangles)

    used = sorted({tensor.type for tensor in output.tensors if len(tensor.shape) > 1})
    label = f"Tensor types of {output.file_type} by block and tensor role: {', '.join(used)}"
    return draw(f"map-types-{name}", label, places.size, (0, 0, 0, 0), paint)


def _runs(cells: list[tuple[int, int, TensorReport]]) -> Iterator[tuple[str, int, int]]:
    """Neighbouring cells of one type as (type, x, width); a missing cell ends a run."""
    placed = enumerate(cells)
    for (kind, _), run in groupby(placed, lambda c: (c[1][2].type, c[1][0] - c[0] * c[1][1])):
        members = [cell for _, cell in run]
        yield kind, members[0][0], sum(width for _, width, _ in members)


def _cells(axes: Axes, places: Grid, rectangles: dict[str, list[tuple[int, int, int]]]) -> None:
    """One path for all cells of a colour (a path for each would make a large page), and names."""
    width, height = places.size
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for fill, found in sorted(rectangles.items()):
        corners = [
            corner
            for x, y, w in found
            for corner in (
                (x, y),
                (x + w - 1, y),
                (x + w - 1, y + ROW - 1),
                (x, y + ROW - 1),
                (x, y),
            )
        ]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(found)
        path = Path(corners, codes)
        path.should_simplify = False
        axes.add_patch(PathPatch(path, facecolor=css(fill), linewidth=0, clip_on=False))
    for role, y, _ in places.rows():
        longest = int((LEFT - 8) / LETTER)
        shown = role if len(role) <= longest else role[: longest - 1] + "…"
        axes.text(LEFT - 8, y + ROW / 2, shown, ha="right", va="center_baseline")
    step = max(1, math.ceil(30 / places.cell)) if places.cell < 24 else 1
    for index, block in list(enumerate(places.blocks))[::step]:
        _text(axes, LEFT + (index + 0.5) * places.cell, TOP - ROW, str(block), "muted")


def _text(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    small = FONT_SIZE - 1
    axes.text(x, y + ROW / 2, text, ha="center", va="center_baseline", color=css(colour),
              fontsize=small)  # fmt: skip
