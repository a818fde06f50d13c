"""Quality side by side, in the columns of model cards: terminal, Markdown, JSON."""

import math
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from quantcli.evaluation import Quality, Similarity
from quantcli.report.as_json import SCHEMA_VERSION, quality_document
from quantcli.report.cards import Card
from quantcli.report.words import code, cosine, markdown_table, size

HEADINGS = ("Type", "Size", "bpw", "PPL", "ΔPPL", "KLD", "99.9 %", "Top-1", "RAM 8k")
EMBEDDING_HEADINGS = ("Type", "Size", "bpw", "Cosine mean", "Cosine worst", "RAM 8k")
MARKDOWN_HEADINGS = (
    *(
        "File",
        "Type",
        "Method",
        "Size",
        "bpw",
        "PPL",
        "ΔPPL",
        "KLD mean",
        "KLD 99.9 %",
        "Same top-1",
    ),
    *("RAM at 8k", "sha256", "Notes"),
)
EMBEDDING_MARKDOWN_HEADINGS = (
    *("File", "Type", "Method", "Size", "bpw", "Cosine mean", "Cosine worst"),
    *("RAM at 8k", "sha256", "Notes"),
)
ACTIVATIONS = {
    "float": "Activations not rounded: the weights' own effect",
    "llama-cpu": "Activations rounded as llama.cpp does on a CPU",
}
POOLINGS = {
    "mean": "each is the mean over a window's tokens",
    "cls": "each is that of a window's first token",
    "last": "each is that of a window's last token",
    "none": "each is that of a token, as the file does not say how to pool",
}


def evaluation_document(reference: str | None, cards: Sequence[Card]) -> dict[str, Any]:
    """The document that `evaluate --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "reference": reference,
        "models": [_document(card) for card in cards],
    }


def _document(card: Card) -> dict[str, Any]:
    return {
        "path": card.path,
        "file_type": card.file_type,
        "size_bytes": card.size_bytes,
        "bpw": None if card.bpw is None else round(card.bpw, 4),
        "ram_bytes": card.ram_bytes,
        "sha256": card.sha256,
        **(quality_document(card.quality or card.similarity) or {}),
        "note": card.note,
    }


def show_cards(reference: str | None, cards: Sequence[Card], console: Console) -> None:
    """Each model on three lines: its name and what it is good for, its figures, its sha256."""
    embed = embeds(cards)
    headings = EMBEDDING_HEADINGS if embed else HEADINGS
    rows = [headings, *(_figures(card, embed) for card in cards)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    console.print(Text(lines[0], style="dim"))
    for card, line in zip(cards, lines[1:], strict=True):
        note = (f" · {card.note}", "dim") if card.note else ""
        console.print(Text.assemble((_plain(Path(card.path).name), "bold"), note), overflow="fold")
        console.print(Text(line))
        if card.sha256:
            console.print(Text(f"sha256 {card.sha256}", style="dim"))
    for line in measured(reference, cards):
        console.print(Text(line, style="dim"), overflow="fold")


def evaluation_markdown(reference: str | None, cards: Sequence[Card]) -> str:
    """A table for model cards, and how its figures were measured."""
    lines = ["# Evaluation", "", *card_table(cards), "", *measured(reference, cards)]
    return "\n".join(lines) + "\n"


def card_table(cards: Sequence[Card]) -> list[str]:
    """Lines of a Markdown table, one row per model; columns that say nothing are left out."""
    rows = []
    mixed = len({card.method for card in cards}) > 1
    embed = embeds(cards)
    headings = EMBEDDING_MARKDOWN_HEADINGS if embed else MARKDOWN_HEADINGS
    for card in cards:
        kind, *figures = _figures(card, embed)
        method = (card.method or "") if mixed else ""
        digest = f"`{card.sha256}`" if card.sha256 else ""
        rows.append((code(Path(card.path).name), kind, method, *figures, digest, card.note))
    told = [any(column) for column in zip(*rows, strict=True)]
    return markdown_table(
        list(compress(headings, told)), [list(compress(row, told)) for row in rows]
    )


def embeds(cards: Sequence[Card]) -> bool:
    """Whether cosine similarity takes the place of what predictions are measured by."""
    return any(card.similarity for card in cards)


def _figures(card: Card, embed: bool) -> tuple[str, ...]:
    """Cells from Type to RAM; empty where nothing is known."""
    quality, similarity = card.quality, card.similarity
    found: tuple[str, ...]
    if embed:
        found = _cosines(similarity) if similarity else ("", "")
    else:
        found = _measured(quality) if quality else ("",) * 5
    return (
        card.file_type or "",
        "" if card.size_bytes is None else size(card.size_bytes),
        "" if card.bpw is None else f"{card.bpw:.2f}",
        *found,
        "" if card.ram_bytes is None else size(card.ram_bytes),
    )


def _measured(quality: Quality) -> tuple[str, ...]:
    """PPL ± error, ΔPPL, mean and 99.9 % KLD, same top-1."""
    found = _with_error(quality.perplexity, quality.perplexity_stderr)
    if quality.perplexity_ratio is None or quality.top1_agreement is None:
        return (found, "", "", "", "")
    return (
        found,
        f"{100 * (quality.perplexity_ratio - 1):+.2f} %",
        _nats(quality.kld_mean),
        _nats(quality.kld_p999),
        f"{100 * quality.top1_agreement:.1f} %",
    )


def _cosines(similarity: Similarity) -> tuple[str, str]:
    """Mean and worst."""
    return cosine(similarity.cosine_mean), cosine(similarity.cosine_min)


def _with_error(value: float, error: float) -> str:
    """Five significant digits and two of the error: "40.726 ±0.93"."""
    return f"{_digits(value, 5)} ±{_digits(error, 2)}"


def _digits(value: float, count: int) -> str:
    """At least that many significant digits, never an exponent."""
    whole = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, count - 1 - whole)}f}"


def _nats(kld: float | None) -> str:
    """Three significant digits, without exponent as long as it stays short."""
    if kld is None:
        return ""
    return f"{kld:.3g}" if kld >= 0.1 else f"{kld:.5f}" if kld >= 0.001 else f"{kld:.6f}"


def measured(reference: str | None, cards: Sequence[Card]) -> list[str]:
    """Against what and how the figures were measured, in a line each."""
    similarity = next((card.similarity for card in cards if card.similarity), None)
    if similarity is not None:
        against = f" to those of {_plain(reference)}" if reference else ""
        return [
            f"Cosine similarity of embeddings{against}, {similarity.embeddings} compared; "
            f"{POOLINGS[similarity.pooling]}.",
            f"{similarity.chunks} windows of {similarity.context} tokens; "
            f"text sha256 {similarity.text_sha256[:16]}.",
            f"{ACTIVATIONS[similarity.activations]}.",
        ]
    quality = next((card.quality for card in cards if card.quality), None)
    if quality is None:
        return []
    lines = [
        f"{quality.chunks} windows of {quality.context} tokens, second half scored; "
        f"text sha256 {quality.text_sha256[:16]}.",
        f"{ACTIVATIONS[quality.activations]}.",
    ]
    if reference is not None and quality.reference_perplexity is not None:
        lines.insert(
            0, f"Reference {_plain(reference)}: PPL {_digits(quality.reference_perplexity, 5)}."
        )
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return " ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])


def _plain(name: str) -> str:
    """Names of files may hold anything; control codes never reach a terminal."""
    return name if name.isprintable() else repr(name)
