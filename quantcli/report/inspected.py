"""`quantcli inspect`: metadata, tensors and totals of a model file."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from quantcli.inspection import Inspection
from quantcli.report.as_json import SCHEMA_VERSION
from quantcli.report.terminal import table
from quantcli.report.words import count, shape, size

FIRST_ITEMS = 4
LONGEST_TEXT = 120


def inspection_document(found: Inspection) -> dict[str, Any]:
    """The document that `inspect --json` prints; arrays are whole."""
    return {
        "schema_version": SCHEMA_VERSION,
        "path": found.path,
        "format": found.format,
        "metadata": {key: _plain(value) for key, value in found.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type,
                "shape": list(reversed(tensor.shape)),
                "size_bytes": tensor.size_bytes,
            }
            for tensor in found.tensors
        ],
        "parameters": found.weights,
        "size_bytes": found.size_bytes,
        "bpw": round(found.bpw, 4),
        "types": found.types,
    }


def show_inspection(found: Inspection, console: Console) -> None:
    """Print metadata, tensors and totals."""
    facts = f"{found.format} · {count(found.weights)} weights · {len(found.tensors)} tensors"
    console.print(Text(f"{found.path} · {facts}", style="bold"))
    metadata = table("Metadata", ("Key", "left"), ("Value", "left"))
    for key, value in found.metadata.items():
        metadata.add_row(Text(_safe(key)), Text(_brief(value)))
    tensors = table(
        "Tensors", ("Name", "left"), ("Type", "left"), ("Shape", "right"), ("Size", "right")
    )
    for tensor in found.tensors:
        name = Text(_safe(tensor.name))
        tensors.add_row(name, tensor.type, shape(tensor.shape), size(tensor.size_bytes))
    totals = table("Totals", ("Type", "left"), ("Size", "right"), ("Share", "right"))
    for kind, n_bytes in found.types.items():
        totals.add_row(kind, size(n_bytes), f"{n_bytes / found.size_bytes:.1%}")
    totals.add_row("all", size(found.size_bytes), f"{found.bpw:.2f} bpw", style="bold")
    console.print(metadata, tensors, totals)


def _safe(text: str) -> str:
    """Names come from the file: no control codes reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _brief(value: Any) -> str:
    if isinstance(value, list | np.ndarray):
        items = ", ".join(_safe(repr(_plain(item))) for item in value[:FIRST_ITEMS])
        more = f", … {len(value)} in all" if len(value) > FIRST_ITEMS else ""
        return f"[{items}{more}]"
    text = _safe(str(value))
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… {len(text)} characters"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
