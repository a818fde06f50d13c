"""Results go to stdout: one JSON document, or tables for a person. Warnings go to stderr."""

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quantcli.calibration.to_file import Calibrated
    from quantcli.planning import Plan
    from quantcli.planning.survey import Survey
    from quantcli.report import Report
    from quantcli.report.cards import Card

PLAIN_WIDTH = 80


def console() -> Console:
    """Stdout; 80 columns where it is not a terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=PLAIN_WIDTH)


def document(content: dict[str, Any]) -> None:
    """Print one JSON document."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def warnings(messages: list[str]) -> None:
    """Print each warning as one line."""
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)


def report(done: "Report", as_json: bool, quiet: bool) -> None:
    """The result of a conversion."""
    from quantcli.report import as_json as json_form
    from quantcli.report import terminal

    if as_json:
        document(json_form.report_document(done))
    elif not quiet:
        terminal.show(done, console())


def evaluation(reference: str | None, cards: "Sequence[Card]", as_json: bool, quiet: bool) -> None:
    """The result of `quantcli evaluate`."""
    from quantcli.report import quality

    if as_json:
        document(quality.evaluation_document(reference, cards))
    elif not quiet:
        quality.show_cards(reference, cards, console())


def calibration(done: "Calibrated", as_json: bool, quiet: bool) -> None:
    """The result of `quantcli calibrate`."""
    from quantcli.report import calibration as form

    if as_json:
        document(form.calibration_document(done))
    elif not quiet:
        form.show_calibration(done, console())


def plan(made: "Plan", as_json: bool) -> None:
    """The result of a dry run."""
    from quantcli.report import survey as form

    if as_json:
        document(form.plan_document(made))
    else:
        form.show_plan(made, console())


def survey(made: "Survey", as_json: bool) -> None:
    """The result of `quantcli plan`."""
    from quantcli.report import survey as form

    if as_json:
        document(form.survey_document(made))
    else:
        form.show_survey(made, console())


def dry_run(found: dict[str, Any], as_json: bool) -> None:
    """What `quantcli batch` would do."""
    from quantcli.report.batch import show_dry_run

    if as_json:
        document(found)
    else:
        show_dry_run(found, console())


def batch(summary: dict[str, Any], root: str, as_json: bool, quiet: bool) -> None:
    """The result of `quantcli batch`."""
    from quantcli.report.batch import show_summary

    if as_json:
        document(summary)
    elif not quiet:
        show_summary(summary, root, console())


def listing(name: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows of equal keys as a table, or as a JSON document under `name`."""
    from quantcli.report.as_json import SCHEMA_VERSION
    from quantcli.report.terminal import table

    if as_json:
        document({"schema_version": SCHEMA_VERSION, name: rows})
        return
    shown = table("", *((key.capitalize(), "left") for key in rows[0]))
    shown.title = None
    for row in rows:
        cells = (", ".join(cell) if isinstance(cell, list) else str(cell) for cell in row.values())
        shown.add_row(*cells)
    console().print(shown)
