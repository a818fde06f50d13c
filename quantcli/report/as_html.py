"""Reports as one HTML file that needs nothing else: no network, no other file, no framework.

The page holds no time and no path, and the same report gives the same bytes. All names in it come
from strangers: they are made printable here, and escaped by Jinja2 and matplotlib.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from quantcli.report.cards import Card, card_of_output
from quantcli.report.drawing import BIT_LEVELS, HEAT_LEVELS, theme
from quantcli.report.maps import Grid, HeatScale, bits, error_map, grid, type_map
from quantcli.report.model import Output, Report, TensorReport
from quantcli.report.page_parts import asset, render
from quantcli.report.quality import ACTIVATIONS, POOLINGS
from quantcli.report.tradeoff import Point, tradeoff_plots
from quantcli.report.words import count, of_rounding, percent, plain

MOST_ROWS = 1200  # of tensors in the page, so that the largest models stay below 1 MB
LEAST_LOSS = 1e-4  # of the largest: what loses less would only squeeze the plot


def report_page(report: Report) -> str:
    """The page of a conversion: summary, trade-off, and per output error, types and tensors."""
    outputs = [_printable(output) for output in report.outputs]
    scale = HeatScale.over(outputs)
    drawn = [t for output in outputs for t in output.tensors if len(t.shape) > 1]
    facts = [
        ("Architecture", plain(report.architecture)),
        ("Parameters", count(report.parameters)),
        ("Method", ", ".join(dict.fromkeys(output.method for output in outputs))),
    ]
    return _page(
        title=plain(report.source_id),
        facts=facts + ([("Revision", plain(report.revision))] if report.revision else []),
        cards=[card_of_output(output) for output in outputs],
        losses=[output.cost.relative_error for output in outputs],
        warnings=report.warnings,
        scale=scale,
        types=sorted({t.type for t in drawn}, key=lambda name: (bits(name), name)),
        lossless=any(scale.level(t.cost.relative_error) is None for t in drawn),
        outputs=[_section(str(i), output, scale) for i, output in enumerate(outputs, 1)],
        rows=max(20, MOST_ROWS // max(1, len(outputs))),
    )


def evaluation_page(reference: str | None, cards: Sequence[Card]) -> str:
    """The page of an evaluation: the summary and the trade-off of several models."""
    against = f" against {_name(reference)}" if reference else ""
    return _page(
        title=f"{len(cards)} model{'' if len(cards) == 1 else 's'}{against}",
        facts=[],
        cards=[replace(card, path=_name(card.path)) for card in cards],
        losses=[],
        warnings=[],
        outputs=[],
    )


def _name(source: str) -> str:
    """A hub id as it is; of a file or folder its name, without the path to it."""
    return plain(Path(source).resolve().name if Path(source).exists() else source)


def _printable(output: Output) -> Output:
    tensors = [replace(tensor, name=plain(tensor.name)) for tensor in output.tensors]
    return replace(output, paths=[plain(Path(p).name) for p in output.paths], tensors=tensors)


def _section(name: str, output: Output, scale: HeatScale) -> dict[str, Any]:
    """What the template shows of one output."""
    places = grid(output)
    drawn = bool(places.roles or places.outside)
    return {
        "name": name,
        "output": output,
        "files": list(zip(output.paths, output.sha256, strict=True)),
        "error_map": Markup(error_map(name, output, places, scale)) if drawn else None,
        "type_map": Markup(type_map(name, output, places)) if drawn else None,
        "cells": _cells(places),
        "vectors": sum(len(tensor.shape) < 2 for tensor in output.tensors),
    }


def _cells(places: Grid) -> list[list[Any]]:
    """What the pointer reads on a map: [y, [[x, width, text], ...]] for each row."""
    return [[y, [[x, w, _tip(tensor)] for x, w, tensor in cells]] for _, y, cells in places.rows()]


def _tip(tensor: TensorReport) -> str:
    name = tensor.name.removesuffix(".weight")
    text = f"{name}, {tensor.type}, {percent(tensor.cost.relative_error)}"
    return text if tensor.divergence is None else f"{text}, divergence {tensor.divergence:.1e}"


def _tradeoff(cards: Sequence[Card], losses: Sequence[float]) -> dict[str, Any] | None:
    """The plots and what they show: divergence or angles where measured, else errors of weights."""
    measured = [
        Point(card.file_type or card.path, card.size_bytes, q.kld_mean, q.kld_stderr or 0.0)
        for card in cards
        if (q := card.quality) and q.kld_mean is not None and card.size_bytes
    ]
    turned = [
        Point(card.file_type or card.path, card.size_bytes, 1 - s.cosine_mean, s.cosine_stderr)
        for card in cards
        if (s := card.similarity) and card.size_bytes
    ]
    found = (
        measured
        or turned
        or [
            Point(card.file_type or card.path, card.size_bytes or 0, loss)
            for card, loss in zip(cards, losses, strict=False)
        ]
    )
    largest = max((point.loss for point in found), default=0.0)
    points = [point for point in found if point.loss > LEAST_LOSS * largest]
    if len(points) < 2:
        return None
    axis = "Mean KL divergence" if measured else "Relative error of the weights"
    axis = "1 − mean cosine similarity" if turned else axis
    return {
        "plots": [Markup(plot) for plot in tradeoff_plots(points, axis)],
        "diverges": bool(measured),
        "turns": bool(turned),
        "lossless": [point.label for point in found if point not in points],
    }


def _page(**shown: Any) -> str:
    """Fill the template."""
    qualities = [card.quality for card in shown["cards"] if card.quality is not None]
    return render(
        "page.html",
        (theme(), asset("page.css")),
        ("sort.js", "page.js"),
        **shown,
        quality=qualities[0] if qualities else None,
        similarity=next((card.similarity for card in shown["cards"] if card.similarity), None),
        poolings=POOLINGS,
        tradeoff=_tradeoff(shown["cards"], shown["losses"]),
        heat_levels=range(HEAT_LEVELS),
        bit_levels=BIT_LEVELS,
        bits=bits,
        activations=ACTIVATIONS,
        of_rounding=of_rounding,
    )
