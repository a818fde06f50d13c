"""`--report FILE`: the ending chooses JSON, Markdown or HTML."""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantcli.errors import UsageError
from quantcli.gguf_file import write_file
from quantcli.report.as_json import report_document
from quantcli.report.as_markdown import report_markdown
from quantcli.report.cards import Card
from quantcli.report.model import Report
from quantcli.report.quality import evaluation_document, evaluation_markdown

DRAWN_BY = ("matplotlib", "jinja2")  # the extra `html`: imported only for an HTML report


def _json_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def _page(report: Report) -> str:
    from quantcli.report.as_html import report_page

    return report_page(report)


def _evaluation_page(reference: str | None, cards: Sequence[Card]) -> str:
    from quantcli.report.as_html import evaluation_page

    return evaluation_page(reference, cards)


WRITERS: dict[str, Callable[[Report], str]] = {
    ".json": lambda report: _json_text(report_document(report)),
    ".md": report_markdown,
    ".html": _page,
}
EVALUATION_WRITERS: dict[str, Callable[[str | None, Sequence[Card]], str]] = {
    ".json": lambda reference, cards: _json_text(evaluation_document(reference, cards)),
    ".md": evaluation_markdown,
    ".html": _evaluation_page,
}


def check_report_path(path: Path) -> None:
    """Refuse, before any work, a report that could not be written.

    Raises:
        UsageError: when the ending is unknown, the folder does not exist, or the packages that draw
            an HTML report are not installed.
    """
    if path.suffix not in WRITERS:
        *others, last = WRITERS
        endings = f"{', '.join(others)} or {last}"
        raise UsageError(f"--report {str(path)!r}: the name must end in {endings}")
    if path.suffix == ".html" and (missing := [name for name in DRAWN_BY if not find_spec(name)]):
        raise UsageError(
            f"--report {str(path)!r}: HTML reports need {' and '.join(missing)}; "
            "pip install 'quantcli[html]'"
        )
    if not path.parent.is_dir():
        raise UsageError(f"--report {str(path)!r}: folder {str(path.parent)!r} does not exist")


def write_report(report: Report, path: Path) -> None:
    """Write the report in the format that the file's ending names, atomically.

    Raises:
        ResourceError: when it cannot be written; the outputs stay.
    """
    write_file(path, WRITERS[path.suffix](report).encode(), force=True)


def write_evaluation(reference: str | None, cards: Sequence[Card], path: Path) -> None:
    """The same for an evaluation.

    Raises:
        ResourceError: when it cannot be written.
    """
    text = EVALUATION_WRITERS[path.suffix](reference, cards)
    write_file(path, text.encode(), force=True)
