"""`--report FILE`: the ending chooses JSON or Markdown."""

import json
from collections.abc import Callable
from pathlib import Path

from quantcli.errors import UsageError
from quantcli.gguf_file import write_file
from quantcli.report.as_json import report_document
from quantcli.report.as_markdown import report_markdown
from quantcli.report.model import Report


def _json_text(report: Report) -> str:
    return json.dumps(report_document(report), indent=2) + "\n"


WRITERS: dict[str, Callable[[Report], str]] = {".json": _json_text, ".md": report_markdown}


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
