"""Loss against size over many models: for each file type the spread of its KL divergences.

A strip per type on one logarithmic axis, smallest type first. SVG by hand: an index needs no
matplotlib, and with places in per cent one drawing fits every width.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median, quantiles

LEAST_LOSS = 1e-4  # of the largest median: what loses less would only squeeze the others
MOST_DOTS = 40  # in a strip; more would be a blur, and the bar tells the same
EDGE = 3.0  # per cent of the strip left free at both ends, for the dots


@dataclass(frozen=True)
class Measured:
    """One file; loss: mean KL divergence in nats; top1: fraction of same top-1."""

    file_type: str
    method: str
    bpw: float
    loss: float
    top1: float | None


@dataclass(frozen=True)
class TypeLoss:
    """One row: all files of a type and method, with medians, and the drawing of their losses."""

    file_type: str
    method: str
    files: int
    bpw: float
    loss: float
    top1: float | None
    strip: str


@dataclass(frozen=True)
class LossByType:
    """Rows by size, their axis, and the types not drawn since they are practically lossless."""

    rows: list[TypeLoss]
    axis: str
    lossless: list[str]


def loss_by_type(files: Iterable[Measured]) -> LossByType | None:
    """The overview, or None where it would say nothing: fewer than two types or three files."""
    groups: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    bpw: dict[str, list[float]] = defaultdict(list)
    for file in files:
        if math.isfinite(file.loss):
            groups[file.file_type, file.method].append(file)
            bpw[file.file_type].append(file.bpw)
    least = LEAST_LOSS * max((median(f.loss for f in g) for g in groups.values()), default=0.0)
    drawn = {k: g for k, g in groups.items() if (m := median(f.loss for f in g)) > least and m > 0}
    if len(drawn) < 2 or sum(map(len, drawn.values())) < 3:
        return None
    ordered = sorted(drawn, key=lambda key: (median(bpw[key[0]]), key))
    scale = _Scale.over([f.loss for group in drawn.values() for f in group if f.loss > 0])
    lossless = sorted({key[0] for key in groups} - {key[0] for key in drawn})
    return LossByType([_row(drawn[key], scale) for key in ordered], scale.axis(), lossless)


def _row(group: Sequence[Measured], scale: "_Scale") -> TypeLoss:
    tops = [file.top1 for file in group if file.top1 is not None]
    first = group[0]
    return TypeLoss(
        first.file_type,
        first.method,
        len(group),
        median(file.bpw for file in group),
        median(file.loss for file in group),
        median(tops) if tops else None,
        scale.strip(first.file_type, sorted(file.loss for file in group)),
    )


@dataclass(frozen=True)
class _Scale:
    """A logarithmic axis from `low` to `high` over the width of a strip."""

    low: float
    high: float

    @classmethod
    def over(cls, losses: Sequence[float]) -> "_Scale":
        low, high = min(losses), max(losses)
        return cls(low, high) if high > 1.5 * low else cls(low / 1.5, high * 1.5)

    def place(self, loss: float) -> float:
        """Where a loss stands, in per cent of the width; what is below the axis, at its start."""
        part = math.log(max(loss, self.low) / self.low) / math.log(self.high / self.low)
        return EDGE + (100 - 2 * EDGE) * part

    def ticks(self) -> list[float]:
        """Round values on the axis: powers of ten, with 2 and 5 between where there is room."""
        wide = self.high > 50 * self.low
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [m * 10.0**d for d in decades for m in ((1,) if wide else (1, 2, 5))]
        return [value for value in values if self.low <= value <= self.high]

    def axis(self) -> str:
        """The ticks' labels, above all strips."""
        labels = "".join(
            f'<text x="{self.place(t):.1f}%" y="12" text-anchor="middle">{t:.10f}'.rstrip("0")
            .rstrip(".") + "</text>"
            for t in self.ticks()
        )  # fmt: skip
        return f'<svg class="axis" width="100%" height="16" aria-hidden="true">{labels}</svg>'

    def strip(self, name: str, losses: Sequence[float]) -> str:
        """A dot per file, a line over all, a bar over the middle half, a mark at the median."""
        low, middle, high = losses[0], median(losses), losses[-1]
        told = f"{name}: median {middle:.3g}, from {low:.3g} to {high:.3g}"
        lines = [self._line("grid", tick, tick, 0, 28) for tick in self.ticks()]
        lines.append(self._line("range", low, high, 14, 14))
        if len(losses) > 3:
            quarter, _, most = quantiles(losses, method="inclusive")
            lines.append(self._line("half", quarter, most, 14, 14))
        if len(losses) <= MOST_DOTS:
            lines += [f'<circle cx="{self.place(x):.1f}%" cy="14" r="3"/>' for x in losses]
        lines.append(f'<circle class="median" cx="{self.place(middle):.1f}%" cy="14" r="5.5"/>')
        opening = (
            f'<svg class="strip" width="100%" height="28" role="img" aria-label="{escape(told)}">'
        )
        return opening + "".join(lines) + "</svg>"

    def _line(self, kind: str, start: float, end: float, top: int, bottom: int) -> str:
        places = f'x1="{self.place(start):.1f}%" x2="{self.place(end):.1f}%"'
        return f'<line class="{kind}" {places} y1="{top}" y2="{bottom}"/>'
