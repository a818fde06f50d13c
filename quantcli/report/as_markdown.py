"""Reports as Markdown, for model cards and pull requests."""

from pathlib import Path

from quantcli.report.cards import card_of_output
from quantcli.report.model import Output, Report
from quantcli.report.quality import card_table, measured
from quantcli.report.words import count, markdown_table, of_rounding, percent, shape, size


def report_markdown(report: Report) -> str:
    """A summary table of all outputs, then each output's tensors, worst first."""
    lines = [
        f"# {report.source_id}",
        "",
        f"{report.architecture}, {count(report.parameters)} parameters"
        + (f", revision `{report.revision}`" if report.revision else "")
        + ".",
        "",
        *markdown_table(
            ("File", "Type", "Size", "bpw", "Error", "sha256"),
            [_summary(output) for output in report.outputs],
        ),
    ]
    cards = [card_of_output(output) for output in report.outputs]
    if any(card.quality or card.similarity for card in cards):
        lines += ["", "## Quality", "", *card_table(cards), "", *measured(report.source_id, cards)]
    for output in report.outputs:
        lines += ["", f"## {output.file_type}", "", *_tensors(output)]
    if report.warnings:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in report.warnings)]
    return "\n".join(lines) + "\n"


def _summary(output: Output) -> list[str]:
    return [
        Path(output.paths[0]).name,
        output.file_type,
        size(output.size_bytes),
        f"{output.bpw:.2f}",
        percent(output.cost.relative_error),
        f"`{output.sha256[0]}`",
    ]


def _tensors(output: Output) -> list[str]:
    measured = output.divergence is not None
    return markdown_table(
        (
            *("Tensor", "Type", "Shape", "Size", "RMSE", "Error", "Max", "Of RTN"),
            *(["Estimated KLD"] if measured else []),
            "Note",
        ),
        [
            [
                f"`{tensor.name}`",
                tensor.type,
                shape(tensor.shape),
                size(tensor.size_bytes),
                f"{tensor.cost.rmse:.3e}",
                percent(tensor.cost.relative_error),
                f"{tensor.cost.max_error:.3e}",
                of_rounding(tensor.cost.of_rounding),
                *([f"{tensor.divergence or 0:.2e}"] if measured else []),
                tensor.fallback or "",
            ]
            for tensor in output.worst
        ],
    )
