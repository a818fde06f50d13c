"""`quantcli list types|methods|architectures`."""

from typing import TYPE_CHECKING

import typer

from quantcli.cli import options

if TYPE_CHECKING:
    from quantcli.architectures import Architecture

app = typer.Typer(
    no_args_is_help=True, help="List the file types, methods or architectures that are known."
)


@app.command("types")
def types(as_json: options.Json = False) -> None:
    """File types, smallest first, with what they are good for."""
    from quantcli.cli.render import listing
    from quantcli.recipes import FILE_TYPES

    listing(
        "types",
        [
            {"name": kind.name, "id": kind.id, "base": kind.base, "note": kind.note}
            for kind in FILE_TYPES.values()
        ],
        as_json,
    )


@app.command("methods")
def methods(as_json: options.Json = False) -> None:
    """Quantization back-ends."""
    from quantcli.cli.render import listing
    from quantcli.methods import METHODS

    listing("methods", [{"name": m.name, "note": m.summary} for m in METHODS.values()], as_json)


@app.command("architectures")
def architectures(as_json: options.Json = False) -> None:
    """Model families, by the class names in their config.json, and what evaluation compares.

    Those without ("-") convert, but have no forward pass for calibrating and evaluating.
    """
    from quantcli.architectures import supported
    from quantcli.cli.render import listing

    listing(
        "architectures",
        [
            {"name": a.name, "classes": list(a.classes), "gguf": a.gguf, "compares": _compares(a)}
            for a in supported()
        ],
        as_json,
    )


def _compares(family: "Architecture") -> str:
    if family.wiring is None:
        return "-"
    return "embeddings" if family.wiring.embeds else "predictions"
