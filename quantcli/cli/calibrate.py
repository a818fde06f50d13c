"""`quantcli calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from quantcli.cli import options


def calibrate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A Hugging Face model id (org/name), a checkpoint folder or a GGUF file.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="imatrix.gguf or, for older releases of llama.cpp, imatrix.dat.",
            show_default=False,
        ),
    ],
    text: Annotated[
        str, typer.Option("--text", metavar="FILE|builtin", help=options.TEXT)
    ] = "builtin",
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            metavar="N",
            min=1,
            help="Use at most N tokens of the text.  [default: 65536]",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=1, help="Tokens per window.")
    ] = 512,
    revision: options.Revision = None,
    threads: options.Threads = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Run a text through a model and write its importance matrix, as llama-imatrix does.

    Example: quantcli calibrate org/model --text calibration.txt -o imatrix.gguf
    """
    from quantcli.calibration import unreached
    from quantcli.calibration.calibrate import TOKENS
    from quantcli.calibration.to_file import calibrate_to_file
    from quantcli.cli import render
    from quantcli.cli.progress import for_terminal
    from quantcli.planning import default_threads

    done = calibrate_to_file(
        source,
        output,
        text,
        tokens=tokens or TOKENS,
        context=context,
        revision=revision,
        threads=threads or default_threads(),
        force=force,
        progress=for_terminal(quiet),
    )
    render.warnings(unreached(done.imatrix, "give more --tokens"))
    render.calibration(done, as_json, quiet)
