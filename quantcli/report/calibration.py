"""What `quantcli calibrate` did: a JSON document, or lines for a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantcli.calibration.to_file import Calibrated
from quantcli.report.as_json import SCHEMA_VERSION
from quantcli.report.words import count


def calibration_document(done: Calibrated) -> dict[str, Any]:
    """The document that `calibrate --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "path": str(done.path),
        "dataset": done.imatrix.datasets[0],
        "text_sha256": done.text_sha256,
        "context": done.imatrix.chunk_size,
        "chunks": done.imatrix.chunks,
        "tokens": done.tokens,
        "entries": len(done.imatrix.entries),
        "seconds": round(done.seconds, 3),
    }


def show_calibration(done: Calibrated, console: Console) -> None:
    """Print what was written and what it was made from."""
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("file", Text(str(done.path), style="bold"))
    facts.add_row("weights", str(len(done.imatrix.entries)))
    facts.add_row("text", Text(done.imatrix.datasets[0]))
    windows = f"{done.imatrix.chunks} windows of {done.imatrix.chunk_size}"
    facts.add_row("tokens", f"{count(done.tokens)}, {windows}")
    facts.add_row("time", f"{done.seconds:.1f} s")
    console.print(facts)
