"""`--report FILE`: the ending chooses JSON or Markdown."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantcli.errors import UsageError
from quantcli.gguf_file import write_file
from quantcli.report.as_json import report_document
from quantcli.report.as_markdown import report_markdown
from quantcli.report.cards import Card
from quantcli.report.model import Report
from quantcli.report.quality import evaluation_document, evaluation_markdown


def _json_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


WRITERS: dict[str, Callable[[Report], str]] = {
    ".json": lambda report: _json_text(report_document(report)),
    ".md": report_markdown,
}
EVALUATION_WRITERS: dict[str, Callable[[str | None, Sequence[Card]], str]] = {
    ".json": lambda reference, cards: _json_text(evaluation_document(reference, cards)),
    ".md": evaluation_markdown,
}


def check_report_path(path: Path) -> None:
    """Refuse, before any work, a report that could not be written.

    Raises:
        UsageError: when the ending is unknown or the folder does not exist.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"--report {str(path)!r}: the name must end in {' or '.join(WRITERS)}")
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
