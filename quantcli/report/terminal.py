"""Reports for a person at a terminal, in 80 columns."""

from dataclasses import replace

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from quantcli.report.allocation import roles
from quantcli.report.cards import card_of_output
from quantcli.report.model import Output, Report, TensorReport
from quantcli.report.quality import show_cards
from quantcli.report.words import count, of_rounding, percent, shape, size

WORST_SHOWN = 8


def table(title: str, *columns: tuple[str, str]) -> Table:
    """An 80-column table; each column is (heading, "left" | "right")."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    made.show_edge = made.pad_edge = False
    for heading, justify in columns:
        right = justify == "right"
        made.add_column(
            heading, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return made


def show(report: Report, console: Console) -> None:
    """Print what was written and what it cost, worst tensors first."""
    title = f"{report.source_id} · {report.architecture} · {count(report.parameters)} parameters"
    console.print(Text(title, style="bold"))
    for output in report.outputs:
        console.print(_output(output))
    cards = [replace(card_of_output(output), sha256=None) for output in report.outputs]
    if any(card.quality or card.similarity for card in cards):
        console.print()
        show_cards(report.source_id, cards, console)
    console.print(
        f"{report.seconds:.1f} s · peak memory {size(report.peak_memory_bytes)}",
        style="dim",
        highlight=False,
    )


def _output(output: Output) -> RenderableType:
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for path, digest in zip(output.paths, output.sha256, strict=True):
        facts.add_row("file", Text(path, style="bold"))
        facts.add_row("sha256", digest)
    facts.add_row("type", f"{output.file_type}, method {output.method}")
    facts.add_row("size", f"{size(output.size_bytes)}, {output.bpw:.2f} bits per weight")
    if output.divergence is not None:
        facts.add_row("estimate", f"KL divergence {output.divergence:.6f} by the choice of types")
    facts.add_row("error", f"{percent(output.cost.relative_error)} of the weights' norm")
    parts = [_types(output)] if output.divergence is not None else []
    padded = [Padding(part, (1, 0, 0, 0)) for part in [_worst(output), *parts]]
    return Group(Text(), facts, *padded)


def _types(output: Output) -> RenderableType:
    shown = table(
        "Types by estimated KL divergence",
        ("Tensors", "left"),
        ("Blocks and their types", "left"),
        ("Divergence", "right"),
    )
    for role in roles(output):
        shown.add_row(role.name, role.types, f"{role.divergence:.2e}")
    return shown


def _worst(output: Output) -> RenderableType:
    lossy = [tensor for tensor in output.worst if tensor.cost.squared_error > 0]
    if not lossy:
        return Text("every tensor is stored without loss")
    calibrated = any(tensor.cost.of_rounding is not None for tensor in lossy)
    shown = table(
        f"{min(WORST_SHOWN, len(lossy))} largest errors of {len(output.tensors)} tensors",
        ("Tensor", "left"),
        ("Type", "left"),
        ("Shape", "right"),
        ("RMSE", "right"),
        ("Error", "right"),
        ("Of RTN" if calibrated else "Max", "right"),
    )
    for tensor in lossy[:WORST_SHOWN]:
        cost = tensor.cost
        last = of_rounding(cost.of_rounding) if calibrated else f"{cost.max_error:.2e}"
        shown.add_row(*_row(tensor), last)
    return shown


def _row(tensor: TensorReport) -> list[str]:
    cost = tensor.cost
    return [
        tensor.name,
        tensor.type + (" *" if tensor.fallback else ""),
        shape(tensor.shape),
        f"{cost.rmse:.2e}",
        percent(cost.relative_error),
    ]
