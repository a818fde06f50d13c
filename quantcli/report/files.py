"""What `--report FILE` writes, in the format its ending chooses, and what `--card` writes."""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quantcli.errors import UsageError
from quantcli.gguf_file import check_output, write_file
from quantcli.report.as_json import report_document
from quantcli.report.as_markdown import report_markdown
from quantcli.report.cards import CARD_FILES, Card
from quantcli.report.model import Report
from quantcli.report.quality import evaluation_document, evaluation_markdown

DRAWN_BY = ("matplotlib",)  # the extra `html`: imported only for an HTML report


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
    if path.suffix == ".html":
        check_drawing(f"--report {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"--report {str(path)!r}: folder {str(path.parent)!r} does not exist")


def check_drawing(asked: str) -> None:
    """Refuse an HTML report where the packages that draw it are missing.

    Raises:
        UsageError: naming them, and where the report was asked for.
    """
    if missing := [name for name in DRAWN_BY if not find_spec(name)]:
        names, packages = " and ".join(missing), " ".join(missing)
        raise UsageError(f"{asked}: HTML reports need {names}; pip install {packages}")


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


def check_card(output: Path, source: str, report: Path | None, *, force: bool) -> None:
    """Refuse, before any work, a model card that could not be written beside `output`.

    Raises:
        OutputExistsError: when it or the Modelfile exists, unless `force`.
        UsageError: when the folder is missing or read-only, or one of them is the report or belongs
            to the source.
    """
    sources = [Path(source) / name for name in CARD_FILES]
    for path in _card_paths(output):
        check_output(path, force=force, sources=sources)
        if report is not None and report.resolve() == path.resolve():
            raise UsageError(f"--report {str(report)!r} is where --card writes; give another name")


def write_card(report: Report, output: Path, *, force: bool) -> None:
    """Write the model card and Ollama's Modelfile into the folder of the outputs, atomically.

    Raises:
        OutputExistsError, ResourceError: as gguf_file.write_file; the outputs stay.
    """
    from quantcli.report.model_card import card_files

    made = card_files(report)
    for path in _card_paths(output):
        write_file(path, made[path.name].encode(), force=force)


def _card_paths(output: Path) -> list[Path]:
    folder = output if output.is_dir() else output.parent
    return [folder / name for name in CARD_FILES]
