"""`quantcli inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from quantcli.cli import options


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A GGUF file, a safetensors file or a checkpoint folder.",
            show_default=False,
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Show metadata, tensors, types and totals of a model file, reading its header only."""
    from quantcli.cli import render
    from quantcli.inspection import inspect as look
    from quantcli.report.inspected import inspection_document, show_inspection

    found = look(path)
    if as_json:
        render.document(inspection_document(found))
    else:
        show_inspection(found, render.console())
